"""The output of KDA's heads: RMSNorm per head times the sigmoid of a gate (K3 report 2.1.1).

`gated_norm_torch` is the plain form, `native_gated_norm` the same function in native/gated_norm.cpp (fp32 on a CPU);
`gated_norm` takes the one that can.
o [B, T, H, V], weight [V], gate [B, T, H*V] -> [B, T, H*V].
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from moonlet.model.kernels.native import kernel, usable


def gated_norm(o: Tensor, weight: Tensor, gate: Tensor, eps: float) -> Tensor:
    return (native_gated_norm if usable(o, weight, gate) else gated_norm_torch)(o, weight, gate, eps)


def gated_norm_torch(o: Tensor, weight: Tensor, gate: Tensor, eps: float) -> Tensor:
    return F.rms_norm(o, o.shape[-1:], weight.to(o.dtype), eps).flatten(2) * torch.sigmoid(gate)


def native_gated_norm(o: Tensor, weight: Tensor, gate: Tensor, eps: float) -> Tensor:
    return GatedNorm.apply(o, weight, gate, eps)


class GatedNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, o, weight, gate, eps: float) -> Tensor:  # type: ignore[no-untyped-def, override]
        o, weight, gate = o.contiguous(), weight.contiguous(), gate.contiguous()
        y = torch.empty_like(gate)
        kernel("gated_norm_forward", [o, weight, gate], [y], float(eps), o.numel() // o.shape[-1], o.shape[-1])
        ctx.save_for_backward(o, weight, gate)
        ctx.eps = float(eps)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        saved = ctx.saved_tensors
        o, grads = saved[0], [torch.empty_like(t) for t in saved]
        rows = o.numel() // o.shape[-1]
        kernel("gated_norm_backward", [*saved, grad.contiguous()], grads, ctx.eps, rows, o.shape[-1])
        return *grads, None
