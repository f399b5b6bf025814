"""The log decay of KDA (K3 report 2.1.1; Kimi Linear for the unbounded form).

    z = raw + dt_bias,  A = e^A_log:   g = lower sigmoid(A z)  (bounded, lower = -5)   or   g = -A softplus(z)

`kda_gate_torch` is the plain form, `native_kda_gate` the same function in native/kda_gate.cpp (fp32 on a CPU),
`gpu.fla_kda_gate` on a GPU; `kda_gate` takes the one that can.
raw [B, T, H*K], dt_bias [H*K], A_log [H], lower a number or None -> g [B, T, H, K] <= 0.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from moonlet.model.kernels import gpu
from moonlet.model.kernels.native import kernel, usable


def kda_gate(raw: Tensor, dt_bias: Tensor, A_log: Tensor, lower: float | None) -> Tensor:
    if usable(raw, dt_bias, A_log):
        return native_kda_gate(raw, dt_bias, A_log, lower)
    return (gpu.fla_kda_gate if gpu.usable(raw, dt_bias, A_log) else kda_gate_torch)(raw, dt_bias, A_log, lower)


def kda_gate_torch(raw: Tensor, dt_bias: Tensor, A_log: Tensor, lower: float | None) -> Tensor:
    z = (raw + dt_bias).unflatten(-1, (len(A_log), -1))
    A = A_log.exp().unsqueeze(-1)
    return -A * F.softplus(z) if lower is None else lower * torch.sigmoid(A * z)


def native_kda_gate(raw: Tensor, dt_bias: Tensor, A_log: Tensor, lower: float | None) -> Tensor:
    return KDAGate.apply(raw, dt_bias, A_log, lower)


class KDAGate(torch.autograd.Function):
    @staticmethod
    def forward(ctx, raw, dt_bias, A_log, lower: float | None) -> Tensor:  # type: ignore[no-untyped-def, override]
        raw, dt_bias, A_log = raw.contiguous(), dt_bias.contiguous(), A_log.contiguous()
        B, T, C = raw.shape
        H = len(A_log)
        ctx.numbers = int(lower is not None), float(lower or 0.0), B * T, H, C // H
        g = raw.new_empty(B, T, H, C // H)
        kernel("kda_gate_forward", [raw, dt_bias, A_log], [g], *ctx.numbers)
        ctx.save_for_backward(raw, dt_bias, A_log)
        return g

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        saved = ctx.saved_tensors
        grads = [torch.empty_like(t) for t in saved]
        kernel("kda_gate_backward", [*saved, grad.contiguous()], grads, *ctx.numbers)
        return *grads, None
