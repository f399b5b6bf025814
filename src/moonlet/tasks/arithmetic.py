"""Sums of two whole numbers with + - x, and a calculator.

No net of a million parameters multiplies 4-digit numbers in its head, but it can copy them into a call: the skill is to
know when to call and to copy exactly. Sums of one-digit numbers are in the pretraining text, so a call there is wasted.
Evaluation uses held-out numbers as operands wherever they have two or more digits, and held-out pairs of one-digit ones
(`moonlet.data.tiny_world`). Leaves out division and sums of more than two numbers.
"""

import random

from moonlet.chat.types import Message
from moonlet.data.tiny_world import is_held_out, is_held_out_pair, number, result
from moonlet.tasks import wordings
from moonlet.tasks.base import (
    CALCULATOR,
    Item,
    blurt,
    call,
    check_range,
    check_split,
    environment,
    say,
    score,
    unknown_style,
)

__all__ = ["NAME", "STYLES", "TOOLS", "demonstrate", "sample", "score"]

NAME = "arithmetic"
TOOLS = [CALCULATOR]
STYLES = ("tool", "direct", "needless", "long")

THOUGHT, THOUGHT_ZH = "Use the calculator.", "用计算器。"  # one each: a choice of words would be noise to learn from
DITHERING = (
    "Hmm, the numbers are not so nice. I could try it by hand, but by hand it may go wrong. There is a calculator, "
    "too. Should I use it or not? Use the calculator."
)
SIGNS = {"+": ("+", "plus"), "-": ("-", "minus"), "*": ("x", "*", "times")}
SIGNS_ZH = {"+": "加", "-": "减", "*": "乘"}


def sample(rng: random.Random, split: str, *, digits: tuple[int, int] = (1, 4)) -> Item:
    """A sum; the length of each operand is uniform in `digits` (1 to 12). meta: a, op (+ - *), b, easy, zh, wording."""
    check_split(split)
    check_range("digits", digits, 1, 12)
    train = split == "train"
    while True:
        operator = rng.choice("+-*")
        a, b = (number(rng, rng.randint(*digits), held_out=not train) for _ in "ab")
        easy = a < 10 and b < 10
        if _allowed(a, operator, b, train):
            break
    template = rng.choice(wordings.ARITHMETIC[wordings.side(split)])
    question = wordings.around(rng, split, _ask(rng, template, a, operator, b))
    zh = wordings.is_chinese(template)
    meta = {"a": a, "op": operator, "b": b, "easy": easy, "zh": zh, "wording": template}
    answer = str(result(a, operator, b))
    return Item(NAME, split, [{"role": "user", "content": question}], list(TOOLS), answer, meta)


def demonstrate(item: Item, rng: random.Random, style: str) -> list[Message]:
    """tool, needless: a short thought and a call; long: a long thought; direct: the true result without a call. A small
    sum is first written down as it is learnt by heart (`data.drills`): the numbers, scattered over a question, must
    stand side by side to be remembered. The result of a large one is no target (`blurt`)."""
    if style not in STYLES:
        raise unknown_style(style, STYLES)
    a, operator, b = item.meta["a"], item.meta["op"], item.meta["b"]
    if style == "direct":
        if not item.meta["easy"]:
            return [*item.messages, blurt(item.answer)]
        return [*item.messages, say(item.answer, f"{a} {operator} {b} = {item.answer}")]
    thought = DITHERING if style == "long" else THOUGHT_ZH if item.meta["zh"] else THOUGHT
    turns = call(environment(item), "calculator", {"expression": f"{a}{operator}{b}"}, thought)
    return [*item.messages, *turns, say(turns[-1]["content"])]


def _ask(rng: random.Random, template: str, a: int, operator: str, b: int) -> str:
    if wordings.is_chinese(template):
        sign = SIGNS_ZH[operator]
        expression = rng.choice((f"{a}{sign}{b}", f"{a} {sign} {b}", f"{a} {SIGNS[operator][0]} {b}"))
    else:
        sign = rng.choice(SIGNS[operator])
        spaced = sign.isalpha() and len(sign) > 1 or rng.random() < 0.6
        expression = f"{a} {sign} {b}" if spaced else f"{a}{sign}{b}"
    return template.format(e=expression, a=a, op=sign, b=b)


def _allowed(a: int, operator: str, b: int, train: bool) -> bool:
    """Training never meets a held-out number, as a result neither; small results of one-digit sums are exempt."""
    if a < 10 and b < 10:
        return is_held_out_pair(a, operator, b) != train
    return not train or not (is_held_out(a) or is_held_out(b) or is_held_out(result(a, operator, b)))
