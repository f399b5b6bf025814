"""The report's small drawings and its numbers as text."""

import re

from moonlet.report.charts import bar, heat, receipts
from moonlet.report.formats import DASH, duration, percent, short, units


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
