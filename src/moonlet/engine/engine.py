"""The engine as programs see it: messages in, a reply (whole or streamed) out.

Any number of threads may hold streams at once: all go through one scheduler, token by token in one batch. What has
piled up while a caller was busy comes as one piece. Closing a stream, or dropping it, frees its place within a step.
"""

import queue
import random
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moonlet.chat import XTML, format_of
from moonlet.chat.k2 import SECTION, THINK_END
from moonlet.chat.stream import Event, Parser
from moonlet.chat.xtml import CLOSE, OPEN, SEP
from moonlet.engine.draft import NativeDraft, load_draft
from moonlet.engine.generate import Decoder
from moonlet.engine.grammar import Grammars, Matcher
from moonlet.engine.request import Limits, Request, Thinking
from moonlet.engine.sampling import Picked, SamplingParams, StopStrings
from moonlet.engine.scheduler import Scheduler
from moonlet.engine.weights import opened
from moonlet.errors import InputError

TURN = 0.1  # seconds after which a stream that waits gives its caller a turn


@dataclass
class Reply:
    """One assistant turn. finish_reason: stop, length or tool_calls. cached_tokens: of the prompt, not computed again.
    logprobs (where asked for): an entry in OpenAI's form for every token of the turn, markup too."""

    content: str = ""
    reasoning_content: str = ""
    tool_calls: list[dict[str, Any]] = field(default_factory=list)
    finish_reason: str = "stop"
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    logprobs: list[dict[str, Any]] = field(default_factory=list)

    def message(self) -> dict[str, Any]:
        """The turn as a message to append to the conversation."""
        out: dict[str, Any] = {"role": "assistant", "content": self.content}
        out["reasoning_content"] = self.reasoning_content
        if self.tool_calls:
            out["tool_calls"] = self.tool_calls
        return out


class Engine:
    """A loaded model folder; `chat` and `stream` are its two verbs."""

    def __init__(
        self,
        folder: str | Path,
        limits: Limits | None = None,
        weights: str = "fp32",
        scratch: str | Path | None = None,
        draft: bool = True,
    ) -> None:
        """weights: see weights.py; inputs of 4- and 8-bit matrices are rounded to 8 bits. scratch: a folder for the
        experts, which then need not fit the memory. draft: guess with the folder's draft.safetensors, where there is
        one. InputError for what this folder or machine cannot."""
        self.model, tokenizer, packed = opened(Path(folder), weights, None if scratch is None else Path(scratch))
        if tokenizer is None:
            raise InputError(f"{folder} has no tokenizer.json; add the tokenizer of the run to the model folder")
        self.tokenizer = tokenizer
        found = load_draft(Path(folder), self.model) if draft and packed is not None else None
        native = None if found is None or packed is None else NativeDraft(found, self.model, packed)
        self.scheduler = Scheduler(Decoder(self.model, packed), limits or Limits(), native)
        path = Path(folder).resolve()
        self.name = path.parent.name if path.name == "model" else path.name  # runs/NAME/model is NAME
        self.context_length = self.scheduler.pool.context
        self.format = format_of(tokenizer.special)
        self.stop = tokenizer.special[self.format.end]
        self.grammars: Grammars | None = None

    def stream(
        self,
        messages: Sequence[dict[str, Any]],
        tools: Sequence[dict[str, Any]] | None = None,
        *,
        thinking: bool = True,
        tool_choice: str | None = None,
        structure: dict[str, Any] | None = None,
        priority: int = 0,
        **asked: Any,
    ) -> Iterator[dict[str, Any]]:
        """Yield {"reasoning_content"}, {"content"}, {"tool_call"}, {"logprobs"} pieces, {} where there is none yet, and
        last {"finish_reason", "prompt_tokens", "completion_tokens", "cached_tokens"}.

        tool_choice: "required" or the name of a tool, which must then be called; with either, and where a tool says
        `strict`, arguments hold to the tool's schema. structure: {"json_schema": ...}, {"regex": ...} or {"choice":
        [...]}, to which the content holds. `asked`: fields of SamplingParams; a stop string is looked for in the
        content alone. Requests of a lower `priority` go first. InputError (before the first piece) for a value out of
        bounds and for a prompt that leaves no room in the context; Busy when too many wait.
        """
        words: dict[str, Any] = {}
        if self.format is XTML:  # the one format that has words for these; the grammar holds in all
            words["tool_choice"] = tool_choice and "required"
            schema = (structure or {}).get("json_schema")
            words["response_format"] = schema and {"type": "json_schema", "json_schema": {"schema": schema}}
        segments = self.format.render(messages, tools, thinking=thinking, add_generation_prompt=True, **words)
        prompt = self.tokenizer.encode_segments(segments)
        room = self.context_length - len(prompt)
        if room < 1:
            raise InputError(f"prompt has {len(prompt)} tokens, the context holds {self.context_length}; shorten it")
        params = SamplingParams(**{**asked, "max_tokens": min(asked.get("max_tokens") or 256, room)})
        seed = random.getrandbits(63) if params.seed is None else params.seed % 2**64
        stop = frozenset([self.stop, *params.stop_token_ids])
        grammar = self.grammar(tools or [], thinking, tool_choice, structure)
        request = Request(prompt, params, seed, stop, self.thinking(params, thinking), priority, grammar)
        self.scheduler.submit(request)
        pieces = self._pieces(request, self.format.StreamParser(thinking, tools or []))
        next(pieces)  # a generator that has not begun does nothing when it is closed
        return pieces

    def grammar(
        self,
        tools: Sequence[dict[str, Any]],
        thinking: bool,
        tool_choice: str | None,
        structure: dict[str, Any] | None,
    ) -> Matcher | None:
        """The grammar of the turn, where something asks for one."""
        if tool_choice not in (None, "required"):
            tools = [tool for tool in tools if tool["function"]["name"] == tool_choice]
        if tool_choice is not None and not tools:
            raise InputError(f"tool_choice={tool_choice} is not among the tools: offer it, or leave tool_choice out")
        strict = any(tool["function"].get("strict") for tool in tools)
        if tool_choice is None and not structure and not strict:
            return None
        if self.grammars is None:
            self.grammars = Grammars(self.tokenizer, self.format)
        return self.grammars.turn(thinking, structure, tools, tool_choice is not None)

    def thinking(self, params: SamplingParams, thinking: bool) -> Thinking | None:
        """What a thinking budget means in this model's markup."""
        if params.thinking_budget is None or not thinking:
            return None
        special = self.tokenizer.special
        if self.format is XTML:
            close, ends = [special[CLOSE], *self.tokenizer.encode("think"), special[SEP]], (OPEN, CLOSE)
        elif THINK_END in special:
            close, ends = [special[THINK_END]], (THINK_END, SECTION)
        else:
            return None
        return Thinking(params.thinking_budget, close, frozenset(special[end] for end in ends))

    def _pieces(self, request: Request, parser: Parser) -> Iterator[dict[str, Any]]:
        pieces, stops = self.tokenizer.stream(), StopStrings(request.asked.stop)
        made, called, finish = 0, False, None
        try:
            yield {}
            while finish is None:
                out: list[dict[str, Any]] = []
                for one in arrived(request.out):
                    if isinstance(one, Exception):
                        raise one
                    if isinstance(one, str):
                        finish = one
                        events = [event for piece in pieces.flush() for event in parser.feed(*piece)] + parser.finish()
                    else:
                        made += 1
                        events = [event for piece in pieces.push(one.token) for event in parser.feed(*piece)]
                        if request.asked.logprobs:
                            out.append({"logprobs": [self.logprobs(one)]})
                    for event in events:
                        called |= event[0] == "tool_call"
                        out += cut(event, stops)
                    if stops.found:
                        finish = "stop"
                        break
                yield from merged(out) or [{}]
            if rest := stops.flush():
                yield {"content": rest}
        finally:
            self.scheduler.cancel(request)
        finish = "tool_calls" if called and finish == "stop" else finish
        usage = {"prompt_tokens": len(request.prompt), "completion_tokens": made}
        yield {"finish_reason": finish, **usage, "cached_tokens": request.cached_tokens or 0}

    def logprobs(self, picked: Picked) -> dict[str, Any]:
        """OpenAI's entry for one token."""

        def entry(number: int, logprob: float) -> dict[str, Any]:
            text, ranks = self.tokenizer.decode([number]), self.tokenizer.ranks
            raw = ranks[number] if number < len(ranks) else text.encode()
            return {"token": text, "logprob": max(logprob, -9999.0), "bytes": list(raw)}

        return entry(picked.token, picked.logprob) | {"top_logprobs": [entry(*other) for other in picked.top]}

    def chat(self, messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]] | None = None, **how) -> Reply:
        """One whole turn; keyword arguments as `stream`."""
        reply = Reply()
        for piece in self.stream(messages, tools, **how):
            reply.reasoning_content += piece.get("reasoning_content", "")
            reply.content += piece.get("content", "")
            reply.logprobs += piece.get("logprobs", [])
            if "tool_call" in piece:
                call = piece["tool_call"]
                function = {"name": call["name"], "arguments": call["arguments"]}
                reply.tool_calls.append({"id": call["id"], "type": "function", "function": function})
            if "finish_reason" in piece:
                for name, value in piece.items():
                    setattr(reply, name, value)
        return reply


def arrived(out: queue.SimpleQueue) -> Iterator[Picked | str | Exception]:
    """What the scheduler has handed out by now; nothing after TURN seconds without any."""
    try:
        one = out.get(timeout=TURN)
        while True:
            yield from one if isinstance(one, list) else [one]
            one = out.get_nowait()
    except queue.Empty:
        return


def cut(event: Event, stops: StopStrings) -> list[dict[str, Any]]:
    """An event of the parser as pieces, content only as far as no stop string can be in it."""
    kind, value = event
    if stops.found:
        return []
    if kind == "content":
        return [{kind: text}] if (text := stops.feed(value)) else []
    if kind == "tool_call":
        rest = stops.flush()
        return [{"content": rest}] * bool(rest) + [{kind: {**value, "id": f"call_{uuid.uuid4().hex[:24]}"}}]
    return [{kind: value}]


def merged(pieces: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Neighbours of one kind as one piece; log-probs, which belong to no kind of text, ahead."""
    entries = [entry for piece in pieces for entry in piece.get("logprobs", [])]
    out: list[dict[str, Any]] = [{"logprobs": entries}] if entries else []
    for piece in pieces:
        (kind,) = piece
        if kind == "logprobs":
            continue
        if out and kind != "tool_call" and kind in out[-1]:
            out[-1] = {kind: out[-1][kind] + piece[kind]}
        else:
            out.append(piece)
    return out
