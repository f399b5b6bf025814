"""RMSNorm in one pass over the rows each way; the backward pass recomputes 1/rms.

RMSNorm(x) = w x / sqrt(mean(x^2) + eps). Shapes: x [..., d], w [d] -> [..., d]. F.rms_norm is the truth, and the form
for other dtypes and devices.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from moonlet.model.kernels.native import kernel, usable


class RMSNormRows(torch.autograd.Function):
    """x [..., d] contiguous, w [d], fp32 on the CPU."""

    @staticmethod
    def forward(ctx, x: Tensor, w: Tensor, eps: float) -> Tensor:
        out, d = torch.empty_like(x), x.shape[-1]
        ctx.save_for_backward(x, w)
        ctx.sizes = x.numel() // d, d, float(eps)
        kernel("rms_norm_forward", [x, w], [out], *ctx.sizes)
        return out

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        x, w = ctx.saved_tensors
        d_x, d_w = torch.empty_like(x), torch.empty_like(w)
        kernel("rms_norm_backward", [x, w, grad.contiguous()], [d_x, d_w], *ctx.sizes)
        return d_x, d_w, None


def rms_norm(x: Tensor, w: Tensor, eps: float) -> Tensor:
    """x [..., d], w [d] -> [..., d]."""
    if usable(x, w):
        return RMSNormRows.apply(x.contiguous(), w, eps)
    return F.rms_norm(x, x.shape[-1:], w, eps)
