"""The K2 form against transformers' DeepseekV3ForCausalLM: plain RoPE and YaRN, with and without low-rank queries."""

import random
from pathlib import Path

import pytest
import torch
from small_models import YARN, random_ids

transformers = pytest.importorskip("transformers", minversion="5.24")
from witness import EAGER, compare, randomise

ROPE = {
    "plain": {"rope_theta": 10000.0, "rope_type": "default"},
    "yarn": {"rope_theta": 50000.0, "rope_type": "yarn", **{k: v for k, v in YARN.items() if k != "type"}},
    "yarn_unequal": {
        "rope_theta": 500.0,
        "rope_type": "yarn",
        "factor": 8.0,
        "original_max_position_embeddings": 64,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "mscale": 1.0,
        "mscale_all_dim": 0.7,
    },
    "yarn_bare": {"rope_theta": 50000.0, "rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 16},
}


def random_config(seed: int, rope: dict[str, object]) -> "transformers.DeepseekV3Config":
    r = random.Random(seed)
    experts = r.randint(2, 6)
    top_k = r.randint(1, experts)
    return transformers.DeepseekV3Config(
        vocab_size=r.choice([40, 64]),
        hidden_size=r.choice([16, 32, 48]),
        intermediate_size=r.choice([24, 64]),
        moe_intermediate_size=r.choice([8, 16]),
        num_hidden_layers=r.randint(2, 3),
        num_attention_heads=(heads := r.randint(1, 3)),
        num_key_value_heads=heads,
        n_shared_experts=r.randint(1, 2),
        n_routed_experts=experts,
        num_experts_per_tok=top_k,
        q_lora_rank=r.choice([None, 12]),
        kv_lora_rank=r.choice([8, 16]),
        qk_nope_head_dim=r.choice([8, 12]),
        qk_rope_head_dim=r.choice([8, 16]),
        v_head_dim=r.choice([8, 10]),
        n_group=1,
        topk_group=1,
        first_k_dense_replace=r.randint(0, 2),
        norm_topk_prob=top_k > 1 and r.random() < 0.8,  # a lone weight p / p has no gradient
        routed_scaling_factor=r.choice([1.0, 2.827]),
        rms_norm_eps=r.choice([1e-5, 1e-6]),
        rope_parameters=rope,
        rope_interleave=True,
        max_position_embeddings=256,
    )


def check(seed: int, rope: str, tmp_path: Path) -> None:
    config = random_config(seed, dict(ROPE[rope]))
    torch.manual_seed(seed)
    theirs = transformers.DeepseekV3ForCausalLM._from_config(config, **EAGER)
    randomise(theirs, seed)
    ids = random_ids(2, random.Random(seed).choice([2, 30, 100]), seed, config.vocab_size)
    logits, gradients, name = compare(theirs, ids, tmp_path)
    assert logits <= 1e-5
    assert gradients <= 1e-4, name


@pytest.mark.parametrize("rope", ROPE)
@pytest.mark.parametrize("seed", range(3))
def test_equals_transformers(seed: int, rope: str, tmp_path: Path) -> None:
    check(seed, rope, tmp_path)


@pytest.mark.soak
@pytest.mark.parametrize("rope", ROPE)
@pytest.mark.parametrize("seed", range(3, 53))
def test_equals_transformers_many(seed: int, rope: str, tmp_path: Path) -> None:
    check(seed, rope, tmp_path)
