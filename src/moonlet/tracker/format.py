"""The bytes of a log: `RUN/metrics/NNNNNN.log`, one file a writer, and `NNNNNN.tail` beside it while it is open.

A log is MAGIC and then records: length (u32), CRC-32 (u32), payload of that length; all little-endian. The payload's
first byte says what it is:

    H  JSON: version, host, pid, started ...            the first record
    N  JSON [first ident, [names]]                      names get idents, counted from 0
    S  u32 schema (at byte 4), then u32 idents          what the numbers of a row are
    R  u32 schema (at byte 4), i64 step, f64 time, f64 a value for each ident       one `log` call
    P  u32 generation (at byte 4), then slots           a full tail, moved here
    E  JSON: kind, time, step, name, data ...           config, summary, text, end ...
    B  u32 JSON length (at byte 4), JSON as E, bytes    an image or any other file

A slot is 32 bytes: i64 step, f64 time, f64 value, u32 ident, u32 generation. The tail is SLOTS of them in a
memory-mapped file whose blocks were reserved when it was made: a point is kept once its slot is written, even by a
process that is then killed, without a system call. The generation is written last and counts the fillings, so a slot
is valid exactly when its generation is greater than that of the last P record: moving a tail into the log cannot show
a point twice. A record or slot that a kill has torn is the last one and is not read.
"""

import json
import math
import struct
import zlib
from typing import Any

MAGIC = b"moonlog1"
HEAD = struct.Struct("<II")
ROW = struct.Struct("<c3xIqd")
KEYED = struct.Struct("<c3xI")
SLOT = struct.Struct("<qddII")
SLOTS = 2048
SUFFIXES = (".columns", ".log", ".jsonl")  # of the files that hold points
MAX_RECORD = 1 << 30  # bytes; a longer length is damage
SPECIAL = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def record(payload: bytes) -> bytes:
    return HEAD.pack(len(payload), zlib.crc32(payload)) + payload


def event(fields: dict[str, Any], blob: bytes | None = None) -> bytes:
    """A whole E record, or B with `blob`."""
    text = dumps(fields).encode("utf-8", "backslashreplace")
    return record(b"E" + text if blob is None else KEYED.pack(b"B", len(text)) + text + blob)


def dumps(value: Any) -> str:
    """Strict JSON: the numbers that JSON does not have become "nan", "inf" and "-inf", odd objects their str()."""
    try:
        return json.dumps(value, allow_nan=False, default=plain, ensure_ascii=False, separators=(",", ":"))
    except ValueError:
        return json.dumps(finite(value), allow_nan=False, default=plain, ensure_ascii=False, separators=(",", ":"))


def finite(value: Any) -> Any:
    """`value` with every non-finite float as its word, keys as text."""
    if isinstance(value, float):
        return value if math.isfinite(value) else repr(float(value))
    if isinstance(value, dict):
        return {str(key): finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [finite(part) for part in value]
    return value


def plain(value: Any) -> Any:
    """What JSON shows of an object that it does not know: numpy and torch numbers and arrays, sets, paths."""
    if hasattr(value, "tolist"):
        return finite(value.tolist())
    if isinstance(value, set | frozenset):
        return sorted(map(str, value))
    return str(value)


def flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one with dotted keys; an empty dict stays a value."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict) and value:
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found
