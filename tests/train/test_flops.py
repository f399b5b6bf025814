"""FLOP counts against the parameters that a token meets, and the measured peak."""

import pytest
import torch
from small_models import k2, k3, kimi_linear

from moonlet.model.config import ModelConfig
from moonlet.model.model import Model
from moonlet.train.flops import forward_flops, gemm_gflops, training_flops


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
    assert sum(forward_flops(c, 0.0).values()) == pytest.approx(2 * active_weights(c) + layers * inner)


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
