"""One read of the depth bus and the norm behind it, fused: each source row is read twice, nothing else is kept.

    s_i = w . v_i / rms(v_i),   alpha = softmax(s),   y = RMSNorm(sum_i alpha_i v_i)          (arXiv 2603.15031)

Shapes: sources v_i [..., d], at least two; w, norm [d] -> y [..., d]. `mix_and_norm_torch` is the truth, and the form
for other dtypes and devices and under torch.compile, where a source has no address yet: all of it in fp32 (or wider).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from moonlet.model.kernels.native import call, usable


def mix_and_norm_torch(sources: Sequence[Tensor], w: Tensor, norm: Tensor, eps: float, norm_eps: float) -> Tensor:
    acc = torch.promote_types(w.dtype, torch.float32)
    scores = [(v.to(acc) @ w.to(acc)) * torch.rsqrt(v.to(acc).square().mean(-1) + eps) for v in sources]
    alpha = torch.stack(scores, dim=-1).softmax(-1)
    mixed = alpha[..., :1] * sources[0]
    for i in range(1, len(sources)):
        mixed = torch.addcmul(mixed, alpha[..., i : i + 1], sources[i])
    return F.rms_norm(mixed.to(sources[0].dtype), norm.shape, norm, norm_eps)


def addresses(tensors: Sequence[Tensor]) -> Tensor:
    """What C reads as an array of pointers to the data."""
    return torch.tensor([t.data_ptr() for t in tensors], dtype=torch.int64)


class MixAndNorm(torch.autograd.Function):
    """Contiguous fp32 sources on the CPU."""

    @staticmethod
    def forward(ctx, w: Tensor, norm: Tensor, eps: float, norm_eps: float, *sources: Tensor) -> Tensor:
        out, d = torch.empty_like(sources[0]), w.shape[0]
        ctx.save_for_backward(w, norm, *sources)
        ctx.sizes = out.numel() // d, d, len(sources), float(eps), float(norm_eps)
        call("attn_res_forward", addresses(sources), w, norm, out, *ctx.sizes)
        return out

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        w, norm, *sources = ctx.saved_tensors
        grad, d_w, d_norm = grad.contiguous(), torch.empty_like(w), torch.empty_like(norm)
        d_sources = [torch.empty_like(v) for v in sources]
        where = addresses(sources), addresses(d_sources)
        call("attn_res_backward", where[0], w, norm, grad, where[1], d_w, d_norm, *ctx.sizes)
        return d_w, d_norm, None, None, *d_sources


def mix_and_norm(sources: Sequence[Tensor], w: Tensor, norm: Tensor, eps: float, norm_eps: float) -> Tensor:
    """RMSNorm (weight `norm`) of the softmax-over-depth mix of the sources by the query w: [..., d]."""
    if usable(w, norm, *sources) and not torch.compiler.is_compiling():
        return MixAndNorm.apply(w, norm, eps, norm_eps, *(v.contiguous() for v in sources))
    return mix_and_norm_torch(sources, w, norm, eps, norm_eps)
