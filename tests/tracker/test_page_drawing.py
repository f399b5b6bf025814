"""What the page draws, in the pixels of a real Chromium: planted spikes at every zoom, raw points once they fit."""

import numpy as np
import pytest

from moonlet.tracker import Run

POINTS, SPIKES = 300_000, 50
BLUE = "#3b7ae0"


@pytest.fixture(scope="module")
def planted():
    rng = np.random.default_rng(0)
    value = rng.normal(0, 0.5, POINTS)
    places = np.sort(rng.choice(POINTS, SPIKES, replace=False))
    value[places] = 10 + np.arange(SPIKES) / 10
    value[[70_000, 70_001]] = np.nan
    value[140_000], value[210_000] = np.inf, -np.inf
    return places, value


@pytest.fixture(scope="module")
def address(serving, planted, tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    steps = np.arange(POINTS)
    with Run(root / "spiky") as run:
        run.add_points("loss", steps, 1e9 + steps, planted[1])
        run.add_points("small", steps[:90], 1e9 + steps[:90], 10.0 ** np.linspace(-6, 6, 90))
    with serving(root) as address:
        yield address


@pytest.fixture(scope="module")
def chart(address, opened_once):
    """The chart of the planted series, large, in a known colour; returns its tab. Each test says what it looks at."""
    tab = opened_once(f"{address}#metrics=loss")
    tab.until("[...chartsTab.cards.values()][0]?.chart?.data")
    tab.page.get_by_label("Enlarge loss").click()
    tab.until("expanded?.shown && expanded.data.pixels > 800")
    tab.run(f"expanded.plan.series[0].color = '{BLUE}'; expanded.draw()")
    return tab


# For each place in x the rows of the plot's picture in which the series' colour stands within one pixel of it.
COLUMNS = """(steps) => steps.map((step) => {
  const { canvas, sx, frame } = expanded, ratio = canvas.width / canvas.clientWidth;
  const strip = new OffscreenCanvas(3, canvas.height).getContext("2d", { willReadFrequently: true });
  strip.drawImage(canvas, 1 - Math.round(sx.at(step) * ratio), 0);
  const { data } = strip.getImageData(0, 0, 3, canvas.height);
  const rows = [];
  for (let y = 0; y < frame.bottom * ratio; y += 1) for (let k = 0; k < 3; k += 1) {
    const at = (y * 3 + k) * 4;
    if (data[at + 2] - data[at] > 60) { rows.push(y / ratio); break; }
  }
  return rows;
})"""
HEIGHTS = "(values) => values.map((value) => expanded.sy.at(value))"


WHOLE = f"expanded.data.x1 === {POINTS - 1}"
PART = """expanded.data.x0 <= zoom.x0 && expanded.data.x1 >= zoom.x1
  && expanded.data.x1 - expanded.data.x0 < 2.2 * (zoom.x1 - zoom.x0)"""


def settled(tab, x0=None, x1=None):
    tab.run(f"setZoom({'null' if x0 is None else x0}, {'null' if x1 is None else x1})")
    tab.until(f"!expanded.busy && !expanded.drawing && (zoom.x0 === null ? {WHOLE} : {PART})")


def test_spikes_at_every_zoom(chart, planted):
    places, value = planted
    windows = [(None, None)]
    for center in (int(places[7]), int(places[33])):
        windows += [(center - width * 0.37, center + width * 0.63) for width in (1e5, 2e4, 5e3, 800, 90, 7)]
    seen = 0
    for x0, x1 in windows:
        settled(chart, x0, x1)
        inside = places if x0 is None else places[(places > x0) & (places < x1)]
        tops = chart.page.evaluate(HEIGHTS, value[inside].tolist())
        for step, top, rows in zip(inside, tops, chart.page.evaluate(COLUMNS, inside.tolist()), strict=True):
            assert rows and min(rows) <= top + 2.5, (x0, x1, step, rows[:3], top)
            seen += 1
    assert seen > SPIKES + 2 * 6
    settled(chart)
    quiet = [step for step in range(5000, POINTS, 9000) if np.abs(places - step).min() > 3000]
    middle = chart.run("expanded.sy.at(6)")
    assert quiet and all(min(rows) > middle for rows in chart.page.evaluate(COLUMNS, quiet))  # only spikes reach up


def test_what_is_not_finite_is_marked(chart):
    settled(chart)
    marks = chart.run(
        "[...oddPlaces(expanded.data.series[0], expanded.data, expanded.sx)]"
        ".map(([x, flags]) => [expanded.sx.back(x), flags])"
    )
    assert [flags for _, flags in marks] == [1, 2, 4]
    assert np.allclose([x for x, _ in marks], [70_000, 140_000, 210_000], atol=POINTS / 700)
    settled(chart, 69_995, 70_008)
    assert chart.run("expanded.data.series[0].mode") == "raw"
    assert chart.page.evaluate(COLUMNS, [70_000.5]) == [[]]  # the line is broken there


def test_wheel_and_drag_to_the_raw_points(chart, planted):
    places, value = planted
    step = int(places[20])
    settled(chart)
    box = chart.page.locator("dialog .stage").bounding_box()
    for _ in range(60):
        at = chart.run(f"expanded.sx.at({step})")
        chart.page.mouse.move(box["x"] + at, box["y"] + box["height"] / 2)
        chart.page.mouse.wheel(0, -400)
        chart.until("!expanded.drawing")
        if chart.run("!expanded.busy && expanded.data.series[0].mode === 'raw' && zoom.x1 - zoom.x0 < 40"):
            break
    settled(chart, *chart.run("[zoom.x0, zoom.x1]"))
    raw = chart.run("[[...expanded.data.series[0].x], [...expanded.data.series[0].y]]")
    assert np.array_equal(raw[1], value[np.array(raw[0], int)])  # every point, every bit
    assert np.array_equal(raw[0], np.arange(raw[0][0], raw[0][-1] + 1))
    at = chart.run(f"[expanded.sx.at({step}), expanded.sy.at({value[step]})]")
    chart.page.mouse.move(box["x"] + at[0], box["y"] + at[1])
    chart.until(f"document.querySelector('dialog .readout .at')?.textContent === 'step {step:,}'")
    assert f"{value[step]:.6g}" in chart.page.locator("dialog .readout .row").first.inner_text()
    before = chart.run("zoom.x0")
    chart.page.keyboard.down("Shift")
    chart.page.mouse.down()
    chart.page.mouse.move(box["x"] + at[0] + 80, box["y"] + at[1], steps=4)
    chart.page.mouse.up()
    chart.page.keyboard.up("Shift")
    assert chart.run("zoom.x0") < before
    chart.page.mouse.dblclick(box["x"] + 300, box["y"] + 100)
    chart.until("zoom.x0 === null")
    chart.page.mouse.move(box["x"] + 200, box["y"] + 50)
    chart.page.mouse.down()
    chart.page.mouse.move(box["x"] + 400, box["y"] + 55, steps=4)
    chart.page.mouse.up()
    share = chart.until("zoom.x0 !== null && (zoom.x1 - zoom.x0) / (expanded.full[1] - expanded.full[0])")
    assert share == pytest.approx(200 / chart.run("expanded.frame.right - expanded.frame.left"), rel=0.02)


def test_smoothing_is_drawn_over_the_raw_points(chart, planted):
    places, value = planted
    settled(chart)
    chart.run("setState({ smooth: 0.99 })")
    chart.until("expanded.data.series[0].smooth && !expanded.drawing && expanded.shown.smooth")
    tops = chart.page.evaluate(HEIGHTS, value[places].tolist())
    columns = chart.page.evaluate(COLUMNS, places.tolist())
    chart.run("setState({ smooth: 0 })")
    assert all(min(rows) <= top + 2.5 for rows, top in zip(columns, tops, strict=True))


def test_log_axes(address, opened):
    tab = opened(f"{address}#metrics=small&ylog=%5B%22small%22%5D&xlog=true")
    tab.until("[...chartsTab.cards.values()][0]?.chart?.sx?.log")
    chart = "[...chartsTab.cards.values()][0].chart"
    assert tab.run(f"[{chart}.sy.log, {chart}.data.x0, {chart}.data.series[0].left_out]") == [True, 1, 1]
    ends = tab.run(f"[{chart}.sy.at(1e-6), {chart}.sy.at(1), {chart}.sy.at(1e6)]")
    assert ends[1] == pytest.approx((ends[0] + ends[2]) / 2, abs=0.5)
    assert "1 point without log step" in tab.text(".note")


def test_odd_series_are_drawn_whole(serve, opened, tmp_path):
    """10,000 metrics in one run; huge values, -0, steps and clocks that go back, two writers."""
    odd = np.array([1e308, -1e308, -0.0, 0.0, np.nan, np.inf, 5e-324, 1.0])
    with Run(tmp_path / "r") as run, Run(tmp_path / "r") as other:
        for step in range(2):
            run.log({f"many/m{k}": float(k) for k in range(10_000)}, step)
        run.add_points("odd", np.arange(8)[::-1].copy(), 1.7e9 - np.arange(8) * 3600.0, odd)
        other.add_points("odd", np.arange(8, 12), [1e9, 2e9, 1.5e9, 1.7e9], np.ones(4))
    tab = opened(f"{serve(tmp_path)}#metrics=^odd$")
    chart = "[...chartsTab.cards.values()][0].chart"
    series = f"{chart}.data.series[0]"
    tab.until(f"[...chartsTab.cards.values()][0]?.chart?.data && {chart}.sx")
    assert tab.run(f"[{series}.mode, ...{series}.x]") == ["raw", *range(12)]
    drawn = np.array(tab.run(f"[...{series}.y].map(String)"), float)
    assert np.array_equal(drawn, [*odd[::-1], *np.ones(4)], equal_nan=True)
    assert tab.run(f"[...{series}.y].every((y) => !Number.isFinite(y) || Number.isFinite({chart}.sy.at(y)))")
    tab.run("setState({ x: 'time' })")
    tab.until(f"{chart}.data.x0 === 1e9 && {series}.points === 12")
    assert (np.diff(tab.run(f"[...{series}.x]")) >= 0).all()
    tab.run("setState({ metrics: '' })")
    tab.until("chartsTab.cards.size >= 40")
    assert tab.run("document.querySelectorAll('.sections canvas').length") < 200  # only what is in sight is drawn
