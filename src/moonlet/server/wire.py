"""The OpenAI chat-completions wire format: what a request may say and how an answer is spelled.

Source: OpenAI's published API (checked against the type models of openai-python), and the field `reasoning_content`
that Kimi's API added. Nothing here knows the engine or HTTP. Unknown fields are ignored, because every client sends
some; fields that would change the answer and are not supported (`NEUTRAL`) are refused unless they ask for nothing.
Leaves out images, log-probabilities, several choices, structured output and stop strings.
"""

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field, ValidationError, model_validator

NEUTRAL: dict[str, tuple] = {
    "n": (None, 1),
    "tool_choice": (None, "none", "auto"),
    "functions": (None, []),
    "stop": (None, "", []),
}
NEUTRAL |= {"response_format": (None, {"type": "text"}), "logprobs": (None, False), "logit_bias": (None, {})}
NEUTRAL |= {"frequency_penalty": (None, 0), "presence_penalty": (None, 0)}


class ApiError(Exception):
    """A refused or failed request: HTTP `status` and the body that OpenAI's clients understand."""

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None):
        super().__init__(message)
        kind = "invalid_request_error" if status < 500 else "server_error"
        self.status, self.body = status, {"error": {"message": message, "type": kind, "param": param, "code": code}}


def _flatten(content: Any) -> Any:
    """Content parts to one string; a part that is not text is an error, never dropped."""
    if not isinstance(content, list):
        return content
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else part
        if kind != "text" or not isinstance(part.get("text"), str):
            raise ValueError(f"content part {str(kind)[:40]!r} is not supported: send parts of type 'text'")
    return "".join(part["text"] for part in content)


class FunctionCall(BaseModel):
    name: str
    arguments: str


class ToolCall(BaseModel):
    id: str
    type: Literal["function"] = "function"
    function: FunctionCall


class Message(BaseModel):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[str | None, BeforeValidator(_flatten)] = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    name: str | None = None

    @model_validator(mode="after")
    def _fits_role(self) -> "Message":
        if self.content is None and self.role != "assistant":
            raise ValueError(f"a {self.role} message needs content")
        if self.tool_calls and self.role != "assistant":
            raise ValueError(f"tool_calls belong to assistant messages, not to {self.role}")
        if self.role == "tool" and not self.tool_call_id:
            raise ValueError("a tool message needs the tool_call_id that it answers")
        return self

    def plain(self) -> dict:
        """The engine's message dict: no nulls, content is a string; developer is the newer word for system."""
        message = self.model_dump(exclude_none=True, exclude=None if self.tool_calls else {"tool_calls"})
        return message | {"role": self.role.replace("developer", "system"), "content": self.content or ""}


class Function(BaseModel):
    name: str = Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")
    description: str | None = None
    parameters: dict[str, Any] | None = None


class Tool(BaseModel):
    type: str
    function: Function | None = None

    @model_validator(mode="after")
    def _is_whole(self) -> "Tool":
        if self.type == "function" and self.function is None:
            raise ValueError("a tool of type 'function' needs the field 'function'")
        json.dumps(self.model_dump(), allow_nan=False)  # ValueError for NaN and 1e999, which no prompt can spell
        return self


class ChatRequest(BaseModel):
    """Body of POST /v1/chat/completions."""

    model: str
    messages: list[Message] = Field(min_length=1)
    tools: list[Tool] | None = None
    tool_choice: Any = None
    thinking: dict[str, Any] | None = None
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2, allow_inf_nan=False)
    top_p: float | None = Field(None, gt=0, le=1, allow_inf_nan=False)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stream: bool | None = False
    stream_options: dict[str, Any] | None = None

    def engine_arguments(self, context_length: int) -> dict:
        """Keyword arguments of the engine's `stream`. It ends at the context's end: more than that cannot be asked.

        Hosted tools (web_search and its kin), which agents send to everyone, run on somebody else's server: dropped.
        """
        offered = [] if self.tool_choice == "none" else self.tools or []
        tools = [tool.model_dump(exclude_none=True) for tool in offered if tool.type == "function"]
        return {
            "messages": [message.plain() for message in self.messages],
            "tools": tools or None,
            "max_tokens": min(self.max_completion_tokens or self.max_tokens or context_length, context_length),
            "temperature": 1.0 if self.temperature is None else self.temperature,
            "top_p": 1.0 if self.top_p is None else self.top_p,
            "seed": self.seed,
            "thinking": (self.thinking or {}).get("type") != "disabled",
        }


def parse_request(body: bytes) -> ChatRequest:
    """Body to request. Raises ApiError 400 that names the field."""
    try:
        request, fields = ChatRequest.model_validate_json(body), json.loads(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        param = ".".join(str(part) for part in first["loc"]) or None
        message = first["msg"].removeprefix("Value error, ")
        raise ApiError(400, f"{param}: {message}" if param else message, param=param) from error
    for name, neutral in NEUTRAL.items():
        if fields.get(name) not in neutral:
            supported = ", ".join(json.dumps(value) for value in neutral[1:])
            message = f"{name}={json.dumps(fields[name])[:80]} is not supported: leave it out or send {supported}"
            raise ApiError(400, message, param=name, code="unsupported_value")
    return request


def delta_of(event: dict, index: int) -> dict:
    """Engine event to message delta; `index`: how many tool calls the message has before this event."""
    if call := event.get("tool_call"):
        function = {"name": call["name"], "arguments": call["arguments"]}
        return {"tool_calls": [{"index": index, "id": call["id"], "type": "function", "function": function}]}
    return {key: event[key] for key in ("reasoning_content", "content") if event.get(key)}


def usage_of(last: dict) -> dict:
    prompt, completion = last["prompt_tokens"], last["completion_tokens"]
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def chunk(head: dict, delta: dict, finish_reason: str | None = None) -> dict:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
    return head | {"object": "chat.completion.chunk", "choices": [choice]}


def completion(head: dict, deltas: list[dict], last: dict) -> dict:
    """The answer of a request without streaming: the deltas joined, and the engine's `last` event."""
    content, reasoning = ("".join(d.get(key, "") for d in deltas) for key in ("content", "reasoning_content"))
    calls = [{k: v for k, v in c.items() if k != "index"} for d in deltas for c in d.get("tool_calls", [])]
    message: dict = {"role": "assistant", "content": content or (None if calls else "")}
    message |= {"reasoning_content": reasoning} if reasoning else {}
    message |= {"tool_calls": calls} if calls else {}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": last["finish_reason"]}
    return head | {"object": "chat.completion", "choices": [choice], "usage": usage_of(last)}


def sse(data: dict | str) -> bytes:
    """One server-sent event. JSON is ASCII with escapes, so that no line end of any kind can split it."""
    return b"data: " + (data if isinstance(data, str) else json.dumps(data)).encode() + b"\n\n"
