"""A model as one GGUF file, for llama.cpp: keys (`gguf_arch.py`), tokenizer, tensors (`gguf_tensors.py`).

PyPI's `gguf` does not know kimi-k3, so everything goes through its generic writer. Vectors, convolutions and the router
stay fp32; `kind` is the type of the matrices: f32, f16, bf16, q8_0, q4_0; or mxfp4 or int4: the routed experts, and the
other matrices bf16. MXFP4, and INT4 as Q4_0 blocks, are written from our own codes: a model trained through that grid
loses nothing.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from moonlet.data.tokenizer import Tokenizer
from moonlet.engine.gguf_arch import arch, keys
from moonlet.engine.gguf_tensors import EXPERTS, tensors
from moonlet.errors import InputError
from moonlet.files import new_file
from moonlet.model.config import ModelConfig
from moonlet.model.model import Model
from moonlet.quant.grids import GROUP, int4_codes, int_values, mxfp4_codes

KINDS = ("f32", "f16", "bf16", "q8_0", "q4_0", "mxfp4", "int4")
NORMAL, CONTROL = 1, 3  # llama.cpp's kinds of tokens


def write(model: Model, tokenizer: Tokenizer | None, out: Path, kind: str, name: str, template: str | None) -> None:
    """Write `out`, whole or not at all. Without a tokenizer the file holds token ids only."""
    try:
        import gguf
    except ImportError:
        raise InputError("writing GGUF needs the package gguf: pip install gguf") from None
    if kind not in KINDS:
        raise InputError(f"--type {kind}: one of {', '.join(KINDS)}")
    c = model.config
    with new_file(out) as part:
        writer = gguf.GGUFWriter(part, arch(c))
        writer.add_string("general.name", name)
        for key, value in keys(c).items():
            add(writer, f"{arch(c)}.{key}", value)
        add_tokenizer(writer, tokenizer, c, template)
        for tensor, value in tensors(model):
            form = gguf.GGMLQuantizationType[kind_of(tensor, value, kind).upper()]
            try:
                stored = blocks(value.detach().float().contiguous(), form)
            except (gguf.QuantError, InputError) as error:
                raise InputError(
                    f"{tensor} {list(value.shape)} does not go into {form.name} ({error}); try f16"
                ) from None
            writer.add_tensor(tensor, stored, raw_dtype=form)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def add(writer: Any, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def add_tokenizer(writer: Any, tokenizer: Tokenizer | None, c: ModelConfig, template: str | None) -> None:
    """Byte-level BPE as GPT-2 spells it, split as Kimi K2's. With another pattern, ids are equal wherever the two split
    alike, and in digits always, for then no token holds two."""
    if tokenizer is None:
        writer.add_tokenizer_model("none")
        return
    saved = tokenizer.hugging_face()
    words, special = [*saved["model"]["vocab"]], [*tokenizer.special]  # both in the order of their ids
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("kimi-k2")
    writer.add_token_list([*words, *special])
    writer.add_token_types([*[NORMAL] * len(words), *[CONTROL] * len(special)])
    writer.add_token_merges([f"{left} {right}" for left, right in saved["model"]["merges"]])
    for key, number in (("bos", c.bos_token_id), ("eos", c.eos_token_id), ("padding", c.pad_token_id)):
        if number is not None:
            writer.add_uint32(f"tokenizer.ggml.{key}_token_id", number)
    writer.add_bool("tokenizer.ggml.add_bos_token", False)
    if template is not None:
        writer.add_chat_template(template)


def kind_of(name: str, value: Tensor, kind: str) -> str:
    """The type that a tensor is written in."""
    if value.ndim < 2 or "conv1d" in name or name.endswith(("ssm_a", "ffn_gate_inp.weight")):
        return "f32"
    if kind not in ("mxfp4", "int4"):
        return kind
    expert = any(part in name for part in EXPERTS)
    return "bf16" if not expert else "mxfp4" if kind == "mxfp4" else "q4_0"


def blocks(value: Tensor, form: Any) -> np.ndarray:
    """A tensor as the file stores it: numbers for F32 and F16, else the bytes of its blocks along the last axis."""
    if form.name == "MXFP4":
        return mxfp4_blocks(value).numpy()
    if form.name == "F32":
        return value.numpy()
    if form.name == "Q4_0" and value.shape[-1] % GROUP == 0:
        codes, scale = int4_codes(value)
        if torch.equal(int_values(codes, scale.half()), value):
            return q4_0_blocks(codes, scale).numpy()
    import gguf

    return gguf.quants.quantize(value.numpy(), form)


def mxfp4_blocks(w: Tensor) -> Tensor:
    """[..., in] -> bytes [..., in/32 * 17]: of a group the scale, then the codes."""
    code, scale = mxfp4_codes(w)
    return torch.cat([scale.unsqueeze(-1), halves(code)], -1).flatten(-2)


def q4_0_blocks(code: Tensor, scale: Tensor) -> Tensor:
    """INT4 codes and scales -> bytes [..., in/32 * 18]: the scale in fp16, then codes + 8 as in MXFP4."""
    d = scale.half().unsqueeze(-1).view(torch.uint8)
    return torch.cat([d, halves((code + 8).to(torch.uint8))], -1).flatten(-2)


def halves(code: Tensor) -> Tensor:
    """Codes [..., in] -> [..., in/32, 16]: of a group 0..15 in low nibbles, 16..31 in high."""
    low, high = code.unflatten(-1, (-1, 2, 16)).unbind(-2)
    return low | high << 4
