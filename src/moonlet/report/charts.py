"""Drawings for the report as inline SVG text: receipts, expert load, interval bars. Its curves are the board's."""

import math
import re
from html import escape
from typing import Any

from moonlet.report.formats import is_number, percent, short

WIDTH, HEIGHT = 360, 190  # the viewBox; drawn close to one unit a CSS pixel on wide pages and on phones
LEFT, RIGHT, TOP, BOTTOM = 58, 352, 12, 152


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
