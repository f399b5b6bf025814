"""Configs: published files in and out, the one dial, an error with value, bound and fix for what cannot be built."""

import copy
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import FORMS, YARN, k2, k3, kimi_linear, linear_attn

from moonlet.errors import InputError
from moonlet.model.config import ModelConfig, for_depth, from_dict, from_json
from moonlet.model.model import Layer, Model
from moonlet.model.presets import K2, K3, K3_TEXT, KIMI_LINEAR


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def size(config: ModelConfig) -> int:
    """Parameters of the model, without memory for them: one layer of each kind, times its number, and the top."""
    kinds = Counter((config.is_kda(i), config.is_moe(i)) for i in range(config.num_hidden_layers))
    first = {(config.is_kda(i), config.is_moe(i)): i for i in reversed(range(config.num_hidden_layers))}
    with torch.device("meta"):
        layers = sum(count(Layer(config, first[kind])) * number for kind, number in kinds.items())
    mix = 2 * config.hidden_size if config.attn_res_block_size is not None else 0
    return layers + mix + config.hidden_size + 2 * config.vocab_size * config.hidden_size


def cut(published: dict[str, Any], layers: int) -> dict[str, Any]:
    """A published config with its first layers only."""
    short = copy.deepcopy(published) | {"num_hidden_layers": layers}
    for key in ("kda_layers", "full_attn_layers") if "linear_attn_config" in short else ():
        short["linear_attn_config"][key] = [i for i in short["linear_attn_config"][key] if i <= layers]
    return short


def test_k3_has_the_published_size() -> None:
    c = from_dict(K3)
    with torch.device("meta"):
        first, second, fourth = (Layer(c, i) for i in (0, 1, 3))
    assert count(first.self_attn) == 443_740_384
    assert count(fourth.self_attn) == 232_196_096
    assert count(first.mlp) == 726_663_168
    experts = count(second.mlp.experts)
    assert experts == 896 * 33_030_144
    assert count(second.mlp) - experts == 189_927_808 - 896  # the published figure holds the router bias, a buffer here
    assert count(first) - count(first.self_attn) - count(first.mlp) == 6 * 7168
    total = size(c)
    expected = 69 * 443_740_384 + 24 * 232_196_096 + 726_663_168 + 92 * (896 * 33_030_144 + 189_927_808 - 896)
    assert total == expected + 93 * 6 * 7168 + 3 * 7168 + 2 * 163840 * 7168
    assert abs(total / 2.779e12 - 1) < 1e-3
    active = total - 92 * (896 - 16) * 33_030_144 - 163840 * 7168
    assert abs(active / 104.19e9 - 1) < 1e-3


@pytest.mark.parametrize("name", ["K3", "KIMI_LINEAR", "K2"])
def test_size_counts_the_whole_model(name: str) -> None:
    c = from_dict(cut({"K3": K3_TEXT, "KIMI_LINEAR": KIMI_LINEAR, "K2": K2}[name], 5 if name != "K2" else 3))
    with torch.device("meta"):
        assert count(Model(c)) == size(c)


def test_kimi_linear_and_k2_have_the_size_that_transformers_gives_them() -> None:
    assert abs(size(from_dict(KIMI_LINEAR)) / 48e9 - 1) < 0.03  # the names are rounded: 49.1 and 1026
    assert abs(size(from_dict(K2)) / 1.04e12 - 1) < 0.02
    transformers = pytest.importorskip("transformers", minversion="5.24")
    linear, k2_short = cut(KIMI_LINEAR, 4), cut(K2, 2) | {"model_type": "deepseek_v3"}
    with torch.device("meta"):
        theirs = transformers.KimiLinearForCausalLM(transformers.KimiLinearConfig.from_dict(copy.deepcopy(linear)))
        their_k2 = transformers.DeepseekV3ForCausalLM(transformers.DeepseekV3Config.from_dict(copy.deepcopy(k2_short)))
    assert size(from_dict(linear)) == count(theirs)
    assert size(from_dict(k2_short)) == count(their_k2)


def test_layers_are_numbered_from_one() -> None:
    c = from_dict(K3)
    assert [i + 1 for i in range(93) if not c.is_kda(i)] == [*range(4, 93, 4), 93]
    assert [c.is_moe(i) for i in range(3)] == [False, True, True]
    assert not any(k2().is_kda(i) for i in range(4))
    sparse = kimi_linear(first_k_dense_replace=2, moe_layer_freq=2, num_hidden_layers=4)
    assert [sparse.is_moe(i) for i in range(4)] == [False, False, True, False]


def test_published_keys_are_read() -> None:
    c = from_dict(K3)
    assert (c.num_experts, c.num_experts_per_token, c.num_shared_experts) == (896, 16, 2)
    assert c.kda("gate_lower_bound") == -5.0 and c.attn_res_block_size == 12 and c.mla_use_output_gate
    assert from_dict(K3_TEXT) == c
    c = from_dict(KIMI_LINEAR)
    assert c.q_lora_rank is None and c.max_position_embeddings == 1048576 and c.mla_use_nope
    assert c.kda("gate_lower_bound") is None and not c.kda("use_full_rank_gate") and c.attn_res_block_size is None
    c = from_dict(K2)
    assert (c.num_experts, c.num_experts_per_token, c.num_shared_experts) == (384, 8, 1)
    assert not c.mla_use_nope and c.rope_theta == 50000.0 and c.rope_scaling is not None and c.rms_norm_eps == 1e-6
    # A file that transformers wrote keeps theta inside.
    scaling = {**K2["rope_scaling"], "rope_type": "yarn", "rope_theta": 7.0}  # type: ignore[dict-item]
    newer = {k: v for k, v in K2.items() if k not in ("rope_scaling", "rope_theta")} | {"rope_parameters": scaling}
    assert from_dict(newer).rope_theta == 7.0
    plain = from_dict({**newer, "rope_parameters": {"rope_type": "default", "rope_theta": 9.0}})
    assert plain.rope_theta == 9.0 and plain.rope_scaling is None


@pytest.mark.parametrize("form", [*FORMS, "uncapped"])
def test_written_configs_are_read_back(form: str) -> None:
    c = k3(activation_situ_linear_beta=None, q_lora_rank=None) if form == "uncapped" else FORMS[form]()
    assert from_dict(json.loads(json.dumps(c.to_dict()))) == c


def test_written_keys_are_the_family_s() -> None:
    written = k2(q_lora_rank=None).to_dict()
    assert written["architectures"] == ["DeepseekV3ForCausalLM"] and written["model_type"] == "deepseek_v3"
    assert (written["n_routed_experts"], written["num_experts_per_tok"], written["n_shared_experts"]) == (6, 2, 1)
    assert (written["n_group"], written["topk_group"], written["norm_topk_prob"]) == (1, 1, True)
    assert written["q_lora_rank"] is None and "num_experts" not in written
    written = k3().to_dict()
    assert written["architectures"] == ["KimiLinearForCausalLM"] and written["num_experts"] == 6
    assert written["pad_token_id"] is None and written["num_key_value_heads"] == 2


BAD: list[tuple[dict[str, Any], list[str]]] = [
    ({"hidden_size": 0}, ["hidden_size=0", ">= 1"]),
    ({"hidden_size": "32"}, ["hidden_size='32'", "whole number"]),
    ({"num_hidden_layers": True}, ["num_hidden_layers=True"]),
    ({"qk_nope_head_dim": -8}, ["qk_nope_head_dim=-8", ">= 1"]),
    ({"intermediate_size": 1.5}, ["intermediate_size=1.5"]),
    ({"q_lora_rank": 0}, ["q_lora_rank=0", ">= 1"]),
    ({"attn_res_block_size": 0}, ["attn_res_block_size=0", ">= 1"]),
    ({"routed_expert_hidden_size": -1}, ["routed_expert_hidden_size=-1"]),
    ({"rms_norm_eps": 0}, ["rms_norm_eps=0", "> 0"]),
    ({"hidden_act": "relu"}, ["hidden_act='relu'", "situ", "silu"]),
    ({"num_experts_per_token": 7}, ["num_experts_per_token=7", "num_experts=6", "lower"]),
    ({"num_experts_per_token": 0}, ["num_experts_per_token=0", "between 1"]),
    ({"num_expert_group": 2}, ["num_expert_group=2", "set it to 1"]),
    ({"moe_intermediate_size": 0}, ["moe_intermediate_size", ">= 1"]),
    ({"mla_use_nope": False, "qk_rope_head_dim": 3}, ["qk_rope_head_dim=3", "even"]),
    ({"rope_scaling": {"type": "linear", "factor": 2.0}}, ["linear", "yarn"]),
    ({"rope_scaling": {**YARN, "type": None}}, ["rope_scaling", "yarn"]),
    ({"rope_scaling": {"type": "yarn", "factor": 2.0}}, ["original_max_position_embeddings"]),
    ({"linear_attn_config": linear_attn(kda_layers=[0, 1, 2], full_attn_layers=[3])}, ["[0, 1, 2, 3]", "1..4"]),
    ({"linear_attn_config": linear_attn(kda_layers=[1, 2])}, ["[1, 2, 4]", "1..4"]),
    ({"linear_attn_config": linear_attn(full_attn_layers=[3, 4])}, ["[1, 2, 3, 3, 4]", "once"]),
    ({"linear_attn_config": linear_attn(kda_layers=["1", 2, 3])}, ["'1'", "1..4"]),
    ({"linear_attn_config": linear_attn(head_dim=None)}, ["linear_attn_config.head_dim=None", ">= 1"]),
    ({"linear_attn_config": linear_attn(short_conv_kernel_size=1)}, ["short_conv_kernel_size=1", ">= 2"]),
    ({"linear_attn_config": linear_attn(gate_lower_bound=-8.0)}, ["gate_lower_bound=-8.0", "[-5, 0)"]),
    ({"linear_attn_config": linear_attn(gate_lower_bound=0)}, ["gate_lower_bound=0", "[-5, 0)"]),
]


@pytest.mark.parametrize(("changes", "said"), BAD, ids=[", ".join(c) + f"-{i}" for i, (c, _) in enumerate(BAD)])
def test_bad_values(changes: dict[str, Any], said: list[str]) -> None:
    with pytest.raises(InputError) as error:
        k3(**changes)
    for part in said:
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tie_word_embeddings": True}, "tie_word_embeddings=True"),
        ({"moe_router_activation_func": "softmax"}, "'sigmoid'"),
        ({"scoring_func": "softmax"}, "'sigmoid'"),
        ({"rope_interleave": False}, "rope_interleave=False"),
        ({"attention_bias": True}, "attention_bias=True"),
    ],
)
def test_forms_that_are_not_built(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match="not supported") as error:
        from_dict(k3().to_dict() | changes)
    assert said in str(error.value)


def test_missing_keys_are_named() -> None:
    values = k3().to_dict()
    del values["v_head_dim"], values["intermediate_size"]
    with pytest.raises(InputError, match="lacks intermediate_size, v_head_dim"):
        from_dict(values)


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    with pytest.raises(InputError, match="not found"):
        from_json(path)
    path.write_text("{")
    with pytest.raises(InputError, match="not JSON"):
        from_json(path)
    path.write_text(json.dumps(K3))
    assert from_json(path) == from_dict(K3)


@pytest.mark.parametrize("depth", [1, 2, 5, 9, 13, 24])
def test_one_dial(depth: int) -> None:
    c = for_depth(depth, 512)
    assert c.num_hidden_layers == depth and not c.is_kda(depth - 1)
    assert [i + 1 for i in range(depth) if not c.is_kda(i)] == sorted({*range(4, depth + 1, 4), depth})
    assert c.hidden_size % 32 == c.moe_intermediate_size % 32 == (c.routed_expert_hidden_size or 0) % 32 == 0
    assert c.hidden_size == 32 * c.num_attention_heads and 1 <= (c.attn_res_block_size or 0) <= 12
    size(c)


def test_dial_and_hand() -> None:
    c = for_depth(5, 512, {"hidden_size": 64, "n_routed_experts": 4, "head_dim": 16, "gate_lower_bound": None})
    assert c.hidden_size == 64 and c.num_experts == 4 and c.kda("head_dim") == 16 and c.kda("gate_lower_bound") is None
    assert for_depth(5, 512).hidden_size == 128 and for_depth(5, 512).kda("gate_lower_bound") == -5.0
    with pytest.raises(InputError, match="model.hiden_size.*did you mean 'hidden_size'"):
        for_depth(5, 512, {"hiden_size": 64})
    with pytest.raises(InputError, match="num_experts_per_token=9"):
        for_depth(5, 512, {"num_experts_per_token": 9})
    with pytest.raises(InputError, match="num_hidden_layers=0"):
        for_depth(0, 512)
