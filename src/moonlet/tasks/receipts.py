"""A loop with state: receipts come one by one from a tool, and each is added with the calculator.

next_receipt() gives an amount, or "no more". The running total goes through the calculator each time, so a transcript
of n receipts has up to 2n + 1 calls; half of the questions give a total to start from, without which the first amount
is the total. Evaluation uses held-out numbers as start and amounts wherever they have two or more digits. Leaves out
cents.
"""

import random
from collections.abc import Sequence
from itertools import accumulate, pairwise

from moonlet.chat.types import Message
from moonlet.data.tiny_world import is_held_out, is_held_out_pair, number
from moonlet.tasks import wordings
from moonlet.tasks.base import (
    CALCULATOR,
    NEXT_RECEIPT,
    NO_MORE,
    Item,
    call,
    check_range,
    check_split,
    environment,
    say,
    score,
    unknown_style,
)

__all__ = ["NAME", "STYLES", "TOOLS", "demonstrate", "sample", "score"]

NAME = "receipts"
TOOLS = [CALCULATOR, NEXT_RECEIPT]
STYLES = ("tool",)
AMOUNT_DIGITS, AMOUNT_SHARES = (1, 2, 3), (40, 50, 10)


def sample(rng: random.Random, split: str, *, n: tuple[int, int] = (1, 3)) -> Item:
    """`n` receipts, uniform (1 to 1000). meta: start (None without one), amounts, zh, wording."""
    check_split(split)
    check_range("n", n, 1, 1000)
    count, with_start = rng.randint(*n), rng.random() < 0.5
    while True:
        start = [_amount(rng, rng.randint(1, 5), split)] if with_start else []
        amounts = [_amount(rng, rng.choices(AMOUNT_DIGITS, AMOUNT_SHARES)[0], split) for _ in range(count)]
        if split != "train" or _allowed(start + amounts):
            break
    template = rng.choice(
        [words for words in wordings.RECEIPTS[wordings.side(split)] if ("{s}" in words) == with_start]
    )
    question = wordings.around(rng, split, template.format(s=start[0] if start else ""))
    meta = {
        "start": start[0] if start else None,
        "amounts": amounts,
        "zh": wordings.is_chinese(template),
        "wording": template,
    }
    answer = str(sum(start + amounts))
    messages: list[Message] = [{"role": "user", "content": question}]
    return Item(NAME, split, messages, list(TOOLS), answer, meta, receipts=tuple(amounts))


def demonstrate(item: Item, rng: random.Random, style: str) -> list[Message]:
    """tool: ask for a receipt, add it, and so on until there are no more."""
    if style not in STYLES:
        raise unknown_style(style, STYLES)
    env, turns = environment(item), list(item.messages)
    total = "" if item.meta["start"] is None else str(item.meta["start"])
    while True:
        turns += call(env, "next_receipt", {})
        amount = turns[-1]["content"]
        if amount == NO_MORE:
            return [*turns, say(total)]
        if total:
            turns += call(env, "calculator", {"expression": f"{total}+{amount}"})
            total = turns[-1]["content"]
        else:
            total = amount


def _amount(rng: random.Random, digits: int, split: str) -> int:
    return number(rng, digits, held_out=split != "train") or 1  # a receipt over 0 would be no receipt


def _allowed(parts: list[int]) -> bool:
    """True where no running total is held out and no step adds a held-out pair of one-digit numbers."""
    totals = list(accumulate(parts))
    steps = zip(pairwise(totals), parts[1:])
    return not any(is_held_out(total) for total in totals) and not any(
        is_held_out_pair(before, "+", part) for (before, _), part in steps
    )


def lost(item: Item, messages: Sequence[Message]) -> bool:
    """True when the running total is lost: a sum is none of the item's totals, or reading has outrun adding by more
    than the demonstrations ever do (the first amount, and "no more")."""
    totals = {str(total) for total in accumulate([item.meta["start"] or 0, *item.meta["amounts"]])}
    sums = [m["content"] for m in messages if m["role"] == "tool" and m["name"] == "calculator"]
    sums = [content for content in sums if not content.startswith("error")]  # a slip that is told can be mended
    reads = sum(m["role"] == "tool" and m["name"] == "next_receipt" for m in messages)
    return reads > len(sums) + 2 or not totals.issuperset(sums)
