"""Packed rows: each document gets the logits that it gets alone, and no other document can change them."""

import pytest
import torch
from small_models import FORMS, random_ids, random_model

from moonlet.model.model import place


@pytest.mark.parametrize("form", FORMS)
def test_documents_equal_themselves_alone(form: str) -> None:
    model = random_model(FORMS[form]())
    lengths = [[5, 1, 18, 13], [20, 2, 8]]
    rows = torch.full((2, 37), 3)  # the second row ends in 7 tokens of padding, segment 0
    segments = torch.zeros(2, 37, dtype=torch.long)
    documents = []
    for row, sizes in enumerate(lengths):
        start = 0
        for number, size in enumerate(sizes, 1):
            ids = random_ids(1, size, seed=10 * row + number)
            rows[row, start : start + size], segments[row, start : start + size] = ids[0], number
            documents.append((row, slice(start, start + size), ids))
            start += size
    logits = model(rows, segments)
    for row, span, ids in documents:
        assert (logits[row, span] - model(ids)[0]).abs().max() < 1e-5, (row, span)


@pytest.mark.parametrize("form", FORMS)
def test_a_document_does_not_see_its_neighbours(form: str) -> None:
    model = random_model(FORMS[form]())
    ids = random_ids(1, 40)
    segments = torch.tensor([[1] * 13 + [2] * 14 + [3] * 13])
    before = model(ids, segments)
    for changed, unchanged in ((slice(0, 13), slice(13, 40)), (slice(27, 40), slice(0, 27))):
        other = ids.clone()
        other[:, changed] = (other[:, changed] + 1) % 48
        after = model(other, segments)
        # Where documents share a tile of KDA, the running sum of g rounds differently; attention is untouched.
        assert (after[:, unchanged] - before[:, unchanged]).abs().max() <= (0 if form.startswith("k2") else 1e-5)
        assert (after[:, changed] - before[:, changed]).abs().max() > 1e-3


def test_places() -> None:
    segments = torch.tensor([[1, 1, 2, 3, 3, 3, 0, 0], [4, 4, 4, 4, 4, 4, 4, 4]])
    assert place(segments).tolist() == [[0, 1, 0, 0, 1, 2, 0, 1], list(range(8))]
