"""The board: the HTTP API of docs/tracker.md over an `Index`, and the page's files. `serve(root, ...)` runs it.

    GET  /  /page/FILE  /api/session  /api/changes  /api/runs  /api/fields  /api/views
    GET  /api/runs/ID  .../points  .../media  .../blob/NUMBER  .../histograms
    POST /api/m4  /api/aggregate  (binary, `wire`)   /api/rollouts  /api/diff  /api/bundle
    POST with the write token: /api/edit /api/undo /api/purge /api/views /api/query /api/push/ID/WRITER

Here are the app, its start and what follows the disk; the routes are in `routes` and `routes_data`, HTTP is in `web`,
what every request must pass in `guard`. One thread scans the runs, twice a second those that are being written and
every ten seconds all of them, and compacts logs that were closed ten minutes ago. Page files are read once at the
start: a path from a client only ever looks up a name in that table. Leaves out: users and rights, anything but one
machine's folder.
"""

import contextlib
import ipaddress
import logging
import math
import re
import secrets
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import uvicorn

from moonlet.tracker.guard import Guard, host_name
from moonlet.tracker.index import Index
from moonlet.tracker.routes import Board, reading, writing
from moonlet.tracker.web import Routes

PAGE = Path(__file__).parent / "page"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".json": "application/json",
    ".woff2": "font/woff2",
}
POLL_SECONDS, SCAN_SECONDS = 0.5, 10.0
LOOPBACK = {"127.0.0.1", "localhost", "[::1]"}
log = logging.getLogger("moonlet.tracker")


def page_files() -> dict[str, tuple[bytes, str]]:
    """Name -> bytes and type of every file of the page. Its scripts go out as one, `board.js`, in the page's order."""
    files = [path for path in PAGE.rglob("*") if path.suffix in TYPES] if PAGE.is_dir() else []
    found = {path.relative_to(PAGE).as_posix(): (path.read_bytes(), TYPES[path.suffix]) for path in files}
    index, kind = found["index.html"]
    names = re.findall(rb'<script src="page/([\w.-]+)" defer></script>\n', index)
    found["board.js"] = (b"\n".join(found[name.decode()][0] for name in names), TYPES[".js"])
    first, rest = index.split(b"<script ", 1)
    tail = rest[rest.rindex(b"</script>") + len(b"</script>") :]
    found["index.html"] = (first + b'<script src="page/board.js" defer></script>' + tail, kind)
    return found


def make_app(
    root: Path, token: str | None = None, hosts: set[str] | None = None, secure: bool = False, scan: bool = True
) -> tuple[Any, Board]:
    """The ASGI app and what it serves. With `scan` the runs are read before it returns."""
    index = Index(root)
    board = Board(index, secrets.token_urlsafe(24), page_files(), PAGE)
    if scan:
        index.scan()

    def later(api: Routes) -> None:  # what these import takes as long as all the rest
        from moonlet.tracker import routes_data

        routes_data.add(api, board)

    api = Routes(later)
    reading(api, board)
    writing(api, board)
    return Guard(api, LOOPBACK | (hosts or set()), board.write_token, token, secure), board


@contextlib.contextmanager
def following(board: Board, rules: Path | None = None) -> Iterator[None]:
    """Keep the index up to date in a thread, and compact what is closed."""
    stop = threading.Event()
    watch = None
    if rules:
        from moonlet.tracker import alerts

        watch = alerts.Watch(rules)
    refused: set[tuple[str, str]] = set()

    def follow() -> None:
        scanned, tidied = -math.inf, False
        while not stop.is_set():
            try:
                if time.monotonic() - scanned > SCAN_SECONDS:
                    board.index.scan()
                    scanned, tidied = time.monotonic(), False
                    from moonlet.tracker import compact, routes_data  # noqa: F401  a start waits for neither
                else:
                    board.index.poll()
                    if not tidied:
                        compact.compact_one(board.index, refused)
                    tidied = True
                if watch:
                    watch.look(board.index)
            except Exception:
                log.exception("scanning %s failed; it goes on", board.index.root)
            stop.wait(POLL_SECONDS)

    thread = threading.Thread(target=follow, name="moonlet-board-scan", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def serve(
    root: Path,
    host: str = "127.0.0.1",
    port: int = 6060,
    token: str | None = None,
    tls: tuple[Path | None, Path | None] = (None, None),
    hosts: list[str] | None = None,
    rules: Path | None = None,
) -> None:
    """Serve until interrupted. Raises ValueError for an address that only a token makes safe, or half a TLS pair."""
    loopback = host == "localhost" or _is_loopback(host)
    if not loopback and not token:
        raise ValueError(f"--host {host} lets other machines in: give --token too, or listen on 127.0.0.1")
    if (tls[0] is None) != (tls[1] is None):
        raise ValueError("--tls-cert and --tls-key belong together: give both or none")
    names = {host_name(name) for name in [*(hosts or []), f"[{host}]" if ":" in host else host]}
    if not loopback:
        names |= {socket.gethostname().lower(), socket.getfqdn().lower()}
    app, board = make_app(root, token, names, tls[0] is not None, scan=False)
    # With the protocol named, asyncio switches Nagle's waiting off: else an answer's body comes 40 ms after its head.
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
        bound.listen(2048)  # the address is told below: from then on whoever asks waits and is not refused
    except OSError as error:
        raise ValueError(f"cannot listen on {host}:{port} ({error.strerror}): choose another --port") from error
    scheme = "https" if tls[0] else "http"
    query = f"/?token={token}" if token else "/"
    print(f"moonlet board: {root} on {scheme}://{host}:{bound.getsockname()[1]}{query}", file=sys.stderr, flush=True)
    settings: dict[str, Any] = {"ssl_certfile": tls[0], "ssl_keyfile": tls[1]} if tls[0] else {}
    settings |= {"loop": "asyncio", "ws": "none", "lifespan": "off"}  # what is not used is not imported
    settings["timeout_graceful_shutdown"] = 1  # a peer that keeps its TLS connection open would hold the end up
    config = uvicorn.Config(app, log_level="warning", access_log=False, server_header=False, **settings)

    class Server(uvicorn.Server):
        def handle_exit(self, sig: int, frame: Any) -> None:
            board.closing = True  # whoever waits for news is answered now
            super().handle_exit(sig, frame)

    with following(board, rules):
        Server(config).run(sockets=[bound])


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
