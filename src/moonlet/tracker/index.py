"""The list of runs below a folder: found on disk, kept in memory, and in SQLite so that a start reads only news.

A run is a folder with a `metrics/` that holds logs; what the page changes of it (name, tags, notes, marks) is appended
to `metrics/edits.jsonl`. The index `.moonlet-board/index.sqlite` holds nothing that is not in the runs: delete it and
it is made again. Ids are hashes of the folder's place, so no text from a client is ever part of a path.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import sqlite3
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moonlet.tracker import format as f

if TYPE_CHECKING:
    from moonlet.tracker.logfile import Source
    from moonlet.tracker.reader import RunData

DEPTH = 8  # folders below the root in which runs are looked for
STALLED_SECONDS = 300.0  # without news: a run on another host, whose lock cannot be seen, counts as stalled
EDITABLE = {"name": str, "notes": str, "color": str, "tags": list, "archived": bool, "deleted": bool}
Record = dict[str, Any]


class Index:
    """`records`: RUN by id, as docs/tracker.md describes them. One thread scans; any may read."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        if not self.root.is_dir():
            raise ValueError(f"{root} is not a folder: give the folder that holds the runs")
        self.records: dict[str, Record] = {}
        self.changed: dict[str, int] = {}  # id -> version at its last change
        self.removed: dict[str, int] = {}
        self.version = 0
        self.scanning = True
        self.lock = threading.RLock()
        self._stamps: dict[str, str] = {}
        self._live: dict[str, RunData] = {}  # runs that are being written, read as far as they go
        self._last: tuple[str, RunData] | None = None  # what the latest scan read last
        self._folders: dict[str, str] = {}  # id -> folder below the root
        self._undo: list[list[tuple[str, Record]]] = []
        self._database = self._open()
        for place, stamp, record in self._database.execute("SELECT folder, stamp, record FROM run"):
            folder = os.fsdecode(place)
            name = run_id(folder)
            self._stamps[name], self._folders[name], self.records[name] = stamp, folder, json.loads(record)

    def folder(self, name: str) -> Path:
        """Raises KeyError for an id that no run has."""
        return self.root / self._folders[name]

    def scan(self) -> None:
        """Look at every folder; read those that changed."""
        self._last = None
        found = {run_id(folder): (folder, stamp) for folder, stamp in discover(self.root).items()}
        for name in self.records.keys() - found.keys():
            self._forget(name)
        for name, (folder, stamp) in found.items():
            self._folders[name] = folder
            self._look(name, stamp)
        self._commit()
        if self.scanning:
            with self.lock:
                self.version += 1  # news even where no run is new: whoever waits learns that this is all
                self.scanning = False

    def poll(self) -> None:
        """Look again at the runs that are being written."""
        for name in [name for name, record in list(self.records.items()) if record["state"] in ("running", "stalled")]:
            self._look(name)

    def just_read(self, name: str) -> "RunData | None":
        """The sources of a run that ended and was the last one read: the first look at it reads nothing twice."""
        if self._last is None or self._last[0] != name:
            return None
        (_, data), self._last = self._last, None
        return data

    def with_logs(self) -> list[tuple[str, str]]:
        """Ids and stamps of the runs that have a log which is no columns yet."""
        return [(name, stamp) for name, stamp in list(self._stamps.items()) if ".log'" in stamp]

    def live(self, name: str) -> "RunData | None":
        """The sources of a run that is being written, which `poll` keeps. Hold `lock` while you use them."""
        return self._live.get(name)

    def _look(self, name: str, stamp: str | None = None) -> None:
        """Read a run unless its `stamp` (None: look) is the one that was read."""
        record = self.records.get(name)
        known = self._stamps.get(name) if record and record["state"] not in ("running", "stalled") else None
        if stamp is not None and stamp == known:
            return None
        folder = self.folder(name)
        try:
            stamp = stamp or stamp_of(folder)
            if stamp is None:
                return self._forget(name)
            if stamp == known:
                return None
            from moonlet.tracker.reader import RunData  # brings numpy: a start that finds nothing new does without

            data = self._live.get(name) or RunData(folder)
            with self.lock:
                changed = data.refresh()
            if record is None or changed or stamp != self._stamps.get(name) or state_of(data) != record["state"]:
                self._put(name, stamp, describe(data, name, self._folders[name]))
            if self.records[name]["state"] == "running":
                self._live[name] = data
            else:
                self._live.pop(name, None)
                self._last = name, data
        except (OSError, ValueError) as error:  # gone while it was read, or no log at all: shown as what it is
            with contextlib.suppress(OSError):
                self._put(name, stamp_of(folder) or "", broken(name, self._folders[name], str(error)))
        return None

    def _put(self, name: str, stamp: str, record: Record) -> None:
        text = f.dumps(record).encode("utf-8", "replace").decode()
        record = json.loads(text)
        with self.lock:
            self.version += 1
            self.records[name], self._stamps[name], self.changed[name] = record, stamp, self.version
            self.removed.pop(name, None)
            row = (os.fsencode(self._folders[name]), stamp if record["state"] != "running" else "", text)
            self._remember("INSERT OR REPLACE INTO run VALUES (?, ?, ?)", row)

    def _forget(self, name: str) -> None:
        with self.lock:
            self.version += 1
            self.removed[name] = self.version
            self.records.pop(name, None)
            self.changed.pop(name, None)
            self._live.pop(name, None)
            self._stamps.pop(name, None)
            folder = self._folders.pop(name, "")
            self._remember("DELETE FROM run WHERE folder = ?", (os.fsencode(folder),))

    def _commit(self) -> None:
        with self.lock, contextlib.suppress(sqlite3.Error):
            self._database.commit()

    def _remember(self, sql: str, values: tuple[Any, ...]) -> None:
        with contextlib.suppress(sqlite3.Error):  # the index only saves time: the runs hold everything
            self._database.execute(sql, values)

    def _open(self) -> sqlite3.Connection:
        """The database beside the runs; in memory where that folder cannot be written."""
        place = self.root / ".moonlet-board"
        try:
            place.mkdir(exist_ok=True)
            try:
                return _database(place / "index.sqlite")
            except sqlite3.DatabaseError:
                (place / "index.sqlite").unlink()
                return _database(place / "index.sqlite")
        except (OSError, sqlite3.Error):
            return _database(":memory:")

    def edit(self, names: list[str], changes: Record) -> int:
        """Apply `changes` (see EDITABLE, and add_tags, remove_tags) to each run; returns a number for `undo`.

        Raises KeyError for an unknown run and ValueError for a change that is none.
        """
        checked(changes)
        with self.lock:
            before: list[tuple[str, Record, Record]] = []
            for name in names:
                old: Record = self.records[name]
                new: Record = {key: value for key, value in changes.items() if key in EDITABLE}
                if {"tags", "add_tags", "remove_tags"} & changes.keys():
                    tags = list(new["tags"] if "tags" in new else old["tags"]) + list(changes.get("add_tags", []))
                    gone = set(changes.get("remove_tags", []))
                    new["tags"] = [tag for tag in dict.fromkeys(tags) if tag not in gone]
                before.append((name, {key: old[key] for key in new}, new))
            for name, _, new in before:
                self._write_edit(name, new)
            self._undo.append([(name, old) for name, old, _ in before])
            return len(self._undo) - 1

    def undo(self, number: int) -> list[str]:
        """Take an edit back. Raises ValueError for one that is not there or was undone."""
        with self.lock:
            if not 0 <= number < len(self._undo) or not self._undo[number]:
                raise ValueError(f"no edit {number} to undo: edits are numbered by /api/edit since the board's start")
            before, self._undo[number] = self._undo[number], []
        for name, old in before:
            if name in self.records:
                self._write_edit(name, old)
        return [name for name, _ in before]

    def purge(self, names: list[str]) -> None:
        """Remove the metrics of runs that are marked deleted. Raises ValueError for any other."""
        for name in names:
            if not self.records[name]["deleted"] or self.records[name]["state"] == "running":
                raise ValueError(f"run {name} is not marked deleted, or is being written: delete it first")
        for name in names:
            shutil.rmtree(self.folder(name) / "metrics")
            self._forget(name)

    def note_alert(self, name: str, alert: Record) -> None:
        """Keep what `alerts` found with the run."""
        self._append(name, {"time": time.time(), "alert": alert})

    def _write_edit(self, name: str, changes: Record) -> None:
        self._append(name, {"time": time.time(), "set": changes})
        with self.lock:
            self._stamps[name] = ""
            self._look(name)
        self._commit()

    def _append(self, name: str, line: Record) -> None:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW
        handle = os.open(self.folder(name) / "metrics" / "edits.jsonl", flags, 0o644)
        try:
            os.write(handle, f.dumps(line).encode("utf-8", "backslashreplace") + b"\n")
        finally:
            os.close(handle)


def _database(path: Any) -> sqlite3.Connection:
    database = sqlite3.connect(path, check_same_thread=False)
    database.execute("PRAGMA synchronous = OFF")
    database.execute("CREATE TABLE IF NOT EXISTS run (folder BLOB PRIMARY KEY, stamp TEXT, record TEXT)")
    return database


def run_id(folder: str) -> str:
    return hashlib.blake2b(folder.encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()


def discover(root: Path) -> dict[str, str]:
    """Folders of runs, relative to the root, and their stamps; "" when the root is one. Runs may lie in runs. Links are
    not followed."""
    found, waiting, top = {}, [("", 0)], str(root)
    while waiting:
        folder, depth = waiting.pop()
        place = os.path.join(top, folder)
        try:
            with os.scandir(place) as entries:
                names = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
            if "metrics" in names and (stamp := stamp_of(place)):
                found[folder] = stamp
        except OSError:
            continue
        if depth < DEPTH:
            inner = (name for name in names if name != "metrics" and not name.startswith("."))
            waiting += [(os.path.join(folder, name), depth + 1) for name in inner]
    return found


def stamp_of(folder: str | Path) -> str | None:
    """Names, sizes and times of what a run's metrics hold; None when they hold no log."""
    facts, logs = [], False
    with os.scandir(os.path.join(folder, "metrics")) as entries:
        for entry in entries:
            log = entry.name[:6].isdecimal() and entry.name[entry.name.rfind(".") :] in f.SUFFIXES
            if (log or entry.name == "edits.jsonl") and entry.is_file(follow_symlinks=False):
                status = entry.stat(follow_symlinks=False)
                facts.append((entry.name, status.st_size, status.st_mtime_ns))
                logs |= log
    return repr(sorted(facts)) if logs else None


def locked(path: Path) -> bool:
    """Whether the writer of this log lives, as far as this machine can see."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except OSError:
        return True
    finally:
        os.close(handle)


def state_of(data: "RunData") -> str:
    """running, finished, failed or stalled, of the latest attempt's writers."""
    sources = list(data.sources.values())
    latest = [source for source in sources if source.attempt == max(source.attempt for source in sources)]
    if any(source.end is None and locked(source.path) for source in sources):
        return "running"
    ends = [source.end for source in latest]
    if all(end is not None or source.path.suffix == ".jsonl" for source, end in zip(latest, ends, strict=True)):
        return "failed" if any(end and end["exit"] for end in ends) else "finished"
    here = os.uname().nodename
    if any(s.header.get("host") != here and time.time() - updated(s) < STALLED_SECONDS for s in latest):
        return "running"
    return "failed" if any(source.header.get("host") == here for source in latest) else "stalled"


def updated(source: "Source") -> float:
    times = [event.time for event in source.events[-1:]]
    if source.path.suffix == ".columns":
        return times[0] if times else float(source.header.get("started", 0))
    for path in (source.path, source.path.with_suffix(".tail")):
        with contextlib.suppress(OSError):
            times.append(path.stat().st_mtime)
    return max(times, default=0.0)


def edits(folder: Path) -> tuple[Record, list[Record]]:
    """What the page's changes amount to, and the alerts that the board noted."""
    found: Record = {}
    alerts = []
    with contextlib.suppress(OSError), open(os.path.join(folder, "metrics", "edits.jsonl"), "rb") as file:
        for line in file:
            with contextlib.suppress(ValueError, TypeError, KeyError, AttributeError):
                entry = json.loads(line)
                found.update({key: value for key, value in entry.get("set", {}).items() if key in EDITABLE})
                if "alert" in entry:
                    alerts.append({"kind": "alert", "time": entry["time"], "data": entry["alert"]})
    return found, alerts


def checked(changes: Record) -> None:
    """Raises ValueError for a change that `Index.edit` does not know."""
    kinds: dict[str, type] = {**EDITABLE, "add_tags": list, "remove_tags": list}
    for key, value in changes.items():
        kind = kinds.get(key)
        if kind is None:
            raise ValueError(f"no field {key!r} to set: one of {', '.join(kinds)}")
        if value is None and key in ("name", "notes", "color"):
            continue
        if not isinstance(value, kind) or (isinstance(value, list) and not all(isinstance(tag, str) for tag in value)):
            raise ValueError(f"{key} is {value!r}: it must be {'a list of texts' if kind is list else kind.__name__}")
        if len(str(value)) > 20_000:
            raise ValueError(f"{key} is longer than 20000 characters: shorten it")
        if key == "color" and not re.fullmatch("#[0-9a-fA-F]{6}", str(value)):
            raise ValueError(f"color is {value!r}: it must be like #3366cc")


def describe(data: "RunData", name: str, folder: str) -> Record:
    """RUN of docs/tracker.md."""
    stats = data.stats()
    sources = list(data.sources.values())
    about: Record = {}
    for source in sources:
        about |= {key: source.header[key] for key in ("name", "notes", "tags") if source.header.get(key)}
    summary = {key: stat.last for key, stat in stats.items()} | f.flat(data.fields("summary"))
    starts = [float(source.header["started"]) for source in sources if "started" in source.header]
    times = [updated(source) for source in sources]
    record = {
        "id": name,
        "name": Path(folder).name or data.folder.resolve().name,
        "folder": folder or ".",
        "state": state_of(data),
        "created": min(starts or times, default=0.0),
        "updated": max(times, default=0.0),
        "attempts": len({source.attempt for source in sources}),
        "points": sum(stat.points for stat in stats.values()),
        "last_step": max((stat.last_step for stat in stats.values()), default=None),
        "config": f.flat(data.fields("config")),
        "summary": summary,
        "tags": [],
        "notes": "",
        "color": None,
        "archived": False,
        "deleted": False,
    }
    changes = {key: value for key, value in edits(data.folder)[0].items() if value is not None or key == "color"}
    return record | about | changes


def broken(name: str, folder: str, why: str) -> Record:
    empty: Record = {"attempts": 0, "points": 0, "last_step": None, "config": {}, "summary": {}, "color": None}
    marks = {"tags": [], "notes": why, "archived": False, "deleted": False}
    return (
        {"id": name, "name": folder, "folder": folder, "state": "failed", "created": 0.0, "updated": 0.0}
        | empty
        | marks
    )


def series_of(data: "RunData") -> list[Record]:
    """SERIES of docs/tracker.md, by name."""
    return [{"name": name, **stat._asdict()} for name, stat in sorted(data.stats().items())]
