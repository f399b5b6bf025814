"""Quantile Balancing evens a skewed router in two updates and is its definition; the sign rule moves the right way."""

import torch
from small_models import kimi_linear, random_model
from torch import Tensor

from moonlet.model.model import Model
from moonlet.optim.balance import quantile_balance

E, K, TOKENS = 16, 4, 4096


def skewed() -> tuple[Model, Tensor]:
    """A router whose scores favour some experts strongly, and its input."""
    model = random_model(kimi_linear(num_experts=E, num_experts_per_token=K))
    r = torch.Generator().manual_seed(0)
    gate = model.layers[1].mlp.gate
    gate.e_score_correction_bias.zero_()
    gate.weight.data.normal_(0, 0.3, generator=r)
    x = torch.randn(TOKENS, 32, generator=r)
    x[:, 0] = 3.0  # a constant input feature makes an offset for each expert
    gate.weight.data[:, 0] = torch.linspace(-1, 1, E)
    return model, x


def imbalance(model: Model, x: Tensor) -> float:
    counts = model.layers[1].mlp.gate(x)[2].counts.float()
    return float(counts.max() / counts.mean())


def update(model: Model, x: Tensor, pieces: int = 1) -> None:
    parts = [model.layers[1].mlp.gate(part)[2] for part in x.chunk(pieces)]
    quantile_balance(model, {1: [(s.scores, s.cutoff) for s in parts]})


def test_two_updates_balance_a_skewed_router() -> None:
    model, x = skewed()
    assert imbalance(model, x) > 2.5
    update(model, x)
    update(model, x)
    assert imbalance(model, x) < 1.3
    fresh = torch.randn(TOKENS, 32, generator=torch.Generator().manual_seed(1))
    fresh[:, 0] = 3.0
    assert imbalance(model, fresh) < 1.4  # not only on the tokens that it saw


def test_bias_is_the_quantile_of_its_definition() -> None:
    model, x = skewed()
    x = x[:100]
    gate = model.layers[1].mlp.gate
    gate.e_score_correction_bias.copy_(torch.linspace(-0.2, 0.2, E))
    s = torch.sigmoid(x @ gate.weight.T).detach()
    biased = s + gate.e_score_correction_bias
    cutoff = biased.sort(dim=1, descending=True).values[:, K]  # the (k+1)-th
    expected = []
    for j in range(E):
        r = sorted((cutoff - s[:, j]).tolist())
        expected.append(r[100 * K // E])  # the (q+1)-th smallest, q = m k / n
    b = torch.tensor(expected)
    update(model, x)
    assert torch.allclose(gate.e_score_correction_bias, b - b.mean(), atol=1e-5)
    for j in range(E):  # q tokens prefer expert j to their cutoff, ties (it was their cutoff already) either way
        r, q = cutoff - s[:, j], 100 * K // E
        assert int((r < b[j] - 1e-6).sum()) <= q < int((r < b[j] + 1e-6).sum())
    assert abs(float(gate.e_score_correction_bias.mean())) < 1e-6


def test_micro_batches_are_one_step() -> None:
    (a, x), (b, _) = skewed(), skewed()
    update(a, x)
    update(b, x, pieces=3)
    assert torch.equal(a.layers[1].mlp.gate.e_score_correction_bias, b.layers[1].mlp.gate.e_score_correction_bias)


def test_nothing_to_balance() -> None:
    """Every expert chosen by every token, or too few tokens for a quantile: the bias stays."""
    model = random_model(kimi_linear(num_experts=4, num_experts_per_token=4))
    before = model.layers[1].mlp.gate.e_score_correction_bias.clone()
    update(model, torch.randn(50, 32))
    assert torch.equal(model.layers[1].mlp.gate.e_score_correction_bias, before)
    model, x = skewed()
    before = model.layers[1].mlp.gate.e_score_correction_bias.clone()
    update(model, x[: E - 1])
    assert torch.equal(model.layers[1].mlp.gate.e_score_correction_bias, before)
