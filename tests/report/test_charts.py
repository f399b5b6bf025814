"""The drawn curve against the points: every extreme survives, whatever the values are."""

import re

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from moonlet.report.charts import BOTTOM, LEFT, RIGHT, TOP, bar, curve, heat, receipts
from moonlet.report.formats import DASH, duration, percent, short, units
from moonlet.tracker import Series


def series(values, steps=None) -> Series:
    values = np.asarray(values, np.float64)
    steps = np.arange(len(values)) if steps is None else np.asarray(steps)
    return Series(steps.astype(np.int64), 1.7e9 + np.arange(len(values)) * 0.5, values)


def drawn(svg: str) -> np.ndarray:
    path = re.search(r'class="curve" d="([^"]*)"', svg)
    return (
        np.array([[float(x), float(y)] for x, y in re.findall(r"[ML](\S+?) (\S+?)h0", path.group(1))]) if path else None
    )


@settings(max_examples=25)
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(600, 5000), spikes=st.lists(st.integers(0, 4999), max_size=4))
def test_dense_curve_covers_each_pixel_column(seed, n, spikes):
    values = np.random.default_rng(seed).normal(size=n)
    for spike in spikes:
        values[spike % n] += 40
    points = drawn(curve("a/b", "b", series(values))[0])
    low, high = values.min(), values.max()
    x = LEFT + np.arange(n) / (n - 1) * (RIGHT - LEFT)
    y = BOTTOM - (values - low) / (high - low) * (BOTTOM - TOP)
    assert len(points) <= 4 * (RIGHT - LEFT + 1) < 4 * n and (np.diff(points[:, 0]) >= 0).all()
    every, kept = (x - LEFT).astype(int), np.round(points[:, 0] - LEFT, 1)
    for column in range(RIGHT - LEFT):
        inside = y[every == column]
        near = points[(kept >= column) & (kept <= column + 1), 1]  # drawn x is rounded to a tenth of a pixel
        if len(inside):
            assert near.min() <= inside.min() + 0.06 and near.max() >= inside.max() - 0.06


@settings(max_examples=80)
@given(st.lists(st.floats(width=64), min_size=1, max_size=30), st.data())
def test_any_values_are_drawn_inside_the_frame(values, data):
    steps = sorted(data.draw(st.sets(st.integers(0, 2**63 - 1), min_size=len(values), max_size=len(values))))
    svg, rows = curve("a/b", "b", series(values, steps))
    finite = np.isfinite(values)
    points = drawn(svg)
    assert "nan" not in svg.split("aria-label")[1].split(">", 1)[1] and svg.count("<svg") == svg.count("</svg>") == 1
    assert (0 if points is None else len(points)) == finite.sum() and len(rows) == len(values)
    assert ('class="broken"' in svg) == (not finite.all())
    if points is not None:
        assert (points >= [LEFT, TOP - 0.05]).all() and (points <= [RIGHT, BOTTOM + 0.05]).all()


def test_line_breaks_where_a_value_is_not_finite():
    svg, rows = curve("a", "a", series([1, 2, float("nan"), 3, 4, float("inf"), 5]))
    path = re.search(r'class="curve" d="([^"]*)"', svg).group(1)
    assert re.sub("[^ML]", "", path) == "MLMLM"
    assert [row[2].split(" · ")[0] for row in rows[2:6:3]] == ["step 2: nan", "step 5: inf"]
    assert "2 not finite" in svg


def test_wide_positive_range_is_logarithmic_and_says_so():
    assert "log scale" in curve("a", "a", series([1e-6, 1e-2]))[0]
    assert "log scale" not in curve("a", "a", series([0.0, 1e-2]))[0]


def test_receipts_find_n_in_either_field():
    rows = [{"split": f"N={n}", "condition": "4-bit", "score": 1 / n, "low": 0.1, "high": 0.9} for n in (2, 8, 1)]
    rows += [{"split": "unseen", "condition": f"{n} receipts", "score": 0.5} for n in (1, 8)]
    svg = receipts(rows)
    assert svg.count("<circle") == 5 and svg.count("whisker") == 3
    assert re.findall(r'<li class="line\d">(.*?)</li>', svg) == ["4-bit", "unseen"]
    centres = [float(x) for x in re.findall(r'cx="(\S+?)"', svg)]
    assert centres[:3] == sorted(centres[:3]) and receipts([{"split": "none", "score": 1}]) == ""


def test_heat_and_bar():
    strip = heat("<b>", [0.5, 0.25, 0.25, 0])
    assert strip.count("<rect") == 4 and strip.count('class="dead"') == 1 and "<b>" not in strip
    assert "busiest 2.0×, 1 dead" in strip and 'fill-opacity="1.000"' in strip
    assert "NaN" not in heat("x", []) + heat("x", [0, 0]) and heat("x", [0, 0]).count('class="dead"') == 2
    drawing = bar(0.5, 0.25, 0.75, 1.0)
    assert 'width="50.0%"' in drawing and 'x1="25.0%" x2="75.0%"' in drawing
    assert bar(None, 0, 1, 1) == "" and "<line" not in bar(0.5, None, 0.7, 1)


def test_formats():
    assert [short(v) for v in (0, 0.0003, 2.3184, 1234.5, 12500, 3.2e6, float("nan"), None)] == [
        "0",
        "3e-4",
        "2.318",
        "1,234",
        "12.5k",
        "3.2M",
        "nan",
        DASH,
    ]
    assert [percent(v) for v in (0, 0.013, 0.5, 1, None)] == ["0%", "1.3%", "50%", "100%", DASH]
    assert [duration(v) for v in (0.25, 59, 61, 3700, "x")] == ["0.2 s", "59 s", "1 min 1 s", "1 h 1 min", DASH]
    assert [units(v, "FLOP") for v in (0, 1.9e13, None)] == ["0 FLOP", "19 TFLOP", DASH]
