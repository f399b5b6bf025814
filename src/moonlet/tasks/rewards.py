"""Rewards of one group: the K answers that were sampled to the same item.

    base     1 right, 0 wrong; on lookup and abstain items 1 right, 0 "I don't know", -1 anything else (TruthRL,
             arXiv 2509.25760). On an unanswerable item "I don't know" is the right answer.
    bonus    call_bonus once for at least one valid call, unless the item is easy.
    penalty  among right answers only: length_penalty * min(1, (tokens - median) / median) where that is positive, the
             median over the group's right answers. An ungated penalty teaches short wrong answers.
    cost     among right answers only: needless_cost once where a call could not help.

Penalty and cost together are at most nine tenths of what lies between the best wrong answer (call_bonus) and the worst
right one without them (1), so that a right answer stays above every wrong one. Leaves out advantages: `moonlet.rl`.
"""

from collections.abc import Sequence
from statistics import median

from moonlet.errors import InputError
from moonlet.tasks.base import Score


def rewards(
    items_scores: Sequence[Score],
    tokens: Sequence[int],
    *,
    call_bonus: float = 0.0,
    length_penalty: float = 0.0,
    needless_cost: float = 0.0,
) -> list[float]:
    """One reward a rollout; `tokens[k]` is how many tokens the model wrote in rollout k. InputError for bad options."""
    if not 0 <= call_bonus < 1:
        raise InputError(f"call_bonus={call_bonus}: must be at least 0 and below 1, what a right answer is worth")
    for name, value in (("length_penalty", length_penalty), ("needless_cost", needless_cost)):
        if value < 0:
            raise InputError(f"{name}={value}: must not be negative")
    if len(items_scores) != len(tokens):
        raise InputError(f"{len(items_scores)} scores and {len(tokens)} token counts: give one of each a rollout")
    right = [count for score, count in zip(items_scores, tokens) if score.correct]
    middle = max(median(right), 1) if right else 1
    shrink = min(1.0, 0.9 * (1 - call_bonus) / max(length_penalty + needless_cost, 1e-9))
    out = []
    for score, count in zip(items_scores, tokens):
        reward = 1.0 if score.correct else -1.0 if score.honesty and not score.abstained else 0.0
        if score.valid_calls and not score.easy:
            reward += call_bonus
        if score.correct:
            reward -= shrink * length_penalty * min(1.0, max(0.0, (count - middle) / middle))
            reward -= shrink * needless_cost * bool(score.needless_calls)
        out.append(reward)
    return out
