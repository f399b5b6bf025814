"""The order that rewards must keep, whatever the group: right above wrong, short above long among the right only."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moonlet.errors import InputError
from moonlet.tasks.base import Score
from moonlet.tasks.rewards import rewards


def make(correct: bool, abstained: bool, calls: int, honesty: bool, easy: bool) -> Score:
    return Score(correct, abstained, not (correct or abstained), calls, calls, calls * easy, honesty, easy)


@st.composite
def groups(draw: st.DrawFn) -> tuple[list[Score], list[int]]:
    """Siblings of one item: honesty, easy and whether an abstention is right are the item's."""
    honesty, easy, unanswerable = draw(st.booleans()), draw(st.booleans()), draw(st.booleans())
    scores, tokens = [], []
    for _ in range(draw(st.integers(1, 10))):
        abstained = draw(st.booleans())
        correct = abstained if unanswerable else draw(st.booleans()) and not abstained
        scores.append(make(correct, abstained, draw(st.integers(0, 2)), honesty, easy))
        tokens.append(draw(st.integers(0, 500)))
    return scores, tokens


@given(groups(), st.floats(0, 0.99), st.floats(0, 3), st.floats(0, 3))
def test_right_stays_above_wrong(
    group: tuple[list[Score], list[int]], bonus: float, penalty: float, cost: float
) -> None:
    scores, tokens = group
    got = rewards(scores, tokens, call_bonus=bonus, length_penalty=penalty, needless_cost=cost)
    right = [reward for reward, score in zip(got, scores) if score.correct]
    wrong = [reward for reward, score in zip(got, scores) if not score.correct]
    assert len(got) == len(scores)
    if right and wrong:
        assert min(right) > max(wrong)
    # The penalty never touches a wrong answer.
    free = rewards(scores, tokens, call_bonus=bonus)
    assert wrong == [reward for reward, score in zip(free, scores) if not score.correct]
    assert all(reward <= unpenalised for reward, unpenalised in zip(got, free))


@given(groups(), st.floats(0, 0.99), st.floats(0.01, 3))
def test_shorter_is_never_worse(group: tuple[list[Score], list[int]], bonus: float, penalty: float) -> None:
    scores, tokens = group
    got = rewards(scores, tokens, call_bonus=bonus, length_penalty=penalty)
    right = [
        (bool(score.valid_calls), count, reward) for score, count, reward in zip(scores, tokens, got) if score.correct
    ]
    for called, count, reward in right:
        assert all(reward >= other for same, longer, other in right if same == called and longer >= count)


@given(groups(), st.floats(0, 0.99))
def test_honest_answers_in_order(group: tuple[list[Score], list[int]], bonus: float) -> None:
    scores, tokens = group
    for reward, score in zip(rewards(scores, tokens, call_bonus=bonus), scores):
        extra = bonus if score.calls and not score.easy else 0
        lost = -1 if score.honesty and not score.abstained else 0
        assert reward == (1 if score.correct else lost) + extra


def test_a_needless_call_costs_a_right_answer_something() -> None:
    called, direct, wrong = (
        make(right, False, calls, False, True) for right, calls in ((True, 1), (True, 0), (False, 1))
    )
    got = rewards([called, direct, wrong], [50, 50, 50], call_bonus=0.1, needless_cost=0.3)
    assert got == pytest.approx([0.7, 1.0, 0.0])


def test_example() -> None:
    """The median is that of the right answers: however long the wrong ones are, the third is half above it."""
    right, wrong = make(True, False, 1, False, False), make(False, False, 3, False, False)
    scores, tokens = [right, right, right, wrong, wrong], [40, 40, 60, 500, 500]
    got = rewards(scores, tokens, call_bonus=0.1, length_penalty=0.2)
    assert got == pytest.approx([1.1, 1.1, 1.0, 0.1, 0.1])


@pytest.mark.parametrize(
    "options", [{"call_bonus": 1.0}, {"call_bonus": -0.1}, {"length_penalty": -1.0}, {"needless_cost": -0.1}]
)
def test_bad_options(options: dict[str, float]) -> None:
    with pytest.raises(InputError):
        rewards([make(True, False, 0, False, False)], [1], **options)
    with pytest.raises(InputError):
        rewards([], [1])
