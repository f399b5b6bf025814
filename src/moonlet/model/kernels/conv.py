"""From the joint projection to q, k, v of KDA: short convolution, SiLU, L2 norm (K3 report 2.1.1).

    q, k = L2norm(SiLU(conv(x))), q times K^-0.5,  v = SiLU(conv(x));   L2norm(x) = x / sqrt(sum x^2 + eps)

`conv_qkv_torch` is the plain form, `native_conv_qkv` the same function in native/conv.cpp (fp32 on a CPU; no gradient
for `past`), `gpu.fla_conv_qkv` on a GPU; `conv_qkv` takes the one that can. x [B, T, 3*H*K]: all of q, then k, then v;
taps [3*H*K, width]; past [B, width-1, 3*H*K] or None (zeros); segments [B, T] or None; -> q, k, v [B, T, H, K] fp32
(fla's: as x).
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from moonlet.model.kernels import gpu
from moonlet.model.kernels.native import kernel, usable


def short_conv(x: Tensor, weight: Tensor, past: Tensor | None, segments: Tensor | None) -> Tensor:
    """Causal depthwise convolution + SiLU. x [B, T, C], weight [C, width], past [B, width-1, C] (zeros if None)."""
    width, T = weight.shape[1], x.shape[1]
    padded = F.pad(x, (0, 0, width - 1, 0)) if past is None else torch.cat([past.to(x.dtype), x], dim=1)
    if segments is None:
        y = F.conv1d(padded.transpose(1, 2), weight.unsqueeze(1), groups=weight.shape[0]).transpose(1, 2)
        return F.silu(y)
    y = x * weight[:, -1]
    for back in range(1, width):  # a tap may not look across a document border
        same = torch.zeros_like(segments, dtype=torch.bool)
        same[:, back:] = segments[:, back:] == segments[:, :-back]
        tap = padded[:, width - 1 - back : width - 1 - back + T]
        y = torch.addcmul(y, tap * same.unsqueeze(-1), weight[:, width - 1 - back])
    return F.silu(y)


def l2norm(x: Tensor, eps: float) -> Tensor:
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + eps)


def conv_qkv(
    x: Tensor, taps: Tensor, past: Tensor | None, segments: Tensor | None, heads: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    if gpu.usable(x, taps, past) and (past is None or segments is None):
        return gpu.fla_conv_qkv(x, taps, past, segments, heads, eps)
    return (native_conv_qkv if usable(x, taps, past) else conv_qkv_torch)(x, taps, past, segments, heads, eps)


def conv_qkv_torch(
    x: Tensor, taps: Tensor, past: Tensor | None, segments: Tensor | None, heads: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = short_conv(x, taps, past, segments).float().unflatten(-1, (3, heads, -1)).unbind(2)
    return l2norm(q, eps) * q.shape[-1] ** -0.5, l2norm(k, eps), v


def native_conv_qkv(
    x: Tensor, taps: Tensor, past: Tensor | None, segments: Tensor | None, heads: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    assert past is None or not past.requires_grad
    return ConvQKV.apply(x, taps, past, segments, heads, eps)


class ConvQKV(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, taps, past, segments, heads: int, eps: float):  # type: ignore[no-untyped-def, override]
        x, by_tap = x.contiguous(), taps.t().contiguous()
        past, segments = (None if t is None else t.contiguous() for t in (past, segments))
        B, T, C = x.shape
        sizes = (B, T, heads, C // (3 * heads), taps.shape[1], eps)
        q, k, v = (x.new_empty(sizes[:4]) for _ in range(3))
        kernel("conv_forward", [x, by_tap, past, segments], [q, k, v], *sizes)
        ctx.save_for_backward(x, by_tap, past, segments)
        ctx.sizes = sizes
        return q, k, v

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads: Tensor):  # type: ignore[override]
        x, by_tap, past, segments = ctx.saved_tensors
        dx, d_taps = torch.empty_like(x), torch.empty_like(by_tap)
        inputs = [x, by_tap, past, segments, *(g.contiguous() for g in grads)]
        kernel("conv_backward", inputs, [dx, d_taps], *ctx.sizes)
        return dx, d_taps.t(), None, None, None, None
