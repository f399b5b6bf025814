"""The wire format of protocol buffers, as much as event files and wandb's logs need: no schema, no package.

A message is a list of fields: number and type in a varint, then a varint, 8 bytes, 4 bytes or a length and bytes.
"""

import struct
from collections.abc import Iterator


def fields(data: bytes | memoryview) -> Iterator[tuple[int, int | bytes]]:
    """(number, value): varints as int, everything else as its bytes. Raises ValueError for what is no message."""
    at, end = 0, len(data)
    while at < end:
        key, at = varint(data, at)
        kind = key & 7
        if kind == 0:
            value, at = varint(data, at)
            yield key >> 3, value
            continue
        if kind == 2:
            length, at = varint(data, at)
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
        else:
            raise ValueError(f"field type {kind} at byte {at} is none that is used today")
        if at + length > end:
            raise ValueError(f"a field of {length} bytes at byte {at} is longer than its message")
        yield key >> 3, bytes(data[at : at + length])
        at += length


def varint(data: bytes | memoryview, at: int) -> tuple[int, int]:
    """The number and where it ends."""
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise ValueError(f"a varint at byte {at} does not end")
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7


def signed(value: int) -> int:
    """An int64 field: negative numbers come as their two's complement."""
    return value - (1 << 64) if value >= 1 << 63 else value


def text(value: int | bytes) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def doubles(value: bytes) -> list[float]:
    return list(struct.unpack(f"<{len(value) // 8}d", value))


def double(value: bytes) -> float:
    return struct.unpack("<d", value)[0]
