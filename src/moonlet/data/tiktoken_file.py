"""`tiktoken.model` and the tokenizer_config.json beside it, as the Kimi repositories hold a vocabulary.

Each line of `tiktoken.model` is a token's bytes in base64, a space and its rank. Ranks run from 0 without a gap; the
256 single bytes are among them in any place. The special tokens take the ids after the last rank: the config's
`added_tokens_decoder` names some by id, the others are `<|reserved_token_ID|>`. The published reader has 256 of them, a
constant of its code (Kimi Linear's has two more, for which its model has no rows: left out). Here
`num_reserved_special_tokens` in the config may say another number, so that a small vocabulary reads back as it was. How
text is split is in neither file: it is `presplit.PUBLISHED_PATTERN`.

The files come from outside, so all of them is checked; nothing in them is run.
"""

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from moonlet.data.bpe import LONGEST_TOKEN, SINGLE_BYTES
from moonlet.errors import InputError
from moonlet.files import write_atomic, write_json

NAME = "tiktoken.model"
RESERVED, SPARE = 256, 2  # special tokens after the published 163,584 ranks, and Kimi Linear's two without a row
MOST_RESERVED = 65_536
LARGEST_FILE = 16 << 20  # bytes; the published one has 2.8 million
ROLES = {"bos_token": "[BOS]", "eos_token": "[EOS]", "unk_token": "[UNK]", "pad_token": "[PAD]"}
FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}


def read(folder: Path) -> tuple[list[bytes], list[str]]:
    """The token bytes in rank order, and the names of the special tokens that follow them.

    Raises InputError with the file, the line and the reason when one of the two files is not what it should be.
    """
    ranks = _read_ranks(folder / NAME)
    path = folder / "tokenizer_config.json"
    content = _content(path)
    try:
        return ranks, _special_names(json.loads(content), len(ranks))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: {error}: fetch it again, from where {NAME} came from") from error


def write(folder: Path, ranks: Sequence[bytes], special: Mapping[str, int]) -> None:
    """Write both files into `folder`. Other files there stay."""
    lines = [base64.b64encode(token).decode() + f" {rank}\n" for rank, token in enumerate(ranks)]
    write_atomic(folder / NAME, "".join(lines))
    config = {
        "tokenizer_class": "TikTokenTokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization_kimi.TikTokenTokenizer", None]},
        "clean_up_tokenization_spaces": False,
        "num_reserved_special_tokens": len(special),
        "added_tokens_decoder": {str(number): {"content": name, **FLAGS} for name, number in special.items()},
    }
    write_json(folder / "tokenizer_config.json", config | roles(special))


def roles(special: Mapping[str, int]) -> dict[str, str]:
    """What tokenizer_config.json calls the special tokens that programs ask for by their part."""
    return {role: name for role, name in ROLES.items() if name in special}


def _content(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        if size > LARGEST_FILE:
            raise InputError(f"{path} has {size:,} bytes, over {LARGEST_FILE:,}: no vocabulary is that large")
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path} ({error.strerror}): a folder with {NAME} needs it") from error


def _read_ranks(path: Path) -> list[bytes]:
    ranks: dict[bytes, int] = {}
    lines: dict[int, int] = {}  # of each rank
    for number, line in enumerate(_content(path).split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            token, rank = _parse(line)
            if token in ranks:
                raise ValueError(f"token {token!r} stands on line {lines[ranks[token]]} too")
            if rank in lines:
                raise ValueError(f"rank {rank} stands on line {lines[rank]} too")
        except ValueError as error:
            raise InputError(f"{path} line {number}: {error}: fetch the file again") from error
        ranks[token], lines[rank] = rank, number
    for rank, number in lines.items():
        if rank >= len(ranks):
            raise InputError(
                f"{path} line {number}: rank {rank}, but {len(ranks)} tokens have the ranks 0..{len(ranks) - 1}: "
                "lines are missing, fetch the file again"
            )
    missing = [token for token in SINGLE_BYTES if token not in ranks]
    if missing:
        raise InputError(f"{path}: {len(missing)} of the 256 single bytes, {missing[0]!r} first, have no rank")
    return sorted(ranks, key=ranks.__getitem__)


def _parse(line: bytes) -> tuple[bytes, int]:
    """Token and rank of one line. Raises ValueError with the reason."""
    fields = line.split()
    if len(fields) != 2:
        raise ValueError(f"{len(fields)} fields where a token in base64 and a rank should stand")
    try:
        token = base64.b64decode(fields[0], validate=True)
    except ValueError as error:
        raise ValueError(f"{_shown(fields[0])} is not base64 ({error})") from error
    if not 1 <= len(token) <= LONGEST_TOKEN:
        raise ValueError(f"a token of {len(token)} bytes, where 1 to {LONGEST_TOKEN} are allowed")
    if not fields[1].isdigit() or len(fields[1]) > 9:
        raise ValueError(f"rank {_shown(fields[1])} is not a whole number from 0 to 999999999")
    return token, int(fields[1])


def _shown(field: bytes) -> str:
    return repr(field[:40])[1:] + ("..." if len(field) > 40 else "")


def _special_names(config: object, first: int) -> list[str]:
    """Names of the special tokens, from id `first` on. Raises ValueError with the reason."""
    added = config.get("added_tokens_decoder") if isinstance(config, dict) else None
    if not isinstance(config, dict) or not isinstance(added, dict) or not added:
        raise ValueError("it has no added_tokens_decoder, which names the special tokens")
    count = config.get("num_reserved_special_tokens", RESERVED)
    if type(count) is not int or not 1 <= count <= MOST_RESERVED:
        raise ValueError(f"num_reserved_special_tokens is {count!r:.40}, not a whole number from 1 to {MOST_RESERVED}")
    names = {number: _reserved(number) for number in range(first, first + count + SPARE)}
    for key, entry in added.items():
        number = int(key) if key.isascii() and key.isdigit() and len(key) <= 9 else -1
        if number not in names:
            raise ValueError(f"id {key!r:.40} in added_tokens_decoder is not one of the {count} after {first} ranks")
        name = entry.get("content") if isinstance(entry, dict) else None
        if not isinstance(name, str) or not name or not name.isprintable():
            raise ValueError(f"id {key} in added_tokens_decoder has no printable content")
        names[number] = name
    kept = list(names.values())[:count]
    if len(set(kept)) < count:
        raise ValueError("two special tokens have one name")
    return kept


def _reserved(number: int) -> str:
    return f"<|reserved_token_{number}|>"
