"""Drafts by prompt lookup: what is proposed; that they change no text is held by tests/engine/test_scheduler.py."""

from hypothesis import given
from hypothesis import strategies as st

from moonlet.engine.speculate import LONGEST, NGRAM, SHORTEST, Drafter

A = [1, 2, 3, 4]


def test_nothing_new_to_say() -> None:
    assert Drafter([]).propose(9) == Drafter([1, 2]).propose(9) == Drafter([*A, 5, 6]).propose(9) == []


def test_one_earlier_place_gives_a_token_and_two_as_far_as_they_agree() -> None:
    assert Drafter([*A, 7, 8, *A]).propose(9) == [7]
    twice = [*A, 7, 8, 9, *A, 7, 8, 5, *A]
    assert Drafter(twice).propose(9) == [7, 8]
    assert Drafter(twice).propose(1) == [7]
    assert Drafter(twice).propose(0) == []
    drafter = Drafter(tokens := [*A, 6, *A])
    assert drafter.propose(9) == [6]
    tokens += [6, *A]  # a list that grows
    assert drafter.propose(2) == [6, 1]


def test_length_follows_success() -> None:
    drafter = Drafter([*range(40)] * 3 + [*range(NGRAM)])
    lengths = []
    for right in (True, True, True, False):
        lengths.append(len(draft := drafter.propose(99)))
        drafter.judge(len(draft), len(draft) if right else 0)
    assert lengths == [4, 8, LONGEST, LONGEST]
    assert len(drafter.propose(99)) == SHORTEST


@given(st.lists(st.integers(0, 2), max_size=40), st.integers(0, 20))
def test_a_draft_is_what_followed_before(tokens: list[int], limit: int) -> None:
    draft = Drafter(tokens).propose(limit)
    assert len(draft) <= limit
    wanted, places = tokens[-NGRAM:] + draft, range(len(tokens) - NGRAM)
    assert not draft or any(tokens[i : i + len(wanted)] == wanted for i in places)
