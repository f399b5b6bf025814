"""KDA's native operators against their plain twins: values, every gradient, the whole layer, repeats, two threads.

The truth is the plain form in fp64. The kernels work in fp32 (unit roundoff 6e-8, exp good to 2e-7) and sum over some
hundred terms, so 1e-5 of the norm leaves a factor of about ten; an error in a formula shows at 1e-2 and above.
The gradient of g is a sum over all later tokens; with strong decay it is far smaller than the products it is made of,
and its error is then measured against these (`scale`).
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from small_models import k3, kimi_linear, random_model, relative
from torch import Tensor

from moonlet.model import kda as layer
from moonlet.model.kernels import kda as core
from moonlet.model.kernels import native
from moonlet.model.kernels.conv import l2norm, native_conv_qkv, short_conv
from moonlet.model.kernels.gated_norm import gated_norm_torch, native_gated_norm
from moonlet.model.kernels.kda.gate import kda_gate_torch, native_kda_gate
from moonlet.model.kernels.kda.naive import naive_kda
from moonlet.model.kernels.kda.native import native_kda
from moonlet.model.kernels.native import library, why_not

pytestmark = pytest.mark.skipif(library() is None, reason=f"no native kernels: {why_not()}")

TOLERANCE = 1e-5
EPS = 0.01  # of the L2 norm: large enough to be seen
NAMES = ("q", "k", "v", "g", "beta", "initial_state")
DECAYS = {"bounded": (-5.0, -0.001), "at_bound": (-5.0, -4.999), "unbounded": (-30.0, -0.001)}
SIZES = {"32": (4, 32, 32), "64": (1, 64, 64), "24": (2, 24, 24), "odd": (3, 13, 41)}  # H, K, V
B = 2

Outputs = Tensor | Sequence[Tensor]


def inputs(T: int, H: int, K: int, V: int, decay: tuple[float, float], seed: int = 0) -> list[Tensor]:
    """q, k, v, g, beta, initial state; g log-uniform between the ends, so that slow and fast channels are there."""
    r = torch.Generator().manual_seed(seed)
    q = F.normalize(torch.randn(B, T, H, K, generator=r), dim=-1) * K**-0.5
    k = F.normalize(torch.randn(B, T, H, K, generator=r), dim=-1)
    v = torch.randn(B, T, H, V, generator=r)
    fast, slow = (torch.tensor(-end).log() for end in decay)
    g = -torch.exp(slow + torch.rand(B, T, H, K, generator=r) * (fast - slow))
    return [q, k, v, g, torch.rand(B, T, H, generator=r), torch.randn(B, H, K, V, generator=r)]


def documents(T: int, seed: int = 0) -> Tensor:
    """Packed rows [B, T]: documents of random lengths, one row ending in padding (segment 0)."""
    starts = torch.rand(B, T, generator=torch.Generator().manual_seed(seed)) < 0.15
    starts[:, 0] = True
    segments = starts.long().cumsum(1)
    if T > 4:
        segments[1, -3:] = 0
    return segments


def run(function: Callable[..., Outputs], x: Sequence[Tensor], *rest: object) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs, and the gradients of a random linear function of them."""
    leaves = [t.clone().requires_grad_() for t in x]
    made = function(*leaves, *rest)
    outputs = [made] if isinstance(made, Tensor) else list(made)
    r = torch.Generator().manual_seed(1)
    loss = sum((o * torch.randn(o.shape, generator=r)).sum() for o in outputs)
    assert isinstance(loss, Tensor)
    return outputs, list(torch.autograd.grad(loss, leaves))


def same(native: Callable[..., Outputs], plain: Callable[..., Outputs], x: Sequence[Tensor], *rest: object) -> None:
    (values, grads), (truths, true_grads) = run(native, x, *rest), run(plain, [t.double() for t in x], *rest)
    for got, truth in zip(values + grads, truths + true_grads, strict=True):
        assert got.shape == truth.shape and torch.isfinite(got).all()
        assert relative(got.double(), truth) < TOLERANCE


@pytest.mark.parametrize("packed", [False, True], ids=["one_document", "packed"])
@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("T", [1, 15, 16, 17, 63, 64, 100])
def test_native_equals_recurrence(T: int, size: str, decay: str, packed: bool) -> None:
    recurrence(inputs(T, *SIZES[size], DECAYS[decay]), documents(T) if packed else None)


@pytest.mark.parametrize("decay", ["bounded", "unbounded"])
def test_a_thousand_tokens(decay: str) -> None:
    recurrence(inputs(1000, 1, 16, 32, DECAYS[decay]), documents(1000))


@pytest.mark.parametrize("beta", [0.0, 1.0, "some"])
@pytest.mark.parametrize("g", [0.0, -80.0, -1000.0, "some"])
def test_ends_of_beta_and_decay(g: float | str, beta: float | str) -> None:
    """Nothing written, all of it; nothing forgotten, everything (exp(g) is below the least fp32 number, or 0)."""
    x = inputs(50, 2, 16, 16, DECAYS["bounded"])
    for i, value in ((3, g), (4, beta)):
        if value == "some":
            x[i][:, ::3], x[i][:, 1::3] = (0.0, -1000.0) if i == 3 else (0.0, 1.0)
        else:
            x[i].fill_(value)
    recurrence(x, documents(50))


def recurrence(x: list[Tensor], segments: Tensor | None) -> None:
    """Native against naive in fp64."""
    (o, S), grads = run(native_kda, x, segments)
    (true_o, true_S), true_grads = run(naive_kda, [t.double() for t in x], segments)
    assert relative(o.double(), true_o) < TOLERANCE and relative(S.double(), true_S) < TOLERANCE
    scale = {"g": max(float(t.norm()) for t in true_grads[:3]) * 1e-2}
    for name, got, truth in zip(NAMES, grads, true_grads):
        assert torch.isfinite(got).all()
        assert (got - truth).norm() <= TOLERANCE * max(float(truth.norm()), scale.get(name, 0.0)) + 1e-30, name


def test_no_initial_state_is_a_zero_state() -> None:
    *x, state = inputs(40, 2, 32, 32, DECAYS["bounded"])
    (o, S), grads = run(native_kda, x)
    (o2, S2), grads2 = run(native_kda, [*x, torch.zeros_like(state)])
    assert all(torch.equal(a, b) for a, b in zip([o, S, *grads], [o2, S2, *grads2]))


def test_gradient_of_either_output_alone() -> None:
    x = inputs(40, 2, 32, 32, DECAYS["bounded"])
    same(lambda *t: native_kda(*t)[0], lambda *t: naive_kda(*t)[0], x)
    q, *rest = x  # which the last state does not depend on
    same(lambda *t: native_kda(q, *t)[1], lambda *t: naive_kda(q.double(), *t)[1], rest)


def test_inputs_may_be_views() -> None:
    x = inputs(20, 2, 32, 32, DECAYS["bounded"])
    views = [t.transpose(0, 1).contiguous().transpose(0, 1) for t in x]
    assert not views[0].is_contiguous()
    got, expected = run(native_kda, views), run(native_kda, x)
    assert all(torch.equal(a, b) for a, b in zip(got[0] + got[1], expected[0] + expected[1]))


def exact_conv(
    x: Tensor, taps: Tensor, past: Tensor | None, segments: Tensor | None, heads: int, eps: float
) -> Outputs:
    """`conv_qkv_torch` without its cast to fp32."""
    q, k, v = short_conv(x, taps, past, segments).unflatten(-1, (3, heads, -1)).unbind(2)
    return l2norm(q, eps) * q.shape[-1] ** -0.5, l2norm(k, eps), v


@pytest.mark.parametrize("width", [2, 4, 5])
@pytest.mark.parametrize("K", [32, 24, 13])
@pytest.mark.parametrize("T", [1, 3, 4, 50, 1000])
@pytest.mark.parametrize("packed", [False, True], ids=["one_document", "packed"])
def test_conv(T: int, K: int, width: int, packed: bool) -> None:
    r = torch.Generator().manual_seed(0)
    x, taps = torch.randn(B, T, 3 * 2 * K, generator=r), torch.randn(3 * 2 * K, width, generator=r)
    same(native_conv_qkv, exact_conv, [x, taps], None, documents(T) if packed else None, 2, EPS)


def test_conv_goes_on_from_its_past() -> None:
    r = torch.Generator().manual_seed(0)
    x, taps = torch.randn(B, 30, 96, generator=r), torch.randn(96, 4, generator=r)
    whole = native_conv_qkv(x, taps, None, None, 1, EPS)
    for cut in (3, 29):
        tail = native_conv_qkv(x[:, cut:], taps, x[:, cut - 3 : cut], None, 1, EPS)
        assert all(torch.equal(a[:, cut:], b) for a, b in zip(whole, tail))
    past, rest = x[:, :3], x[:, 3:]
    (_, d_taps) = run(lambda x, w: native_conv_qkv(x, w, past, None, 1, EPS), [rest, taps])[1]
    (_, truth) = run(lambda x, w: exact_conv(x, w, past.double(), None, 1, EPS), [rest.double(), taps.double()])[1]
    assert relative(d_taps.double(), truth) < TOLERANCE


@pytest.mark.parametrize("V", [32, 24, 13])
def test_gated_norm(V: int) -> None:
    r = torch.Generator().manual_seed(0)
    o, weight, gate = (torch.randn(*s, generator=r) * 2 for s in ((B, 50, 3, V), (V,), (B, 50, 3 * V)))
    same(native_gated_norm, gated_norm_torch, [o, weight, gate], 1e-5)


@pytest.mark.parametrize("lower", [None, -5.0])
@pytest.mark.parametrize("K", [32, 13])
def test_gate(K: int, lower: float | None) -> None:
    r = torch.Generator().manual_seed(0)
    raw, bias, A_log = (torch.randn(*s, generator=r) * 3 for s in ((B, 50, 3 * K), (3 * K,), (3,)))
    same(native_kda_gate, kda_gate_torch, [raw * 4, bias, A_log / 3], lower)


@pytest.mark.parametrize("lower", [None, -5.0])
def test_gate_is_exact_for_each_z(lower: float | None) -> None:
    """Small decays matter as much as large ones: here every value by itself, 1e-6 being some 8 roundings."""
    raw, zero = torch.linspace(-60, 60, 1203).view(1, 1, -1), torch.zeros(1203)
    got = native_kda_gate(raw, zero, torch.zeros(1), lower)
    truth = kda_gate_torch(raw.double(), zero.double(), torch.zeros(1).double(), lower)
    assert ((got - truth) / truth).abs().max() < 1e-6


FORMS = {"k3": k3, "kimi_linear": kimi_linear}


def layer_and_input(form: str, T: int = 50) -> tuple[layer.KDA, Tensor]:
    return random_model(FORMS[form]()).layers[0].self_attn, torch.randn(
        B, T, 32, generator=torch.Generator().manual_seed(0)
    )


def layer_gradients(kda: layer.KDA, x: Tensor, segments: Tensor | None) -> list[Tensor]:
    """y and the gradients of x and of every parameter."""
    x = x.clone().requires_grad_()
    y = kda(x, segments)
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    return [y.detach(), *torch.autograd.grad((y * weights).sum(), [x, *kda.parameters()])]


@pytest.mark.parametrize("packed", [False, True], ids=["one_document", "packed"])
@pytest.mark.parametrize("form", FORMS)
def test_layer(form: str, packed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    kda, x = layer_and_input(form)
    segments = documents(x.shape[1]) if packed else None
    fast = layer_gradients(kda, x, segments)
    monkeypatch.setattr(native, "library", lambda: None)
    monkeypatch.setattr(core, "native_kda", None)
    for got, truth in zip(fast, layer_gradients(kda, x, segments), strict=True):
        assert relative(got, truth) < TOLERANCE
        assert not torch.equal(got, truth), "both ran the same kernels"


def test_layer_repeats_bit_for_bit_also_from_two_threads() -> None:
    kda, x = layer_and_input("k3", 100)
    work = [(x, documents(100)), (x * 0.5, None)]
    expected = [layer_gradients(kda, *w) for w in work]
    with ThreadPoolExecutor(2) as pool:
        for _ in range(20):
            for got, truth in zip(pool.map(lambda w: layer_gradients(kda, *w), work), expected):
                assert all(torch.equal(a, b) for a, b in zip(got, truth, strict=True))


def test_loading_the_kernels_leaves_denormal_numbers_alone() -> None:
    assert float(torch.tensor(1e-30) * torch.tensor(1e-10)) > 0  # 1e-40, below the least normal fp32 number


@torch.no_grad()
def test_nothing_is_kept_without_gradients() -> None:
    x = [t.requires_grad_() for t in inputs(40, 2, 32, 32, DECAYS["bounded"])]
    o, S = native_kda(*x)
    assert o.grad_fn is None and S.grad_fn is None
    with torch.enable_grad():
        o2, _ = native_kda(*x)
    assert o2.grad_fn is not None and torch.equal(o, o2)


def test_what_the_kernels_cannot_take_runs_in_plain_form() -> None:
    kda, x = layer_and_input("k3")
    expected = kda(x)
    assert relative(kda.bfloat16()(x.bfloat16()), expected) < 2e-2  # bfloat16 has 8 bits
