"""Expert dispatch against a loop over tokens, the latent form against its formula, the router by its definition."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from small_models import k3, kimi_linear, random_model, relative
from torch import Tensor

from moonlet.model.config import ModelConfig
from moonlet.model.moe import MoE


def moe(config: ModelConfig, seed: int = 0) -> MoE:
    layer = random_model(config, seed, std=0.3).layers[1].mlp
    assert isinstance(layer, MoE)
    return layer


def tokens(count: int, width: int, seed: int = 0) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def expert(m: MoE, j: int, z: Tensor) -> Tensor:
    """Expert j on one token, SwiGLU or SiTU written out."""
    g, u = m.experts.w1[j] @ z, m.experts.w3[j] @ z
    if m.experts.act[0] == "silu":
        return m.experts.w2[j] @ (g * torch.sigmoid(g) * u)
    return m.experts.w2[j] @ (4 * torch.tanh(g / 4) * torch.sigmoid(g) * 25 * torch.tanh(u / 25))


def route(m: MoE, x: Tensor) -> list[tuple[int, Tensor]]:
    """The experts of one token with their weights, by sorting the biased scores."""
    s = torch.sigmoid(m.gate.weight @ x)
    biased = (s + m.gate.e_score_correction_bias).tolist()
    chosen = sorted(range(len(s)), key=lambda j: -biased[j])[: m.gate.top_k]
    total = sum(s[j] for j in chosen) if m.gate.renormalize else 1.0
    return [(j, s[j] / total * m.gate.factor) for j in chosen]


def shared(m: MoE, x: Tensor) -> Tensor:
    e = m.shared_experts
    g, u = e.gate_proj.weight @ x, e.up_proj.weight @ x
    if e.act[0] == "silu":
        return e.down_proj.weight @ (F.silu(g) * u)
    return e.down_proj.weight @ (4 * torch.tanh(g / 4) * torch.sigmoid(g) * 25 * torch.tanh(u / 25))


def latent_formula(m: MoE, x: Tensor) -> Tensor:
    """y = shared(x) + W_up RMSNorm(sum_i p_i E_i(W_down x)), the norm on the weighted sum."""
    z = m.routed_expert_down_proj.weight @ x
    u = sum((p * expert(m, j, z) for j, p in route(m, x)), torch.zeros_like(z))
    u = u * torch.rsqrt(u.square().mean() + 1e-5) * m.routed_expert_norm.weight
    return shared(m, x) + m.routed_expert_up_proj.weight @ u


def full_width_formula(m: MoE, x: Tensor) -> Tensor:
    return shared(m, x) + sum((p * expert(m, j, x) for j, p in route(m, x)), torch.zeros_like(x))


@pytest.mark.parametrize("renormalize", [True, False])
@pytest.mark.parametrize("form", ["latent", "full_width"])
def test_equals_a_loop_over_tokens(form: str, renormalize: bool) -> None:
    config = k3 if form == "latent" else kimi_linear
    m = moe(config(moe_renormalize=renormalize, routed_scaling_factor=1.7))
    formula = latent_formula if form == "latent" else full_width_formula
    x = tokens(21, 32).requires_grad_()
    expected = torch.stack([formula(m, row) for row in x])
    weights = torch.randn_like(expected)
    leaves = [x, *m.parameters()]
    y, _ = m(x.view(3, 7, 32))  # with gradient: sorted dispatch
    assert relative(y.view(21, 32), expected) < 1e-5
    ours = torch.autograd.grad((y.view(21, 32) * weights).sum(), leaves)
    theirs = torch.autograd.grad((expected * weights).sum(), leaves)
    for a, b in zip(ours, theirs):
        assert relative(a, b) < 2e-5
    with torch.no_grad():  # few tokens without gradient: every expert on every token
        assert relative(m(x.view(3, 7, 32))[0].view(21, 32), expected) < 1e-5


@given(st.integers(1, 40), st.integers(2, 7), st.integers(1, 7), st.integers(0, 3))
def test_both_dispatches_agree(count: int, experts: int, top_k: int, seed: int) -> None:
    m = moe(kimi_linear(num_experts=experts, num_experts_per_token=min(top_k, experts), num_hidden_layers=4), seed)
    if seed == 3:
        m.gate.e_score_correction_bias[0] += 10.0  # everything goes to one expert first, another may get nothing
    x = tokens(count, 32, seed)
    chosen, p, _ = m.gate(x)
    assert relative(m.experts.routed(x, chosen, p), m.experts.all_experts(x, chosen, p)) < 1e-5


def test_bias_chooses_but_does_not_weigh() -> None:
    m = moe(kimi_linear())
    x = tokens(50, 32)
    m.gate.e_score_correction_bias.zero_()
    m.gate.e_score_correction_bias[4] = 10.0
    chosen, p, _ = m.gate(x)
    assert (chosen == 4).any(1).all()
    s = torch.sigmoid(x @ m.gate.weight.T).gather(1, chosen)
    assert torch.allclose(p, 2.446 * s / s.sum(1, keepdim=True), atol=1e-6)


def test_statistics() -> None:
    m = moe(kimi_linear())
    x = tokens(50, 32)
    chosen, _, stats = m.gate(x)
    biased = torch.sigmoid(x @ m.gate.weight.T) + m.gate.e_score_correction_bias
    assert torch.allclose(stats.scores, torch.sigmoid(x @ m.gate.weight.T), atol=1e-6)
    assert torch.allclose(stats.cutoff, biased.sort(dim=1, descending=True).values[:, 2], atol=1e-6)
    assert stats.counts.tolist() == [int((chosen == j).sum()) for j in range(6)]
    assert not stats.scores.requires_grad
    everyone = moe(kimi_linear(num_experts=4, num_experts_per_token=4))
    chosen, _, stats = everyone.gate(x)
    assert chosen.sort(dim=1).values.equal(torch.arange(4).expand(50, 4)) and (stats.cutoff == -torch.inf).all()
