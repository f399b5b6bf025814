"""The K3 forms of both attention layers, token by token in plain loops: bounded decay, full-rank and output gates."""

import torch
from small_models import k3, random_ids, random_model, relative
from torch import Tensor

from moonlet.model.kda import KDA
from moonlet.model.mla import MLA
from moonlet.model.model import Layer, Stats

T = 21


def layer_and_input(index: int) -> tuple[Layer, Tensor, Tensor]:
    """A layer of a random K3 model, the normed input [T, d] of its attention, and what the attention gives."""
    model = random_model(k3())
    generator = torch.Generator().manual_seed(1)
    for name, p in model.named_parameters():
        if name.endswith("dt_bias"):
            p.data.normal_(0, 1, generator=generator)
    ids = random_ids(1, T)
    layer = model.layers[index]
    x = layer.input_layernorm(model.embed_tokens(ids))
    return layer, x[0], layer.attention(x, model.where(ids, None, None, None), Stats())[0]


def short_conv(x: Tensor, projection: Tensor, taps: Tensor) -> Tensor:
    """SiLU of the causal depthwise convolution of W x; taps [C, 1, width], the last one on the present token."""
    y, width = x @ projection.T, taps.shape[-1]
    rows = [sum(taps[:, 0, width - 1 - back] * y[t - back] for back in range(min(t + 1, width))) for t in range(len(y))]
    out = torch.stack(rows)
    return out * torch.sigmoid(out)


@torch.no_grad()
def test_kda() -> None:
    layer, x, y = layer_and_input(0)
    m = layer.self_attn
    assert isinstance(m, KDA)
    H, K = m.num_heads, m.head_dim
    projections = ((m.q_proj, m.q_conv1d), (m.k_proj, m.k_conv1d), (m.v_proj, m.v_conv1d))
    q, k, v = (short_conv(x, p.weight, c.weight).view(T, H, K) for p, c in projections)
    q, k = (t / torch.sqrt(t.square().sum(-1, keepdim=True) + 1e-6) for t in (q, k))
    z = (x @ m.f_a_proj.weight.T @ m.f_b_proj.weight.T + m.dt_bias).view(T, H, K)
    alpha = torch.exp(-5 * torch.sigmoid(torch.exp(m.A_log)[:, None] * z))
    beta = torch.sigmoid(x @ m.b_proj.weight.T)
    assert alpha.min() < 0.1 and alpha.max() > 0.5  # both ends of the gate are met
    o = torch.empty(T, H, K)
    for head in range(H):
        S = torch.zeros(K, K)
        for t in range(T):
            S = alpha[t, head][:, None] * S
            S = S + beta[t, head] * torch.outer(k[t, head], v[t, head] - S.T @ k[t, head])
            o[t, head] = S.T @ q[t, head] * K**-0.5
    o = o * torch.rsqrt(o.square().mean(-1, keepdim=True) + 1e-5) * m.o_norm.weight
    gate = torch.sigmoid(x @ m.g_proj.weight.T)
    assert relative(y, (gate * o.flatten(1)) @ m.o_proj.weight.T) < 1e-5


@torch.no_grad()
def test_mla() -> None:
    layer, x, y = layer_and_input(3)
    m = layer.self_attn
    assert isinstance(m, MLA)

    def normed(t: Tensor, weight: Tensor) -> Tensor:
        return t * torch.rsqrt(t.square().mean(-1, keepdim=True) + 1e-6) * weight

    q = normed(x @ m.q_a_proj.weight.T, m.q_a_layernorm.weight) @ m.q_b_proj.weight.T
    q = q.view(T, m.num_heads, m.nope + m.rope)
    c, shared = (x @ m.kv_a_proj_with_mqa.weight.T).split([m.kv_lora_rank, m.rope], dim=-1)
    kv = (normed(c, m.kv_a_layernorm.weight) @ m.kv_b_proj.weight.T).view(T, m.num_heads, m.nope + m.v_head_dim)
    o = torch.empty(T, m.num_heads, m.v_head_dim)
    for head in range(m.num_heads):
        for t in range(T):
            keys = torch.cat([kv[: t + 1, head, : m.nope], shared[: t + 1]], dim=-1)  # no rotation
            weights = torch.softmax(keys @ q[t, head] * (m.nope + m.rope) ** -0.5, dim=0)
            o[t, head] = weights @ kv[: t + 1, head, m.nope :]
    gate = torch.sigmoid(x @ m.g_proj.weight.T)
    assert relative(y, (gate * o.flatten(1)) @ m.o_proj.weight.T) < 1e-5
