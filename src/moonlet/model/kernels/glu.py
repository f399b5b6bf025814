"""The GLU of a joint projection and the sigmoid output gate, each in one pass forward and one backward.

Source: K3 report eq. 12 for SiTU; the formulas stand in `norm.glu`, which is the truth and the form for other dtypes
and devices. Shapes: joint [..., 2 I] = (gate | up) from one matrix product -> [..., I]; gate o, g of one shape.
"""

import torch
from torch import Tensor

from moonlet.model.kernels.native import call, usable
from moonlet.model.norm import glu


def native_betas(hidden_act: str, beta: float, linear_beta: float | None) -> tuple[float, float]:
    """The activation as the C functions read it (glu.h): beta 0 means SwiGLU, linear beta 0 an uncapped up branch."""
    return (0.0, 0.0) if hidden_act == "silu" else (float(beta), float(linear_beta or 0.0))


class JointGLU(torch.autograd.Function):
    """joint [..., 2 I], contiguous fp32 on the CPU. Keeps joint alone."""

    @staticmethod
    def forward(ctx, joint: Tensor, beta: float, linear: float) -> Tensor:
        width = joint.shape[-1] // 2
        out = joint.new_empty(*joint.shape[:-1], width)
        ctx.save_for_backward(joint)
        ctx.sizes = out.numel() // width, width, beta, linear
        call("glu_forward", joint, out, *ctx.sizes)
        return out

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        (joint,) = ctx.saved_tensors
        grad, d_joint = grad.contiguous(), torch.empty_like(joint)
        call("glu_backward", joint, grad, d_joint, *ctx.sizes)
        return d_joint, None, None


def joint_glu(joint: Tensor, hidden_act: str, beta: float, linear_beta: float | None) -> Tensor:
    """glu(gate, up) of joint [..., 2 I] = (gate | up) -> [..., I]."""
    if usable(joint):
        return JointGLU.apply(joint.contiguous(), *native_betas(hidden_act, beta, linear_beta))
    gate, up = joint.chunk(2, dim=-1)
    return glu(gate, up, hidden_act, beta, linear_beta)


class Gate(torch.autograd.Function):
    """o sigmoid(g), both contiguous fp32 on the CPU."""

    @staticmethod
    def forward(ctx, o: Tensor, g: Tensor) -> Tensor:
        out = torch.empty_like(o)
        ctx.save_for_backward(o, g)
        call("gate_forward", o, g, out, o.numel())
        return out

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        o, g = ctx.saved_tensors
        grad, d_o, d_g = grad.contiguous(), torch.empty_like(o), torch.empty_like(g)
        call("gate_backward", o, g, grad, d_o, d_g, o.numel())
        return d_o, d_g


def sigmoid_gate(o: Tensor, g: Tensor) -> Tensor:
    """o sigmoid(g), the gate in fp32: o [...], g [...] -> [...]."""
    if usable(o, g):
        return Gate.apply(o.contiguous(), g.contiguous())
    return o * torch.sigmoid(g.float())
