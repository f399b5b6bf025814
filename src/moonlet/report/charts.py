"""Drawings for the report as inline SVG text: curves, receipts, expert load, interval bars.

A curve shows every point. With more than two points a pixel, each pixel column keeps its first, lowest, highest and
last point in their order (M4, Jugel et al. 2014): the line covers the pixels that all points would, so a spike of one
step stays visible. Nothing is smoothed. A value that is not finite breaks the line and is a mark on the upper edge.
Leaves out: zooming and shared axes.
"""

import math
import re
from html import escape
from typing import Any

import numpy as np

from moonlet.report.formats import duration, is_number, percent, short
from moonlet.tracker import Series

WIDTH, HEIGHT = 360, 190  # the viewBox; drawn close to one unit a CSS pixel on wide pages and on phones
LEFT, RIGHT, TOP, BOTTOM = 58, 352, 12, 152


def curve(name: str, label: str, series: Series) -> tuple[str, list[list[Any]]]:
    """One series of at least one point -> (SVG, hover rows [x, y, text] sorted by x)."""
    step, value = series.step, series.value
    finite, broken = np.flatnonzero(np.isfinite(value)), np.flatnonzero(~np.isfinite(value))
    good = np.clip(value[finite], -1e300, 1e300)  # so that the range itself cannot overflow
    low, high = (float(good.min()), float(good.max())) if len(good) else (0.0, 1.0)
    log = low > 0 and high / low >= 1000
    first, last = int(step[0]), int(step[-1])
    bottom, top = (math.log10(low), math.log10(high)) if log else (low, high)
    size = max(abs(bottom), abs(top), 1e-290)
    if top - bottom <= 1e-9 * size:  # a constant: draw it in the middle
        bottom, top = bottom - 0.1 * size, top + 0.1 * size

    def across(steps: Any) -> Any:
        return LEFT + (steps - first) / max(last - first, 1) * (RIGHT - LEFT)

    def up(heights: Any) -> Any:
        return BOTTOM - (heights - bottom) / (top - bottom) * (BOTTOM - TOP)

    x, y = across(step), np.full(len(value), float(TOP))
    y[finite] = up(np.log10(good) if log else good)

    def hover(at: int, text: str) -> list[Any]:
        since = duration(float(series.time[at] - series.time[0]))
        return [round(float(x[at]), 1), round(float(y[at]), 1), f"{text} · {since} in"]

    rows, drawn = [], finite
    if dense := len(finite) > 2 * (RIGHT - LEFT):
        column = (x[finite] - LEFT).astype(int)
        edges = np.flatnonzero(np.diff(column, prepend=-1, append=RIGHT))  # slices of `finite` in one pixel column
        kept: list[int] = []
        for start, stop in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
            part = good[start:stop]
            kept += sorted({start, start + int(part.argmin()), start + int(part.argmax()), stop - 1})
            text = f"steps {step[finite[start]]:,} to {step[finite[stop - 1]]:,}: {short(float(part.min()))} to "
            rows.append(hover(finite[stop - 1], text + short(float(part.max()))))
        drawn = finite[kept]
    single = broken.tolist() if dense else range(len(value))
    rows += [hover(at, f"step {step[at]:,}: {short(float(value[at]), 6)}") for at in single]
    rows.sort(key=lambda row: row[0])

    gaps = np.cumsum(~np.isfinite(value))[drawn]  # two drawn points with equal counts have no break between them
    joined = np.diff(gaps, prepend=-1) == 0
    path = "".join(f"{'L' if joined[k] else 'M'}{x[at]:.1f} {y[at]:.1f}h0" for k, at in enumerate(drawn))
    marks = "".join(f"M{place} {TOP - 6}v6" for place in sorted({round(float(x[at]), 1) for at in broken}))
    summary = f"{name}: {len(value):,} points, last {short(float(value[-1]), 5)}, range {short(low)} to {short(high)}"
    ticks = _ticks(bottom, top) if len(good) else []
    if log:
        ticks = [(power, short(10.0**power)) for power in range(math.ceil(bottom), math.floor(top) + 1)]
        ticks = ticks[:: math.ceil(len(ticks) / 5)]
    parts = [_open(summary + (f", {len(broken):,} not finite" if len(broken) else "") + (", log scale" if log else ""))]
    parts += [_y_tick(up(place), text) for place, text in ticks]
    parts += [_x_tick(across(place), text) for place, text in _ticks(first, last) if place == int(place)]
    parts.append(_axes("step", label + (" (log)" if log else "")))
    parts.append(f'<path class="curve" d="{path}"/>' if path else "")
    if len(drawn) <= 60:  # few enough to tell apart
        parts.append(f'<path class="points" d="{path.replace("L", "M")}"/>')
    parts.append(f'<path class="broken" d="{marks}"/>' if marks else "")
    return "".join(parts) + '<circle class="dot" r="3.5" visibility="hidden"/></svg>', rows


def receipts(rows: list[dict[str, Any]]) -> str:
    """Success by N with interval bars: N is the number in a row's split or, failing that, in its condition."""
    lines: dict[str, dict[int, dict[str, Any]]] = {}
    for row in rows:
        for field, other in (("split", "condition"), ("condition", "split")):
            found = re.search(r"\d+", str(row.get(field, "")))
            if found and is_number(row.get("score")):
                lines.setdefault(str(row.get(other, "")), {})[int(found.group())] = row
                break
    if not lines:
        return ""
    counts = sorted({number for line in lines.values() for number in line})
    place = {number: LEFT + 20 + k / max(len(counts) - 1, 1) * (RIGHT - LEFT - 40) for k, number in enumerate(counts)}
    parts = [_open("receipts: share of problems solved, by the number of receipts N")]
    parts += [_y_tick(_share(tick), percent(tick)) for tick in (0, 0.25, 0.5, 0.75, 1)]
    parts += [_x_tick(place[number], f"{number:,}") for number in counts]
    parts.append(_axes("N, receipts in one problem", "solved"))
    for k, line in enumerate(lines.values()):
        shift = 5 * (k - (len(lines) - 1) / 2)  # so that intervals of two lines do not hide one another
        points = [(place[number] + shift, line[number], number) for number in sorted(line)]
        path = "M" + "L".join(f"{x:.1f} {_share(row['score']):.1f}" for x, row, _ in points)
        parts.append(f'<g class="line{min(k, 3)}"><path class="curve" d="{path}h0"/>')
        for x, row, number in points:
            y, low, high = row["score"], row.get("low"), row.get("high")
            if is_number(low) and is_number(high):
                parts.append(f'<path class="whisker" d="M{x:.1f} {_share(low):.1f}V{_share(high):.1f}"/>')
            title = f"<title>N = {number}: {percent(y)} ({percent(low)} to {percent(high)})</title>"
            parts.append(f'<circle cx="{x:.1f}" cy="{_share(y):.1f}" r="3.5">{title}</circle>')
        parts.append("</g>")
    legend = "".join(f'<li class="line{min(k, 3)}">{escape(name or "all")}</li>' for k, name in enumerate(lines))
    return f'<figure class="wide">{"".join(parts)}</svg><ul class="legend">{legend}</ul></figure>'


def heat(name: str, load: list[float]) -> str:
    """One strip of a layer, one cell an expert. Full colour is twice the even share or more; no token at all is red."""
    even = sum(load) / max(len(load), 1) or 1.0
    cells = []
    for k, share in enumerate(load):
        style = f'class="load" fill-opacity="{min(share / even / 2, 1):.3f}"' if share else 'class="dead"'
        title = f"<title>expert {k}: {share / even:.2f} times the even share</title>"
        cells.append(f'<rect {style} x="{k}" width="1" height="1">{title}</rect>')
    dead = sum(share == 0 for share in load)
    note = f"busiest {max(load, default=0) / even:.1f}×" + (f", {dead} dead" if dead else "")
    svg = f'<svg role="img" aria-label="{escape(name)}: {note}" viewBox="0 0 {max(len(load), 1)} 1"'
    svg += f' preserveAspectRatio="none">{"".join(cells)}</svg>'
    return f'<span>{escape(name)}</span>{svg}<span class="{"bad" if dead else "soft"}">{note}</span>'


def bar(score: Any, low: Any, high: Any, top: float) -> str:
    """A score on 0 .. `top` with its interval as a whisker."""
    if not is_number(score):
        return ""
    full, *ends = (100 * min(max(v / top, 0), 1) if is_number(v) else math.nan for v in (score, low, high))
    whisker, label = "", short(score)
    if not math.isnan(sum(ends)):
        whisker = f'<line x1="{ends[0]:.1f}%" x2="{ends[1]:.1f}%" y1="7" y2="7"/>'
        whisker += "".join(f'<line x1="{end:.1f}%" x2="{end:.1f}%" y1="3" y2="11"/>' for end in ends)
        label += f", 95% interval {short(low)} to {short(high)}"
    fills = f'<rect class="track" width="100%" height="14"/><rect class="value" width="{full:.1f}%" height="14"/>'
    return f'<svg class="bar" role="img" aria-label="{label}">{fills}{whisker}</svg>'


def _share(value: float) -> float:
    return BOTTOM - value * (BOTTOM - TOP)


def _ticks(low: float, high: float) -> list[tuple[float, str]]:
    """About four round numbers between `low` and `high`, with their text."""
    size = 10.0 ** math.floor(math.log10((high - low) / 4)) if high > low else 1.0
    size *= next((factor for factor in (1, 2, 5) if (high - low) / (size * factor) <= 5), 10)
    return [(k * size, short(k * size)) for k in range(math.ceil(low / size), math.floor(high / size) + 1)]


def _open(label: str) -> str:
    return f'<svg class="chart" role="img" aria-label="{escape(label)}" viewBox="0 0 {WIDTH} {HEIGHT}">'


def _y_tick(y: float, text: str) -> str:
    line = f'<path class="grid" d="M{LEFT} {y:.1f}H{RIGHT}"/>'
    return f'{line}<text x="{LEFT - 6}" y="{y + 3.5:.1f}" text-anchor="end">{text}</text>'


def _x_tick(x: float, text: str) -> str:
    return f'<text x="{x:.1f}" y="{BOTTOM + 15}" text-anchor="middle">{text}</text>'


def _axes(x: str, y: str) -> str:
    line = f'<path class="axis" d="M{LEFT} {BOTTOM}H{RIGHT}"/>'
    below = f'<text x="{(LEFT + RIGHT) / 2}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x)}</text>'
    y = y if len(y) <= 28 else y[:27] + "…"
    turn = f"translate(9 {(TOP + BOTTOM) / 2}) rotate(-90)"
    return f'{line}{below}<text transform="{turn}" text-anchor="middle">{escape(y)}</text>'
