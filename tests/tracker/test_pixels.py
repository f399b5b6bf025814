"""M4 against every point looked at one by one, planted spikes at all zooms, averages against their definition."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moonlet.tracker import Series, m4
from moonlet.tracker.curves import Request, aggregated, windows
from moonlet.tracker.pixels import MINUS_INF, NAN, PLUS_INF, Curve, edges, moving_average, window


def by_hand(x, y, x0, x1, pixels, scale):
    bounds, rows = edges(x0, x1, pixels, scale), []
    for column in range(pixels):
        inside = (x >= bounds[column]) & ((x < bounds[column + 1]) if column < pixels - 1 else (x <= x1))
        if inside.any():
            values = y[inside]
            finite = values[np.isfinite(values)]
            flags = NAN * np.isnan(values).any() + PLUS_INF * (values == np.inf).any()
            flags += MINUS_INF * (values == -np.inf).any()
            ends = (finite.min(), finite.max()) if len(finite) else (np.nan, np.nan)
            rows.append([column, inside.sum(), values[0], *ends, values[-1], flags])
    return np.array(rows, float).reshape(-1, 7)


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(1, 3000),
    pixels=st.integers(1, 40),
    kind=st.sampled_from(["whole", "real", "log"]),
    odd=st.sampled_from([0, 5, 10**6]),
)
def test_every_column_is_exact(seed, count, pixels, kind, odd):
    rng = np.random.default_rng(seed)
    x = np.sort(rng.integers(0, 5000, count) if kind == "whole" else rng.random(count) * 90 + (kind == "log") * 0.1)
    y = rng.standard_normal(count)
    places = rng.integers(0, count, min(odd, count))
    y[places] = rng.choice([np.nan, np.inf, -np.inf], len(places))
    x0, x1 = sorted(rng.uniform(x[0], x[-1] + 1, 2)) if seed % 3 else (float(x[0]), float(x[-1]))
    scale = "log" if kind == "log" else "linear"
    found = window(Curve.of(x, y), x0, x1, pixels, scale)
    inside = (x >= x0) & (x <= x1)
    assert found["points"] == inside.sum()
    arrays = found["arrays"]
    if found["mode"] == "raw":
        part = slice(found["before"], len(arrays["x"]) - found["after"])
        assert np.array_equal(arrays["x"][part], x[inside]) and np.array_equal(arrays["y"][part], y[inside], True)
    else:
        names = ("column", "count", "first", "min", "max", "last", "flags")
        got = np.stack([arrays[name].astype(float) for name in names], 1)
        np.testing.assert_array_equal(got, by_hand(x, y, x0, x1, pixels, scale))


def test_planted_spikes_are_seen_at_every_zoom():
    rng = np.random.default_rng(0)
    count = 300_000
    value = np.exp(-np.arange(count) / 50_000) + rng.standard_normal(count) / 50
    spikes = np.sort(rng.choice(count, 50, replace=False))
    value[spikes] = 100.0 + np.arange(50)
    curve = Curve.of(np.arange(count), value)
    for pixels in (1, 7, 200, 1000, 1920):
        for zoom in 2.0 ** np.arange(0, 18):
            for spike in spikes[:: 7 if zoom > 4 else 3]:
                width = count / zoom
                x0 = float(np.clip(spike - rng.random() * width, 0, count - 1))
                found = window(curve, x0, x0 + width, pixels)
                wanted = set(value[spikes[(spikes >= x0) & (spikes <= x0 + width)]].tolist())
                drawn = found["arrays"].get("max", found["arrays"].get("y"))
                if found["mode"] == "raw":
                    assert wanted <= set(drawn.tolist())
                else:
                    assert max(wanted) == drawn.max() and (drawn > 50).sum() <= len(wanted)
                    columns = np.floor((spikes - x0) / (width / pixels))
                    hit = set(columns[(columns >= 0) & (columns < pixels)].astype(int).tolist())
                    assert abs(len(set(found["arrays"]["column"][drawn > 50].tolist()) ^ hit)) <= 2  # rounding at edges


def test_m4_of_a_series():
    step = np.arange(10_000)
    value = np.zeros(10_000)
    value[1234] = 9
    found = m4(Series(step, step * 2.0, value), pixels=100)
    assert found["mode"] == "m4" and found["arrays"]["max"].tolist() == [9.0 * (i == 12) for i in range(100)]
    assert m4(Series(step, step * 2.0, value), 0, 19998, 100, x="time")["arrays"]["max"].argmax() == 12
    empty = np.empty(0)
    assert m4(Series(empty, empty, empty))["points"] == 0


@pytest.mark.parametrize("window_", [(1, 0, 10), (0, math.inf, 10), (0, 1, 0), (math.nan, 1, 10)])
def test_windows_that_are_none(window_):
    with pytest.raises(ValueError, match="window"):
        edges(*window_)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 1000, 1025])
@pytest.mark.parametrize("weight", [0.1, 0.9, 0.999])
def test_moving_average_is_its_definition(count, weight):
    values = np.random.default_rng(count).standard_normal(count)
    state, wanted = 0.0, []
    for i, value in enumerate(values.tolist(), 1):
        state = weight * state + (1 - weight) * value
        wanted.append(state / (1 - weight**i))
    np.testing.assert_allclose(moving_average(values, weight), wanted, rtol=1e-9, atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), runs=st.integers(1, 6))
def test_aggregates_are_those_of_numpy_at_every_place(seed, runs):
    rng = np.random.default_rng(seed)
    curves = []
    for _ in range(runs):
        x = np.unique(rng.integers(0, 30, rng.integers(1, 30)))
        curves.append(Curve.of(x, np.where(rng.random(len(x)) < 0.1, np.nan, rng.standard_normal(len(x)))))
    found = aggregated(curves, [0.25, 0.9])
    for i, place in enumerate(found["mean"].x.tolist()):
        values = np.concatenate([curve.y[curve.x == place] for curve in curves])
        values = values[~np.isnan(values)]
        wanted = (
            [values.mean(), values.std(), values.min(), values.max(), *np.quantile(values, [0.25, 0.9])]
            if len(values)
            else [np.nan] * 6
        )
        np.testing.assert_allclose([curve.y[i] for curve in found.values()], wanted, rtol=1e-12, atol=1e-12)


def test_log_window_leaves_out_what_has_no_place():
    curve = Curve.of(np.arange(100), np.arange(100.0))
    (found,) = windows([curve], [{}], Request(scale="log", pixels=10))["series"]
    assert found["left_out"] == 1 and found["points"] == 99
