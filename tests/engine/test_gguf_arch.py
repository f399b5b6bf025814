"""Which architecture of llama.cpp a config becomes, what is refused, and that llama.cpp differs where we say so."""

from pathlib import Path
from typing import Any

import pytest
import torch
from llama import agree, apart, opened, written
from small_models import YARN, k2, k3, kimi_linear, linear_attn, random_ids, random_model

from moonlet.engine.gguf_arch import arch, differences, keys
from moonlet.errors import InputError
from moonlet.model.config import ModelConfig

ONE_EPS = {"rms_norm_eps": 1e-6, "mla_norm_eps": 1e-6, "l2_eps": 1e-6}
WIDE = {**ONE_EPS, "qk_rope_head_dim": 16, "rope_theta": 50000.0}  # pairs enough for the betas to matter
PROMPTS = [random_ids(1, n, seed=n)[0].tolist() for n in (1, 5, 31, 33, 400)]
NO_MSCALES = {key: value for key, value in YARN.items() if "mscale" not in key}
SCALINGS: dict[str, dict[str, Any]] = {
    "as K2": YARN,
    "as K2.5, whole numbers": {**YARN, "factor": 32, "beta_fast": 32, "beta_slow": 1, "mscale": 1},
    "mscales differ": {**YARN, "mscale": 0.5, "mscale_all_dim": 0.707},
    "both small": {**YARN, "mscale": 0.707, "mscale_all_dim": 0.707},
    "none": NO_MSCALES,
    "one": {**NO_MSCALES, "mscale_all_dim": 1.0},
    "factor 1": {**YARN, "factor": 1.0},
}


@pytest.mark.parametrize("name", SCALINGS)
def test_yarn(name: str, tmp_path: Path) -> None:
    """To twelve times the original length, with the betas given to llama.cpp as `differences` asks."""
    s = SCALINGS[name]
    model = random_model(k2(**WIDE, rope_scaling=s), std=0.2)
    with opened(written(model, tmp_path), betas=(s["beta_fast"], s["beta_slow"])) as theirs:
        agree(model, theirs, PROMPTS)


def test_betas_must_be_given(tmp_path: Path) -> None:
    model = random_model(k2(**WIDE, rope_scaling=YARN), std=0.2)
    assert ["--yarn-beta-fast 1 --yarn-beta-slow 1" in line for line in differences(model.config)] == [True]
    with opened(written(model, tmp_path)) as theirs:
        assert apart(model, theirs, PROMPTS)[0].median() > 0.1
    assert differences(k2(**WIDE, rope_scaling={**YARN, "beta_fast": 32.0})) == []


def test_epsilons() -> None:
    told = {c.model_type: differences(c) for c in (k2(mla_norm_eps=1e-5), k3(rms_norm_eps=1e-6, l2_eps=1e-7))}
    assert [line for line in told["deepseek_v3"] if "mla_norm_eps 1e-05" in line and "l2_eps" not in line]
    assert [line for line in told["kimi_linear"] if "l2_eps 1e-07" in line]
    assert not any(differences(form(**ONE_EPS)) for form in (k2, k3, kimi_linear))


@torch.no_grad()
def test_a_token_that_all_its_experts_reject(tmp_path: Path) -> None:
    """llama.cpp divides by no less than 2^-14: where the chosen scores sum to less, its experts count less."""
    model = random_model(k2(**ONE_EPS), std=0.2)
    sums = []
    for layer in model.layers[1:]:
        layer.mlp.gate.weight.mul_(12)
        layer.mlp.gate.e_score_correction_bias.copy_(2 * torch.arange(6.0))
        layer.mlp.gate.register_forward_hook(lambda _, x, out: sums.append(out[2].scores.gather(1, out[0]).sum(-1)))
    with opened(written(model, tmp_path)) as theirs:
        worst, _ = apart(model, theirs, [[token] for token in range(48)])
    rejected = torch.cat(sums).view(48, 3).amin(-1) < 2**-14
    assert 0 < rejected.sum() < 24
    assert worst[~rejected].max() < 1e-3
    assert worst[rejected].median() > 0.1


BUILT = {
    "a depth for which llama.cpp reads no q-LoRA": k2(**ONE_EPS, num_hidden_layers=27, q_lora_rank=None),
    "the next depth": k2(**ONE_EPS, num_hidden_layers=28),
    "K2 without experts": k2(**ONE_EPS, num_experts=0, num_shared_experts=0),
    "K2 with every expert for every token": k2(**ONE_EPS, num_experts_per_token=6, moe_renormalize=False),
    "K3 with dense layers only": k3(**ONE_EPS, first_k_dense_replace=4),
    "K3 without shared experts": k3(**ONE_EPS, num_shared_experts=0, latent_moe_use_norm=False),
    "K3 uncapped": k3(**ONE_EPS, activation_situ_linear_beta=None, moe_renormalize=False, latent_moe_use_norm=False),
    "Kimi Linear without experts": kimi_linear(**ONE_EPS, num_experts=0),
}


@pytest.mark.parametrize("name", BUILT)
def test_forms_that_it_builds(name: str, tmp_path: Path) -> None:
    model = random_model(BUILT[name], std=0.2)
    with opened(written(model, tmp_path)) as theirs:
        agree(model, theirs, PROMPTS[:3])


@pytest.mark.parametrize(
    ("config", "word"),
    [
        (k2(num_hidden_layers=26), "deepseek2.* q_lora_rank=12"),
        (k2(num_hidden_layers=48, vocab_size=128256), "q_lora_rank=12"),
        (k2(num_shared_experts=0), "num_shared_experts=0"),
        (k2(hidden_act="situ", mla_use_output_gate=True), "mla_use_output_gate=True, hidden_act='situ'"),
        (k2(mla_use_nope=True), "mla_use_nope=True"),
        (k2(moe_layer_freq=2), "moe_layer_freq=2"),
        (k3(linear_attn_config=linear_attn(use_full_rank_gate=True)), "kimi-k3.* gate_lower_bound=None"),
        (k3(attn_res_block_size=None), "attn_res_block_size=None"),
        (k3(linear_attn_config={**(k3().linear_attn_config or {}), "num_heads": 3}), "num_heads=3"),
        (kimi_linear(q_lora_rank=12), "kimi-linear.* q_lora_rank=12"),
        (kimi_linear(mla_use_nope=False), "mla_use_nope=False"),
        (kimi_linear(num_shared_experts=0), "num_shared_experts=0"),
        (kimi_linear(moe_renormalize=False), "moe_renormalize=False"),
        (kimi_linear(linear_attn_config=linear_attn(kda_layers=[1, 2, 3, 4], full_attn_layers=[])), r"layers=\[\]"),
    ],
)
def test_forms_that_it_does_not_build(config: ModelConfig, word: str) -> None:
    with pytest.raises(InputError, match=word):
        arch(config)


def test_names_and_k2_s_published_keys() -> None:
    assert [arch(c) for c in (k3(), kimi_linear(), k2())] == ["kimi-k3", "kimi-linear", "deepseek2"]
    found = keys(k2(rope_scaling={**YARN, "factor": 32.0, "original_max_position_embeddings": 4096}))
    assert found["rope.scaling.yarn_log_multiplier"] == pytest.approx(0.1)  # as llama.cpp's own converter writes it
    assert (found["rope.scaling.attn_factor"], found["rope.scaling.yarn_beta_fast"]) == (1.0, 1.0)
    assert (found["attention.head_count_kv"], found["attention.key_length"]) == (1, 16 + 4)
