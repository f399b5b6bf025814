"""Summed cross-entropy whose backward pass writes the gradient over the logits: they are the largest tensor of a step.

Shapes: logits [n, vocab], targets [n] -> a scalar. F.cross_entropy is the truth, and the form for other dtypes and
devices and under torch.compile. Logits are used up by the native backward pass: no one else may need them, and a second
one is an error.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from moonlet.model.kernels.native import call, usable


class CrossEntropy(torch.autograd.Function):
    """logits contiguous fp32 on the CPU, targets int64."""

    @staticmethod
    def forward(ctx, logits: Tensor, targets: Tensor) -> Tensor:
        lse = logits.new_empty(logits.shape[0])
        ctx.kept = logits.detach(), targets, lse
        loss = logits.new_empty((), dtype=torch.float64)
        call("cross_entropy_forward", *ctx.kept, loss, *logits.shape)
        return loss.float()

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        if ctx.kept is None:
            raise RuntimeError("a second backward pass through the cross-entropy: the first one overwrote the logits")
        (logits, targets, lse), ctx.kept = ctx.kept, None
        call("cross_entropy_backward", logits, targets, lse, *logits.shape, float(grad))
        return logits, None


def summed_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """sum_i -log softmax(logits_i)[targets_i]; logits [n, vocab], targets [n]."""
    if usable(logits) and not torch.compiler.is_compiling():
        return CrossEntropy.apply(logits.contiguous(), targets.contiguous())
    return F.cross_entropy(logits.float(), targets, reduction="sum")
