"""The 4-bit grids by hand-worked tables and a plain nearest-point search; packing; straight-through training."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from moonlet.errors import InputError
from moonlet.model.config import for_depth
from moonlet.model.kernels.native import usable
from moonlet.model.model import Model
from moonlet.quant.grids import (
    int4_codes,
    int_values,
    mxfp4_codes,
    mxfp4_values,
    native_mxfp4,
    pack_int4,
    pack_mxfp4,
    round_to_grid,
    rounded_experts,
    unpack_int4,
    unpack_mxfp4,
)

E2M1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]


def group(*values: float, scale: float = 1.0) -> torch.Tensor:
    """One row of one group of 32: the values, then zeros."""
    return scale * torch.tensor([[*values] + [0.0] * (32 - len(values))])


# (element over scale, code): every point, both sides of every border, ties to the even code, saturation.
ELEMENTS = [
    (0.0, 0), (0.2, 0), (0.25, 0), (0.26, 1), (0.5, 1), (0.74, 1), (0.75, 2), (0.76, 2), (1.0, 2), (1.25, 2), (1.26, 3),
    (1.5, 3), (1.74, 3), (1.75, 4), (2.0, 4), (2.5, 4), (2.51, 5), (3.0, 5), (3.49, 5), (3.5, 6), (4.0, 6), (5.0, 6),
    (5.01, 7), (6.0, 7), (7.9, 7), (-0.5, 9), (-0.75, 10), (-5.0, 14), (-6.0, 15), (-7.5, 15), (-0.1, 0),
]  # fmt: skip


@pytest.mark.parametrize("exponent", [-100, -7, 0, 3, 100])
@pytest.mark.parametrize(("value", "code"), ELEMENTS)
def test_mxfp4_element(value: float, code: int, exponent: int) -> None:
    codes, scale = mxfp4_codes(group(4.0, value, scale=2.0**exponent))  # the 4 pins the scale to 2^exponent
    assert codes[0, :2].tolist() == [6, code] and codes[0, 2:].eq(0).all()
    assert scale.tolist() == [[127 + exponent]]
    sign = -1 if code >= 8 else 1
    assert mxfp4_values(codes, scale)[0, 1] == sign * E2M1[code % 8] * 2.0**exponent


@pytest.mark.parametrize(
    ("amax", "byte", "back"),
    [
        (4.0, 127, 4.0),
        (7.99, 127, 6.0),  # floor, so the largest saturates
        (8.0, 128, 8.0),
        (3.99, 126, 4.0 * 0.5 * 1.5),
        (0.0, 0, 0.0),
        (2.0**-126, 0, 2.0**-126),  # the smallest normal number: the smallest scale 2^-127 still holds it
        (2.0**-140, 0, 0.0),  # below the smallest scale
        (3.4e38, 252, 6.0 * 2.0**125),  # the largest floats
    ],
)
def test_mxfp4_scale(amax: float, byte: int, back: float) -> None:
    for sign in (1, -1):
        codes, scale = mxfp4_codes(group(sign * amax))
        assert scale.tolist() == [[byte]]
        assert mxfp4_values(codes, scale)[0, 0].item() == sign * back


def test_groups_are_32_input_columns() -> None:
    w = torch.zeros(2, 3, 96)
    w[0, 1, 31], w[0, 1, 32], w[1, 2, 95] = 4.0, 64.0, -1.0
    codes, scale = mxfp4_codes(w)
    assert codes.shape == (2, 3, 96) and scale.shape == (2, 3, 3)
    assert scale[0, 1].tolist() == [127, 131, 0] and scale[1, 2].tolist() == [0, 0, 125]
    _, s = int4_codes(w)
    assert torch.allclose(s[0, 1], torch.tensor([4 / 7, 64 / 7, 1e-12]), rtol=2**-8)  # scales are bf16
    for function in (mxfp4_codes, int4_codes):
        with pytest.raises(InputError, match="divisible by 32, got 48"):
            function(torch.zeros(2, 48))


floats = hnp.arrays(np.float32, (3, 64), elements=st.floats(-1e4, 1e4, width=32))


@given(floats)
def test_mxfp4_is_the_nearest_point(array: np.ndarray) -> None:
    w = torch.from_numpy(array)
    back = round_to_grid(w, "mxfp4")
    for row in range(3):
        for start in (0, 32):
            x = array[row, start : start + 32].astype(np.float64)
            amax = np.abs(x).max()
            scale = 2.0 ** max(math.floor(math.log2(amax)) - 2, -127) if amax else 0.0
            points = np.array(sorted({s * p for p in E2M1 for s in (1, -1)})) * scale
            best = np.abs(x[:, None] - points).min(axis=1)
            assert np.allclose(np.abs(back[row, start : start + 32].numpy() - x), best, rtol=0, atol=0)
    assert torch.equal(round_to_grid(back, "mxfp4"), back)  # rounding what is rounded changes nothing


@given(floats)
def test_int4_is_within_half_a_step(array: np.ndarray) -> None:
    w = torch.from_numpy(array)
    codes, scale = int4_codes(w)
    assert codes.dtype == torch.int8 and codes.min() >= -7 and codes.max() <= 7
    back = int_values(codes, scale)
    steps = scale.repeat_interleave(32, dim=1)
    assert ((back - w).abs() <= 0.5001 * steps + 1e-12).all()
    largest = w.view(3, 2, 32).abs().amax(-1)
    assert torch.allclose(back.view(3, 2, 32).abs().amax(-1), largest, rtol=2**-8)  # it stays, but for bf16
    assert torch.equal(int4_codes(back)[0], codes) and torch.allclose(round_to_grid(back, "int4"), back, rtol=1e-6)


def test_int4_table() -> None:
    codes, scale = int4_codes(group(7.0, -7.0, 2.5, 3.5, -2.5, 0.4, 0.6, 6.6, scale=0.5))
    assert codes[0, :8].tolist() == [7, -7, 2, 4, -2, 0, 1, 7] and scale.tolist() == [[0.5]]
    assert int4_codes(torch.zeros(1, 32))[0].eq(0).all() and int_values(*int4_codes(torch.zeros(1, 32))).eq(0).all()


@given(hnp.arrays(np.uint8, (2, 3, 32), elements=st.integers(0, 15)))
def test_mxfp4_packing(array: np.ndarray) -> None:
    packed = pack_mxfp4(torch.from_numpy(array))
    assert packed.shape == (2, 3, 16) and packed.dtype == torch.uint8
    assert np.array_equal(packed.numpy(), array[..., 0::2] + 16 * array[..., 1::2])  # low nibble: even column
    assert np.array_equal(unpack_mxfp4(packed).numpy(), array)


@given(hnp.arrays(np.int8, (2, 3, 32), elements=st.integers(-8, 7)))
def test_int4_packing(array: np.ndarray) -> None:
    packed = pack_int4(torch.from_numpy(array))
    assert packed.shape == (2, 3, 4) and packed.dtype == torch.int32
    words = sum((array[..., i::8].astype(np.uint32) + 8 & 15) << np.uint32(4 * i) for i in range(8))
    assert np.array_equal(packed.numpy().view(np.uint32), words)
    assert np.array_equal(unpack_int4(packed).numpy(), array)


def test_int4_packing_example() -> None:
    assert pack_int4(torch.arange(-8, 0, dtype=torch.int8)).tolist() == [0x76543210]
    assert pack_int4(torch.full((8,), 7, dtype=torch.int8)).tolist() == [-1]


def test_formats() -> None:
    w = torch.randn(2, 32)
    assert round_to_grid(w, "none") is w
    with pytest.raises(InputError, match="quant.format='fp8'"):
        round_to_grid(w, "fp8")


@pytest.mark.parametrize("format", ["mxfp4", "int4"])
def test_straight_through_training(format: str) -> None:
    """Inside, the model is the one with rounded experts (values and gradients); outside, its own weights are back."""
    config = for_depth(2, 64, {"hidden_size": 64, "moe_intermediate_size": 32, "routed_expert_hidden_size": 32})
    model, rounded = Model(config).init_weights(0), Model(config)
    state = {n: t.clone() for n, t in model.state_dict().items()}
    experts = [n for n in state if ".experts.w" in n]
    assert len(experts) == 3
    rounded.load_state_dict({n: round_to_grid(t, format) if n in experts else t for n, t in state.items()})
    ids = torch.randint(0, 64, (2, 12), generator=torch.Generator().manual_seed(0))
    plain = model(ids)
    model.expert_format = format
    with rounded_experts(model):
        inside = model(ids)
        grads = torch.autograd.grad(inside.square().sum(), list(model.parameters()), allow_unused=True)
    assert torch.equal(inside, rounded(ids)) and not torch.equal(inside, plain)
    theirs = torch.autograd.grad(rounded(ids).square().sum(), list(rounded.parameters()), allow_unused=True)
    for (name, _), a, b in zip(model.named_parameters(), grads, theirs):
        assert (a is None and b is None) or torch.equal(a, b), name
        assert name not in experts or a.abs().max() > 0
    assert all(torch.equal(t, state[n]) for n, t in model.state_dict().items())
    with pytest.raises(KeyError), rounded_experts(model):  # what goes wrong inside does not leave it rounded
        raise KeyError
    assert torch.equal(model(ids), plain)
    model.expert_format = "none"
    with rounded_experts(model):
        assert torch.equal(model(ids), plain)


def test_native_rounding_gives_the_same_values() -> None:
    if not usable(torch.zeros(1)):
        pytest.skip("no native kernels here")
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(300, 64, generator=generator) * torch.exp2(torch.randint(-140, 120, (300, 1), generator=generator))
    elements = torch.stack([group(4.0, value)[0] for value, _ in ELEMENTS])
    strided = torch.randn(8, 64, 96, generator=generator).transpose(0, 1)
    for x in (w, elements, w * 0, strided):
        assert torch.equal(native_mxfp4(x), mxfp4_values(*mxfp4_codes(x.contiguous())))
