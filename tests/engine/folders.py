"""Model folders as others publish them: sharded, prefixed, in 16 bits, with experts in 4 bits."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from moonlet.engine.load import pack, quantization_config
from moonlet.engine.tensor_files import INDEX, SINGLE
from moonlet.model.model import Model
from moonlet.model.weights import to_published


def publish(
    folder: Path,
    model: Model,
    shards: int = 1,
    dtype: torch.dtype = torch.float32,
    prefix: str = "",
    nested: bool = False,
    experts: str | None = None,
) -> Path:
    """Write `model`; nested: its config under text_config; experts: int4 or mxfp4."""
    folder.mkdir()
    config = model.config.to_dict()
    tensors: dict[str, torch.Tensor] = {}
    for name, value in to_published(model).items():
        if experts and ".experts." in name:
            tensors |= pack(prefix + name, value, experts)
        else:
            tensors[prefix + name] = value.to(dtype)
    if experts:
        config["quantization_config"] = quantization_config(experts)
    (folder / "config.json").write_text(json.dumps({"text_config": config} if nested else config))
    if shards == 1:
        save_file(tensors, folder / SINGLE)
        return folder
    weight_map = {}
    for i in range(shards):
        name = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        part = {n: tensors[n] for n in sorted(tensors)[i::shards]}
        save_file(part, folder / name)
        weight_map |= dict.fromkeys(part, name)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder
