"""Products with bf16 operands: each operator that has some against itself in fp32, and a model trained both ways.

fp32 is the truth. A bf16 number is within 2^-9 of what it stands for, so a product is off by a few thousandths; the
bound of 1e-2 leaves room for the operators that chain two or three.
"""

from collections.abc import Callable

import pytest
import torch
from small_models import FORMS, k3, random_ids, random_model, relative
from torch import Tensor, nn

from moonlet.model import linear
from moonlet.model.linear import Linear, bf16_products, has_bf16
from moonlet.model.moe import Experts
from moonlet.train.step import Stepper

LENGTHS = [1, 15, 16, 17, 63, 64, 100]
BOUND = 1e-2


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def with_gradients(module: nn.Module, f: Callable[[Tensor], Tensor], x: Tensor, bf16: bool) -> list[Tensor]:
    x = x.clone().requires_grad_()
    with bf16_products(module, bf16):
        y = f(x)
        grads = torch.autograd.grad((y * normal(*y.shape, seed=9)).sum(), [x, *module.parameters()])
    assert all(t.dtype == torch.float32 for t in (y, *grads))
    return [y.detach(), *grads]


def compare(module: nn.Module, f: Callable[[Tensor], Tensor], x: Tensor) -> None:
    """Close to fp32, and not it: the products did run in bf16."""
    truth, got = (with_gradients(module, f, x, bf16) for bf16 in (False, True))
    floor = 1e-3 * float(torch.stack([t.norm() for t in truth]).median())
    for a, b in zip(got, truth):
        assert float((a - b).norm()) < BOUND * max(float(b.norm()), floor)
    assert relative(got[0], truth[0]) > 1e-4


@pytest.mark.parametrize("T", LENGTHS)
def test_product(T: int) -> None:
    layer = Linear(48, 40)
    layer.weight.data = normal(40, 48, seed=1)
    compare(layer, layer, normal(2, T, 48))


ACTS = [("situ", 4.0, 25.0), ("silu", 4.0, None)]


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("T", LENGTHS)
@pytest.mark.parametrize("width", [24, 20])  # of whole 16 bytes, and not
def test_experts(width: int, T: int, act: tuple[str, float, float | None]) -> None:
    """One expert has no token, and with few tokens more have none."""
    experts = Experts(k3(moe_intermediate_size=width), 16)
    experts.act = act
    for i, w in enumerate(experts.parameters()):
        w.data = normal(*w.shape, seed=i, scale=0.5)
    chosen = torch.rand(T, 5, generator=torch.Generator().manual_seed(2)).topk(2).indices
    p = torch.rand(T, 2, generator=torch.Generator().manual_seed(3)) + 0.1
    compare(experts, lambda z: experts.routed(z, chosen, p), normal(T, 16))


@pytest.mark.parametrize("T", [17, 100])
@pytest.mark.parametrize("form", ["k3", "kimi_linear"])
@pytest.mark.parametrize("kind", ["kda", "mla", "moe", "mlp"])
def test_layers(kind: str, form: str, T: int) -> None:
    """All gradients as one vector: errors of several products in a row add up."""
    layers = random_model(FORMS[form](), std=0.2).layers
    layer = {"kda": layers[0].self_attn, "mla": layers[3].self_attn, "moe": layers[1].mlp, "mlp": layers[0].mlp}[kind]

    def first(x: Tensor) -> Tensor:
        y = layer(x)
        return y[0] if isinstance(y, tuple) else y

    x = normal(2, T, 32)
    truth, got = (torch.cat([t.flatten() for t in with_gradients(layer, first, x, bf16)]) for bf16 in (False, True))
    assert 1e-3 < relative(got, truth) < 2 * BOUND


@pytest.mark.parametrize("form", ["k3", "kimi_linear", "k2"])
def test_only_in_the_step(form: str) -> None:
    """Gradients come in fp32, close; before and behind the step, and where it is not wanted, no bit is different."""
    model, ids = random_model(FORMS[form]()), random_ids(3, 70)
    batch = {"tokens": ids, "segments": torch.arange(70).expand(3, -1) // 25 + 1, "loss": torch.ones(3, 70)}
    before = model(ids)
    loss, truth, _ = Stepper(1).gradients(model, batch)
    rounded_loss, got, _ = Stepper(2, bf16=True).gradients(model, batch)
    assert 0 < abs(rounded_loss - loss) < 1e-3 * loss
    assert all(g.dtype == torch.float32 for g in got.values())
    assert relative(got["lm_head.weight"], truth["lm_head.weight"]) < 0.1  # some tokens go to other experts
    assert torch.equal(model(ids), before)
    again = Stepper(1).gradients(model, batch)[1]
    assert all(torch.equal(again[name], g) for name, g in truth.items())


def test_which_processors_multiply_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    for flags, found in (
        ("avx2 avx512f avx512_vnni", False),
        ("avx512f avx512_bf16", True),
        ("amx_tile amx_bf16", True),
    ):
        monkeypatch.setattr(linear, "processor", lambda flags=flags: f"flags : fpu {flags} rdpid")
        assert has_bf16() == found
