"""Block Attention Residuals: a learned softmax over depth in place of the residual sum (arXiv 2603.15031, K3 2.2).

The depth bus holds banked block sums b_0 (the embedding), b_1, ... and the live sum p of the block being built. Each
sublayer reads h = sum_i alpha_i v_i over those sources, alpha = softmax_i( w . v_i / rms(v_i) ), w = norm weight *
pseudo-query. Scores see the normalised source, the sum takes the RAW source; scores, softmax and sum in fp32. Every
read is followed by an RMSNorm, so the two are one operator (`kernels.attn_res`).
With zero pseudo-queries this is exactly a plain pre-norm residual network (a test). Shapes: sources [B, T, d].
"""

from torch import Tensor, nn

from moonlet.model.kernels.attn_res import mix_and_norm
from moonlet.model.norm import RMSNorm


class AttnResMix(nn.Module):
    """One read of the depth bus: its own norm weight [d] and pseudo-query [1, d]."""

    def __init__(self, hidden_size: int, eps: float) -> None:
        super().__init__()
        self.norm = RMSNorm(hidden_size, eps)
        self.proj = nn.Linear(hidden_size, 1, bias=False)

    def forward(self, sources: list[Tensor], norm: RMSNorm) -> Tensor:
        """norm(sum_i alpha_i v_i); a lone source is its own mix."""
        if len(sources) == 1:
            return norm(sources[0])
        w = self.norm.weight * self.proj.weight[0]
        return mix_and_norm(sources, w, norm.weight, self.norm.eps, norm.eps)
