"""The causal attention of MLA, softmax(scale q (k_nope | k_r)^T) v, and its largest logit by head (for QK-Clip).

Shapes: q [B, T, H, P + R]; kv [B, T, H, P + V] = (k_nope | v) as one projection gives them; k_r [B, T, R] shared by the
heads; segments [B, T] or None (packed documents: runs of equal numbers, each sees itself only) -> o [B, T, H, V],
largest [H]. `attention_torch` is the truth, and the form for other dtypes and devices: all T x T weights, in fp32. The
native form goes over blocks of rows, skips keys that nobody in the block may see and keeps log-sum-exps alone.
"""

import torch
from torch import Tensor

from moonlet.model.kernels.native import kernel, usable


class Attend(torch.autograd.Function):
    """softmax(q k^T + bias) v, keeping only the weights: q, k [N, T, K]; v [N, T, V]; bias [N or 1, T, T], -inf unseen.

    Returns o [N, T, V] and the largest logit of each of the N.
    """

    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        logits = torch.baddbmm(bias, q, k.transpose(1, 2))
        largest = logits.amax(dim=(1, 2))
        weights = logits.softmax(-1)
        ctx.save_for_backward(q, k, v, weights)
        ctx.mark_non_differentiable(largest)
        return weights @ v, largest

    @staticmethod
    def backward(ctx, d_o: Tensor, _):  # type: ignore[override]
        q, k, v, weights = ctx.saved_tensors
        d_logits = torch._softmax_backward_data(d_o @ v.transpose(1, 2), weights, -1, weights.dtype)
        return d_logits @ k, d_logits.transpose(1, 2) @ q, weights.transpose(1, 2) @ d_o, None


def attention_torch(q: Tensor, kv: Tensor, k_r: Tensor, segments: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    B, T, H, K = q.shape
    nope = K - k_r.shape[-1]
    k_nope, v = kv.split([nope, kv.shape[-1] - nope], dim=-1)
    k = torch.cat([k_nope, k_r.unsqueeze(2).expand(-1, -1, H, -1)], dim=-1)
    acc = torch.promote_types(q.dtype, torch.float32)
    q, k, v = (t.to(acc).transpose(1, 2).reshape(B * H, T, -1) for t in (q * scale, k, v))
    bias = q.new_full((T, T), -torch.inf).triu(1)[None]
    if segments is not None:
        bias = bias.masked_fill(segments.unsqueeze(-1) != segments.unsqueeze(-2), -torch.inf)
        bias = bias.repeat_interleave(H, dim=0)
    o, largest = Attend.apply(q, k, v, bias)
    return o.view(B, H, T, -1).transpose(1, 2), largest.view(B, H).amax(0)


class BlockAttention(torch.autograd.Function):
    """Contiguous fp32 tensors on the CPU, segments int64."""

    @staticmethod
    def forward(ctx, q, kv, k_r, segments: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
        B, T, H, K = q.shape
        R = k_r.shape[-1]
        V = kv.shape[-1] - (K - R)
        o, lse, largest = q.new_empty(B, T, H, V), q.new_empty(B, H, T), q.new_empty(H)
        ctx.sizes = B, T, H, K - R, R, V, scale
        kernel("attention_forward", [q, kv, k_r, segments], [o, lse, largest], *ctx.sizes)
        ctx.save_for_backward(q, kv, k_r, segments, lse)
        ctx.mark_non_differentiable(largest)
        return o, largest

    @staticmethod
    def backward(ctx, d_o: Tensor, _):  # type: ignore[override]
        q, kv, k_r, segments, lse = ctx.saved_tensors
        grads = [torch.empty_like(t) for t in (q, kv, k_r)]
        kernel("attention_backward", [d_o.contiguous(), q, kv, k_r, segments, lse], grads, *ctx.sizes)
        return *grads, None, None


def attention(q: Tensor, kv: Tensor, k_r: Tensor, segments: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """-> o [B, T, H, V] in fp32 (or wider), largest logit of each head [H]."""
    if usable(q, kv, k_r):
        segments = None if segments is None else segments.long().contiguous()
        return BlockAttention.apply(q.contiguous(), kv.contiguous(), k_r.contiguous(), segments, scale)
    return attention_torch(q, kv, k_r, segments, scale)
