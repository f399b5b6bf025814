"""Mixture of experts: sigmoid router with a selection bias, experts at full width (K2, Kimi Linear) or latent (K3).

    s = sigmoid(W_r x) fp32;  choose top-k of s + b;  p = s_chosen / (sum s_chosen + 1e-20) * routed_scaling_factor
    z = W_down x;  u = sum_i p_i E_i(z);  y = shared(x) + W_up RMSNorm(u)         (Stable LatentMoE, K3 report 2.3)

The bias b only chooses; it has no gradient and is moved by `optim.balance` from the numbers in RouterStats.
Shapes (suffix legend: N tokens, D hidden, L latent, I expert width, E experts, k per token, c rows per expert):
experts are stacks w1, w3 [E, I, L] and w2 [E, L, I]. Dispatch (`kernels.experts`): sort the N*k assignments by expert
and run each expert on its rows. No token is dropped. Small blocks (decoding) run all experts, but not on a GPU.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from moonlet.model.config import ModelConfig
from moonlet.model.kernels.experts import grouped_usable, routed_experts, stacked
from moonlet.model.kernels.glu import glu
from moonlet.model.linear import Linear
from moonlet.model.norm import RMSNorm


@dataclass
class RouterStats:
    """Of one layer and one block: raw scores s [N, E], cutoff [N] = the (k+1)-th biased score, counts [E]."""

    scores: Tensor
    cutoff: Tensor
    counts: Tensor


class MLP(nn.Module):
    """Gated MLP: down(glu(gate x, up x)); dense layers and shared experts."""

    def __init__(self, c: ModelConfig, width: int) -> None:
        super().__init__()
        self.act = (c.hidden_act, c.activation_situ_beta, c.activation_situ_linear_beta)
        self.gate_proj = Linear(c.hidden_size, width)
        self.up_proj = Linear(c.hidden_size, width)
        self.down_proj = Linear(width, c.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(glu(self.gate_proj(x), self.up_proj(x), *self.act))


class Experts(nn.Module):
    """The stacked routed experts."""

    bf16 = False  # as of model/linear.py

    def __init__(self, c: ModelConfig, width_in: int) -> None:
        super().__init__()
        E, width = c.num_experts, c.moe_intermediate_size
        self.act = (c.hidden_act, c.activation_situ_beta, c.activation_situ_linear_beta)
        self.w1 = nn.Parameter(torch.empty(E, width, width_in))
        self.w3 = nn.Parameter(torch.empty(E, width, width_in))
        self.w2 = nn.Parameter(torch.empty(E, width_in, width))

    def routed(self, z_NL: Tensor, chosen: Tensor, p: Tensor) -> Tensor:
        """sum_i p_i E_i(z), each expert on the rows that chose it."""
        if z_NL.shape[0] <= 256 and not torch.is_grad_enabled() and not grouped_usable(z_NL, self.w1):
            return self.all_experts(z_NL, chosen, p)
        return routed_experts(z_NL, chosen, p, self.w1, self.w3, self.w2, self.act, self.bf16)

    def all_experts(self, z_NL: Tensor, chosen: Tensor, p: Tensor) -> Tensor:
        """The same sum for a few tokens: every expert on every token, weights zero where not chosen."""
        E = self.w1.shape[0]
        out_ENL = stacked(z_NL.expand(E, *z_NL.shape), self.w1, self.w3, self.w2, self.act)
        p_NE = p.new_zeros(p.shape[0], E).scatter_(1, chosen, p)
        return torch.einsum("enl,ne->nl", out_ENL, p_NE.to(out_ENL.dtype)).to(z_NL.dtype)


class Router(nn.Module):
    e_score_correction_bias: Tensor

    def __init__(self, c: ModelConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(c.num_experts, c.hidden_size))
        self.register_buffer("e_score_correction_bias", torch.zeros(c.num_experts))
        self.top_k, self.renormalize, self.factor = c.num_experts_per_token, c.moe_renormalize, c.routed_scaling_factor

    def forward(self, x_ND: Tensor) -> tuple[Tensor, Tensor, RouterStats]:
        """-> chosen experts [N, k], their weights [N, k], statistics."""
        scores = torch.sigmoid(x_ND.float() @ self.weight.float().T)
        biased = scores.detach() + self.e_score_correction_bias
        E, k = biased.shape[-1], self.top_k
        top, chosen = biased.topk(min(k + 1, E), dim=-1)
        cutoff = top[:, k] if k < E else torch.full_like(top[:, 0], -torch.inf)
        chosen = chosen[:, :k]
        p = scores.gather(1, chosen)
        if self.renormalize:
            p = p / (p.sum(-1, keepdim=True) + 1e-20)
        flat = chosen.reshape(-1)
        counts = flat.new_zeros(E).scatter_add_(0, flat, torch.ones_like(flat))  # torch.compile cannot take bincount
        return chosen, p * self.factor, RouterStats(scores.detach(), cutoff, counts)


class MoE(nn.Module):
    def __init__(self, c: ModelConfig) -> None:
        super().__init__()
        latent = c.routed_expert_hidden_size
        self.gate = Router(c)
        if latent is not None:
            self.routed_expert_down_proj = Linear(c.hidden_size, latent)
            self.routed_expert_up_proj = Linear(latent, c.hidden_size)
            if c.latent_moe_use_norm:
                self.routed_expert_norm = RMSNorm(latent, c.rms_norm_eps)
        self.experts = Experts(c, latent or c.hidden_size)
        if c.num_shared_experts:
            self.shared_experts = MLP(c, c.num_shared_experts * c.moe_intermediate_size)

    def forward(self, x: Tensor) -> tuple[Tensor, RouterStats]:
        """x [B, T, D] -> y [B, T, D], statistics."""
        x_ND = x.flatten(0, 1)
        chosen, p, stats = self.gate(x_ND)
        z_NL = self.routed_expert_down_proj(x_ND) if hasattr(self, "routed_expert_down_proj") else x_ND
        y_ND = self.experts.routed(z_NL, chosen, p)
        if hasattr(self, "routed_expert_up_proj"):
            if hasattr(self, "routed_expert_norm"):
                y_ND = self.routed_expert_norm(y_ND)
            y_ND = self.routed_expert_up_proj(y_ND)
        if hasattr(self, "shared_experts"):
            y_ND = y_ND + self.shared_experts(x_ND)
        return y_ND.view_as(x), stats
