"""The compacted form of a closed log: `NNNNNN.columns`, one column a series, nothing lost.

    MAGIC, blocks ..., footer (JSON), footer length (u32), CRC-32 of the footer (u32), MAGIC

A block is up to BLOCK numbers, compressed with zstd (zlib where the package is missing), its bytes shuffled so that
the first bytes of all numbers stand together. Values are float64, or float32 where every bit comes back. Steps and
times are whole-number differences; a block of equal differences takes no bytes at all. Series that were logged in the
same rows share their steps and times. Events are packed in blocks too. Every block carries its own checksum.
The footer holds each series' `Stat`, so a list of runs reads no block.
"""

import contextlib
import hashlib
import json
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from moonlet.tracker import format as f
from moonlet.tracker.logfile import Event, Points, Source, Stat

try:
    import zstandard
except ImportError:
    zstandard = None  # type: ignore[assignment]

MAGIC = b"mooncol1"
FOOT = struct.Struct("<II8s")
BLOCK = 65536
EVENT_BLOCK = 1 << 20
LEVEL = 3


class Writer:
    """Blocks into a file; `pack_*` return what the footer says of them."""

    def __init__(self, file: Any) -> None:
        self.file, self.at = file, len(MAGIC)
        self.codec = "zstd" if zstandard else "zlib"
        self.zstd = zstandard.ZstdCompressor(level=LEVEL, write_checksum=True) if zstandard else None
        self.axes: list[list[Any]] = []
        self._known: dict[bytes, int] = {}
        file.write(MAGIC)

    def compress(self, data: bytes) -> bytes:
        return self.zstd.compress(data) if self.zstd else zlib.compress(data, 6)

    def block(self, data: bytes) -> list[int]:
        packed = self.compress(data)
        self.file.write(packed)
        self.at += len(packed)
        return [self.at - len(packed), len(packed)]

    def axis(self, values: np.ndarray) -> int:
        """The number of a column of steps or times, written once however many series have it."""
        whole = np.ascontiguousarray(values).view(np.int64)
        key = hashlib.blake2b(whole.tobytes(), digest_size=16).digest()
        if key not in self._known:
            self._known[key] = len(self.axes)
            self.axes.append([self.whole(whole[i : i + BLOCK]) for i in range(0, len(whole), BLOCK)])
        return self._known[key]

    def whole(self, part: np.ndarray) -> list[Any]:
        steps = np.diff(part)
        if not len(steps) or (steps == steps[0]).all():
            return ["k", int(part[0]), int(steps[0]) if len(steps) else 0, len(part)]
        return ["d", *self.block(shuffled(np.diff(part, prepend=np.int64(0)))), len(part)]

    def values(self, values: np.ndarray) -> list[Any]:
        return [self.value(values[i : i + BLOCK]) for i in range(0, len(values), BLOCK)]

    def value(self, part: np.ndarray) -> list[Any]:
        if (part.view(np.int64) == part[:1].view(np.int64)).all():
            return ["k", int(part[:1].view(np.int64)[0]), 0, len(part)]
        with np.errstate(over="ignore", invalid="ignore"):
            short = part.astype(np.float32)
            same = (short.astype(np.float64).view(np.int64) == part.view(np.int64)).all()
        return ["f4" if same else "f8", *self.block(shuffled(short if same else part)), len(part)]


def shuffled(part: np.ndarray) -> bytes:
    return np.ascontiguousarray(part).view(np.uint8).reshape(len(part), -1).T.tobytes()


def write(source: Source, path: Path) -> None:
    """The columns of `source` to `path`, on the disk when it returns."""
    with open(path, "wb") as file:
        out = Writer(file)
        series: dict[str, Any] = {}
        for name, stat in source.stats.items():
            step, time, value = source.raw(name)
            facts = [stat.points, stat.first_step, stat.last_step, stat.last, stat.min, stat.max, stat.nonfinite]
            series[name] = [facts, out.axis(step), out.axis(time), out.values(np.ascontiguousarray(value))]
        events: list[list[Any]] = []
        blocks: list[list[int]] = []
        waiting = bytearray()
        for event in source.events:
            payload = source.payload(event)
            row = [event.kind, event.name, event.step, event.time, len(blocks), len(waiting), len(payload), event.blob]
            events.append(row if event.data is None else [*row, event.data])
            waiting += payload
            if len(waiting) >= EVENT_BLOCK:
                blocks.append(out.block(bytes(waiting)))
                waiting.clear()
        if waiting:
            blocks.append(out.block(bytes(waiting)))
        about = {"codec": out.codec, "header": source.header, "series": series, "axes": out.axes}
        footer = out.compress(f.dumps(about | {"events": events, "event_blocks": blocks}).encode())
        file.write(footer + FOOT.pack(len(footer), zlib.crc32(footer), MAGIC))
        file.flush()
        os.fsync(file.fileno())


class ColumnsFile(Source):
    """Reads the footer once; a series is decoded when it is asked for."""

    def __init__(self, path: Path, strict: bool = False) -> None:
        super().__init__(path)
        self._footer: dict[str, Any] = {}

    def refresh(self) -> bool:
        if self._footer:
            return False
        with open(self.path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            if size < len(MAGIC) + FOOT.size:
                raise ValueError(f"{self.path} is no columns file: restore it")
            file.seek(size - FOOT.size)
            length, crc, magic = FOOT.unpack(file.read(FOOT.size))
            file.seek(max(size - FOOT.size - length, 0))
            footer = file.read(length)
        if magic != MAGIC or zlib.crc32(footer) != crc:
            raise ValueError(f"{self.path} is damaged at its end: restore the file")
        self._footer = json.loads(_decompress(footer))
        self.header = self._footer["header"]
        self.stats = {name: Stat._make(map(_number, entry[0])) for name, entry in self._footer["series"].items()}
        self.events = [
            Event(kind, name, step, time, (number, i), blob, data[0] if data else None)
            for i, (kind, name, step, time, number, _, _, blob, *data) in enumerate(self._footer["events"])
        ]
        return True

    def raw(self, name: str) -> Points:
        _, step, time, value = self._footer["series"][name]
        with open(self.path, "rb") as file:
            return self._axis(file, step), self._axis(file, time).view(np.float64), self._join(file, value)

    def steps_values(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        _, step, _, value = self._footer["series"][name]
        with open(self.path, "rb") as file:
            return self._axis(file, step), self._join(file, value)

    def payload(self, event: Event) -> bytes:
        number, row = event.place
        offset, length = self._footer["events"][row][5:7]
        with open(self.path, "rb") as file:
            return self._block(file, *self._footer["event_blocks"][number])[offset : offset + length]

    def _axis(self, file: Any, number: int) -> np.ndarray:
        return self._join(file, self._footer["axes"][number]).view(np.int64)

    def _join(self, file: Any, blocks: list[list[Any]]) -> np.ndarray:
        """Blocks as one array of 8-byte numbers, in one allocation."""
        out = np.empty(sum(block[3] for block in blocks), np.float64)
        at = 0
        for kind, offset, length, count in blocks:
            part = out[at : at + count]
            if kind == "k":
                part.view(np.int64)[:] = offset + length * np.arange(count, dtype=np.int64)
            else:
                width = 4 if kind == "f4" else 8
                planes = np.frombuffer(self._block(file, offset, length), np.uint8).reshape(width, count)
                numbers = np.ascontiguousarray(planes.T).view({"f4": "<f4", "f8": "<f8", "d": "<i8"}[kind]).ravel()
                if kind == "d":
                    np.cumsum(numbers, out=part.view(np.int64))
                else:
                    part[:] = numbers
            at += count
        return out

    def _block(self, file: Any, offset: int, length: int) -> bytes:
        file.seek(offset)
        try:
            return _decompress(file.read(length))
        except Exception as error:
            if isinstance(error, RuntimeError):
                raise
            raise ValueError(f"{self.path} is damaged near byte {offset}: restore the file") from error


def _decompress(data: bytes) -> bytes:
    if data[:4] != b"\x28\xb5\x2f\xfd":
        return zlib.decompress(data)
    if zstandard is None:
        raise RuntimeError("this run was compacted with zstd: pip install zstandard")
    return zstandard.ZstdDecompressor().decompress(data)


def _number(value: Any) -> Any:
    return f.SPECIAL[value] if type(value) is str else value


def compact(source: Source) -> Path:
    """Replace a closed log by its columns, after reading them back and comparing every bit. Returns the new file."""
    path = source.path.with_suffix(".columns")
    part = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        write(source, part)
        again = ColumnsFile(part)
        again.refresh()
        for name in source.stats:
            for old, new in zip(source.raw(name), again.raw(name), strict=True):
                if old.tobytes() != new.tobytes():
                    raise RuntimeError(f"{name!r} of {source.path} did not come back: nothing was changed")
        for event, copy in zip(source.events, again.events, strict=True):
            if source.payload(event) != again.payload(copy):
                raise RuntimeError(f"an event of {source.path} did not come back: nothing was changed")
        os.replace(part, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            part.unlink()
    for suffix in (".tail", ".log"):
        with contextlib.suppress(FileNotFoundError):
            source.path.with_suffix(suffix).unlink()
    return path
