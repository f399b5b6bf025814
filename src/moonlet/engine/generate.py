"""Batched sampling with a tool loop: token in, token out, nothing re-tokenised.

Each step feeds every unfinished row its queue: the token it sampled, and behind a stop token what `hook` hands over (a
tool result and the next turn's opening). The prompts' common prefix is computed once. A row's randomness is one uniform
number a token drawn from its own seed. The native decoder (`packed.py`) gives a row the same bits whoever its
neighbours are; without it the rows run through the model as one right-padded block, equal up to float rounding.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from moonlet.engine import rows as rows_of
from moonlet.engine.burst import burst
from moonlet.engine.cache import Held, Pool
from moonlet.engine.draw import draw
from moonlet.engine.graphs import Graphs
from moonlet.engine.packed import Memory, PackedModel, can_pack, in_rows
from moonlet.model.kernels.native import usable
from moonlet.model.model import Cache, Model

BURST = 8  # tokens between two looks at what the rows said

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


def pick(logits: Tensor, uniforms: np.ndarray, sampling: Sampling) -> tuple[list[int], list[float]]:
    """Next token and its log-prob, rows of logits [n, vocab], one uniform number [n] each (inverse of the CDF).
    FloatingPointError where a row has no largest logit."""
    if sampling.top_p == 1 and usable(logits):
        temperatures = np.full(len(uniforms), sampling.temperature, dtype=np.float32)
        tokens, logprobs = draw(logits.numpy(), temperatures, uniforms)
        if tokens.min() < 0:
            raise FloatingPointError("the model's logits are not finite")
        return tokens.tolist(), logprobs.tolist()
    return pick_torch(logits, torch.from_numpy(uniforms), sampling)


def pick_torch(logits: Tensor, uniforms: Tensor, sampling: Sampling) -> tuple[list[int], list[float]]:
    if sampling.temperature == 0:
        logprobs = logits.float().log_softmax(-1)
        token = logprobs.argmax(-1)
    else:
        logprobs = (logits.float() / sampling.temperature).log_softmax(-1)
        p = logprobs.exp()
        if sampling.top_p < 1:
            ordered, order = p.sort(-1, descending=True)
            ordered[ordered.cumsum(-1) - ordered >= sampling.top_p] = 0
            p = torch.zeros_like(p).scatter_(1, order, ordered)
        mass = p.double().cumsum(-1)
        token = torch.searchsorted(mass, uniforms.to(mass)[:, None] * mass[:, -1:], right=True)[:, 0]
        token = token.clamp(max=p.shape[-1] - 1)
    return token.tolist(), logprobs.gather(1, token[:, None])[:, 0].tolist()


class Decoder:
    """A model as it now is, ready to continue cached sequences; make a new one when its weights have changed."""

    def __init__(self, model: Model, packed: PackedModel | None = None) -> None:
        """packed: the model as it is to be decoded, where it is not its fp32 self."""
        self.model, self.device = model, model.embed_tokens.weight.device
        self.packed = packed or (PackedModel(model) if can_pack(model) else None)
        self.graphs: Graphs | None = None  # of the cache that `extend` is for, on a GPU

    @torch.no_grad()
    def feed(self, cache: Cache, rows: Sequence[int], queues: Sequence[Sequence[int]]) -> Tensor:
        """Run each of the rows' queues (at least one token); logits [n, vocab] after its last token."""
        rows_of.reserve(cache, int(cache.lengths.max()) + max(map(len, queues)))
        if self.packed is not None:
            return self.packed.decode(memory_of(cache), rows, queues)
        at = torch.tensor(rows, device=self.device)
        part = rows_of.select(cache, at)
        hidden = self.plain(part, queues)
        rows_of.put(cache, at, part)
        return self.model.lm_head(torch.stack([row[len(q) - 1] for row, q in zip(hidden, queues)]))

    def burst(
        self,
        cache: Cache,
        rows: Sequence[int],
        queues: Sequence[Sequence[int]],
        temperature: float,
        uniforms: np.ndarray,
        limits: Sequence[int],
        stop: int,
    ) -> tuple[list[list[int]], list[list[float]]]:
        """Natively: several tokens of each row, and their log-probs (`burst.burst`)."""
        assert self.packed is not None
        rows_of.reserve(cache, int(cache.lengths.max()) + max(limits))
        last, warmth, stops = [token for (token,) in queues], [temperature] * len(rows), [[stop]] * len(rows)
        tokens, logprobs = burst(self.packed, memory_of(cache), rows, last, warmth, uniforms, limits, stops)
        if any(new[-1] < 0 for new in tokens):
            raise FloatingPointError("the model's logits are not finite")
        return tokens, logprobs

    @torch.no_grad()
    def extend(
        self,
        pool: Pool,
        sequences: Sequence[Held],
        queues: Sequence[Sequence[int]],
        wanted: Sequence[int],
        threads: int = 1,
        features: Tensor | None = None,
    ) -> Tensor:
        """The same for sequences of the hybrid cache, which must have room; logits [sum, vocab] after the last
        wanted[i] tokens of each queue. The sequences' own `length` is the caller's to move. features: of the native
        decoder alone."""
        if self.packed is not None:
            return self.packed.decode(pool.memory, [held.row for held in sequences], queues, wanted, threads, features)
        for held, q in zip(sequences, queues):
            pool.memory.lengths[held.row] = held.length + len(q)
        if self.graphs is not None and all(len(q) == 1 for q in queues):
            return self.graphs.decode(sequences, [token for (token,) in queues]).cpu()
        longest = max(held.length for held in sequences) + max(len(q) for q in queues)
        numbers = pool.numbers(sequences, -(-longest // pool.memory.page)).to(self.device)
        rows, lengths, table = numbers[:, 0], numbers[:, 1], numbers[:, 2:]
        cache = pool.gather(rows, lengths, table)
        hidden = self.plain(cache, queues)
        new = [(i, held.length + t) for i, (held, q) in enumerate(zip(sequences, queues)) for t in range(len(q))]
        pool.scatter(rows, table, cache, *torch.tensor(new, device=self.device).unbind(1))
        last = torch.cat([row[len(q) - n : len(q)] for row, q, n in zip(hidden, queues, wanted)])
        return self.model.lm_head(last).float().cpu()  # where the sampler is

    def plain(self, cache: Cache, queues: Sequence[Sequence[int]]) -> Tensor:
        """Without kernels: all rows of a cache as one right-padded block; hidden states [n, longest, d]."""
        lengths = torch.tensor([len(q) for q in queues])
        longest = int(lengths.max())
        tokens = torch.tensor([[*q, *[0] * (longest - len(q))] for q in queues], device=self.device)
        valid = (torch.arange(longest) < lengths[:, None]).to(self.device)
        return self.model.hidden(tokens, cache=cache, valid=valid)[0]

    def prefill(self, prompts: list[list[int]], room: int) -> tuple[Cache, Tensor]:
        """Cache of all prompts and the logits after each; the common prefix runs once."""
        shared = 0
        shortest = min(len(p) for p in prompts) - 1
        while shared < shortest and all(p[shared] == prompts[0][shared] for p in prompts):
            shared += 1
        cache = self.model.new_cache(1, max(len(p) for p in prompts) + room)
        if shared:
            self.feed(cache, [0], [prompts[0][:shared]])
        if len(prompts) > 1:
            cache = rows_of.select(cache, torch.zeros(len(prompts), dtype=torch.long))
        return cache, self.feed(cache, range(len(prompts)), [p[shared:] for p in prompts])


def memory_of(cache: Cache) -> Memory:
    """The cache as the native decoder sees it."""
    if cache.memory is None or cache.memory.lengths is not cache.lengths:
        cache.memory = in_rows(cache)
    return cache.memory


def generate(
    decoder: Decoder,
    prompts: list[list[int]],
    seeds: list[int],
    stop: int,
    sampling: Sampling,
    hook: Hook | None = None,
) -> list[Rollout]:
    """Sample one continuation of each prompt; `hook(row, ids)` may go on after a stop token by returning tokens."""
    rollouts = [Rollout(list(p)) for p in prompts]
    turn_starts = [0] * len(prompts)
    uniforms = np.stack([np.random.default_rng(s).random(sampling.max_tokens) for s in seeds])
    uniforms = np.pad(uniforms, ((0, 0), (0, BURST)))
    cache, logits = decoder.prefill(prompts, min(sampling.max_tokens, 256))
    active = list(range(len(prompts)))
    tokens, logprobs = in_lists(pick(logits, uniforms[active, 0], sampling))

    def left(row: int) -> int:
        """How many tokens more a row may sample in its turn."""
        return min(sampling.max_tokens, turn_starts[row] + sampling.max_turn) - len(rollouts[row].ids)

    while True:
        going, queues = [], []
        for row, new, logprob in zip(active, tokens, logprobs):
            r, queue = rollouts[row], [new[-1]]
            r.ids += new
            r.logprobs += logprob
            r.sampled += [1] * len(new)
            if new[-1] == stop:
                more = hook(row, r.ids) if hook is not None else None
                if not more:
                    r.finish = "stop"
                    continue
                if len(r.ids) + len(more) >= sampling.max_tokens:
                    continue
                queue += more
                r.ids += more
                r.logprobs += [0.0] * len(more)
                r.sampled += [0] * len(more)
                turn_starts[row] = len(r.ids)
            elif left(row) <= 0:
                continue
            going.append(row)
            queues.append(queue)
        active = going
        if not active:
            return rollouts
        places = [len(rollouts[row].ids) for row in active]
        if decoder.packed is not None and sampling.top_p == 1 and all(len(queue) == 1 for queue in queues):
            numbers = np.stack([uniforms[row, at : at + BURST] for row, at in zip(active, places)])
            limits = [min(BURST, left(row)) for row in active]
            tokens, logprobs = decoder.burst(cache, active, queues, sampling.temperature, numbers, limits, stop)
        else:
            logits = decoder.feed(cache, active, queues)
            tokens, logprobs = in_lists(pick(logits, uniforms[active, places], sampling))


def in_lists(picked: tuple[list[int], list[float]]) -> tuple[list[list[int]], list[list[float]]]:
    return [[token] for token in picked[0]], [[logprob] for logprob in picked[1]]


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
    decoder, futures = Decoder(model), []
    for deal in [d for d in deals if d]:

        def local(row: int, ids: list[int], deal: list[int] = deal) -> list[int] | None:
            return hook(deal[row], ids) if hook is not None else None

        part = [prompts[i] for i in deal], [seeds[i] for i in deal]
        futures.append((deal, pool.submit(generate, decoder, *part, stop, sampling, local if hook else None)))
    out: list[Rollout] = [Rollout([])] * len(prompts)
    for deal, future in futures:
        for i, rollout in zip(deal, future.result()):
            out[i] = rollout
    return out
