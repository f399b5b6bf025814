"""The sampler against the logits processors of transformers, by the probabilities that it really samples with."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from moonlet.engine.sampling import BOUNDS, Row, SamplingParams, StopStrings, choose, describe
from moonlet.errors import InputError

VOCAB, GRID = 37, 20_000
LOGITS = torch.randn(VOCAB, generator=torch.Generator().manual_seed(1)) * 2


def frequencies(logits: np.ndarray, asked: SamplingParams) -> np.ndarray:
    """How often each token is chosen over a grid of uniform numbers."""
    uniforms = (np.arange(GRID) + 0.5) / GRID
    tokens = choose(np.tile(logits, (GRID, 1)), [asked] * GRID, uniforms.tolist())
    return np.bincount(tokens, minlength=VOCAB) / GRID


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
@pytest.mark.parametrize(
    "fields", [{}, {"top_k": 5}, {"top_p": 0.7}, {"min_p": 0.1}, {"top_k": 9, "top_p": 0.9}, {"top_k": 4, "min_p": 0.3}]
)
def test_probabilities_are_those_of_transformers(temperature: float, fields: dict) -> None:
    kinds = {"top_k": TopKLogitsWarper, "top_p": TopPLogitsWarper, "min_p": MinPLogitsWarper}
    warpers = [TemperatureLogitsWarper(temperature), *(kinds[name](value) for name, value in fields.items())]
    expected = LogitsProcessorList(warpers)(torch.zeros(1, 1, dtype=torch.long), LOGITS[None].clone())[0].softmax(-1)
    got = frequencies(LOGITS.numpy(), SamplingParams(temperature=temperature, **fields))
    assert np.abs(got - expected.numpy()).max() <= 2 / GRID
    assert (got[expected.numpy() == 0] == 0).all()


def test_penalties_and_bias() -> None:
    prompt, text = [3, 4, 5], [5, 5, 9]
    row = Row(SamplingParams(repetition_penalty=1.4), 0, prompt, VOCAB)
    for token in text:
        row.take(token)
    logits = LOGITS.numpy().copy()
    row.adjust(logits)
    expected = RepetitionPenaltyLogitsProcessor(1.4)(torch.tensor([prompt + text]), LOGITS[None].clone())[0]
    np.testing.assert_array_equal(logits, expected.numpy())
    asked = SamplingParams(presence_penalty=0.5, frequency_penalty=0.25, logit_bias={7: 3.0})
    row = Row(asked, 0, prompt, VOCAB)
    for token in text:
        row.take(token)
    row.adjust(logits := LOGITS.numpy().copy())
    change = np.zeros(VOCAB, dtype=np.float32)  # OpenAI: logit - count * frequency - (count > 0) * presence
    change[[5, 9, 7]] = -1.0, -0.75, 3.0
    np.testing.assert_allclose(logits, LOGITS.numpy() + change, atol=1e-6)


def test_greedy_log_probs_and_broken_rows() -> None:
    rows = np.stack([LOGITS.numpy(), LOGITS.numpy()[::-1], np.full(VOCAB, np.nan, np.float32)])
    chosen = choose(rows, [SamplingParams(temperature=0)] * 3, [0.5] * 3)
    assert chosen == [int(LOGITS.argmax()), int(LOGITS.flip(0).argmax()), -1]
    picked = describe(LOGITS.numpy(), 4, 3)
    expected = LOGITS.double().log_softmax(-1)
    assert picked.logprob == pytest.approx(float(expected[4]), abs=1e-9)
    best = expected.topk(3)
    assert [i for i, _ in picked.top] == best.indices.tolist()
    assert [p for _, p in picked.top] == pytest.approx(best.values.tolist(), abs=1e-9)


@given(st.integers(1, 40), st.integers(0, 2**32), st.data())
def test_a_row_alone_and_among_others(n: int, seed: int, data: st.DataObject) -> None:
    random = np.random.default_rng(seed)
    logits = (random.normal(size=(n, VOCAB)) * 3).astype(np.float32)
    settings = st.builds(
        SamplingParams,
        temperature=st.sampled_from([0.0, 0.3, 1.0, 2.0]),
        top_p=st.sampled_from([1.0, 0.5, 0.0]),
        top_k=st.sampled_from([0, 1, 7]),
        min_p=st.sampled_from([0.0, 0.2, 1.0]),
    )
    asked, uniforms = [data.draw(settings) for _ in range(n)], random.random(n).tolist()
    together = choose(logits, asked, uniforms)
    assert together == [choose(logits[i : i + 1], [asked[i]], [uniforms[i]])[0] for i in range(n)]


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-53])
def test_the_ends_of_the_unit_interval(uniform: float) -> None:
    logits = np.array([[-np.inf, 0, 1, -np.inf, 2, -np.inf]], dtype=np.float32)
    assert choose(logits, [SamplingParams()], [uniform]) == [1 if uniform == 0 else 4]


def test_numbers_come_one_a_token() -> None:
    """However far ahead a draft looks."""
    row, expected = Row(SamplingParams(), 5, [1], VOCAB), np.random.default_rng(5).random(100).tolist()
    assert row.uniforms(40) == expected[:40]
    for _ in range(3):
        row.take(0)
    assert row.uniforms(2) == expected[3:5]


@given(st.text("ab.", max_size=30), st.lists(st.text("ab.", min_size=1, max_size=4), min_size=1, max_size=3), st.data())
def test_stop_strings_in_any_chunks(text: str, stops: list[str], data: st.DataObject) -> None:
    """Cut before the stop string that is whole first; nothing of it is given out before that is known."""
    ends = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    expected = text[: min(ends)[1]] if ends else text
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)))) | {0, len(text)})
    watch, given_out = StopStrings(stops), ""
    for start, end in pairwise(cuts):
        given_out += watch.feed(text[start:end])
        assert expected.startswith(given_out)
    given_out += watch.flush()
    assert given_out == expected and watch.found == bool(ends)


@pytest.mark.parametrize("name", BOUNDS)
def test_bounds(name: str) -> None:
    low = BOUNDS[name][0]
    with pytest.raises(InputError, match=f"{name}=.* outside .* send a value inside"):
        SamplingParams(**{name: low - 1})
    with pytest.raises(InputError):
        SamplingParams(**{name: float("nan")})
    SamplingParams(**{name: low})


def test_other_bounds() -> None:
    for fields in ({"stop": ["x"] * 5}, {"stop": [""]}, {"logit_bias": {1: 101.0}}, {"logit_bias": {1: float("nan")}}):
        with pytest.raises(InputError, match=f"{next(iter(fields))} has"):
            SamplingParams(**fields)
