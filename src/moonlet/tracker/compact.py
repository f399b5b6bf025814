"""When a log may become columns: its writer is gone, and it is whole.

A writer holds a lock on its log while it lives, so a log that ended, or whose lock is free an hour after its last
change, has no writer on this machine. Damaged logs stay as they are.
"""

import time
from pathlib import Path

from moonlet.tracker.columns import compact
from moonlet.tracker.index import Index, locked
from moonlet.tracker.logfile import LogFile
from moonlet.tracker.reader import metric_files

ENDED_SECONDS, SILENT_SECONDS = 600.0, 3600.0


def compact_run(folder: Path, ended: float = 0.0, silent: float = SILENT_SECONDS) -> list[Path]:
    """Compact the logs of a run that are closed; returns the new files. `ended`, `silent`: seconds to wait first."""
    made = []
    for path in metric_files(folder).values():
        if path.suffix == ".log" and not locked(path):
            age = time.time() - path.stat().st_mtime
            if age < ended:
                continue
            source = LogFile(path)
            source.refresh()
            whole = not source.damage and source.offset == path.stat().st_size
            if whole and (source.end is not None or age >= silent) and source.header:
                made.append(compact(source))
    return made


def compact_one(index: Index, refused: set[tuple[str, str]]) -> None:
    """Compact one run that ended ten minutes ago, where there is one. `refused`: what could not be compacted as it was,
    which it adds to: nothing is read again and again."""
    for name, stamp in index.with_logs():
        record = index.records[name]
        ended = record["state"] != "running" and time.time() - record["updated"] > ENDED_SECONDS
        if ended and (name, stamp) not in refused:
            if compact_run(index.folder(name), ENDED_SECONDS):
                return
            refused.add((name, stamp))
