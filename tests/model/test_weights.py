"""Published names: the tensors of a small K3 checkpoint as a golden list, round trips, and what a misfit is told."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from small_models import FORMS, k2, k3, kimi_linear, linear_attn, random_ids, random_model

from moonlet.errors import InputError
from moonlet.model.config import ModelConfig
from moonlet.model.model import Model
from moonlet.model.weights import from_published, to_published

GOLDEN = Path(__file__).with_name("golden")  # a line a tensor: published name and shape


def two_layers() -> ModelConfig:
    """Layer 1 KDA with a dense MLP, layer 2 MLA with 2 latent experts."""
    attention = linear_attn(kda_layers=[1], full_attn_layers=[2], use_full_rank_gate=True, gate_lower_bound=-5.0)
    return k3(num_hidden_layers=2, linear_attn_config=attention, num_experts=2, num_experts_per_token=1)


SMALL = {
    "k3": two_layers,
    "kimi_linear": lambda: kimi_linear(
        num_hidden_layers=2,
        linear_attn_config=linear_attn(kda_layers=[1], full_attn_layers=[2]),
        num_experts=2,
        num_experts_per_token=1,
    ),
    "k2": lambda: k2(num_hidden_layers=2, num_experts=2, num_experts_per_token=1),
}


@pytest.mark.parametrize("form", SMALL)
def test_names_and_shapes(form: str) -> None:
    tensors = to_published(random_model(SMALL[form]()))
    lines = sorted(" ".join([name, *map(str, t.shape)]) for name, t in tensors.items())
    assert lines == (GOLDEN / f"{form}.txt").read_text().splitlines()
    assert all(t.dtype == torch.float32 for t in tensors.values())


def test_a_log_is_padded_in_k3_and_four_dimensional_in_kimi_linear() -> None:
    model = random_model(k3())
    padded = to_published(model)["model.layers.0.self_attn.A_log"]
    assert torch.equal(padded[:2], model.layers[0].self_attn.A_log) and (padded[2:] == 0).all()
    attention = linear_attn(use_full_rank_gate=True, gate_lower_bound=-5.0, num_heads=128)
    wide = to_published(random_model(k3(linear_attn_config=attention)))
    assert wide["model.layers.0.self_attn.A_log"].shape == (128,)
    assert to_published(random_model(kimi_linear()))["model.layers.0.self_attn.A_log"].shape == (1, 1, 2, 1)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("prefix", ["", "language_model."])
def test_round_trip(form: str, prefix: str) -> None:
    model, other = random_model(FORMS[form](), 0), random_model(FORMS[form](), 1)
    ids = random_ids(2, 12)
    assert not torch.equal(model(ids), other(ids))
    from_published(other, {prefix + n: t for n, t in to_published(model).items()})
    state = other.state_dict()
    assert all(torch.equal(t, state[n]) for n, t in model.state_dict().items())
    assert torch.equal(model(ids), other(ids))


@pytest.mark.parametrize("form", [k3, kimi_linear, k2])
def test_either_spelling_of_the_mlp_is_read(form: Callable[[], ModelConfig]) -> None:
    model, other = random_model(form(), 0), random_model(form(), 1)
    tensors = {n.replace("block_sparse_moe", "mlp"): t for n, t in to_published(model).items()}
    from_published(other, tensors)
    from_published(other, {n.replace(".mlp.", ".block_sparse_moe."): t for n, t in tensors.items()})
    assert torch.equal(model(random_ids(1, 9)), other(random_ids(1, 9)))


def test_bfloat16_files_fill_a_float_model() -> None:
    model = random_model(k3())
    other = Model(k3())
    from_published(other, {n: t.bfloat16() for n, t in to_published(model).items()})
    assert other.lm_head.weight.dtype == torch.float32
    assert torch.equal(other.lm_head.weight, model.lm_head.weight.bfloat16().float())


def test_a_misfit_is_told_in_full() -> None:
    model = random_model(two_layers())
    before = {n: t.clone() for n, t in model.state_dict().items()}
    tensors = to_published(random_model(two_layers(), 1))
    del tensors["model.layers.1.block_sparse_moe.experts.1.w2.weight"]
    del tensors["model.norm.weight"]
    tensors["model.layers.0.self_attn.q_proj.weight"] = torch.zeros(31, 32)
    tensors["model.layers.0.self_attn.A_log"] = torch.zeros(1)
    tensors["model.layers.2.extra.weight"] = torch.zeros(3)
    with pytest.raises(InputError) as error:
        from_published(model, tensors)
    message = str(error.value)
    assert "missing 2:" in message and "experts.1.w2.weight" in message and "model.norm.weight" in message
    assert "misshapen 2:" in message and "q_proj.weight is [31, 32], config says [32, 32]" in message
    assert "surplus 1: model.layers.2.extra.weight" in message
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())  # nothing was half loaded


def test_experts_of_different_shapes_are_a_misfit() -> None:
    model = random_model(two_layers())
    tensors = to_published(model)
    tensors["model.layers.1.block_sparse_moe.experts.1.w1.weight"] = torch.zeros(15, 20)
    with pytest.raises(InputError, match=r"experts\.1\.w1\.weight is \[15, 20\]"):
        from_published(model, tensors)
