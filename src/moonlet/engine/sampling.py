"""What a request may ask of the sampler, and the sampler: logits of many rows in, one token each out. numpy only.

Order: logit bias, penalties and the grammar's mask act on the logits; then temperature, top-k, top-p of what top-k
left, min-p. The token is where one uniform number falls in the cumulated mass, and a row's numbers come from its own
seed, one a token: the same seed gives the same text alone, in a batch, after a preemption and with speculation.
Log-probs are those of the model: before temperature, penalties and masks. Left out: beams.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from moonlet.errors import InputError

# Names and bounds are OpenAI's; top_k, min_p, repetition_penalty and stop_token_ids are spelt as other servers do.
BOUNDS: dict[str, tuple[float, float]] = {
    "temperature": (0, 2),
    "top_p": (0, 1),
    "top_k": (-1, 2**31 - 1),
    "min_p": (0, 1),
    "presence_penalty": (-2, 2),
    "frequency_penalty": (-2, 2),
    "repetition_penalty": (0.01, 100),
    "top_logprobs": (0, 20),
    "max_tokens": (1, math.inf),
    "thinking_budget": (0, math.inf),
    "seed": (-(2**63), 2**63 - 1),
}
MOST_STOPS, LONGEST_STOP, MOST_BIASES, BIAS = 4, 256, 1024, 100.0
BLOCK = 64  # of tokens, where the sampler sums


def bounded(name: str, value: float | None) -> float | None:
    """`value` if it lies in its bounds (None: not given). InputError says the bound."""
    low, high = BOUNDS[name]
    if value is not None and not low <= value <= high:
        raise InputError(f"{name}={value} is outside {low} to {high}: send a value inside, or leave it out")
    return value


@dataclass(frozen=True)
class SamplingParams:
    """temperature 0: greedy. top_p 1, top_k 0 or -1, min_p 0: off. stop: strings that end the answer and are not part
    of it; stop_token_ids: ids that do. logprobs: give each token's log-prob and those of the `top_logprobs` likeliest.
    thinking_budget: tokens after which an unfinished think channel is closed. InputError for a value out of bounds."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    max_tokens: int = 256
    stop: Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    logprobs: bool = False
    top_logprobs: int = 0
    thinking_budget: int | None = None

    def __post_init__(self) -> None:
        for name in BOUNDS:
            bounded(name, getattr(self, name))
        if len(self.stop) > MOST_STOPS or not all(0 < len(text) <= LONGEST_STOP for text in self.stop):
            longest = max(map(len, self.stop))
            raise InputError(
                f"stop has {len(self.stop)} strings of up to {longest} characters: give at most {MOST_STOPS} of 1 to "
                f"{LONGEST_STOP} characters"
            )
        if len(self.stop_token_ids) > MOST_BIASES:
            raise InputError(f"stop_token_ids has {len(self.stop_token_ids)} ids: give at most {MOST_BIASES}")
        if len(self.logit_bias) > MOST_BIASES or not all(abs(bias) <= BIAS for bias in self.logit_bias.values()):
            raise InputError(
                f"logit_bias has {len(self.logit_bias)} entries: at most {MOST_BIASES} of {-BIAS} to {BIAS}"
            )

    def check_ids(self, vocab_size: int) -> None:
        """InputError for a token id that the model does not have."""
        for name, ids in (("logit_bias", self.logit_bias), ("stop_token_ids", self.stop_token_ids)):
            for number in ids:
                if not 0 <= number < vocab_size:
                    raise InputError(f"{name} names the token {number}: ids are 0 to {vocab_size - 1}")


@dataclass
class Picked:
    """One token as it was chosen; `top`: the likeliest ids and their log-probs. Log-probs only where asked for."""

    token: int
    logprob: float = 0.0
    top: list[tuple[int, float]] = field(default_factory=list)


class Grammar(Protocol):
    """What grammar.py gives: which tokens may come next."""

    def prepare(self) -> None: ...
    def mask(self, logits: np.ndarray) -> None: ...
    def take(self, token: int) -> None: ...


class Row:
    """The sampler's side of one request: its random numbers, what it counts, its grammar."""

    def __init__(
        self,
        asked: SamplingParams,
        seed: int,
        prompt: Sequence[int],
        vocab_size: int,
        grammar: Grammar | None = None,
    ) -> None:
        self.asked, self.grammar = asked, grammar
        self.random = np.random.default_rng(seed)
        self.ahead: list[float] = []  # uniform numbers drawn but not used
        self.counts, self.seen = np.zeros(0, dtype=np.float32), np.zeros(0, dtype=bool)
        if asked.presence_penalty or asked.frequency_penalty or asked.repetition_penalty != 1:
            self.counts, self.seen = np.zeros(vocab_size, dtype=np.float32), np.zeros(vocab_size, dtype=bool)
            self.seen[np.asarray(prompt)] = True
        self.bias = np.array([*asked.logit_bias.items()]).reshape(-1, 2)
        self.plain = not (len(self.counts) or len(self.bias) or grammar)

    def uniforms(self, n: int) -> list[float]:
        """The next n numbers, not yet used."""
        if len(self.ahead) < n:
            self.ahead += self.random.random(max(32, n)).tolist()
        return self.ahead[:n]

    def take(self, token: int) -> None:
        """`token` is the next one, sampled or forced: its number is used, its occurrence counted."""
        self.uniforms(1)
        del self.ahead[0]
        self.count(token)

    def count(self, token: int) -> None:
        """What the tokens that follow depend on, but for the random numbers."""
        if len(self.counts):
            self.counts[token] += 1
            self.seen[token] = True
        if self.grammar is not None:
            self.grammar.take(token)

    def adjust(self, logits: np.ndarray) -> None:
        """Bias, penalties and grammar, in place, on logits [vocab]. Repetition divides or (below 0) multiplies."""
        if len(self.bias):
            logits[self.bias[:, 0].astype(int)] += self.bias[:, 1].astype(np.float32)
        if len(self.counts):
            asked, seen = self.asked, self.seen
            if asked.repetition_penalty != 1:
                held = logits[seen]
                logits[seen] = np.where(held > 0, held / asked.repetition_penalty, held * asked.repetition_penalty)
            logits -= asked.frequency_penalty * self.counts + asked.presence_penalty * (self.counts > 0)
        if self.grammar is not None:
            self.grammar.mask(logits)


def describe(logits: np.ndarray, token: int, top: int) -> Picked:
    """`token` with its log-prob and those of the `top` likeliest. logits [vocab], as the model gave them."""
    logits = logits.astype(np.float64)
    highest = logits.max()
    logprobs = logits - highest - np.log(np.exp(logits - highest).sum())
    best = np.argsort(-logprobs, kind="stable")[:top].tolist()
    return Picked(token, float(logprobs[token]), [(i, float(logprobs[i])) for i in best])


def choose(logits: np.ndarray, asked: Sequence[SamplingParams], uniforms: Sequence[float]) -> list[int]:
    """A token for each row of logits [n, vocab] (adjusted ones), by its own settings and uniform number; -1 for a row
    whose largest logit is not finite, as a broken model gives."""
    best = logits.argmax(-1)
    highest = logits[np.arange(len(logits)), best]
    warm = np.array([i for i, a in enumerate(asked) if a.temperature > 0], dtype=int)
    if len(warm):
        n, vocab = len(warm), logits.shape[1]
        blocks = -(-vocab // BLOCK)
        p = np.zeros((n, blocks * BLOCK), dtype=np.float32)
        scaled = p[:, :vocab]
        np.subtract(logits[warm], highest[warm, None], out=scaled)
        scaled /= np.array([asked[i].temperature for i in warm], dtype=np.float32)[:, None]
        np.exp(scaled, out=scaled)
        for row, i in zip(scaled, warm.tolist()):
            if trims(asked[i]):
                trim(row, asked[i])
        # The place in the cumulated mass, by blocks and then inside one: few sums are running ones.
        p = p.reshape(n, blocks, BLOCK)
        mass = p.sum(-1, dtype=np.float64).cumsum(-1)
        total = mass[:, -1]
        at = np.minimum(np.asarray(uniforms)[warm] * total, np.nextafter(total, 0))
        block, rows = (mass > at[:, None]).argmax(-1), np.arange(n)
        inside = p[rows, block].cumsum(-1, dtype=np.float64)
        before = np.where(block > 0, mass[rows, block - 1], 0.0)
        at = np.minimum(at - before, np.nextafter(inside[:, -1], 0))
        best[warm] = block * BLOCK + (inside > at[:, None]).argmax(-1)  # the first above it, which has mass of its own
    return np.where(np.isfinite(highest), best, -1).tolist()


def trims(asked: SamplingParams) -> bool:
    return asked.top_k > 0 or asked.top_p < 1 or asked.min_p > 0


def trim(p: np.ndarray, asked: SamplingParams) -> None:
    """Zero, in place, what top-k, top-p and min-p drop of a row of masses p [vocab]; equals keep id order."""
    order = np.argsort(-p, kind="stable")
    if 0 < asked.top_k < len(order):
        order = order[: asked.top_k]
    ordered = p[order].astype(np.float64)
    if asked.top_p < 1:
        before = ordered.cumsum() - ordered
        n = max(1, int((before < asked.top_p * ordered.sum()).sum()))
        order, ordered = order[:n], ordered[:n]
    kept = order[ordered >= asked.min_p * ordered[0]]
    values = p[kept]
    p[:] = 0
    p[kept] = values


class StopStrings:
    """Cuts a text that comes in chunks before the first stop string, whichever way it is split."""

    def __init__(self, stops: Sequence[str]) -> None:
        self.stops, self.held, self.found = stops, "", False

    def feed(self, text: str) -> str:
        """What can be given out now: an end that may grow into a stop string is held back."""
        if self.found or not self.stops:
            return "" if self.found else text
        text = self.held + text
        ends = [(at + len(stop), at) for stop in self.stops if (at := text.find(stop)) >= 0]
        if ends:  # what is whole first counts, as it would token by token
            self.found, self.held = True, ""
            return text[: min(ends)[1]]
        longest = max(map(len, self.stops)) - 1
        starts = range(max(0, len(text) - longest), len(text))
        at = next((i for i in starts if any(stop.startswith(text[i:]) for stop in self.stops)), len(text))
        self.held = text[at:]
        return text[:at]

    def flush(self) -> str:
        """The end of the text: what was held back is given out."""
        held, self.held = self.held, ""
        return held
