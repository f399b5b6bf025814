"""Shared by tests of the scheduler: steps by hand, what a request got, and what it gets alone."""

from collections import Counter

from small_models import VOCAB, random_ids

from moonlet.engine import cache
from moonlet.engine.generate import Decoder
from moonlet.engine.request import Limits, Request
from moonlet.engine.sampling import Picked, Row, SamplingParams, choose, describe
from moonlet.engine.scheduler import Scheduler

STOP = 47
PAGE, CHUNK_END, STEP = 8, 16, 12
SMALL = Limits(sequences=3, step_tokens=STEP, threads=1, memory=1 << 19)


def by_hand(decoder: Decoder, limits: Limits = SMALL) -> Scheduler:
    """A scheduler whose steps the test takes: it believes that its thread runs."""
    made = Scheduler(decoder, limits)
    made.alive = True
    return made


def request(prompt: list[int], seed: int = 0, priority: int = 0, **asked) -> Request:
    params = SamplingParams(**({"max_tokens": 12, "logprobs": True, "top_logprobs": 2} | asked))
    return Request(prompt, params, seed, frozenset([STOP]), priority=priority)


def finish(s: Scheduler, *requests: Request) -> None:
    for _ in range(2000):
        if not (s.inbox or s.waiting or s.running):
            return
        s.step()
        check(s)
    raise AssertionError("the scheduler does not come to an end")


def result(one: Request) -> tuple[list[Picked], str]:
    """What a request was given: its tokens with log-probs, and why it ended."""
    got: list[Picked] = []
    while True:
        more = one.out.get_nowait()
        if isinstance(more, Exception):
            raise more
        if isinstance(more, str):
            return got, more
        got += more


def greedy(s: Scheduler) -> list[list[Picked]]:
    """What five prompts with a common beginning get, the last of them twice."""
    everyone = [request(prompts_around(10 + 9 * n), max_tokens=20, temperature=0) for n in (0, 1, 2, 3, 4, 4)]
    for one in everyone:
        s.submit(one)
    finish(s)
    return [result(one)[0] for one in everyone]


def undisturbed(decoder: Decoder, one: Request) -> tuple[list[Picked], str]:
    """The same request alone, token by token on a plain cache."""
    row, got = Row(one.asked, one.seed, one.prompt, VOCAB), []
    held, logits = decoder.prefill([one.prompt], one.asked.max_tokens)
    while True:
        raw = logits.numpy().copy()
        row.adjust(logits.numpy()[0])
        (token,) = choose(logits.numpy(), [one.asked], row.uniforms(1))
        row.take(token)
        got.append(describe(raw[0], token, one.asked.top_logprobs) if one.asked.logprobs else Picked(token))
        if token in one.stop or len(got) == one.asked.max_tokens:
            return got, "stop" if token in one.stop else "length"
        logits = decoder.feed(held, [0], [[token]])


def check(s: Scheduler) -> None:
    """Every page, row and byte is accounted for: nothing leaks, nothing is given out twice."""
    pool, snapshots = s.pool, [node.held for node in s.cache.recent]
    everyone = [r.held for r in s.running] + snapshots
    assert None not in everyone
    users = Counter(page for held in everyone for page in held.pages)
    assert [users[page] for page in range(len(pool.users))] == pool.users
    assert sorted(pool.free_pages) == [page for page, n in enumerate(pool.users) if n == 0]
    rows = [held.row for held in everyone] + pool.free_rows + pool.free_snapshots
    assert sorted(rows) == list(range(len(pool.states) + len(pool.saved)))
    states = len(s.running) * pool.state_bytes + len(snapshots) * pool.saved_bytes
    assert pool.used == len(users) * pool.page_bytes + states <= pool.budget
    for r in s.running:
        assert pool.memory.lengths[r.held.row] == r.held.length < len(r.tokens)
        assert pool.table[r.held.row, : len(r.held.pages)].tolist() == r.held.pages


def memory(decoder: Decoder, states: int, pages: int) -> int:
    one = cache.Pool(decoder.model, 1, 64, 1 << 20)
    return states * one.state_bytes + pages * one.page_bytes


def prompts_around(n: int) -> list[int]:
    return random_ids(1, n, seed=1)[0].tolist()
