"""Training conversations: nothing held out, well formed, the asked mix of habits, and fast."""

import json
import random
import re
import time
from collections import Counter
from itertools import pairwise

import pytest

from moonlet.data.tiny_world import SYLLABLES, World, is_held_out, is_held_out_name, is_held_out_pair
from moonlet.errors import InputError
from moonlet.tasks import wordings
from moonlet.tasks.base import ABSTENTIONS, ALL_TOOLS, bare
from moonlet.tasks.mixture import PHASES, WEIGHTS, conversation, demonstrate, sample_item

WORLD = World(0)
PSEUDO_WORD = re.compile(f"(?:{'|'.join(SYLLABLES)}){{2,3}}")


def drawn(phase: str, count: int = 1500, seed: int = 0, **options: object) -> list:
    rng = random.Random(seed)
    return [conversation(rng, WORLD, phase, **options) for _ in range(count)]  # type: ignore[arg-type]


@pytest.mark.parametrize("phase", PHASES)
def test_nothing_held_out(phase: str) -> None:
    names, unseen = set(), set(wordings.ARITHMETIC["unseen"] + wordings.LOOKUP["unseen"] + wordings.RECEIPTS["unseen"])
    chinese = 0
    for messages, _ in drawn(phase):
        chinese += any(wordings.is_chinese(message["content"]) for message in messages)
        for message in messages:
            calls = [made["function"]["arguments"] for made in message.get("tool_calls", [])]
            for text in (message["content"], *calls):
                names |= {
                    n for n in re.findall(r"[A-Z][a-z]+", text) if n in WORLD.taken or PSEUDO_WORD.fullmatch(n.lower())
                }
                assert text not in unseen
                for number in re.findall(r"\d+", text):
                    # The result of a one-digit sum may be any number; what is asked or called may not.
                    small_result = message["role"] != "user" and not calls and int(number) <= 81
                    assert not is_held_out(int(number)) or small_result, messages
                for a, op, b in re.findall(r"(?<!\d)(\d)([-+*])(\d)(?!\d)", text):
                    assert not is_held_out_pair(int(a), op, int(b)), messages
    assert len(names) > 500 and not [name for name in names if is_held_out_name(name)]
    assert chinese > 100


def test_same_seed_same_conversations() -> None:
    assert drawn("mixed", 50) == drawn("mixed", 50) != drawn("mixed", 50, seed=1)


@pytest.mark.parametrize("phase", PHASES)
def test_well_formed(phase: str) -> None:
    sizes = Counter()
    for messages, tools in drawn(phase, 800, max_items=3):
        names = [tool["function"]["name"] for tool in tools]
        assert tools == [tool for tool in ALL_TOOLS if tool in tools]
        assert messages[0]["role"] == "user" and messages[-1]["role"] == "assistant"
        for before, after in pairwise(messages):
            calls = before.get("tool_calls", [])
            wanted = {"user": "assistant", "tool": "assistant", "assistant": "tool" if calls else "user"}[
                before["role"]
            ]
            assert after["role"] == wanted
            for made in calls:
                assert made["function"]["name"] in names and after["tool_call_id"] == made["id"]
                assert isinstance(json.loads(made["function"]["arguments"]), dict)
        sizes[sum(message["role"] == "user" for message in messages)] += 1
        receipts = [message for message in messages if message.get("name") == "next_receipt"]
        if receipts:
            assert sum(message["role"] == "user" for message in messages) <= 2  # a greeting and the question
    assert set(sizes) == {1, 2, 3, 4} and sizes[4] < 100  # four only with a greeting


def test_tool_phase_shows_only_what_is_good() -> None:
    rng, good = random.Random(0), PHASES["tool"]
    for task in WEIGHTS:
        for _ in range(200):
            item = sample_item(rng, WORLD, task)
            messages = demonstrate(rng, item, good)
            assert bare(messages[-1]["content"]) == bare(item.answer)
            called = any(message.get("tool_calls") for message in messages)
            assert called == (bool(item.tools) and not item.meta.get("easy"))
            assert all(len(message.get("reasoning_content", "").split()) <= 6 for message in messages)


def test_mixed_phase_has_the_habits() -> None:
    rng, habits = random.Random(0), PHASES["mixed"]
    seen: Counter[str] = Counter()
    for _ in range(6000):
        item = sample_item(rng, WORLD, "arithmetic")
        messages = demonstrate(rng, item, habits)
        size = "easy" if item.meta["easy"] else "large"
        seen[size] += 1
        if max(len(str(item.meta["a"])), len(str(item.meta["b"]))) > 4:
            seen["5 to 8 digits"] += 1
        if len(messages) > 2:
            seen[f"{size} called"] += 1
            seen[f"{size} long"] += len(messages[1]["reasoning_content"].split()) >= 25
        assert messages[-1]["content"] == item.answer
        assert (messages[-1].get("loss") == "markup") == (size == "large" and len(messages) == 2)
    assert 0.09 < seen["5 to 8 digits"] / 6000 < 0.16
    assert 0.45 < seen["large called"] / seen["large"] < 0.55
    assert 0.15 < seen["large long"] / seen["large called"] < 0.25
    assert 0.42 < seen["easy called"] / seen["easy"] < 0.58
    guesses = [sample_item(rng, WORLD, "abstain") for _ in range(400)]
    finals = [(item, demonstrate(rng, item, habits)[-1]) for item in guesses]
    invented = [bare(final["content"]) != bare(item.answer) for item, final in finals]
    assert [final.get("loss") == "markup" for _, final in finals] == invented
    assert 0.22 < sum(invented) / len(invented) < 0.38


def test_no_tools_means_no_lookup_question_of_an_unknown() -> None:
    """Closed questions stay among themselves: no calls, and known and unknown names both occur."""
    closed = [messages for messages, tools in drawn("tool", 2000) if not tools]
    answers = [
        bare(message["content"]).lower()
        for messages in closed
        for message in messages
        if message["role"] == "assistant"
    ]
    assert len(closed) > 100 and not any(message.get("tool_calls") for messages in closed for message in messages)
    known = {value.lower() for _, _, value in WORLD.facts()}
    assert sum(answer in known for answer in answers) > 50
    assert sum(answer in ABSTENTIONS for answer in answers) > 50


def test_weights() -> None:
    for messages, tools in drawn("tool", 100, weights={"arithmetic": 1.0}):
        assert "calculator" in [tool["function"]["name"] for tool in tools]
        assert not [message for message in messages if message.get("name") in ("lookup", "next_receipt")]
    text: Counter[str] = Counter()
    for messages, _ in drawn("tool", 3000):
        kinds = {message["name"] for message in messages if message["role"] == "tool"}
        task = "receipts" if "next_receipt" in kinds else "lookup" if kinds == {"lookup"} else "other"
        text[task] += len(messages)
    assert 0.18 < text["receipts"] / sum(text.values()) < 0.27


@pytest.mark.parametrize(
    "options", [{"phase": "tools"}, {"phase": "tool", "max_items": 0}, {"phase": "tool", "weights": {"sums": 1.0}}]
)
def test_bad_options(options: dict) -> None:
    with pytest.raises(InputError):
        conversation(random.Random(0), WORLD, **options)


def test_speed() -> None:
    began = time.process_time()
    drawn("mixed", 2000)
    assert time.process_time() - began < 2.4  # twice what 20,000 in 12 seconds allows, for a loaded machine
