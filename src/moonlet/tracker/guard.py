"""What every request must pass before any route sees it, and what every answer carries.

A page in the same browser must not reach the board: the Host must be a known name (no rebinding), an Origin must be
the board's own, a POST must be JSON (no form can send that unasked) and a write needs the token of this start. There is
no CORS. With a team token every request needs it. The policy of the answers lets no inline script run and nothing be
fetched from elsewhere.
"""

import asyncio
import contextlib
import hmac
import json
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs, urlsplit

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "font-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}
WRITES = {"/api/edit", "/api/undo", "/api/purge", "/api/views", "/api/query"}
PUSH = "/api/push/"
COOKIE = "moonlet_board"
BODY_LIMIT = 8 << 20  # bytes
PUSH_LIMIT = 64 << 20
DRAIN_SECONDS = 1.0


class Refused(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Guard:
    """ASGI middleware. `hosts`: names that a Host header may have, without port; `token`: of a team server, or None."""

    def __init__(self, app: Any, hosts: set[str], write_token: str, token: str | None, secure: bool) -> None:
        self.app, self.hosts, self.write_token, self.token, self.secure = app, hosts, write_token, token, secure

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return

        async def send_with_headers(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                given = {name.lower() for name, _ in message["headers"]}
                extra = [(k.encode(), v.encode()) for k, v in HEADERS.items() if k.encode() not in given]
                message = {**message, "headers": [*message["headers"], *extra]}
            await send(message)

        try:
            cookie = self.check(scope)
            if cookie:
                await _redirect(send_with_headers, cookie)
                return
            await self.app(scope, _limited(scope, receive), send_with_headers)
        except Refused as refusal:
            body = json.dumps({"error": {"message": str(refusal)}}).encode()
            headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
            headers.append((b"content-length", str(len(body)).encode()))
            await send_with_headers({"type": "http.response.start", "status": refusal.status, "headers": headers})
            await send({"type": "http.response.body", "body": body, "more_body": True})
            await _drained(receive)
            await send({"type": "http.response.body", "body": b""})

    def check(self, scope: dict[str, Any]) -> str | None:
        """Raises Refused; returns the cookie to set when a browser came with the team token in its address."""
        headers: dict[str, list[str]] = {}
        for name, value in scope["headers"]:
            headers.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1"))
        (host,) = headers.get("host", [])[:1] or [""]
        if len(headers.get("host", [])) != 1 or host_name(host) not in self.hosts:
            raise Refused(403, f"the Host header {host[:80]!r} is not a name of this board: start it with --allow-host")
        for origin in headers.get("origin", []):
            if urlsplit(origin).netloc.lower() != host.lower():
                raise Refused(403, "a page of another origin may not use this board")
        path, method = scope["path"], scope["method"]
        site = headers.get("sec-fetch-site", ["none"])[0]
        if path.startswith("/api/") and site not in ("none", "same-origin"):
            raise Refused(403, "a page of another origin may not use this board")
        if method not in ("GET", "HEAD", "POST"):
            raise Refused(405, "only GET, HEAD and POST are used here")
        size = headers.get("content-length", ["0"])[0]
        if size.isdigit() and int(size) > _limit(path):
            raise Refused(413, f"the body is longer than {_limit(path)} bytes: send less")
        cookie = self._team(scope, headers)
        if method == "POST":
            kind = headers.get("content-type", [""])[0].split(";")[0].strip().lower()
            wanted = "application/octet-stream" if path.startswith(PUSH) else "application/json"
            if kind != wanted:
                raise Refused(415, f"the content type is {kind[:80]!r}: it must be {wanted}")
            if path in WRITES or path.startswith(PUSH):
                given = headers.get("x-moonlet-token", [""])[0]
                if not _equal(given, self.write_token) and not (self.token and self._bearer(headers)):
                    raise Refused(403, "this change needs the header X-Moonlet-Token with the token of /api/session")
        return cookie

    def _bearer(self, headers: dict[str, list[str]]) -> bool:
        return _equal(headers.get("authorization", [""])[0].removeprefix("Bearer "), self.token or "")

    def _team(self, scope: dict[str, Any], headers: dict[str, list[str]]) -> str | None:
        if self.token is None or self._bearer(headers):
            return None
        try:
            cookies = SimpleCookie("; ".join(headers.get("cookie", [])))
        except CookieError:
            cookies = SimpleCookie()
        if COOKIE in cookies and _equal(cookies[COOKIE].value, self.token):
            return None
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
        if scope["path"] == "/" and scope["method"] == "GET" and _equal(given, self.token):
            return f"{COOKIE}={self.token}; HttpOnly; SameSite=Strict; Path=/{'; Secure' if self.secure else ''}"
        raise Refused(401, "this board asks for its token: Authorization: Bearer TOKEN, or open /?token=TOKEN once")


def host_name(value: str) -> str:
    """The name of a Host header without its port, in lower case; "" for what is none."""
    name, colon, port = value.rpartition(":")
    if colon and (port.isascii() and port.isdigit()) and not name.endswith(":"):
        value = name
    return value.lower() if value.startswith("[") == value.endswith("]") else ""


def _equal(a: str, b: str) -> bool:
    return bool(b) and hmac.compare_digest(a.encode("utf-8", "replace"), b.encode("utf-8", "replace"))


def _limit(path: str) -> int:
    return PUSH_LIMIT if path.startswith(PUSH) else BODY_LIMIT


def _limited(scope: dict[str, Any], receive: Any) -> Any:
    """`receive` that raises Refused once the body is longer than it may be."""
    limit, size = _limit(scope["path"]), 0

    async def counted() -> Any:
        nonlocal size
        message = await receive()
        size += len(message.get("body", b""))
        if size > limit:
            raise Refused(413, f"the body is longer than {limit} bytes: send less")
        return message

    return counted


async def _drained(receive: Any) -> None:
    """Drop what is still coming of a refused body, for a while: closing before it came would reset the connection, and
    the client might lose the answer."""
    size = 0
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(DRAIN_SECONDS):
            while size < BODY_LIMIT:
                message = await receive()
                size += len(message.get("body", b""))
                if not message.get("more_body"):
                    return


async def _redirect(send: Any, cookie: str) -> None:
    headers = [(b"location", b"/"), (b"set-cookie", cookie.encode())]
    await send({"type": "http.response.start", "status": 303, "headers": headers})
    await send({"type": "http.response.body", "body": b""})
