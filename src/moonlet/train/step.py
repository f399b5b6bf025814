"""One optimizer step: loss and gradients over the rows of a batch, the update, QK-Clip, expert balancing.

The rows are dealt to `workers` threads with one intra-op thread each (small matrices scale better that way than by
splitting every operator) so that all have about as many tokens. Each lays its rows one behind another, without their
padding, in micro-batches small enough for the cache; gradients are summed in a fixed order, so a step is reproducible
bit for bit. The loss is the mean over all target tokens of the batch: logits are built for targets only. A non-finite
loss or gradient skips the update; the caller counts. With `bf16` matrix products take bf16 operands (model/linear.py).
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from moonlet.model.kernels.cross_entropy import summed_cross_entropy
from moonlet.model.linear import bf16_products
from moonlet.model.model import Model, Stats
from moonlet.optim.balance import quantile_balance
from moonlet.optim.muon import MuonAdamW
from moonlet.optim.qk_clip import qk_clip
from moonlet.quant.grids import rounded_experts

Batch = dict[str, Tensor]  # tokens, segments, loss [B, T] (loss[t] = 1: token t is a target), more by the objective
Objective = Callable[[Tensor, Batch, Tensor], tuple[Tensor, dict[str, float]]]


MICRO_TOKENS = 2048  # activations of about 1 MB a tensor at width 128


@dataclass
class Part:
    """What one micro-batch leaves behind beside its gradients."""

    loss: float
    stats: Stats
    extra: dict[str, float]


def cross_entropy(logits: Tensor, batch: Batch, where: Tensor) -> tuple[Tensor, dict[str, float]]:
    """Summed next-token loss of the targets; logits [n, vocab] of the positions before each target `where` [B, T]."""
    return summed_cross_entropy(logits, batch["tokens"][where]), {}


def target_mask(batch: Batch) -> Tensor:
    """[B, T] True where token t is predicted from token t-1 of the same document."""
    mask = batch["loss"].bool().clone()
    mask[:, 0] = False
    mask[:, 1:] &= batch["segments"][:, 1:] == batch["segments"][:, :-1]
    return mask


def target_count(batch: Batch) -> float:
    return float(max(1, int(target_mask(batch).sum())))


def signal_share(a: list[Tensor], b: list[Tensor]) -> float:
    """Share of signal in the squared norm of a + b, two gradients of one signal s with independent noise, from their
    cosine c: E|s|^2 / (E|s|^2 + E|noise|^2 / 2) = 2 c / (1 + c); 0 where they disagree.

    It is the factor that brings a noisy estimate nearest to the truth (Wiener). Muon's update has the same length
    whatever the gradient's, so without it noise moves the weights as far as a signal does.
    """
    inner = sum(float((x * y).sum()) for x, y in zip(a, b))
    norms = [float(torch.stack(torch._foreach_norm(g)).norm()) for g in (a, b)]
    cosine = inner / max(norms[0] * norms[1], 1e-30)
    return 2 * cosine / (1 + cosine) if cosine > 0 else 0.0


def deal(batch: Batch, workers: int) -> list[list[tuple[int, int]]]:
    """(row, its tokens without padding) by worker: the longest row first, always to the worker with the least."""
    lengths = (batch["segments"] > 0).sum(1).tolist()
    hands: list[list[tuple[int, int]]] = [[] for _ in range(workers)]
    for row in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        min(hands, key=lambda hand: sum(n for _, n in hand)).append((row, lengths[row]))
    return [hand for hand in hands if hand]


def micro_batches(batch: Batch, hand: list[tuple[int, int]]) -> list[Batch]:
    """The rows of a hand joined to single rows [1, T] of about MICRO_TOKENS real tokens, documents numbered anew."""
    groups: list[list[tuple[int, int]]] = []
    for row, n in hand:
        if not groups or sum(m for _, m in groups[-1]) + n > MICRO_TOKENS:
            groups.append([])
        groups[-1].append((row, n))
    step = int(batch["segments"].max()) + 1
    shifted = {**batch, "segments": batch["segments"] + torch.arange(len(batch["segments"])).unsqueeze(1) * step}
    return [{k: torch.cat([v[row, :n] for row, n in group])[None] for k, v in shifted.items()} for group in groups]


def compute(model: Model, batches: list[Batch], total: float, objective: Objective) -> tuple[list[Tensor], list[Part]]:
    """Summed gradients of the loss (divided by `total`) over one worker's micro-batches, and what each leaves."""
    params, parts, device = list(model.parameters()), [], model.embed_tokens.weight.device
    summed: list[Tensor] = []
    for batch in batches:
        batch = {name: value.to(device) for name, value in batch.items()}
        hidden, stats = model.hidden(batch["tokens"], batch["segments"])
        where = target_mask(batch)
        before = torch.zeros_like(where)
        before[:, :-1] = where[:, 1:]
        loss, extra = objective(model.lm_head(hidden[before]), batch, where)
        loss = loss / total
        grads = torch.autograd.grad(loss, params, allow_unused=True, materialize_grads=True)
        if summed:
            torch._foreach_add_(summed, grads)
        else:
            summed = list(grads)
        parts.append(Part(float(loss.detach()), stats, extra))
    return summed, parts


class Stepper:
    """Holds the worker threads; `step` is one update."""

    def __init__(self, workers: int, bf16: bool = False) -> None:
        self.workers, self.bf16 = workers, bf16
        self.pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))

    def gradients(
        self, model: Model, batch: Batch, objective: Objective = cross_entropy, total: float = 0.0
    ) -> tuple[float, dict[str, Tensor], list[Part]]:
        """Loss (summed over the targets, divided by `total`, their number by default), {name: gradient}, the parts."""
        total = total or target_count(batch)
        shares = [micro_batches(batch, hand) for hand in deal(batch, self.workers)]
        with bf16_products(model, self.bf16):
            results = [f.result() for f in [self.pool.submit(compute, model, s, total, objective) for s in shares]]
        grads = results[0][0]
        for more, _ in results[1:]:
            torch._foreach_add_(grads, more)
        parts = [part for _, found in results for part in found]
        names = [n for n, _ in model.named_parameters()]
        return sum(p.loss for p in parts), dict(zip(names, grads)), parts

    def step(
        self,
        model: Model,
        optimizer: MuonAdamW,
        batch: Batch,
        scale: float,
        tau: float,
        balance: bool = True,
        objective: Objective = cross_entropy,
        other: Batch | None = None,
    ) -> dict[str, float]:
        """One update in place. Returns what is logged; "skipped" is 1.0 when loss or gradient was not finite.

        `other`: the second half of the batch, drawn independently; then the step is as long as the halves agree.
        """
        share = {}
        with rounded_experts(model):
            if other is None:
                loss, grads, parts = self.gradients(model, batch, objective)
            else:
                total = target_count(batch) + target_count(other)
                loss, grads, parts = self.gradients(model, batch, objective, total)
                more_loss, more_grads, more_parts = self.gradients(model, other, objective, total)
                share = {"signal_share": signal_share(list(grads.values()), list(more_grads.values()))}
                torch._foreach_add_(list(grads.values()), list(more_grads.values()))
                loss, parts, scale = loss + more_loss, parts + more_parts, scale * share["signal_share"]
        norm = float(torch.stack(torch._foreach_norm(list(grads.values()))).norm())
        log = {"loss": loss, "grad_norm": norm, "skipped": 0.0, **share}
        for key in parts[0].extra:
            log[key] = sum(p.extra[key] for p in parts)
        if not (torch.isfinite(torch.tensor([loss, norm])).all()):
            log["skipped"] = 1.0
            return log
        optimizer.step(grads, scale, self.pool.map)
        max_logits = {i: torch.stack([p.stats.max_logits[i] for p in parts]).amax(0) for i in parts[0].stats.max_logits}
        log["clipped_heads"] = float(qk_clip(model, max_logits, tau))
        if max_logits:
            log["max_logit"] = max(float(m.max()) for m in max_logits.values())
        if parts[0].stats.routers:
            log["dead_experts"], log["expert_imbalance"] = load_figures(parts)
            if balance:
                routers = {i: [p.stats.routers[i] for p in parts] for i in parts[0].stats.routers}
                quantile_balance(model, {i: [(r.scores, r.cutoff) for r in found] for i, found in routers.items()})
        return log


def load_figures(parts: list[Part]) -> tuple[float, float]:
    """Share of experts with no token in the step; largest load over mean load, worst layer."""
    counts = torch.stack(
        [torch.stack([p.stats.routers[i].counts for p in parts]).sum(0) for i in parts[0].stats.routers]
    ).float()
    return float((counts == 0).float().mean()), float((counts.amax(1) / counts.mean(1)).max())
