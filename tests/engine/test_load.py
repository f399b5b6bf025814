"""The model folder: published names, packed experts in compressed-tensors spelling, and the same logits back."""

import json
from pathlib import Path

import pytest
import torch
from helpers import tiny_model_folder, tiny_tokenizer
from safetensors.torch import load_file

from moonlet.chat import chat_template
from moonlet.engine.load import load, write
from moonlet.errors import InputError
from moonlet.model.config import for_depth
from moonlet.model.model import Model
from moonlet.model.weights import to_published
from moonlet.quant.grids import round_to_grid, rounded_experts

EXPERT = "model.layers.1.block_sparse_moe.experts.3.w1"


def model(format: str) -> Model:
    shape = {"hidden_size": 64, "num_attention_heads": 2, "num_heads": 2}
    shape |= {"moe_intermediate_size": 32, "routed_expert_hidden_size": 64}
    made = Model(for_depth(3, tiny_tokenizer().vocab_size, shape)).init_weights(0)
    made.expert_format = format
    return made


@pytest.mark.parametrize("format", ["mxfp4", "int4", "none"])
def test_folder_gives_the_logits_back(format: str, tmp_path: Path) -> None:
    made = model(format)
    write(tmp_path / "m", made, tiny_tokenizer(), format, {"tools": []}, chat_template())
    loaded, tokenizer = load(tmp_path / "m")
    assert tokenizer is not None and tokenizer.vocab_size == made.config.vocab_size
    ids = torch.arange(50)[None]
    with torch.no_grad(), rounded_experts(made):
        assert torch.equal(loaded(ids), made(ids))


def test_packed_experts_as_published(tmp_path: Path) -> None:
    made = model("mxfp4")
    write(tmp_path / "m", made, tiny_tokenizer(), "mxfp4", {"tools": []}, chat_template())
    tensors = load_file(tmp_path / "m" / "model.safetensors")
    packed, scale = tensors[f"{EXPERT}.weight_packed"], tensors[f"{EXPERT}.weight_scale"]
    assert packed.dtype == scale.dtype == torch.uint8
    assert (packed.shape, scale.shape) == ((32, 64 // 2), (32, 64 // 32))
    assert {n for n in tensors if n.endswith(".weight") and ".experts." in n} == set()
    assert all(t.dtype == torch.float32 for n, t in tensors.items() if ".experts." not in n)
    # Decoded by hand: low nibble first, sign in bit 3, scale 2^(byte - 127).
    grid = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    codes = torch.stack([packed & 15, packed >> 4], dim=-1).flatten(1).long()
    values = grid[codes & 7] * torch.where(codes >= 8, -1.0, 1.0)
    values = values * torch.exp2(scale.float() - 127).repeat_interleave(32, dim=1)
    assert torch.equal(values, round_to_grid(to_published(made)[f"{EXPERT}.weight"], "mxfp4"))
    quantization = json.loads((tmp_path / "m" / "config.json").read_text())["quantization_config"]
    assert (quantization["quant_method"], quantization["format"]) == ("compressed-tensors", "mxfp4-pack-quantized")
    weights = quantization["config_groups"]["group_0"]["weights"]
    assert (weights["num_bits"], weights["type"], weights["group_size"]) == (4, "float", 32)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "torn"])
def test_a_damaged_folder_is_told(name: str, damage: str, tmp_path: Path) -> None:
    folder = tiny_model_folder(tmp_path)
    file = folder / name
    content = file.read_bytes()
    file.unlink()
    if damage == "torn":
        file.write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=name):
        load(folder)


def test_without_a_tokenizer(tmp_path: Path) -> None:
    folder = tiny_model_folder(tmp_path)
    (folder / "tokenizer.json").unlink()
    assert load(folder)[1] is None
    with pytest.raises(InputError, match="is not a folder"):
        load(tmp_path / "nowhere")
