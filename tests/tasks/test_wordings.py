"""The wordings: enough of them, none on both sides, and the operands stay in order."""

import random
import re

import pytest

from moonlet.data.tiny_world import RELATIONS
from moonlet.tasks import wordings

TABLES = {"arithmetic": wordings.ARITHMETIC, "lookup": wordings.LOOKUP, "receipts": wordings.RECEIPTS}


@pytest.mark.parametrize(
    ("task", "train", "train_chinese", "unseen", "unseen_chinese"),
    [("arithmetic", 48, 8, 14, 2), ("lookup", 38, 8, 12, 2), ("receipts", 40, 6, 12, 2)],
)
def test_counts(task: str, train: int, train_chinese: int, unseen: int, unseen_chinese: int) -> None:
    table = TABLES[task]
    counts = {side: (len(table[side]), sum(map(wordings.is_chinese, table[side]))) for side in table}
    assert counts["train"][0] >= train and counts["train"][1] >= train_chinese
    assert counts["unseen"][0] >= unseen and counts["unseen"][1] == unseen_chinese
    together = table["train"] + table["unseen"]
    assert len(together) >= 50 and len(set(together)) == len(together)


def test_lookup_has_words_of_its_own_for_every_relation() -> None:
    assert set(wordings.LOOKUP_OWN) == {relation for row in RELATIONS.values() for relation in row}
    assert not set(wordings.LOOKUP_OWN.values()) & set(wordings.LOOKUP["unseen"])


def test_operands_stay_in_order() -> None:
    for template in wordings.ARITHMETIC["train"] + wordings.ARITHMETIC["unseen"]:
        asked = template.format(e="12 + 34", a=12, op="+", b=34)
        assert re.findall(r"\d+", asked) == ["12", "34"], template
        assert asked.count("+") == 1, template


def test_receipts_start_in_half() -> None:
    for templates in wordings.RECEIPTS.values():
        assert sum("{s}" in template for template in templates) == len(templates) / 2


def test_openings_and_closings_are_held_out_too() -> None:
    rng = random.Random(0)
    texts = {split: {wordings.around(rng, split, "Q") for _ in range(500)} for split in ("train", "seen", "unseen")}
    possible = {a + "Q" + b for a in ("", *wordings.OPENINGS["train"]) for b in ("", *wordings.CLOSINGS["train"])}
    assert texts["train"] <= possible and texts["seen"] <= possible and len(texts["train"]) > 15
    assert texts["unseen"] & possible == {"Q"} and len(texts["unseen"]) > 8
    chinese = {wordings.around(rng, "unseen", "问") for _ in range(200)}
    assert chinese == {"问", "您好。问", "问多谢。", "您好。问多谢。"}
