"""The tiled KDA against the recurrence (values, states, every gradient), and both against fla-core's references."""

import pytest
import torch
import torch.nn.functional as F
from small_models import fla, relative
from torch import Tensor

from moonlet.model.kernels.kda.chunk import chunk_kda
from moonlet.model.kernels.kda.naive import naive_kda

NAMES = ("q", "k", "v", "g", "beta", "initial_state")
B, H, K, V = 2, 3, 8, 6
# How deep the decay goes: a step of K3's gate, all of it at the bound, and Kimi Linear's unbounded gate.
DECAYS = {"bounded": (-5.0, -0.001), "at_bound": (-5.0, -4.999), "unbounded": (-30.0, -8.0), "mixed": (-30.0, -0.001)}


def inputs(T: int, decay: tuple[float, float], seed: int = 0) -> dict[str, Tensor]:
    r = torch.Generator().manual_seed(seed)
    q = F.normalize(torch.randn(B, T, H, K, generator=r), dim=-1) * K**-0.5
    k = F.normalize(torch.randn(B, T, H, K, generator=r), dim=-1)
    v = torch.randn(B, T, H, V, generator=r)
    low, high = decay
    # Log-uniform between the ends, so that slow and fast channels are both there.
    g = -torch.exp(torch.rand(B, T, H, K, generator=r) * torch.tensor(low / high).log() + torch.tensor(-high).log())
    beta = torch.rand(B, T, H, generator=r)
    state = torch.randn(B, H, K, V, generator=r)
    return dict(zip(NAMES, (q, k, v, g, beta, state)))


def run(function, x: dict[str, Tensor], **options):  # type: ignore[no-untyped-def]
    """Outputs and the gradients of a random linear function of them."""
    leaves = {n: t.clone().requires_grad_() for n, t in x.items()}
    o, S = function(*leaves.values(), **options)
    r = torch.Generator().manual_seed(1)
    loss = (o * torch.randn(o.shape, generator=r)).sum() + (S * torch.randn(S.shape, generator=r)).sum()
    grads = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values()))))
    return o, S, grads


def documents(T: int, seed: int = 0) -> Tensor:
    """Packed rows [B, T]: documents of random lengths, one row ending in padding (segment 0)."""
    r = torch.Generator().manual_seed(seed)
    starts = torch.rand(B, T, generator=r) < 0.15
    starts[:, 0] = True
    segments = starts.long().cumsum(1)
    if T > 4:
        segments[1, -3:] = 0
    return segments


@pytest.mark.parametrize("packed", [False, True], ids=["one_document", "packed"])
@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("T", [1, 15, 16, 63, 64, 100])
def test_tiles_equal_recurrence(T: int, decay: str, packed: bool) -> None:
    x = inputs(T, DECAYS[decay])
    segments = documents(T) if packed else None
    o, S, grads = run(naive_kda, x, segments=segments)
    for pairwise in (True, False) if decay in ("bounded", "at_bound") else (True,):
        o2, S2, grads2 = run(chunk_kda, x, segments=segments, pairwise=pairwise)
        assert relative(o2, o) < 2e-6 and relative(S2, S) < 2e-6
        for name in NAMES:
            assert torch.isfinite(grads2[name]).all()
            # The gradient of g is a running sum: where it is tiny (strong decay), its error is that of the terms.
            close = (grads2[name] - grads[name]).abs().max() < 5e-7
            assert relative(grads2[name], grads[name]) < 1e-5 or (name == "g" and close), (name, pairwise)


def test_no_initial_state_is_a_zero_state() -> None:
    x = inputs(40, DECAYS["bounded"])
    zero = {**x, "initial_state": torch.zeros(B, H, K, V)}
    without = list(x.values())[:5]
    for function in (naive_kda, chunk_kda):
        assert torch.equal(function(*without)[0], function(*zero.values())[0])


def test_documents_of_a_packed_row_do_not_see_each_other() -> None:
    x = inputs(50, DECAYS["bounded"])
    segments = torch.cat([torch.ones(B, 23), torch.full((B, 27), 2)], dim=1).long()
    packed, S = chunk_kda(*list(x.values())[:5], None, segments)
    for part in (slice(0, 23), slice(23, 50)):
        alone, last = chunk_kda(*(t[:, part] for t in list(x.values())[:5]))
        assert relative(packed[:, part], alone) < 1e-6
    assert relative(S, last) < 1e-6
    changed = {n: t.clone() for n, t in x.items()}
    for t in list(changed.values())[:5]:
        t[:, :23] = t[:, :23] * 0.5
    again, _ = chunk_kda(*list(changed.values())[:5], None, segments)
    assert relative(again[:, :23], packed[:, :23]) > 0.1
    assert relative(again[:, 23:], packed[:, 23:]) < 1e-6  # the running sum of g in the shared tile rounds differently


def test_state_carries_a_sequence_over_a_cut() -> None:
    x = list(inputs(70, DECAYS["unbounded"]).values())
    whole, end = chunk_kda(*x, pairwise=True)
    state, parts = x[5], []
    for a, b in ((0, 33), (33, 34), (34, 70)):
        o, state = chunk_kda(*(t[:, a:b] for t in x[:5]), state, pairwise=True)
        parts.append(o)
    assert relative(torch.cat(parts, 1), whole) < 1e-6 and relative(state, end) < 1e-6


@pytest.mark.parametrize("decay", ["bounded", "unbounded"])
def test_fla_recurrent(decay: str) -> None:
    x = inputs(50, DECAYS[decay])
    o, S = fla("kda").naive_recurrent_kda(**x, scale=1.0, output_final_state=True)
    for function, options in ((naive_kda, {}), (chunk_kda, {"pairwise": decay == "unbounded"})):
        o2, S2 = function(*x.values(), **options)
        assert relative(o2, o) < 2e-6 and relative(S2, S) < 2e-6


def test_fla_chunk() -> None:
    x = inputs(128, (-0.5, -0.001))
    o, S = fla("kda").naive_chunk_kda(**x, scale=1.0, output_final_state=True)
    o2, S2 = chunk_kda(*x.values())
    assert relative(o2, o) < 5e-6 and relative(S2, S) < 5e-6
