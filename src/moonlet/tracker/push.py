"""Logs from a machine that shares no disk with the board: a local spool, and what the board does with its bytes.

    run = Run("spool/mine"); Pusher("http://board:6060", token, "spool/mine", "mine").start()
    moonlet board push spool/mine --to http://board:6060 --token T

The spool is an ordinary run, written as always; a thread sends what is new in its logs, from the size that the board
says it has. So a lost answer or a restart repeats nothing, and while the network is away everything waits on the local
disk. Tails are sent once they have moved into the log; `stop` waits for the rest. A board's token is asked for.
"""

import contextlib
import json
import os
import re
import socket
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Self

PIECE = 4 << 20  # bytes sent at once


def append(root: Path, run: str, writer: str, offset: int, data: bytes) -> int:
    """Append to a pushed log when it has `offset` bytes; returns its size now. `run` and `writer` are checked names."""
    folder = root / run / "metrics"
    folder.mkdir(parents=True, exist_ok=True)
    if folder.is_symlink() or folder.parent.is_symlink():
        raise ValueError(f"the folder of {run!r} is a link: choose another name")
    number = writer[:6] if re.fullmatch(r"\d{6}(-.*)?", writer) else None
    name = f"{writer if number else '000001-' + writer}.log"
    handle = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o644)
    try:
        size = os.fstat(handle).st_size
        if size == offset and not (folder / name).with_suffix(".columns").exists():
            size += os.write(handle, data)
        return size
    finally:
        os.close(handle)


class Pusher:
    """Sends the logs of the run folder `spool` to the board at `url` as its run `run`, twice a second."""

    def __init__(self, url: str, token: str, spool: str | os.PathLike[str], run: str) -> None:
        if not re.fullmatch("[A-Za-z0-9_-]{1,128}", run):
            raise ValueError(f"run is {run!r}: letters, digits, _ and -, 1 to 128 of them")
        self.url, self.token, self.folder, self.run = url.rstrip("/"), token, Path(spool) / "metrics", run
        self.host = re.sub("[^A-Za-z0-9_-]", "-", socket.gethostname())[:100]
        self.error: str | None = None  # why the last try failed
        self._sizes: dict[str, int] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="moonlet-tracker-push", daemon=True)

    def start(self) -> Self:
        self._thread.start()
        return self

    def stop(self, seconds: float = 10.0) -> bool:
        """Send what is left, for at most `seconds`; returns whether all of it arrived."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(seconds)
        end = time.monotonic() + seconds
        while not (done := self.send()) and time.monotonic() < end:
            time.sleep(0.2)
        return done

    def send(self) -> bool:
        """One round over all logs. Returns whether the board has every byte."""
        done = True
        for path in sorted(self.folder.glob("*.log")):
            try:
                done &= self._send(path)
                self.error = None
            except (OSError, ValueError) as error:
                self.error, done = str(error), False
        return done

    def _send(self, path: Path) -> bool:
        writer = f"{path.stem}-{self.host}"
        with open(path, "rb") as file:
            total = os.fstat(file.fileno()).st_size
            at = self._sizes.get(path.name, 0)
            while at < total:
                file.seek(at)
                now = self._post(f"/api/push/{self.run}/{writer}?offset={at}", file.read(PIECE))
                if now <= at and now == self._sizes.get(path.name):
                    raise ValueError(f"the board keeps {now} bytes of {path.name} and takes no more")
                at = self._sizes[path.name] = now
        return True

    def _post(self, path: str, data: bytes) -> int:
        headers = {"content-type": "application/octet-stream", "x-moonlet-token": self.token}
        headers["authorization"] = f"Bearer {self.token}"
        request = urllib.request.Request(self.url + path, data, headers, method="POST")
        with urllib.request.urlopen(request, timeout=10) as reply:
            return int(json.loads(reply.read())["size"])

    def _follow(self) -> None:
        while not self._stop.wait(0.5):
            with contextlib.suppress(Exception):
                self.send()
