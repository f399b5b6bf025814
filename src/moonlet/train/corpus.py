"""From recipe to packed rows: the pretraining corpus, the tokenizer, the SFT conversations, the held-out text.

Pretraining: copy drills, then the standard library's source and docstrings beside tiny-world texts and more drills;
every document ends with [EOS]; what cannot be predicted (a random number's first appearance) is no target.
SFT text, three phases of `tasks.mixture` conversations: "copy" (arguments and answers are the only targets, no tools
declared: the slow skill, without the noise of the rest), "tool" (only what is good), "mixed" (habits RL must judge).
Everything is a function of the recipe's seeds. Held-out: each 50th document of either source, never trained on.
"""

import random
from collections.abc import Iterable, Iterator

from moonlet.chat.types import Segment
from moonlet.chat.xtml import render
from moonlet.data import shards, stdlib_text, tiny_world_text
from moonlet.data import tokenizer as tokenizers
from moonlet.data.drills import Piece
from moonlet.data.shards import Rows
from moonlet.data.tiny_world import World
from moonlet.data.tokenizer import Tokenizer
from moonlet.tasks import mixture

HELD_OUT_EVERY = 50
COPY_WEIGHTS = {"arithmetic": 0.8, "lookup": 0.2}
COPY_SEQ_LEN = 320  # holds two short conversations


def documents(world: World, stdlib_bytes: int, world_documents: int, seed: int) -> tuple[list[str], dict[str, list[str]]]:
    """Training documents, and the held-out ones by source."""
    sources = {
        "stdlib": stdlib_text.documents(stdlib_bytes),
        "world": tiny_world_text.documents(world, seed, world_documents),
    }
    held_out = {name: texts[::HELD_OUT_EVERY] for name, texts in sources.items()}
    training = [t for texts in sources.values() for i, t in enumerate(texts) if i % HELD_OUT_EVERY]
    return training, held_out


def conversations(world: World, phase: str, count: int, seed: int) -> Iterator[list[Segment]]:
    """`count` rendered training conversations of one phase: copy, tool or mixed."""
    rng = random.Random(f"{phase} {seed}")
    for _ in range(count):
        if phase == "copy":
            messages, _ = mixture.conversation(rng, world, "tool", max_items=1, weights=COPY_WEIGHTS)
            yield copies_only(render(messages))
        else:
            messages, tools = mixture.conversation(rng, world, phase, max_items=2)
            yield render(messages, tools)


def copies_only(segments: list[Segment]) -> list[Segment]:
    """The same conversation with the text of arguments and answers as its only targets."""
    out = []
    for i, s in enumerate(segments):
        inside = s.loss and not s.special and segments[i - 1].text == "<|sep|>" and segments[i + 1].text == "<|close|>"
        out.append(Segment(s.text, s.special, inside and segments[i + 2].text in ("argument", "response")))
    return out


def train_tokenizer(training: list[str], world: World, vocab_size: int, seed: int) -> Tokenizer:
    """BPE on the documents and on the ordinary text of some conversations, so that markup is short."""

    def texts() -> Iterator[str]:
        yield from training
        for segments in conversations(world, "tool", 2000, seed):
            yield from (s.text for s in segments if not s.special)

    return tokenizers.train(texts(), vocab_size)


def encode_pieces(tokenizer: Tokenizer, pieces: list[Piece]) -> tuple[list[int], list[int]]:
    """Token ids of one document, [EOS] last, and 1 where a token is a target."""
    ids, loss = [], []
    for text, target in [*pieces, ("", True)]:
        part = tokenizer.encode(text) if text else [tokenizer.special["[EOS]"]]
        ids += part
        loss += [int(target)] * len(part)
    return ids, loss


def pretrain_rows(tokenizer: Tokenizer, documents: Iterable[list[Piece]], seq_len: int) -> Rows:
    """Packed rows of documents given as pieces (see `data.drills`)."""
    return shards.pack((encode_pieces(tokenizer, pieces) for pieces in documents), seq_len, split_long=True)


def sft_rows(tokenizer: Tokenizer, world: World, phase: str, count: int, seq_len: int, seed: int) -> Rows:
    """`count` rows: one conversation each, or short ones packed in the copy phase; what is longer than `seq_len` tokens
    is left out and another drawn."""
    limit = min(seq_len, COPY_SEQ_LEN) if phase == "copy" else seq_len
    wanted = 2 * count if phase == "copy" else count
    encoded: list[tuple[list[int], list[int]]] = []
    for segments in conversations(world, phase, 2 * wanted, seed):
        ids, loss = tokenizer.encode_with_loss(segments)
        if len(ids) <= limit:
            encoded.append((ids, loss))
        if len(encoded) == wanted:
            break
    return (shards.pack if phase == "copy" else shards.one_a_row)(encoded, limit)
