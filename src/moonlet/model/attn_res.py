"""Block Attention Residuals: a learned softmax over depth in place of the residual sum (arXiv 2603.15031, K3 2.2).

The depth bus holds banked block sums b_0 (the embedding), b_1, ... and the live sum p of the block being built. Each
sublayer reads h = sum_i alpha_i v_i over those sources, alpha = softmax_i( w . v_i / rms(v_i) ), w = norm weight *
pseudo-query. Scores see the normalised source, the sum takes the RAW source; scores, softmax and sum in fp32.
With zero pseudo-queries this is exactly a plain pre-norm residual network (a test). Shapes: sources [B, T, d].
"""

import torch
from torch import Tensor, nn

from moonlet.model.norm import RMSNorm


class Source:
    """One entry of the depth bus with its 1/rms, computed once and shared by every later query."""

    def __init__(self, value: Tensor, eps: float) -> None:
        self.value = value
        self.rsqrt = torch.rsqrt(value.float().square().mean(-1, keepdim=True) + eps)


class AttnResMix(nn.Module):
    """One read of the depth bus: its own norm weight [d] and pseudo-query [1, d]."""

    def __init__(self, hidden_size: int, eps: float) -> None:
        super().__init__()
        self.norm = RMSNorm(hidden_size, eps)
        self.proj = nn.Linear(hidden_size, 1, bias=False)

    def forward(self, sources: list[Source]) -> Tensor:
        if len(sources) == 1:
            return sources[0].value
        w = (self.norm.weight * self.proj.weight[0]).float()
        scores = torch.cat([(s.value.float() @ w).unsqueeze(-1) * s.rsqrt for s in sources], dim=-1)
        alpha = scores.softmax(-1)
        mixed = alpha[..., :1] * sources[0].value
        for i in range(1, len(sources)):
            mixed = torch.addcmul(mixed, alpha[..., i : i + 1], sources[i].value)
        return mixed.to(sources[0].value.dtype)
