"""compressed-tensors as the outside witness of both packings, and transformers loading packed INT4 experts with it."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from small_models import k2, random_ids, random_model

pytest.importorskip("compressed_tensors")
transformers = pytest.importorskip("transformers", minversion="5.24")
from compressed_tensors.compressors.mx_utils import decompress_mx_scale
from compressed_tensors.compressors.nvfp4.helpers import pack_fp4_to_uint8, unpack_fp4_from_uint8
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32
from compressed_tensors.quantization.utils.fp4_utils import cast_to_fp4

from moonlet.model.weights import to_published
from moonlet.quant.grids import (
    int4_codes,
    int_values,
    mxfp4_codes,
    mxfp4_values,
    pack_int4,
    pack_mxfp4,
)

# Config and names of the INT4 checkpoints (K2 Thinking): weights only, experts only.
QUANTIZATION = {
    "quant_method": "compressed-tensors",
    "format": "pack-quantized",
    "quantization_status": "compressed",
    "kv_cache_scheme": None,
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "input_activations": None,
            "output_activations": None,
            "weights": {
                "num_bits": 4,
                "type": "int",
                "symmetric": True,
                "strategy": "group",
                "group_size": 32,
                "dynamic": False,
                "observer": "minmax",
                "observer_kwargs": {},
                "actorder": None,
                "block_structure": None,
            },
        }
    },
    "ignore": ["lm_head", "re:.*self_attn.*", "re:.*shared_experts.*", "re:.*mlp\\.(gate|up|gate_up|down)_proj.*"],
}


def weights(seed: int = 0) -> torch.Tensor:
    return torch.randn(6, 128, generator=torch.Generator().manual_seed(seed)) * 0.02


def test_mxfp4_elements_and_bytes() -> None:
    w = weights()
    codes, scale = mxfp4_codes(w)
    steps = torch.exp2(scale.float() - 127).repeat_interleave(32, dim=1)
    elements = cast_to_fp4(w / steps)
    assert torch.equal(mxfp4_values(codes, scale), elements * steps)
    assert torch.equal(unpack_fp4_from_uint8(pack_mxfp4(codes), 6, 128, dtype=torch.float32), elements)
    negative_zero = (elements == 0) & torch.signbit(elements)  # theirs keeps its sign, ours does not
    assert torch.equal(pack_fp4_to_uint8(elements.masked_fill(negative_zero, 0.0)), pack_mxfp4(codes))
    assert torch.equal(decompress_mx_scale(scale).float(), torch.exp2(scale.float() - 127))


def test_int4_words() -> None:
    codes, _ = int4_codes(weights())
    packed = pack_int4(codes)
    assert torch.equal(packed, pack_to_int32(codes, 4))
    assert torch.equal(unpack_from_int32(packed, 4, torch.Size((6, 128))), codes)


def test_transformers_loads_packed_int4_experts(tmp_path: Path) -> None:
    model = random_model(k2(hidden_size=64, moe_intermediate_size=32, num_hidden_layers=2))
    tensors, rounded = {}, model.state_dict()
    for name, w in to_published(model).items():
        if ".experts." not in name:
            tensors[name] = w
            continue
        codes, scale = int4_codes(w)
        stem = name.removesuffix(".weight")
        tensors[f"{stem}.weight_packed"], tensors[f"{stem}.weight_scale"] = pack_int4(codes), scale
        tensors[f"{stem}.weight_shape"] = torch.tensor(w.shape)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps(model.config.to_dict() | {"quantization_config": QUANTIZATION}))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager", dtype="float32")
    for name, w in rounded.items():
        if ".experts.w" in name:
            rounded[name] = int_values(*int4_codes(w))
    model.load_state_dict(rounded)
    ids = random_ids(2, 20)
    with torch.no_grad():
        assert (theirs(ids).logits - model(ids)).abs().max() < 1e-5
