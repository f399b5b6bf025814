"""Byte-pair encoding as a list of ranks: token bytes in id order, the 256 single bytes among them.

tiktoken needs no more: again and again it joins the two neighbours that spell the token of the lowest rank, leftmost
first. A tokenizer.json lists pairs instead, and its engine joins the neighbours whose pair is listed first. `merges`
gives the pairs with which both give the same ids for every input, whatever the ranks are, and this can be proved. Until
a token is made, no merge has crossed its ends, so inside them BPE went as it goes on the token's bytes alone. Each
token is therefore always made from the same two parts, and listing them by rank lets the other engine make every merge
of tiktoken's and no other. A token that BPE does not make of its own bytes has no such pair: tiktoken gives it only
where a piece of the pre-split is that token, for it looks whole pieces up first, as tokenizer.json does under
`ignore_merges`.

`live` is for training: it drops such tokens, and those that are made only by way of one of higher rank.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence

LONGEST_TOKEN = 512  # bytes, in a file from outside (published ones go up to 256): `last_parts` takes their square
SINGLE_BYTES = [bytes([byte]) for byte in range(256)]


def live(learnt: Iterable[bytes]) -> list[bytes]:
    """The single bytes, then the learnt tokens that BPE with the ranks before them turns into exactly two parts."""
    ranks = {token: rank for rank, token in enumerate(SINGLE_BYTES)}
    for token in learnt:
        if token not in ranks and len(last_parts(token, ranks)) == 2:
            ranks[token] = len(ranks)
    return list(ranks)


def merges(ranks: Sequence[bytes]) -> list[tuple[bytes, bytes]]:
    """The pair that makes each token, in rank order; none for single bytes and for tokens that no merge makes."""
    numbers = {token: rank for rank, token in enumerate(ranks)}
    found = (last_parts(token, numbers) for token in ranks)
    return [(parts[0], parts[1]) for parts in found if len(parts) == 2]


def last_parts(token: bytes, ranks: Mapping[bytes, int]) -> list[bytes]:
    """The two parts that BPE of `token`'s bytes comes to; one for a single byte, more where it comes to no two."""
    parts, beyond = [token[place : place + 1] for place in range(len(token))], len(ranks)
    pairs = [ranks.get(left + right, beyond) for left, right in itertools.pairwise(parts)]
    while len(parts) > 2 and (rank := min(pairs)) < beyond:
        place = pairs.index(rank)
        parts[place : place + 2] = [parts[place] + parts[place + 1]]
        del pairs[place]
        for near in range(max(place - 1, 0), min(place + 1, len(pairs))):
            pairs[near] = ranks.get(parts[near] + parts[near + 1], beyond)
    return parts


def spell(token: bytes) -> str:
    """`token` as tokenizer.json writes it: GPT-2's printable character for each byte."""
    return "".join(BYTE_TO_CHAR[byte] for byte in token)


def unspell(text: str) -> bytes:
    """The bytes that `text` spells. KeyError for a character that stands for none."""
    return bytes(CHAR_TO_BYTE[char] for char in text)


def _byte_characters() -> dict[int, str]:
    """GPT-2's printable stand-in for each byte: itself where printable, else from U+0100 up."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}


BYTE_TO_CHAR = _byte_characters()
CHAR_TO_BYTE = {char: byte for byte, char in BYTE_TO_CHAR.items()}
