"""Routed experts: u = sum_i p_i E_i(z) over the k experts that each token chose, E_e(z) = w2_e f(w1_e z, w3_e z).

Shapes (suffix legend: N tokens, L width in and out, I expert width, E experts, k per token, c rows per expert):
z [N, L], chosen and p [N, k], w1, w3 [E, I, L], w2 [E, L, I] -> u [N, L]. No token is dropped. `routed_torch` is the
truth, and the form for other dtypes and devices: assignments sorted by expert, each expert padded to the fullest one,
one batched product a projection. The native form needs no padding; for the backward pass it keeps gate and up, joint
and in sorted order [N k, 2 I]. On a GPU in bf16, torch's grouped products take the sorted rows as they are; no count
of rows goes to the CPU (unchecked on a GPU so far).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from moonlet.model.kernels import gpu
from moonlet.model.kernels.glu import glu as fused_glu
from moonlet.model.kernels.glu import native_betas
from moonlet.model.kernels.native import kernel, usable
from moonlet.model.norm import glu

Act = tuple[str, float, float | None]  # hidden_act, beta, linear_beta


def stacked(x_ECL: Tensor, w1: Tensor, w3: Tensor, w2: Tensor, act: Act) -> Tensor:
    """[E, c, L] -> [E, c, L], expert e on its own rows."""
    return glu(x_ECL @ w1.transpose(1, 2), x_ECL @ w3.transpose(1, 2), *act) @ w2.transpose(1, 2)


def routed_torch(z_NL: Tensor, chosen: Tensor, p: Tensor, w1: Tensor, w3: Tensor, w2: Tensor, act: Act) -> Tensor:
    N, k = chosen.shape
    E = w1.shape[0]
    counts = torch.bincount(chosen.reshape(-1), minlength=E)
    capacity = int(counts.max())
    order = chosen.reshape(-1).argsort(stable=True)  # assignments grouped by expert
    starts = counts.cumsum(0) - counts
    expert = chosen.reshape(-1)[order]
    slot = expert * capacity + torch.arange(N * k, device=z_NL.device) - starts[expert]
    source = torch.full((E * capacity,), N, device=z_NL.device).scatter_(0, slot, order // k)
    z_padded = torch.cat([z_NL, z_NL.new_zeros(1, z_NL.shape[1])])  # row N: padding
    out = stacked(z_padded[source].view(E, capacity, -1), w1, w3, w2, act).flatten(0, 1)
    where = torch.empty_like(slot).scatter_(0, order, slot).view(N, k)  # slot of assignment (token, choice)
    u = out[where[:, 0]] * p[:, :1]
    for choice in range(1, k):
        u = u + out[where[:, choice]] * p[:, choice : choice + 1]
    return u.to(z_NL.dtype)


def grouped_usable(z_NL: Tensor, w1: Tensor) -> bool:
    """True where F.grouped_mm has a kernel: bf16 on a GPU, rows of whole 16 bytes."""
    return gpu.here(z_NL, w1) and z_NL.dtype == w1.dtype == torch.bfloat16 and not any(n % 8 for n in w1.shape[1:])


def routed_grouped(z_NL: Tensor, chosen: Tensor, p: Tensor, w1: Tensor, w3: Tensor, w2: Tensor, act: Act) -> Tensor:
    """Products in bf16, all else in the dtype of z."""
    N, k = chosen.shape
    expert, order = chosen.reshape(-1).sort(stable=True)  # assignments grouped by expert
    ends = torch.searchsorted(expert, torch.arange(w1.shape[0], device=expert.device), right=True).int()

    def product(x: Tensor, w: Tensor) -> Tensor:
        return F.grouped_mm(x.bfloat16(), w.bfloat16().transpose(1, 2), offs=ends).to(x.dtype)

    x = z_NL[order // k]
    out = product(fused_glu(product(x, w1), product(x, w3), *act), w2)
    where = torch.empty_like(order).scatter_(0, order, torch.arange(N * k, device=order.device))
    return (out[where].view(N, k, -1) * p.unsqueeze(-1)).sum(1).to(z_NL.dtype)


def routed_bf16(z_NL: Tensor, chosen: Tensor, p: Tensor, w1: Tensor, w3: Tensor, w2: Tensor, act: Act) -> Tensor:
    """fp32 in and out, products with bf16 operands on a CPU."""
    if all(n % 8 == 0 for n in w1.shape[1:]):
        return routed_grouped(z_NL, chosen, p, w1, w3, w2, act)
    z, w1, w3, w2 = (t.bfloat16() for t in (z_NL, w1, w3, w2))
    return routed_torch(z, chosen, p, w1, w3, w2, act).to(z_NL.dtype)


class RoutedExperts(torch.autograd.Function):
    """Contiguous fp32 tensors on the CPU, chosen int64."""

    @staticmethod
    def forward(ctx, z, chosen, p, w1, w3, w2, beta: float, linear: float) -> Tensor:
        (N, L), k, (E, width, _) = z.shape, chosen.shape[1], w1.shape
        u, joint = torch.empty_like(z), z.new_empty(N * k, 2 * width)
        order, starts = chosen.new_empty(N * k), chosen.new_empty(E + 1)
        ctx.sizes = N, k, E, L, width, beta, linear
        kernel("experts_forward", [z, chosen, p, w1, w3, w2], [u, joint, order, starts], *ctx.sizes)
        ctx.save_for_backward(z, p, w1, w3, w2, joint, order, starts)
        return u

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        z, p, w1, w3, w2, joint, order, starts = ctx.saved_tensors
        grads = [torch.empty_like(t) for t in (z, p, w1, w3, w2)]
        inputs = [grad.contiguous(), z, p, w1, w3, w2, joint, order, starts]
        kernel("experts_backward", inputs, grads, *ctx.sizes)
        d_z, d_p, *d_weights = grads
        return d_z, None, d_p, *d_weights, None, None


def routed_experts(
    z_NL: Tensor, chosen: Tensor, p: Tensor, w1: Tensor, w3: Tensor, w2: Tensor, act: Act, bf16: bool = False
) -> Tensor:
    """sum_i p_i E_i(z): z [N, L], chosen and p [N, k] -> [N, L]; with bf16 as model/linear.py says."""
    if bf16:
        return routed_bf16(z_NL, chosen, p, w1, w3, w2, act)
    if usable(z_NL, p, w1, w3, w2):
        z_NL, chosen, p = z_NL.contiguous(), chosen.contiguous(), p.contiguous()
        return RoutedExperts.apply(z_NL, chosen, p, w1, w3, w2, *native_betas(*act))
    form = routed_grouped if grouped_usable(z_NL, w1) else routed_torch
    return form(z_NL, chosen, p, w1, w3, w2, act)
