"""Chat completions from any OpenAI-compatible endpoint, streamed with httpx.

Every way in which an endpoint can fail becomes an `EndpointError` of one line that says where and what to do. Nothing
is retried: a person is watching, or a script has its own idea of patience.
"""

import json
import os
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import httpx

from moonlet.errors import InputError

KEY_VARIABLE = "MOONLET_API_KEY"
HINTS = {
    401: f"set {KEY_VARIABLE} to the key of this endpoint",
    404: "check the base URL (it usually ends in /v1) and the model name",
    429: "too many requests or an empty quota",
}
STREAM = {"stream": True, "stream_options": {"include_usage": True}}
NOT_JSON = (ValueError, KeyError, TypeError, AttributeError, RecursionError)  # or JSON of another shape


class EndpointError(Exception):
    """The endpoint failed or refused. One line; `status` is the HTTP status, 0 where there was none."""

    def __init__(self, message: str, status: int = 0):
        super().__init__(" ".join(message.split()))
        self.status = status


class Client:
    """`base_url` as the endpoint prints it (a URL without a path gets /v1). `timeout`: seconds without a byte."""

    def __init__(self, base_url: str, timeout: float = 300.0):
        try:
            parts = urlsplit(base_url)
            valid = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:
            valid = False
        if not valid:
            raise InputError(f"{base_url!r} is not an endpoint: give http://HOST:PORT/v1")
        self.base_url = base_url.rstrip("/") + ("" if parts.path.strip("/") else "/v1")
        self.timeout = timeout
        key = os.environ.get(KEY_VARIABLE)
        self.http = httpx.Client(
            headers={"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {}),
            timeout=httpx.Timeout(timeout, connect=10.0),
            trust_env=parts.hostname not in ("127.0.0.1", "::1", "localhost"),  # no proxy for this machine
        )

    def models(self) -> list[str]:
        """Names of the endpoint's models. Raises EndpointError."""
        with self._request("GET", "models") as response:
            try:
                return [model["id"] for model in json.loads(response.read())["data"]]
            except NOT_JSON as error:
                raise EndpointError(f"{self.base_url}/models did not answer with a list of models") from error

    def stream(self, body: dict) -> Generator[dict, None, None]:
        """The answer to one request, as it arrives: {"reasoning_content": str}, {"content": str},
        {"tool_calls": [piece, ...]}, {"finish_reason": str}, {"usage": dict}. Raises EndpointError.

        Closing the iterator closes the connection, which is how an answer is cancelled.
        """
        finished = False
        with self._request("POST", "chat/completions", body | STREAM) as response:
            for line in response.iter_lines():
                piece = line.removeprefix("data:").strip()
                if piece == line.strip():
                    continue  # a comment, or another field of server-sent events
                if piece == "[DONE]":
                    break
                for event in _events(piece):
                    finished |= "finish_reason" in event
                    yield event
        if not finished:
            raise EndpointError(f"{self.base_url} ended the answer before it was finished")

    @contextmanager
    def _request(self, method: str, path: str, body: dict | None = None) -> Iterator[httpx.Response]:
        """A response with status 200; all else, then or while it is read, is an EndpointError."""
        where = self.base_url
        data = None if body is None else json.dumps(body).encode()  # ASCII: a lone surrogate is theirs to judge
        try:
            with self.http.stream(method, f"{where}/{path}", content=data) as response:
                if response.status_code != 200:
                    raise _refusal(where, response)
                yield response
        except (httpx.ConnectTimeout, httpx.ConnectError) as error:
            raise EndpointError(f"cannot connect to {where} ({error}): is the server running?") from error
        except httpx.TimeoutException as error:
            raise EndpointError(f"{where} sent nothing for {self.timeout:g} seconds") from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise EndpointError(f"the connection to {where} broke ({error or type(error).__name__})") from error


def _events(data: str) -> Iterator[dict]:
    try:
        chunk = json.loads(data)
        if chunk.get("error"):
            raise EndpointError(f"the endpoint failed during the answer: {_message(chunk)}")
        for choice in chunk.get("choices") or []:
            delta = choice.get("delta") or {}
            found = {key: delta.get(key) for key in ("reasoning_content", "content", "tool_calls")}
            found["finish_reason"] = choice.get("finish_reason")
            yield from ({key: value} for key, value in found.items() if value)
        if chunk.get("usage"):
            yield {"usage": chunk["usage"]}
    except NOT_JSON as error:
        raise EndpointError(f"the endpoint sent something that is not a chat chunk: {data[:100]!r}") from error


def _refusal(where: str, response: httpx.Response) -> EndpointError:
    status = response.status_code
    try:
        message = _message(json.loads(response.read()))
    except NOT_JSON:
        message = response.reason_phrase
    hint = HINTS.get(status, "the endpoint's log says more" if status >= 500 else "")
    if wait := response.headers.get("retry-after"):
        hint += f"{'; ' if hint else ''}retry after {wait} seconds"
    return EndpointError(f"{where} answered {status}: {message}" + (f" ({hint})" if hint else ""), status)


def _message(body: object) -> str:
    error = body.get("error", body) if isinstance(body, dict) else body
    return str(error.get("message", error) if isinstance(error, dict) else error)[:500]
