"""Expert balancing without an auxiliary loss: Quantile Balancing (K3 report 2.3.3).

Exact form: over the m tokens of a step, r_ij = cutoff_i - s_ij (cutoff = the (k+1)-th biased score, s raw);
the new bias b_j is the (q+1)-th smallest r_.j with q = m k / n, so that exactly q tokens would choose expert j; then
b -= mean(b). The report's rendering of eq. 14 has the opposite sign; its appendix D and this file agree. The bias is
used from the next step on, and frozen outside training. Left out: the sign rule of K2 and Kimi Linear.
"""

import torch
from torch import Tensor

from moonlet.model.model import Model


@torch.no_grad()
def quantile_balance(model: Model, routers: dict[int, list[tuple[Tensor, Tensor]]]) -> None:
    """routers {layer: [(scores [N, E], cutoff [N]) of each micro-batch, padding removed]}; updates the bias buffers."""
    for index, parts in routers.items():
        gate = model.layers[index].mlp.gate
        scores = torch.cat([s for s, _ in parts])
        cutoff = torch.cat([c for _, c in parts])
        m, n = scores.shape
        if gate.top_k >= n or m < n:
            continue
        r = cutoff.unsqueeze(1) - scores
        b = r.kthvalue(min(m, m * gate.top_k // n + 1), dim=0).values
        gate.e_score_correction_bias.copy_(b - b.mean())
