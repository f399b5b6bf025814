"""What llama.cpp calls a model: its architecture (kimi-k3, kimi-linear, or deepseek2 for the K2 form), its
hyperparameters, and where llama.cpp computes otherwise.

Each architecture builds one form. Rotated pairs are neighbours in both programs, so no row is moved. YaRN: llama.cpp
multiplies cos and sin by a = attn_factor and the attention's logits by (a (1 + L ln factor))^2, L being
yarn_log_multiplier; a and L follow from our two factors, whichever mscales they came from. One difference is not the
config's: llama.cpp divides the chosen experts' scores by no less than 2^-14, so a token that they all reject gets less.
"""

import math
from dataclasses import replace
from typing import Any

import torch

from moonlet.errors import InputError
from moonlet.model.config import ModelConfig
from moonlet.model.rope import inverse_frequencies, softmax_scale

SIGMOID = 2  # llama.cpp's number of the router's function
BETAS = {"beta_fast": 32.0, "beta_slow": 1.0}  # what its deepseek2 uses whatever the file says


def arch(c: ModelConfig) -> str:
    """The architecture of this form; InputError, naming the keys, where llama.cpp builds no such model."""
    kda = {c.is_kda(i) for i in range(c.num_hidden_layers)}
    k3 = {
        "attn_res_block_size": c.attn_res_block_size is not None,
        "gate_lower_bound": c.kda("gate_lower_bound") is not None,
        "use_full_rank_gate": bool(c.kda("use_full_rank_gate")),
        "routed_expert_hidden_size": c.routed_expert_hidden_size is not None,
        "mla_use_output_gate": c.mla_use_output_gate,
        "hidden_act": c.hidden_act == "situ",
    }
    name = "deepseek2" if kda == {False} else "kimi-k3" if sum(k3.values()) > len(k3) / 2 else "kimi-linear"
    fits = {key: there == (name == "kimi-k3") for key, there in k3.items()}
    fits["mla_use_nope"] = c.mla_use_nope == (name != "deepseek2")
    fits["moe_layer_freq"] = c.moe_layer_freq == 1
    fits["num_shared_experts"] = c.num_shared_experts > 0 or not c.num_experts or name == "kimi-k3"
    if name == "deepseek2":  # these depths (and this one vocabulary) mean "without q-LoRA" to it
        lite = c.num_hidden_layers in (26, 27) or (c.num_hidden_layers, c.vocab_size) == (48, 128256)
        fits["q_lora_rank"] = c.q_lora_rank is None or not lite
    else:
        fits["full_attn_layers"] = kda == {True, False}
        fits["num_heads"] = c.kda("num_heads") == c.num_attention_heads
    if name == "kimi-linear":
        fits["q_lora_rank"] = c.q_lora_rank is None
        fits["moe_renormalize"] = c.moe_renormalize
    wrong = [f"{key}={c.kda(key, getattr(c, key, None))!r}" for key, right in fits.items() if not right]
    if wrong:
        raise InputError(f"llama.cpp's nearest architecture, {name}, builds no model with {', '.join(wrong)}")
    return name


def differences(c: ModelConfig) -> list[str]:
    """Where llama.cpp will compute something else than this model, in words."""
    said = []
    found = {"rms_norm_eps": c.rms_norm_eps, "mla_norm_eps": c.mla_norm_eps}
    if arch(c) != "deepseek2":
        found["l2_eps"] = c.l2_eps
    if len({*found.values()}) > 1:
        listed = ", ".join(f"{name} {value:g}" for name, value in found.items())
        said.append(f"epsilons differ ({listed}); llama.cpp has one, {c.rms_norm_eps:g} here: logits differ a little")
    if not c.mla_use_nope and c.rope_scaling:
        with_its_own = replace(c, rope_scaling={**c.rope_scaling, **BETAS})
        if not torch.equal(inverse_frequencies(c)[0], inverse_frequencies(with_its_own)[0]):
            fast, slow = (float(c.rope_scaling.get(key) or default) for key, default in BETAS.items())
            said.append(
                f"llama.cpp does not read YaRN's betas from the file: give it --yarn-beta-fast {fast:g} "
                f"--yarn-beta-slow {slow:g}, or it turns by other frequencies and its answers are wrong"
            )
    return said


def keys(c: ModelConfig) -> dict[str, Any]:
    """The file's hyperparameters, by their name behind the architecture's."""
    name = arch(c)
    kda = [c.is_kda(i) for i in range(c.num_hidden_layers)]
    out: dict[str, Any] = {
        "block_count": c.num_hidden_layers,
        "context_length": c.max_position_embeddings,
        "embedding_length": c.hidden_size,
        "feed_forward_length": c.intermediate_size,
        "vocab_size": c.vocab_size,
        "attention.head_count": c.num_attention_heads,
        "attention.head_count_kv": 1 if name == "deepseek2" else [0 if is_kda else 1 for is_kda in kda],
        "attention.layer_norm_rms_epsilon": float(c.rms_norm_eps),
        "attention.kv_lora_rank": c.kv_lora_rank,
        "attention.key_length": c.kv_lora_rank + c.qk_rope_head_dim,
        "attention.value_length": c.kv_lora_rank,
        "attention.key_length_mla": c.qk_nope_head_dim + c.qk_rope_head_dim,
        "attention.value_length_mla": c.v_head_dim,
        "rope.dimension_count": c.qk_rope_head_dim,
        "leading_dense_block_count": c.first_k_dense_replace if c.num_experts else c.num_hidden_layers,
        "expert_count": c.num_experts,
        "expert_used_count": min(c.num_experts_per_token, c.num_experts),
        "expert_feed_forward_length": c.moe_intermediate_size,
        "expert_shared_count": c.num_shared_experts,
        "expert_weights_scale": float(c.routed_scaling_factor),
        "expert_gating_func": SIGMOID,
    }
    if name != "kimi-linear":
        out["expert_weights_norm"] = c.moe_renormalize
    if c.q_lora_rank is not None or name == "deepseek2":
        out["attention.q_lora_rank"] = c.q_lora_rank or 0
    if name == "deepseek2":
        return out | rope_keys(c)
    out |= {"ssm.conv_kernel": c.kda("short_conv_kernel_size", 4), "kda.head_dim": c.kda("head_dim")}
    if name == "kimi-k3":
        out |= {
            "expert_latent_length": c.routed_expert_hidden_size,
            "attn_res.block_size": c.attn_res_block_size,
            "activation.situ_beta": float(c.activation_situ_beta),
            "activation.situ_linear_beta": float(c.activation_situ_linear_beta or 0.0),
            "kda.gate_lower_bound": float(c.kda("gate_lower_bound")),
        }
    return out


def rope_keys(c: ModelConfig) -> dict[str, Any]:
    out: dict[str, Any] = {"rope.freq_base": float(c.rope_theta)}
    s = c.rope_scaling
    if s:
        factor, turned = float(s["factor"]), inverse_frequencies(c)[1]
        scaled = softmax_scale(c) * math.sqrt(c.qk_nope_head_dim + c.qk_rope_head_dim)
        out |= {
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": factor,
            "rope.scaling.original_context_length": s["original_max_position_embeddings"],
            "rope.scaling.attn_factor": turned,
        }
        out |= {f"rope.scaling.yarn_{key}": float(s.get(key) or default) for key, default in BETAS.items()}
        if factor > 1:  # 0 would be taken for a missing key
            out["rope.scaling.yarn_log_multiplier"] = (math.sqrt(scaled) / turned - 1) / math.log(factor) or 1e-9
    return out
