"""Open and write a model folder in the published Hugging Face layout.

`config.json` (published keys), `model.safetensors` (published names; routed experts packed to 4 bits where
`quantization_config` says so, everything else fp32), the tokenizer files, and `tools.json` (what the model was taught
to call). Packed experts: MXFP4 as `weight_packed` uint8 + `weight_scale` uint8, INT4 as `weight_packed` int32 +
`weight_scale` + `weight_shape` (compressed-tensors spellings, K3 and K2 Thinking). Read are sharded files too, in fp32,
bf16 or fp16 (`tensor_files.py`); written is one file.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from moonlet.chat.formats import format_of as format_of_chat
from moonlet.data.tokenizer import Tokenizer
from moonlet.engine.tensor_files import FORMATS, Dequantised, TensorFiles, format_of
from moonlet.errors import InputError
from moonlet.files import new_folder
from moonlet.model import config as configs
from moonlet.model.model import Model
from moonlet.model.weights import from_published, to_published
from moonlet.quant import grids
from moonlet.quant.packed_experts import pack_experts

PUBLISHED = {ours: theirs for theirs, ours in FORMATS.items()}
IGNORE = [
    "lm_head",
    "re:.*self_attn.*",
    "re:.*shared_experts.*",
    "re:.*mlp\\.(gate|up|gate_up|down)_proj.*",
    "re:.*routed_expert_(down|up)_proj.*",
    "re:.*block_sparse_moe\\.gate.*",
    "re:.*vision_tower.*",
    "re:.*mm_projector.*",
]


def quantization_config(format: str) -> dict[str, Any]:
    """The compressed-tensors block of config.json for packed experts."""
    weights: dict[str, Any] = {"num_bits": 4, "strategy": "group", "group_size": grids.GROUP, "symmetric": True}
    weights |= {"dynamic": False, "observer": "minmax", "type": "float" if format == "mxfp4" else "int"}
    if format == "mxfp4":
        weights["scale_dtype"] = "torch.uint8"
    return {
        "quant_method": "compressed-tensors",
        "format": PUBLISHED[format],
        "quantization_status": "compressed",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": None}},
        "ignore": IGNORE,
    }


def pack(name: str, w: Tensor, format: str) -> dict[str, Tensor]:
    """The tensors that stand for expert matrix `name` ("....weight") in the file."""
    stem = name.removesuffix(".weight")
    if format == "mxfp4":
        code, scale = grids.mxfp4_codes(w)
        return {f"{stem}.weight_packed": grids.pack_mxfp4(code), f"{stem}.weight_scale": scale}
    code, scale = grids.int4_codes(w)
    shape = torch.tensor(w.shape, dtype=torch.int64)
    return {
        f"{stem}.weight_packed": grids.pack_int4(code),
        f"{stem}.weight_scale": scale,
        f"{stem}.weight_shape": shape,
    }


def write(
    folder: Path,
    model: Model,
    tokenizer: Tokenizer,
    format: str,
    tools: dict[str, Any],
    chat_template: str,
    card: str | None = None,
) -> None:
    """Write a servable model folder; the experts rounded and packed by `format` (mxfp4, int4 or none); card: README."""
    tensors: dict[str, Tensor] = {}
    for name, value in to_published(model).items():
        if format != "none" and ".experts." in name:
            tensors |= pack(name, value, format)
        else:
            tensors[name] = value
    config = model.config.to_dict() | {"dtype": "float32"}
    if format != "none":
        config["quantization_config"] = quantization_config(format)
    with new_folder(folder) as tmp:
        save_file(tensors, tmp / "model.safetensors", metadata={"format": "pt"})
        (tmp / "config.json").write_text(json.dumps(config, indent=2))
        eos = tokenizer.special[format_of_chat(tokenizer.special).end]
        (tmp / "generation_config.json").write_text(json.dumps({"eos_token_id": eos, "temperature": 1.0}))
        (tmp / "tools.json").write_text(json.dumps(tools, ensure_ascii=False))
        tokenizer.save(tmp, chat_template=chat_template)
        if card is not None:
            (tmp / "README.md").write_text(card)


def load(
    folder: str | Path, packed: bool = False, room: Callable[..., Tensor] = torch.empty
) -> tuple[Model, Tokenizer | None]:
    """Model (eval, fp32) and tokenizer (None when the folder has none). InputError when it is not a model folder.

    The model is made without memory and filled tensor by tensor from the mapped files. With `packed`, experts that are
    stored in 4 bits stay so: the model can be run, not trained; room(shape, dtype=) gives their memory.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; give a model folder such as runs/quickstart/model")
    config = configs.from_json(folder / "config.json")
    raw = json.loads((folder / "config.json").read_text())
    tensors: Mapping[str, Tensor] = TensorFiles(folder)
    packing = format_of(raw)
    if packing is not None:
        tensors = Dequantised(tensors, packing, packed)
    with torch.device("meta"):
        model = Model(config)
        if packing is not None and packed:
            pack_experts(model, FORMATS[packing])
    from_published(model, tensors, room)
    found = any((folder / name).is_file() for name in ("tokenizer.json", "tiktoken.model"))
    tokenizer = Tokenizer.load(folder) if found else None
    if tokenizer is not None and tokenizer.vocab_size != config.vocab_size:
        raise InputError(
            f"{folder}: tokenizer has {tokenizer.vocab_size} entries, config.json says vocab_size={config.vocab_size}"
        )
    return model.eval(), tokenizer
