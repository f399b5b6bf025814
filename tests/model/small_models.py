"""Small models of the three forms with random weights, and the references that fla-core brings as plain files."""

import importlib.util
import sysconfig
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from moonlet.model.config import ModelConfig
from moonlet.model.model import Model

VOCAB = 48
YARN = {
    "type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 32,
    "beta_fast": 1.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
}


def small(**changes: Any) -> dict[str, Any]:
    """The keys that the three forms share."""
    return {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "kv_lora_rank": 16,
        "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 4,
        "v_head_dim": 12,
        "num_experts": 6,
        "num_experts_per_token": 2,
        "num_shared_experts": 1,
        "moe_intermediate_size": 16,
        "max_position_embeddings": 512,
        **changes,
    }


def linear_attn(**changes: Any) -> dict[str, Any]:
    return {
        "kda_layers": [1, 2, 3],
        "full_attn_layers": [4],
        "head_dim": 16,
        "num_heads": 2,
        "short_conv_kernel_size": 4,
        **changes,
    }


def k3(**changes: Any) -> ModelConfig:
    values = small(
        q_lora_rank=12,
        mla_use_output_gate=True,
        linear_attn_config=linear_attn(use_full_rank_gate=True, gate_lower_bound=-5.0),
        num_shared_experts=2,
        routed_expert_hidden_size=20,
        hidden_act="situ",
        attn_res_block_size=2,
    )
    return ModelConfig(**{**values, **changes})


def kimi_linear(**changes: Any) -> ModelConfig:
    return ModelConfig(**{**small(linear_attn_config=linear_attn(), routed_scaling_factor=2.446), **changes})


def k2(**changes: Any) -> ModelConfig:
    values = small(
        model_type="deepseek_v3", mla_use_nope=False, q_lora_rank=12, rms_norm_eps=1e-6, routed_scaling_factor=2.827
    )
    return ModelConfig(**{**values, **changes})


FORMS = {
    "k3": k3,
    "kimi_linear": kimi_linear,
    "k2": k2,
    "k2_yarn": lambda **changes: k2(q_lora_rank=None, rope_theta=50000.0, rope_scaling=YARN, **changes),
}


@torch.no_grad()
def random_model(config: ModelConfig, seed: int = 0, std: float = 0.07) -> Model:
    """Every parameter and router bias random, so that no part is at a value (0, 1) that hides it."""
    model = Model(config).init_weights(seed)
    generator = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        if name.endswith("A_log"):
            p.uniform_(-0.5, 1.5, generator=generator)
        elif "res.proj" in name:
            p.normal_(0, 0.3, generator=generator)
        elif p.ndim == 1 and not name.endswith("dt_bias"):
            p.uniform_(0.5, 1.5, generator=generator)
        elif p.ndim >= 2 and "conv1d" not in name:
            p.normal_(0, std, generator=generator)
    for name, b in model.named_buffers():
        b.normal_(0, 0.2, generator=generator)
    return model


def random_ids(batch: int, length: int, seed: int = 0, vocab: int = VOCAB) -> Tensor:
    return torch.randint(0, vocab, (batch, length), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def first_loss(model: Model) -> float:
    """Mean next-token loss on random ids."""
    ids = random_ids(2, 128, vocab=model.config.vocab_size)
    return float(F.cross_entropy(model(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten()))


def fla(operator: str) -> ModuleType:
    """fla-core's plain reference `ops/OPERATOR/naive.py`, by path: importing the package itself needs triton."""
    path = Path(sysconfig.get_paths()["purelib"]) / "fla" / "ops" / operator / "naive.py"
    if not path.exists():
        pytest.skip("fla-core is not installed")
    spec = importlib.util.spec_from_file_location(f"fla_naive_{operator}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def relative(a: Tensor, b: Tensor) -> float:
    """|a - b| / |b|, both by the 2-norm (and 0 for two zeros)."""
    a, b = a.detach().double(), b.detach().double()
    return float((a - b).norm() / b.norm().clamp(min=1e-30))
