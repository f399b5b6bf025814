"""Work of the model by part, in FLOPs and bytes, and what this machine can do at most: MFU and the roofline of a step.

FLOPs: multiply-adds of matrix products, 2 each, per token; backward has two products for each one of forward. KDA in
tiles of C = 16: per head A_qk and A_kk (2 C K each), the inverse (12 C^2), W and U (2 C (K + V)), A_qk V~ (2 C V) and
four products with the state (2 K V each). AttnRes: score and mix of every source. Left out: elementwise work.
Bytes (fp32): what has to cross the memory bus however well a step is written. Forward reads each weight and writes what
it keeps; backward reads both and writes a gradient of every weight. Temporaries are taken to stay in the cache.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from moonlet.model import sizes
from moonlet.model.config import ModelConfig

TILE = 16
KINDS = ("kda", "mla", "dense", "experts", "shared", "router", "attn_res", "head")


def forward_flops(c: ModelConfig, context: float, target_share: float = 1.0) -> dict[str, float]:
    """Forward FLOPs per token by part. context: mean number of keys seen; target_share: tokens that reach the head."""
    d, parts = c.hidden_size, dict.fromkeys(KINDS, 0.0)
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
    parts["attn_res"] = 2 * 2 * d * depth_sources(c)
    parts["head"] = 2 * d * c.vocab_size * target_share
    return parts


def depth_sources(c: ModelConfig) -> int:
    """Sources that all reads of the depth bus mix; a lone source is no mix."""
    if c.attn_res_block_size is None:
        return 0
    banked, total = 0, 0
    for i in range(c.num_hidden_layers):
        total += banked + 1 if banked else 0
        banked += i % c.attn_res_block_size == 0
        total += banked + 1
    return total + banked + 1


def training_flops(c: ModelConfig, tokens: float, context: float, target_share: float = 1.0) -> float:
    """FLOPs of forward and backward over `tokens`."""
    return 3 * tokens * sum(forward_flops(c, context, target_share).values())


@dataclass
class Cost:
    """Of one part and one pass; (forward, backward) each."""

    flops: tuple[float, float]
    bytes: tuple[float, float]

    def seconds(self, gflops: float, gigabytes: float) -> float:
        """The least time of both passes at `gflops` and `gigabytes` a second."""
        return sum(max(f / gflops, b / gigabytes) / 1e9 for f, b in zip(self.flops, self.bytes))


def costs(c: ModelConfig, tokens: int, context: float, target_share: float = 1.0) -> dict[str, Cost]:
    """What one forward and backward pass over `tokens` costs, by part; parts that the form lacks are left out."""
    flops, weights, kept = forward_flops(c, context, target_share), sizes.parameters(c), dict.fromkeys(KINDS, 0.0)
    bus = c.attn_res_block_size is not None
    stream = 0 if bus else 2 * c.hidden_size  # of a sublayer, before and after its norm
    for i in range(c.num_hidden_layers):
        inside = sizes.kda_activations(c) if c.is_kda(i) else sizes.mla_activations(c)
        kept["kda" if c.is_kda(i) else "mla"] += stream + inside
        if c.is_moe(i):
            shared = 3 * c.num_shared_experts * c.moe_intermediate_size
            kept["shared"] += shared
            kept["router"] += c.num_experts
            kept["experts"] += stream + sizes.moe_activations(c) - shared - c.num_experts
        else:
            kept["dense"] += stream + 3 * c.intermediate_size
    kept["attn_res"] = 4 * c.hidden_size * c.num_hidden_layers if bus else 0
    kept["head"] = 2 * c.hidden_size + target_share * c.vocab_size
    met = min(1.0, tokens * c.num_experts_per_token / c.num_experts) if c.num_experts else 0.0
    read = {
        "kda": weights["KDA"],
        "mla": weights["MLA"],
        "dense": weights["dense FFN"],
        "experts": met * weights["routed experts"] + weights["latent"],
        "shared": weights["shared experts"],
        "router": weights["router"],
        "attn_res": 2 * c.hidden_size * (2 * c.num_hidden_layers + 1) if bus else 0,
        "head": c.vocab_size * c.hidden_size,
    }
    return {
        kind: Cost(
            (tokens * flops[kind], 2 * tokens * flops[kind]),
            (4 * (read[kind] + tokens * kept[kind]), 4 * (2 * read[kind] + tokens * kept[kind])),
        )
        for kind in KINDS
        if flops[kind]
    }


def best_rate(run: Callable[[], object], amount: float, threads: int, seconds: float) -> float:
    """`amount` over the least time of `run` on so many threads, repeated for `seconds`."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    best, end = 0.0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        run()
        best = max(best, amount / (time.perf_counter() - start))
    torch.set_num_threads(before)
    return best


def gemm_gflops(threads: int, seconds: float = 0.5, dtype: torch.dtype = torch.float32) -> float:
    """Measured matrix-product peak of this machine, GFLOP/s: best of repeated 1024 x 1024 x 1024 products."""
    a, b = torch.randn(1024, 1024, dtype=dtype), torch.randn(1024, 1024, dtype=dtype)
    return best_rate(lambda: a @ b, 2 * 1024**3 / 1e9, threads, seconds)


def read_gigabytes(threads: int, seconds: float = 0.5, size: int = 2**28) -> float:
    """Measured read bandwidth of the memory, GB/s: best of repeated sums over `size` bytes, far beyond the cache."""
    x = torch.ones(size // 4)
    return best_rate(x.sum, size / 1e9, threads, seconds)
