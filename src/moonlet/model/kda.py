"""The KDA layer: short convolutions, gates, the delta-rule operator, gated output norm (K3 report 2.1.1).

    q, k = L2norm(SiLU(conv4(W x))),  v = SiLU(conv4(W_v x)),  beta = sigmoid(W_b x)
    z = W_fb W_fa x + dt_bias
    g = g_min sigmoid(e^A_log z)  (K3, bounded)   or   g = -e^A_log softplus(z)  (Kimi Linear)
    y = W_o [sigmoid(gate(x)) * RMSNorm_headwise(o)],  gate full rank (g_proj) or low rank (g_b g_a)

Shapes: x [B, T, d]; q, k, v, g [B, T, H, K]; beta [B, T, H]. L2norm: x / sqrt(sum x^2 + 1e-6), then q * K^-0.5.
Packed rows: convolution and state restart where `segments` changes. With a cache, `valid` marks real tokens of a
right-padded block: padding gets g = 0, beta = 0 and leaves the state untouched.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moonlet.model.config import ModelConfig
from moonlet.model.kernels.kda.chunk import chunk_kda
from moonlet.model.kernels.kda.naive import step
from moonlet.model.norm import RMSNorm


@dataclass
class KDAState:
    """What one layer keeps per sequence: S [B, H, K, V] and the last conv inputs [B, width-1, 3*H*K]."""

    S: Tensor
    conv: Tensor


def short_conv(x: Tensor, weight: Tensor, past: Tensor | None, segments: Tensor | None) -> Tensor:
    """Causal depthwise convolution + SiLU. x [B, T, C], weight [C, width], past [B, width-1, C] (zeros if None)."""
    width, T = weight.shape[1], x.shape[1]
    padded = F.pad(x, (0, 0, width - 1, 0)) if past is None else torch.cat([past, x], dim=1)
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


def l2norm(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-6)


class KDA(nn.Module):
    def __init__(self, c: ModelConfig) -> None:
        super().__init__()
        d, H, K = c.hidden_size, c.kda("num_heads"), c.kda("head_dim")
        width = c.kda("short_conv_kernel_size", 4)
        self.num_heads, self.head_dim = H, K
        self.lower_bound: float | None = c.kda("gate_lower_bound")
        self.q_proj = nn.Linear(d, H * K, bias=False)
        self.k_proj = nn.Linear(d, H * K, bias=False)
        self.v_proj = nn.Linear(d, H * K, bias=False)
        self.q_conv1d = nn.Conv1d(H * K, H * K, width, groups=H * K, bias=False)
        self.k_conv1d = nn.Conv1d(H * K, H * K, width, groups=H * K, bias=False)
        self.v_conv1d = nn.Conv1d(H * K, H * K, width, groups=H * K, bias=False)
        self.f_a_proj = nn.Linear(d, K, bias=False)
        self.f_b_proj = nn.Linear(K, H * K, bias=False)
        self.b_proj = nn.Linear(d, H, bias=False)
        if c.kda("use_full_rank_gate"):
            self.g_proj = nn.Linear(d, H * K, bias=False)
        else:
            self.g_a_proj = nn.Linear(d, K, bias=False)
            self.g_b_proj = nn.Linear(K, H * K, bias=False)
        self.A_log = nn.Parameter(torch.zeros(H))
        self.dt_bias = nn.Parameter(torch.zeros(H * K))
        self.o_norm = RMSNorm(K, c.rms_norm_eps)
        self.o_proj = nn.Linear(H * K, d, bias=False)

    def init_gates(self, generator: torch.Generator) -> None:
        """dt log-uniform in [1e-3, 1e-1] through the inverse softplus; A_log 0 (bounded gate) or log U(1, 16)."""
        dt = torch.empty_like(self.dt_bias).uniform_(math.log(1e-3), math.log(1e-1), generator=generator).exp()
        with torch.no_grad():
            self.dt_bias.copy_(dt + torch.log(-torch.expm1(-dt)))
            if self.lower_bound is None:
                self.A_log.uniform_(1, 16, generator=generator).log_()

    def decay(self, x: Tensor) -> Tensor:
        """Log decay g [B, T, H, K] <= 0, fp32."""
        z = (self.f_b_proj(self.f_a_proj(x)).float() + self.dt_bias).unflatten(-1, (self.num_heads, self.head_dim))
        A = self.A_log.float().exp().unsqueeze(-1)
        if self.lower_bound is None:
            return -A * F.softplus(z)
        return self.lower_bound * torch.sigmoid(A * z)

    def forward(
        self, x: Tensor, segments: Tensor | None = None, state: KDAState | None = None, valid: Tensor | None = None
    ) -> Tensor:
        """x [B, T, d] -> [B, T, d]; `state` is read and updated in place of its fields."""
        T, H, K = x.shape[1], self.num_heads, self.head_dim
        qkv = F.linear(x, torch.cat([self.q_proj.weight, self.k_proj.weight, self.v_proj.weight]))
        taps = torch.cat([self.q_conv1d.weight, self.k_conv1d.weight, self.v_conv1d.weight]).squeeze(1)
        mixed = short_conv(qkv, taps, None if state is None else state.conv, segments)
        q, k, v = mixed.float().unflatten(-1, (3, H, K)).unbind(2)
        q, k = l2norm(q) * K**-0.5, l2norm(k)
        g, beta = self.decay(x), torch.sigmoid(self.b_proj(x).float())
        if valid is not None:
            g, beta = g * valid[:, :, None, None], beta * valid[:, :, None]
        if state is None:
            o, _ = chunk_kda(q, k, v, g, beta, None, segments, pairwise=self.lower_bound is None)
        elif T == 1:
            o, state.S = step(q[:, 0], k[:, 0], v[:, 0], g[:, 0], beta[:, 0], state.S)
            o = o.unsqueeze(1)
        else:
            o, state.S = chunk_kda(q, k, v, g, beta, state.S, None, pairwise=self.lower_bound is None)
        if state is not None:
            state.conv = conv_tail(state.conv, qkv, valid)
        gate = self.g_proj(x) if hasattr(self, "g_proj") else self.g_b_proj(self.g_a_proj(x))
        o = self.o_norm(o).flatten(2) * torch.sigmoid(gate.float())
        return self.o_proj(o.to(x.dtype))


def conv_tail(past: Tensor, new: Tensor, valid: Tensor | None) -> Tensor:
    """The last width-1 conv inputs of each row after a block, right padding not counted."""
    keep = past.shape[1]
    joined = torch.cat([past, new], dim=1)
    if valid is None:
        return joined[:, -keep:]
    at = valid.sum(1).long()[:, None] + torch.arange(keep, device=new.device)  # rows end after `valid` new tokens
    return joined.gather(1, at.unsqueeze(-1).expand(-1, -1, joined.shape[-1]))
