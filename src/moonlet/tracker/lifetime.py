"""All open runs of this process: one thread that forces them to the disk, and what a fork and the end do to them."""

import atexit
import os
import sys
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from moonlet.tracker.writer import Run

FSYNC_SECONDS = 1.0
_open: "set[Run]" = set()
_syncer: threading.Thread | None = None


def opened(run: "Run") -> None:
    global _syncer
    _open.add(run)
    if _syncer is None:
        _syncer = threading.Thread(target=_sync_all, name="moonlet-tracker-fsync", daemon=True)
        _syncer.start()


def closed(run: "Run") -> None:
    _open.discard(run)


def _sync_all() -> None:
    while True:
        time.sleep(FSYNC_SECONDS)
        for run in list(_open):
            if not run.closed:
                run.sync()


def _after_fork() -> None:
    global _syncer
    _syncer = None
    for run in list(_open):
        run.forked()


def _close_all() -> None:
    """At the end of the program: what nobody closed ends here, as failed where an exception ended it."""
    failed = getattr(sys, "last_type", None)
    for run in list(_open):
        run.close(failed and f"{failed.__name__}: {sys.last_value}"[:500])


os.register_at_fork(after_in_child=_after_fork)
atexit.register(_close_all)
