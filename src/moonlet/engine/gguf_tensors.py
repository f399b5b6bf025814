"""A model's tensors under llama.cpp's names, fp32, [out, in]; the names are the same in its three architectures.

What llama.cpp wants otherwise than the checkpoint has it: A = -exp(A_log) in place of A_log; W_kvb split into its key
half, transposed, and its value half; a read of the depth bus as one vector, norm weight times pseudo-query; experts
stacked.
"""

from collections.abc import Iterator

from torch import Tensor

from moonlet.model.attn_res import AttnResMix
from moonlet.model.kda import KDA
from moonlet.model.mla import MLA
from moonlet.model.model import Layer, Model
from moonlet.model.moe import MLP, MoE

EXPERTS = ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps")

Named = Iterator[tuple[str, Tensor]]


def tensors(model: Model) -> Named:
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
