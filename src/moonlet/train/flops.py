"""FLOPs of the model by part, and this machine's GEMM peak: together they give MFU on any device.

Counted: multiply-adds of matrix products, 2 FLOPs each, per token, forward; a training step is three times that
(backward = two products for each one). KDA in tiles of C = 16: per head A_qk and A_kk (2 C K each), the inverse
(12 C^2), W and U (2 C (K + V)), A_qk V~ (2 C V) and four products with the state (2 K V each). Left out:
elementwise work.
"""

import time

import torch

from moonlet.model.config import ModelConfig

TILE = 16


def forward_flops(c: ModelConfig, context: float, target_share: float = 1.0) -> dict[str, float]:
    """Forward FLOPs per token by part. context: mean number of keys seen; target_share: tokens that reach the head."""
    d, parts = c.hidden_size, {"kda": 0.0, "mla": 0.0, "dense": 0.0, "experts": 0.0, "shared": 0.0, "router": 0.0}
    for i in range(c.num_hidden_layers):
        if c.is_kda(i):
            H, K = c.kda("num_heads"), c.kda("head_dim")
            gate = d * H * K if c.kda("use_full_rank_gate") else d * K + K * H * K
            weights = 4 * d * H * K + gate + d * K + K * H * K + d * H + 3 * H * K * c.kda("short_conv_kernel_size", 4)
            inner = H * (2 * TILE * 2 * K + 12 * TILE * TILE + 2 * TILE * 2 * K + 2 * TILE * K + 4 * 2 * K * K)
            parts["kda"] += 2 * weights + inner
        else:
            H, qk = c.num_attention_heads, c.qk_nope_head_dim + c.qk_rope_head_dim
            r = c.q_lora_rank
            query = d * H * qk if r is None else d * r + r * H * qk
            keys = d * (c.kv_lora_rank + c.qk_rope_head_dim) + c.kv_lora_rank * H * (c.qk_nope_head_dim + c.v_head_dim)
            out = H * c.v_head_dim * d * (2 if c.mla_use_output_gate else 1)
            parts["mla"] += 2 * (query + keys + out) + 2 * context * H * (qk + c.v_head_dim)
        if c.is_moe(i):
            latent = c.routed_expert_hidden_size
            parts["router"] += 2 * c.num_experts * d
            parts["experts"] += 2 * c.num_experts_per_token * 3 * (latent or d) * c.moe_intermediate_size
            parts["experts"] += 2 * 2 * d * latent if latent else 0
            parts["shared"] += 2 * 3 * d * c.num_shared_experts * c.moe_intermediate_size
        else:
            parts["dense"] += 2 * 3 * d * c.intermediate_size
    parts["head"] = 2 * d * c.vocab_size * target_share
    return parts


def training_flops(c: ModelConfig, tokens: float, context: float, target_share: float = 1.0) -> float:
    """FLOPs of forward and backward over `tokens`."""
    return 3 * tokens * sum(forward_flops(c, context, target_share).values())


def gemm_gflops(threads: int, seconds: float = 0.5) -> float:
    """Measured fp32 matrix-product peak of this machine, GFLOP/s: best of repeated 1024 x 1024 x 1024 products."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    best, end = 0.0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        a @ b
        best = max(best, 2 * 1024**3 / (time.perf_counter() - start) / 1e9)
    torch.set_num_threads(before)
    return best
