"""How large a model is, from its config alone: parameters by part, the cache, and what a training step keeps.

Counted on torch's meta device, so a model of trillions of parameters takes seconds and no memory. The cache of a
sequence: MLA keeps kv_lora_rank + rope numbers a token and layer, KDA one state [H, K, K] and its convolution tail a
layer whatever the length. Kept for the backward pass are the tensors that the native kernels save (fp32), beside the
logits; a layer keeps its inputs to each sublayer and projection, and never [T, T] weights.
"""

from collections import Counter

import torch

from moonlet.model.config import ModelConfig
from moonlet.model.kernels.kda.native import BLOCK, TILE
from moonlet.model.model import Layer

PARTS = (
    "embedding and head",
    "KDA",
    "MLA",
    "dense FFN",
    "router",
    "routed experts",
    "shared experts",
    "latent",
    "norms",
)


def layers(c: ModelConfig) -> list[tuple[Layer, int]]:
    """One layer of each kind, without memory, and how many there are of it."""
    kinds = [(c.is_kda(i), c.is_moe(i)) for i in range(c.num_hidden_layers)]
    with torch.device("meta"):
        return [(Layer(c, kinds.index(kind)), number) for kind, number in Counter(kinds).items()]


def part_of(name: str, c: ModelConfig, layer: int) -> str:
    """The part of the table that a layer's parameter belongs to."""
    if "experts" in name:
        return "shared experts" if "shared" in name else "routed experts"
    if "routed_expert" in name:
        return "latent"
    if ".gate.weight" in name:
        return "router"
    if name.startswith("self_attn."):
        return "KDA" if c.is_kda(layer) else "MLA"
    return "dense FFN" if name.startswith("mlp.") else "norms"


def parameters(c: ModelConfig) -> dict[str, int]:
    """Parameters by part."""
    found = dict.fromkeys(PARTS, 0)
    for layer, number in layers(c):
        for name, p in layer.named_parameters():
            found[part_of(name, c, layer.index)] += number * p.numel()
    found["embedding and head"] = 2 * c.vocab_size * c.hidden_size
    found["norms"] += c.hidden_size * (1 if c.attn_res_block_size is None else 3)
    return found


def active(parts: dict[str, int], c: ModelConfig) -> dict[str, int]:
    """Parameters that one token meets: the chosen experts, and no embedding row but its own."""
    share = c.num_experts_per_token / c.num_experts if c.num_experts else 1.0
    out = {**parts, "routed experts": round(parts["routed experts"] * share)}
    return {**out, "embedding and head": parts["embedding and head"] // 2}


def cache_numbers(c: ModelConfig) -> tuple[int, int]:
    """Numbers that a sequence's cache holds: (a token, MLA; a sequence whatever its length, KDA)."""
    token = sequence = 0
    for i in range(c.num_hidden_layers):
        if c.is_kda(i):
            H, K = c.kda("num_heads"), c.kda("head_dim")
            sequence += H * K * K + (c.kda("short_conv_kernel_size", 4) - 1) * 3 * H * K
        else:
            token += c.kv_lora_rank + c.qk_rope_head_dim
    return token, sequence


def activations(c: ModelConfig) -> float:
    """fp32 numbers a token that a training step keeps until its backward pass, with logits for every token."""
    kept: float = 2 * c.hidden_size + c.vocab_size  # the last norm and the logits
    for i in range(c.num_hidden_layers):
        kept += 4 * c.hidden_size  # the residual stream before and after each norm
        kept += kda_activations(c) if c.is_kda(i) else mla_activations(c)
        kept += moe_activations(c) if c.is_moe(i) else 3 * c.intermediate_size
    return kept


def kda_activations(c: ModelConfig) -> float:
    H, K = c.kda("num_heads"), c.kda("head_dim")
    C = H * K
    states = H * K * -(-K // BLOCK) * BLOCK / TILE
    low_rank = K if c.kda("use_full_rank_gate") else 2 * K
    # before the convolution 3 C; q, k, u; decay raw and done; o, its gate, both joined; beta
    return 3 * C + 3 * C + 2 * C + 3 * C + states + low_rank + H


def mla_activations(c: ModelConfig) -> float:
    H, P, R, V = c.num_attention_heads, c.qk_nope_head_dim, c.qk_rope_head_dim, c.v_head_dim
    query = H * (P + R) + 2 * (c.q_lora_rank or 0)
    keys = 2 * c.kv_lora_rank + H * (P + V) + R * (1 if c.mla_use_nope else 3)
    return query + keys + H + H * V * (3 if c.mla_use_output_gate else 1)


def moe_activations(c: ModelConfig) -> float:
    E, k, L = c.num_experts, c.num_experts_per_token, c.routed_expert_hidden_size or 0
    norm = L * (2 if c.latent_moe_use_norm else 1)
    routing = E + 2 * (k + 1) + (2 * k + 1 if c.moe_renormalize else k) + 2 * k  # int64 counts twice
    return routing + 2 * k * c.moe_intermediate_size + L + norm + 3 * c.num_shared_experts * c.moe_intermediate_size
