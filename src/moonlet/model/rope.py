"""Rotary positions of the K2 form, with YaRN (arXiv 2309.00071) as DeepSeek-V3 uses it. K3 and Kimi Linear have none.

Pairs are interleaved, (x0, x1), (x2, x3), ...; the rotated halves are written as transformers' reference does
(all first elements, then all second), which only permutes the dot product.
"""

import math

import torch
from torch import Tensor

from moonlet.model.config import ModelConfig


def yarn_mscale(factor: float, mscale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def inverse_frequencies(c: ModelConfig) -> tuple[Tensor, float]:
    """Frequencies [rope/2] and the factor on cos and sin."""
    dim, base = c.qk_rope_head_dim, c.rope_theta
    extrapolated = base ** (-torch.arange(0, dim, 2, device="cpu").float() / dim)  # also while a model is made on meta
    s = c.rope_scaling
    if not s:
        return extrapolated, 1.0
    factor, original = s["factor"], s["original_max_position_embeddings"]

    def dimension(rotations: float) -> float:
        return dim * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(base))

    low = max(math.floor(dimension(s.get("beta_fast") or 32)), 0)
    high = min(math.ceil(dimension(s.get("beta_slow") or 1)), dim - 1)
    ramp = ((torch.arange(dim // 2, device="cpu").float() - low) / max(high - low, 0.001)).clamp(0, 1)
    scaled = extrapolated / factor * ramp + extrapolated * (1 - ramp)
    mscale, all_dim = s.get("mscale"), s.get("mscale_all_dim")
    if mscale and all_dim:
        return scaled, yarn_mscale(factor, mscale) / yarn_mscale(factor, all_dim)
    return scaled, yarn_mscale(factor, 1.0)


def softmax_scale(c: ModelConfig) -> float:
    """(nope + rope)^-0.5, times mscale^2 under YaRN."""
    scale = (c.qk_nope_head_dim + c.qk_rope_head_dim) ** -0.5
    s = None if c.mla_use_nope else c.rope_scaling
    if s and s.get("mscale_all_dim"):
        scale *= yarn_mscale(s["factor"], s["mscale_all_dim"]) ** 2
    return scale


def rotate(x: Tensor, positions: Tensor, frequencies: Tensor, factor: float) -> Tensor:
    """x [B, T, H, R] rotated by its position [B, T]."""
    angle = positions[:, :, None, None].float() * frequencies
    cos, sin = angle.cos() * factor, angle.sin() * factor
    a, b = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).to(x.dtype)
