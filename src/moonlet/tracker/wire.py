"""Curves as bytes: MLM4, header length, JSON header, arrays at multiples of 8 (docs/tracker.md, "Curves")."""

import struct
from typing import Any

import numpy as np

from moonlet.tracker import format as f

MAGIC = b"MLM4"
TYPES = {"f8": "<f8", "u4": "<u4", "u1": "|u1"}


def pack(answer: dict[str, Any]) -> bytes:
    """`answer` is the header; where a series in it has numpy `arrays`, their type, place and count take their place."""
    arrays = [array for series in answer["series"] for array in series["arrays"].values()]
    size = 0  # of the header with its first eight bytes: places depend on it, and it on how many digits they have
    while True:
        at, series_out = size, []
        for series in answer["series"]:
            places = {}
            for name, array in series["arrays"].items():
                places[name] = [f"{array.dtype.kind}{array.dtype.itemsize}", at, len(array)]
                at += -(-array.nbytes // 8) * 8
            series_out.append(
                {**series, "n": max((len(a) for a in series["arrays"].values()), default=0), "arrays": places}
            )
        text = f.dumps({**answer, "series": series_out}).encode()
        text += b" " * (-len(text) % 8)
        if 8 + len(text) <= size:
            text += b" " * (size - 8 - len(text))
            break
        size = 8 + len(text)
    parts = [MAGIC, struct.pack("<I", len(text)), text]
    for array in arrays:
        parts += [np.ascontiguousarray(array).tobytes(), bytes(-array.nbytes % 8)]
    return b"".join(parts)


def unpack(data: bytes) -> dict[str, Any]:
    """What `pack` was given. Raises ValueError for anything else."""
    import json

    if data[:4] != MAGIC:
        raise ValueError("these bytes are no curves: they do not begin with MLM4")
    (length,) = struct.unpack_from("<I", data, 4)
    answer: dict[str, Any] = json.loads(data[8 : 8 + length])
    for series in answer["series"]:
        for name, (kind, at, count) in series["arrays"].items():
            series["arrays"][name] = np.frombuffer(data, TYPES[kind], count, at)
    return answer
