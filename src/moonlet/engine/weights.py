"""A model folder opened for the engine: how its weights are kept in memory, and where.

The native decoder's copy is the only one: the model's own weights are given up while it is made. With a scratch folder
the experts lie on its disk from the first byte read to the last one used, so a model answers that is larger than the
memory, as fast as the disk and what the system keeps of it allow. On a GPU the model's own weights are kept, in bf16,
and it runs in PyTorch with the kernels of model/kernels/gpu.py; a row's bits then depend on its neighbours. That is
unchecked on a GPU so far.
"""

import ctypes
from functools import partial
from pathlib import Path

import torch

from moonlet.data.tokenizer import Tokenizer
from moonlet.engine.load import load
from moonlet.engine.packed import PackedModel, can_pack, on_disk
from moonlet.errors import InputError, nearest
from moonlet.model.kernels.native import library, why_not
from moonlet.model.model import Model
from moonlet.quant.packed_experts import PackedExperts

WEIGHTS = {
    "fp32": "all in fp32, 4-bit experts unpacked: the values that were trained",
    "packed": "experts in 4 bits as they are stored, the rest in fp32",
    "int8": "experts in 4 bits where they are stored so, all other matrices in 8 bits",
    "int4": "experts in 4 bits, all other matrices too",
    "gpu": "all in bf16 on a GPU",
}

FP32 = (".gate.weight", ".A_log", ".dt_bias")  # of a model on a GPU: what chooses experts, what states decay by


def on_gpu(model: Model, device: torch.device) -> Model:
    """The model moved there, in bf16 but for `FP32` and the router's bias."""
    for name, weight in model.named_parameters():
        if not name.endswith(FP32):
            weight.data = weight.data.bfloat16()
    return model.to(device)


def opened(folder: Path, weights: str, scratch: Path | None) -> tuple[Model, Tokenizer | None, PackedModel | None]:
    """Model, tokenizer, and the model laid out for the native decoder; then its own weights are given up."""
    if weights not in WEIGHTS:
        raise InputError(f"weights={weights}: {nearest(weights, WEIGHTS)}")
    if scratch is not None and not (scratch.is_dir() and weights not in ("fp32", "gpu")):
        raise InputError(f"scratch {scratch} must be a folder, and weights one of packed, int8, int4 (is {weights})")
    if weights == "gpu":
        if not torch.cuda.is_available():
            raise InputError("weights=gpu: torch finds no GPU here; use fp32, packed, int8 or int4")
        model, tokenizer = load(folder)
        return on_gpu(model, torch.device("cuda")), tokenizer, None
    if weights != "fp32" and library() is None:
        raise InputError(f"weights={weights} needs the native decoder: {why_not()}")
    room = torch.empty if scratch is None else partial(on_disk, scratch)
    model, tokenizer = load(folder, weights != "fp32", room)
    if weights == "packed" and not any(isinstance(m, PackedExperts) for m in model.modules()):
        raise InputError(f"the experts in {folder} are not in 4 bits: use weights int8 or int4, or moonlet convert")
    if not can_pack(model):
        return model, tokenizer, None
    form = weights if weights in ("int8", "int4") else "fp32"
    packed = PackedModel(model, form, consume=True, scratch=scratch)
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):  # glibc keeps what was freed until it is told
        trim(0)
    return model, tokenizer, packed
