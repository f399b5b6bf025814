"""M4: what a chart `pixels` columns wide must draw so that it looks as if every point had been drawn.

Of each pixel column the first, least, greatest and last point (Jugel et al., VLDB 2014): exact at every zoom, because
column bounds are looked up in the raw points and only blocks of 64 points that lie wholly inside a column are answered
from the pyramid (the least and greatest of each block). Up to two points a column the raw points are given as they are.
NaN and infinities never hide the finite points beside them: they are flagged. x ascends; y may be anything.
"""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

BLOCK = 64
DIRECT = 8 * BLOCK
NAN, PLUS_INF, MINUS_INF = 1, 2, 4


@dataclass(eq=False)
class Curve:
    """x int64 or float64 [N], ascending; y float64 [N]; `left_out`: points that have no place on this axis."""

    x: np.ndarray
    y: np.ndarray
    left_out: int = 0
    averages: dict[float, np.ndarray] = field(default_factory=dict)

    @classmethod
    def of(cls, x: np.ndarray, y: np.ndarray, left_out: int = 0) -> "Curve":
        """Sorted by x (points with one x stay in their order), without those whose x is NaN."""
        if x.dtype.kind == "f" and np.isnan(x).any():
            known = ~np.isnan(x)
            left_out += int(len(x) - known.sum())
            x, y = x[known], y[known]
        if len(x) > 1 and (x[1:] < x[:-1]).any():
            order = np.argsort(x, kind="stable")
            x, y = x[order], y[order]
        return cls(x, y, left_out)

    @property
    def bytes(self) -> int:
        return self.x.nbytes + self.y.nbytes + sum(one.nbytes for one in self.averages.values())

    @cached_property
    def odd(self) -> np.ndarray:
        """Places of the values that are not finite."""
        return np.flatnonzero(~np.isfinite(self.y))

    @cached_property
    def pyramid(self) -> tuple[np.ndarray, np.ndarray]:
        """Least and greatest finite value of each whole block of 64; inf and -inf where there is none."""
        whole = len(self.y) // BLOCK
        blocks = self.y[: whole * BLOCK].reshape(whole, BLOCK)
        if not len(self.odd):
            return blocks.min(1), blocks.max(1)
        finite = np.isfinite(blocks)
        return blocks.min(1, where=finite, initial=np.inf), blocks.max(1, where=finite, initial=-np.inf)

    def average(self, weight: float) -> np.ndarray:
        """Exponential moving average of the finite values, corrected for its start; elsewhere the last one."""
        if weight not in self.averages:
            finite = np.isfinite(self.y)
            known = moving_average(self.y[finite], weight)
            place = np.cumsum(finite) - 1
            self.averages.clear()  # one weight at a time: moving a slider must not fill the memory
            self.averages[weight] = np.where(place >= 0, np.append(known, np.nan)[place], np.nan)
        return self.averages[weight]


def m4(
    series: Any, x0: float | None = None, x1: float | None = None, pixels: int = 1000, x: str = "step"
) -> dict[str, Any]:
    """The columns of a Series from x0 to x1 (None: its ends), `x` one of "step" and "time"; keys as of `window`."""
    curve = Curve.of(getattr(series, x), series.value)
    if not len(curve.x):
        return window(curve, 0.0, 1.0, pixels)
    return window(curve, float(curve.x[0]) if x0 is None else x0, float(curve.x[-1]) if x1 is None else x1, pixels)


def edges(x0: float, x1: float, pixels: int, scale: str = "linear") -> np.ndarray:
    """Where the columns begin, and x1. Raises ValueError for a window that is none."""
    if not (np.isfinite(x0) and np.isfinite(x1) and x0 <= x1 and 1 <= pixels <= 100_000):
        raise ValueError(f"window {x0} to {x1} in {pixels} columns: give x0 <= x1 and 1 to 100000 columns")
    share = np.arange(pixels + 1) / pixels
    if scale == "linear":
        bounds = x0 + (x1 - x0) * share
    elif scale == "log" and x0 > 0:
        bounds = np.exp(np.log(x0) + (np.log(x1) - np.log(x0)) * share)
    else:
        raise ValueError(f"scale {scale!r} from {x0}: it must be linear, or log with a window above 0")
    bounds[0], bounds[-1] = x0, x1
    return bounds


def window(
    curve: Curve, x0: float, x1: float, pixels: int, scale: str = "linear", smooth: float = 0.0
) -> dict[str, Any]:
    """The arrays of /api/m4 (docs/tracker.md) and their `mode`: raw (x, y; `before`, `after`: is a point outside the
    window with them?) or m4 (column, count, first ...). `points`: how many there are between x0 and x1."""
    bounds = edges(x0, x1, pixels, scale)
    if curve.x.dtype.kind == "i":  # whole numbers: x >= e is x >= ceil(e), without a float copy of x
        bounds = np.ceil(bounds[:-1])
        places = np.searchsorted(curve.x, np.clip(bounds, -(2.0**62), 2.0**62).astype(np.int64), "left")
        end = np.searchsorted(curve.x, np.int64(min(max(np.floor(x1), -(2.0**62)), 2.0**62)), "right")
    else:
        places = np.searchsorted(curve.x, bounds[:-1], "left")
        end = np.searchsorted(curve.x, x1, "right")
    begin = int(places[0])
    points = max(int(end) - begin, 0)
    average = curve.average(smooth) if smooth else None
    if points <= 2 * pixels:
        before, after = min(begin, 1), int(end < len(curve.x))
        part = slice(begin - before, max(int(end), begin) + after)
        found = {"mode": "raw", "points": points, "before": before, "after": after}
        arrays = {"x": curve.x[part].astype(np.float64), "y": curve.y[part]}
        return {**found, "arrays": arrays if average is None else {**arrays, "smooth": average[part]}}
    stops = np.append(places[1:], end)
    columns = np.flatnonzero(stops > places)
    starts, stops = places[columns], stops[columns]
    low, high = _extremes(curve, starts, stops)
    flags = np.zeros(len(columns), np.uint8)
    odd = curve.odd[np.searchsorted(curve.odd, begin) : np.searchsorted(curve.odd, end)]
    if len(odd):
        y = curve.y[odd]
        kinds = np.where(np.isnan(y), NAN, np.where(y > 0, PLUS_INF, MINUS_INF)).astype(np.uint8)
        np.bitwise_or.at(flags, np.searchsorted(starts, odd, "right") - 1, kinds)
    arrays = {
        "column": columns.astype(np.uint32),
        "count": (stops - starts).astype(np.uint32),
        "first": curve.y[starts],
        "min": low,
        "max": high,
        "last": curve.y[stops - 1],
        "x_first": curve.x[starts].astype(np.float64),
        "x_last": curve.x[stops - 1].astype(np.float64),
        "flags": flags,
    }
    if average is not None:
        arrays["smooth"] = average[stops - 1]
    return {"mode": "m4", "points": points, "arrays": arrays}


def _extremes(curve: Curve, starts: np.ndarray, stops: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Least and greatest finite value of y[start:stop] for each pair (they touch); NaN where there is none."""
    begin, end = int(starts[0]), int(stops[-1])
    if end - begin < DIRECT * len(starts):  # few points a column: looking at all is quicker than at blocks
        values = low_values = curve.y[begin:end]
        if len(curve.odd):
            finite = np.isfinite(values)
            values, low_values = np.where(finite, values, -np.inf), np.where(finite, values, np.inf)
        low, high = np.minimum.reduceat(low_values, starts - begin), np.maximum.reduceat(values, starts - begin)
        return np.where(low > high, np.nan, low), np.where(low > high, np.nan, high)
    first, last = -(-starts // BLOCK), stops // BLOCK  # the whole blocks of a column
    inner = last > first
    low, high = np.full(len(starts), np.inf), np.full(len(starts), -np.inf)
    if inner.any():
        lows, highs = curve.pyramid
        pairs = np.stack([first[inner], last[inner]], 1).ravel()
        # a pair may end where the array does: reduceat wants places inside it, so one neutral block is put behind
        low[inner] = np.minimum.reduceat(np.append(lows, np.inf), pairs)[::2]
        high[inner] = np.maximum.reduceat(np.append(highs, -np.inf), pairs)[::2]
    left_end = np.where(inner, first * BLOCK, stops)
    right_start = np.where(inner, last * BLOCK, stops)
    reach = np.arange(2 * BLOCK)
    for left, right in ((starts, left_end), (right_start, stops)):
        places = left[:, None] + reach
        outside = places >= right[:, None]
        values = curve.y[np.minimum(places, len(curve.y) - 1)]
        if len(curve.odd):
            outside |= ~np.isfinite(values)
        low = np.minimum(low, np.where(outside, np.inf, values).min(1))
        high = np.maximum(high, np.where(outside, -np.inf, values).max(1))
    none = low > high
    low[none] = high[none] = np.nan
    return low, high


def moving_average(values: np.ndarray, weight: float) -> np.ndarray:
    """s[t] = weight · s[t-1] + (1 - weight) · values[t], s[-1] = 0, divided by 1 - weight^(t+1)."""
    count = len(values)
    if not count:
        return values
    length = int(np.ceil(np.sqrt(count)))  # chunks side by side: each starts from 0, and gets its carry afterwards
    table = np.zeros((length, -(-count // length)))
    table.T.ravel()[:count] = 0
    padded = np.zeros(table.size)
    padded[:count] = values
    table = np.ascontiguousarray(padded.reshape(-1, length).T) * (1 - weight)
    for row in range(1, length):
        table[row] += weight * table[row - 1]
    carry, carries = 0.0, []
    for end in table[-1].tolist():
        carries.append(carry)
        carry = end + weight**length * carry
    table += (weight ** np.arange(1, length + 1))[:, None] * np.array(carries)
    return table.T.ravel()[:count] / -np.expm1(np.log(weight) * np.arange(1, count + 1))
