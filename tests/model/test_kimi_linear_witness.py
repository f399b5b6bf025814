"""The Kimi Linear form against transformers' KimiLinearForCausalLM: random shapes and weights, logits and gradients."""

import random
from pathlib import Path

import pytest
import torch
from small_models import random_ids

transformers = pytest.importorskip("transformers", minversion="5.24")
from witness import EAGER, compare, randomise


def random_config(seed: int) -> "transformers.KimiLinearConfig":
    r = random.Random(seed)
    layers = r.randint(3, 5)
    full = sorted(r.sample(range(1, layers + 1), r.randint(1, layers - 1)))
    experts = r.randint(2, 6)
    top_k = r.randint(1, experts)
    return transformers.KimiLinearConfig(
        vocab_size=r.choice([40, 64]),
        hidden_size=r.choice([16, 32, 48]),
        intermediate_size=r.choice([24, 64]),
        moe_intermediate_size=r.choice([8, 16]),
        num_hidden_layers=layers,
        num_attention_heads=(heads := r.randint(1, 3)),
        num_key_value_heads=heads,
        q_lora_rank=r.choice([None, 12]),
        kv_lora_rank=r.choice([8, 16]),
        qk_nope_head_dim=r.choice([8, 12]),
        qk_rope_head_dim=r.choice([4, 8]),
        v_head_dim=r.choice([8, 10]),
        num_experts=experts,
        num_experts_per_token=top_k,
        num_shared_experts=r.randint(1, 2),
        num_expert_group=1,
        topk_group=1,
        moe_renormalize=top_k > 1 and r.random() < 0.8,  # a lone weight p / p has no gradient
        routed_scaling_factor=r.choice([1.0, 2.446]),
        first_k_dense_replace=r.randint(0, 2),
        rms_norm_eps=r.choice([1e-5, 1e-6]),
        model_max_length=256,
        pad_token_id=None,  # theirs gives the padding row no gradient
        bos_token_id=1,
        eos_token_id=2,
        linear_attn_config={
            "kda_layers": [i for i in range(1, layers + 1) if i not in full],
            "full_attn_layers": full,
            "head_dim": r.choice([8, 16]),
            "num_heads": r.randint(1, 3),
            "short_conv_kernel_size": r.randint(2, 4),
        },
    )


def check(seed: int, tmp_path: Path, factor: float = 1.0) -> None:
    config = random_config(seed)
    torch.manual_seed(seed)
    theirs = transformers.KimiLinearForCausalLM._from_config(config, **EAGER)
    randomise(theirs, seed)
    ids = random_ids(2, random.Random(seed).choice([2, 15, 40, 70]), seed, config.vocab_size)
    logits, gradients, name = compare(theirs, ids, tmp_path)
    assert logits <= 1e-5 * factor
    assert gradients <= 1e-4 * factor, name


@pytest.mark.parametrize("seed", range(12))
def test_equals_transformers(seed: int, tmp_path: Path) -> None:
    check(seed, tmp_path)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(12, 212))
def test_equals_transformers_many(seed: int, tmp_path: Path) -> None:
    # One in 70 draws is so badly conditioned that fp32 rounding, theirs or ours, is above the bound.
    check(seed, tmp_path, factor=5)
