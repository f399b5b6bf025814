"""Routed experts that stay in 4 bits in memory: 4.25 (MXFP4) or 4.5 (INT4 with scales in bf16) bits a weight, not 32.

`PackedExperts` takes the place of `model.moe.Experts` in a model that is only run. It unpacks an expert when a token
chooses it and forgets it again, so a step costs the fp32 size of one expert. The values are those of the unpacked
checkpoint, so the logits are too, up to the order of sums. Shapes as in moe.py: w [E, out, in] is held as its codes
[E, out, in/2] uint8 (MXFP4) or [E, out, in/8] int32 (INT4) and scales [E, out, in/32].
"""

import torch
from torch import Tensor, nn

from moonlet.model.kernels.glu import glu
from moonlet.model.model import Model
from moonlet.model.moe import Experts
from moonlet.quant import grids


class PackedExperts(nn.Module):
    w1_packed: Tensor

    def __init__(self, experts: Experts, format: str) -> None:
        """Empty buffers for the shapes of `experts`; format: mxfp4 or int4."""
        super().__init__()
        self.act, self.format = experts.act, format
        codes, per_code, scales = (
            (torch.uint8, 2, torch.uint8) if format == "mxfp4" else (torch.int32, 8, torch.bfloat16)
        )
        for name, w in experts.named_parameters():
            *rows, width = w.shape
            self.register_buffer(f"{name}_packed", torch.empty(*rows, width // per_code, dtype=codes))
            self.register_buffer(f"{name}_scale", torch.empty(*rows, width // grids.GROUP, dtype=scales))

    @property
    def count(self) -> int:
        return len(self.w1_packed)

    def codes(self, name: str, expert: int) -> tuple[Tensor, Tensor]:
        """Codes [out, in], a byte each, and scales of w1, w3 or w2 of an expert."""
        packed, scale = getattr(self, f"{name}_packed")[expert], getattr(self, f"{name}_scale")[expert]
        return (grids.unpack_mxfp4 if self.format == "mxfp4" else grids.unpack_int4)(packed), scale

    def matrix(self, name: str, expert: int) -> Tensor:
        """w1, w3 or w2 of an expert, fp32."""
        packed, scale = getattr(self, f"{name}_packed")[expert], getattr(self, f"{name}_scale")[expert]
        return grids.unpacked(packed, scale, self.format)

    def routed(self, z_NL: Tensor, chosen: Tensor, p: Tensor) -> Tensor:
        """sum_i p_i E_i(z)."""
        u_NL = torch.zeros_like(z_NL)
        for expert in chosen.unique().tolist():
            token, choice = (chosen == expert).nonzero(as_tuple=True)
            w1, w3, w2 = (self.matrix(name, expert) for name in ("w1", "w3", "w2"))
            x = z_NL[token]
            u_NL.index_add_(0, token, glu(x @ w1.T, x @ w3.T, *self.act) @ w2.T * p[token, choice, None])
        return u_NL


def pack_experts(model: Model, format: str) -> None:
    """Put empty packed experts in the place of all of `model`'s."""
    for layer in model.layers:
        if layer.moe:
            layer.mlp.experts = PackedExperts(layer.mlp.experts, format)
