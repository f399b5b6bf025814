"""From runs to what a chart draws: curves by run, name and axis, kept while they are used; and curves over groups.

A curve is decoded when somebody asks for it and stays in memory up to CURVE_BYTES in all, the longest unused going
first. Aggregates are exact: at every x where any run of the group has a point, over the runs that have one there.
"""

import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np

from moonlet.tracker.index import Index
from moonlet.tracker.pixels import Curve, window
from moonlet.tracker.reader import RunData, Series, last_writes

CURVE_BYTES = 200 * 2**20
RUN_POINTS = 8_000_000  # of the runs whose sources stay open
MAX_PIXELS = 20_000
FRESH_SECONDS = 0.2  # for so long what was read of a run is good enough
AGGREGATE_CELLS = 4_000_000  # of the table of runs × places that is sorted at once


@dataclass(frozen=True)
class Request:
    """What /api/m4 and /api/aggregate share: the axis and the window. Raises ValueError for what is none."""

    x: str = "step"
    x0: float | None = None
    x1: float | None = None
    pixels: int = 1000
    scale: str = "linear"
    smooth: float = 0.0

    def __post_init__(self) -> None:
        if not 1 <= self.pixels <= MAX_PIXELS:
            raise ValueError(f"pixels is {self.pixels}: it must be 1 to {MAX_PIXELS}")
        if self.scale not in ("linear", "log"):
            raise ValueError(f"scale is {self.scale[:40]!r}: it must be linear or log")
        if not 0 <= self.smooth < 1:
            raise ValueError(f"smooth is {self.smooth}: it must be at least 0 and below 1")


class Curves:
    def __init__(self, index: Index) -> None:
        self.index = index
        self._curves: OrderedDict[Any, tuple[Any, Curve]] = OrderedDict()
        self._runs: OrderedDict[str, RunData] = OrderedDict()
        self._looked: dict[str, float] = {}  # when each was last refreshed

    def run(self, name: str) -> RunData:
        """The run as far as it is written now. Raises KeyError for an unknown id. Hold `index.lock`."""
        live, kept, now = self.index.live(name), self._runs.get(name), time.monotonic()
        if kept is not None and live in (None, kept) and now - self._looked[name] < FRESH_SECONDS:
            return kept
        data = live or kept or self.index.just_read(name) or RunData(self.index.folder(name))
        data.refresh()
        self._runs[name], self._looked[name] = data, now
        self._runs.move_to_end(name)
        if data is not kept and data.held:
            while len(self._runs) > 1 and sum(one.held for one in self._runs.values()) > RUN_POINTS:
                self._runs.popitem(last=False)
        return data

    def series(self, run: str, name: str, attempt: int | None = None) -> Series:
        with self.index.lock:
            return self.run(run).series(name, attempt)

    def curve(self, run: str, name: str, attempt: int | None, x: str) -> Curve:
        """Raises KeyError for an unknown run. A name that the run lacks is an empty curve."""
        with self.index.lock:
            data = self.run(run)
            key, mark = (run, name, attempt, x), (data, data.version)
            if key in self._curves and self._curves[key][0] == mark:
                self._curves.move_to_end(key)
                return self._curves[key][1]
            curve = self._make(data, run, name, attempt, x)
            self._keep(key, mark, curve)
            return curve

    def _make(self, data: RunData, run: str, name: str, attempt: int | None, x: str) -> Curve:
        if name not in data.names(attempt):
            return Curve(np.empty(0), np.empty(0))
        if x in ("time", "relative"):
            _, time, value = data.raw(name, attempt)  # every attempt: overlapping steps lie at times of their own
            return Curve.of(time - self.index.records[run]["created"] if x == "relative" else time, value)
        step, value = data.by_step(name, attempt)
        if x == "step":
            return Curve.of(step, value)
        if x not in data.names(attempt):
            return Curve(np.empty(0), np.empty(0), len(step))
        places, axis = data.by_step(x, attempt)
        place = np.searchsorted(places, step, "right") - 1  # the last known value is carried on
        known = place >= 0
        return Curve.of(axis[place[known]], value[known], int(len(known) - known.sum()))

    def _keep(self, key: Any, mark: Any, curve: Curve) -> None:
        self._curves.pop(key, None)
        self._curves[key] = (mark, curve)
        held = sum(one.bytes for _, one in self._curves.values()) if curve.bytes > 1 << 20 else 0
        if held > CURVE_BYTES or len(self._curves) > 20_000:
            while len(self._curves) > 1 and sum(one.bytes for _, one in self._curves.values()) > CURVE_BYTES * 3 // 4:
                self._curves.popitem(last=False)

    def m4(self, wanted: list[dict[str, Any]], request: Request) -> dict[str, Any]:
        """Header of the answer; each of its series holds `arrays` as numpy still (see `wire`)."""
        keys = [(one["run"], one["name"], one.get("attempt")) for one in wanted]
        curves = [self.curve(*key, request.x) for key in keys]
        labels = [{"run": run, "name": name, "attempt": attempt} for run, name, attempt in keys]
        answer = windows(curves, labels, request)
        for label, curve in zip(answer["series"], curves, strict=True):
            label["gaps"] = self._gaps(label["run"], request.x, curve)
        return answer

    def aggregate(
        self, groups: list[dict[str, Any]], name: str, quantiles: list[float], request: Request
    ) -> dict[str, Any]:
        curves, labels = [], []
        for group in groups:
            parts = [self.curve(run, name, None, request.x) for run in group["runs"]]
            key = ("group", name, request.x, tuple(group["runs"]), tuple(quantiles))
            mark = tuple(parts)
            for stat in ["mean", "std", "min", "max", *(f"q{q:g}" for q in quantiles)]:
                cached = self._curves.get((*key, stat))
                if cached is None or cached[0] != mark:
                    for made, curve in aggregated([part for part in parts if len(part.x)], quantiles).items():
                        self._keep((*key, made), mark, curve)
                    cached = self._curves[(*key, stat)]
                curves.append(cached[1])
                labels.append({"label": group.get("label"), "stat": stat, "name": name})
        return windows(curves, labels, request)

    def _gaps(self, run: str, x: str, curve: Curve) -> list[list[float]]:
        """Where points were lost or damaged, on this axis: between the last point before and the first after."""
        with self.index.lock:
            data = self.run(run)
            spans = [
                (event.data["from"], event.data["to"])
                for source in data.sources.values()
                for event in source.events
                if event.kind == "gap" and isinstance(event.data, dict)
            ]
            if not spans:
                return []
            start = self.index.records[run]["created"]
            if x in ("time", "relative"):
                return [[a - start * (x == "relative"), b - start * (x == "relative")] for a, b in spans]
            name = next(iter(data.names()), None)
            if x != "step" or name is None:
                return []
            step, time, _ = data.raw(name)
            places = [np.searchsorted(time, span) for span in spans]
            last = len(step) - 1
            return [[float(step[max(a - 1, 0)]), float(step[min(b, last)])] for a, b in places]


def windows(curves: list[Curve], labels: list[dict[str, Any]], request: Request) -> dict[str, Any]:
    """The window of every curve. Ends that are not given are those of all the data."""
    least = [float(_from(curve, request.scale)) for curve in curves if len(curve.x)]
    ends = [float(curve.x[-1]) for curve in curves if len(curve.x)]
    fallback = 1.0 if request.scale == "log" else 0.0
    x1 = request.x1 if request.x1 is not None else max(ends, default=1.0)
    x0 = request.x0 if request.x0 is not None else min(min(least, default=fallback), x1)
    if request.scale == "log" and x0 <= 0:
        x0 = x1 if x1 > 0 else 1.0
        x1 = max(x1, x0)
    found = []
    for curve, label in zip(curves, labels, strict=True):
        part = window(curve, x0, x1, request.pixels, request.scale, request.smooth)
        left_out = curve.left_out + (int((curve.x <= 0).sum()) if request.scale == "log" else 0)
        found.append({**label, "left_out": left_out, **part})
    return {"x0": x0, "x1": x1, "pixels": request.pixels, "scale": request.scale, "series": found}


def _from(curve: Curve, scale: str) -> float:
    if scale != "log":
        return float(curve.x[0])
    place = int(np.searchsorted(curve.x, 0, "right"))
    return float(curve.x[min(place, len(curve.x) - 1)])


def aggregated(curves: list[Curve], quantiles: list[float]) -> dict[str, Curve]:
    """mean, std (of the population), min, max and quantiles (linear between neighbours) at every x of any curve."""
    names = ["mean", "std", "min", "max", *(f"q{q:g}" for q in quantiles)]
    if not curves:
        return {name: Curve(np.empty(0), np.empty(0)) for name in names}
    curves = [_one_a_place(curve) for curve in curves]
    places = np.unique(np.concatenate([curve.x for curve in curves]))
    found = {name: np.empty(len(places)) for name in names}
    width = max(AGGREGATE_CELLS // len(curves), 1)
    for start in range(0, len(places), width):
        part = places[start : start + width]
        table = np.full((len(curves), len(part)), np.nan)
        for row, curve in zip(table, curves, strict=True):
            first, last = np.searchsorted(curve.x, part[0]), np.searchsorted(curve.x, part[-1], "right")
            row[np.searchsorted(part, curve.x[first:last])] = curve.y[first:last]
        table.sort(axis=0)  # NaN, which also means absent, comes last
        count = (~np.isnan(table)).sum(0)
        here = slice(start, start + len(part))
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = np.nansum(table, 0) / count
            found["mean"][here] = mean
            found["std"][here] = np.sqrt(np.nansum((table - mean) ** 2, 0) / count)
            found["min"][here] = table[0]
            columns = np.arange(len(part))
            found["max"][here] = table[np.maximum(count - 1, 0), columns]
            for q in quantiles:
                exact = np.maximum(count - 1, 0) * q
                low = np.floor(exact).astype(int)
                high = np.minimum(low + 1, np.maximum(count - 1, 0))
                below, above = table[low, columns], table[high, columns]
                between = np.where(below == above, below, below + (above - below) * (exact - low))
                found[f"q{q:g}"][here] = between
    return {name: Curve(places, values) for name, values in found.items()}


def _one_a_place(curve: Curve) -> Curve:
    series = last_writes(curve.x, curve.x, curve.y)
    return Curve(series.step, series.value)
