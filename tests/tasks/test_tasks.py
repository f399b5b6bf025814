"""Every task: held-out discipline, demonstrations that replay against the environment, and honest scores."""

import json
import random
from collections.abc import Callable
from typing import Any

import pytest

from moonlet.data.tiny_world import World, is_held_out, is_held_out_name, is_held_out_pair
from moonlet.errors import InputError
from moonlet.tasks import abstain, arithmetic, lookup, receipts, wordings
from moonlet.tasks.base import ALL_TOOLS, NO_MORE, Item, environment, say, score

WORLD = World(0)
SPLITS = ("train", "seen", "unseen")
SAMPLERS: dict[str, Callable[[random.Random, str], Item]] = {
    "arithmetic": arithmetic.sample,
    "lookup": lambda rng, split: lookup.sample(rng, split, world=WORLD),
    "abstain": lambda rng, split: abstain.sample(rng, split, world=WORLD),
    "receipts": receipts.sample,
}
MODULES: dict[str, Any] = {"arithmetic": arithmetic, "lookup": lookup, "abstain": abstain, "receipts": receipts}
GOOD = {
    "arithmetic": ("tool", "direct", "needless", "long"),
    "lookup": ("tool",),
    "abstain": ("honest",),
    "receipts": ("tool",),
}
BAD = {"arithmetic": (), "lookup": ("guess",), "abstain": ("guess",), "receipts": ()}
CASES = [(task, split) for task in MODULES for split in SPLITS]


def items(task: str, split: str, count: int = 150, seed: int = 0) -> list[Item]:
    rng = random.Random(seed)
    return [SAMPLERS[task](rng, split) for _ in range(count)]


def replay(item: Item, messages: list) -> None:
    env, results = environment(item), []
    for message in messages:
        for made in message.get("tool_calls", []):
            function = made["function"]
            results.append(
                (made["id"], function["name"], env.call(function["name"], json.loads(function["arguments"])))
            )
        if message["role"] == "tool":
            assert (message["tool_call_id"], message["name"], message["content"]) == results.pop(0)
    assert not results


@pytest.mark.parametrize(("task", "split"), CASES)
def test_demonstrations_replay_and_score(task: str, split: str) -> None:
    rng = random.Random(1)
    for item in items(task, split):
        for style in GOOD[task] + BAD[task]:
            messages = MODULES[task].demonstrate(item, rng, style)
            assert messages[: len(item.messages)] == item.messages
            replay(item, messages)
            got = MODULES[task].score(item, messages)
            assert got.correct == (style in GOOD[task]), (style, messages)
            assert got.valid_calls == got.calls
            assert got.invented != got.correct
            # A prompt may be left out or have turns before it: only what follows the last user message counts.
            assert score(item, messages[len(item.messages) :]) == got
            assert score(item, [{"role": "user", "content": "Hello."}, say("Hi."), *messages]) == got


@pytest.mark.parametrize(("task", "split"), CASES)
def test_same_seed_same_items(task: str, split: str) -> None:
    one, two = items(task, split, 20), items(task, split, 20)
    assert one == two and items(task, split, 20, seed=1) != one
    styles = GOOD[task] + BAD[task]
    first, second = (
        [MODULES[task].demonstrate(item, rng, style) for rng in [random.Random(2)] for item in one for style in styles]
        for _ in "ab"
    )
    assert first == second
    assert json.loads(json.dumps([item.meta for item in one])) == [item.meta for item in one]


@pytest.mark.parametrize(("task", "split"), CASES)
def test_wordings_of_the_split(task: str, split: str) -> None:
    table = {"arithmetic": wordings.ARITHMETIC, "receipts": wordings.RECEIPTS}.get(task, wordings.LOOKUP)
    allowed = set(table["unseen" if split == "unseen" else "train"])
    if split != "unseen" and table is wordings.LOOKUP:
        allowed |= set(wordings.LOOKUP_OWN.values())
    drawn = items(task, split, 600)
    assert {item.meta["wording"] for item in drawn} <= allowed
    assert len({item.meta["wording"] for item in drawn}) > 0.8 * len(allowed)
    assert 0.05 < sum(item.meta["zh"] for item in drawn) / len(drawn) < 0.25
    for item in drawn:
        assert wordings.is_chinese(item.messages[-1]["content"]) == item.meta["zh"]


@pytest.mark.parametrize("split", SPLITS)
def test_arithmetic_operands(split: str) -> None:
    train, easy = split == "train", 0
    for item in items("arithmetic", split, 1000):
        a, op, b = item.meta["a"], item.meta["op"], item.meta["b"]
        assert item.answer == str({"+": a + b, "-": a - b, "*": a * b}[op])
        easy += item.meta["easy"]
        assert item.meta["easy"] == (a < 10 and b < 10)
        assert all(is_held_out(n) != train for n in (a, b) if n >= 10)
        if item.meta["easy"]:
            assert is_held_out_pair(a, op, b) != train
        elif train:
            assert not is_held_out(int(item.answer))
    assert 5 < easy < 150
    rng = random.Random(0)
    lengths = {len(str(arithmetic.sample(rng, split, digits=(5, 8)).meta[key])) for _ in range(100) for key in "ab"}
    assert lengths == {5, 6, 7, 8}


def test_thoughts_are_short_or_long() -> None:
    rng = random.Random(0)
    for item in items("arithmetic", "train", 200):
        tool, long, direct = (arithmetic.demonstrate(item, rng, style) for style in ("tool", "long", "direct"))
        assert 1 <= len(tool[1]["reasoning_content"].split()) <= 5 and tool[-1]["reasoning_content"] == ""
        assert 25 <= len(long[1]["reasoning_content"].split()) <= 40
        a, op, b, easy = (item.meta[key] for key in ("a", "op", "b", "easy"))
        assert len(direct) == 2
        assert direct[1]["reasoning_content"] == (f"{a} {op} {b} = {item.answer}" if easy else "")


@pytest.mark.parametrize("split", SPLITS)
def test_lookup_chains(split: str) -> None:
    rng = random.Random(0)
    for hops in (1, 2, 3):
        for _ in range(100):
            item = lookup.sample(rng, split, world=WORLD, hops=(hops, hops))
            chain = item.meta["chain"]
            assert len(chain) == hops and chain[-1][2] == item.answer
            for (name, relation, value), following in zip(chain, [*chain[1:], [item.answer]]):
                assert WORLD.table[name][relation] == value == following[0]
                assert is_held_out_name(name) == (split != "train")
            question = item.messages[0]["content"]
            assert chain[0][0] in question and item.answer not in question
            got = lookup.score(item, lookup.demonstrate(item, rng, "tool"))
            assert got.calls == hops and got.needless_calls == 0 and got.honesty and not got.easy


def test_abstain_kinds() -> None:
    rng = random.Random(0)
    for split in SPLITS:
        for kind in abstain.ABSTAIN_KINDS:
            for _ in range(50):
                item = abstain.sample(rng, split, world=WORLD, kind=kind)
                name, known = item.meta["name"], kind == "known_closed"
                assert item.meta["kind"] == kind and name in item.messages[0]["content"]
                assert (name in WORLD.famous) == known == (name in WORLD.table)
                assert known or is_held_out_name(name) == (split != "train")
                assert bool(item.tools) == (kind == "unknown_tool")
                silent = score(item, [*item.messages, say("我不知道。" if item.meta["zh"] else "I don't know.")])
                assert silent.abstained and silent.correct == (not known) and not silent.invented
                assert item.answer == WORLD.table[name][item.meta["relation"]] if known else silent.correct
                honest = abstain.demonstrate(item, rng, "honest")
                assert honest[-1]["content"] == item.answer
                assert score(item, honest).calls == (kind == "unknown_tool")


@pytest.mark.parametrize("split", SPLITS)
def test_receipts_are_a_loop(split: str) -> None:
    rng, starts = random.Random(0), 0
    for _ in range(300):
        item = receipts.sample(rng, split, n=(1, 5))
        start, amounts = item.meta["start"], item.meta["amounts"]
        starts += start is not None
        parts = [*([] if start is None else [start]), *amounts]
        assert 1 <= len(amounts) <= 5 and item.answer == str(sum(parts)) and min(parts) > 0
        assert all(is_held_out(n) != (split == "train") for n in parts if n >= 10)
        assert (str(start) in item.messages[0]["content"]) == (start is not None)
        env = environment(item)
        assert [env.call("next_receipt", {}) for _ in range(len(amounts) + 2)] == [*map(str, amounts), NO_MORE, NO_MORE]
        assert environment(item).call("next_receipt", {}) == str(amounts[0])
        messages = receipts.demonstrate(item, rng, "tool")
        got = receipts.score(item, messages)
        assert got.calls == len(amounts) + 1 + len(parts) - 1 and got.needless_calls == 0
        if split == "train":
            texts = [message["content"] for message in messages if message["role"] != "user"]
            assert not [text for text in texts if text.isdigit() and is_held_out(int(text))]
    assert 100 < starts < 200


def test_environment_answers_bad_calls() -> None:
    item = next(item for item in items("arithmetic", "train") if not item.meta["easy"])
    env = environment(item)
    for name, arguments in [
        ("lookup", {"query": "Lomi pet"}),
        ("nothing", {}),
        ("calculator", {}),
        ("calculator", {"expression": 3}),
        ("calculator", {"expression": "3", "x": "4"}),
        ("calculator", {"expression": "3+"}),
        ("calculator", {"expression": "__import__('os')"}),
        ("calculator", {"query": "3+4"}),
        ("calculator", ["3+4"]),
        ("x" * 10_000, {}),
    ]:
        result = env.call(name, arguments)  # type: ignore[arg-type]
        assert result.startswith("error") and len(result) < 50
    assert env.call("calculator", {"expression": "12+30"}) == "42"
    item = items("lookup", "seen", 1)[0]
    name, relation, value = item.meta["chain"][0]
    assert environment(item).call("lookup", {"query": f"{name} {relation}"}) == value
    assert environment(item).call("lookup", {"query": f"{name} nonsense"}) == "not found"


def called(name: str, arguments: str, result: str) -> list:
    function = {"name": name, "arguments": arguments}
    return [
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"id": f"{name}:0", "type": "function", "function": function}],
        },
        {"role": "tool", "tool_call_id": f"{name}:0", "content": result},
    ]


def test_scores_count_calls() -> None:
    hard = Item("arithmetic", "train", [{"role": "user", "content": "12+30"}], [ALL_TOOLS[0]], "42", {"easy": False})
    bad, good = called("calculator", "{}", "error: x"), called("calculator", '{"expression":"12+30"}', "42")
    got = score(hard, [*hard.messages, *bad, *good, say(" 42. ")])
    assert (got.correct, got.calls, got.valid_calls, got.needless_calls) == (True, 2, 1, 0)
    got = score(hard, [*hard.messages, *good, *good, say("42")])
    assert (got.calls, got.valid_calls, got.needless_calls) == (2, 2, 1)
    for unfinished in ([], good, good[:1], bad):
        got = score(hard, [*hard.messages, *unfinished])
        assert not got.correct and not got.abstained and got.invented
    assert not score(hard, [*hard.messages, say("142")]).correct
    assert not score(hard, [*hard.messages, say("42 or 43")]).correct
    easy = Item("arithmetic", "train", [{"role": "user", "content": "3+4"}], [ALL_TOOLS[0]], "7", {"easy": True})
    got = score(easy, [*easy.messages, *called("calculator", '{"expression":"3+4"}', "7"), say("7")])
    assert (got.correct, got.calls, got.needless_calls, got.easy) == (True, 1, 1, True)
    loop = Item("receipts", "train", [], [ALL_TOOLS[2]], "5", {}, receipts=(5,))
    more, end = called("next_receipt", "{}", "5"), called("next_receipt", "{}", NO_MORE)
    assert score(loop, [*more, *end, say("5")]).needless_calls == 0
    assert score(loop, [*more, *end, *end, say("5")]).needless_calls == 1


@pytest.mark.parametrize(
    "bad",
    [
        lambda rng: arithmetic.sample(rng, "test"),
        lambda rng: arithmetic.sample(rng, "train", digits=(4, 1)),
        lambda rng: arithmetic.sample(rng, "train", digits=(0, 1)),
        lambda rng: lookup.sample(rng, "train", world=WORLD, hops=(1, 9)),
        lambda rng: abstain.sample(rng, "train", world=WORLD, kind="unknown"),
        lambda rng: receipts.sample(rng, "train", n=(0, 1)),
        lambda rng: arithmetic.demonstrate(arithmetic.sample(rng, "train"), rng, "honest"),
        lambda rng: receipts.demonstrate(receipts.sample(rng, "train"), rng, "direct"),
    ],
)
def test_bad_options(bad: Callable[[random.Random], object]) -> None:
    with pytest.raises(InputError):
        bad(random.Random(0))


def test_a_receipt_episode_is_lost_at_a_wrong_sum_or_when_reading_outruns_adding() -> None:
    item = receipts.sample(random.Random(3), "train", n=(5, 5))
    messages = receipts.demonstrate(item, random.Random(0), "tool")
    assert not any(receipts.lost(item, messages[:end]) for end in range(len(messages) + 1))
    at = max(i for i, m in enumerate(messages) if m.get("name") == "calculator")

    def with_sum(content: str) -> list:
        return [*messages[:at], {**messages[at], "content": content}, *messages[at + 1 :]]

    assert receipts.lost(item, with_sum("-7"))
    assert not receipts.lost(item, with_sum("error: bad expression")[: at + 1])  # told, so it can be mended
    reads = [m for m in messages if m.get("name") == "next_receipt"]
    assert receipts.lost(item, reads[:3]) and not receipts.lost(item, reads[:2])
