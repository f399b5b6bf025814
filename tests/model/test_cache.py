"""Cached decoding equals the uncached forward: padded prefill of a batch, then one token at a time."""

import pytest
import torch
from small_models import FORMS, random_ids, random_model
from torch import Tensor

from moonlet.model.model import Cache, Model

TOLERANCE = 1e-5


@torch.no_grad()
def feed(model: Model, cache: Cache, ids: Tensor, valid: Tensor | None = None) -> Tensor:
    return model.lm_head(model.hidden(ids, cache=cache, valid=valid)[0])


def rows_at(x: Tensor, at: Tensor) -> Tensor:
    """x [B, T, n] at the times `at` [B, t] of each row: [B, t, n]."""
    return x.gather(1, at.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


@torch.no_grad()
@pytest.mark.parametrize("form", FORMS)
def test_padded_prefill_then_single_tokens(form: str) -> None:
    model = random_model(FORMS[form]())
    prompts, total = [1, 7, 19, 16], 24
    ids = random_ids(4, total)
    expected = model(ids)
    longest = max(prompts)
    valid = torch.arange(longest) < torch.tensor(prompts).unsqueeze(1)
    block = ids[:, :longest].masked_fill(~valid, 5)  # the padding is some token, not a special value
    cache = model.new_cache(4, total + longest)
    logits = feed(model, cache, block, valid)
    assert (logits - expected[:, :longest])[valid].abs().max() < TOLERANCE
    assert cache.lengths.tolist() == prompts
    for _ in range(total - longest):
        at = cache.lengths.unsqueeze(1)
        logits = feed(model, cache, ids.gather(1, at))
        assert (logits - rows_at(expected, at)).abs().max() < TOLERANCE
    assert cache.lengths.tolist() == [p + total - longest for p in prompts]


@torch.no_grad()
@pytest.mark.parametrize("form", ["k3", "kimi_linear", "k2"])
def test_padded_blocks_after_a_prefill(form: str) -> None:
    """Several blocks with different numbers of new tokens a row, some none: what a chat session appends."""
    model = random_model(FORMS[form]())
    ids = random_ids(3, 30)
    expected = model(ids)
    cache = model.new_cache(3, 60)
    for counts in ([3, 1, 8], [0, 5, 2], [17, 0, 1], [2, 2, 2]):
        width = max(counts)
        valid = torch.arange(width) < torch.tensor(counts).unsqueeze(1)
        at = (cache.lengths.unsqueeze(1) + torch.arange(width)).clamp(max=29)
        logits = feed(model, cache, ids.gather(1, at), valid)
        assert (logits - rows_at(expected, at))[valid].abs().max() < TOLERANCE
    assert cache.lengths.tolist() == [22, 8, 13]


@torch.no_grad()
@pytest.mark.parametrize("form", ["k3", "kimi_linear", "k2"])
def test_a_row_does_not_depend_on_its_batch(form: str) -> None:
    model = random_model(FORMS[form]())
    ids = random_ids(3, 12)
    batch = feed(model, model.new_cache(3, 12), ids)
    for row in range(3):
        alone = feed(model, model.new_cache(1, 12), ids[row : row + 1])
        assert (alone[0] - batch[row]).abs().max() < TOLERANCE
    changed = ids.clone()
    changed[0] = (changed[0] + 1) % 48
    again = feed(model, model.new_cache(3, 12), changed)
    assert (again[1:] - batch[1:]).abs().max() < 1e-6
    assert (again[0] - batch[0]).abs().max() > 1e-3


@torch.no_grad()
def test_a_prefill_in_pieces_is_the_same_prefill() -> None:
    model = random_model(FORMS["k3"]())
    ids = random_ids(2, 40)
    cache = model.new_cache(2, 40)
    parts = [feed(model, cache, part) for part in ids.split([17, 1, 16, 6], dim=1)]
    assert (torch.cat(parts, 1) - model(ids)).abs().max() < TOLERANCE
