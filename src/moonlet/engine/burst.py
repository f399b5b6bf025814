"""Several tokens of each sequence in one call of the native decoder (kernels/native/burst.cpp).

Between two tokens Python costs about as much as a small model does: 0.2 ms a step, and 40 us a stream (2026-11-28). So
where nothing but a temperature is asked for, where nobody waits and nothing is guessed, tokens are made in bursts, as
many as take `SECONDS`: long steps of a large model stay single. The texts are the same. Where drafts may be found a
burst is short, as it looks for none on its way; of 3 to 8 steps the agent trace takes the same time.
"""

import ctypes
from collections.abc import Sequence

import numpy as np

from moonlet.engine.packed import INT, POINTER, Memory, PackedModel
from moonlet.engine.request import Request, Work
from moonlet.engine.sampling import trims
from moonlet.model.kernels.native import library

SECONDS, MOST, MOST_WITH_DRAFTS = 0.03, 16, 4  # of a burst, and its steps


def limit(request: Request, one: Work) -> int:
    """How many tokens a request may make before Python has to look at them; 0: it must at each."""
    asked, row, made = request.asked, request.row, request.made
    if row is None or not row.plain or asked.logprobs or trims(asked) or len(one.tokens) != 1 or one.wanted != 1:
        return 0
    if made == 0:  # somebody waits for the first one
        return 0
    most = asked.max_tokens - made
    return most if request.thinking is None else min(most, request.thinking.budget - made)


def make(
    packed: PackedModel, memory: Memory, part: Sequence[tuple[Request, Work]], steps: int, threads: int
) -> list[int]:
    """A burst of requests that each feed one token and make `Work.burst`, at most `steps`; the tokens chosen, one after
    another, and each `Work` says how it came to its own."""
    requests = [request for request, _ in part]
    tokens, _ = burst(
        packed,
        memory,
        [r.held.row for r in requests if r.held is not None],
        [one.tokens[0] for _, one in part],
        [r.asked.temperature for r in requests],
        np.array([r.row.uniforms(steps) for r in requests if r.row is not None]),
        [one.burst for _, one in part],
        [[*r.stop] for r in requests],
        threads,
    )
    for (_, one), made in zip(part, tokens):
        one.tokens, one.wanted, one.drafts = [*one.tokens, *made[:-1]], len(made), len(made) - 1
    return [token for made in tokens for token in made]


def burst(
    packed: PackedModel,
    memory: Memory,
    rows: Sequence[int],
    last: Sequence[int],
    temperatures: Sequence[float],
    uniforms: np.ndarray,
    limits: Sequence[int],
    stops: Sequence[Sequence[int]],
    threads: int = 1,
) -> tuple[list[list[int]], list[list[float]]]:
    """Continue each of `rows` of the cache from its `last` token, not fed yet; uniforms [n, steps] fp64. The tokens of
    each and their log-probs: limits[i] (at most steps), or up to one of stops[i]; -1 where the row is broken. All but
    the last of a row's are then taken up, and the cache must have room for them."""
    n, steps = uniforms.shape
    kernels = library()
    assert kernels is not None and uniforms.flags.c_contiguous and 0 < min(limits) and max(limits) <= steps
    if kernels.decode_burst.argtypes is None:
        kernels.decode_burst.argtypes = (
            *((POINTER,) * 6),
            *(INT, INT),
            *((POINTER,) * 4),
            *(INT, INT),
            *((POINTER,) * 3),
            *(INT, INT),
        )
    width = max(1, *(len(one) for one in stops))
    ends = np.full((n, width), -1, dtype=np.int64)
    for row, one in zip(ends, stops):
        row[: len(one)] = one
    ids, where = np.array(last, dtype=np.int64), np.array(rows, dtype=np.int32)
    warmth, most = np.array(temperatures, dtype=np.float32), np.array(limits, dtype=np.int32)
    tokens, logprobs = np.empty((n, steps), dtype=np.int64), np.empty((n, steps), dtype=np.float32)
    made = np.empty(n, dtype=np.int32)
    cache = memory.lengths.data_ptr(), ctypes.addressof(memory.states), memory.table.data_ptr(), memory.table.shape[1]
    asked = (warmth.ctypes.data, uniforms.ctypes.data, most.ctypes.data, ends.ctypes.data, width, steps)
    out = (tokens.ctypes.data, logprobs.ctypes.data, made.ctypes.data, n, threads)
    model = ctypes.addressof(packed.model), ids.ctypes.data, where.ctypes.data
    kernels.decode_burst(*model, *cache, memory.page, *asked, *out)
    memory.lengths.numpy()[where] += made
    cut = made.tolist()
    return [r[:m] for r, m in zip(tokens.tolist(), cut)], [r[:m] for r, m in zip(logprobs.tolist(), cut)]
