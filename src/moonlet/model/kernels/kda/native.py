"""KDA as a native operator: the recurrence of `naive.py` with its state in the processor's cache (native/kda.cpp).

Takes any gate g <= 0. Forward keeps the state before every 16th token and the residuals u = v - S'^T k; backward makes
the other states again from these. Shapes as in `naive.py`; fp32 on a CPU only, see `native.usable`.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from moonlet.model.kernels.native import kernel

TILE, BLOCK = 16, 32  # as in kda.cpp


def native_kda(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    initial_state: Tensor | None = None,
    segments: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Same function as `naive_kda`: -> o [B, T, H, V], final state [B, H, K, V]."""
    return KDAOperator.apply(q, k, v, g, beta, initial_state, segments, torch.is_grad_enabled())


class KDAOperator(torch.autograd.Function):
    """Saved for the backward pass: states [B, T/16, H, V/32, K, 32] (quotients rounded up) and u [B, T, H, V]."""

    @staticmethod
    def forward(ctx, q, k, v, g, beta, first, segments, keep: bool) -> tuple[Tensor, Tensor]:  # type: ignore[no-untyped-def]
        q, k, v, g, beta = (x.contiguous() for x in (q, k, v, g, beta))
        first, segments = (None if x is None else x.contiguous() for x in (first, segments))
        B, T, H, K = q.shape
        V = v.shape[-1]
        states = q.new_empty(B, -(-T // TILE), H, -(-V // BLOCK), K, BLOCK) if keep else None
        u = torch.empty_like(v) if keep else None
        o, last = torch.empty_like(v), q.new_empty(B, H, K, V)
        kernel("kda_forward", [q, k, v, g, beta, first, segments], [o, last, states, u], B, T, H, K, V)
        if keep:
            ctx.save_for_backward(q, k, g, beta, segments, states, u)
            ctx.has_state = first is not None
            ctx.set_materialize_grads(False)
        return o, last

    @staticmethod
    @once_differentiable
    def backward(ctx, d_o: Tensor | None, d_last: Tensor | None):  # type: ignore[no-untyped-def, override]
        q, k, g, beta, segments, states, u = ctx.saved_tensors
        B, T, H, K = q.shape
        d_o = torch.zeros_like(u) if d_o is None else d_o.contiguous()
        d_last = None if d_last is None else d_last.contiguous()
        grads = [torch.empty_like(x) for x in (q, k, u, g, beta)]
        d_first = q.new_empty(B, H, K, u.shape[-1]) if ctx.has_state else None
        inputs = [q, k, g, beta, segments, states, u, d_o, d_last]
        kernel("kda_backward", inputs, [*grads, d_first], B, T, H, K, u.shape[-1])
        return *grads, d_first, None, None
