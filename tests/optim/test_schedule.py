"""The schedule at its corners: linear warm-up to 1, cosine to the floor."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moonlet.optim.schedule import cosine


def test_values() -> None:
    assert [cosine(s, 100, warmup_fraction=0.04) for s in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert cosine(4, 100, warmup_fraction=0.04) == 1.0
    assert cosine(52, 100, warmup_fraction=0.04, floor=0.1) == pytest.approx(0.55)
    assert cosine(28, 100, warmup_fraction=0.04, floor=0.0) == pytest.approx(0.5 + 0.5 * 2**-0.5)
    assert 0.1 < cosine(99, 100, floor=0.1) < 0.101
    assert cosine(0, 1) == 1.0


@given(st.integers(1, 300), st.floats(0, 1), st.floats(0, 0.9))
def test_rises_then_falls(steps: int, warmup: float, floor: float) -> None:
    values = [cosine(s, steps, warmup, floor) for s in range(steps)]
    assert all(0 < v <= 1 for v in values) and max(values) == 1.0
    top = values.index(1.0)
    assert all(a < b for a, b in pairwise(values[: top + 1]))
    assert all(a >= b for a, b in pairwise(values[top:]))
    assert min(values[top:]) >= floor
