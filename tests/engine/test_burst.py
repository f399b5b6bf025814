"""Bursts: the same tokens as one step after another, bit for bit, with fewer of them."""

from dataclasses import replace

import numpy as np
import pytest
from scheduling import SMALL, STOP, by_hand, check, finish, prompts_around, request, result, undisturbed
from small_models import random_ids

from moonlet.engine import burst
from moonlet.engine.draw import draw
from moonlet.engine.generate import Decoder, Sampling, generate
from moonlet.engine.packed import in_rows
from moonlet.engine.request import Request, Thinking


@pytest.fixture(autouse=True)
def steps_of_any_length(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(burst, "SECONDS", 1e9)


@pytest.mark.parametrize("team", [1, 2])
def test_a_burst_is_its_steps(decoder: Decoder, team: int) -> None:
    packed, prompts = decoder.packed, random_ids(4, 9).tolist()
    assert packed is not None
    uniforms = np.random.default_rng(0).random((4, 12))
    warmth, limits = [0.0, 1.0, 0.5, 2.0], [12, 5, 1, 12]
    cache = decoder.model.new_cache(4, 40)
    memory = in_rows(cache)
    packed.decode(memory, range(4), [prompt[:-1] for prompt in prompts])
    wanted: list[list[int]] = []
    for row in range(4):
        logits, text = packed.decode(memory, [row], [prompts[row][-1:]]), []
        while len(text) < limits[row]:
            tokens, _ = draw(
                logits.numpy(), np.float32(warmth[row : row + 1]), uniforms[row, len(text) : len(text) + 1]
            )
            text.append(int(tokens[0]))
            logits = packed.decode(memory, [row], [text[-1:]])
        wanted.append(text)
    stop = wanted[3][6]
    wanted[3] = wanted[3][: wanted[3].index(stop) + 1]
    memory.lengths.zero_()
    for layer in cache.layers:
        for tensor in vars(layer).values():
            tensor.zero_()
    packed.decode(memory, range(4), [prompt[:-1] for prompt in prompts])
    last, stops = [prompt[-1] for prompt in prompts], [[], [], [], [99, stop]]
    text, logprobs = burst.burst(packed, memory, range(4), last, warmth, uniforms, limits, stops, team)
    assert text == wanted and [len(one) for one in logprobs] == [len(one) for one in text]
    assert memory.lengths.tolist() == [8 + len(one) for one in text]


def test_the_scheduler_gives_the_same_text_in_fewer_steps(decoder: Decoder) -> None:
    s = by_hand(decoder, replace(SMALL, speculate=False))
    everyone = [request(prompts_around(9 + n), n, logprobs=False, top_logprobs=0, max_tokens=30 + n) for n in range(3)]
    for one in everyone:
        s.submit(one)
    finish(s)
    texts = [result(one) for one in everyone]
    assert texts == [undisturbed(decoder, one) for one in everyone]
    assert s.steps < max(len(text) for text, _ in texts) / 3


def test_who_asks_for_more_than_a_temperature_is_looked_at_token_by_token(decoder: Decoder) -> None:
    asked = ({"top_p": 0.9}, {"logprobs": True}, {"presence_penalty": 1.0}, {"logit_bias": {1: 1.0}})
    for more in asked:
        s = by_hand(decoder, replace(SMALL, speculate=False))
        one = request([1, 2, 3], max_tokens=20, **{"logprobs": False, "top_logprobs": 0, **more})
        s.submit(one)
        finish(s)
        assert s.steps == one.made + 1  # the first feeds the prompt


def test_a_request_that_comes_meanwhile_waits_for_one_burst_and_cancelled_ones_leave(decoder: Decoder) -> None:
    s = by_hand(decoder, replace(SMALL, speculate=False))
    plain = {"logprobs": False, "top_logprobs": 0, "temperature": 0.0}
    first: Request = request([1, 2], max_tokens=200, logit_bias={}, **plain)
    s.submit(first)
    for _ in range(4):
        s.step()
        check(s)
    assert first.held is not None
    before, second = first.made, request([3, 4], max_tokens=3, **plain)
    s.submit(second)
    s.cancel(first)
    s.step()
    assert first.made == before and first.held is None and second.held is not None
    finish(s)
    assert result(second) == undisturbed(decoder, second)


@pytest.mark.parametrize("budget", [1, 5, 17])
def test_a_thinking_budget_ends_a_burst(decoder: Decoder, budget: int) -> None:
    close = [40, 41, 42]
    s = by_hand(decoder, replace(SMALL, speculate=False))
    one = request([1, 2, 3], max_tokens=30, logprobs=False, top_logprobs=0, seed=3)
    one.stop = frozenset()
    one.thinking = Thinking(budget, close, frozenset([46]))
    s.submit(one)
    finish(s)
    text = [picked.token for picked in result(one)[0]]
    assert len(text) == 30
    assert text[budget : budget + 3] == close or 46 in text[:budget]


def test_generate_takes_bursts_and_says_the_same(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts, seeds = random_ids(5, 12).tolist(), list(range(5))
    sampling = Sampling(max_tokens=50, max_turn=20)

    def hook(row: int, ids: list[int]) -> list[int] | None:
        return [3, 4, 5] if row % 2 and ids.count(STOP) < 3 else None

    found = generate(decoder, prompts, seeds, STOP, sampling, hook)
    monkeypatch.setattr("moonlet.engine.generate.BURST", 1)
    assert generate(decoder, prompts, seeds, STOP, sampling, hook) == found
    plain = Decoder(decoder.model)
    plain.packed = None
    singly = generate(plain, prompts, seeds, STOP, sampling, hook)
    assert [r.ids for r in singly] == [r.ids for r in found]
    for a, b in zip(found, singly):
        assert np.abs(np.subtract(a.logprobs, b.logprobs)).max() < 1e-4
