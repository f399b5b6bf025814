"""wandb's offline files (`run-*.wandb`): history, summary, config, tags, notes, system metrics and console lines.

The file is a LevelDB log (blocks of 32 KiB; records cut to fit, each piece with its CRC) of protocol buffers. Field
numbers are those of wandb's wandb_internal.proto. In the history a dict with a `_type` (images, tables ...) comes as
`typed` says, in one item or with a key for each part; text becomes a text event, other lists are left out.
"""

import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from moonlet.tracker.imports import typed
from moonlet.tracker.imports.protobuf import fields, signed, text
from moonlet.tracker.writer import Run

BLOCK = 32768
HEADER = struct.Struct("<IHB")
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4
HISTORY, SUMMARY, OUTPUT, CONFIG, STATS, RAW, RUN = 2, 3, 4, 5, 7, 13, 17  # of a Record


def bring(source: Path, out: Path) -> Iterator[str]:
    """Import every .wandb file; yields the runs' folders below `out`. A torn end is left out."""
    from moonlet.tracker.imports import fresh

    paths = [source] if source.is_file() else sorted({path.resolve() for path in source.rglob("*.wandb")})
    for path in paths:
        name = path.stem.removeprefix("run-")
        with Run(fresh(out / name), {"imported_from": path.name}) as run:
            for record in records(path):
                _take(run, record, path.parent / "files")
        yield name


def records(path: Path) -> Iterator[bytes]:
    """The payloads of a LevelDB log. Raises ValueError for another file or a damaged record before the end."""
    data = path.read_bytes()
    if data[:4] != b":W&B":
        raise ValueError(f"{path} is no wandb file: it does not begin with :W&B")
    at, parts = 7, list[bytes]()
    while at + HEADER.size <= len(data):
        room = BLOCK - at % BLOCK
        if room < HEADER.size:
            at += room
            continue
        crc, length, kind = HEADER.unpack_from(data, at)
        body = data[at + HEADER.size : at + HEADER.size + length]
        if kind not in (FULL, FIRST, MIDDLE, LAST) or len(body) < length:
            return
        if crc not in (zlib.crc32(bytes([kind]) + body), _masked(zlib.crc32(bytes([kind]) + body))):
            raise ValueError(f"{path} is damaged at byte {at}: what stands before it was imported")
        parts = [body] if kind in (FULL, FIRST) else [*parts, body]
        if kind in (FULL, LAST):
            yield b"".join(parts)
        at += HEADER.size + length


def _masked(crc: int) -> int:
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def _take(run: Run, record: bytes, files: Path) -> None:
    for kind, value in fields(record):
        if not isinstance(value, bytes):
            continue
        if kind == HISTORY:
            _history(run, value, files)
        elif kind == CONFIG:
            run.config.update(_config(value))
        elif kind == SUMMARY:
            run.event("summary", data=items(value))
        elif kind == STATS:
            _stats(run, value)
        elif kind in (OUTPUT, RAW):
            parts = dict(fields(value))
            run.event(
                "console", data={"stream": "stderr" if parts.get(1) == 0 else "stdout", "text": text(parts.get(3, b""))}
            )
        elif kind == RUN:
            _about(run, value)


def items(data: bytes) -> dict[str, Any]:
    """Repeated field 1: key = 1, nested_key = 2, value_json = 16."""
    found: dict[str, Any] = {}
    for number, item in fields(data):
        if number == 1 and isinstance(item, bytes):
            keys, content = [], "null"
            for part, value in fields(item):
                if part in (1, 2) and value:
                    keys.append(text(value))
                elif part == 16:
                    content = text(value)
            found[".".join(keys)] = json.loads(content)
    return found


def _config(data: bytes) -> dict[str, Any]:
    return {key: value for key, value in items(data).items() if key != "_wandb"}


def _history(run: Run, data: bytes, files: Path) -> None:
    row = items(data)
    steps = [dict(fields(v)).get(1, 0) for n, v in fields(data) if n == 2 and isinstance(v, bytes)]
    step = int(row.pop("_step", signed(int(steps[0])) if steps else 0))
    time = float(row.pop("_timestamp", 0.0))
    for key in [key for key in row if key.endswith("._type")]:
        name = key.removesuffix("_type")
        row[name[:-1]] = {part.removeprefix(name): row.pop(part) for part in list(row) if part.startswith(name)}
    for name, value in [(name, value) for name, value in row.items() if isinstance(value, dict) and "_type" in value]:
        typed.put(run, name, value, step, time, files)
    for name, value in flat_numbers(row):
        if isinstance(value, str):
            run.event("text", name, step, {"text": value}, walltime=time)
        elif name != "_runtime":
            run.add_points(name, [step], [time], [value])


def flat_numbers(row: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Numbers and texts of nested dicts, names with dots between; NaN and infinities come as words or numbers."""
    for key, value in row.items():
        if isinstance(value, dict) and "_type" not in value:
            yield from flat_numbers(value, f"{prefix}{key}.")
        elif value in ("NaN", "Infinity", "-Infinity"):
            yield prefix + key, float(value)
        elif isinstance(value, bool | int | float | str):
            yield prefix + key, float(value) if isinstance(value, bool | int) else value


def _stats(run: Run, data: bytes) -> None:
    parts = dict(fields(data))
    stamp = dict(fields(parts.get(2, b"")))  # type: ignore[arg-type]
    time = int(stamp.get(1, 0)) + int(stamp.get(2, 0)) / 1e9
    rows = [dict(fields(item)) for number, item in fields(data) if number == 3 and isinstance(item, bytes)]
    for row in rows:
        value = json.loads(text(row.get(16, b"null")))
        if isinstance(value, int | float):
            run.add_points(f"system/{text(row.get(1, b''))}", [int(time)], [time], [float(value)])


def _about(run: Run, data: bytes) -> None:
    tags = []
    for number, value in fields(data):
        if number == 4 and isinstance(value, bytes):
            run.config.update(_config(value))
        elif number == 10:
            tags.append(text(value))
        elif number in (3, 6, 8, 9) and value:
            run.config[{3: "wandb.project", 6: "wandb.group", 8: "wandb.name", 9: "wandb.notes"}[number]] = text(value)
    if tags:
        run.config["wandb.tags"] = tags
