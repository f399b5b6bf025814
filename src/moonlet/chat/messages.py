"""What every renderer needs of messages: their text, their calls, which result answers which call, and two spellings
of JSON. Bad messages raise InputError here, so that both formats refuse the same ones with the same words.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from moonlet.chat.types import Segment
from moonlet.errors import InputError

ROLES = ("system", "user", "assistant", "tool")
AnyMessage = Mapping[str, Any]  # a types.Message or a plain dict


def valid_unicode(text: str) -> str:
    """`text` with lone surrogates (JSON can spell them, UTF-8 cannot) replaced by U+FFFD."""
    return text if text.isascii() else text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def compact_json(value: Any, sort_keys: bool = False) -> str:
    """Compact JSON, unescaped. Raises ValueError for NaN and infinities, RecursionError for absurd nesting."""
    dumped = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False, sort_keys=sort_keys)
    return valid_unicode(dumped)


def argument_json(value: Any) -> str:
    """`compact_json` with a space after each comma and colon, as the published templates write call arguments."""
    return valid_unicode(json.dumps(value, ensure_ascii=False, allow_nan=False))


def plain(text: str, loss: bool = False) -> list[Segment]:
    """One segment of ordinary text; none where it is empty."""
    return [Segment(valid_unicode(text), False, loss)] if text else []


def content(message: AnyMessage, key: str = "content") -> str:
    """The text of a message: a string, or its text parts joined; "" for None."""
    value = message.get(key)
    if isinstance(value, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in value):
        value = "".join(str(part.get("text", "")) for part in value)
    if value is not None and not isinstance(value, str):
        raise InputError(f"{message.get('role')} message: {key} must be text or a list of text parts")
    return value or ""


def functions(message: AnyMessage) -> list[Mapping[str, Any]]:
    """The function (name, arguments) of each call of an assistant message."""
    found = [call.get("function") or {} for call in message.get("tool_calls") or []]
    if not all(isinstance(function.get("name"), str) for function in found):
        raise InputError("tool_calls: each needs function.name, a string")
    return found


def arguments(function: Mapping[str, Any]) -> dict[str, Any] | None:
    """The arguments of a call, JSON text or a dict, as a dict; None where they are not a strict JSON object."""
    raw = function.get("arguments") or {}
    try:
        parsed = json.loads(raw) if isinstance(raw, str) else raw
        argument_json(parsed)  # json.loads takes NaN, and 1e999 for infinity
    except (TypeError, ValueError, RecursionError):
        return None
    return parsed if isinstance(parsed, dict) else None


def runs(messages: Sequence[AnyMessage]) -> Iterator[list[AnyMessage]]:
    """The messages one by one, but consecutive tool messages together."""
    for role, group in groupby(messages, lambda message: message.get("role")):
        if role not in ROLES:
            raise InputError(f"message role {role!r}: use system, user, assistant or tool")
        run = list(group)
        yield from [run] if role == "tool" else ([message] for message in run)


def tool_results(previous: AnyMessage, results: Sequence[AnyMessage]) -> list[tuple[str, int, AnyMessage]]:
    """(tool name, position from 0 of the call it answers, result) of one run of tool messages, in the order given.

    By id if each tool_call_id names one call of `previous` and no two the same, else the first result answers the first
    call, and so on."""
    names = [function["name"] for function in functions(previous)]
    call_ids = [call.get("id") for call in previous.get("tool_calls") or []]
    ids = [result.get("tool_call_id") for result in results]
    if all(i and call_ids.count(i) == 1 and ids.count(i) == 1 for i in ids):
        positions = map(call_ids.index, ids)
        return [(names[position], position, result) for position, result in zip(positions, results)]
    found = []
    for position, result in enumerate(results):
        name = result.get("name") or (names[position] if position < len(names) else None)
        if name is None:
            raise InputError(
                f"tool message {position + 1}: give name, or a tool_call_id of the assistant message before it"
            )
        found.append((name, position, result))
    return found
