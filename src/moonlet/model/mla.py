"""Multi-head latent attention: low-rank queries, one compressed latent for keys and values, optional output gate.

    c, k_r = W_kva x (kv_lora_rank | rope)     c = RMSNorm(c)      (k_nope | v) = W_kvb c per head
    q = W_qb RMSNorm(W_qa x)  or  W_q x        k = (k_nope | k_r shared by all heads)
    o = softmax(q k^T scale) v                 y = W_o (o * sigmoid(W_g x))      scale = (nope + rope)^-0.5

NoPE in K3 and Kimi Linear (k_r is a plain extra slice); RoPE on both r slices in K2. Sources: DeepSeek-V2 eq. 9-19,
K3 report 2.1.2. The largest logit of each head is returned for QK-Clip. Shapes: x [B, T, d]; q, k [B, T, H, nope+rope].
Cached decoding keeps (c, k_r) per token and works absorbed: W_kvb's key half folded into q, its value half after.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from moonlet.model.config import ModelConfig
from moonlet.model.kernels.attention import attention
from moonlet.model.kernels.glu import sigmoid_gate
from moonlet.model.linear import Linear
from moonlet.model.norm import RMSNorm
from moonlet.model.rope import inverse_frequencies, rotate, softmax_scale


@dataclass
class MLAState:
    """Per layer: latents [B, S, kv_lora_rank + rope]; slot s of a row holds its s-th token."""

    latents: Tensor


class MLA(nn.Module):
    def __init__(self, c: ModelConfig) -> None:
        super().__init__()
        d, H = c.hidden_size, c.num_attention_heads
        self.num_heads, self.nope, self.rope = H, c.qk_nope_head_dim, c.qk_rope_head_dim
        self.v_head_dim, self.kv_lora_rank = c.v_head_dim, c.kv_lora_rank
        self.scale, self.use_nope = softmax_scale(c), c.mla_use_nope
        if not c.mla_use_nope:
            self.frequencies, self.rope_factor = inverse_frequencies(c)
        if c.q_lora_rank is None:
            self.q_proj = Linear(d, H * (self.nope + self.rope))
        else:
            self.q_a_proj = Linear(d, c.q_lora_rank)
            self.q_a_layernorm = RMSNorm(c.q_lora_rank, c.mla_norm_eps)
            self.q_b_proj = Linear(c.q_lora_rank, H * (self.nope + self.rope))
        self.kv_a_proj_with_mqa = Linear(d, c.kv_lora_rank + self.rope)
        self.kv_a_layernorm = RMSNorm(c.kv_lora_rank, c.mla_norm_eps)
        self.kv_b_proj = Linear(c.kv_lora_rank, H * (self.nope + self.v_head_dim))
        if c.mla_use_output_gate:
            self.g_proj = Linear(d, H * self.v_head_dim)
        self.o_proj = Linear(H * self.v_head_dim, d)

    def project(self, x: Tensor, positions: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """q [B, T, H, nope+rope], normed latent c [B, T, r], shared key slice k_r [B, T, rope]."""
        q = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x))) if hasattr(self, "q_a_proj") else self.q_proj(x)
        q = q.unflatten(-1, (self.num_heads, self.nope + self.rope))
        c, k_r = self.kv_a_proj_with_mqa(x).split([self.kv_lora_rank, self.rope], dim=-1)
        if not self.use_nope:
            if positions is None:
                positions = torch.arange(x.shape[1], device=x.device).expand(x.shape[:2])
            if self.frequencies.device != x.device:
                self.frequencies = self.frequencies.to(x.device)
            q_nope, q_r = q.split([self.nope, self.rope], dim=-1)
            q = torch.cat([q_nope, rotate(q_r, positions, self.frequencies, self.rope_factor)], dim=-1)
            k_r = rotate(k_r.unsqueeze(2), positions, self.frequencies, self.rope_factor).squeeze(2)
        return q, self.kv_a_layernorm(c), k_r

    def forward(
        self, x: Tensor, segments: Tensor | None = None, positions: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """x [B, T, d], segments [B, T] or None (packed documents) -> y [B, T, d], max logits [H]."""
        q, c, k_r = self.project(x, positions)
        kv = self.kv_b_proj(c).unflatten(-1, (self.num_heads, self.nope + self.v_head_dim))
        o, largest = attention(q, kv, k_r, segments, self.scale)
        return self.output(x, o), largest

    def decode(self, x: Tensor, state: MLAState, positions: Tensor, S: int) -> Tensor:
        """Cached block: x [B, T, d] at per-row `positions` [B, T], which are its places in the cache too (those of
        padding lie past the row's tokens and are overwritten later); sees places up to its own, of the first S. ->
        [B, T, d]."""
        q, c, k_r = self.project(x, positions)
        new = torch.cat([c, k_r], dim=-1).float()
        state.latents.scatter_(1, positions.unsqueeze(-1).expand_as(new), new)
        cached = state.latents[:, :S]
        up = self.kv_b_proj.weight.unflatten(0, (self.num_heads, -1)).float()
        up_k, up_v = up.split([self.nope, self.v_head_dim], dim=1)  # [H, nope | v, r]
        q_nope, q_r = q.float().split([self.nope, self.rope], dim=-1)
        q_latent = torch.cat([torch.einsum("bthn,hnr->bthr", q_nope, up_k), q_r], dim=-1)
        B, T, H, R = q_latent.shape
        logits = torch.bmm(q_latent.reshape(B, T * H, R) * self.scale, cached.transpose(1, 2)).view(B, T, H, S)
        seen = torch.arange(S, device=x.device) <= positions.unsqueeze(-1)
        weights = logits.masked_fill(~seen.unsqueeze(2), -torch.inf).softmax(-1)
        mixed = torch.bmm(weights.view(B, T * H, S), cached[..., : self.kv_lora_rank]).view(B, T, H, -1)
        return self.output(x, torch.einsum("bthr,hvr->bthv", mixed, up_v))

    def output(self, x: Tensor, o: Tensor) -> Tensor:
        """Gate (in fp32, as the attention output) and project: o [B, T, H, v] -> [B, T, d]."""
        o = o.flatten(2)
        if hasattr(self, "g_proj"):
            o = sigmoid_gate(o, self.g_proj(x))
        return self.o_proj(o.to(x.dtype))
