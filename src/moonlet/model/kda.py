"""The KDA layer: short convolutions, gates, the delta-rule operator, gated output norm (K3 report 2.1.1).

    q, k = L2norm(SiLU(conv4(W x))),  v = SiLU(conv4(W_v x)),  beta = sigmoid(W_b x)
    z = W_fb W_fa x + dt_bias
    g = g_min sigmoid(e^A_log z)  (K3, bounded)   or   g = -e^A_log softplus(z)  (Kimi Linear)
    y = W_o [sigmoid(gate(x)) * RMSNorm_headwise(o)],  gate full rank (g_proj) or low rank (g_b g_a)

Shapes: x [B, T, d]; q, k, v, g [B, T, H, K]; beta [B, T, H]. L2norm: x / sqrt(sum x^2 + l2_eps), then q * K^-0.5.
Packed rows: convolution and state restart where `segments` changes. With a cache, `valid` marks real tokens of a
right-padded block: padding gets g = 0, beta = 0 and leaves the state untouched.
Every operator exists twice: in plain PyTorch, and in C++ for fp32 on a CPU (`kernels/native`), with the same arguments.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from moonlet.model.config import ModelConfig
from moonlet.model.kernels.conv import conv_qkv
from moonlet.model.kernels.gated_norm import gated_norm
from moonlet.model.kernels.kda import delta_rule
from moonlet.model.kernels.kda.gate import kda_gate
from moonlet.model.linear import Linear, product
from moonlet.model.norm import RMSNorm


@dataclass
class KDAState:
    """What one layer keeps per sequence: S [B, H, K, V] and the last conv inputs [B, width-1, 3*H*K]."""

    S: Tensor
    conv: Tensor


class KDA(nn.Module):
    def __init__(self, c: ModelConfig) -> None:
        super().__init__()
        d, H, K = c.hidden_size, c.kda("num_heads"), c.kda("head_dim")
        width = c.kda("short_conv_kernel_size", 4)
        self.num_heads, self.head_dim, self.l2_eps = H, K, c.l2_eps
        self.lower_bound: float | None = c.kda("gate_lower_bound")
        self.q_proj = Linear(d, H * K)
        self.k_proj = Linear(d, H * K)
        self.v_proj = Linear(d, H * K)
        self.q_conv1d = nn.Conv1d(H * K, H * K, width, groups=H * K, bias=False)
        self.k_conv1d = nn.Conv1d(H * K, H * K, width, groups=H * K, bias=False)
        self.v_conv1d = nn.Conv1d(H * K, H * K, width, groups=H * K, bias=False)
        self.f_a_proj = Linear(d, K)
        self.f_b_proj = Linear(K, H * K)
        self.b_proj = Linear(d, H)
        if c.kda("use_full_rank_gate"):
            self.g_proj = Linear(d, H * K)
        else:
            self.g_a_proj = Linear(d, K)
            self.g_b_proj = Linear(K, H * K)
        self.A_log = nn.Parameter(torch.zeros(H))
        self.dt_bias = nn.Parameter(torch.zeros(H * K))
        self.o_norm = RMSNorm(K, c.rms_norm_eps)
        self.o_proj = Linear(H * K, d)

    def init_gates(self, generator: torch.Generator) -> None:
        """dt log-uniform in [1e-3, 1e-1] through the inverse softplus; A_log 0 (bounded gate) or log U(1, 16)."""
        set_decay(self.dt_bias, (1e-3, 1e-1), generator)
        if self.lower_bound is None:
            with torch.no_grad():
                self.A_log.uniform_(1, 16, generator=generator).log_()

    def forward(
        self, x: Tensor, segments: Tensor | None = None, state: KDAState | None = None, valid: Tensor | None = None
    ) -> Tensor:
        """x [B, T, d] -> [B, T, d]; `state` is read and updated in place of its fields."""
        if x.shape[1] == 1:  # joining the weights would cost as much as reading them
            qkv = torch.cat([self.q_proj(x), self.k_proj(x), self.v_proj(x)], dim=-1)
        else:
            joint = torch.cat([self.q_proj.weight, self.k_proj.weight, self.v_proj.weight])
            qkv = product(x, joint, self.q_proj.bf16)
        taps = torch.cat([self.q_conv1d.weight, self.k_conv1d.weight, self.v_conv1d.weight]).squeeze(1)
        past, S = (None, None) if state is None else (state.conv, state.S)
        q, k, v = conv_qkv(qkv, taps, past, segments, self.num_heads, self.l2_eps)
        raw = self.f_b_proj(self.f_a_proj(x)).float()
        g = kda_gate(raw, self.dt_bias, self.A_log.float(), self.lower_bound)
        beta = torch.sigmoid(self.b_proj(x).float())
        if valid is not None:
            g, beta = g * valid[:, :, None, None], beta * valid[:, :, None]
        o, S = delta_rule(q, k, v, g, beta, S, segments, pairwise=self.lower_bound is None)
        if state is not None:
            state.S, state.conv = S, conv_tail(state.conv, qkv, valid)
        gate = self.g_proj(x) if hasattr(self, "g_proj") else self.g_b_proj(self.g_a_proj(x))
        o = gated_norm(o, self.o_norm.weight, gate.float(), self.o_norm.eps)
        return self.o_proj(o.to(x.dtype))


@torch.no_grad()
def set_decay(dt_bias: Tensor, bounds: tuple[float, float], generator: torch.Generator) -> None:
    """Fill `dt_bias` so that softplus(dt_bias) is log-uniform in `bounds`."""
    dt = torch.empty_like(dt_bias).uniform_(*map(math.log, bounds), generator=generator).exp()
    dt_bias.copy_(dt + torch.log(-torch.expm1(-dt)))


def conv_tail(past: Tensor, new: Tensor, valid: Tensor | None) -> Tensor:
    """The last width-1 conv inputs of each row after a block, right padding not counted."""
    keep = past.shape[1]
    joined = torch.cat([past, new], dim=1)
    if valid is None:
        return joined[:, -keep:]
    at = valid.sum(1).long()[:, None] + torch.arange(keep, device=new.device)  # rows end after `valid` new tokens
    return joined.gather(1, at.unsqueeze(-1).expand(-1, -1, joined.shape[-1]))
