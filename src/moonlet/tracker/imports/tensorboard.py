"""TensorBoard folders: each folder with event files becomes a run, each event file an attempt of it, nothing lost.

Scalars (simple values and scalar tensors), histograms (both forms), images, text, hyperparameters and other numeric
tensors are taken; graphs and profiles are not. Values stay what they are: a float32 is that double.
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from moonlet.tracker.imports.event_file import EventFile
from moonlet.tracker.imports.protobuf import double, doubles, fields, signed, text
from moonlet.tracker.writer import Run

TYPES = {1: "<f4", 2: "<f8", 3: "<i4", 4: "|u1", 5: "<i2", 6: "|i1", 9: "<i8", 10: "|b1", 17: "<u2", 19: "<f2"}
TYPES |= {22: "<u4", 23: "<u8"}
LISTS = {5: "<f4", 6: "<f8"}  # float_val, double_val: packed; int_val, int64_val are varints


class Folder:
    """The event files of one TensorBoard log folder, followed as they grow. `step` says whether anything came."""

    def __init__(self, source: Path, out: Path) -> None:
        self.source, self.out = source, out
        self.open: dict[str, tuple[EventFile, Run, dict[str, bytes]]] = {}

    def step(self) -> bool:
        """Take in what is new in any file below `source`."""
        came = False
        for path in sorted(self.source.rglob("*tfevents*")):
            key = path.relative_to(self.source).as_posix()
            if key not in self.open:
                run = Run(self.out / path.parent.relative_to(self.source), {"imported_from": key})
                self.open[key] = (EventFile(path), run, {})
            events, run, plugins = self.open[key]
            if events.behind:
                for scalars, messages in events.read():
                    came = True
                    for tag, columns in scalars.items():
                        run.add_points(tag, *columns)
                    for message in messages:
                        take(run, message, plugins)
        return came

    def close(self) -> None:
        for _, run, _ in self.open.values():
            run.close()


def take(run: Run, message: bytes, plugins: dict[str, bytes]) -> None:
    """One Event message. `plugins`: tag -> plugin data, which only the first value of a tag carries."""
    time, step, summary = 0.0, 0, b""
    for number, value in fields(message):
        if number == 1 and isinstance(value, bytes):
            time = double(value)
        elif number == 2 and isinstance(value, int):
            step = signed(value)
        elif number == 5 and isinstance(value, bytes):
            summary = value
    for number, value in fields(summary):
        if number == 1 and isinstance(value, bytes):
            _value(run, dict(fields(value)), step, time, plugins)


def _value(run: Run, value: dict[int, Any], step: int, time: float, plugins: dict[str, bytes]) -> None:
    tag = text(value.get(1, b""))
    if 9 in value:
        plugins.setdefault(tag, dict(fields(value[9])).get(1, b""))  # type: ignore[arg-type]
    plugin = dict(fields(plugins.get(tag, b"")))
    kind = text(plugin.get(1, b""))
    if 2 in value:
        run.add_points(tag, [step], [time], [struct.unpack("<f", value[2])[0]])
    elif 4 in value:
        _image(run, tag, dict(fields(value[4])), step, time)
    elif 5 in value:
        run.event("histogram", tag, step, _histogram(dict(fields(value[5]))), walltime=time)
    elif kind == "hparams":
        _hparams(run, plugin.get(2, b""))
    elif 8 in value:
        _tensor(run, tag, kind, value[8], step, time)


def _image(run: Run, tag: str, image: dict[int, Any], step: int, time: float) -> None:
    data = {"height": image.get(1), "width": image.get(2)}
    run.event("image", tag, step, data, image.get(4, b""), time, type="image/png")


def _histogram(proto: dict[int, Any]) -> dict[str, Any]:
    """Bucket limits are right edges; the first bucket's left edge is the least value, as TensorBoard draws it."""
    limits, counts = doubles(proto.get(6, b"")), doubles(proto.get(7, b""))
    least, greatest = (double(proto[key]) if key in proto else 0.0 for key in (1, 2))
    edges = [least, *limits[:-1], greatest if limits and limits[-1] > 1e300 else limits[-1]] if limits else []
    sums = {name: double(proto[key]) for key, name in ((3, "num"), (4, "sum"), (5, "sum_squares")) if key in proto}
    return {"edges": edges, "counts": counts, "min": least, "max": greatest, "limits": limits, **sums}


def _hparams(run: Run, content: Any) -> None:
    """HParamsPluginData.session_start_info.hparams: a map of name to google.protobuf.Value."""
    start = dict(fields(content)).get(3, b"")
    found: dict[str, Any] = {}
    for number, entry in fields(start if isinstance(start, bytes) else b""):
        if number == 1 and isinstance(entry, bytes):
            pair = dict(fields(entry))
            for kind, value in fields(pair.get(2, b"")):  # type: ignore[arg-type]
                found[text(pair.get(1, b""))] = (
                    double(value)
                    if kind == 2 and isinstance(value, bytes)
                    else bool(value)
                    if kind == 4
                    else text(value)
                )
    if found:
        run.config.update(found)


def _tensor(run: Run, tag: str, plugin: str, data: bytes, step: int, time: float) -> None:
    shape, values, strings = tensor(data)
    if strings:
        if plugin == "images":
            for image in strings[2:]:
                run.event("image", tag, step, {"width": text(strings[0]), "height": text(strings[1])}, image, time)
        else:
            run.event("text", tag, step, {"text": "\n".join(map(text, strings))}, walltime=time)
    elif plugin == "histograms" and values.ndim == 2 and values.shape[1] == 3:
        edges = [*values[:, 0].tolist(), *values[-1:, 1].tolist()]
        run.event("histogram", tag, step, {"edges": edges, "counts": values[:, 2].tolist()}, walltime=time)
    elif values.size == 1:
        run.add_points(tag, [step], [time], values.astype(np.float64).ravel())
    else:
        run.event("tensor", tag, step, {"shape": shape, "values": values.ravel().tolist()}, walltime=time)


def tensor(data: bytes) -> tuple[list[int], np.ndarray, list[bytes]]:
    """Shape, numbers in that shape, and the strings of a string tensor."""
    kind, shape, content, strings = 1, [], b"", []
    packed: dict[int, list[Any]] = {}
    for number, value in fields(data):
        if number == 1 and isinstance(value, int):
            kind = value
        elif number == 2 and isinstance(value, bytes):
            dims = (dict(fields(dim)) for key, dim in fields(value) if key == 2 and isinstance(dim, bytes))
            shape = [signed(int(dim.get(1, 0))) for dim in dims]  # type: ignore[arg-type]
        elif number == 4 and isinstance(value, bytes):
            content = value
        elif number == 8 and isinstance(value, bytes):
            strings.append(value)
        elif number in (5, 6, 7, 10):
            packed.setdefault(number, []).append(value)
    if content:
        numbers = np.frombuffer(content, TYPES.get(kind, "<f4"))
    else:
        numbers = np.array([one for number, parts in packed.items() for one in _unpacked(number, parts)])
    size = int(np.prod(shape)) if shape else 1
    if len(numbers) == 1 and size > 1:
        numbers = np.repeat(numbers, size)  # a constant is written once
    return shape, numbers.reshape(shape) if len(numbers) == size else numbers, strings


def _unpacked(number: int, parts: list[Any]) -> Iterator[float]:
    from moonlet.tracker.imports.protobuf import varint

    for part in parts:
        if isinstance(part, int):
            yield signed(part)
        elif number in LISTS:
            yield from np.frombuffer(part, LISTS[number]).tolist()
        else:
            at = 0
            while at < len(part):
                value, at = varint(part, at)
                yield signed(value)
