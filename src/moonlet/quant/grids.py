"""The two 4-bit grids, their packing, and how the experts train through them.

MXFP4 (OCP): groups of 32 consecutive input columns share a power-of-two scale 2^(floor(log2 amax) - 2); elements are
E2M1, {0, .5, 1, 1.5, 2, 3, 4, 6} with a sign, rounded half to even, saturating at 6. Packed: two codes a byte, low
nibble = even column; scale byte e = exponent + 127.
INT4: symmetric, group 32 along the input, scale = amax / 7 as bf16 has it, codes -7..7 stored as code + 8, eight to an
int32, first element in the lowest nibble (compressed-tensors `pack-quantized`). INT8, for matrices that are only run:
the same with amax / 127.
Shapes: w [..., out, in] with in divisible by 32.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from moonlet.errors import InputError
from moonlet.model.kernels.native import call, usable
from moonlet.model.model import Model

GROUP = 32
FP4 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
# Borders between neighbouring codes; on a tie the even code wins, so borders above an even code belong to it.
BORDERS = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0])


def groups(w: Tensor) -> Tensor:
    """[..., out, in] -> [..., out, in/32, 32]."""
    if w.shape[-1] % GROUP:
        raise InputError(f"4-bit groups need an input width divisible by {GROUP}, got {w.shape[-1]}; change the shape")
    return w.unflatten(-1, (-1, GROUP))


def mxfp4_codes(w: Tensor) -> tuple[Tensor, Tensor]:
    """Codes uint8 [..., out, in] (sign in bit 3) and scale bytes uint8 [..., out, in/32]."""
    x = groups(w.float())
    amax = x.abs().amax(-1)
    _, exponent = torch.frexp(amax)  # amax = m 2^exponent with m in [0.5, 1): floor(log2 amax) = exponent - 1
    e = torch.where(amax > 0, exponent - 3, torch.full_like(exponent, -127)).clamp(-127, 127)
    magnitude = torch.ldexp(x.abs(), -e.unsqueeze(-1))
    borders = BORDERS.to(w.device)
    low = torch.bucketize(magnitude, borders, right=False)  # border goes to the lower code
    high = torch.bucketize(magnitude, borders, right=True)  # border goes to the upper code
    code = torch.where(low % 2 == 0, low, high)
    code = code + 8 * (torch.signbit(x) & (code > 0))
    return code.flatten(-2).to(torch.uint8), (e + 127).to(torch.uint8)


def mxfp4_values(code: Tensor, scale: Tensor) -> Tensor:
    """Codes and scale bytes back to fp32 [..., out, in]."""
    value = FP4.to(code.device)[(code & 7).long()] * torch.where(code >= 8, -1.0, 1.0)
    return torch.ldexp(groups(value), scale.int().unsqueeze(-1) - 127).flatten(-2)


def native_mxfp4(w: Tensor) -> Tensor:
    """mxfp4_values(*mxfp4_codes(w)) in one pass, for fp32 on a CPU."""
    out = torch.empty_like(w := w.contiguous())
    call("mxfp4_round", w, out, groups(w).shape[:-1].numel())
    return out


def int_codes(w: Tensor, largest: int) -> tuple[Tensor, Tensor]:
    """Codes int8 in -largest..largest [..., out, in] and scales [..., out, in/32], values of bf16 as fp32."""
    x = groups(w.float())
    scale = (x.abs().amax(-1) / largest).clamp(min=1e-12).bfloat16().float()
    return torch.round(x / scale.unsqueeze(-1)).clamp(-largest, largest).to(torch.int8).flatten(-2), scale


def int4_codes(w: Tensor) -> tuple[Tensor, Tensor]:
    return int_codes(w, 7)


def int_values(code: Tensor, scale: Tensor) -> Tensor:
    """Codes and scales back to fp32 [..., in]."""
    return (groups(code.float()) * scale.float().unsqueeze(-1)).flatten(-2)


def round_to_grid(w: Tensor, format: str) -> Tensor:
    """w on the nearest points of the grid, fp32; "none" returns w."""
    if format == "mxfp4":
        return native_mxfp4(w) if usable(w) else mxfp4_values(*mxfp4_codes(w))
    if format == "int4":
        return int_values(*int4_codes(w))
    if format == "none":
        return w
    raise InputError(f"quant.format={format!r} is not known; use mxfp4, int4 or none")


@contextmanager
def rounded_experts(model: Model) -> Iterator[None]:
    """Inside, the routed experts hold their rounded values (`model.expert_format`); outside, the values they train.

    Gradients taken inside are those of the rounded weights, applied outside to the unrounded ones: the straight-through
    estimator w + (round(w) - w).detach(), with one rounding a step however many micro-batches or tokens there are.
    """
    if model.expert_format == "none":
        yield
        return
    stacks = [w for layer in model.layers if layer.moe for w in layer.mlp.experts.parameters()]
    kept = [w.data for w in stacks]
    for w in stacks:
        w.data = round_to_grid(w.data, model.expert_format)
    try:
        yield
    finally:
        for w, data in zip(stacks, kept):
            w.data = data


def pack_mxfp4(code: Tensor) -> Tensor:
    """Codes [..., in] -> bytes [..., in/2], low nibble first."""
    return code[..., 0::2] | (code[..., 1::2] << 4)


def unpack_mxfp4(packed: Tensor) -> Tensor:
    return torch.stack([packed & 15, packed >> 4], dim=-1).flatten(-2)


def pack_int4(code: Tensor) -> Tensor:
    """Codes int8 [..., in] -> int32 [..., in/8], element i in bits 4*(i%8)."""
    nibbles = (code.int() + 8).unflatten(-1, (-1, 8)).long()
    word = (nibbles << (4 * torch.arange(8, device=code.device))).sum(-1)
    return torch.where(word >= 2**31, word - 2**32, word).int()


def unpack_int4(packed: Tensor) -> Tensor:
    word = packed.long() & 0xFFFFFFFF
    return (((word.unsqueeze(-1) >> (4 * torch.arange(8, device=packed.device))) & 15) - 8).flatten(-2).to(torch.int8)


def unpacked(packed: Tensor, scale: Tensor, format: str) -> Tensor:
    """The fp32 values [..., in] of packed codes and their scales; format: mxfp4 or int4."""
    if format == "mxfp4":
        return mxfp4_values(unpack_mxfp4(packed), scale)
    return int_values(unpack_int4(packed), scale)
