"""Reading a run: `read(folder)["loss"]` is every point of it; `RunData` is what the page keeps of an open run.

A run folder's `metrics/` holds what its writers left, one file each, in the order of their numbers: `.log` (open or
closed), `.columns` (the same, compacted) or `.jsonl` (text). A writer's number is its attempt.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from moonlet.tracker import format as f
from moonlet.tracker.columns import ColumnsFile
from moonlet.tracker.logfile import JsonLines, LogFile, Points, Source, Stat

KINDS = dict(zip(f.SUFFIXES, (ColumnsFile, LogFile, JsonLines), strict=True))


@dataclass(frozen=True)
class Series:
    """One metric, one point a step: `step` int64 [N], `time` float64 [N] (Unix seconds), `value` float64 [N]."""

    step: np.ndarray
    time: np.ndarray
    value: np.ndarray


def read(folder: str | os.PathLike[str], attempt: int | None = None) -> dict[str, Series]:
    """Every series of a run folder, by name; {} when nothing was logged yet. Works while the run is being written.

    Where a step was logged twice (a run resumed from an earlier step), the last write counts: later attempt, later
    record. `attempt` reads what that one alone logged. Raises ValueError when the folder is missing or a record
    before the end of a file is damaged.
    """
    run = RunData(Path(folder), strict=True)
    run.refresh()
    return {name: run.series(name, attempt) for name in run.names(attempt)}


class RunData:
    """The sources of one run, each read as far as it has been written."""

    def __init__(self, folder: Path, strict: bool = False) -> None:
        if not folder.is_dir():
            raise ValueError(f"{folder} is not a folder: give the folder of a run")
        self.folder, self.strict = folder, strict
        self.sources: dict[str, Source] = {}
        self.version = 0  # counts the refreshes that found something

    def refresh(self) -> bool:
        """Take in what is new in any file. Returns whether there was anything."""
        paths = metric_files(self.folder)
        changed = False
        for stem in list(self.sources):
            if stem not in paths or self.sources[stem].path != paths[stem]:
                del self.sources[stem]
                changed = True
        for stem, path in sorted(paths.items()):
            try:
                if stem not in self.sources:
                    self.sources[stem] = KINDS[path.suffix](path, self.strict)
                changed |= self.sources[stem].refresh()
            except FileNotFoundError:  # compacted a moment ago
                self.sources.pop(stem, None)
                changed = True
        self.sources = dict(sorted(self.sources.items()))
        self.version += changed
        return changed

    @property
    def held(self) -> int:
        """Points that are in memory: columns are decoded anew each time, logs and text are not."""
        return sum(source.points for source in self.sources.values() if not isinstance(source, ColumnsFile))

    def chosen(self, attempt: int | None = None) -> list[Source]:
        return [source for source in self.sources.values() if attempt is None or source.attempt == attempt]

    def names(self, attempt: int | None = None) -> list[str]:
        return list(dict.fromkeys(name for source in self.chosen(attempt) for name in source.stats))

    def raw(self, name: str, attempt: int | None = None) -> Points:
        """Every point in the order it was logged, overlapping steps of several attempts included."""
        parts = [source.raw(name) for source in self.chosen(attempt) if name in source.stats]
        if not parts:
            raise KeyError(name)
        if len(parts) == 1:
            return parts[0]
        step, time, value = (np.concatenate(columns) for columns in zip(*parts, strict=True))
        return step, time, value

    def by_step(self, name: str, attempt: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """step and value of `series`."""
        sources = [source for source in self.chosen(attempt) if name in source.stats]
        if len(sources) == 1:
            step, value = sources[0].steps_values(name)
            if (step[1:] > step[:-1]).all():
                return step, value
        series = self.series(name, attempt)
        return series.step, series.value

    def series(self, name: str, attempt: int | None = None) -> Series:
        return last_writes(*self.raw(name, attempt))

    def stats(self) -> dict[str, Stat]:
        found: dict[str, Stat] = {}
        for source in self.sources.values():
            for name, stat in source.stats.items():
                found[name] = found[name].then(stat) if name in found else stat
        return found

    def fields(self, kind: str) -> dict[str, Any]:
        """What all events of a kind that carries a dict (config, summary) say together, the later ones on top."""
        found: dict[str, Any] = {}
        for source in self.sources.values():
            for event in source.events:
                if event.kind == kind and isinstance(event.data, dict):
                    found.update(event.data)
        return found


def metric_files(folder: Path) -> dict[str, Path]:
    """The file of each writer by its stem; the compacted form where both are there."""
    found: dict[str, Path] = {}
    place = os.path.join(folder, "metrics")
    try:
        with os.scandir(place) as entries:
            names = [entry.name for entry in entries if entry.is_file(follow_symlinks=False)]
    except FileNotFoundError:
        return {}
    for name in names:
        stem, dot, suffix = name.rpartition(".")
        kind = dot + suffix
        if kind in KINDS and stem[:6].isdecimal() and (stem not in found or kind == ".columns"):
            found[stem] = Path(place, name)
    return found


def last_writes(step: np.ndarray, time: np.ndarray, value: np.ndarray) -> Series:
    """One point a step, ascending: of points with the same step the last one."""
    if (step[1:] > step[:-1]).all():
        return Series(step, time, value)
    # np.unique returns the first place of each step: over the reversed array that is the last write.
    step, first = np.unique(step[::-1], return_index=True)
    last = len(value) - 1 - first
    return Series(step, time[last], value[last])
