"""Batched sampling with a tool loop: token in, token out, nothing re-tokenised.

Each row feeds its own queue of tokens. A queue of one is an ordinary decoding step of the whole batch; longer queues
(a tool result and the next turn's opening, handed over by `hook` when a row samples the stop token) wait until a
quarter of the batch has one, then run as one right-padded block. The prompts' common prefix is computed once. Finished
rows leave the batch. A row's randomness is one uniform number a token drawn from its own seed, so what a row samples
does not depend on its neighbours (up to float rounding).
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from moonlet.engine import cache as rows_of
from moonlet.model.model import Cache, Model

Hook = Callable[[int, list[int]], list[int] | None]


@dataclass
class Sampling:
    """temperature 0 = greedy; top_p keeps the smallest set of tokens with that mass; max_tokens counts every token
    after the prompt, forced ones too, max_turn those of one turn (a turn that never stops is cut there)."""

    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 256
    max_turn: int = 1024


@dataclass
class Rollout:
    """One sampled conversation: ids after the prompt, log-prob of each (0 where forced), 1 where the model chose."""

    prompt: list[int]
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    sampled: list[int] = field(default_factory=list)
    finish: str = "length"


def pick(logits: Tensor, uniform: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """Next token and its log-prob, rows of logits [n, vocab], one uniform number [n] each (inverse of the CDF)."""
    if sampling.temperature == 0:
        logprobs = logits.float().log_softmax(-1)
        token = logprobs.argmax(-1)
        return token, logprobs.gather(1, token[:, None])[:, 0]
    logprobs = (logits.float() / sampling.temperature).log_softmax(-1)
    p = logprobs.exp()
    if sampling.top_p < 1:
        ordered, order = p.sort(-1, descending=True)
        ordered[ordered.cumsum(-1) - ordered >= sampling.top_p] = 0
        p = torch.zeros_like(p).scatter_(1, order, ordered)
    mass = p.double().cumsum(-1)
    token = torch.searchsorted(mass, uniform.double()[:, None] * mass[:, -1:], right=True)[:, 0]
    token = token.clamp(max=p.shape[-1] - 1)
    return token, logprobs.gather(1, token[:, None])[:, 0]


def feed(model: Model, cache: Cache, queues: Sequence[Sequence[int]]) -> Tensor:
    """Run each row's queue (right-padded; an empty one leaves the row as it is); logits after its last token."""
    lengths = torch.tensor([len(q) for q in queues])
    T = int(lengths.max())
    tokens = torch.tensor([[*q, *[0] * (T - len(q))] for q in queues])
    valid = None if int(lengths.min()) == T else torch.arange(T) < lengths[:, None]
    rows_of.reserve(cache, int(cache.lengths.max()) + T)
    hidden, _ = model.hidden(tokens, cache=cache, valid=valid)
    last = hidden[torch.arange(len(queues)), (lengths - 1).clamp(min=0)]
    return model.lm_head(last)


def prefill(model: Model, prompts: list[list[int]], room: int) -> tuple[Cache, Tensor]:
    """Cache of all prompts and the logits after each; the common prefix runs once."""
    shared = 0
    shortest = min(len(p) for p in prompts) - 1
    while shared < shortest and all(p[shared] == prompts[0][shared] for p in prompts):
        shared += 1
    cache = model.new_cache(1, max(len(p) for p in prompts) + room)
    if shared:
        feed(model, cache, [prompts[0][:shared]])
    if len(prompts) > 1:
        cache = rows_of.select(cache, torch.zeros(len(prompts), dtype=torch.long))
    return cache, feed(model, cache, [p[shared:] for p in prompts])


@torch.no_grad()
def generate(
    model: Model,
    prompts: list[list[int]],
    seeds: list[int],
    stop: int,
    sampling: Sampling,
    hook: Hook | None = None,
) -> list[Rollout]:
    """Sample one continuation of each prompt; `hook(row, ids)` may go on after a stop token by returning tokens."""
    rollouts = [Rollout(list(p)) for p in prompts]
    turn_starts = [0] * len(prompts)
    uniforms = torch.from_numpy(np.stack([np.random.default_rng(s).random(sampling.max_tokens) for s in seeds]))
    cache, logits = prefill(model, prompts, min(sampling.max_tokens, 256))
    active = list(range(len(prompts)))  # row of the batch -> rollout
    queues: list[list[int]] = [[] for _ in prompts]
    fresh = list(range(len(prompts)))  # batch rows whose logits wait to be sampled, in the order of `logits`
    while active:
        done = set()
        at = torch.tensor([active[b] for b in fresh])
        position = torch.tensor([len(rollouts[active[b]].ids) for b in fresh])
        tokens, logprobs = pick(logits, uniforms[at, position], sampling)
        for b, token, logprob in zip(fresh, tokens.tolist(), logprobs.tolist()):
            r = rollouts[active[b]]
            r.ids.append(token)
            r.logprobs.append(logprob)
            r.sampled.append(1)
            queues[b] = [token]
            if token == stop:
                more = hook(active[b], r.ids) if hook is not None else None
                if more and len(r.ids) + len(more) < sampling.max_tokens:
                    queues[b] = [token, *more]
                    r.ids += more
                    r.logprobs += [0.0] * len(more)
                    r.sampled += [0] * len(more)
                    turn_starts[active[b]] = len(r.ids)
                    continue
                if not more:
                    r.finish = "stop"
                done.add(b)
            elif len(r.ids) >= min(sampling.max_tokens, turn_starts[active[b]] + sampling.max_turn):
                done.add(b)
        if done:
            keep = [b for b in range(len(active)) if b not in done]
            cache = rows_of.select(cache, torch.tensor(keep, dtype=torch.long))
            active, queues = [active[b] for b in keep], [queues[b] for b in keep]
        if not active:
            break
        blocks = [b for b, q in enumerate(queues) if len(q) > 1]
        singles = [b for b, q in enumerate(queues) if len(q) == 1]
        if blocks and (len(blocks) * 4 >= len(active) or not singles):
            rows = torch.tensor(blocks)
            rows_of.reserve(cache, int(cache.lengths.max()) + max(len(queues[b]) for b in blocks))
            part = rows_of.select(cache, rows)
            logits = feed(model, part, [queues[b] for b in blocks])
            rows_of.put(cache, rows, part)
            fresh = blocks
        else:
            step = [q if len(q) == 1 else [] for q in queues]
            logits = feed(model, cache, step)
            fresh = singles
            if len(singles) < len(active):
                logits = logits[torch.tensor(singles)]
    return rollouts


def generate_parallel(
    pool: ThreadPoolExecutor,
    workers: int,
    model: Model,
    prompts: list[list[int]],
    seeds: list[int],
    stop: int,
    sampling: Sampling,
    hook: Hook | None = None,
) -> list[Rollout]:
    """`generate` with the prompts dealt in turn to `workers` threads of `pool` (each with one intra-op thread)."""
    deals = [list(range(w, len(prompts), workers)) for w in range(workers)]
    futures = []
    for deal in [d for d in deals if d]:

        def local(row: int, ids: list[int], deal: list[int] = deal) -> list[int] | None:
            return hook(deal[row], ids) if hook is not None else None

        part = [prompts[i] for i in deal], [seeds[i] for i in deal]
        futures.append((deal, pool.submit(generate, model, *part, stop, sampling, local if hook else None)))
    out: list[Rollout] = [Rollout([])] * len(prompts)
    for deal, future in futures:
        for i, rollout in zip(deal, future.result()):
            out[i] = rollout
    return out
