"""Continuous batching: every live request shares each step of the decoder, in one thread.

A step feeds about `step_tokens` tokens: first the next token of every request that decodes (more where a draft is
checked or a text was forced), then chunks of prompts, all in one call, so a long prompt delays nobody by more than a
step. Order is (priority, arrival). When memory runs short, snapshots go first, then the request that comes last in
order gives up its place; it resumes by feeding its tokens again, and as a row's bits depend on nothing but its tokens
(packed.py), its text is that of an undisturbed run. Drafts are checked exactly: each place is sampled from the model's
own logits with the place's own random number, so speculation changes speed alone. Prompt lookup goes first, then the
draft model, where there is one. After a wrong draft the KDA state goes back to a copy, and the right tokens are fed
again with the next ones.

The thread lives while there is something to do. A request's failure is its own; only the decoder's fails a whole step.
"""

import bisect
import itertools
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch

from moonlet.engine import ahead, burst
from moonlet.engine.cache import PAGE, Pool
from moonlet.engine.draft import Drafts, NativeDraft, drafts_of
from moonlet.engine.draw import choose_rows
from moonlet.engine.generate import Decoder
from moonlet.engine.graphs import Graphs
from moonlet.engine.prefix import PrefixCache
from moonlet.engine.request import Busy, Limits, Request, Work
from moonlet.engine.sampling import Picked, Row, describe
from moonlet.errors import InputError
from moonlet.model.sizes import active, cache_numbers, parameters

CHUNK_END = 512  # prefill leaves a snapshot at multiples of it
SHORTEST_JUNCTION = 16  # tokens that two prompts share beyond a hit, to be worth a snapshot
WORTH_A_THREAD = 10_000_000  # multiplications: with less, a thread takes longer to begin than to work
MOST_SPECULATING = 8  # with more rows the decoder is busy with tokens that are certain
log = logging.getLogger("moonlet.engine")


class Scheduler:
    """`submit` and `cancel` may be called from any thread; all else runs in the scheduler's own."""

    def __init__(self, decoder: Decoder, limits: Limits, draft: NativeDraft | None = None) -> None:
        config = decoder.model.config
        self.decoder, self.limits, self.vocab_size = decoder, limits, config.vocab_size
        further = 0 if draft is None else config.kv_lora_rank + config.qk_rope_head_dim
        context, memory = config.max_position_embeddings, limits.memory
        self.pool = Pool(decoder.model, limits.sequences, context, memory, further, limits.snapshots)
        self.cache = PrefixCache(self.pool)
        if decoder.device.type == "cuda":
            decoder.graphs = Graphs(decoder.model, self.pool)
        self.threads = limits.threads or (len(os.sched_getaffinity(0)) if decoder.device.type == "cpu" else 1)
        self.weights = sum(active(parameters(config), config).values())
        self.latent = 2 * config.num_attention_heads * cache_numbers(config)[0]  # multiplications a token looked at
        self.draft = None if draft is None else Drafts(draft, self.pool, self.team(draft.multiplications))
        self.workers = ThreadPoolExecutor(self.threads, "moonlet-decode", torch.set_num_threads, (1,))
        self.beside: Future[None] | None = None  # masks on their way
        self.lock, self.inbox, self.alive = threading.Lock(), deque[Request](), False
        self.arrivals = itertools.count()
        self.waiting: list[Request] = []
        self.running: list[Request] = []  # both in order
        self.pace = 0.0  # seconds of the last step, a token
        self.stuck: Request | None = None  # the first in line, when it did not fit and nobody has left since
        self.prefilled = self.steps = self.preempted = self.drafted = self.accepted = 0
        self.guessed = self.guessed_right = 0  # of those drafted and accepted, the draft model's

    def submit(self, request: Request) -> None:
        """Put a request in line. Raises Busy when the line is full, InputError for what never fits."""
        total = len(request.prompt) + request.asked.max_tokens
        if total > self.pool.context:
            raise InputError(f"prompt and max_tokens are {total} tokens, the cache holds {self.pool.context}: ask less")
        request.asked.check_ids(self.vocab_size)
        request.tokens = list(request.prompt)
        request.row = Row(request.asked, request.seed, request.prompt, self.vocab_size, request.grammar)
        if request.thinking is not None and request.thinking.budget == 0:
            request.out.put(self.force(request, request.thinking.close))
            if request.made == request.asked.max_tokens:
                return request.out.put("length")
        with self.lock:
            if len(self.waiting) + len(self.inbox) >= self.limits.waiting:
                raise Busy(f"{self.limits.waiting} requests are waiting already")
            request.arrival = next(self.arrivals)
            self.inbox.append(request)
            if not self.alive:
                self.alive = True
                threading.Thread(target=self.run, name="moonlet-engine").start()

    def cancel(self, request: Request) -> None:
        """Nothing more is made for it, and after at most one step it holds nothing."""
        request.cancelled = True

    def run(self) -> None:
        torch.set_num_threads(1)
        while True:
            with self.lock:
                if not (self.inbox or self.waiting or self.running):
                    self.alive = False
                    return
            try:
                self.step()
            except Exception as error:  # a defect of ours: nobody is left waiting for it
                log.exception("the scheduler failed")
                self.waiting += self.inbox
                self.inbox.clear()
                for request in [*self.running, *self.waiting]:
                    self.leave(request, error)

    def step(self) -> None:
        """One turn of the loop: take in, let go, feed, sample."""
        while self.inbox:
            self.enqueue(self.inbox.popleft())
        for request in [r for r in self.running if r.cancelled]:
            self.leave(request)
        self.waiting = [r for r in self.waiting if not r.cancelled]
        work = self.plan()
        if not work:
            return
        self.steps += 1
        try:
            chosen = self.feed(work, self.burst(work))
        except Exception as error:  # the decoder's own: what it left in these states is not to be trusted
            log.exception("the decoder failed")
            for request in work:
                self.leave(request, error)
            return
        self.hand_out(work, chosen)

    def enqueue(self, request: Request) -> None:
        request.known = np.array(request.tokens)
        bisect.insort(self.waiting, request, key=lambda r: r.order)

    def plan(self) -> dict[Request, Work]:
        work: dict[Request, Work] = {}
        left = self.limits.step_tokens
        decoding = [r for r in self.running if not r.cuts]
        few = len(decoding) <= MOST_SPECULATING and self.decoder.packed is not None
        guesses = drafts_of(decoding, self.pool, self.draft) if self.limits.speculate and few else {}
        for request in decoding:
            left -= self.decode(request, work, *guesses.get(request, ()))
        for request in [r for r in self.running if r.cuts]:
            left -= self.prefill(request, work, left)
        while left > 0 and self.waiting and self.waiting[0] is not self.stuck:
            request = self.waiting[0]
            if not self.admit(request, work):
                self.stuck = request
                break
            self.waiting.remove(request)
            bisect.insort(self.running, request, key=lambda r: r.order)
            left -= self.prefill(request, work, left) if request.cuts else self.decode(request, work)
        return work

    def decode(
        self, request: Request, work: dict[Request, Work], drafts: Sequence[int] = (), guessed: bool = False
    ) -> int:
        """Plan the tokens that are not fed yet and a draft of the next ones; how many that are."""
        if request.held is None:  # gave way in this step
            return 0
        tokens = request.tokens[request.held.length :]
        if not self.make_room(request, work, len(tokens) + len(drafts)):
            return 0
        before = self.pool.states[request.held.row].clone() if drafts else None
        work[request] = Work([*tokens, *drafts], 1 + len(drafts), len(drafts), before, guessed)
        return len(tokens) + len(drafts)

    def prefill(self, request: Request, work: dict[Request, Work], most: int) -> int:
        """Plan a chunk of at most `most` tokens, up to the next cut; how many that are."""
        if request.held is None or most <= 0:
            return 0
        start = request.held.length
        n = min(most, request.cuts[0] - start)
        if not self.make_room(request, work, n):
            return 0
        work[request] = Work(request.tokens[start : start + n], 0)
        self.prefilled += n
        return n

    def make_room(self, request: Request, work: dict[Request, Work], tokens: int) -> bool:
        """Memory for a running request's next tokens; False where it had to give way itself."""
        assert request.held is not None
        while not self.pool.grow(request.held, tokens):
            if self.cache.evict():
                continue
            victim = self.running[-1]
            self.preempt(victim, work)
            if victim is request:
                return False
        return True

    def preempt(self, request: Request, work: dict[Request, Work]) -> None:
        """Take a running request's memory; it goes back in line."""
        assert request.held is not None
        work.pop(request, None)
        self.preempted += 1
        self.leave(request)
        self.enqueue(request)

    def admit(self, request: Request, work: dict[Request, Work]) -> bool:
        """Give a waiting request a sequence with memory for its tokens and a page more."""
        while True:
            saved, junction = self.cache.find(request.known[:-1])
            held = self.pool.open(saved)
            if held is not None:
                break
            if not self.give_way(request, work, bool(self.pool.free_rows)):
                return False
        wanted = min(len(request.tokens) + PAGE, self.pool.context)
        while not self.pool.grow(held, wanted - held.length):
            if not self.give_way(request, work, True):
                self.pool.release(held)
                return False
        request.held, end = held, len(request.tokens) - 1
        request.behind = None if self.draft is None else self.draft.begin(held.length)
        if request.cached_tokens is None:
            request.cached_tokens = held.length
        cuts = {end, *range(held.length // CHUNK_END * CHUNK_END + CHUNK_END, end, CHUNK_END)}
        cuts |= {junction} if junction - held.length >= SHORTEST_JUNCTION else set()
        request.cuts = sorted(cut for cut in cuts if cut > held.length)
        return True

    def give_way(self, request: Request, work: dict[Request, Work], evict: bool) -> bool:
        """Free something for a request in line: a snapshot, or the place of one of a lower priority."""
        if evict and self.cache.evict():
            return True
        if self.running and self.running[-1].priority > request.priority:
            self.preempt(self.running[-1], work)
            return True
        return False

    def team(self, multiplications: int) -> int:
        return max(1, min(self.threads, multiplications // WORTH_A_THREAD))

    def burst(self, work: dict[Request, Work]) -> int:
        """How many tokens each request may make in this step: more than one where all can, and nobody else waits."""
        waits = self.inbox or (self.waiting and self.waiting[0] is not self.stuck)
        if waits or self.draft is not None or self.decoder.packed is None:
            return 1
        drafts = self.limits.speculate and len(work) <= MOST_SPECULATING
        most = burst.MOST_WITH_DRAFTS if drafts else burst.MOST
        steps = int(min(most, burst.SECONDS / self.pace)) if self.pace else 1
        if steps < 2:
            return 1
        limits = [min(steps, burst.limit(request, one)) for request, one in work.items()]
        rooms = zip((r.held for r in work if r.held is not None), limits)
        if min(limits) < 1 or not all(self.pool.grow(held, n) for held, n in rooms):
            return 1
        for one, n in zip(work.values(), limits):
            one.burst = n
        return steps

    def feed(self, work: dict[Request, Work], steps: int = 1) -> list[int]:
        """Run the decoder and the sampler; the tokens chosen, `wanted` for each request in the order of `work`.

        The sequences are dealt to the threads that pay; where one of them is more than a share, all threads work on
        everything together."""
        held = [(one, request.held) for request, one in work.items() if request.held is not None]
        costs = [len(one.tokens) * (self.weights + self.latent * sequence.length) for one, sequence in held]
        threads = self.team(sum(costs))
        share = sum(costs) / threads
        parts: list[list[tuple[Request, Work]]] = [[]]
        for pair, before in zip(work.items(), itertools.accumulate(costs, initial=0)):
            if before >= share * len(parts) and max(costs) <= share:
                parts.append([])
            parts[-1].append(pair)
        masked = [r.row for r, one in work.items() if one.wanted and r.row is not None and r.row.grammar is not None]
        self.beside = self.workers.submit(ahead.prepare, masked) if masked else None
        began, team = time.perf_counter(), threads if len(parts) == 1 else 1
        futures = [self.workers.submit(self.run_part, part, team, steps) for part in parts[1:]]
        chosen = self.run_part(parts[0], team, steps)
        for future in futures:
            chosen += future.result()
        self.pace = (time.perf_counter() - began) / steps
        for one, sequence in held:
            sequence.length += len(one.tokens)
        return chosen

    def run_part(self, part: list[tuple[Request, Work]], threads: int, steps: int) -> list[int]:
        if steps > 1 and self.decoder.packed is not None:
            return burst.make(self.decoder.packed, self.pool.memory, part, steps, threads)
        held = [request.held for request, _ in part if request.held is not None]
        tokens, wanted = [one.tokens for _, one in part], [one.wanted for _, one in part]
        features = None if self.draft is None else self.draft.room(sum(map(len, tokens)))
        logits = self.decoder.extend(self.pool, held, tokens, wanted, threads, features).numpy()
        if features is not None:
            for (_, one), own in zip(part, features.split([len(queue) for queue in tokens])):
                one.features = own
        asked, uniforms, at = [], [], 0
        for request, one in part:
            assert request.row is not None
            if one.wanted:
                asked += [request.asked] * one.wanted
                uniforms += request.row.uniforms(one.wanted)
                if request.asked.logprobs:
                    one.raw = logits[at : at + one.wanted].copy()
                if not request.row.plain:
                    if self.beside is not None:
                        self.beside.result()
                    ahead.adjust(request.row, logits[at : at + one.wanted], one.tokens[len(one.tokens) - one.drafts :])
                at += one.wanted
        return choose_rows(logits, asked, uniforms, threads) if asked else []

    def hand_out(self, work: dict[Request, Work], chosen: list[int]) -> None:
        at = 0
        for request, one in work.items():
            if not one.wanted:
                self.learn(request, one, 0)
                self.cut(request)
                continue
            try:
                self.take(request, one, chosen[at : at + one.wanted])
            except Exception as error:  # this request's own: its grammar, its logits
                log.exception("a request failed")
                self.leave(request, error)
            at += one.wanted

    def take(self, request: Request, one: Work, chosen: list[int]) -> None:
        """Append what was sampled, as far as the drafts before it were right."""
        drafts = one.tokens[len(one.tokens) - one.drafts :]
        picked: list[Picked] = []
        finish, right = None, 0
        for place, token in enumerate(chosen):
            if token < 0:
                raise RuntimeError("no token can come next: the model or the grammar is broken")
            top = request.asked.top_logprobs
            picked.append(Picked(token) if one.raw is None else describe(one.raw[place], token, top))
            finish = self.append(request, token, picked)
            agrees = place < len(drafts) and drafts[place] == request.tokens[-1] == token
            right += agrees
            if finish or not agrees:
                break
        assert request.held is not None
        self.learn(request, one, one.drafts - right)
        if one.drafts and not one.burst:
            self.drafted, self.accepted = self.drafted + one.drafts, self.accepted + right
            if one.guessed:
                self.guessed, self.guessed_right = self.guessed + one.drafts, self.guessed_right + right
            elif request.drafter is not None:
                request.drafter.judge(one.drafts, right)
            if right < one.drafts and one.before is not None:
                self.pool.rewind(request.held, one.before, request.held.length - len(one.tokens))
        request.out.put(picked)
        if finish:
            if self.limits.prefix_cache:
                self.follow(request)
                self.cache.keep(np.array(request.tokens[: request.held.length]), request.held)
            self.leave(request, finish)

    def learn(self, request: Request, one: Work, wrong: int) -> None:
        """Hand the draft model the features of what was fed, but for the last `wrong` tokens."""
        if self.draft is not None and one.features is not None and request.held is not None:
            start, right = request.held.length - len(one.tokens), len(one.tokens) - wrong
            self.draft.learn(request, one.features[:right], start)

    def follow(self, request: Request) -> None:
        if self.draft is not None:
            self.draft.follow(request)

    def append(self, request: Request, token: int, picked: list[Picked]) -> str | None:
        """One more token, and those that it forces; the finish reason if it is the last."""
        assert request.row is not None
        request.row.take(token)
        request.tokens.append(token)
        if token in request.stop:
            return "stop"
        thinking = request.thinking
        if thinking is not None and token in thinking.ends:
            request.thinking = None
        elif thinking is not None and request.made >= thinking.budget:
            picked += self.force(request, thinking.close)
        return "length" if request.made >= request.asked.max_tokens else None

    def force(self, request: Request, tokens: list[int]) -> list[Picked]:
        """Append tokens that the model has no say in: the end of its think channel."""
        assert request.row is not None
        request.thinking, room = None, request.asked.max_tokens - request.made
        for token in tokens[:room]:
            request.row.take(token)
            request.tokens.append(token)
        return [Picked(token) for token in tokens[:room]]

    def cut(self, request: Request) -> None:
        """After a chunk of prefill: a snapshot where one is due."""
        assert request.held is not None
        if request.held.length == request.cuts[0]:
            del request.cuts[0]
            if self.limits.prefix_cache:
                self.follow(request)
                self.cache.keep(request.known[: request.held.length], request.held)

    def leave(self, request: Request, result: str | Exception | None = None) -> None:
        """A running request gives back what it holds; `result` is its last word."""
        if request.held is not None:
            self.pool.release(request.held)
        request.held, request.cuts, self.stuck = None, [], None
        (self.running if request in self.running else self.waiting).remove(request)
        if result is not None:
            request.out.put(result)
