"""RMSNorm and the two GLU activations used by every Kimi model.

RMSNorm(x) = w * x / sqrt(mean(x^2) + eps), variance in fp32. SiTU (K3 report eq. 12) caps both GLU branches smoothly:
f(g, u) = b1 tanh(g/b1) sigmoid(g) * b2 tanh(u/b2), |f| <= b1 b2; it tends to SwiGLU as the betas grow.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """x [..., size] -> [..., size]."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], self.weight, self.eps)


class SiTU(torch.autograd.Function):
    """SiTU-GLU that keeps only its two inputs: the saturations are recomputed in the backward pass."""

    @staticmethod
    def forward(ctx, gate: Tensor, up: Tensor, beta: float, linear_beta: float | None) -> Tensor:
        ctx.save_for_backward(gate, up)
        ctx.betas = beta, linear_beta
        capped = up if linear_beta is None else torch.tanh(up / linear_beta).mul_(linear_beta)
        return torch.tanh(gate / beta).mul_(beta).mul_(torch.sigmoid(gate)).mul_(capped)

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        gate, up = ctx.saved_tensors
        beta, linear_beta = ctx.betas
        t, s = torch.tanh(gate / beta), torch.sigmoid(gate)
        if linear_beta is None:
            capped, slope = up, None
        else:
            tu = torch.tanh(up / linear_beta)
            capped, slope = tu * linear_beta, (tu * tu).neg_().add_(1)
        ts = t * s
        # d/dg [b t s] = (1 - t^2) s + b t s (1 - s)
        d_gate = (s - ts * t).add_(ts.sub(ts * s).mul_(beta)).mul_(capped).mul_(grad)
        d_up = ts.mul_(beta).mul_(grad)
        return d_gate, (d_up if slope is None else d_up.mul_(slope)), None, None


def glu(gate: Tensor, up: Tensor, hidden_act: str, beta: float, linear_beta: float | None) -> Tensor:
    """The GLU of the config: SiTU ("situ", inside in fp32) or SwiGLU ("silu"). gate, up [..., I] -> [..., I]."""
    if hidden_act == "silu":
        return F.silu(gate) * up
    return SiTU.apply(gate.float(), up.float(), beta, linear_beta).to(gate.dtype)
