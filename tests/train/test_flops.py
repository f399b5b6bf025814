"""FLOP and byte counts against the parameters that a token meets and what a step keeps, and the measured peaks."""

import pytest
import torch
from small_models import k2, k3, kimi_linear

from moonlet.model.attn_res import AttnResMix
from moonlet.model.config import ModelConfig
from moonlet.model.model import Model
from moonlet.model.sizes import activations
from moonlet.train.flops import (
    Cost,
    costs,
    depth_sources,
    forward_flops,
    gemm_gflops,
    read_gigabytes,
    training_flops,
)


def active_weights(c: ModelConfig) -> float:
    """Multiply-adds of one token with the weights: every matrix once, k of the E experts, no embedding, no queries."""
    total = 0.0
    for name, p in Model(c).named_parameters():
        if ".experts." in name:
            total += p.numel() * c.num_experts_per_token / c.num_experts
        elif p.ndim >= 2 and name != "embed_tokens.weight" and "res.proj" not in name:
            total += p.numel()
    return total


@pytest.mark.parametrize("form", [k3, kimi_linear, k2, lambda: k2(q_lora_rank=None)])
def test_weights_are_all_counted(form) -> None:  # type: ignore[no-untyped-def]
    c = form()
    layers = sum(c.is_kda(i) for i in range(c.num_hidden_layers))
    H, K, C = c.kda("num_heads", 0), c.kda("head_dim", 0), 16
    # Per token and head in tiles of 16: both A, the inverse, W and U, A V, and four products with the state.
    inner = H * (2 * 2 * C * K + 12 * C * C + 2 * C * (K + K) + 2 * C * K + 4 * 2 * K * K)
    bus = 4 * c.hidden_size * depth_sources(c)
    assert sum(forward_flops(c, 0.0).values()) == pytest.approx(2 * active_weights(c) + layers * inner + bus)


def test_parts() -> None:
    c = k2()
    short, long = forward_flops(c, 10.0), forward_flops(c, 30.0)
    heads = c.num_attention_heads * (c.qk_nope_head_dim + c.qk_rope_head_dim + c.v_head_dim)
    assert long["mla"] - short["mla"] == 4 * 2 * 20 * heads  # 4 layers, scores and values of 20 more keys
    assert {k for k in short if short[k] != long[k]} == {"mla"}
    assert forward_flops(c, 0.0, target_share=0.25)["head"] == 0.25 * 2 * 32 * 48
    assert training_flops(c, 100, 10.0) == 300 * sum(short.values())


def test_gemm_peak() -> None:
    threads = torch.get_num_threads()
    assert gemm_gflops(1, seconds=0.05) > 0.1
    assert torch.get_num_threads() == threads


def test_reads_of_the_depth_bus() -> None:
    """Counted where the model makes them."""
    c, seen = k3(), []
    model = Model(c)
    for module in model.modules():
        if isinstance(module, AttnResMix):
            module.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    model(torch.zeros(1, 3, dtype=torch.long))
    assert depth_sources(c) == sum(n for n in seen if n > 1) and depth_sources(kimi_linear()) == 0


@pytest.mark.parametrize("form", [k3, kimi_linear, k2])
def test_costs(form) -> None:  # type: ignore[no-untyped-def]
    """Forward reads every matrix once and writes what is kept; a longer pass keeps more and reads the same."""
    c = form()
    one, two = costs(c, 1000, 10.0), costs(c, 2000, 10.0)
    assert one.keys() == {kind for kind, flops in forward_flops(c, 10.0).items() if flops}
    assert sum(sum(cost.flops) for cost in one.values()) == pytest.approx(training_flops(c, 1000, 10.0))
    read = sum(2 * a.bytes[0] - b.bytes[0] for a, b in zip(one.values(), two.values())) / 4
    matrices = sum(p.numel() for p in Model(c).parameters()) - c.vocab_size * c.hidden_size
    assert read == pytest.approx(matrices, rel=0.05)  # single norms and gates are not counted with a part
    kept = sum(b.bytes[0] - a.bytes[0] for a, b in zip(one.values(), two.values())) / 4000
    assert kept == pytest.approx(activations(c))
    assert all(cost.bytes[1] > cost.bytes[0] for cost in one.values())
    few = costs(c, 1, 10.0)["experts"].bytes[0]
    assert few < costs(c, 3, 10.0)["experts"].bytes[0]  # one token meets k experts, not all


def test_least_time_is_that_of_the_slower_resource() -> None:
    cost = Cost((2e9, 4e9), (1e9, 9e9))
    assert cost.seconds(gflops=2.0, gigabytes=1.0) == 1 + 9 and cost.seconds(gflops=1.0, gigabytes=10.0) == 2 + 4


def test_read_bandwidth() -> None:
    assert 0.1 < read_gigabytes(1, seconds=0.05, size=2**24) < 1e4
