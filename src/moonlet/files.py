"""Files and folders that are either whole or absent, whatever stops the program.

A file is written beside its target, flushed to the disk and renamed over it; a folder is built in a hidden sibling,
flushed file by file and renamed into place. A crash never leaves half of one under its name. (A folder that replaces
another takes two renames; a crash between them leaves the old one as `.NAME.replaced`, which the next writer puts
back.) One process at a time builds a given folder: what an interrupted one left behind is removed by the next. A full
disk or a place that cannot be written is an `InputError` that names the path and the fix.
"""

import contextlib
import errno
import json
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from moonlet.errors import InputError

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
UNWRITABLE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG}


def write_atomic(path: str | Path, data: bytes | str) -> None:
    """Write `data` (text as UTF-8) to `path`, making its folder. Raises InputError when the disk refuses it."""
    with new_file(path) as part:
        part.write_bytes(data.encode() if isinstance(data, str) else data)


@contextlib.contextmanager
def new_file(path: str | Path) -> Iterator[Path]:
    """Yield a path to write a file to; on a clean exit it becomes `path`. Errors as `write_atomic`."""
    path = Path(os.path.abspath(path))
    part = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield part
            _sync(part)
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
        _sync(path.parent)
    except OSError as error:
        raise _explained(error, path) from error


def write_json(path: str | Path, obj: Any) -> None:
    """Write `obj` as indented JSON. NaN and infinity are refused (ValueError): other readers do not take them."""
    write_atomic(path, json.dumps(obj, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


@contextlib.contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """Yield an empty folder to fill; on a clean exit it becomes `path`, in place of whatever folder was there.

    An exception in the body removes what was built, leaves `path` as it was and goes on (a full disk as InputError).
    """
    path = Path(os.path.abspath(path))
    part, old = path.with_name(f".{path.name}.partial"), path.with_name(f".{path.name}.replaced")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_dir():
            raise InputError(f"{path} is a file where a folder is to be written: move it away or choose another path")
        if old.exists() and not path.exists():
            os.replace(old, path)  # stopped between the two renames below: the old content still counts
        for leftover in (part, old):
            if leftover.exists():
                shutil.rmtree(leftover)
        part.mkdir()
    except OSError as error:
        raise _explained(error, path) from error
    try:
        yield part
    except BaseException as error:
        shutil.rmtree(part, ignore_errors=True)
        # Libraries that write natively report the same condition in words only.
        if (isinstance(error, OSError) and error.errno in FULL) or f"os error {errno.ENOSPC}" in str(error):
            raise InputError(_full(path)) from error
        raise
    mode = part.stat().st_mode & 0o666  # as the umask has it; safetensors makes files that only their owner may read
    try:
        for folder, _, names in os.walk(part):
            for name in names:
                Path(folder, name).chmod(mode)
                _sync(Path(folder, name))
            _sync(Path(folder))
        if path.exists():
            os.replace(path, old)
        os.replace(part, path)
        _sync(path.parent)
        if old.exists():
            shutil.rmtree(old)
    except OSError as error:
        raise _explained(error, path) from error


def check_writable(path: str | Path, need_bytes: int = 0) -> None:
    """Raise InputError unless `path` can be made or written into and its disk has `need_bytes` free."""
    path = existing = Path(os.path.abspath(path))
    try:
        while not existing.exists() and existing != existing.parent:
            existing = existing.parent
        free = shutil.disk_usage(existing).free
    except OSError as error:  # a folder on the way may not be entered
        raise _explained(error, path) from error
    if not existing.is_dir():
        raise InputError(f"{existing} is not a folder, so {path} cannot be written: choose another path")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise InputError(f"{existing} is not writable, so {path} cannot be written: change its mode or the path")
    if free < need_bytes:
        raise InputError(
            f"{path} needs {need_bytes / 1e6:.0f} MB and its disk has {free / 1e6:.0f} MB free: "
            "free some space or choose a path on another disk"
        )


def _sync(path: Path) -> None:
    """Flush one file's or one folder's entry to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _full(path: Path) -> str:
    return f"no space left to write {path}: free some space or choose a path on another disk, then repeat the command"


def _explained(error: OSError, path: Path) -> OSError | InputError:
    """The InputError that says what to do about `error`, or `error` itself where the user can do nothing."""
    if error.errno in FULL:
        return InputError(_full(path))
    if error.errno in UNWRITABLE:
        return InputError(f"cannot write {path}: {error.strerror}; choose a path in a folder that you can write to")
    return error
