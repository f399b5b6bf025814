import itertools
import random
import re
import unicodedata
from typing import get_args

import pytest
import tiktoken
from tokenizers import Regex, pre_tokenizers

from moonlet.data import presplit
from moonlet.data.bpe import SINGLE_BYTES
from moonlet.data.presplit import PATTERNS, PUBLISHED_PATTERN, cut
from moonlet.recipe import Tokenizer as Section


def pieces(pattern: str, texts: list[str]) -> list[list[str]]:
    """What tiktoken's own engine splits `texts` into: every part of a text is a token, so a token is a whole piece."""
    parts = {text[i:j].encode() for text in texts for i in range(len(text)) for j in range(i + 1, len(text) + 1)}
    ranks = {token: rank for rank, token in enumerate([*SINGLE_BYTES, *sorted(parts - set(SINGLE_BYTES))])}
    encoding = tiktoken.Encoding("pieces", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    return [[encoding.decode([number]) for number in encoding.encode_ordinary(text)] for text in texts]


def test_the_published_pattern_splits_as_known():
    known = {
        "中文English混合": ["中文", "English", "混合"],
        "北京市 Pascal": ["北京市", " Pascal"],
        "1234567890": ["123", "456", "789", "0"],
        " 12": [" ", "12"],
        "don't DON'T we'Ve x'q": ["don't", " DON'T", " we'Ve", " x", "'q"],
        "it's HE'LL I'm you're he'd": ["it's", " HE'LL", " I'm", " you're", " he'd"],
        "parseHTTPResponse": ["parse", "HTTPResponse"],
        "x\n\n  y": ["x", "\n\n", " ", " y"],
        "f(x); \n": ["f", "(x", ");", " \n"],
        "ひらがな漢字カナ": ["ひらがな", "漢字", "カナ"],
        "e\u0301te\u0301": ["e\u0301te\u0301"],
    }
    assert dict(zip(known, pieces(PUBLISHED_PATTERN, [*known]), strict=True)) == known


def test_a_recipe_can_choose_each_pattern():
    assert get_args(Section.model_fields["pattern"].annotation) == tuple(PATTERNS)
    assert Section().pattern == "digits"


@pytest.mark.parametrize("name", PATTERNS)
def test_both_engines_split_alike_around_every_kind_of_character(name):
    # The two regex engines have tables of their own: try each character where the Unicode category changes.
    kinds = [unicodedata.category(chr(point)) for point in range(0x110000)]
    own = ("Nl", "No", "Zs", "Lt", "Lm")
    edges = [n for n in range(1, 0x110000) if n < 0x500 or kinds[n] != kinds[n - 1] or kinds[n] in own]
    characters = [chr(point) for point in edges if kinds[point] != "Cs"]
    assert len(characters) > 5000
    forms = ("a{0}B{0}b", "1{0}2", " {0} {0}", "x'{0}e", "a'l{0}", "月{0}月", "{0}\n{0}")
    texts = [form.format(character) for character in characters for form in forms]
    split = pre_tokenizers.Split(Regex(PATTERNS[name]), "isolated")
    theirs = [[piece for piece, _ in split.pre_tokenize_str(text)] for text in texts]
    assert pieces(PATTERNS[name], texts) == theirs


def by_rule(text: str, longest: int, longest_run: int) -> list[str]:
    """Blocks of `longest` characters; in each, runs of (non-)whitespace cut after every `longest_run`."""
    parts = []
    for start in range(0, len(text), longest):
        parts.append("")
        for _, group in itertools.groupby(text[start : start + longest], str.isspace):
            run = "".join(group)
            parts[-1] += run[:longest_run]
            parts += [run[place : place + longest_run] for place in range(longest_run, len(run), longest_run)]
    return parts


@pytest.mark.parametrize(("longest", "longest_run"), [(50, 4), (17, 5), (6, 2), (9, 9)])
def test_cuts_are_those_of_the_published_encoder(monkeypatch, longest, longest_run):
    long_run = re.compile(presplit.LONG_RUN.pattern.replace("25001", str(longest_run + 1)))
    monkeypatch.setattr(presplit, "LONGEST", longest)
    monkeypatch.setattr(presplit, "LONGEST_RUN", longest_run)
    monkeypatch.setattr(presplit, "LONG_RUN", long_run)
    rng = random.Random(longest)
    for _ in range(2000):
        text = "".join(rng.choices("ab \x1c\n\u3000月", weights=[6, 1, 5, 1, 1, 1, 1], k=rng.randint(1, 130)))
        assert cut(text) == by_rule(text, longest, longest_run)


@pytest.mark.parametrize(
    "text", ["", "x", " " * 25_000, " " * 25_001, " " * 25_000 + "x" * 25_001, ("a" * 24_999 + " ") * 17]
)
def test_cuts_at_full_size(text):
    assert cut(text) == (by_rule(text, 400_000, 25_000) or [""])
