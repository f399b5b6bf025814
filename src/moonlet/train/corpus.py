"""From recipe to packed rows: the pretraining corpus, the tokenizer, the SFT conversations, the held-out text.

Pretraining: drills and dictations, then the standard library's text beside tiny-world texts and more of both;
every document ends with [EOS]; what cannot be predicted (a random number's first appearance) is no target.
SFT text, three phases of `tasks.mixture` conversations: "short" (one question, tools not declared, two a row: most
practice a token for the slow skill, copying), "tool" (only what is good), "mixed" (habits that RL must judge).
Everything is a function of the recipe's seeds. Held-out: each 50th document of either source, never trained on.
"""

import random
import re
from collections.abc import Iterable, Iterator

from moonlet.chat.types import Segment
from moonlet.chat.xtml import render
from moonlet.data import shards, stdlib_text, tiny_world_text
from moonlet.data import tokenizer as tokenizers
from moonlet.data.drills import ANSWERS, Piece
from moonlet.data.shards import Rows
from moonlet.data.tiny_world import SYLLABLES, World
from moonlet.data.tokenizer import Tokenizer
from moonlet.tasks import mixture

HELD_OUT_EVERY = 50
SHORT_WEIGHTS = {"arithmetic": 0.54, "lookup": 0.46}
SHORT_SEQ_LEN = 320  # holds two short conversations
SYLLABLE_REPEATS, WORD_REPEATS = 4000, 400


def documents(
    world: World, stdlib_bytes: int, world_documents: int, seed: int
) -> tuple[list[str], dict[str, list[str]]]:
    """Training documents, and the held-out ones by source."""
    sources = {
        "stdlib": stdlib_text.documents(stdlib_bytes),
        "world": tiny_world_text.documents(world, seed, world_documents),
    }
    held_out = {name: texts[::HELD_OUT_EVERY] for name, texts in sources.items()}
    training = [t for texts in sources.values() for i, t in enumerate(texts) if i % HELD_OUT_EVERY]
    return training, held_out


def conversations(world: World, phase: str, count: int, seed: int) -> Iterator[list[Segment]]:
    """`count` rendered training conversations of one phase: short, tool or mixed."""
    rng = random.Random(f"{phase} {seed}")
    for _ in range(count):
        if phase == "short":
            messages, _ = mixture.conversation(rng, world, "tool", max_items=1, weights=SHORT_WEIGHTS)
            yield render(messages)
        else:
            messages, tools = mixture.conversation(rng, world, phase, max_items=3)
            yield render(messages, tools)


def train_tokenizer(training: list[str], world: World, vocab_size: int, seed: int, pattern: str) -> Tokenizer:
    """BPE on the documents and on the ordinary text of some conversations, so that markup is short.

    Invented names are shown syllable by syllable: left whole, those of the training text would become tokens of their
    own, and copying them would teach nothing about a name met for the first time. The syllables and the words that the
    lookup tool answers with are added often enough to become one token each, wherever they stand.
    """
    syllables = "|".join(SYLLABLES)
    name = re.compile(rf"(?<![a-z])(?:{syllables}){{2,3}}(?![a-z])", re.IGNORECASE)
    parts = [*SYLLABLES, *(s.capitalize() for s in SYLLABLES)]

    def apart(text: str) -> str:
        return name.sub(lambda found: "\n".join(re.findall(syllables, found[0], re.IGNORECASE)), text)

    def texts() -> Iterator[str]:
        yield "\n".join(parts * SYLLABLE_REPEATS)
        yield "\n".join(ANSWERS * WORD_REPEATS)
        yield from map(apart, training)
        for segments in conversations(world, "tool", 2000, seed):
            yield from (apart(s.text) for s in segments if not s.special)

    return tokenizers.train(texts(), vocab_size, pattern)


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
    """`count` rows: one conversation each, or short ones packed in the short phase; what is longer than `seq_len`
    tokens is left out and another drawn."""
    limit = min(seq_len, SHORT_SEQ_LEN) if phase == "short" else seq_len
    wanted = 2 * count if phase == "short" else count
    encoded: list[tuple[list[int], list[int]]] = []
    for segments in conversations(world, phase, 2 * wanted, seed):
        ids, loss = tokenizer.encode_with_loss(segments)
        if len(ids) <= limit:
            encoded.append((ids, loss))
        if len(encoded) == wanted:
            break
    return (shards.pack if phase == "short" else shards.one_a_row)(encoded, limit)
