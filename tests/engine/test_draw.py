"""The native sampler against its twin in numpy, and against log_softmax."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moonlet.engine.draw import choose_rows, draw
from moonlet.engine.generate import Sampling, pick, pick_torch
from moonlet.engine.sampling import SamplingParams, choose
from moonlet.model.kernels.native import why_not

pytestmark = pytest.mark.skipif(why_not() is not None, reason="needs the native kernels")


def rows(n: int, vocab: int, seed: int) -> np.ndarray:
    """Some tokens are masked, but for the first."""
    random = np.random.default_rng(seed)
    logits = (random.normal(size=(n, vocab)) * 4).astype(np.float32)
    logits[:, 1:][random.random((n, vocab - 1)) < 0.2] = -np.inf
    return logits


@given(st.integers(1, 20), st.sampled_from([1, 2, 37, 63, 64, 65, 200, 2048]), st.integers(0, 2**32))
def test_the_same_tokens_as_numpy(n: int, vocab: int, seed: int) -> None:
    random, logits = np.random.default_rng(seed + 1), rows(n, vocab, seed)
    temperatures = random.choice([0.0, 0.3, 1.0, 2.0], n)
    uniforms = random.choice([0.0, 1 - 2**-53, *random.random(20)], n)
    asked = [SamplingParams(temperature=t) for t in temperatures]
    tokens, logprobs = draw(logits, temperatures.astype(np.float32), uniforms, threads=2)
    assert tokens.tolist() == choose(logits, asked, uniforms.tolist()) == choose_rows(logits, asked, uniforms.tolist())
    scale = torch.tensor([t or 1.0 for t in temperatures], dtype=torch.float64)
    expected = (torch.from_numpy(logits).double() / scale[:, None]).log_softmax(-1)
    expected = expected.gather(1, torch.from_numpy(tokens)[:, None])[:, 0]
    np.testing.assert_allclose(logprobs, expected.numpy(), atol=2e-6)


def test_frequencies_are_the_probabilities() -> None:
    logits, n = rows(1, 100, 3), 100_000
    tokens, _ = draw(np.repeat(logits, n, 0), np.full(n, 0.7, np.float32), (np.arange(n) + 0.5) / n)
    expected = torch.from_numpy(logits[0] / 0.7).softmax(-1).numpy()
    assert np.abs(np.bincount(tokens, minlength=100) / n - expected).max() <= 2 / n


def test_broken_rows_are_told_from_whole_ones() -> None:
    logits = rows(4, 70, 0)
    logits[0, 3], logits[1], logits[2, 5] = np.nan, -np.inf, np.inf
    for temperature in (0.0, 1.0):
        tokens, _ = draw(logits, np.full(4, temperature, np.float32), np.full(4, 0.5))
        assert tokens[:3].tolist() == [-1, -1, -1] and tokens[3] >= 0
    with pytest.raises(FloatingPointError, match="not finite"):
        pick(torch.from_numpy(logits), np.full(4, 0.5), Sampling())


def test_rows_that_ask_for_more_go_to_numpy() -> None:
    logits, uniforms = rows(4, 300, 5), [0.1, 0.5, 0.9, 0.999]
    asked = [SamplingParams(), SamplingParams(top_k=2), SamplingParams(top_p=0.5), SamplingParams(min_p=0.3)]
    assert choose_rows(logits, asked, uniforms) == choose(logits, asked, uniforms)


@pytest.mark.parametrize("temperature", [0.0, 0.8, 1.0])
def test_pick_is_the_same_in_pytorch(temperature: float) -> None:
    logits, uniforms = torch.from_numpy(rows(50, 2048, 9)), np.random.default_rng(2).random(50)
    tokens, logprobs = pick(logits, uniforms, Sampling(temperature))
    expected = pick_torch(logits, torch.from_numpy(uniforms), Sampling(temperature))
    assert tokens == expected[0]
    np.testing.assert_allclose(logprobs, expected[1], atol=2e-6)
