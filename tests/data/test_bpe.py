import json
import random

from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as HuggingFaceTokenizer

from moonlet.data import bpe
from moonlet.data.bpe import SINGLE_BYTES
from moonlet.data.tokenizer import PUBLISHED_PATTERN, Tokenizer


def test_tokens_that_no_merge_can_reach_are_dropped():
    # With "bc" first, the bytes of "abc" become a|bc: reachable. "abd" has no pair to start from, "ab" makes it live.
    assert bpe.live([b"bc", b"abc"])[256:] == [b"bc", b"abc"]
    assert bpe.live([b"abd", b"ab"])[256:] == [b"ab"]
    assert bpe.live([b"bc", b"ab", b"abc", b"abcd", b"bc"])[256:] == [b"bc", b"ab", b"abc", b"abcd"]


def test_the_pair_of_each_token():
    # "abd" has the lower rank and is still made from "ab"; "xyz" is made from nothing; "cab" from its last two parts.
    ranks = [b"abd", b"xyz", *reversed(SINGLE_BYTES), b"ab", b"cab"]
    assert bpe.merges(ranks) == [(b"ab", b"d"), (b"a", b"b"), (b"c", b"ab")]
    assert bpe.last_parts(b"a", {}) == [b"a"]
    assert bpe.last_parts(b"xyz", {token: rank for rank, token in enumerate(ranks)}) == [b"x", b"y", b"z"]


def test_bytes_are_spelt_as_gpt2_does():
    assert bpe.spell(b" a\n\x00\xff") == "ĠaĊĀÿ"
    assert all(bpe.unspell(bpe.spell(token)) == token for token in SINGLE_BYTES)
    assert len({bpe.spell(token) for token in SINGLE_BYTES}) == 256


@given(
    tokens=st.sets(st.text("ab ", min_size=2, max_size=9), min_size=1, max_size=40),
    texts=st.lists(st.text("ab ", max_size=60), min_size=1, max_size=8),
    seed=st.integers(0, 2**32),
)
def test_any_list_of_ranks_gives_equal_ids_in_both_engines(tokens, texts, seed):
    """Tokens out of order, without a merge, made by way of higher ranks; single bytes anywhere."""
    ranks = [*SINGLE_BYTES, *sorted(token.encode() for token in tokens)]
    random.Random(seed).shuffle(ranks)
    ours = Tokenizer(ranks, PUBLISHED_PATTERN, ["[BOS]"])
    theirs = HuggingFaceTokenizer.from_str(json.dumps(ours.hugging_face()))
    for text in [*texts, *tokens, "ab" * 400]:  # tiktoken has another algorithm for long pieces
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False).ids
