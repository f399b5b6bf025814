"""The causal attention of MLA, softmax(scale q (k_nope | k_r)^T) v, and its largest logit by head (for QK-Clip).

Shapes: q [B, T, H, P + R]; kv [B, T, H, P + V] = (k_nope | v) as one projection gives them; k_r [B, T, R] shared by the
heads; segments [B, T] or None (packed documents: runs of equal numbers, each sees itself only) -> o [B, T, H, V],
largest [H]. `attention_torch` is the truth, and the form for other dtypes and devices: all T x T weights, in fp32. The
native form goes over blocks of rows, skips keys that nobody in the block may see and keeps log-sum-exps alone. On a GPU
torch's flex attention does the same, in the dtype of q, compiled at first use: of its kernels the one that also gives
the largest logits and takes values of another width than the keys (unchecked on a GPU so far).
"""

import functools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, create_block_mask, flex_attention
from torch.utils.weak import WeakIdKeyDictionary

from moonlet.model.kernels import gpu
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


def keys_and_values(q: Tensor, kv: Tensor, k_r: Tensor) -> tuple[Tensor, Tensor]:
    """k [B, T, H, P + R], v [B, T, H, V]."""
    nope = q.shape[-1] - k_r.shape[-1]
    k_nope, v = kv.split([nope, kv.shape[-1] - nope], dim=-1)
    return torch.cat([k_nope, k_r.unsqueeze(2).expand(-1, -1, q.shape[2], -1)], dim=-1), v


def attention_torch(q: Tensor, kv: Tensor, k_r: Tensor, segments: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    B, T, H, _ = q.shape
    k, v = keys_and_values(q, kv, k_r)
    acc = torch.promote_types(q.dtype, torch.float32)
    q, k, v = (t.to(acc).transpose(1, 2).reshape(B * H, T, -1) for t in (q * scale, k, v))
    bias = q.new_full((T, T), -torch.inf).triu(1)[None]
    if segments is not None:
        bias = bias.masked_fill(segments.unsqueeze(-1) != segments.unsqueeze(-2), -torch.inf)
        bias = bias.repeat_interleave(H, dim=0)
    o, largest = Attend.apply(q, k, v, bias)
    return o.view(B, H, T, -1).transpose(1, 2), largest.view(B, H).amax(0)


def flex_usable(q: Tensor, kv: Tensor, k_r: Tensor) -> bool:
    """True on a GPU where keys and values are as wide as the kernel's tiles at least."""
    V = kv.shape[-1] - (q.shape[-1] - k_r.shape[-1])
    return gpu.here(q, kv, k_r) and min(q.shape[-1], V) >= 16


@functools.cache
def compiled() -> Callable:
    return torch.compile(flex_attention)


MASKS: WeakIdKeyDictionary = WeakIdKeyDictionary()  # of the segments that all layers see


@torch.compiler.disable
def document_mask(segments: Tensor) -> BlockMask:
    """Which blocks of keys a block of queries may see: none after it, none of other documents only."""
    if segments not in MASKS:
        B, T = segments.shape
        own = segments.clone()  # the mask keeps it: were it the key itself, neither would ever go

        def sees(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            return (i >= j) & (own[b, i] == own[b, j])

        MASKS[segments] = create_block_mask(sees, B, None, T, T, device=segments.device)
    return MASKS[segments]


@torch.compiler.disable
@functools.lru_cache(8)
def causal_mask(T: int, device: torch.device) -> BlockMask:
    return create_block_mask(lambda b, h, i, j: i >= j, None, None, T, T, device=device)


def attention_flex(q: Tensor, kv: Tensor, k_r: Tensor, segments: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    q, k, v = (t.transpose(1, 2) for t in (q, *keys_and_values(q, kv, k_r)))
    mask = causal_mask(q.shape[2], q.device) if segments is None else document_mask(segments)
    o, aux = compiled()(q, k, v, block_mask=mask, scale=scale, return_aux=AuxRequest(max_scores=True))
    return o.transpose(1, 2).float(), aux.max_scores.detach().amax((0, 2))


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
    form = attention_flex if flex_usable(q, kv, k_r) else attention_torch
    return form(q, kv, k_r, segments, scale)
