"""Training a draft (`model/draft.py`) for a frozen model: LK loss over a few unrolled steps (K3 report 4.1.4; EAGLE-3).

    L = -log sum_v min(p(v), q(v))        p: the model's next-token distribution, q: the draft's, temperature 1

The sum is the probability that lossless speculative sampling accepts a token of the draft, so the loss is the quantity
that is wanted. In step 1 every place has the model's own features. In step s it has the draft's output of step s-1 at
the place before, as in a chain of s drafts that began s-1 places back: its attention then sees, of step 1, the places
up to that beginning, and behind it the places of the chain, each from the step that made it. Tokens are the text's.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from moonlet.model.draft import Draft
from moonlet.model.mla import MLA
from moonlet.model.model import Layer, Model, place
from moonlet.optim.muon import MuonAdamW
from moonlet.train.step import Batch, target_mask


def lk_loss(p_logits: Tensor, q_logits: Tensor) -> tuple[Tensor, Tensor]:
    """Logits [n, vocab] of model and draft -> summed loss, and sum_v min(p, q) of each row [n]."""
    accepted = torch.minimum(p_logits.softmax(-1), q_logits.softmax(-1)).sum(-1)
    return -accepted.clamp(min=1e-30).log().sum(), accepted.detach()


def back(x: Tensor, n: int) -> Tensor:
    """x [B, T, ...] of n places before; what lies before the row is the first place's."""
    return torch.cat([x[:, :1].expand(-1, n, *x.shape[2:]), x[:, : x.shape[1] - n]], dim=1) if n else x


def chain_attention(mla: MLA, x: Tensor, steps: list[tuple[Tensor, Tensor]], segments: Tensor) -> Tensor:
    """The attention of step s = len(steps) + 1 over x [B, T, d]; `steps` holds the keys and values of the steps before
    and takes up this one's. -> [B, T, d]. Where a chain would begin before its document it means nothing."""
    q, c, k_r = mla.project(x, None if mla.use_nope else place(segments))
    k, v = mla.kv_b_proj(c).unflatten(-1, (mla.num_heads, -1)).split([mla.nope, mla.v_head_dim], dim=-1)
    k = torch.cat([k, k_r.unsqueeze(2).expand(-1, -1, mla.num_heads, -1)], dim=-1)
    steps.append((k, v))
    s, T = len(steps), x.shape[1]
    k, v = steps[0]
    seen = torch.ones(T, T, dtype=torch.bool).tril(1 - s) & (segments.unsqueeze(-1) == segments.unsqueeze(-2))
    logits = torch.einsum("bthk,bshk->bhts", q, k).masked_fill(~seen.unsqueeze(1), -torch.inf)
    chain = [(back(k, s - i), back(v, s - i)) for i, (k, v) in enumerate(steps[1:], 2)]  # step i's place t - (s - i)
    logits = torch.cat([logits, *((q * k).sum(-1).transpose(1, 2).unsqueeze(-1) for k, _ in chain)], dim=-1)
    weights = (logits * mla.scale).softmax(-1)
    o = torch.einsum("bhts,bshv->bthv", weights[..., :T], v)
    for i, (_, v) in enumerate(chain):
        o = o + weights[..., T + i].transpose(1, 2).unsqueeze(-1) * v
    return mla.output(x, o)


def unrolled(draft: Draft, embedded: Tensor, blocks: Tensor, segments: Tensor, steps: int) -> list[Tensor]:
    """g of each step [B, T, d]. embedded [B, T, d]; blocks [B, T, blocks, d]: the model's; segments [B, T]."""
    layer: Layer = draft.layers[0]  # type: ignore[assignment]
    first = (back(segments, 1) != segments).unsqueeze(-1)
    first[:, 0] = True
    seen: list[tuple[Tensor, Tensor]] = []
    h, out = draft.fuse(blocks), []
    for _ in range(steps):
        x = draft.inputs(embedded, back(h, 1).masked_fill(first, 0.0))
        x = x + chain_attention(layer.self_attn, layer.input_layernorm(x), seen, segments)
        h = x + layer.mlp(layer.post_attention_layernorm(x))
        out.append(h)
    return out


@dataclass
class Found:
    """Sums over the targets of a row. By step: how many, their accepted mass sum_v min(p, q), and how often model and
    draft hold the same token for the likeliest."""

    loss: Tensor
    count: Tensor
    accepted: Tensor
    same: Tensor


def row_loss(model: Model, draft: Draft, row: Batch, steps: int) -> Found:
    """row: tokens, segments, loss [1, T] without padding. Targets are those of the text, by `loss`."""
    segments, where = row["segments"], target_mask(row)
    before = F.pad(where[:, 1:], (0, 1))
    with torch.no_grad():
        hidden, stats = model.hidden(row["tokens"], segments)
        blocks, p_logits = torch.stack(stats.blocks, dim=2), model.lm_head(hidden)
        embedded = model.embed_tokens(row["tokens"])
    losses, found = [], []
    for s, g in enumerate(unrolled(draft, embedded, blocks, segments, steps)):
        whole = before & (back(segments, s) == segments)  # the chain began inside the document
        whole[:, :s] = False
        p, q = p_logits[whole], F.linear(draft.norm(g[whole]), model.lm_head.weight)
        loss, accepted = lk_loss(p, q)
        losses.append(loss)
        found.append((len(p), accepted.sum(), (p.argmax(-1) == q.argmax(-1)).sum()))
    return Found(torch.stack(losses).sum(), *map(torch.tensor, zip(*found)))


def rows_of(batch: Batch) -> list[Batch]:
    """The rows one by one, without padding, the longest first."""
    lengths = (batch["segments"] > 0).sum(1).tolist()
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    return [{k: v[i : i + 1, : lengths[i]] for k, v in batch.items()} for i in order]


def step(
    model: Model, draft: Draft, optimizer: MuonAdamW, batch: Batch, scale: float, unroll: int, pool: ThreadPoolExecutor
) -> dict[str, float]:
    """One update of the draft in place; what is logged: the loss a target and step, accepted mass by step."""
    rows = rows_of(batch)
    total = unroll * max(1, sum(int(target_mask(row).sum()) for row in rows))

    def gradients(row: Batch) -> tuple[tuple[Tensor, ...], Found]:
        found = row_loss(model, draft, row, unroll)
        return torch.autograd.grad(found.loss / total, list(draft.parameters())), found

    grads, found = zip(*pool.map(gradients, rows))
    summed = [torch.stack(g).sum(0) for g in zip(*grads)]
    optimizer.step(dict(zip((name for name, _ in draft.named_parameters()), summed)), scale, pool.map)
    accepted = sum(f.accepted for f in found) / sum(f.count for f in found).clamp(min=1)
    log = {"loss": sum(float(f.loss.detach()) for f in found) / total}
    return log | {f"accepted_{s}": float(a) for s, a in enumerate(accepted, 1)}
