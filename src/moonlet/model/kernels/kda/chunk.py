"""KDA in tiles of C = 16 tokens: dense products inside a tile, a short loop of states between tiles.

Source: Kimi Linear eq. 2-9 (the UT transform). With G the running sum of g inside a tile and Gamma = exp(G):

    A_kk[i, j] = beta_i sum_d k_i k_j exp(G_i - G_j)   j < i      T = (I + A_kk)^-1 Diag(beta)
    A_qk[i, j] = sum_d q_i k_j exp(G_i - G_j)          j <= i
    W = T (Gamma * K), U = T V, V~ = U - W S
    O = (Gamma * Q) S + A_qk V~,  S' = Diag(Gamma_C) S + (exp(G_C - G) * K)^T V~

A bounded gate (g >= -5) keeps |G| <= 80 in a tile, so exp(-G) fits fp32 and both A are plain matrix products. An
unbounded gate uses pairwise differences, masked before the exp (`pairwise=True`), and never forms exp(-G).
Packed documents: products across a document border are masked, the carried state reaches only the tokens of the
document it belongs to. Shapes as in `naive.py`; T is padded to a multiple of 16 with g = 0, beta = 0 (no effect).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

C = 16


class StateScan(torch.autograd.Function):
    """S_{n+1} = D_n * S_n + Kd_n^T (U_n - W_n S_n) over n tiles; returns all S_n and the last one.

    D [N, M, K]; Kd, W [N, M, C, K]; U [N, M, C, V]; S0 [M, K, V], with M = B*H and tiles outermost.
    The loops hold only what is sequential; every other gradient is one batched product.
    """

    @staticmethod
    def forward(ctx, D: Tensor, Kd: Tensor, W: Tensor, U: Tensor, S0: Tensor) -> tuple[Tensor, Tensor]:
        N = D.shape[0]
        states = S0.new_empty(N + 1, *S0.shape)
        states[0] = S0
        KdT = Kd.transpose(-1, -2)
        for n in range(N):
            v = torch.baddbmm(U[n], W[n], states[n], alpha=-1)
            torch.baddbmm(D[n].unsqueeze(-1) * states[n], KdT[n], v, out=states[n + 1])
        ctx.save_for_backward(D, Kd, W, U, states)
        return states[:-1], states[-1].clone()

    @staticmethod
    def backward(ctx, d_states: Tensor, d_last: Tensor):  # type: ignore[override]
        D, Kd, W, U, states = ctx.saved_tensors
        N = D.shape[0]
        after = torch.empty_like(states[1:])  # after[n] = dL/dS_{n+1}
        dS = d_last
        WT = W.transpose(-1, -2)
        for n in range(N - 1, -1, -1):
            after[n] = dS
            d_v = torch.bmm(Kd[n], dS)
            dS = torch.baddbmm(torch.addcmul(d_states[n], D[n].unsqueeze(-1), dS), WT[n], d_v, alpha=-1)
        S = states[:-1]
        d_v = Kd @ after
        d_W = -(d_v @ S.transpose(-1, -2))
        d_Kd = (U - W @ S) @ after.transpose(-1, -2)
        d_D = (S * after).sum(-1)
        return d_D, d_Kd, d_W, d_v, dS


def invert_unit_lower(A: Tensor) -> Tensor:
    """(I + A)^-1 for strictly lower triangular A [..., 16, 16]: A^16 = 0, so four factors are exact."""
    eye = torch.eye(C, dtype=A.dtype, device=A.device)
    A2 = A @ A
    A4 = A2 @ A2
    return (eye - A) @ (eye + A2) @ ((eye + A4) @ (eye + A4 @ A4))


def chunk_kda(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    initial_state: Tensor | None = None,
    segments: Tensor | None = None,
    pairwise: bool = False,
) -> tuple[Tensor, Tensor]:
    """Same function as `naive_kda`: -> o [B, T, H, V], final state [B, H, K, V]."""
    B, T, H, K = q.shape
    V = v.shape[-1]
    pad = -T % C
    if pad:
        q, k, v, g = (F.pad(x, (0, 0, 0, 0, 0, pad)) for x in (q, k, v, g))
        beta = F.pad(beta, (0, 0, 0, pad))
    N = (T + pad) // C

    def tiles(x: Tensor) -> Tensor:  # [B, T, H, *] -> [N, B*H, C, *]
        return x.reshape(B, N, C, H, -1).permute(1, 0, 3, 2, 4).reshape(N, B * H, C, -1)

    q, k, v, g, beta = tiles(q), tiles(k), tiles(v), tiles(g), tiles(beta.unsqueeze(-1))
    G = g.cumsum(dim=2)
    G_end = G[:, :, -1:]
    gamma = G.exp()
    q_in, k_in = q * gamma, k * gamma  # what reads the carried state
    lower = torch.ones(C, C, dtype=torch.bool, device=q.device).tril()
    if pairwise:
        decay = (G.unsqueeze(3) - G.unsqueeze(2)).masked_fill(~lower[:, :, None], -torch.inf).exp()  # [N, M, C, C, K]
        A_qk = torch.einsum("nmik,nmjk,nmijk->nmij", q, k, decay)
        A_kk = torch.einsum("nmik,nmjk,nmijk->nmij", k, k, decay)
        k_out = k * (G_end - G).exp()
    else:
        k_inv = k * (-G).exp()
        A_qk = q_in @ k_inv.transpose(-1, -2)
        A_kk = k_in @ k_inv.transpose(-1, -2)
        k_out = k_inv * G_end.exp()
    D = G_end.squeeze(2).exp()
    if segments is None:
        A_qk = A_qk * lower
        A_kk = A_kk * lower.tril(-1)
    else:
        seg = F.pad(segments, (0, pad), mode="constant", value=-1) if pad else segments
        if pad:  # padding continues the last document, so that the final state is its state
            seg = torch.where(seg == -1, segments[:, -1:], seg)
        seg = seg.reshape(B, N, C).permute(1, 0, 2)  # [N, B, C]
        before = torch.cat([seg[:1, :, 0], seg[:-1, :, -1]])  # document the carried state belongs to
        same = (seg.unsqueeze(-1) == seg.unsqueeze(-2)) & lower  # [N, B, C, C]
        carried = (seg == before.unsqueeze(-1)).to(q.dtype)  # tokens that see the carried state
        ending = (seg == seg[:, :, -1:]).to(q.dtype)  # tokens that feed the state handed on

        def heads(x: Tensor) -> Tensor:  # [N, B, ...] -> [N, B*H, ...]
            return x.unsqueeze(2).expand(N, B, H, *x.shape[2:]).reshape(N, B * H, *x.shape[2:])

        same = heads(same)
        A_qk = A_qk * same
        A_kk = A_kk * (same & lower.tril(-1))
        carried = heads(carried).unsqueeze(-1)
        q_in, k_in = q_in * carried, k_in * carried
        k_out = k_out * heads(ending).unsqueeze(-1)
        D = D * heads((seg[:, :, -1] == before).to(q.dtype)).unsqueeze(-1)
    inverse = invert_unit_lower(A_kk * beta) * beta.transpose(-1, -2)
    W, U = inverse @ k_in, inverse @ v
    S0 = q.new_zeros(B * H, K, V) if initial_state is None else initial_state.reshape(B * H, K, V)
    S, S_last = StateScan.apply(D, k_out, W, U, S0)
    o = q_in @ S + A_qk @ (U - W @ S)
    o = o.reshape(N, B, H, C, V).permute(1, 0, 3, 2, 4).reshape(B, N * C, H, V)[:, :T]
    return o, S_last.reshape(B, H, K, V)
