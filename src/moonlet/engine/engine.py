"""The engine as programs see it: messages in, a reply (whole or streamed) out.

One model, many callers: each `next()` of a stream advances its own sequence by one token when its turn comes, so
streams from several threads share the machine token by token. Closing a stream frees its cache. Left out: continuous
batching of streams (each sequence steps alone); rl and evals batch through `generate`.
"""

import random
import threading
import uuid
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from moonlet.chat.parse import StreamParser
from moonlet.chat.xtml import END, render
from moonlet.engine.generate import Decoder, Sampling, pick
from moonlet.engine.load import load
from moonlet.errors import InputError


@dataclass
class Reply:
    """One assistant turn. finish_reason: stop, length or tool_calls."""

    content: str = ""
    reasoning_content: str = ""
    tool_calls: list[dict[str, Any]] = field(default_factory=list)
    finish_reason: str = "stop"
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def message(self) -> dict[str, Any]:
        """The turn as a message to append to the conversation."""
        out: dict[str, Any] = {"role": "assistant", "content": self.content}
        out["reasoning_content"] = self.reasoning_content
        if self.tool_calls:
            out["tool_calls"] = self.tool_calls
        return out


class Turns:
    """A lock that is given in the order of asking, so that no stream waits while another takes two steps."""

    def __init__(self) -> None:
        self.guard = threading.Lock()
        self.waiting: deque[threading.Event] = deque()  # the first one has the lock

    def __enter__(self) -> None:
        mine = threading.Event()
        with self.guard:
            self.waiting.append(mine)
            if self.waiting[0] is mine:
                mine.set()
        try:
            mine.wait()
        except BaseException:  # Ctrl-C while waiting
            self.leave(mine)
            raise

    def __exit__(self, *_: object) -> None:
        self.leave(self.waiting[0])

    def leave(self, place: threading.Event) -> None:
        with self.guard:
            self.waiting.remove(place)
            if self.waiting:
                self.waiting[0].set()


class Engine:
    """A loaded model folder; `chat` and `stream` are its two verbs."""

    def __init__(self, folder: str | Path, threads: int = 1) -> None:
        self.model, tokenizer = load(folder)
        if tokenizer is None:
            raise InputError(f"{folder} has no tokenizer.json; add the tokenizer of the run to the model folder")
        self.tokenizer = tokenizer
        self.decoder = Decoder(self.model)
        path = Path(folder).resolve()
        self.name = path.parent.name if path.name == "model" else path.name  # runs/NAME/model is NAME
        self.context_length = self.model.config.max_position_embeddings
        self.stop = tokenizer.special[END]
        self.threads = threads
        self.turns = Turns()

    def stream(
        self,
        messages: Sequence[dict[str, Any]],
        tools: Sequence[dict[str, Any]] | None = None,
        *,
        max_tokens: int = 256,
        temperature: float = 1.0,
        top_p: float = 1.0,
        seed: int | None = None,
        thinking: bool = True,
    ) -> Iterator[dict[str, Any]]:
        """Yield {"reasoning_content"}, {"content"}, {"tool_call"} pieces, {} after a token that gave none, and last
        {"finish_reason", "prompt_tokens", "completion_tokens"}.

        InputError (before the first piece) for a prompt that leaves no room in the context.
        """
        segments = render(messages, tools, thinking=thinking, add_generation_prompt=True)
        prompt = self.tokenizer.encode_segments(segments)
        if len(prompt) + 1 > self.context_length:
            raise InputError(f"prompt has {len(prompt)} tokens, the context holds {self.context_length}; shorten it")
        sampling = Sampling(temperature, top_p, min(max_tokens, self.context_length - len(prompt)))
        return self._pieces(prompt, tools, sampling, random.getrandbits(63) if seed is None else seed, thinking)

    def _pieces(
        self, prompt: list[int], tools: Any, sampling: Sampling, seed: int, thinking: bool
    ) -> Iterator[dict[str, Any]]:
        parser, pieces = StreamParser(thinking, tools or []), self.tokenizer.stream()
        finish, made, called = "length", 0, False

        def events(found: list) -> Iterator[dict[str, Any]]:
            nonlocal called
            for kind, value in found:
                if kind == "tool_call":
                    called = True
                    value = {**value, "id": f"call_{uuid.uuid4().hex[:24]}"}
                yield {kind: value}

        for token in self._tokens(prompt, sampling, seed):
            made += 1
            if token == self.stop:
                finish = "stop"
            for text, special in pieces.push(token):
                yield from events(parser.feed(text, special))
            if finish == "stop":
                break
            yield {}  # markup only: the caller still gets its turn, and can close the stream
        for text, special in pieces.flush():
            yield from events(parser.feed(text, special))
        yield from events(parser.finish())
        if called and finish == "stop":
            finish = "tool_calls"
        yield {"finish_reason": finish, "prompt_tokens": len(prompt), "completion_tokens": made}

    def _tokens(self, prompt: list[int], sampling: Sampling, seed: int) -> Iterator[int]:
        """Tokens of one sequence, one a `next()`."""
        random_numbers = np.random.default_rng(seed)
        cache, queue = None, prompt
        for _ in range(sampling.max_tokens):
            with self.turns, torch.no_grad():
                torch.set_num_threads(self.threads)
                if cache is None:
                    cache, logits = self.decoder.prefill([prompt], min(sampling.max_tokens, 256))
                else:
                    logits = self.decoder.feed(cache, [0], [queue])
                token, _ = pick(logits, torch.tensor([random_numbers.random()]), sampling)
            queue = [int(token)]
            yield queue[0]

    def chat(self, messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]] | None = None, **how) -> Reply:
        """One whole turn; keyword arguments as `stream`."""
        reply = Reply()
        for piece in self.stream(messages, tools, **how):
            reply.reasoning_content += piece.get("reasoning_content", "")
            reply.content += piece.get("content", "")
            if "tool_call" in piece:
                call = piece["tool_call"]
                function = {"name": call["name"], "arguments": call["arguments"]}
                reply.tool_calls.append({"id": call["id"], "type": "function", "function": function})
            if "finish_reason" in piece:
                reply.finish_reason = piece["finish_reason"]
                reply.prompt_tokens, reply.completion_tokens = piece["prompt_tokens"], piece["completion_tokens"]
        return reply
