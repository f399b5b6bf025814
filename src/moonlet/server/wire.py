"""The OpenAI chat-completions wire format: what a request may say and how an answer is spelled.

Source: OpenAI's published API (checked against the type models of openai-python), and the field `reasoning_content`
that Kimi's API added; top_k, min_p, repetition_penalty, stop_token_ids and structured_outputs are spelt as in vLLM,
`thinking` as in Anthropic's API. Nothing here knows the engine or HTTP, but for the names and bounds of its sampler.
Unknown fields are ignored, because every client sends some; `functions`, which tools replaced, is refused.
Leaves out images and audio.
"""

import json
import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field, ValidationError, field_validator, model_validator

from moonlet.engine.sampling import LONGEST_STOP, MOST_BIASES, MOST_STOPS, bounded

MOST_CHOICES, MOST_TOOLS = 8, 128
Number = Annotated[float | None, Field(allow_inf_nan=False)]
FLOATS = ("temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty")
SAMPLED = (*FLOATS, "top_k", "logit_bias", "seed", "stop", "stop_token_ids", "logprobs", "top_logprobs")


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


class Thinking(BaseModel):
    type: Literal["enabled", "disabled", "adaptive"] = "enabled"
    budget_tokens: int | None = Field(None, ge=0)


class JsonSchema(BaseModel):
    schema_: dict[str, Any] = Field(alias="schema")


class ResponseFormat(BaseModel):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _is_whole(self) -> "ResponseFormat":
        if self.type == "json_schema" and self.json_schema is None:
            raise ValueError("type 'json_schema' needs the field 'json_schema' with a 'schema'")
        return self


class StructuredOutputs(BaseModel):
    regex: str | None = None
    choice: list[str] | None = Field(None, min_length=1)
    json_: dict[str, Any] | None = Field(None, alias="json")

    @model_validator(mode="after")
    def _is_one(self) -> "StructuredOutputs":
        if sum(value is not None for value in (self.regex, self.choice, self.json_)) != 1:
            raise ValueError("give one of 'regex', 'choice' and 'json'")
        return self


class FunctionName(BaseModel):
    name: str


class NamedTool(BaseModel):
    type: Literal["function"]
    function: FunctionName


def _stops(value: Any) -> Any:
    return [value] if isinstance(value, str) and value else value or None


class ChatRequest(BaseModel):
    """Body of POST /v1/chat/completions."""

    model: str
    messages: list[Message] = Field(min_length=1)
    tools: list[Tool] | None = Field(None, max_length=MOST_TOOLS)
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    thinking: Thinking | None = None
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: Number = None
    top_p: Number = None
    top_k: int | None = None
    min_p: Number = None
    presence_penalty: Number = None
    frequency_penalty: Number = None
    repetition_penalty: Number = None
    logit_bias: dict[int, Annotated[float, Field(allow_inf_nan=False)]] | None = Field(None, max_length=MOST_BIASES)
    seed: int | None = None
    stop: Annotated[Annotated[list[str], Field(max_length=MOST_STOPS)] | None, BeforeValidator(_stops)] = None
    stop_token_ids: list[int] | None = Field(None, max_length=MOST_BIASES)
    logprobs: bool | None = None
    top_logprobs: int | None = None
    n: int | None = Field(None, ge=1, le=MOST_CHOICES)
    service_tier: str | None = None
    stream: bool | None = False
    stream_options: dict[str, Any] | None = None
    functions: list | None = Field(None, max_length=0)

    @field_validator(*FLOATS, "top_k", "seed", "top_logprobs")
    @classmethod
    def _in_bounds(cls, value: float | None, info: Any) -> float | None:
        return bounded(info.field_name, value)

    @model_validator(mode="after")
    def _fits_together(self) -> "ChatRequest":
        names = [tool.function.name for tool in self.tools or [] if tool.function is not None]
        if self.tool_choice == "required" and not names:
            raise ValueError("tool_choice='required' needs tools: send some, or leave it out")
        if isinstance(self.tool_choice, NamedTool) and self.tool_choice.function.name not in names:
            raise ValueError(f"tool_choice names {self.tool_choice.function.name[:64]!r}, which is not among the tools")
        if self.top_logprobs and not self.logprobs:
            raise ValueError(f"top_logprobs={self.top_logprobs} needs logprobs=true")
        if any(not 0 < len(text) <= LONGEST_STOP for text in self.stop or []):
            raise ValueError(f"stop: each string has 1 to {LONGEST_STOP} characters")
        return self

    def engine_arguments(self, context_length: int) -> dict:
        """Keyword arguments of the engine's `stream`. It ends at the context's end: more than that cannot be asked.

        Hosted tools (web_search and its kin), which agents send to everyone, run on somebody else's server: dropped.
        """
        offered = [] if self.tool_choice == "none" else self.tools or []
        choice = self.tool_choice.function.name if isinstance(self.tool_choice, NamedTool) else self.tool_choice
        out: dict[str, Any] = {
            "messages": [message.plain() for message in self.messages],
            "tools": [tool.model_dump(exclude_none=True) for tool in offered if tool.type == "function"] or None,
            "thinking": self.thinking is None or self.thinking.type != "disabled",
            "max_tokens": min(self.max_completion_tokens or self.max_tokens or context_length, context_length),
            "thinking_budget": None if self.thinking is None else self.thinking.budget_tokens,
            "priority": 1 if self.service_tier == "flex" else None,  # OpenAI's word for "later is fine"
            "tool_choice": None if choice in ("none", "auto") else choice,
            "structure": self.structure(),
        }
        out |= {name: getattr(self, name) for name in SAMPLED}
        return {name: value for name, value in out.items() if value is not None}

    def structure(self) -> dict[str, Any] | None:
        """What the content must be: {"json_schema"}, {"regex"} or {"choice"}."""
        if (given := self.structured_outputs) is not None:
            asked = {"json_schema": given.json_, "regex": given.regex, "choice": given.choice}
            return {name: value for name, value in asked.items() if value is not None}
        if self.response_format is None or self.response_format.type == "text":
            return None
        schema = self.response_format.json_schema
        return {"json_schema": {"type": "object"} if schema is None else schema.schema_}


def parse_request(body: bytes) -> ChatRequest:
    """Body to request. Raises ApiError 400 that names the field, its value where it is short, and the bound."""
    try:
        return ChatRequest.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        param, value = ".".join(str(part) for part in first["loc"]), first["input"]
        message = first["msg"].removeprefix("Value error, ")
        if param and not message.startswith(param):
            shown = f"={str(value)[:40]!r}" if isinstance(value, str | int | float) else ""
            message = f"{param}{shown}: {message}"
        raise ApiError(400, message, param=param or named(message)) from error


def named(message: str) -> str | None:
    """The field of a request that a complaint begins with."""
    name = re.split(r"[^a-z_]", message, maxsplit=1)[0]
    return name if name in ChatRequest.model_fields else None


def delta_of(event: dict, index: int) -> dict:
    """Engine event to message delta; `index`: how many tool calls the message has before this event."""
    if call := event.get("tool_call"):
        function = {"name": call["name"], "arguments": call["arguments"]}
        return {"tool_calls": [{"index": index, "id": call["id"], "type": "function", "function": function}]}
    return {key: event[key] for key in ("reasoning_content", "content") if event.get(key)}


def usage_of(ends: list[dict]) -> dict:
    """From the last events of all choices, which share one prompt."""
    prompt, completion = ends[0]["prompt_tokens"], sum(event["completion_tokens"] for event in ends)
    cached = {"cached_tokens": ends[0].get("cached_tokens", 0)}
    counts = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    return {**counts, "prompt_tokens_details": cached}


def logprobs_of(entries: list[dict]) -> dict | None:
    return {"content": entries, "refusal": None} if entries else None


def chunk(head: dict, index: int, delta: dict, finish_reason: str | None = None, logprobs: dict | None = None) -> dict:
    choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
    return head | {"object": "chat.completion.chunk", "choices": [choice]}


def choice(index: int, events: list[dict]) -> dict:
    """One choice of an answer without streaming, from all its events."""
    content, reasoning = ("".join(e.get(key, "") for e in events) for key in ("content", "reasoning_content"))
    calls = [call for event in events for call in delta_of(event, 0).get("tool_calls", [])]
    message: dict = {"role": "assistant", "content": content or (None if calls else "")}
    message |= {"reasoning_content": reasoning} if reasoning else {}
    message |= {"tool_calls": [{k: v for k, v in c.items() if k != "index"} for c in calls]} if calls else {}
    logprobs = logprobs_of([entry for event in events for entry in event.get("logprobs", [])])
    return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": events[-1]["finish_reason"]}


def completion(head: dict, answers: list[list[dict]]) -> dict:
    """The answer of a request without streaming, from the events of each of its choices."""
    choices = [choice(index, events) for index, events in enumerate(answers)]
    usage = usage_of([events[-1] for events in answers])
    return head | {"object": "chat.completion", "choices": choices, "usage": usage}


def sse(data: dict | str) -> bytes:
    """One server-sent event. JSON is ASCII with escapes, so that no line end of any kind can split it."""
    return b"data: " + (data if isinstance(data, str) else json.dumps(data)).encode() + b"\n\n"
