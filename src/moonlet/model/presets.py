"""Configurations by name: the three published Kimi models, and K3-shaped ones for machines that people own.

The published ones are the text configs of their config.json (checked specification), under the published keys. `laptop`
is the Kimi Linear form that benchmarks/train_step.py measures. `24gb` and `128gb` follow K3's ratios (latent = half of
hidden, expert width 0.86 of it, MLA on each fourth layer and the last, about 8 blocks of AttnRes) and are as large as
experts in 4 bits, the rest in bf16 and a cache of 128 K tokens leave room for.
"""

from typing import Any

from moonlet.model.config import ModelConfig, for_depth, from_dict

MLA = {"kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128}
ROUTING = {"use_grouped_topk": True, "num_expert_group": 1, "topk_group": 1, "moe_layer_freq": 1}


def layers(count: int, full: list[int]) -> dict[str, list[int]]:
    return {"kda_layers": [i for i in range(1, count + 1) if i not in full], "full_attn_layers": full}


K3_TEXT: dict[str, Any] = {
    "model_type": "kimi_linear",
    "architectures": ["KimiLinearForCausalLM"],
    "vocab_size": 163840,
    "hidden_size": 7168,
    "intermediate_size": 33792,
    "num_hidden_layers": 93,
    "num_attention_heads": 96,
    "num_key_value_heads": 96,
    "head_dim": 128,
    "hidden_act": "situ",
    "activation_situ_beta": 4.0,
    "activation_situ_linear_beta": 25.0,
    "rms_norm_eps": 1e-5,
    "initializer_range": 0.02,
    "max_position_embeddings": 1048576,
    "bos_token_id": 163584,
    "eos_token_id": 163586,
    "pad_token_id": 163839,
    "q_lora_rank": 1536,
    **MLA,
    "mla_use_nope": True,
    "mla_use_output_gate": True,
    "num_experts": 896,
    "num_experts_per_token": 16,
    "num_shared_experts": 2,
    "moe_intermediate_size": 3072,
    "routed_expert_hidden_size": 3584,
    "latent_moe_use_norm": True,
    "moe_renormalize": True,
    "moe_router_activation_func": "sigmoid",
    "topk_method": "noaux_tc",
    **ROUTING,
    "routed_scaling_factor": 1.0,
    "first_k_dense_replace": 1,
    "attn_res_block_size": 12,
    "num_nextn_predict_layers": 0,
    "linear_attn_config": {
        **layers(93, [*range(4, 93, 4), 93]),
        "num_heads": 96,
        "head_dim": 128,
        "short_conv_kernel_size": 4,
        "use_full_rank_gate": True,
        "gate_lower_bound": -5.0,
    },
}
K3: dict[str, Any] = {
    "model_type": "kimi_k3",
    "architectures": ["KimiK3ForConditionalGeneration"],
    "text_config": K3_TEXT,
    "vision_config": {"vt_num_hidden_layers": 27},
    "media_placeholder_token_id": 163605,
    "tie_word_embeddings": False,
}

KIMI_LINEAR: dict[str, Any] = {
    "model_type": "kimi_linear",
    "architectures": ["KimiLinearForCausalLM"],
    "vocab_size": 163840,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "moe_intermediate_size": 1024,
    "num_hidden_layers": 27,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "head_dim": 72,
    "q_lora_rank": None,
    **MLA,
    "mla_use_nope": True,
    "hidden_act": "silu",
    "num_experts": 256,
    "num_experts_per_token": 8,
    "num_shared_experts": 1,
    "moe_router_activation_func": "sigmoid",
    "moe_renormalize": True,
    "routed_scaling_factor": 2.446,
    **ROUTING,
    "first_k_dense_replace": 1,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "model_max_length": 1048576,
    "initializer_range": 0.02,
    "tie_word_embeddings": False,
    "num_nextn_predict_layers": 0,
    "bos_token_id": 163584,
    "eos_token_id": 163586,
    "pad_token_id": 163839,
    "linear_attn_config": {
        **layers(27, [4, 8, 12, 16, 20, 24, 27]),
        "head_dim": 128,
        "num_heads": 32,
        "short_conv_kernel_size": 4,
    },
}

K2: dict[str, Any] = {
    "model_type": "kimi_k2",
    "architectures": ["DeepseekV3ForCausalLM"],
    "vocab_size": 163840,
    "hidden_size": 7168,
    "num_hidden_layers": 61,
    "num_attention_heads": 64,
    "num_key_value_heads": 64,
    "q_lora_rank": 1536,
    **MLA,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "n_routed_experts": 384,
    "num_experts_per_tok": 8,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "topk_method": "noaux_tc",
    "scoring_func": "sigmoid",
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.827,
    "first_k_dense_replace": 1,
    "moe_layer_freq": 1,
    "seq_aux": True,
    "aux_loss_alpha": 0.001,
    "rope_theta": 50000.0,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "max_position_embeddings": 131072,
    "tie_word_embeddings": False,
    "num_nextn_predict_layers": 0,
    "bos_token_id": 163584,
    "eos_token_id": 163585,
    "rope_scaling": {
        "type": "yarn",
        "factor": 32.0,
        "original_max_position_embeddings": 4096,
        "beta_fast": 1.0,
        "beta_slow": 1.0,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
    },
}


def k3_shaped(hidden: int, depth: int, experts: int, chosen: int, block: int) -> dict[str, Any]:
    """K3's form at another size; heads of 128."""
    heads = hidden // 128
    return {
        **K3_TEXT,
        "hidden_size": hidden,
        "intermediate_size": 128 * round(4.71 * hidden / 128),
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "q_lora_rank": 128 * max(1, round(0.214 * hidden / 128)),
        "num_experts": experts,
        "num_experts_per_token": chosen,
        "moe_intermediate_size": 128 * round(0.857 * hidden / 2 / 128),
        "routed_expert_hidden_size": hidden // 2,
        "attn_res_block_size": block,
        "linear_attn_config": {
            **K3_TEXT["linear_attn_config"],
            **layers(depth, sorted({*range(4, depth, 4), depth})),
            "num_heads": heads,
        },
    }


LAPTOP = {
    **KIMI_LINEAR,
    "vocab_size": 8192,
    "hidden_size": 384,
    "intermediate_size": 1024,
    "moe_intermediate_size": 128,
    "num_hidden_layers": 8,
    "num_attention_heads": 6,
    "num_key_value_heads": 6,
    "kv_lora_rank": 128,
    "qk_nope_head_dim": 64,
    "qk_rope_head_dim": 32,
    "v_head_dim": 64,
    "num_experts": 16,
    "num_experts_per_token": 4,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
    "linear_attn_config": {**layers(8, [4, 8]), "head_dim": 64, "num_heads": 6, "short_conv_kernel_size": 4},
}
PRESETS: dict[str, dict[str, Any] | None] = {
    "nano": None,
    "laptop": LAPTOP,
    "24gb": k3_shaped(2048, 28, 448, 12, 4),
    "128gb": k3_shaped(3072, 36, 464, 16, 5),
    "kimi-linear-48b": KIMI_LINEAR,
    "kimi-k2": K2,
    "kimi-k3": K3,
}


def preset(name: str) -> ModelConfig:
    """The configuration of a preset; nano is the quickstart's model."""
    raw = PRESETS[name]
    return for_depth(4, 2048) if raw is None else from_dict(raw)
