"""Dictation: questions, then the short form that a tool takes of each.

A document of "what to write into the call" without the call: the densest practice there is for reading a question. Sums
become expressions, chains of facts the name and its relations in the order in which they are looked up ("the color of
the pet of Vapika" is "Vapika pet color"). The questions come in every wording that training may use and, half of the
sums, among random words: where a number begins and ends must not hang on the words beside it. Only the forms are
targets (see `data.drills`). Leaves out receipts and what has no tool.
"""

import random
from collections.abc import Sequence

from moonlet.data.drills import Piece
from moonlet.data.tiny_world import World
from moonlet.tasks import arithmetic, lookup

MOST = 5  # questions in a document
WORDS_BESIDE = 4  # random words before, between and after the numbers, at most
SIGNS = {"+": ("+", "plus", "加"), "-": ("-", "minus", "减"), "*": ("x", "*", "times", "乘")}


def dictations(world: World, words: Sequence[str], seed: int, n: int) -> list[list[Piece]]:
    """`n` documents of 1 to 5 questions and their forms; `words` stand around numbers, in lower case."""
    rng = random.Random(f"dictations {seed}")
    return [_dictation(rng, world, words) for _ in range(n)]


def _dictation(rng: random.Random, world: World, words: Sequence[str]) -> list[Piece]:
    asked = [_question(rng, world, words) for _ in range(rng.randint(1, MOST))]
    questions = "".join(f"Q: {question}\n" for question, _ in asked)
    return [(questions, False), *((f"A: {form}\n", True) for _, form in asked)]


def _question(rng: random.Random, world: World, words: Sequence[str]) -> tuple[str, str]:
    if rng.random() < 0.4:
        item = lookup.sample(rng, "train", world=world)
        chain = item.meta["chain"]
        return item.messages[0]["content"], " ".join([chain[0][0], *(relation for _, relation, _ in chain)])
    item = arithmetic.sample(rng, "train", digits=rng.choices(((1, 4), (5, 8)), (5, 1))[0])
    a, op, b = (item.meta[key] for key in ("a", "op", "b"))
    asked = item.messages[0]["content"] if rng.random() < 0.5 else _among(rng, words, a, rng.choice(SIGNS[op]), b)
    return asked, f"{a}{op}{b}"


def _among(rng: random.Random, words: Sequence[str], a: int, sign: str, b: int) -> str:
    """The sum in a sentence of random words, in one piece or apart."""

    def some() -> str:
        return " ".join(rng.choice(words) for _ in range(rng.randint(0, WORDS_BESIDE)))

    close = not (sign.isascii() and sign.isalpha() and len(sign) > 1) and rng.random() < 0.4
    middle = f"{a}{sign}{b}" if close else f"{a} {sign} {b}"
    if rng.random() < 0.3:
        middle = rng.choice((f"{a} {some()} {sign} {some()} {b}", f"{a} {some()} {b} {some()} {sign}"))
    text = " ".join(f"{some()} {middle}{rng.choice(('', ',', '.', '?'))} {some()}".split())
    return text[0].upper() + text[1:] + rng.choice(("", ".", "?", "!"))
