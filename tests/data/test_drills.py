"""Drills: only what can be predicted is a target, nothing held out appears, every seed has its own."""

import re

from moonlet.data.drills import drills, predictable_targets
from moonlet.data.tiny_world import SYLLABLES, World, is_held_out, is_held_out_name, is_held_out_pair

WORLD = World(0)
NAME = re.compile(f"(?:{'|'.join(SYLLABLES)}){{2,3}}", re.IGNORECASE)
SUM = re.compile(r"^(\d) (\S+) (\d) =$")


def test_an_echo_says_the_list_again_and_targets_only_the_echo() -> None:
    echoes = [d for d in drills(WORLD, 0, 400) if len(d) == 2 and d[0][0].endswith("|")]
    assert 90 < len(echoes) < 150
    for (first, prompt), (second, target) in echoes:
        assert (prompt, target) == (False, True)
        assert first.removesuffix("|") == second.removesuffix("\n")


def test_lines_answer_from_the_prompt_or_from_what_is_taught() -> None:
    facts = {value for _, _, value in WORLD.facts()}
    seen = set()
    for drill in drills(WORLD, 1, 600):
        for (prompt, loss), (copy, target) in zip(drill[::2], drill[1::2], strict=True):
            assert (loss, target) == (False, True)
            answer = copy.strip()
            if found := SUM.match(prompt):
                a, word, b = int(found[1]), found[2], int(found[3])
                operator = {"plus": "+", "加": "+", "minus": "-", "减": "-"}.get(word, word if word in "+-" else "*")
                assert int(answer) == {"+": a + b, "-": a - b, "*": a * b}[operator]
                assert not is_held_out_pair(a, operator, b)
                seen.add("sum")
            elif answer in facts and answer not in prompt:
                seen.add("fact")
            else:
                for part in re.findall(r"\d+|[A-Z]\w+", answer):
                    assert part in prompt, (prompt, copy)
                seen.add("copy")
    assert seen == {"sum", "fact", "copy"}


def test_nothing_held_out() -> None:
    made = drills(WORLD, 2, 800)
    pairs = [pair for drill in made for pair in zip(drill[::2], drill[1::2], strict=True) if not SUM.match(pair[0][0])]
    text = "".join(piece for pair in pairs for piece, _ in pair)  # what a sum of one-digit numbers makes is exempt
    assert not [n for n in re.findall(r"\d{2,}", text) if is_held_out(int(n))]
    names = set(re.findall(r"[A-Z][a-z]+", text))
    assert not [n for n in names if NAME.fullmatch(n) and is_held_out_name(n)]


def test_seeds() -> None:
    assert drills(WORLD, 3, 20) == drills(WORLD, 3, 20) != drills(WORLD, 4, 20)


def test_predictable_targets() -> None:
    pieces = predictable_targets("See 12 and 12, or 7.")
    assert "".join(text for text, _ in pieces) == "See 12 and 12, or 7."
    assert [(t, loss) for t, loss in pieces if t.strip().isdigit()] == [("12", False), ("12", True)]
