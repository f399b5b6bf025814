"""Model configuration under the published keys (K3, Kimi Linear and K2/DeepSeek-V3 config.json), torch-free.

Presence switches a part on, as in the published configs: `linear_attn_config` turns layers into KDA,
`routed_expert_hidden_size` makes the experts latent, `attn_res_block_size` replaces the plain residual,
`gate_lower_bound` chooses K3's bounded decay. Layer lists are 1-based, as published. `for_depth` derives a whole
K3-shaped configuration from one number. Left out: vision, multi-token prediction, group-limited routing (all
published Kimi models have one group).
"""

from __future__ import annotations

import json
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any

from moonlet.errors import InputError, nearest

# Other spellings of the same key, as transformers and the K2 config write them.
ALIASES = {
    "n_routed_experts": "num_experts",
    "num_local_experts": "num_experts",
    "num_experts_per_tok": "num_experts_per_token",
    "n_shared_experts": "num_shared_experts",
    "n_group": "num_expert_group",
    "norm_topk_prob": "moe_renormalize",
    "model_max_length": "max_position_embeddings",
}
# What the K2 (DeepSeek-V3) config calls the keys that Kimi Linear and K3 renamed.
K2_SPELLING = {
    "num_experts": "n_routed_experts",
    "num_experts_per_token": "num_experts_per_tok",
    "num_shared_experts": "n_shared_experts",
    "num_expert_group": "n_group",
    "moe_renormalize": "norm_topk_prob",
}
# Keys whose null says something: without them transformers and from_dict would fill in a number.
NULLABLE = {"q_lora_rank", "activation_situ_linear_beta", "bos_token_id", "eos_token_id", "pad_token_id"}
# Choices of the published configs of which one is built.
BUILT = {
    "tie_word_embeddings": False,
    "attention_bias": False,
    "rope_interleave": True,
    "scoring_func": "sigmoid",
    "moe_router_activation_func": "sigmoid",
}
LINEAR_KEYS = {
    "kda_layers",
    "full_attn_layers",
    "head_dim",
    "num_heads",
    "short_conv_kernel_size",
    "use_full_rank_gate",
    "gate_lower_bound",
}

WHOLE = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "kv_lora_rank",
    "qk_nope_head_dim",
    "qk_rope_head_dim",
    "v_head_dim",
    "moe_layer_freq",
)
OPTIONAL_WHOLE = ("q_lora_rank", "routed_expert_hidden_size", "attn_res_block_size")
POSITIVE = ("rms_norm_eps", "mla_norm_eps", "l2_eps", "activation_situ_beta", "rope_theta")


@dataclass
class ModelConfig:
    """One text model. Shapes in elements; layer numbers in `linear_attn_config` are 1-based."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    model_type: str = "kimi_linear"
    q_lora_rank: int | None = None
    mla_use_nope: bool = True
    mla_use_output_gate: bool = False
    rope_theta: float = 10000.0
    rope_scaling: dict[str, Any] | None = None
    linear_attn_config: dict[str, Any] | None = None
    num_experts: int = 0
    num_experts_per_token: int = 1
    num_shared_experts: int = 0
    moe_intermediate_size: int = 0
    routed_expert_hidden_size: int | None = None
    latent_moe_use_norm: bool = True
    moe_renormalize: bool = True
    routed_scaling_factor: float = 1.0
    first_k_dense_replace: int = 1
    moe_layer_freq: int = 1
    num_expert_group: int = 1
    topk_group: int = 1
    hidden_act: str = "silu"
    activation_situ_beta: float = 4.0
    activation_situ_linear_beta: float | None = 25.0
    attn_res_block_size: int | None = None
    rms_norm_eps: float = 1e-5
    mla_norm_eps: float = 1e-6  # of MLA's low-rank norms
    l2_eps: float = 1e-6  # of KDA's queries and keys
    initializer_range: float = 0.02
    max_position_embeddings: int = 1048576
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    pad_token_id: int | None = None

    def __post_init__(self) -> None:
        check(self)

    def is_kda(self, layer: int) -> bool:
        """True where 0-based `layer` is a KDA layer, by the 1-based published list."""
        return (layer + 1) in self.kda("kda_layers", ())

    def is_moe(self, layer: int) -> bool:
        """True where 0-based `layer` has routed experts."""
        return self.num_experts > 0 and layer >= self.first_k_dense_replace and layer % self.moe_layer_freq == 0

    def kda(self, key: str, default: Any = None) -> Any:
        """A value of `linear_attn_config`."""
        return (self.linear_attn_config or {}).get(key, default)

    def to_dict(self) -> dict[str, Any]:
        """The config as published: every key that says something, as its family and transformers spell it."""
        values = {k: v for k, v in asdict(self).items() if v is not None or k in NULLABLE}
        values["num_key_value_heads"] = self.num_attention_heads
        values["model_max_length"] = self.max_position_embeddings
        values["use_grouped_topk"] = True  # of one group
        values["tie_word_embeddings"] = False
        values["topk_method"] = "noaux_tc"
        if is_k2(self):
            values = {K2_SPELLING.get(k, k): v for k, v in values.items()}
            return values | {
                "architectures": ["DeepseekV3ForCausalLM"],
                "scoring_func": "sigmoid",
                "rope_interleave": True,
                "num_nextn_predict_layers": 0,
            }
        return values | {"architectures": ["KimiLinearForCausalLM"], "moe_router_activation_func": "sigmoid"}


def is_k2(c: ModelConfig) -> bool:
    """True for the K2 form: DeepSeek-V3 names and keys, rotary positions."""
    return c.model_type in ("deepseek_v3", "kimi_k2")


def from_dict(raw: dict[str, Any]) -> ModelConfig:
    """Read a published config (nested `text_config` too); keys that do not shape the text model are passed over.

    InputError when a key is missing, out of bounds, or asks for a form that is not built here.
    """
    raw = dict(raw.get("text_config", raw))
    for key, built in BUILT.items():
        if raw.get(key, built) != built:
            raise InputError(f"model.{key}={raw[key]!r} is not supported: only {built!r} is")
    known = {f.name for f in fields(ModelConfig)}
    values = {}
    for key, value in raw.items():
        key = ALIASES.get(key, key)
        if key in known:
            values[key] = value
    if raw.get("model_type") in ("deepseek_v3", "kimi_k2"):
        values["mla_use_nope"] = False
        scaling = raw.get("rope_parameters") or raw.get("rope_scaling")
        if scaling:
            values["rope_theta"] = scaling.get("rope_theta", values.get("rope_theta", 10000.0))
            kind = scaling.get("rope_type", scaling.get("type", "default"))
            values["rope_scaling"] = None if kind == "default" else scaling
    missing = [f.name for f in fields(ModelConfig) if f.default is MISSING and f.name not in values]
    if missing:
        raise InputError(f"config lacks {', '.join(missing)}; is it config.json of a Kimi or DeepSeek-V3 text model?")
    return ModelConfig(**values)


def from_json(path: Path) -> ModelConfig:
    """Read `config.json`; InputError when it is not there or not JSON."""
    try:
        return from_dict(json.loads(Path(path).read_text()))
    except FileNotFoundError as error:
        raise InputError(f"{path} not found; a model folder holds config.json and model.safetensors") from error
    except json.JSONDecodeError as error:
        raise InputError(f"{path} is not JSON ({error}); write the model again") from error


def for_depth(depth: int, vocab_size: int, overrides: dict[str, Any] | None = None) -> ModelConfig:
    """A K3-shaped model from one dial.

    Rules (ratios of the K3 config, rounded to multiples of 32 so that 4-bit groups fit): hidden = 128 up to 5 layers,
    then 64 more every 4 layers; heads = hidden/32; MLA on every 4th layer and the last; latent = hidden/2;
    AttnRes block = about depth/2 up to 12.
    """
    hidden = 128 + 64 * max(0, (depth - 5 + 3) // 4)
    heads = hidden // 32
    full = sorted({*range(4, depth + 1, 4), depth})
    values: dict[str, Any] = {
        "model_type": "kimi_linear",
        "vocab_size": vocab_size,
        "hidden_size": hidden,
        "intermediate_size": 3 * hidden,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "q_lora_rank": hidden // 2,
        "kv_lora_rank": hidden // 2,
        "qk_nope_head_dim": 32,
        "qk_rope_head_dim": 16,
        "v_head_dim": 32,
        "mla_use_output_gate": True,
        "linear_attn_config": {
            "kda_layers": [i for i in range(1, depth + 1) if i not in full],
            "full_attn_layers": full,
            "head_dim": 32,
            "num_heads": heads,
            "short_conv_kernel_size": 4,
            "use_full_rank_gate": True,
            "gate_lower_bound": -5.0,
        },
        "num_experts": 8,
        "num_experts_per_token": 2,
        "num_shared_experts": 2,
        "moe_intermediate_size": hidden // 2,
        "routed_expert_hidden_size": hidden // 2,
        "hidden_act": "situ",
        "attn_res_block_size": min(12, max(1, depth // 2)),
    }
    for key, value in (overrides or {}).items():
        key = ALIASES.get(key, key)
        if key in LINEAR_KEYS:
            values["linear_attn_config"] = {**values["linear_attn_config"], key: value}
        elif key in {f.name for f in fields(ModelConfig)}:
            values[key] = value
        else:
            names = sorted({f.name for f in fields(ModelConfig)} | LINEAR_KEYS)
            raise InputError(f"unknown key model.{key}: {nearest(key, names)}")
    return ModelConfig(**values)


def check(c: ModelConfig) -> None:
    """Raise InputError (value, bound, fix) for a shape that cannot be built."""
    for name in WHOLE + OPTIONAL_WHOLE:
        value = getattr(c, name)
        if not (type(value) is int and value >= 1) and not (value is None and name in OPTIONAL_WHOLE):
            raise InputError(f"model.{name}={value!r} must be a whole number >= 1")
    for name in POSITIVE:
        value = getattr(c, name)
        if not isinstance(value, (int, float)) or not value > 0:
            raise InputError(f"model.{name}={value!r} must be a number > 0")
    if c.hidden_act not in ("silu", "situ"):
        raise InputError(f"model.hidden_act={c.hidden_act!r} is not known; use 'situ' (K3) or 'silu' (K2, Kimi Linear)")
    if c.num_experts:
        if not 1 <= c.num_experts_per_token <= c.num_experts:
            raise InputError(
                f"model.num_experts_per_token={c.num_experts_per_token} must be between 1 and "
                f"num_experts={c.num_experts}; lower it"
            )
        if c.num_expert_group != 1:
            raise InputError(f"model.num_expert_group={c.num_expert_group}: only 1 group is supported; set it to 1")
        if c.moe_intermediate_size < 1:
            raise InputError("model.moe_intermediate_size must be >= 1 when num_experts > 0")
    if not c.mla_use_nope and c.qk_rope_head_dim % 2:
        raise InputError(f"model.qk_rope_head_dim={c.qk_rope_head_dim} must be even for RoPE")
    if c.rope_scaling is not None:
        kind = c.rope_scaling.get("rope_type", c.rope_scaling.get("type"))
        if kind != "yarn" or not {"factor", "original_max_position_embeddings"} <= c.rope_scaling.keys():
            raise InputError(
                f"model.rope_scaling of type {kind!r} is not supported: only 'yarn' with factor and "
                "original_max_position_embeddings is"
            )
    if c.linear_attn_config is not None:
        check_linear(c)


def check_linear(c: ModelConfig) -> None:
    """The part of `check` about `linear_attn_config`."""
    listed = [*c.kda("kda_layers", []), *c.kda("full_attn_layers", [])]
    if sorted(listed, key=str) != sorted(range(1, c.num_hidden_layers + 1), key=str):
        raise InputError(
            f"linear_attn_config lists layers {listed}; kda_layers and full_attn_layers together must name each "
            f"layer 1..{c.num_hidden_layers} once"
        )
    for key, least in (("num_heads", 1), ("head_dim", 1), ("short_conv_kernel_size", 2)):
        value = c.kda(key, 4 if key == "short_conv_kernel_size" else None)
        if type(value) is not int or value < least:
            raise InputError(f"linear_attn_config.{key}={value!r} must be a whole number >= {least}")
    bound = c.kda("gate_lower_bound")
    if bound is not None and not (isinstance(bound, (int, float)) and -5 <= bound < 0):
        raise InputError(f"gate_lower_bound={bound!r} must be in [-5, 0): 16 steps of it must stay in float range")
