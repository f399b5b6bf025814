"""A model as one GGUF file, for llama.cpp: its architectures kimi-k3 and kimi-linear.

The names and keys are llama.cpp's; PyPI's `gguf` does not know kimi-k3, so everything goes through its generic writer.
What llama.cpp wants otherwise than the checkpoint has it: A = -exp(A_log) in place of A_log; W_kvb split into its key
half, transposed, and its value half; a read of the depth bus as one vector, norm weight times pseudo-query; experts
stacked. Vectors, convolutions and the router stay fp32; `kind` is the type of the matrices: f32, f16, bf16, q8_0, q4_0,
or mxfp4 (the routed experts, which a model trained through that grid loses nothing by; its other matrices bf16).
llama.cpp has one epsilon for every norm: `differences` says when the model has more. Left out: the K2 form (deepseek2).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from moonlet.data.tokenizer import Tokenizer
from moonlet.errors import InputError
from moonlet.files import new_file
from moonlet.model.attn_res import AttnResMix
from moonlet.model.config import ModelConfig, is_k2
from moonlet.model.kda import KDA
from moonlet.model.mla import MLA
from moonlet.model.model import Layer, Model
from moonlet.model.moe import MLP, MoE

KINDS = ("f32", "f16", "bf16", "q8_0", "q4_0", "mxfp4")
EXPERTS = ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps")
NORMAL, CONTROL = 1, 3  # llama.cpp's kinds of tokens

Named = Iterator[tuple[str, Tensor]]


def arch(c: ModelConfig) -> str:
    """kimi-k3 or kimi-linear; InputError for a form that llama.cpp has no name for."""
    kinds = {c.is_kda(i) for i in range(c.num_hidden_layers)}
    if is_k2(c) or len(kinds) < 2:
        raise InputError(
            "llama.cpp's Kimi architectures need KDA and MLA layers: a K2 model or a pure stack has no GGUF"
        )
    k3 = {
        "attn_res_block_size": c.attn_res_block_size is not None,
        "gate_lower_bound": c.kda("gate_lower_bound") is not None,
        "use_full_rank_gate": bool(c.kda("use_full_rank_gate")),
        "routed_expert_hidden_size": c.routed_expert_hidden_size is not None,
        "mla_use_output_gate": c.mla_use_output_gate,
        "hidden_act situ": c.hidden_act == "situ",
    }
    if all(k3.values()):
        return "kimi-k3"
    if any(k3.values()) or c.q_lora_rank is not None or not c.moe_renormalize:
        said = ", ".join(name for name, there in k3.items() if not there) or "q_lora_rank, moe_renormalize"
        raise InputError(f"the config is neither K3's form nor Kimi Linear's ({said}): llama.cpp knows only these two")
    return "kimi-linear"


def differences(c: ModelConfig) -> list[str]:
    """Where llama.cpp will compute something else than this model, in words."""
    found = {"rms_norm_eps": c.rms_norm_eps, "of MLA's low-rank norms": c.mla_norm_eps, "of KDA's L2 norm": c.l2_eps}
    if len({*found.values()}) == 1:
        return []
    listed = ", ".join(f"{name} {value:g}" for name, value in found.items())
    return [f"epsilons differ ({listed}); llama.cpp has one, {c.rms_norm_eps:g} here: logits differ a little"]


def keys(c: ModelConfig) -> dict[str, Any]:
    """The file's hyperparameters, by their name behind the architecture's."""
    kda = [c.is_kda(i) for i in range(c.num_hidden_layers)]
    out: dict[str, Any] = {
        "block_count": c.num_hidden_layers,
        "context_length": c.max_position_embeddings,
        "embedding_length": c.hidden_size,
        "feed_forward_length": c.intermediate_size,
        "vocab_size": c.vocab_size,
        "attention.head_count": c.num_attention_heads,
        "attention.head_count_kv": [0 if is_kda else 1 for is_kda in kda],
        "attention.layer_norm_rms_epsilon": c.rms_norm_eps,
        "attention.kv_lora_rank": c.kv_lora_rank,
        "attention.key_length": c.kv_lora_rank + c.qk_rope_head_dim,
        "attention.value_length": c.kv_lora_rank,
        "attention.key_length_mla": c.qk_nope_head_dim + c.qk_rope_head_dim,
        "attention.value_length_mla": c.v_head_dim,
        "rope.dimension_count": c.qk_rope_head_dim,
        "ssm.conv_kernel": c.kda("short_conv_kernel_size", 4),
        "kda.head_dim": c.kda("head_dim"),
        "leading_dense_block_count": c.first_k_dense_replace,
        "expert_count": c.num_experts,
        "expert_used_count": c.num_experts_per_token,
        "expert_feed_forward_length": c.moe_intermediate_size,
        "expert_shared_count": c.num_shared_experts,
        "expert_weights_scale": c.routed_scaling_factor,
        "expert_gating_func": 2,  # sigmoid
    }
    if arch(c) == "kimi-k3":
        out |= {
            "expert_weights_norm": c.moe_renormalize,
            "expert_latent_length": c.routed_expert_hidden_size,
            "attn_res.block_size": c.attn_res_block_size,
            "activation.situ_beta": float(c.activation_situ_beta),
            "activation.situ_linear_beta": float(c.activation_situ_linear_beta or 0.0),
            "kda.gate_lower_bound": float(c.kda("gate_lower_bound")),
        }
        if c.q_lora_rank is not None:
            out["attention.q_lora_rank"] = c.q_lora_rank
    return out


def tensors(model: Model) -> Named:
    """Every tensor under llama.cpp's name, fp32, [out, in]."""
    yield "token_embd.weight", model.embed_tokens.weight
    yield "output.weight", model.lm_head.weight
    yield "output_norm.weight", model.norm.weight
    bus = model.config.attn_res_block_size is not None
    if bus:
        yield "output_res_score.weight", score(model.output_attn_res)
    for layer in model.layers:
        for name, value in layer_tensors(layer, bus):
            yield f"blk.{layer.index}.{name}", value


def score(read: AttnResMix) -> Tensor:
    return read.norm.weight * read.proj.weight[0]


def layer_tensors(layer: Layer, bus: bool) -> Named:
    yield "attn_norm.weight", layer.input_layernorm.weight
    yield "ffn_norm.weight", layer.post_attention_layernorm.weight
    if bus:
        yield "attn_res_score.weight", score(layer.self_attention_res)
        yield "ffn_res_score.weight", score(layer.mlp_res)
    yield from kda_tensors(layer.self_attn) if isinstance(layer.self_attn, KDA) else mla_tensors(layer.self_attn)
    yield from moe_tensors(layer.mlp) if isinstance(layer.mlp, MoE) else mlp_tensors(layer.mlp, "")


def kda_tensors(a: KDA) -> Named:
    for part in "qkv":
        yield f"attn_{part}.weight", getattr(a, f"{part}_proj").weight
        yield f"ssm_conv1d_{part}.weight", getattr(a, f"{part}_conv1d").weight
    yield "ssm_f_a.weight", a.f_a_proj.weight
    yield "ssm_f_b.weight", a.f_b_proj.weight
    yield "ssm_beta.weight", a.b_proj.weight
    if hasattr(a, "g_proj"):
        yield "ssm_g.weight", a.g_proj.weight
        yield "ssm_a", -a.A_log.exp()
    else:
        yield "ssm_g_a.weight", a.g_a_proj.weight
        yield "ssm_g_b.weight", a.g_b_proj.weight
        yield "ssm_a", -a.A_log.exp()[:, None]
    yield "ssm_dt.bias", a.dt_bias
    yield "ssm_norm.weight", a.o_norm.weight
    yield "attn_output.weight", a.o_proj.weight


def mla_tensors(a: MLA) -> Named:
    if hasattr(a, "q_a_proj"):
        yield "attn_q_a.weight", a.q_a_proj.weight
        yield "attn_q_a_norm.weight", a.q_a_layernorm.weight
        yield "attn_q_b.weight", a.q_b_proj.weight
    else:
        yield "attn_q.weight", a.q_proj.weight
    yield "attn_kv_a_mqa.weight", a.kv_a_proj_with_mqa.weight
    yield "attn_kv_a_norm.weight", a.kv_a_layernorm.weight
    k, v = a.kv_b_proj.weight.unflatten(0, (a.num_heads, -1)).split([a.nope, a.v_head_dim], dim=1)
    yield "attn_k_b.weight", k.transpose(1, 2)
    yield "attn_v_b.weight", v
    if hasattr(a, "g_proj"):
        yield "attn_gate.weight", a.g_proj.weight
    yield "attn_output.weight", a.o_proj.weight


def mlp_tensors(m: MLP, suffix: str) -> Named:
    yield f"ffn_gate{suffix}.weight", m.gate_proj.weight
    yield f"ffn_up{suffix}.weight", m.up_proj.weight
    yield f"ffn_down{suffix}.weight", m.down_proj.weight


def moe_tensors(m: MoE) -> Named:
    yield "ffn_gate_inp.weight", m.gate.weight
    yield "exp_probs_b.bias", m.gate.e_score_correction_bias
    yield from ((f"{name}.weight", w) for name, w in zip(EXPERTS, (m.experts.w1, m.experts.w3, m.experts.w2)))
    if hasattr(m, "routed_expert_down_proj"):
        yield "ffn_routed_down.weight", m.routed_expert_down_proj.weight
        yield "ffn_routed_up.weight", m.routed_expert_up_proj.weight
    if hasattr(m, "routed_expert_norm"):
        yield "ffn_routed_norm.weight", m.routed_expert_norm.weight
    if hasattr(m, "shared_experts"):
        yield from mlp_tensors(m.shared_experts, "_shexp")


def kind_of(name: str, value: Tensor, kind: str) -> str:
    """The type that a tensor is written in."""
    if value.ndim < 2 or "conv1d" in name or name.endswith(("ssm_a", "ffn_gate_inp.weight")):
        return "f32"
    if kind != "mxfp4":
        return kind
    return "mxfp4" if any(part in name for part in EXPERTS) else "bf16"


def write(model: Model, tokenizer: Tokenizer | None, out: Path, kind: str, name: str, template: str | None) -> None:
    """Write `out`, whole or not at all. Without a tokenizer the file holds token ids only."""
    try:
        import gguf
    except ImportError:
        raise InputError("writing GGUF needs the package gguf: pip install gguf") from None
    if kind not in KINDS:
        raise InputError(f"--type {kind}: one of {', '.join(KINDS)}")
    c = model.config
    with new_file(out) as part:
        writer = gguf.GGUFWriter(part, arch(c))
        writer.add_string("general.name", name)
        for key, value in keys(c).items():
            add(writer, f"{arch(c)}.{key}", value)
        add_tokenizer(writer, tokenizer, c, template)
        for tensor, value in tensors(model):
            data = value.detach().float().contiguous().numpy()
            form = gguf.GGMLQuantizationType[kind_of(tensor, value, kind).upper()]
            try:
                stored = data if form.name == "F32" else gguf.quants.quantize(data, form)
            except gguf.QuantError as error:
                raise InputError(
                    f"{tensor} {list(data.shape)} does not go into {form.name} ({error}); try f16"
                ) from None
            writer.add_tensor(tensor, stored, raw_dtype=form)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def add(writer: Any, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    else:
        writer.add_array(key, value)


def add_tokenizer(writer: Any, tokenizer: Tokenizer | None, c: ModelConfig, template: str | None) -> None:
    """Byte-level BPE as GPT-2 spells it, split as Kimi K2's: equal ids wherever the two patterns split alike, and in
    digits always, for no token here holds two."""
    if tokenizer is None:
        writer.add_tokenizer_model("none")
        return
    saved = tokenizer.hugging_face()
    words, special = [*saved["model"]["vocab"]], [*tokenizer.special]  # both in the order of their ids
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("kimi-k2")
    writer.add_token_list([*words, *special])
    writer.add_token_types([*[NORMAL] * len(words), *[CONTROL] * len(special)])
    writer.add_token_merges([f"{left} {right}" for left, right in saved["model"]["merges"]])
    for key, number in (("bos", c.bos_token_id), ("eos", c.eos_token_id), ("padding", c.pad_token_id)):
        if number is not None:
            writer.add_uint32(f"tokenizer.ggml.{key}_token_id", number)
    writer.add_bool("tokenizer.ggml.add_bos_token", False)
    if template is not None:
        writer.add_chat_template(template)
