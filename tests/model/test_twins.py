"""The plain twins are the truth for the native operators, so their own gradients are held to finite differences, fp64.

`chunk_kda`, `attention_torch` and SiTU have backward passes written out; the others lean on autograd.
"""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from moonlet.model.kernels.attention import attention_torch
from moonlet.model.kernels.attn_res import mix_and_norm_torch
from moonlet.model.kernels.conv import l2norm, short_conv
from moonlet.model.kernels.experts import routed_torch
from moonlet.model.kernels.gated_norm import gated_norm_torch
from moonlet.model.kernels.kda.chunk import chunk_kda
from moonlet.model.kernels.kda.gate import kda_gate_torch
from moonlet.model.kernels.kda.naive import naive_kda
from moonlet.model.norm import SiTU

SEGMENTS = torch.tensor([[1] * 4 + [2] * 14])


def numbers(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()


def check(function: Callable[..., Tensor | tuple[Tensor, ...]], *inputs: Tensor) -> None:
    assert torch.autograd.gradcheck(function, inputs, fast_mode=True)


@pytest.mark.parametrize("segments", [None, SEGMENTS], ids=["one_document", "packed"])
@pytest.mark.parametrize("form", ["naive", "tiles", "tiles, pairwise"])
def test_kda(form: str, segments: Tensor | None) -> None:
    def kda(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        x = F.normalize(q, dim=-1), F.normalize(k, dim=-1), v, -F.softplus(g), torch.sigmoid(beta), state, segments
        return naive_kda(*x) if form == "naive" else chunk_kda(*x, pairwise=form != "tiles")

    check(kda, *(numbers(1, 18, 1, 3, seed=i) for i in range(4)), numbers(1, 18, 1), numbers(1, 1, 3, 3))


@pytest.mark.parametrize("segments", [None, SEGMENTS], ids=["one_document", "packed"])
def test_attention(segments: Tensor | None) -> None:
    inputs = numbers(1, 18, 2, 5), numbers(1, 18, 2, 7), numbers(1, 18, 2)
    check(lambda *x: attention_torch(*x, segments, 0.4)[0], *inputs)


@pytest.mark.parametrize("linear", [None, 25.0, 0.5])
def test_situ(linear: float | None) -> None:
    check(lambda g, u: SiTU.apply(g, u, 4.0, linear), 3 * numbers(5, 6), 3 * numbers(5, 6, seed=1))


@pytest.mark.parametrize("segments", [None, SEGMENTS], ids=["one_document", "packed"])
def test_conv(segments: Tensor | None) -> None:
    check(lambda x, taps: l2norm(short_conv(x, taps, None, segments), 1e-2), numbers(1, 18, 6), numbers(6, 4))


def test_gated_norm() -> None:
    check(lambda o, w, gate: gated_norm_torch(o, w, gate, 1e-2), numbers(1, 5, 2, 4), numbers(4), numbers(1, 5, 8))


@pytest.mark.parametrize("lower", [None, -5.0])
def test_decay(lower: float | None) -> None:
    check(lambda raw, bias, A: kda_gate_torch(raw, bias, A, lower), numbers(1, 5, 6), numbers(6), numbers(2))


def test_experts() -> None:
    chosen = torch.tensor([[0, 2], [2, 1], [2, 0], [1, 2]])
    act = ("silu", 4.0, None)
    weights = numbers(3, 5, 4), numbers(3, 5, 4, seed=1), numbers(3, 4, 5, seed=2)
    check(lambda z, p, *w: routed_torch(z, chosen, p, *w, act), numbers(4, 4), numbers(4, 2), *weights)


def test_attn_res() -> None:
    sources = [numbers(3, 6, seed=i) for i in range(3)]
    check(lambda w, norm, *v: mix_and_norm_torch(v, w, norm, 1e-2, 1e-2), numbers(6), numbers(6), *sources)
