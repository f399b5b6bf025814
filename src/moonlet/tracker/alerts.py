"""Alerts on what runs log: a value that is not finite, a spike, a stall, an expression; told by command or webhook.

Rules are a TOML file that whoever starts the board writes; nothing over HTTP can change them:

    [[rule]]
    when = "spike"                      # or "nonfinite", "stall", "expression"
    series = "*/loss"                   # nonfinite and spike: names, with * and ?
    sigma = 8                           # spike: so many deviations from the mean of the 200 points before
    seconds = 600                       # stall: no news for so long
    filter = "summary.loss > 4"         # expression: what must hold; otherwise: only runs for which it holds
    command = ["notify-send", "moonlet"]        # gets title and text as two further arguments, no shell
    webhook = "https://example.org/hook"        # gets them as JSON

A rule speaks once for each run and series, and again only after its condition was over. Each alert is a line of the
run's `metrics/edits.jsonl` too, where the page finds it. Only runs that are being written are watched.
"""

import fnmatch
import json
import logging
import subprocess
import threading
import time
import tomllib
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from moonlet.tracker import filters
from moonlet.tracker.index import Index
from moonlet.tracker.reader import RunData

WINDOW = 200  # points that a spike is measured against; at least a tenth of them must be there
DEFAULTS = {"series": "*", "sigma": 8.0, "seconds": 600.0, "filter": "", "command": None, "webhook": None}
KINDS = ("nonfinite", "spike", "stall", "expression")
log = logging.getLogger("moonlet.tracker")


class Watch:
    """Raises ValueError for a file that is not such rules."""

    def __init__(self, path: Path) -> None:
        try:
            rules = tomllib.loads(path.read_text())["rule"]
        except (OSError, KeyError, tomllib.TOMLDecodeError) as error:
            raise ValueError(f"{path} holds no rules ({error}): see docs/tracker.md") from error
        self.rules = [checked(rule, path) for rule in rules]
        self._seen: dict[tuple[int, str, str], int] = {}  # points of a series that were looked at
        self._on: set[tuple[int, str, str]] = set()

    def look(self, index: Index) -> None:
        """Check every run that is being written, and tell what is new."""
        for name, record in list(index.records.items()):
            if record["state"] not in ("running", "stalled"):
                continue
            with index.lock:
                run = index.live(name)
                found = [(i, rule, list(self._found(i, rule, name, record, run))) for i, rule in enumerate(self.rules)]
            for i, rule, hits in found:
                before = {key for key in self._on if key[:2] == (i, name)}
                now = {(i, name, series) for series, _ in hits}
                for series, text in hits:
                    if (i, name, series) not in before:
                        title = f"{rule['when']}: {record['name']} {series}".strip()
                        tell(rule, title, text)
                        index.note_alert(name, {"title": title, "text": text, "level": "warning"})
                self._on = (self._on - before) | now

    def _found(
        self, i: int, rule: dict[str, Any], name: str, record: dict[str, Any], run: RunData | None
    ) -> Iterator[tuple[str, str]]:
        """(series or "", what is wrong) for everything that the rule holds for now."""
        holds = rule["test"](record)
        if rule["when"] == "expression":
            if holds:
                yield "", f"{rule['filter']} holds"
        elif holds and rule["when"] == "stall":
            silent = time.time() - record["updated"]
            if silent > rule["seconds"]:
                yield "", f"no news for {silent:.0f} s"
        elif holds and run is not None:
            for series in fnmatch.filter(run.names(), rule["series"]):
                step, _, value = run.raw(series)
                key = (i, name, series)
                first, self._seen[key] = self._seen.get(key, 0), len(value)
                text = oddity(rule, step, value, first)
                if text or (first == len(value) and key in self._on):
                    yield series, text or ""


def oddity(rule: dict[str, Any], step: np.ndarray, value: np.ndarray, first: int) -> str | None:
    """What is wrong with the points from `first` on."""
    new = value[first:]
    if rule["when"] == "nonfinite":
        odd = np.flatnonzero(~np.isfinite(new))
        return f"{new[odd[0]]} at step {step[first + odd[0]]}" if len(odd) else None
    for place in range(first, len(value)):
        before = value[max(place - WINDOW, 0) : place]
        before = before[np.isfinite(before)]
        if len(before) >= WINDOW // 10 and np.isfinite(value[place]):
            deviation = float(before.std())
            away = abs(float(value[place]) - float(before.mean()))
            if away > rule["sigma"] * deviation > 0:
                return f"{value[place]:g} at step {step[place]}: {away / deviation:.1f} deviations from the mean"
    return None


def checked(rule: dict[str, Any], path: Path) -> dict[str, Any]:
    unknown = rule.keys() - DEFAULTS.keys() - {"when"}
    if rule.get("when") not in KINDS or unknown:
        raise ValueError(f"{path}: {unknown or rule.get('when')!r}: `when` is one of {KINDS}, beside {list(DEFAULTS)}")
    full = {**DEFAULTS, **rule}
    return {**full, "test": filters.parse(full["filter"])}


def tell(rule: dict[str, Any], title: str, text: str) -> None:
    """Run the command, call the webhook; neither is waited for."""

    def work() -> None:
        try:
            if rule["command"]:
                subprocess.run([*rule["command"], title, text], timeout=60, check=True, stdin=subprocess.DEVNULL)
            if rule["webhook"]:
                body = json.dumps({"title": title, "text": text}).encode()
                request = urllib.request.Request(rule["webhook"], body, {"content-type": "application/json"})
                urllib.request.urlopen(request, timeout=10).close()
        except (OSError, subprocess.SubprocessError) as error:
            log.warning("alert %r could not be told: %s", title, error)

    if rule["command"] or rule["webhook"]:
        threading.Thread(target=work, name="moonlet-board-alert", daemon=True).start()
