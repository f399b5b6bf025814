"""The log: `<run folder>/metrics/NNNNNN.jsonl`, one file each time a `Run` is opened, one line a `log` call.

    {"step":3,"time":1790000000.123456,"values":{"pretrain/loss":1.2,"pretrain/grad_norm":"nan"}}

A writer never touches a file that another writer (or an earlier attempt of the same run) has begun. So no lock is
needed, two writers cannot mix their lines, and a line torn by `kill -9` can only be the last of its file: the reader
ignores a last line without its newline, and the next `Run` starts on a clean line because it starts a clean file.
Values are IEEE doubles written as the shortest decimal that reads back to the same bits; the non-finite ones are the
strings "nan", "inf" and "-inf", because JSON has no numbers for them.

Durability: every `log` call is one `write` to the operating system before it returns, so a killed process loses
nothing; `fsync` runs at most once a second and at `close`, so a power cut loses about the last second.
Leaves out: compaction, an index, checksums, and anything but numbers.
"""

import json
import math
import os
import threading
import time
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    import numpy as np

FSYNC_SECONDS = 1.0
MAX_UNWRITTEN = 16 * 2**20  # bytes kept in memory while the disk refuses them


@dataclass(frozen=True)
class Series:
    """One metric, one point a step: `step` int64 [N], `time` float64 [N] (Unix seconds), `value` float64 [N]."""

    step: "np.ndarray"
    time: "np.ndarray"
    value: "np.ndarray"


class Run:
    """Appends points to the log of a run folder (created if missing). Safe to call from several threads.

    A full disk does not stop training: the lines wait in memory, one warning is shown, and each later call retries.
    Only past 16 MiB of waiting lines, or at `close` with lines still unwritten, is the OSError raised.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder) / "metrics"
        self.folder.mkdir(parents=True, exist_ok=True)
        for number in count(1 + max(_logs(self.folder), default=0)):
            self.path = self.folder / f"{number:06d}.jsonl"
            with suppress(FileExistsError):  # another process may take the number between the look and the open
                self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)
                break
        directory = os.open(self.folder, os.O_RDONLY)
        os.fsync(directory)  # so that the new file's name survives a power cut too
        os.close(directory)
        self._lock = threading.Lock()
        self._keys: dict[str, str] = {}  # checked names, already quoted for JSON
        self._unwritten = b""
        self._warned = False
        self._synced = time.monotonic()
        self._closed = False

    def log(self, values: Mapping[str, Any], step: int) -> None:
        """Append one point for each name. All of them are stored, or none when one is bad.

        Raises ValueError for a bad name, a value that is not a real number (NaN and infinities are fine), a step that
        is not an integer in 0 .. 2^63-1, an empty mapping, or a closed run.
        """
        if isinstance(step, bool) or not isinstance(step, Integral) or not 0 <= step < 2**63:
            raise ValueError(f"step is {step!r}: it must be an integer from 0 to 2^63-1")
        if not values:
            raise ValueError("values is empty: give at least one name and number")
        fields = []
        for name, value in values.items():
            if type(value) is not float:
                value = _number(name, value)
            key = self._keys.get(name) if type(name) is str else None
            if key is None:
                key = self._keys[name] = _quoted(name)
            fields.append(f"{key}:{value!r}" if math.isfinite(value) else f'{key}:"{value!r}"')
        line = f'{{"step":{int(step)},"time":{time.time():.6f},"values":{{{",".join(fields)}}}}}\n'
        with self._lock:
            if self._closed:
                raise ValueError(f"{self.path} is closed: open a new Run to log more")
            self._unwritten += line.encode()
            try:
                self._write(sync=time.monotonic() - self._synced >= FSYNC_SECONDS)
            except OSError as error:
                if len(self._unwritten) > MAX_UNWRITTEN:
                    raise
                if not self._warned:
                    self._warned = True
                    warnings.warn(f"{self.path}: {error.strerror}; unwritten metrics wait in memory", stacklevel=2)

    def close(self) -> None:
        """Write what is left, fsync, close. Calling it again does nothing. Raises OSError if the disk still refuses."""
        with self._lock:
            if not self._closed:
                self._closed = True
                try:
                    self._write(sync=True)
                finally:
                    os.close(self._file)

    def _write(self, sync: bool) -> None:
        while self._unwritten:  # a short write stops inside a line; the next one goes on exactly there
            self._unwritten = self._unwritten[os.write(self._file, self._unwritten) :]
        if sync:
            self._synced = time.monotonic()
            os.fsync(self._file)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def read(folder: str | os.PathLike[str]) -> dict[str, Series]:
    """Every series of a run folder, by name; {} when nothing was logged yet. Works while the run is being written.

    Where a step was logged twice (a run resumed from an earlier step), the last write counts: later file, later line.
    The files keep both. Raises ValueError when the folder is missing or a line before the last is damaged.
    """
    import numpy as np

    root = Path(folder)
    if not root.is_dir():
        raise ValueError(f"{root} is not a folder: give the folder of a run")
    columns: dict[str, tuple[list[int], list[float], list[float]]] = {}
    for _, path in sorted(_logs(root / "metrics").items()):
        for record in _records(path):
            for name, value in record["values"].items():
                steps, times, points = columns.setdefault(name, ([], [], []))
                steps.append(record["step"])
                times.append(record["time"])
                points.append(float(value))
    series = {}
    for name, (steps, times, points) in columns.items():
        # np.unique returns the first place of each step: over the reversed list that is the last write.
        step, first = np.unique(np.array(steps[::-1], np.int64), return_index=True)
        last = len(steps) - 1 - first
        series[name] = Series(step, np.array(times, np.float64)[last], np.array(points, np.float64)[last])
    return series


def _records(path: Path) -> list[dict[str, Any]]:
    lines = path.read_bytes().split(b"\n")[:-1]  # what follows the last newline is a torn tail, or nothing
    try:
        return json.loads(b"[" + b",".join(lines) + b"]")  # one call is faster than one a line
    except ValueError as error:
        damaged = next((number for number, line in enumerate(lines, 1) if not _is_json(line)), "?")
        raise ValueError(f"{path} line {damaged} is damaged: restore the file or delete that line") from error


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def _logs(folder: Path) -> dict[int, Path]:
    return {int(path.stem): path for path in folder.glob("*.jsonl") if path.stem.isdecimal()}


def _number(name: object, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        kind = type(value).__name__
        raise ValueError(f"{name!r} is a {kind}: give a real number (.item() of a one-element tensor)")  # noqa: TRY004
    try:
        return float(value)
    except OverflowError as error:
        raise ValueError(f"{name!r} does not fit a 64-bit float: log its logarithm") from error


def _quoted(name: object) -> str:
    """The name as a JSON string. Raises ValueError unless it is like 'pretrain/loss': printable, no empty part."""
    if not isinstance(name, str) or len(name) > 200 or not name.isprintable():
        raise ValueError(f"{str(name)[:40]!r} is a bad name: it must be printable text of 1 to 200 characters")
    if any(part != part.strip() or not part for part in name.split("/")):
        raise ValueError(f"{name!r} is a bad name: no part between slashes may be empty or begin or end with a space")
    return json.dumps(name)
