"""Per-head Muon for matrices and AdamW for everything else, in one optimizer over named parameters.

Muon (Moonlight eq. 1-4; K3 report 2.5): M = mu M + G; O = NewtonSchulz(mu M + G); W -= lr (0.2 sqrt(max(rows, cols)) O
+ wd W). The 0.2 sqrt(max) factor gives the update the RMS of an AdamW step, so learning rates are comparable.
Per-head: projections with heads on their output rows (KDA q, k, v; MLA q_b or q, kv_b) are split into one block a head
and each block is orthogonalised alone; stacks of experts [E, rows, cols] likewise, one block an expert. On a CPU one
native call makes the whole update block by block in the cache, with the same bits; else all blocks of one shape go
through Newton-Schulz as a single batch. AdamW: embeddings, head, norms, convolutions, pseudo-queries,
A_log, dt_bias; weight decay only on embeddings and head. The router bias is a buffer and has no optimizer.
Left out: sharding over machines.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from moonlet.model.draft import Draft
from moonlet.model.kernels.native import call, usable
from moonlet.model.model import Model

NS_STEPS, NS_COEFFICIENTS = 5, (3.4445, -4.7750, 2.0315)


def newton_schulz(G: Tensor) -> Tensor:
    """Approximate U V^T of each matrix in G [n, rows, cols] (quintic iteration, 5 steps)."""
    if not usable(G):
        return newton_schulz_torch(G)
    out = torch.empty_like(G := G.contiguous())
    call("newton_schulz", G, out, *G.shape, NS_STEPS, *NS_COEFFICIENTS)
    return out


def newton_schulz_torch(G: Tensor) -> Tensor:
    """The same in plain PyTorch, batched: the truth of the native kernel, and the form for other dtypes and devices."""
    tall = G.shape[1] > G.shape[2]
    X = G.transpose(1, 2) if tall else G
    X = X / (X.norm(dim=(1, 2), keepdim=True) + 1e-7)
    a, b, c = NS_COEFFICIENTS
    for _ in range(NS_STEPS):
        A = X @ X.transpose(1, 2)
        X = torch.baddbmm(X, torch.baddbmm(A, A, A, beta=b, alpha=c), X, beta=a)
    return X.transpose(1, 2) if tall else X


def module_of(name: str) -> str:
    """q_proj of layers.0.self_attn.q_proj.weight, w1 of layers.1.mlp.experts.w1."""
    return name.rsplit(".", 2)[-2] if name.endswith(".weight") else name.rsplit(".", 1)[-1]


def is_muon(name: str, p: Tensor) -> bool:
    """True for the matrices and stacks of matrices that Muon updates."""
    kind = module_of(name)
    if p.ndim == 3:
        return kind in ("w1", "w2", "w3")
    return p.ndim == 2 and p.shape[0] > 1 and kind not in ("embed_tokens", "lm_head")


def muon_blocks(model: Model | Draft) -> dict[str, int]:
    """Names of the Muon parameters -> number of blocks each is split into."""
    c = model.config
    blocks = {}
    for name, p in model.named_parameters():
        if not is_muon(name, p):
            continue
        blocks[name] = p.shape[0] if p.ndim == 3 else 1
        if module_of(name) in ("q_proj", "k_proj", "v_proj", "q_b_proj", "kv_b_proj"):
            layer = int(name.split(".")[1])
            blocks[name] = c.kda("num_heads") if c.is_kda(layer) else c.num_attention_heads
    return blocks


@dataclass
class OptimConfig:
    """Settings of one stage: learning rates at the peak of the schedule, momentum, decay."""

    muon_lr: float
    adamw_lr: float
    weight_decay: float = 0.1
    momentum: float = 0.95
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8


class MuonAdamW:
    """`step` applies one update from {name: gradient}; `state` is a flat dict of tensors that checkpoints save."""

    def __init__(self, model: nn.Module, blocks: dict[str, int], config: OptimConfig) -> None:
        self.params = dict(model.named_parameters())
        self.blocks, self.config = blocks, config
        self.adam_names = [n for n in self.params if n not in blocks]
        self.state: dict[str, Tensor] = {"step": torch.zeros((), dtype=torch.int64)}
        for name, p in self.params.items():
            for slot in ("momentum",) if name in blocks else ("exp_avg", "exp_avg_sq"):
                self.state[f"{slot}.{name}"] = torch.zeros_like(p)

    def step(self, grads: dict[str, Tensor], scale: float, run: Callable = map) -> None:
        """One update; `scale` multiplies both learning rates (the schedule); `run` maps over independent parts, a
        thread pool's `map` for instance."""
        self.state["step"] += 1
        by_shape: dict[tuple[int, int], list[str]] = {}
        for name in self.blocks:
            by_shape.setdefault(self.block_shape(name), []).append(name)
        parts = sorted(by_shape.values(), key=lambda names: -sum(grads[n].numel() for n in names))
        muon_lr, adamw_lr = scale * self.config.muon_lr, scale * self.config.adamw_lr
        tasks = [partial(self.muon, names, grads, muon_lr) for names in parts]
        tasks.append(partial(self.adamw, grads, adamw_lr))
        list(run(lambda task: task(), tasks))

    def block_shape(self, name: str) -> tuple[int, int]:
        """Rows and columns of each block of a Muon parameter."""
        p = self.params[name]
        return p.numel() // p.shape[-1] // self.blocks[name], p.shape[-1]

    @torch.no_grad()
    def muon(self, names: list[str], grads: dict[str, Tensor], lr: float) -> None:
        """Update the parameters `names`, whose blocks all have one shape."""
        c, (rows, cols) = self.config, self.block_shape(names[0])
        keep, rate = 1 - lr * c.weight_decay, lr * 0.2 * max(rows, cols) ** 0.5
        G, M = [grads[name].contiguous() for name in names], [self.state[f"momentum.{name}"] for name in names]
        W, blocks = [self.params[n].data.view(-1, rows, cols) for n in names], [self.blocks[n] for n in names]
        if usable(*G, *M, *W):
            for g, m, w, count in zip(G, M, W, blocks):
                call("muon", g, m, w, count, rows, cols, NS_STEPS, *NS_COEFFICIENTS, c.momentum, keep, rate)
            return
        torch._foreach_mul_(M, c.momentum)
        torch._foreach_add_(M, G)
        updates = [update.view(-1, rows, cols) for update in torch._foreach_add(G, M, alpha=c.momentum)]
        for w, o in zip(W, newton_schulz(torch.cat(updates)).split(blocks)):
            w.mul_(keep).add_(o, alpha=-rate)

    @torch.no_grad()
    def adamw(self, grads: dict[str, Tensor], lr: float) -> None:
        c, t = self.config, int(self.state["step"])
        names = self.adam_names
        params = [self.params[n].data for n in names]
        g = [grads[n] for n in names]
        avg = [self.state[f"exp_avg.{n}"] for n in names]
        sq = [self.state[f"exp_avg_sq.{n}"] for n in names]
        torch._foreach_lerp_(avg, g, 1 - c.betas[0])
        torch._foreach_mul_(sq, c.betas[1])
        torch._foreach_addcmul_(sq, g, g, 1 - c.betas[1])
        denominator = torch._foreach_div(sq, 1 - c.betas[1] ** t)
        torch._foreach_sqrt_(denominator)
        torch._foreach_add_(denominator, c.eps)
        for name in {"embed_tokens.weight", "lm_head.weight"} & self.params.keys():
            self.params[name].data.mul_(1 - lr * c.weight_decay)
        torch._foreach_addcdiv_(params, avg, denominator, -lr / (1 - c.betas[0] ** t))
