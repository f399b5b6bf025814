"""Snapshots whose states are kept in bf16: half the memory, one rounding at each hit, and nothing else."""

from dataclasses import replace

import pytest
import torch
from scheduling import SMALL, by_hand, check, finish, prompts_around, request, result, undisturbed

from moonlet.engine import cache
from moonlet.engine.generate import Decoder
from moonlet.errors import InputError


def test_a_state_is_rounded_once(decoder: Decoder) -> None:
    pool = cache.Pool(decoder.model, 2, 64, 1 << 20, snapshots="bf16")
    held = pool.open()
    assert held is not None and 2 * pool.saved_bytes == pool.state_bytes
    state = torch.randn(pool.states.shape[1])
    pool.states[held.row] = state
    used = pool.used
    saved = pool.snapshot(held)
    assert saved is not None and pool.used - used == pool.saved_bytes
    again = pool.open(saved)
    assert again is not None and torch.equal(pool.states[again.row], state.bfloat16().float())
    assert torch.equal(pool.states[held.row], state)
    for one in (saved, again, held):
        pool.release(one)
    assert pool.used == 0
    with pytest.raises(InputError, match="snapshots='fp8': one of fp32, bf16"):
        cache.Pool(decoder.model, 2, 64, 1 << 20, snapshots="fp8")


def test_only_a_text_that_goes_on_from_a_snapshot_differs(decoder: Decoder) -> None:
    s = by_hand(decoder, replace(SMALL, snapshots="bf16"))
    for seed in range(2):
        one = request(prompts_around(40), seed, max_tokens=1)
        s.submit(one)
        finish(s)
        check(s)
        (got,), (alone,) = result(one)[0], undisturbed(decoder, one)[0]
        assert one.cached_tokens == 39 * seed and (got == alone) == (not seed)
        assert got.logprob == pytest.approx(alone.logprob, abs=0.02)
