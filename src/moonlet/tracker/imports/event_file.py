"""TensorBoard's event files: records, and the scalars among them in bulk.

A record is length (u64), masked CRC-32C of the length, the Event message, masked CRC-32C of the message. Almost every
record of a real file is one scalar with the same few bytes around its numbers: wall_time, step, one summary value with
tag and simple_value. Those are sorted by length and read by numpy, thousands at once, checksums included. Everything
else is handed over as bytes.
"""

import os
import struct
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np

CHUNK = 1 << 24
Scalars = dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]  # tag -> step int64, time float64, value float64
POLYNOMIAL = 0x82F63B78
SMALL = 4096  # bytes; the checksum of a longer single message is not computed, only that of its length


class EventFile:
    """`read` gives what is new since the last call. Raises ValueError for a damaged record."""

    def __init__(self, path: Path) -> None:
        self.path, self.offset = path, 0

    def read(self) -> Iterator[tuple[Scalars, list[bytes]]]:
        """Chunk by chunk: scalars by tag in the order of the file, and the other Event messages."""
        with open(self.path, "rb") as file:
            want = CHUNK
            while True:
                file.seek(self.offset)
                data = file.read(want)
                starts, end = self._records(data)
                if not starts:
                    if len(data) < want:  # a record that is not all there yet
                        return
                    want *= 4
                    continue
                yield self._decode(np.frombuffer(data, np.uint8), np.array(starts))
                self.offset += end
                want = CHUNK

    @property
    def behind(self) -> bool:
        return os.path.getsize(self.path) > self.offset

    def _records(self, data: bytes) -> tuple[list[int], int]:
        starts, at, end, unpack = [], 0, len(data), struct.Struct("<Q").unpack_from
        while at + 16 <= end:
            (length,) = unpack(data, at)
            if at + 16 + length > end:  # not all there yet, unless the length itself is damaged
                head = np.frombuffer(data, np.uint8, 12, at)
                if masked(crc32c(head[None, :8]))[0] != head[8:].view("<u4")[0]:
                    self._damaged(at)
                break
            starts.append(at)
            at += 16 + length
        return starts, at

    def _damaged(self, at: int) -> None:
        raise ValueError(f"{self.path} is damaged at byte {self.offset + at}: what stands before it was imported")

    def _decode(self, data: np.ndarray, starts: np.ndarray) -> tuple[Scalars, list[bytes]]:
        head = data[starts[:, None] + np.arange(12)]
        lengths = np.ascontiguousarray(head[:, :8]).view("<u8").ravel().astype(np.int64)
        bad = masked(crc32c(head[:, :8])) != np.ascontiguousarray(head[:, 8:]).view("<u4").ravel()
        found: dict[bytes, list[tuple[np.ndarray, ...]]] = {}
        others: list[int] = []
        for length in np.unique(lengths).tolist():
            which = np.flatnonzero(lengths == length)
            if length <= SMALL:
                rows = data[(starts[which] + 12)[:, None] + np.arange(length + 4)]
                check = np.ascontiguousarray(rows[:, length:]).view("<u4").ravel()
                bad[which] |= masked(crc32c(rows[:, :length])) != check
                fast = _scalars(rows[:, :length], which, found)
                which = which[~fast]
            others += which.tolist()
        if bad.any():
            self._damaged(int(starts[int(bad.argmax())]))
        scalars: Scalars = {}
        for tag, parts in found.items():
            place, step, time, value = (np.concatenate(columns) for columns in zip(*parts, strict=True))
            order = np.argsort(place)
            scalars[tag.decode("utf-8", "replace")] = (step[order], time[order], value[order].astype(np.float64))
        messages = [data[starts[i] + 12 : starts[i] + 12 + lengths[i]].tobytes() for i in sorted(others)]
        return scalars, messages


def _scalars(rows: np.ndarray, which: np.ndarray, found: dict[bytes, list[tuple[np.ndarray, ...]]]) -> np.ndarray:
    """Put the plain scalars among equally long messages into `found`; returns which rows those were."""
    count, length = rows.shape
    done = np.zeros(count, bool)
    if length < 21:
        return done
    timed = rows[:, 0] == 0x09
    stepped = rows[:, 9] == 0x10  # a step of 0 is not written
    ends = (rows[:, 10 : min(20, length)] < 128).argmax(1) + 1  # bytes of the step
    for width in np.unique(np.where(stepped, ends, 0)[timed]).tolist():
        at = 10 + width if width else 9
        left = length - at
        if not 11 <= left <= 129:
            continue
        tag = left - 11
        same = timed & (stepped == bool(width)) & ((ends == width) | (width == 0))
        for place, byte in enumerate((0x2A, left - 2, 0x0A, left - 4, 0x0A, tag)):
            same &= rows[:, at + place] == byte
        same &= rows[:, length - 5] == 0x15
        chosen = np.flatnonzero(same)
        if not len(chosen):
            continue
        part = rows[chosen]
        done[chosen] = True
        time = np.ascontiguousarray(part[:, 1:9]).view("<f8").ravel()
        step = np.zeros(len(part), np.uint64)
        for place in range(width):
            step |= (part[:, 10 + place].astype(np.uint64) & np.uint64(127)) << np.uint64(7 * place)
        value = np.ascontiguousarray(part[:, length - 4 :]).view("<f4").ravel()
        for name, mine in _by_name(part[:, at + 6 : at + 6 + tag]):
            columns = (which[chosen[mine]], step[mine].astype(np.int64), time[mine], value[mine])
            found.setdefault(name, []).append(columns)
    return done


def _by_name(names: np.ndarray) -> Iterator[tuple[bytes, np.ndarray]]:
    """Equal rows of bytes [N, L]: (bytes, their places in order). A hash sorts them, their bytes decide."""
    count, length = names.shape
    padded = np.zeros((count, -(-length // 8) * 8), np.uint8)
    padded[:, :length] = names
    words = padded.view("<u8")
    odd = (np.arange(words.shape[1], dtype=np.uint64) * np.uint64(2) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    mixed = words ^ (words >> np.uint64(29))
    keys = (mixed * odd).sum(1, dtype=np.uint64)
    order = np.argsort(keys, kind="stable")
    firsts = np.flatnonzero(np.diff(keys[order], prepend=keys[order[:1]] - np.uint64(1)))
    for mine in np.split(order, firsts[1:]):
        while len(mine):
            same = (words[mine] == words[mine[0]]).all(1)
            yield names[mine[0]].tobytes(), mine[same]
            mine = mine[~same]  # empty, unless two names have one hash


@cache
def _tables() -> tuple[np.ndarray, np.ndarray]:
    """CRC-32C of one byte, and of two at once."""
    one = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        one = np.where(one & 1, (one >> 1) ^ np.uint32(POLYNOMIAL), one >> 1).astype(np.uint32)
    pair = np.arange(65536, dtype=np.uint32)
    first = one[pair & 255] ^ (pair >> 8)
    return one, one[first & 255] ^ (first >> 8)


def crc32c(rows: np.ndarray) -> np.ndarray:
    """Of each row of bytes [N, L]; uint32 [N]."""
    one, two = _tables()
    crc = np.full(len(rows), 0xFFFFFFFF, np.uint32)
    length = rows.shape[1]
    words = np.ascontiguousarray(rows[:, : length // 2 * 2]).view("<u2")
    for place in range(length // 2):
        crc = two[(crc ^ words[:, place]) & 0xFFFF] ^ (crc >> 16)
    if length % 2:
        crc = one[(crc ^ rows[:, -1]) & 255] ^ (crc >> 8)
    return ~crc


def masked(crc: np.ndarray) -> np.ndarray:
    return ((crc >> 15) | (crc << 17)) + np.uint32(0xA282EAD8)
