"""Model shapes that several benchmarks share, and what a step of decoding reads of them."""

import time

import torch

from moonlet.engine.packed import PackedModel
from moonlet.model import sizes
from moonlet.model.config import ModelConfig
from moonlet.model.model import Model


def kimi(full_attention: bool = True) -> ModelConfig:
    """Kimi Linear's form, KDA:MLA 3:1, 698 M parameters, 146 M active; or KDA layers alone."""
    full = [4, 8, 12] if full_attention else []
    return ModelConfig(
        vocab_size=32768,
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=12,
        num_attention_heads=8,
        kv_lora_rank=512,
        qk_nope_head_dim=128,
        qk_rope_head_dim=64,
        v_head_dim=128,
        linear_attn_config={
            "kda_layers": [i for i in range(1, 13) if i not in full],
            "full_attn_layers": full,
            "head_dim": 128,
            "num_heads": 8,
            "short_conv_kernel_size": 4,
        },
        num_experts=64,
        num_experts_per_token=4,
        num_shared_experts=1,
        moe_intermediate_size=256,
        routed_scaling_factor=2.446,
    )


def dense() -> ModelConfig:
    """K2's form without experts, 1.03 B parameters."""
    return ModelConfig(
        model_type="deepseek_v3",
        vocab_size=32768,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=14,
        num_attention_heads=16,
        kv_lora_rank=512,
        qk_nope_head_dim=128,
        qk_rope_head_dim=64,
        v_head_dim=128,
        mla_use_nope=False,
    )


def read_bandwidth(seconds: float = 1.0) -> float:
    """Bytes a second of reading 1 GiB with all threads: the best of repeated sums."""
    x, best, end = torch.ones(2**27, dtype=torch.int64), 0.0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        began = time.perf_counter()
        x.sum()
        best = max(best, x.nbytes / (time.perf_counter() - began))
    return best


def step_bytes(model: Model, packed: PackedModel, streams: int, context: int = 0) -> float:
    """Of a step: the weights once, experts by the number that `streams` tokens are expected to choose; each stream's
    KDA state, read and written, and its latents of `context` tokens."""
    c, total = model.config, 0.0
    expected = 1 - (1 - c.num_experts_per_token / max(1, c.num_experts)) ** streams
    for kept in packed.kept:
        if isinstance(kept, torch.Tensor) and kept.data_ptr() != model.embed_tokens.weight.data_ptr():
            stacked = kept.ndim == 2 and len(kept) == c.num_experts
            total += kept.nbytes * (expected if stacked else 1)
    token, sequence = sizes.cache_numbers(c)
    return total + streams * 4 * (2 * sequence + context * token)
