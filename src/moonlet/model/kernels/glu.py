"""The GLU and the sigmoid output gate, each in one pass forward and one backward.

Source: K3 report eq. 12 for SiTU; the formulas stand in `norm.glu`, which is the truth and the form for other dtypes
and devices. Shapes: gate, up [..., I] -> [..., I]; o, g [...] -> [...].
"""

import torch
from torch import Tensor

from moonlet.model import norm
from moonlet.model.kernels.native import kernel, usable


def native_betas(hidden_act: str, beta: float, linear_beta: float | None) -> tuple[float, float]:
    """The activation as the C functions read it (glu.h): beta 0 means SwiGLU, linear beta 0 an uncapped up branch."""
    return (0.0, 0.0) if hidden_act == "silu" else (float(beta), float(linear_beta or 0.0))


class GLU(torch.autograd.Function):
    """gate, up [..., I], contiguous fp32 on the CPU. Keeps nothing else."""

    @staticmethod
    def forward(ctx, gate: Tensor, up: Tensor, beta: float, linear: float) -> Tensor:
        out, width = torch.empty_like(gate), gate.shape[-1]
        ctx.save_for_backward(gate, up)
        ctx.sizes = gate.numel() // width, width, beta, linear
        kernel("glu_forward", [gate, up], [out], *ctx.sizes)
        return out

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        gate, up = ctx.saved_tensors
        d_gate, d_up = torch.empty_like(gate), torch.empty_like(up)
        kernel("glu_backward", [gate, up, grad.contiguous()], [d_gate, d_up], *ctx.sizes)
        return d_gate, d_up, None, None


def glu(gate: Tensor, up: Tensor, hidden_act: str, beta: float, linear_beta: float | None) -> Tensor:
    """The GLU of the config, gate, up [..., I] -> [..., I]."""
    if usable(gate, up):
        return GLU.apply(gate.contiguous(), up.contiguous(), *native_betas(hidden_act, beta, linear_beta))
    return norm.glu(gate, up, hidden_act, beta, linear_beta)


class Gate(torch.autograd.Function):
    """o sigmoid(g), both contiguous fp32 on the CPU."""

    @staticmethod
    def forward(ctx, o: Tensor, g: Tensor) -> Tensor:
        out = torch.empty_like(o)
        ctx.save_for_backward(o, g)
        kernel("gate_forward", [o, g], [out], o.numel())
        return out

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        o, g = ctx.saved_tensors
        d_o, d_g = torch.empty_like(o), torch.empty_like(g)
        kernel("gate_backward", [o, g, grad.contiguous()], [d_o, d_g], o.numel())
        return d_o, d_g


def sigmoid_gate(o: Tensor, g: Tensor) -> Tensor:
    """o sigmoid(g), the gate in fp32: o [...], g [...] -> [...]."""
    if usable(o, g):
        return Gate.apply(o.contiguous(), g.contiguous())
    return o * torch.sigmoid(g.float())
