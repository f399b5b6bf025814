"""Continuous batching: whatever happens around a request, it gets the bits of an undisturbed run."""

import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scheduling import (
    CHUNK_END,
    PAGE,
    SMALL,
    STEP,
    STOP,
    by_hand,
    check,
    finish,
    greedy,
    memory,
    prompts_around,
    request,
    result,
    undisturbed,
)
from small_models import FORMS, VOCAB, random_ids, random_model

from moonlet.engine import scheduler, speculate
from moonlet.engine.generate import Decoder
from moonlet.engine.request import Busy, Limits, Request, Thinking
from moonlet.engine.sampling import choose
from moonlet.engine.scheduler import Scheduler
from moonlet.errors import InputError

pytestmark = pytest.mark.usefixtures("small_pages")


@pytest.mark.parametrize("n", sorted({k * size + d for size in (PAGE, CHUNK_END, STEP) for k in (1, 2, 3)
                                      for d in (-1, 0, 1)} | {1, 2}))  # fmt: skip
def test_a_hit_at_every_boundary(decoder: Decoder, n: int) -> None:
    """A prompt again, then one that leaves it there, then one that goes on: each gives the bits of a cold run."""
    s, base = by_hand(decoder), prompts_around(60)
    for prompt in (base[:n], base[:n], [*base[:n], 3, 1, 4], [*base[:n], 3, 9, 2, 6], base):
        one = request(prompt, seed=n)
        s.submit(one)
        finish(s)
        assert result(one) == undisturbed(decoder, one)
    assert one.cached_tokens >= n - 2


def test_hits_leave_only_new_tokens_to_run(decoder: Decoder) -> None:
    """Turns of a conversation, and prompts that share their beginning: the junction is found at the second one."""
    s, told, seen = by_hand(decoder), prompts_around(70), 0
    for turn in range(5):
        one = request(told, seed=turn)
        s.submit(one)
        finish(s)
        text = [picked.token for picked in result(one)[0]]
        assert one.cached_tokens == seen
        seen, told = len(told) + len(text) - 1, [*told, *text, 5, 7]
    system = prompts_around(90)[20:]
    for other in range(4):
        one = request([*system, other, 1, 2], seed=other)
        s.submit(one)
        finish(s)
        assert one.cached_tokens == (0, CHUNK_END * 4, 70, 70)[other]


OPERATIONS = st.lists(st.sampled_from(["submit", "step", "step", "step", "cancel", "preempt", "forget"]), max_size=40)
SETTINGS = st.fixed_dictionaries(
    {},
    optional={
        "temperature": st.sampled_from([0.0, 0.7, 2.0]),
        "top_p": st.just(0.8),
        "top_k": st.just(5),
        "presence_penalty": st.just(1.0),
        "repetition_penalty": st.just(1.3),
        "max_tokens": st.integers(1, 30),
        "logprobs": st.just(False),
    },
)


def interleave(decoder: Decoder, data: st.DataObject) -> Scheduler:
    base = prompts_around(64)
    room = memory(decoder, *data.draw(st.sampled_from([(2, 14), (4, 16), (30, 60)])))
    s = by_hand(decoder, replace(SMALL, sequences=data.draw(st.integers(1, 8)), memory=room))
    everyone: list[Request] = []
    for operation in data.draw(OPERATIONS):
        if operation == "submit":
            shared = data.draw(st.integers(1, 64))
            own = data.draw(st.lists(st.integers(0, 46), max_size=5))
            seed, priority = data.draw(st.integers(0, 9)), data.draw(st.integers(0, 2))
            one = request(base[:shared] + own, seed, priority, **data.draw(SETTINGS))
            s.submit(one)
            everyone.append(one)
        elif operation == "step":
            s.step()
        elif operation == "cancel" and everyone:
            s.cancel(everyone[data.draw(st.integers(0, len(everyone) - 1))])
        elif operation == "preempt" and s.running:
            s.preempt(s.running[data.draw(st.integers(0, len(s.running) - 1))], {})
        elif operation == "forget":
            s.cache.evict()
        check(s)
    finish(s)
    for one in everyone:
        if not one.cancelled:
            assert result(one) == undisturbed(decoder, one)
    s.cache.clear()
    check(s)
    assert s.pool.used == 0
    return s


@settings(max_examples=25)
@given(st.data())
def test_whatever_happens_the_bits_are_those_of_an_undisturbed_run(decoder: Decoder, data: st.DataObject) -> None:
    interleave(decoder, data)


@pytest.mark.soak
@settings(max_examples=1000)
@given(st.data())
def test_a_thousand_interleavings(decoder: Decoder, data: st.DataObject) -> None:
    interleave(decoder, data)


def test_short_memory_preempts_and_resumes(decoder: Decoder) -> None:
    s = by_hand(decoder, replace(SMALL, memory=memory(decoder, 3, 12), prefix_cache=False))
    everyone = [request(prompts_around(20 + n), n, max_tokens=40, temperature=0.5) for n in range(3)]
    for one in everyone:
        s.submit(one)
    finish(s)
    assert s.preempted > 0
    for one in everyone:
        assert result(one) == undisturbed(decoder, one)


@pytest.mark.parametrize("steps", range(12))
@pytest.mark.parametrize("cached", [False, True])
def test_aborted_leaves_all_as_before(decoder: Decoder, steps: int, cached: bool) -> None:
    s = by_hand(decoder, replace(SMALL, prefix_cache=cached))
    s.submit(other := request(prompts_around(30)[::-1], max_tokens=40, temperature=1.0))
    for _ in range(6):
        s.step()
    rows, pages = len(s.pool.free_rows), set(s.pool.free_pages)
    s.submit(one := request(prompts_around(50), max_tokens=30))
    for _ in range(steps):
        s.step()
    s.cancel(one)
    s.step()  # one step is enough
    assert one not in [*s.running, *s.waiting] and one.held is None
    assert len(s.pool.free_rows) == rows
    s.cancel(other)
    s.step()
    s.cache.clear()
    assert s.pool.used == 0 and len(s.pool.free_pages) >= len(pages)
    check(s)


@pytest.mark.parametrize("steps", [0, 1, 3, 6, 10])
def test_aborted_leaves_what_others_hold_as_it_was(decoder: Decoder, steps: int) -> None:
    """Snapshots keep their bits when a request that went on from one is aborted, and nothing of it stays."""
    s = by_hand(decoder)
    s.submit(request(prompts_around(50), max_tokens=6))
    finish(s)
    s.limits = replace(s.limits, prefix_cache=False)  # from now on no more snapshots

    def everything() -> list:
        pool, kept = s.pool, sorted((node.held for node in s.cache.recent), key=lambda held: held.length)
        free = [
            sorted(pool.free_rows),
            sorted(pool.free_snapshots),
            sorted(pool.free_pages),
            list(pool.users),
            pool.used,
        ]
        numbers = [(pool.saved[one.row - len(pool.states)].tolist(), pool.pages[one.pages].tolist()) for one in kept]
        return [free, numbers, [(one.row, one.length, list(one.pages)) for one in kept]]

    before = everything()
    s.submit(one := request([*prompts_around(50), 3, 1, 4], max_tokens=30))
    for _ in range(steps):
        s.step()
    assert (one.held is not None and one.cached_tokens == 49) == (steps > 0)
    s.cancel(one)
    s.step()
    assert everything() == before


def test_priorities(decoder: Decoder) -> None:
    """A request of a higher class takes the place of a lower one, which ends with the same text later."""
    s = by_hand(decoder, replace(SMALL, sequences=1))
    low, high = request(prompts_around(20), 1, 5, max_tokens=20), request(prompts_around(9), 2, 1, max_tokens=3)
    s.submit(low)
    for _ in range(8):
        s.step()
    s.submit(high)
    s.step()
    assert s.running == [high] and s.waiting == [low]
    finish(s)
    assert result(low) == undisturbed(decoder, low) and result(high) == undisturbed(decoder, high)


def test_a_long_prompt_does_not_hold_up_decoding(decoder: Decoder) -> None:
    s = by_hand(decoder)
    s.submit(short := request([1, 2], max_tokens=60, temperature=1.0, logit_bias={STOP: -100}))
    s.step()
    s.submit(request(random_ids(1, 300)[0].tolist(), max_tokens=1))
    for _ in range(20):
        before = short.made
        s.step()
        assert short.made == before + 1
        assert s.running[1].held.length <= STEP * s.steps


def test_refused(decoder: Decoder) -> None:
    s = by_hand(decoder, replace(SMALL, waiting=2, memory=memory(decoder, 1, 4)))
    with pytest.raises(InputError, match="33 tokens, the cache holds 32"):
        s.submit(request([1] * 13, max_tokens=20))
    with pytest.raises(InputError, match="token 48: ids are 0 to 47"):
        s.submit(request([1], logit_bias={48: 1.0}))
    s.submit(request([1]))
    s.submit(request([1]))
    with pytest.raises(Busy):
        s.submit(request([1]))
    with pytest.raises(InputError, match="holds no sequence"):
        Scheduler(decoder, Limits(memory=1000))


def test_one_failure_is_its_own(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    s = by_hand(decoder)
    good, bad = request([1, 2, 3], max_tokens=5, temperature=1.0), request([4, 5], max_tokens=5, top_k=3)
    s.submit(good)
    s.submit(bad)

    def broken(token: int) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(bad.row, "take", broken)
    finish(s)
    assert result(good) == undisturbed(decoder, good)
    with pytest.raises(ZeroDivisionError):
        result(bad)


def test_a_broken_model_fails_the_request(decoder: Decoder) -> None:
    model = random_model(FORMS["k2"]())
    with torch.no_grad():
        model.norm.weight.fill_(torch.nan)
    s = by_hand(Decoder(model))
    s.submit(one := request([1, 2]))
    finish(s)
    with pytest.raises(RuntimeError, match="no token can come next"):
        result(one)


@pytest.mark.parametrize(
    "asked",
    [{"temperature": t} for t in (0.0, 0.3, 1.0)]
    + [{"temperature": 0.3, "frequency_penalty": -0.4, "repetition_penalty": 0.9, "logit_bias": {3: 1.0}}],
)
def test_speculation_changes_nothing_but_the_steps(
    decoder: Decoder, asked: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same tokens and log-probs with drafts (here by the last token alone), right and wrong ones."""
    monkeypatch.setattr(speculate, "NGRAM", 1)
    s = by_hand(decoder, replace(SMALL, step_tokens=64))
    everyone = [request(prompts_around(20 + seed), seed, max_tokens=100, **asked) for seed in range(9)]
    for one in everyone:
        s.submit(one)
    finish(s)
    for one in everyone:
        assert result(one) == undisturbed(decoder, one)
    assert s.drafted > s.accepted > 0


def test_thinking_budget(decoder: Decoder) -> None:
    close, ends = [40, 41, 42], frozenset([40, 43])
    for budget in (0, 1, 5):
        s = by_hand(decoder)
        one = replace(request([1, 2, 3], max_tokens=12, logit_bias={n: -100 for n in (STOP, 40, 43)}))
        one.thinking = Thinking(budget, close, ends)
        s.submit(one)
        finish(s)
        text = [picked.token for picked in result(one)[0]]
        assert text[budget : budget + 3] == close and len(text) == 12
        row = [1, 2, 3, *text]
        again = request(row[: 3 + budget + 3], seed=0, max_tokens=9 - budget, logit_bias=one.asked.logit_bias)
        logits = decoder.prefill([again.prompt], 4)[1].numpy()
        numbers = np.random.default_rng(0).random(12)
        assert choose(logits + bias_of(one), [again.asked], [numbers[budget + 3]]) == [text[budget + 3]]


def bias_of(one: Request) -> np.ndarray:
    bias = np.zeros(VOCAB, dtype=np.float32)
    bias[[*one.asked.logit_bias]] = [*one.asked.logit_bias.values()]
    return bias


def test_threads_and_callers(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real thread, two decoder threads, callers that come and go: all get their own text, nothing stays."""
    monkeypatch.setattr(scheduler, "WORTH_A_THREAD", 1)
    s = Scheduler(decoder, replace(SMALL, sequences=8, threads=2))
    everyone = [request(prompts_around(5 + 3 * n), n, max_tokens=10 + n) for n in range(20)]
    callers = [threading.Thread(target=s.submit, args=(one,)) for one in everyone]
    for thread in callers:
        thread.start()
    for thread in callers:
        thread.join()
    s.cancel(everyone[3])
    for one in everyone:
        if not one.cancelled:
            got: list = []
            while not isinstance(more := one.out.get(timeout=60), str):
                got += more
            assert (got, more) == undisturbed(decoder, one)
    while s.alive:
        pass
    check(s)
    assert not s.running and not s.waiting


@pytest.mark.parametrize("form", ["k3", "k2"])
def test_without_kernels(form: str) -> None:
    """The same through PyTorch alone: equal up to rounding, so greedy text and log-probs to 1e-4."""
    model = random_model(FORMS[form](), std=0.2)
    native, plain = Decoder(model), Decoder(model)
    plain.packed = None
    texts = []
    for made in (native, plain):
        texts.append(greedy(by_hand(made)))
    for a, b in zip(*texts):
        assert [p.token for p in a] == [p.token for p in b]
        assert [p.logprob for p in a] == pytest.approx([p.logprob for p in b], abs=1e-4)
