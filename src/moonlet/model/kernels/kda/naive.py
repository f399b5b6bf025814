"""KDA as its recurrence, in the paper's letters (Kimi Linear eq. 1; K3 report section 2.1.1). The truth for `chunk.py`.

Per head, with state S [K, V], log decay g <= 0 per channel, beta in (0, 1), q and k already L2-normalised and q scaled:

    S' = Diag(exp g_t) S_{t-1}
    S_t = S' + beta_t k_t (v_t - S'^T k_t)^T          the delta reads the decayed state
    o_t = S_t^T q_t

Shapes: q, k, g [B, T, H, K]; v [B, T, H, V]; beta [B, T, H]; state [B, H, K, V]; segments [B, T] (the state restarts
from zero where a row's segment changes). Everything fp32.
"""

import torch
from torch import Tensor


def step(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, S: Tensor) -> tuple[Tensor, Tensor]:
    """One token: q, k, g [B, H, K]; v [B, H, V]; beta [B, H]; S [B, H, K, V] -> o [B, H, V], S."""
    S = g.exp().unsqueeze(-1) * S
    delta = beta.unsqueeze(-1) * (v - torch.einsum("bhkv,bhk->bhv", S, k))
    S = S + k.unsqueeze(-1) * delta.unsqueeze(-2)
    return torch.einsum("bhkv,bhk->bhv", S, q), S


def naive_kda(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    initial_state: Tensor | None = None,
    segments: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The recurrence over T tokens: -> o [B, T, H, V], final state [B, H, K, V]."""
    B, T, H, K = q.shape
    S = q.new_zeros(B, H, K, v.shape[-1]) if initial_state is None else initial_state
    outputs = []
    for t in range(T):
        if segments is not None and t > 0:
            same = segments[:, t] == segments[:, t - 1]
            S = S * same[:, None, None, None]
        o, S = step(q[:, t], k[:, t], v[:, t], g[:, t], beta[:, t], S)
        outputs.append(o)
    return torch.stack(outputs, dim=1), S
