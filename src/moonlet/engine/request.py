"""One request to the scheduler, and what an engine allows: plain data for engine, scheduler and server. No torch."""

from __future__ import annotations

import queue
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from moonlet.engine.sampling import Grammar, Row, SamplingParams
from moonlet.engine.speculate import Drafter

if TYPE_CHECKING:
    from torch import Tensor

    from moonlet.engine.cache import Held
    from moonlet.engine.draft import Behind


@dataclass(frozen=True)
class Limits:
    """Of one engine. sequences: live at once; step_tokens: fed in a step; memory: bytes of cache, snapshots included;
    waiting: requests in line before new ones are refused; threads: of the decoder, 0 for all this process may use.
    snapshots: how their KDA states are kept, fp32 or bf16; with bf16 a text that goes on from one may differ."""

    sequences: int = 64
    step_tokens: int = 256
    memory: int = 1 << 30
    waiting: int = 1024
    threads: int = 0
    prefix_cache: bool = True
    snapshots: str = "fp32"
    speculate: bool = True


class Busy(Exception):
    """The line is full: the caller may come again later."""


@dataclass(frozen=True)
class Thinking:
    """A think channel's bound: after `budget` tokens, unless one of `ends` came, the tokens `close` are forced."""

    budget: int
    close: list[int]
    ends: frozenset[int]


@dataclass(eq=False)
class Request:
    """One sequence to continue. `out` gets lists of Picked, and last a finish reason (str) or an exception."""

    prompt: list[int]
    asked: SamplingParams
    seed: int
    stop: frozenset[int]
    thinking: Thinking | None = None
    priority: int = 0  # lower goes first
    grammar: Grammar | None = None
    out: queue.SimpleQueue = field(default_factory=queue.SimpleQueue)
    cancelled: bool = False
    cached_tokens: int | None = None  # of the prompt, not computed again; None: not yet begun
    # The scheduler's own. `tokens`: prompt and text; `known`: the same as an array, as they were put in line.
    arrival: int = 0
    tokens: list[int] = field(default_factory=list)
    known: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    held: Held | None = None
    cuts: list[int] = field(default_factory=list)  # lengths at which prefill stops for a snapshot; empty: it is done
    row: Row | None = None
    drafter: Drafter | None = None
    behind: Behind | None = None  # how far the draft model has come

    @property
    def order(self) -> tuple[int, int]:
        return self.priority, self.arrival

    @property
    def made(self) -> int:
        """Tokens after the prompt."""
        return len(self.tokens) - len(self.prompt)

    def to_stop(self, tokens: list[int]) -> list[int]:
        """As far as the first that ends the text."""
        return tokens[: next((n for n, token in enumerate(tokens, 1) if token in self.stop), len(tokens))]


@dataclass
class Work:
    """What one request feeds in a step. The last `drafts` of `tokens` are guesses, and `before` is the state row from
    before them (`guessed`: the draft model's); logits are wanted after the last `wanted` tokens. In a `burst` of
    so many tokens at most, what is drafted is the text itself, made natively."""

    tokens: list[int]
    wanted: int
    drafts: int = 0
    before: Tensor | None = None
    guessed: bool = False
    burst: int = 0
    features: Tensor | None = None  # [tokens, blocks, d], for the draft model
    raw: np.ndarray | None = None  # the logits [wanted, vocab] as the model gave them, for log-probs
