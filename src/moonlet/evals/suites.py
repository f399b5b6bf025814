"""The held-out suites of the tiny-world tasks: which items, how sampled, what is counted.

Items come from a fixed seed, so that every model, arm and condition answers the same ones. "seen" = wordings met in
training, "unseen" = wordings never met; numbers of two or more digits and names are held out in both.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from moonlet.data.tiny_world import World
from moonlet.data.tokenizer import Tokenizer
from moonlet.engine.generate import Sampling
from moonlet.evals.interval import mean_interval, wilson
from moonlet.model.model import Model
from moonlet.rl.rollout import Episode, GiveUp, run
from moonlet.tasks import abstain, arithmetic, lookup, receipts
from moonlet.tasks.base import Item
from moonlet.train.step import Stepper

ITEM_SEED = 20261124
TOKENS_PER_RECEIPT = 170


@dataclass
class Player:
    """A model that answers items, with the threads it may use."""

    model: Model
    tokenizer: Tokenizer
    world: World
    stepper: Stepper

    def play(
        self, items: list[Item], temperature: float, max_tokens: int = 320, give_up: GiveUp | None = None
    ) -> list[Episode]:
        sampling = Sampling(temperature, 1.0, max_tokens, max_turn=200)
        seeds = [ITEM_SEED + i for i in range(len(items))]
        stepper = self.stepper
        return run(self.model, self.tokenizer, items, seeds, sampling, stepper.pool, stepper.workers, give_up)


def draw(n: int, key: str, make: Callable[[random.Random], Item]) -> list[Item]:
    """n items of one suite and split; the same n first items whatever n is."""
    rng = random.Random(f"{ITEM_SEED} {key}")
    return [make(rng) for _ in range(n)]


def row(
    suite: str, split: str, condition: str, figures: tuple[float, float, float], n: int, unit: str = "accuracy"
) -> dict[str, Any]:
    score, low, high = figures
    head: dict[str, Any] = {"suite": suite, "split": split, "condition": condition, "n": n}
    return head | {"score": score, "low": low, "high": high, "unit": unit}


def share(suite: str, split: str, condition: str, hits: Sequence[bool]) -> dict[str, Any]:
    return row(suite, split, condition, wilson(sum(hits), len(hits)), len(hits))


def arithmetic_items(split: str, digits: tuple[int, int], n: int) -> list[Item]:
    return draw(n, f"arithmetic {split} {digits}", lambda rng: arithmetic.sample(rng, split, digits=digits))


def strategy_rows(player: Player, name: str, n: int) -> tuple[list[dict[str, Any]], list[Episode]]:
    """What RL changes, at temperature 1: accuracy, calls, needless calls, tokens a solved item, honesty."""
    big = player.play(arithmetic_items("seen", (1, 4), n), 1.0)
    small = player.play(arithmetic_items("train", (1, 1), n // 2), 1.0)  # facts it was taught: a call cannot help
    asked = player.play(abstain_items(player.world, "seen", n // 2), 1.0)
    honest = [1.0 if e.score.correct else 0.0 if e.score.abstained else -1.0 for e in asked]
    solved = [float(e.tokens) for e in big if e.score.correct]
    return [
        share("arithmetic", "seen", f"{name}, temperature 1", [e.score.correct for e in big]),
        share("calls", "seen", f"{name}, temperature 1", [e.score.calls > 0 for e in big]),
        share("needless calls", "taught one-digit sums", f"{name}, temperature 1", [e.score.calls > 0 for e in small]),
        share("one digit", "taught", f"{name}, temperature 1", [e.score.correct for e in small]),
        row("tokens a solved item", "seen", f"{name}, temperature 1", mean_interval(solved), len(solved), "tokens"),
        row("honesty", "seen", f"{name}, temperature 1", mean_interval(honest), len(honest), "net score"),
    ], big


def abstain_items(world: World, split: str, n: int, kind: str | None = None) -> list[Item]:
    return draw(n, f"abstain {split} {kind}", lambda rng: abstain.sample(rng, split, world=world, kind=kind))


def receipt_rows(player: Player, name: str, counts: dict[int, int]) -> tuple[list[dict[str, Any]], list[Episode]]:
    """Success by number of receipts; counts {N: items}. An episode ends at its first wrong sum."""
    rows, kept = [], []
    for amount, n in counts.items():
        items = draw(n, f"receipts {amount}", partial(receipts.sample, split="seen", n=(amount, amount)))
        episodes = player.play(items, 0.0, TOKENS_PER_RECEIPT * amount + 300, receipts.lost)
        rows.append(share("receipts", f"N={amount}", name, [e.score.correct for e in episodes]))
        kept += episodes[:1]
    return rows, kept


def skill_rows(player: Player, name: str, n: int) -> tuple[list[dict[str, Any]], list[Episode]]:
    """The final table of one model: arithmetic by wording, length and tool; look-ups; names nobody knows."""
    rows: list[dict[str, Any]] = []
    kept: list[Episode] = []
    for split in ("seen", "unseen"):
        items = arithmetic_items(split, (1, 4), n)
        for temperature, how in ((0.0, "greedy"), (1.0, "temperature 1")):
            episodes = player.play(items, temperature)
            rows.append(share("arithmetic", split, f"{name}, {how}", [e.score.correct for e in episodes]))
            kept += episodes[:2]
    without = [replace(item, tools=[]) for item in arithmetic_items("seen", (1, 4), n)]
    rows.append(
        share("arithmetic", "seen", f"{name}, tool taken away", [e.score.correct for e in player.play(without, 0.0)])
    )
    for digits in (5, 6, 7, 8):
        episodes = player.play(arithmetic_items("seen", (digits, digits), n // 5), 0.0)
        rows.append(share("arithmetic", f"{digits} digits", f"{name}, greedy", [e.score.correct for e in episodes]))
    for split in ("seen", "unseen"):
        items = draw(n // 2, f"lookup {split}", partial(lookup.sample, split=split, world=player.world))
        episodes = player.play(items, 0.0, 420)
        rows.append(share("lookup", split, f"{name}, greedy", [e.score.correct for e in episodes]))
        kept += episodes[:1]
    for kind in ("unknown_tool", "unknown_closed"):
        episodes = player.play(abstain_items(player.world, "seen", n // 2, kind), 0.0)
        rows.append(share("says it does not know", kind, f"{name}, greedy", [e.score.abstained for e in episodes]))
        rows.append(share("invents", kind, f"{name}, greedy", [e.score.invented for e in episodes]))
        kept += episodes[:1]
    episodes = player.play(abstain_items(player.world, "seen", n // 4, "known_closed"), 0.0)
    rows.append(share("knows", "known_closed", f"{name}, greedy", [e.score.correct for e in episodes]))
    return rows, kept
