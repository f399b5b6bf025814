"""The writer: `Run(folder)` appends to a log of its own, whatever else happens to the machine.

    with Run("runs/mine", config={"lr": 3e-4}) as run:
        run.log({"loss": 1.2}, step=3)            one write; kept when it returns
        run.add_scalar("loss", 1.2, 3)            one slot of a memory-mapped file; kept when it returns

The bytes are those of `format`. No file is written by two writers, so no lock is needed and nobody races for a name;
a forked child gets a log of its own. One background thread of the process calls `fsync` once a second for all its
runs; `close` does it too. So a killed process loses nothing that was acknowledged, a power cut about a second.

A disk that refuses never stops training: one warning, the bytes wait in memory (16 MiB) and go out with a later call;
beyond that points are counted, dropped, and the log gets a "gap" event when it can be written again.
Leaves out: reading (`read`), the conversion of images and histograms (`media`).
"""

import contextlib
import fcntl
import mmap
import os
import socket
import struct
import threading
import time
import warnings
import zlib
from collections.abc import Callable, Iterable, Mapping
from itertools import count
from pathlib import Path
from typing import Any, Self

from moonlet.tracker import format as f
from moonlet.tracker import lifetime
from moonlet.tracker.media import Media
from moonlet.tracker.values import Fields, as_float, as_step, check_name

RETRY_SECONDS = 0.1  # between tries of a disk that refuses
MAX_UNWRITTEN = 16 * 2**20  # bytes kept in memory while the disk refuses them
FAST = {float, int}
_now, _pack = time.time, f.SLOT.pack_into


class Run(Media):
    """Appends to the log of a run folder (created if missing). Safe to call from several threads.

    `config`: what the run was started with, any JSON-like mapping. `name`, `tags`, `notes`: for the page. Opening
    raises OSError when the folder cannot be written; after that no method raises because of the disk.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        config: Mapping[str, Any] | None = None,
        name: str | None = None,
        tags: Iterable[str] = (),
        notes: str | None = None,
    ) -> None:
        self.folder = Path(folder) / "metrics"
        self.config, self.summary = Fields(self, "config"), Fields(self, "summary")
        self.step = -1  # of the last row that was logged
        self._closed = self._warned = False
        self._done = threading.Event()  # set by close
        self.before_close: list[Callable[[], None]] = []
        self._lock = threading.Lock()
        self._about = {"name": name, "tags": list(tags), "notes": notes}
        self._start()
        if config:
            self.config.update(config)

    def _start(self) -> None:
        """Open a new log: at first, and in a forked child, which must not write to its parent's."""
        self._sync_lock = threading.Lock()
        self._names: dict[str, int] = {}
        self._schemas: dict[tuple[str, ...], tuple[int, struct.Struct]] = {}
        self._unwritten, self._lost, self._lost_from, self._dirty = bytearray(), 0, 0.0, False
        self._retry = 0.0
        self._tail: Any = bytearray()
        self._tail_file, self._at, self._generation, self._synced = -1, 0, 1, 0
        self._room = 0  # bytes of the tail; 0 until the first add_scalar makes one
        self.folder.mkdir(parents=True, exist_ok=True)
        for number in count(1 + max(numbers(self.folder), default=0)):
            self.path = self.folder / f"{number:06d}.log"
            with contextlib.suppress(FileExistsError):  # another process may take it between the look and the open
                self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)
                break
        self.attempt = number
        with contextlib.suppress(OSError):  # held while the process lives: how others see that it does
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        directory = os.open(self.folder, os.O_RDONLY)
        with contextlib.suppress(OSError):
            os.fsync(directory)  # so that the new file's name survives a power cut too
        os.close(directory)
        self._forked = False
        host = {"version": 1, "host": socket.gethostname(), "pid": os.getpid(), "started": time.time()}
        about = {key: value for key, value in self._about.items() if value}
        self._write(f.MAGIC + f.record(b"H" + f.dumps(host | about).encode("utf-8", "backslashreplace")), keep=True)
        lifetime.opened(self)

    def log(self, values: Mapping[str, Any], step: int | None = None) -> None:
        """Append one point for each name. All of them are stored, or none when one is bad. step None: the next one.

        Values are real numbers (NaN and infinities too), or zero-dimensional arrays or tensors; an object of `media`
        (Image, Histogram, Table, Text, Rollout) is logged under its name. Raises ValueError for a bad name, any other
        value, a step that is not an integer in 0 .. 2^63-1, an empty mapping, or a closed run.
        """
        if step is None:
            step = self.step + 1
        elif type(step) is not int or not 0 <= step < 2**63:
            step = as_step(step)
        numbers = values.values()
        if not FAST.issuperset(map(type, numbers)):
            values = self._plain(values, step)
            if not values:
                self.step = step
                return
            numbers = values.values()
        with self._lock:
            if self._closed or self._forked:
                self._reopen()
            schema = self._schemas.get(tuple(values))
            if schema is None:
                schema = self._schema(tuple(values))
            try:
                row = schema[1].pack(b"R", schema[0], step, time.time(), *numbers)
            except (OverflowError, struct.error) as error:
                raise ValueError("a value does not fit a 64-bit float: log its logarithm") from error
            self.step = step
            if self._at:
                self._empty_tail()
            self._write(f.HEAD.pack(len(row), zlib.crc32(row)) + row, len(numbers))

    def add_scalar(
        self,
        tag: str,
        scalar_value: Any,
        global_step: int | None = None,
        walltime: float | None = None,
        new_style: bool = False,
        double_precision: bool = False,
    ) -> None:
        """One point, as torch.utils.tensorboard.SummaryWriter.add_scalar takes it; always in double precision.

        The last two arguments change nothing. global_step None: 0, as there. Raises ValueError as `log` does.
        """
        ident = self._names.get(tag)
        lock = self._lock
        lock.acquire()  # half the price of `with`
        try:
            at = self._at
            if ident is None or at >= self._room:
                if self._closed or self._forked:
                    self._reopen()
                ident = self._name(tag)
                at = self._make_room()
            _pack(
                self._tail,
                at,
                global_step or 0,
                _now() if walltime is None else walltime,
                scalar_value,
                ident,
                self._generation,
            )
            self._at = at + 32
        except (struct.error, TypeError, OverflowError) as error:
            raise ValueError(f"{tag!r} at step {global_step!r}: {scalar_value!r} is no point ({error})") from error
        finally:
            lock.release()

    def add_scalars(
        self,
        main_tag: str,
        tag_scalar_dict: Mapping[str, Any],
        global_step: int | None = None,
        walltime: float | None = None,
    ) -> None:
        """Points `main_tag/key`, one for each key."""
        for key, value in tag_scalar_dict.items():
            self.add_scalar(f"{main_tag}/{key}", value, global_step, walltime)

    def add_points(self, name: str, step: Any, time: Any, value: Any) -> None:
        """Many points of one series at once: numpy arrays of one length. Any name is taken: this is for imports."""
        import numpy as np

        slots = np.zeros(len(value), [("s", "<i8"), ("t", "<f8"), ("v", "<f8"), ("i", "<u4"), ("g", "<u4")])
        slots["s"], slots["t"], slots["v"] = step, time, value
        with self._lock:
            if self._closed or self._forked:
                self._reopen()
            self._empty_tail()
            slots["i"] = self._name(name, checked=False)
            for start in range(0, len(slots), 1 << 16):
                part = slots[start : start + (1 << 16)].copy()
                part["g"] = self._generation
                self._write(f.record(f.KEYED.pack(b"P", self._generation) + part.tobytes()), len(part))
                self._generation += 1

    def event(
        self,
        kind: str,
        name: str | None = None,
        step: int | None = None,
        data: Any = None,
        blob: bytes | None = None,
        walltime: float | None = None,
        **more: Any,
    ) -> None:
        """Anything that is not a number: `data` is JSON, `blob` bytes (`type` says of which MIME type)."""
        fields = {"kind": kind, "time": time.time() if walltime is None else walltime}
        fields |= {"name": name} if name is not None else {}
        fields |= {"step": int(step)} if step is not None else {}
        with self._lock:
            if self._closed or self._forked:
                self._reopen()
            self._empty_tail()
            self._write(f.event({**fields, **more, "data": data}, blob))

    def watch(self, system: float | None = 10.0, code: bool = True, console: bool = False) -> None:
        """Log the machine's state every `system` seconds, which code runs, and with `console` what Python prints."""
        from moonlet.tracker import system as machine

        if code:
            self.event("code", data=machine.code())
        if system:
            machine.watch(self, system)
        if console:
            machine.console(self)

    def alert(self, title: str, text: str = "", level: str = "warning") -> None:
        """A line for the page's list of alerts."""
        self.event("alert", data={"title": title, "text": text, "level": level})

    def flush(self) -> None:
        """Write what waits and force it to the disk: after this a power cut does not lose it."""
        with self._lock:
            if not self._closed:
                self._empty_tail()
                self._retry = 0.0
                self._write(b"")
        self.sync()

    def close(self, exit: str | None = None) -> None:
        """Write what is left and close. `exit`: why, when it was no success. Calling it again does nothing."""
        while self.before_close:
            self.before_close.pop()()
        self._done.set()
        with self._lock:
            if self._closed or self._forked:
                self._closed = True
                return
            self._empty_tail()
            self._retry = 0.0
            self._write(f.event({"kind": "end", "time": time.time(), "data": {"exit": exit}}), keep=True)
            self._closed, self._room = True, 0
        self.sync()
        with self._lock, self._sync_lock:
            if self._unwritten:
                self._warn(f"{len(self._unwritten)} bytes of metrics were never written")
            elif self._tail_file >= 0:
                with contextlib.suppress(OSError):
                    self.path.with_suffix(".tail").unlink()
            os.close(self._file)
            if self._tail_file >= 0:
                os.close(self._tail_file)
        lifetime.closed(self)

    finish = close

    @property
    def closed(self) -> bool:
        return self._closed

    def wait_closed(self, seconds: float) -> bool:
        """Wait until the run is closed, at most so long; returns whether it is."""
        return self._done.wait(seconds)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self.close(None if kind is None else f"{kind.__name__}: {error}"[:500])

    def _plain(self, values: Mapping[str, Any], step: int) -> dict[str, Any]:
        """The numbers among `values` as floats; what knows how to log itself does so."""
        media = {name: value for name, value in values.items() if hasattr(value, "log_to")}
        numbers = {name: as_float(name, value) for name, value in values.items() if name not in media}
        for name, value in media.items():
            check_name(name)
            value.log_to(self, name, step)
        return numbers

    def _schema(self, names: tuple[str, ...]) -> tuple[int, struct.Struct]:
        if not names:
            raise ValueError("values is empty: give at least one name and number")
        for name in names:
            check_name(name)
        idents = [self._name(name) for name in names]
        number = len(self._schemas)
        self._write(f.record(f.KEYED.pack(b"S", number) + struct.pack(f"<{len(idents)}I", *idents)), keep=True)
        found = self._schemas[names] = (number, struct.Struct(f"<c3xIqd{len(names)}d"))
        return found

    def _name(self, name: str, checked: bool = True) -> int:
        ident = self._names.get(name)
        if ident is None:
            if checked:
                check_name(name)
            ident = len(self._names)
            self._write(f.record(b"N" + f.dumps([ident, [name]]).encode("utf-8", "backslashreplace")), keep=True)
            self._names[name] = ident
        return ident

    def _make_room(self) -> int:
        """Where the next slot goes, after emptying a full tail or making the first one."""
        if self._at >= self._room > 0:
            self._empty_tail()
        if not self._room:
            self._room = f.SLOTS * f.SLOT.size
            try:
                self._tail_file = os.open(self.path.with_suffix(".tail"), os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
                os.posix_fallocate(self._tail_file, 0, self._room)  # so that a full disk shows here, not as SIGBUS
                self._tail = mmap.mmap(self._tail_file, self._room)
            except OSError as error:  # no room or no such thing there: then a point waits for its tail to fill
                self._warn(f"{error.strerror}; add_scalar keeps points in memory, {f.SLOTS} at most")
                self._tail = bytearray(self._room)
        return self._at

    def _empty_tail(self) -> None:
        if self._at:
            payload = f.KEYED.pack(b"P", self._generation) + self._tail[: self._at]
            self._write(f.record(payload), self._at // f.SLOT.size)
            self._at = 0
            self._generation += 1

    def _write(self, data: bytes, points: int = 0, keep: bool = False) -> None:
        """Append, behind what still waits. Never raises for the disk. `keep`: later records are nothing without it."""
        if self._unwritten:
            if keep or len(self._unwritten) + len(data) <= MAX_UNWRITTEN:
                self._unwritten += data
            else:
                self._lost, self._lost_from = self._lost + points, self._lost_from or time.time()
            if time.monotonic() < self._retry:
                return
            data = bytes(self._unwritten)
        try:
            while data:  # a short write stops inside a record; the next one goes on exactly there
                data = data[os.write(self._file, data) :]
        except OSError as error:
            self._unwritten[:] = data
            self._retry = time.monotonic() + RETRY_SECONDS
            self._warn(f"{error.strerror}; unwritten metrics wait in memory")
            return
        self._dirty = True
        if self._unwritten:
            self._unwritten.clear()
            if self._lost:
                gap = {"from": self._lost_from, "to": time.time(), "points": self._lost}
                self._lost, self._lost_from = 0, 0.0
                self._write(f.event({"kind": "gap", "time": time.time(), "data": gap}))

    def _warn(self, what: str) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(f"{self.path}: {what}", stacklevel=4)

    def _reopen(self) -> None:
        if self._closed:
            raise ValueError(f"{self.path} is closed: open a new Run to log more")
        self._start()

    def forked(self) -> None:
        """In a child process: nothing may go to the parent's log. The next call opens one of the child's own."""
        for file in (self._file, self._tail_file):
            if file >= 0:
                os.close(file)  # the parent's stay open, and locked
        self._forked, self._room, self._at = True, 0, 0
        self._tail, self._tail_file, self._file, self._names = bytearray(), -1, -1, {}
        self._lock, self._sync_lock = threading.Lock(), threading.Lock()

    def sync(self) -> None:
        """Force what was written to the disk."""
        with self._sync_lock:
            mark = self._generation * f.SLOTS * 32 + self._at
            if self._dirty or mark != self._synced:
                self._dirty, self._synced = False, mark
                for file in (self._file, self._tail_file):
                    if file >= 0:
                        with contextlib.suppress(OSError):
                            os.fsync(file)


def numbers(folder: Path) -> set[int]:
    """The attempts that a metrics folder holds, in any form."""
    return {int(name[:6]) for name in os.listdir(folder) if name[:6].isdecimal()}
