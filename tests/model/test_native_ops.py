"""Each native operator against its twin in plain PyTorch, forward and every gradient, and the model with and without.

The twin runs in fp64 on the same numbers. Bounds are on the relative 2-norm of the error: a few fp32 roundings. The
twin in fp32 must meet the same bound, which shows that it is neither too strict nor the native form too loose.
"""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from small_models import FORMS, random_ids, random_model, relative
from torch import Tensor

from moonlet.model.kernels import attention as attention_module
from moonlet.model.kernels import native
from moonlet.model.kernels.attention import attention, attention_torch
from moonlet.model.kernels.attn_res import mix_and_norm, mix_and_norm_torch
from moonlet.model.kernels.cross_entropy import summed_cross_entropy
from moonlet.model.kernels.experts import routed_experts, routed_torch
from moonlet.model.kernels.glu import glu, sigmoid_gate
from moonlet.model.kernels.rms_norm import rms_norm
from moonlet.model.norm import SiTU
from moonlet.optim.muon import newton_schulz, newton_schulz_torch
from moonlet.train.step import Batch, compute, cross_entropy

BOUND = 2e-6


@pytest.fixture(autouse=True)
def needs_the_library() -> Iterator[None]:
    """Skips where there is nothing to compile with, nor to load; kernels that do not compile are a failure."""
    if native.library() is None:
        assert native.compiler() is None or os.environ.get("MOONLET_NATIVE") == "0", native.why_not()
        pytest.skip(f"no native kernels: {native.why_not()}")
    yield


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def with_gradients(f: Callable[..., Any], inputs: list[Any]) -> list[Tensor]:
    """Output and the gradient of every floating-point input, for fixed random weights on the output."""
    leaves = [x.detach().clone().requires_grad_() if is_float(x) else x for x in inputs]
    y = f(*leaves)
    weights = normal(*y.shape, seed=99).to(y.dtype)
    return [y.detach().clone(), *torch.autograd.grad((y * weights).sum(), [x for x in leaves if is_float(x)])]


def is_float(x: Any) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point()


def compare(ours: Callable[..., Any], twin: Callable[..., Any], inputs: list[Any], bound: float = BOUND) -> None:
    """Native fp32 and twin fp32 against twin fp64."""
    doubles = [x.double() if is_float(x) else x for x in inputs]
    truth = with_gradients(twin, doubles)
    for name, f in (("native", ours), ("twin", twin)):
        for i, (a, b) in enumerate(zip(with_gradients(f, inputs), truth)):
            assert a.shape == b.shape and a.isfinite().all()
            if b.norm() < 1e-12:  # exactly zero in the truth, as for a softmax over one key
                assert a.norm() < 1e-5, (name, i)
            else:
                assert relative(a, b) < bound, (name, i, relative(a, b))


ACTS = [("situ", 4.0, 25.0), ("situ", 1.0, 0.5), ("situ", 4.0, None), ("situ", 4, 25), ("silu", 4.0, 25.0)]


def exact_glu(gate: Tensor, up: Tensor, act: tuple[str, float, float | None]) -> Tensor:
    kind, beta, linear = act
    if kind == "silu":
        return gate * torch.sigmoid(gate) * up
    capped = up if linear is None else linear * torch.tanh(up / linear)
    return beta * torch.tanh(gate / beta) * torch.sigmoid(gate) * capped


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("shape", [(1, 1), (1, 17), (3, 5, 64), (50, 33)])
@pytest.mark.parametrize("scale", [0.01, 1.0])
def test_glu(act: tuple[str, float, float | None], shape: tuple[int, ...], scale: float) -> None:
    inputs = [normal(*shape, scale=scale), normal(*shape, seed=1, scale=scale)]
    compare(lambda *x: glu(*x, *act), lambda *x: exact_glu(*x, act), inputs)


@pytest.mark.parametrize("act", ACTS)
def test_glu_from_the_middle_to_the_caps(act: tuple[str, float, float | None]) -> None:
    grid = torch.linspace(-60, 60, 121)
    gate, up = torch.meshgrid(grid, grid, indexing="ij")
    compare(lambda *x: glu(*x, *act), lambda *x: exact_glu(*x, act), [gate, up])


def test_glu_far_out() -> None:
    """Caps and slopes at arguments where exp overflows."""
    gate = torch.tensor([1e4, -1e4, 300.0, -300.0], requires_grad=True)
    up = torch.full((4,), 1e4, requires_grad=True)
    y = glu(gate, up, "situ", 4.0, 25.0)
    assert torch.allclose(y, torch.tensor([100.0, 0.0, 100.0, 0.0]), atol=1e-5)
    for grad in torch.autograd.grad(y.sum(), [gate, up]):
        assert grad.isfinite().all() and grad.abs().max() < 1e-3


def test_gate() -> None:
    inputs = [normal(3, 7, 19), normal(3, 7, 19, seed=1, scale=4)]
    compare(sigmoid_gate, lambda o, g: o * torch.sigmoid(g), inputs)
    strided = [x.transpose(0, 1) for x in inputs]
    assert torch.equal(sigmoid_gate(*strided), sigmoid_gate(*inputs).transpose(0, 1))


@pytest.mark.parametrize("shape", [(1, 3), (1, 8), (200, 13), (2, 70, 64)])
def test_rms_norm(shape: tuple[int, ...]) -> None:
    def twin(x: Tensor, w: Tensor) -> Tensor:
        return w * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-2)

    inputs = [normal(*shape), 1 + normal(shape[-1], seed=1, scale=0.3)]
    compare(lambda x, w: rms_norm(x, w, 1e-2), twin, inputs)


@pytest.mark.parametrize("sources", [2, 3, 4, 5, 6])
@pytest.mark.parametrize("shape", [(1, 9), (2, 70, 32)])
def test_attn_res(sources: int, shape: tuple[int, ...]) -> None:
    d = shape[-1]
    values = [normal(*shape, seed=i, scale=0.3 + i) for i in range(sources)]
    w, norm = normal(d, seed=10, scale=2 / d**0.5), 1 + normal(d, seed=11, scale=0.3)
    compare(
        lambda w, norm, *v: mix_and_norm(v, w, norm, 1e-2, 1e-1),
        lambda w, norm, *v: mix_and_norm_torch(v, w, norm, 1e-2, 1e-1),
        [w, norm, *values],
        bound=5e-6,
    )


def choices(kind: str, tokens: int, experts: int, top_k: int) -> Tensor:
    if kind == "one_takes_all":
        return torch.stack([torch.full((tokens,), (3 + j) % experts) for j in range(top_k)], dim=1)
    scores = torch.rand(tokens, experts, generator=torch.Generator().manual_seed(2))
    if kind == "one_empty":
        scores[:, 1] = -1
    return scores.topk(top_k, dim=-1).indices


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("kind", ["even", "one_empty", "one_takes_all"])
@pytest.mark.parametrize("sizes", [(1, 4, 2, 16, 16), (37, 5, 1, 20, 13), (230, 6, 3, 32, 24), (150, 5, 4, 9, 40)])
def test_experts(act: tuple[str, float, float | None], kind: str, sizes: tuple[int, ...]) -> None:
    N, E, k, L, width = sizes
    chosen, p = choices(kind, N, E, k), torch.rand(N, k, generator=torch.Generator().manual_seed(3)) + 0.1
    weights = [normal(E, width, L, seed=4, scale=0.5), normal(E, width, L, seed=5, scale=0.5)]
    inputs = [normal(N, L), chosen, p, *weights, normal(E, L, width, seed=6, scale=0.5)]
    compare(lambda *x: routed_experts(*x, act), lambda *x: exact_experts(*x, act), inputs, bound=5e-6)
    compare(lambda *x: routed_experts(*x, act), lambda *x: routed_torch(*x, act), inputs, bound=2e-5)


def exact_experts(z, chosen, p, w1, w3, w2, act) -> Tensor:  # type: ignore[no-untyped-def]
    """Every expert on every token, then the chosen ones by their weights."""
    hidden = exact_glu(torch.einsum("nl,eil->nei", z, w1), torch.einsum("nl,eil->nei", z, w3), act)
    out = torch.einsum("nei,eli->nel", hidden, w2)
    return (out.gather(1, chosen[..., None].expand(-1, -1, z.shape[1])) * p[..., None]).sum(1)


PACKED = {
    "one_document": lambda T: None,
    "packed": lambda T: torch.stack(
        [torch.arange(T) // 7 + 1, (torch.arange(T) > T // 3) + (torch.arange(T) == T - 1) + 1]
    ),
    "padded": lambda T: torch.stack([torch.ones(T, dtype=torch.long), (torch.arange(T) < (T + 1) // 2).long()]),
}


@pytest.mark.parametrize("documents", list(PACKED))
@pytest.mark.parametrize(
    "sizes",
    [(1, 1, 4, 4, 4), (1, 2, 8, 4, 12), (47, 3, 8, 4, 12), (150, 2, 32, 16, 32)]
    + [(T, 1, 8, 4, 8) for T in (15, 16, 17, 48, 49, 63, 64, 100, 1000)],
)
def test_attention(documents: str, sizes: tuple[int, ...]) -> None:
    T, H, nope, rope, V = sizes
    segments = PACKED[documents](T)
    inputs = [
        normal(2, T, H, nope + rope),
        normal(2, T, H, nope + V, seed=1),
        normal(2, T, rope, seed=2),
        segments,
        0.4,
    ]
    compare(lambda *x: attention(*x)[0], lambda *x: attention_torch(*x)[0], inputs)
    ours, truth = attention(*inputs)[1], attention_torch(*inputs)[1]
    assert relative(ours, truth) < 1e-6 and ours.shape == (H,) and not ours.requires_grad


def test_attention_largest_logit_is_a_seen_one() -> None:
    """Keys of the future and of other documents do not count, however large."""
    q, kv, k_r = torch.ones(1, 4, 1, 3), torch.zeros(1, 4, 1, 4), torch.zeros(1, 4, 1)
    kv[0, :, 0, :2] = torch.tensor([100.0, -3.0, -7.0, -5.0])[:, None]
    _, largest = attention(q, kv, k_r, torch.tensor([[1, 2, 2, 2]]), 0.5)
    assert largest.tolist() == [100.0]
    q[0, 0] = -1.0
    assert attention(q, kv, k_r, torch.tensor([[1, 2, 2, 2]]), 0.5)[1].tolist() == [-3.0]


@pytest.mark.parametrize("shape", [(1, 2), (1, 48), (33, 130)])
@pytest.mark.parametrize("scale", [0.1, 30.0])
def test_cross_entropy(shape: tuple[int, int], scale: float) -> None:
    targets = torch.randint(0, shape[1], shape[:1], generator=torch.Generator().manual_seed(1))

    def twin(logits: Tensor) -> Tensor:
        return -logits.log_softmax(-1).gather(1, targets[:, None]).sum()

    compare(lambda x: summed_cross_entropy(x * 1, targets), twin, [normal(*shape, scale=scale)])


def test_cross_entropy_once_only_and_empty() -> None:
    logits = normal(4, 6).requires_grad_()
    loss = summed_cross_entropy(logits * 1, torch.tensor([1, 2, 3, 4]))
    torch.autograd.grad(loss, logits, retain_graph=True)
    with pytest.raises(RuntimeError, match="second backward"):
        torch.autograd.grad(loss, logits)
    none = normal(0, 6).requires_grad_()
    loss = summed_cross_entropy(none, torch.zeros(0, dtype=torch.long))
    assert float(loss.detach()) == 0 and torch.autograd.grad(loss, none)[0].shape == (0, 6)


@pytest.mark.parametrize(
    "shape", [(3, 4, 12), (2, 64, 64), (2, 33, 50), (1, 50, 7), (1, 1, 5), (1, 70, 300), (1, 300, 70)]
)
def test_newton_schulz(shape: tuple[int, int, int]) -> None:
    G = normal(*shape, scale=1e-3)
    truth = newton_schulz_torch(G.double())
    assert relative(newton_schulz(G), truth) < 1e-5 and relative(newton_schulz_torch(G), truth) < 1e-5
    assert torch.equal(newton_schulz(torch.zeros(shape)), torch.zeros(shape))


def training_batch(packed: bool) -> Batch:
    T = 70
    tokens = random_ids(3, T)
    segments = (
        torch.stack([torch.arange(T) // (20 + 9 * i) + 1 for i in range(3)]) if packed else torch.ones_like(tokens)
    )
    loss = torch.rand(3, T, generator=torch.Generator().manual_seed(5)) < 0.5
    return {"tokens": tokens, "segments": segments, "loss": loss.float()}


def loss_and_gradients(form: str, batch: Batch) -> tuple[float, list[Tensor]]:
    model = random_model(FORMS[form](), std=0.2)
    grads, parts = compute(model, [batch], 50.0, cross_entropy)
    return parts[0].loss, grads


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("form", list(FORMS))
def test_model_with_and_without(form: str, packed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = training_batch(packed)
    loss, grads = loss_and_gradients(form, batch)
    monkeypatch.setattr(native, "library", lambda: None)
    assert not native.usable(batch["loss"])
    plain_loss, plain_grads = loss_and_gradients(form, batch)
    assert loss == pytest.approx(plain_loss, rel=1e-6)
    floor = 1e-3 * float(torch.stack([g.norm() for g in plain_grads]).median())
    # Both are fp32: from fp64 the native gradients are at most 7e-5 away here, the plain ones 4e-5.
    for a, b in zip(grads, plain_grads):
        assert float((a - b).norm()) < 2e-4 * max(float(b.norm()), floor)


def test_native_kernels_are_what_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The twin of each operator is not called when the kernels are there."""

    def fail(*_: Any) -> None:
        raise AssertionError("the plain form ran")

    monkeypatch.setattr(attention_module, "attention_torch", fail)
    monkeypatch.setattr(torch.nn.functional, "rms_norm", fail)
    monkeypatch.setattr(torch.nn.functional, "cross_entropy", fail)
    monkeypatch.setattr(SiTU, "forward", fail)
    loss_and_gradients("k3", training_batch(packed=True))


@pytest.mark.parametrize("form", ["k3", "kimi_linear"])
def test_same_bits_again_and_from_two_threads(form: str) -> None:
    batch = training_batch(packed=True)
    loss, grads = loss_and_gradients(form, batch)
    with ThreadPoolExecutor(2) as pool:
        for other_loss, others in pool.map(lambda _: loss_and_gradients(form, batch), range(8)):
            assert other_loss == loss
            assert all(torch.equal(a, b) for a, b in zip(others, grads))


def test_loading_the_library_leaves_small_numbers_alone() -> None:
    """-ffast-math as a whole would make this thread flush subnormal numbers to zero."""
    assert float(torch.tensor(1e-40) * 0.5) > 0


def test_other_dtypes_take_the_twin() -> None:
    for dtype in (torch.float64, torch.bfloat16):
        x = normal(3, 8).to(dtype)
        assert not native.usable(x) and rms_norm(x, x[0], 1e-5).dtype == dtype
        assert glu(x, x, "situ", 4.0, 25.0).dtype == dtype
