"""The other types of GGUF files: what the file holds, and what llama.cpp computes from it, its rounding modelled.

llama.cpp rounds the activations that enter a matrix too: to bf16 for BF16, to blocks of 8-bit integers for Q8_0, Q4_0
and MXFP4. `rounded` is our model doing the same. Where an activation falls within float noise of a border between two
rounded values, the two programs may part for the rest of the prompt; elsewhere they agree to the last digits.
"""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from llama import apart, opened, written
from small_models import FORMS, random_ids, random_model
from torch import Tensor, nn

from moonlet.engine import gguf_file, gguf_tensors
from moonlet.model.kda import KDA
from moonlet.model.kernels.glu import glu
from moonlet.model.mla import MLA
from moonlet.model.model import Model
from moonlet.model.moe import MoE
from moonlet.quant.grids import mxfp4_codes, mxfp4_values, round_to_grid

gguf = pytest.importorskip("gguf")
Rounding = Callable[[Tensor], Tensor]

KINDS = ("f16", "bf16", "q8_0", "q4_0", "mxfp4")
SIZES = {  # rows that blocks of 32 divide
    "hidden_size": 64,
    "intermediate_size": 64,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 32,
    "v_head_dim": 32,
    "moe_intermediate_size": 32,
}


@torch.no_grad()
def sized(form: str, seed: int = 0) -> Model:
    sizes = SIZES | {"rms_norm_eps": 1e-6, "mla_norm_eps": 1e-6, "l2_eps": 1e-6}
    if form in ("k3", "k2"):
        sizes["q_lora_rank"] = 32
    if form == "k3":
        sizes["routed_expert_hidden_size"] = 32
    linear = FORMS[form]().linear_attn_config
    model = random_model(FORMS[form](**sizes, linear_attn_config=linear and {**linear, "head_dim": 32}), seed, std=0.2)
    for layer in model.layers:
        if layer.moe:  # rounding would flip the near ties of an untrained router
            layer.mlp.gate.e_score_correction_bias.copy_(torch.arange(6.0))
    return model


def q8(x: Tensor) -> Tensor:
    """To integers of -127..127 times a scale in fp16, by blocks of 32."""
    blocks = x.unflatten(-1, (-1, 32))
    amax = blocks.abs().amax(-1, keepdim=True)
    return (torch.round(blocks * (127 / amax.clamp(min=1e-30))) * (amax / 127).half().float()).flatten(-2)


def stored(w: Tensor, kind: str) -> Tensor:
    """The numbers that the file holds in place of w."""
    form = gguf.GGMLQuantizationType[kind.upper()]
    back = gguf.quants.dequantize(gguf_file.blocks(w.detach().contiguous(), form), form)
    return torch.tensor(back).view(w.shape)


@torch.no_grad()
def rounded(model: Model, kind: str) -> Model:
    """`model` as llama.cpp runs its file of that kind."""
    model, plain = copy.deepcopy(model), "bf16" if kind == "mxfp4" else kind
    entering: Rounding = q8 if plain.startswith("q") else lambda x: x.bfloat16().float()
    for layer in model.layers:
        if isinstance(layer.self_attn, MLA):
            layer.self_attn.forward = absorbed(layer.self_attn, plain, entering)
        if isinstance(layer.mlp, MoE):
            layer.mlp.forward = mixture(layer.mlp, kind, q8 if kind == "mxfp4" else entering)
    model.embed_tokens.weight.copy_(stored(model.embed_tokens.weight, plain))
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and "res." not in name:
            module.weight.copy_(stored(module.weight, plain))
        if isinstance(module, (nn.Linear, KDA)):  # KDA takes the weights of q, k and v out of their modules
            module.register_forward_pre_hook(lambda _, x: (entering(x[0]), *x[1:]))
    return model


def absorbed(a: MLA, kind: str, entering: Rounding) -> Any:
    """MLA over latents: W_kvb's halves meet the queries and the mixed latents."""
    k, v = a.kv_b_proj.weight.unflatten(0, (a.num_heads, -1)).split([a.nope, a.v_head_dim], dim=1)
    k, v = stored(k.transpose(1, 2), kind), stored(v, kind)

    def forward(x: Tensor, segments: Tensor | None, positions: Tensor | None) -> tuple[Tensor, Tensor]:
        q, c, k_r = a.project(x, positions)
        q_nope, q_r = q.split([a.nope, a.rope], dim=-1)
        q_c = torch.einsum("bthn,hrn->bthr", entering(q_nope), k)
        logits = torch.einsum("bthr,bsr->bhts", torch.cat([q_c, q_r], -1), torch.cat([c, k_r], -1)) * a.scale
        future = torch.ones(logits.shape[-2:], dtype=torch.bool).triu(1)
        mixed = torch.einsum("bhts,bsr->bthr", logits.masked_fill(future, -torch.inf).softmax(-1), c)
        return a.output(x, torch.einsum("bthr,hvr->bthv", entering(mixed), v)), logits

    return forward


def mixture(m: MoE, kind: str, entering: Rounding) -> Any:
    """The experts one by one, on rounded latents and rounded activations."""
    w1, w3, w2 = (stored(w, kind) for w in (m.experts.w1, m.experts.w3, m.experts.w2))

    def forward(x: Tensor) -> tuple[Tensor, Any]:
        x = x.flatten(0, 1)
        chosen, p, stats = m.gate(x)
        z = m.routed_expert_down_proj(x) if hasattr(m, "routed_expert_down_proj") else x
        z, u = entering(z), torch.zeros_like(z)
        for e in range(len(w1)):
            inner = entering(glu(z @ w1[e].T, z @ w3[e].T, *m.experts.act))
            u += inner @ w2[e].T * (p * (chosen == e)).sum(-1, keepdim=True)
        if hasattr(m, "routed_expert_up_proj"):
            u = m.routed_expert_up_proj(m.routed_expert_norm(u))
        return (u + m.shared_experts(x)).unsqueeze(0), stats

    return forward


def check_rounded(form: str, kind: str, seed: int, tmp_path: Path) -> None:
    """Short prompts, so that a border spoils little."""
    model = sized(form, seed)
    prompts = [random_ids(1, 4, seed=n)[0].tolist() for n in range(20)]
    with opened(written(model, tmp_path, kind)) as theirs:
        worst, _ = apart(rounded(model, kind), theirs, prompts)
        assert worst.median() < 1e-5
        assert (worst < 1e-4).float().mean() > 0.7
        assert apart(model, theirs, prompts)[0].median() > 0.03  # without the rounding: seen


@pytest.mark.parametrize(
    ("form", "kind"), [*(("k3", kind) for kind in KINDS[1:]), ("kimi_linear", "mxfp4"), ("k2", "mxfp4")]
)
def test_logits_are_llama_cpp_s_with_its_rounding(form: str, kind: str, tmp_path: Path) -> None:
    check_rounded(form, kind, 0, tmp_path)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(1, 6))
@pytest.mark.parametrize("kind", KINDS[1:])
@pytest.mark.parametrize("form", FORMS)
def test_logits_with_rounding_of_many(form: str, kind: str, seed: int, tmp_path: Path) -> None:
    check_rounded(form, kind, seed, tmp_path)


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_the_file_holds_the_weights(kind: str, tmp_path: Path) -> None:
    model = sized("k3")
    held = {t.name: t for t in gguf.GGUFReader(written(model, tmp_path, kind)).tensors}
    assert held.keys() == {name for name, _ in gguf_tensors.tensors(model)}
    for name, value in gguf_tensors.tensors(model):
        t = held[name]
        back = torch.tensor(gguf.quants.dequantize(t.data, t.tensor_type)).reshape(value.shape)
        bound = {"F32": 0.0, "F16": 5e-4, "BF16": 4e-3, "Q8_0": 0.01, "Q4_0": 0.12, "MXFP4": 0.2}[t.tensor_type.name]
        assert float((back - value).norm() / value.norm()) <= bound, name
        assert (t.tensor_type.name == "F32") == (gguf_file.kind_of(name, value, kind) == "f32")


@torch.no_grad()
def test_f16_in_llama_cpp(tmp_path: Path) -> None:
    """Which of its activations are rounded depends on the kernel: held to a bound only."""
    model, ids = sized("k3"), random_ids(1, 40)
    with opened(written(model, tmp_path, "f16")) as theirs:
        ours = model(ids)[0]
        assert 0 < float((theirs.logits(ids[0].tolist()) - ours).norm() / ours.norm()) < 0.02


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("grid", "stored"), [("mxfp4", "MXFP4"), ("int4", "Q4_0")])
def test_experts_on_a_grid_lose_nothing(form: str, grid: str, stored: str, tmp_path: Path) -> None:
    model = sized(form)
    for layer in model.layers:
        for w in layer.mlp.experts.parameters() if layer.moe else ():
            w.data = round_to_grid(w.data, grid)
    held = {t.name: t for t in gguf.GGUFReader(written(model, tmp_path, grid)).tensors}
    experts = [(name, value) for name, value in gguf_tensors.tensors(model) if "_exps" in name]
    assert len(experts) == 9
    for name, value in experts:
        assert held[name].tensor_type.name == stored
        assert torch.equal(torch.tensor(gguf.quants.dequantize(held[name].data, held[name].tensor_type)), value)
    others = {t.tensor_type.name for name, t in held.items() if "_exps" not in name}
    assert others == {"F32", "BF16"}


CODES = st.lists(st.integers(0, 15), min_size=64, max_size=64)


@given(codes=CODES, scales=st.lists(st.integers(0, 252), min_size=2, max_size=2))
def test_any_mxfp4_checkpoint_is_repacked_without_loss(codes: list[int], scales: list[int]) -> None:
    """Whatever rule chose the scales: the values are the same, and where it was ours, the bytes."""
    w = mxfp4_values(torch.tensor([codes], dtype=torch.uint8), torch.tensor([scales], dtype=torch.uint8))
    blocks = gguf_file.mxfp4_blocks(w).view(2, 17)
    back = gguf.quants.dequantize(blocks.numpy(), gguf.GGMLQuantizationType.MXFP4)
    assert torch.equal(torch.tensor(back).view(1, 64), w)
    code, scale = mxfp4_codes(w)
    assert torch.equal(blocks[:, 0], scale[0])
    assert torch.equal(torch.cat([blocks[:, 1:] & 15, blocks[:, 1:] >> 4], -1).view(1, 64), code)
