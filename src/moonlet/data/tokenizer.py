"""Byte-level BPE: trained with Hugging Face `tokenizers`, encoded with `tiktoken` on the same ranks (about ten times
faster), saved as a `tokenizer.json` that both give the same ids for (`bpe.py` says why).

A tokenizer trained here has the single bytes as ids 0..255, then the merges by rank; the last 16 ids are the special
tokens. How text is split first is one of two patterns (`presplit.py`). Published Kimi vocabularies are read from their
`tiktoken.model` (`tiktoken_file.py`), and one trained with the published pattern can be written as such a file.

Left out: normalisation, BPE dropout, reading another project's tokenizer.json.
"""

import codecs
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import tiktoken

from moonlet.data import bpe, presplit, tiktoken_file
from moonlet.data.presplit import PATTERN, PUBLISHED_PATTERN
from moonlet.errors import InputError
from moonlet.files import write_atomic, write_json

SPECIALS = ("[BOS]", "[EOS]", "<|end_of_msg|>", "<|open|>", "<|close|>", "<|sep|>", "[UNK]", "[PAD]") + tuple(
    f"<|reserved_token_{n}|>" for n in range(8)
)
LONGEST_TOKEN = 64  # bytes; keeps rulers of dashes and the like from eating the vocabulary
CACHED_LENGTH, CACHED_SEGMENTS = 64, 1 << 16  # characters of a segment worth remembering, and how many

Piece = tuple[str, bool]


class SegmentLike(Protocol):
    """What `encode_segments` takes (`moonlet.chat.types.Segment` is one)."""

    @property
    def text(self) -> str: ...
    @property
    def special(self) -> bool: ...
    @property
    def loss(self) -> bool: ...


class Tokenizer:
    """Text to ids and back. `vocab_size` counts the specials; `special` maps their names to ids."""

    def __init__(self, ranks: Sequence[bytes], pattern: str = PATTERN, specials: Sequence[str] = SPECIALS) -> None:
        """`ranks`: the token bytes in id order, the 256 single bytes among them. The specials' ids follow."""
        self.ranks = list(ranks)
        self.pattern = pattern
        self.special = {name: len(self.ranks) + n for n, name in enumerate(specials)}
        self.vocab_size = len(self.ranks) + len(self.special)
        self._names = {number: name for name, number in self.special.items()}
        self._cache: dict[str, list[int]] = {}
        self._encoding = tiktoken.Encoding(
            "moonlet",
            pat_str=pattern,
            mergeable_ranks={token: rank for rank, token in enumerate(self.ranks)},
            special_tokens=self.special,
        )

    def encode(self, text: str) -> list[int]:
        """The ids of plain text: text that spells a special token is ordinary text. Lone surrogates become U+FFFD."""
        if self.pattern == PATTERN:
            return self._encoding.encode_ordinary(text)
        return [number for part in presplit.cut(text) for number in self._encoding.encode_ordinary(part)]

    def encode_segments(self, segments: Iterable[SegmentLike]) -> list[int]:
        """The ids of rendered segments, each encoded on its own; only `special` segments give special ids."""
        ids: list[int] = []
        for segment in segments:
            ids += self._segment(segment)
        return ids

    def encode_with_loss(self, segments: Iterable[SegmentLike]) -> tuple[list[int], list[int]]:
        """`encode_segments` and, for each id, 1 where its segment is to be learnt, else 0."""
        ids: list[int] = []
        loss: list[int] = []
        for segment in segments:
            part = self._segment(segment)
            ids += part
            loss += [1 if segment.loss else 0] * len(part)
        return ids, loss

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids, special tokens by name. Bytes that are not UTF-8 become U+FFFD."""
        return "".join(text for text, _ in self.pieces(ids))

    def pieces(self, ids: Iterable[int]) -> list[Piece]:
        """The text of ids as (text, special): each special token apart, the ordinary text between two as one piece."""
        pieces: list[Piece] = []
        run: list[bytes] = []
        for number in ids:
            token = self._token(number)
            if isinstance(token, bytes):
                run.append(token)
                continue
            if run:
                pieces.append((b"".join(run).decode("utf-8", "replace"), False))
                run = []
            pieces.append((token, True))
        if run:
            pieces.append((b"".join(run).decode("utf-8", "replace"), False))
        return pieces

    def stream(self) -> "TokenStream":
        """A decoder that takes one id at a time."""
        return TokenStream(self)

    def save(self, folder: str | Path, chat_template: str | None = None) -> None:
        """Write tokenizer.json and tokenizer_config.json (and chat_template.jinja, if given) into `folder`.

        Other files in the folder stay. `transformers.AutoTokenizer` loads the result.
        """
        folder = Path(folder)
        write_json(folder / "tokenizer.json", self.hugging_face())
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
        write_json(folder / "tokenizer_config.json", config | tiktoken_file.roles(self.special))
        if chat_template is not None:
            write_atomic(folder / "chat_template.jinja", chat_template)

    def save_tiktoken(self, folder: str | Path, chat_template: str | None = None) -> None:
        """Write `folder` as the Kimi repositories hold a tokenizer: tiktoken.model and its tokenizer_config.json.

        As `save` otherwise, and not into the same folder: each has its own tokenizer_config.json. Raises InputError
        under another pattern than the published one, for the readers of such a folder split by that.
        """
        if self.pattern != PUBLISHED_PATTERN:
            raise InputError(
                "tiktoken.model is read with the published pattern and this tokenizer has another: "
                'train one with tokenizer.pattern = "published", or write tokenizer.json'
            )
        tiktoken_file.write(Path(folder), self.ranks, self.special)
        if chat_template is not None:
            write_atomic(Path(folder) / "chat_template.jinja", chat_template)

    @classmethod
    def load(cls, folder: str | Path) -> "Tokenizer":
        """Read `folder`/tokenizer.json as `save` writes it, or, where there is none, the published tiktoken.model.

        Raises InputError when neither is there or what is there is of another kind.
        """
        path = Path(folder) / "tokenizer.json"
        if not path.is_file() and (Path(folder) / tiktoken_file.NAME).is_file():
            ranks, specials = tiktoken_file.read(Path(folder))
            return cls(ranks, PUBLISHED_PATTERN, specials)
        try:
            saved = json.loads(path.read_text("utf-8"))
        except OSError as error:
            raise InputError(f"cannot read {path} ({error.strerror}): give a folder that holds a tokenizer") from error
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path} is not valid JSON ({error}): write it again or fetch it again") from error
        try:
            return cls._from_hugging_face(saved)
        except (KeyError, TypeError, IndexError, AttributeError, ValueError) as error:
            raise InputError(
                f"{path} is not a tokenizer that moonlet wrote ({type(error).__name__}: {error}): "
                "train one with moonlet"
            ) from error

    def _segment(self, segment: SegmentLike) -> list[int]:
        text = segment.text
        if segment.special:
            if text not in self.special:
                raise InputError(f"{text!r} is not a special token: valid are {', '.join(self.special)}")
            return [self.special[text]]
        ids = self._cache.get(text)
        if ids is None:
            ids = self.encode(text)
            if len(text) <= CACHED_LENGTH:
                if len(self._cache) >= CACHED_SEGMENTS:
                    self._cache.clear()
                self._cache[text] = ids
        return ids

    def _token(self, number: int) -> bytes | str:
        """The bytes of an ordinary id, the name of a special one."""
        if 0 <= number < len(self.ranks):
            return self.ranks[number]
        name = self._names.get(int(number))
        if name is None:
            raise InputError(f"token id {number} is outside 0..{self.vocab_size - 1}: use this tokenizer's own ids")
        return name

    def hugging_face(self) -> dict[str, Any]:
        """The content of tokenizer.json."""
        merges = [[bpe.spell(left), bpe.spell(right)] for left, right in bpe.merges(self.ranks)]
        byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
        split = {"type": "Split", "pattern": {"Regex": self.pattern}, "behavior": "Isolated", "invert": False}
        return {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [
                {"id": number, "content": name, **tiktoken_file.FLAGS} for name, number in self.special.items()
            ],
            "normalizer": None,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
            "post_processor": None,
            "decoder": byte_level,
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": None,
                "continuing_subword_prefix": None,
                "end_of_word_suffix": None,
                "fuse_unk": False,
                "byte_fallback": False,
                "ignore_merges": len(merges) < len(self.ranks) - 256,
                "vocab": {bpe.spell(token): rank for rank, token in enumerate(self.ranks)},
                "merges": merges,
            },
        }

    @classmethod
    def _from_hugging_face(cls, saved: dict[str, Any]) -> "Tokenizer":
        model, split = saved["model"], saved["pre_tokenizer"]["pretokenizers"][0]
        spelt = sorted(model["vocab"].items(), key=lambda item: item[1])
        ranks = [bpe.unspell(text) for text, _ in spelt]
        if [rank for _, rank in spelt] != list(range(len(ranks))) or not set(bpe.SINGLE_BYTES) <= set(ranks):
            raise ValueError("the ids are not those of a gapless vocabulary with the 256 single bytes")
        if max(map(len, ranks)) > bpe.LONGEST_TOKEN:
            raise ValueError(f"a token has more than {bpe.LONGEST_TOKEN} bytes")
        # What makes tiktoken's ids equal to those of the file's own engine.
        if model["merges"] != [[bpe.spell(left), bpe.spell(right)] for left, right in bpe.merges(ranks)]:
            raise ValueError("the merges are not those that make the vocabulary")
        if len(model["merges"]) < len(ranks) - 256 and not model["ignore_merges"]:
            raise ValueError("ignore_merges is off, but tokens without a merge need it")
        added = sorted(saved["added_tokens"], key=lambda token: token["id"])
        if [token["id"] for token in added] != list(range(len(ranks), len(ranks) + len(added))):
            raise ValueError("the special ids do not follow the ranks without a gap")
        names = [token["content"] for token in added]
        if len(set(names)) < len(names):
            raise ValueError("two special tokens have one name")
        return cls(ranks, split["pattern"]["Regex"], names)


class TokenStream:
    """Decodes ids as they come: text is given out once its UTF-8 is whole. The joined text equals `decode`'s."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, number: int) -> list[Piece]:
        """The pieces that id `number` completes: none while a character is unfinished, two where a special cuts one."""
        token = self._tokenizer._token(number)
        if isinstance(token, str):
            return self.flush() + [(token, True)]
        text = self._decoder.decode(token)
        return [(text, False)] if text else []

    def flush(self) -> list[Piece]:
        """What is left of an unfinished character, as U+FFFD. The stream is then as new."""
        text = self._decoder.decode(b"", final=True)
        return [(text, False)] if text else []


def train(texts: Iterable[str], vocab_size: int, pattern: str = PATTERN) -> Tokenizer:
    """Learn a vocabulary of `vocab_size` ids (256 bytes, merges, 16 specials) from `texts`, split by `pattern`.

    Raises InputError when the size is below 272 or the text is too little for it. The same texts in the same order
    give the same tokenizer.
    """
    from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
    from tokenizers import Tokenizer as HuggingFaceTokenizer

    smallest = 256 + len(SPECIALS)
    if vocab_size < smallest:
        raise InputError(f"vocab_size {vocab_size} is below {smallest} (256 bytes and the specials): raise it")
    wanted = vocab_size - len(SPECIALS)
    learner = HuggingFaceTokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    learner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=wanted + 16,  # a few to spare, should `bpe.live` drop any
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        max_token_length=LONGEST_TOKEN,
        show_progress=False,
    )
    learner.train_from_iterator(texts, trainer)
    learnt = sorted(learner.get_vocab().items(), key=lambda item: item[1])
    ranks = bpe.live(bpe.unspell(text) for text, _ in learnt)
    if len(ranks) < wanted:
        raise InputError(
            f"vocab_size {vocab_size} is more than the text gives ({len(ranks) + len(SPECIALS)}): lower it or add text"
        )
    return Tokenizer(ranks[:wanted], pattern)
