"""Tokens for rows of logits, by the native sampler (kernels/native/sample.cpp) where a temperature is all they ask for.

What more is asked for, and a machine without kernels, goes to the twin in numpy, `sampling.choose`. A row's token does
not depend on the others.
"""

from collections.abc import Sequence
from ctypes import c_int, c_void_p

import numpy as np

from moonlet.engine.sampling import SamplingParams, choose, trims
from moonlet.model.kernels.native import library

POINTERS = (c_void_p,) * 5


def draw(
    logits: np.ndarray, temperatures: np.ndarray, uniforms: np.ndarray, threads: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """logits [n, vocab] fp32, temperatures [n] fp32 (0: greedy), uniforms [n] fp64 -> tokens [n] int64 (-1: the row is
    broken), their log-probs [n] fp32 at the temperature (greedy: at 1). Native only."""
    kernels = library()
    assert kernels is not None and logits.flags.c_contiguous
    n, vocab = logits.shape
    tokens, logprobs = np.empty(n, dtype=np.int64), np.empty(n, dtype=np.float32)
    if kernels.sample_rows.argtypes is None:
        kernels.sample_rows.argtypes = (*POINTERS, c_int, c_int, c_int)
    arrays = (logits, temperatures, uniforms, tokens, logprobs)
    kernels.sample_rows(*(array.ctypes.data for array in arrays), n, vocab, threads)
    return tokens, logprobs


def choose_rows(
    logits: np.ndarray, asked: Sequence[SamplingParams], uniforms: Sequence[float], threads: int = 1
) -> list[int]:
    """`sampling.choose`, natively for the rows that can be."""
    if library() is None:
        return choose(logits, asked, uniforms)
    temperatures = np.array([one.temperature for one in asked], dtype=np.float32)
    tokens, _ = draw(logits, temperatures, np.array(uniforms), threads)
    if others := [i for i, one in enumerate(asked) if trims(one)]:
        tokens[others] = choose(logits[others], [asked[i] for i in others], [uniforms[i] for i in others])
    return tokens.tolist()
