"""Reading a log while it grows: `LogFile(path).refresh()` decodes what is new since the last call.

Rows of one schema follow each other in blocks of equal records, so numpy takes them at once; only the checksum is
computed record by record. A record that is not all there yet (or was torn by a kill) is left for the next call.
`JsonLines` reads the same from text: one {"step": 3, "time": 1.5, "values": {"loss": 0.1}} a line.
"""

import json
import os
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from moonlet.tracker import format as f

CHUNK = 1 << 25  # bytes read at once
SLOT = np.dtype([("step", "<i8"), ("time", "<f8"), ("value", "<f8"), ("ident", "<u4"), ("generation", "<u4")])
KEPT = {"config", "summary", "end", "gap", "about", "code", "edit"}  # events whose data a reader keeps in memory
Points = tuple[np.ndarray, np.ndarray, np.ndarray]  # step int64 [N], time float64 [N], value float64 [N]


class Stat(NamedTuple):
    """Of one series in the order it was logged: `last` is that of the greatest step, `min` and `max` are finite."""

    points: int
    first_step: int
    last_step: int
    last: float
    min: float
    max: float
    nonfinite: int

    @classmethod
    def of(cls, step: np.ndarray, value: np.ndarray) -> "Stat":
        finite = value[np.isfinite(value)]
        low, high = (float(finite.min()), float(finite.max())) if len(finite) else (float("nan"), float("nan"))
        place = len(step) - 1 - int(step[::-1].argmax())
        last = float(value[place])
        return cls(len(step), int(step.min()), int(step[place]), last, low, high, len(value) - len(finite))

    def then(self, later: "Stat") -> "Stat":
        newer = later if later.last_step >= self.last_step else self
        return Stat(
            self.points + later.points,
            min(self.first_step, later.first_step),
            newer.last_step,
            newer.last,
            float(np.fmin(self.min, later.min)),
            float(np.fmax(self.max, later.max)),
            self.nonfinite + later.nonfinite,
        )


class Event(NamedTuple):
    """Where an event is in its file, and what a list shows of it. `data` only for the kinds in KEPT."""

    kind: str
    name: str | None
    step: int | None
    time: float
    place: tuple[int, int]  # offset and length of the payload
    blob: int | None  # bytes of JSON before the blob
    data: Any = None

    @classmethod
    def parse(cls, payload: bytes, place: tuple[int, int]) -> "Event":
        fields, text = event_fields(payload)
        kind = str(fields.get("kind"))
        step = fields.get("step")
        data = fields.get("data") if kind in KEPT else None
        blob = text if payload[:1] == b"B" else None
        return cls(kind, fields.get("name"), step, float(fields.get("time", 0)), place, blob, data)


def event_fields(payload: bytes) -> tuple[dict[str, Any], int]:
    """The JSON of an E or B payload, and the length of its text."""
    if payload[:1] == b"E":
        return json.loads(payload[1:]), len(payload) - 1
    size = f.KEYED.unpack_from(payload)[1]
    return json.loads(payload[f.KEYED.size : f.KEYED.size + size]), size


class Source:
    """What one writer left: its points by name, in the order they were logged, and its events."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.attempt = int(path.name[:6])
        self.header: dict[str, Any] = {}
        self.stats: dict[str, Stat] = {}
        self.events: list[Event] = []
        self.damage: list[int] = []  # offsets of records that were skipped

    def refresh(self) -> bool:
        """Take in what is new. Returns whether there was anything."""
        raise NotImplementedError

    def raw(self, name: str) -> Points:
        raise NotImplementedError

    def steps_values(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Without the times, where leaving them saves decoding them."""
        step, _, value = self.raw(name)
        return step, value

    def payload(self, event: Event) -> bytes:
        with open(self.path, "rb") as file:
            file.seek(event.place[0])
            return file.read(event.place[1])

    @property
    def points(self) -> int:
        return sum(stat.points for stat in self.stats.values())

    @property
    def end(self) -> dict[str, Any] | None:
        return next(({**event.data, "time": event.time} for event in self.events[::-1] if event.kind == "end"), None)


class LogFile(Source):
    """`strict`: damage before the end raises ValueError; otherwise the record is skipped and noted in `damage`."""

    def __init__(self, path: Path, strict: bool = False) -> None:
        super().__init__(path)
        self.strict = strict
        self.offset = 0
        self.names: list[str] = []
        self.generation = 0  # of the last P record
        self.parts: dict[str, list[Points]] = {}
        self._done: dict[str, Stat] = {}  # of the log alone
        self._tail: dict[str, Points] = {}
        self._tail_size = 0
        self._schemas: dict[int, np.ndarray] = {}
        self._slots: list[np.ndarray] = []
        self._stopped = False

    def refresh(self) -> bool:
        tail = self._read_tail()  # before the log: a tail that moves in between is then seen in the log, not lost
        before = self.offset
        with open(self.path, "rb") as file:
            size, want = os.fstat(file.fileno()).st_size, CHUNK
            while self.offset < size and not self._stopped:
                file.seek(self.offset)
                data = file.read(want)
                used = self._take(data)
                self.offset += used
                if len(data) < want and not used:
                    break
                want = CHUNK if used else want * 4  # one record longer than the chunk
        self._place_slots()
        slots = tail[tail["generation"] > self.generation]
        changed = self.offset > before or len(slots) != self._tail_size
        if changed:
            self._tail, self._tail_size = self._split([slots]), len(slots)
            self.stats = dict(self._done)
            for name, (step, _, value) in self._tail.items():
                self._add_stat(self.stats, name, Stat.of(step, value))
        return changed

    def raw(self, name: str) -> Points:
        parts = self.parts.get(name, [])
        if len(parts) > 1:
            parts[:] = [tuple(np.concatenate(columns) for columns in zip(*parts, strict=True))]  # type: ignore[list-item]
        if name not in self._tail:
            return parts[0]
        both = [*parts, self._tail[name]]
        return tuple(np.concatenate(columns) for columns in zip(*both, strict=True))  # type: ignore[return-value]

    def _read_tail(self) -> np.ndarray:
        try:
            data = self.path.with_suffix(".tail").read_bytes()
        except OSError:
            return np.empty(0, SLOT)
        slots = np.frombuffer(data[: len(data) // SLOT.itemsize * SLOT.itemsize], SLOT)
        same = slots["generation"] == (slots["generation"][0] if len(slots) else 0)
        return slots[: len(slots) if same.all() else int(same.argmin())]

    def _take(self, data: bytes) -> int:
        """Decode whole records from the start of `data`; returns the bytes used."""
        view, at, end = memoryview(data), 0, len(data)
        if self.offset == 0:
            if len(data) < len(f.MAGIC):
                return 0
            if not data.startswith(f.MAGIC):
                self._damaged(0)
                self._stopped = True
                return 0
            at = len(f.MAGIC)
        while at + f.HEAD.size <= end:
            length, crc = f.HEAD.unpack_from(data, at)
            start, stop = at + f.HEAD.size, at + f.HEAD.size + length
            if 0 < length <= f.MAX_RECORD and stop > end:
                break
            if not 0 < length <= f.MAX_RECORD or zlib.crc32(view[start:stop]) != crc:
                if not any(view[at : at + 4096]):
                    break  # zeros, as a power cut leaves them: a torn end
                self._damaged(self.offset + at)
                if not self._whole(view, stop):
                    self._stopped = True
                    break
            elif data[start] == 0x52:  # R
                stop = self._rows(data, view, at, length)
            else:
                self._one(data[start:stop], self.offset + start)
            at = stop
        return at

    def _whole(self, view: memoryview, at: int) -> bool:
        if at == len(view):
            return True
        if at + f.HEAD.size > len(view):
            return False
        length, crc = f.HEAD.unpack_from(view, at)
        body = view[at + f.HEAD.size : at + f.HEAD.size + length]
        return len(body) == length and zlib.crc32(body) == crc

    def _damaged(self, offset: int) -> None:
        if self.strict:
            raise ValueError(f"{self.path} is damaged at byte {offset}: restore the file, or read the run on the page")
        self.damage.append(offset)

    def _rows(self, data: bytes, view: memoryview, at: int, length: int) -> int:
        """The rows from `at` on that have the first one's length and schema; returns where they end."""
        size = length + f.HEAD.size
        width = (length - f.ROW.size) // 8
        row = np.dtype(
            [("length", "<u4"), ("crc", "<u4"), ("kind", "<u4"), ("schema", "<u4"), ("step", "<i8"), ("time", "<f8")]
            + [("values", "<f8", (width,))]
        )
        block = np.frombuffer(data, row, (len(data) - at) // size, at)
        head = block[0]
        same = (block["length"] == length) & (block["kind"] == head["kind"]) & (block["schema"] == head["schema"])
        block = block[: len(block) if same.all() else int(same.argmin())]
        crc32, body = zlib.crc32, at + f.HEAD.size
        for number, crc in enumerate(block["crc"].tolist()):
            if crc32(view[body : body + length]) != crc:
                block = block[:number]  # the caller meets it next
                break
            body += size
        idents = self._schemas.get(int(head["schema"]))
        if idents is None or len(idents) != width:
            self._damaged(self.offset + at)
            return at + size * len(block)
        self._place_slots()
        step, time = block["step"].astype(np.int64), block["time"].astype(np.float64)
        columns = np.ascontiguousarray(block["values"].T)
        for ident, column in zip(idents.tolist(), columns, strict=True):
            self._add(self.names[ident], (step, time, column))
        return at + size * len(block)

    def _one(self, payload: bytes, offset: int) -> None:
        kind = payload[:1]
        if kind == b"P":
            slots = np.frombuffer(payload, SLOT, offset=f.KEYED.size)
            self.generation = f.KEYED.unpack_from(payload)[1]
            self._slots.append(slots)
        elif kind == b"N":
            first, names = json.loads(payload[1:])
            self.names[first:] = names
        elif kind == b"S":
            idents = np.frombuffer(payload, "<u4", offset=f.KEYED.size)
            if len(idents) and idents.max() < len(self.names):
                self._schemas[f.KEYED.unpack_from(payload)[1]] = idents
        elif kind == b"H":
            self.header = json.loads(payload[1:])
        elif kind in (b"E", b"B"):
            self.events.append(Event.parse(payload, (offset, len(payload))))

    def _place_slots(self) -> None:
        if self._slots:
            for name, points in self._split(self._slots).items():
                self._add(name, points)
            self._slots.clear()

    def _split(self, parts: list[np.ndarray]) -> dict[str, Points]:
        """Slots by name, each in their order."""
        if any((part["ident"] != part["ident"][:1]).any() for part in parts):
            slots = np.concatenate(parts)
            slots = slots[np.argsort(slots["ident"], kind="stable")]
            parts = np.split(slots, np.flatnonzero(np.diff(slots["ident"])) + 1)
        found: dict[str, list[np.ndarray]] = {}
        for part in parts:
            if len(part) and part["ident"][0] < len(self.names):
                found.setdefault(self.names[part["ident"][0]], []).append(part)
        columns = ("step", "time", "value")
        return {
            name: tuple(np.concatenate([part[key] for part in mine]) for key in columns)  # type: ignore[misc]
            for name, mine in found.items()
        }

    def _add(self, name: str, points: Points) -> None:
        self.parts.setdefault(name, []).append(points)
        self._add_stat(self._done, name, Stat.of(points[0], points[2]))

    @staticmethod
    def _add_stat(stats: dict[str, Stat], name: str, stat: Stat) -> None:
        stats[name] = stats[name].then(stat) if name in stats else stat


class JsonLines(Source):
    """A text log, read as a whole whenever it has grown. A last line without its newline is torn and not read."""

    def __init__(self, path: Path, strict: bool = False) -> None:
        super().__init__(path)
        self.strict, self.size, self.columns = strict, -1, {}  # type: ignore[var-annotated]

    def refresh(self) -> bool:
        data = self.path.read_bytes()
        if len(data) == self.size:
            return False
        self.size, self.damage = len(data), []
        rows: dict[str, tuple[list[int], list[float], list[float]]] = {}
        for number, line in enumerate(data.split(b"\n")[:-1], 1):
            try:
                record = json.loads(line)
                step, time = int(record["step"]), float(record["time"])
                for name, value in record["values"].items():
                    columns = rows.setdefault(name, ([], [], []))
                    columns[2].append(float(value))
                    columns[0].append(step)
                    columns[1].append(time)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                if self.strict:
                    raise ValueError(
                        f"{self.path} line {number} is damaged: restore the file or delete that line"
                    ) from error
                self.damage.append(number)
        self.columns = {
            name: (np.array(step, np.int64), np.array(time, np.float64), np.array(value, np.float64))
            for name, (step, time, value) in rows.items()
        }
        self.stats = {name: Stat.of(step, value) for name, (step, _, value) in self.columns.items()}
        return True

    def raw(self, name: str) -> Points:
        return self.columns[name]
