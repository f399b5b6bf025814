"""The RL loop: sample K answers a prompt, score them, one gradient step, again. Resumes bit for bit.

Step s draws its items and its sampling seeds from (seed, s) alone, so the state is the step, as in pretraining. The
mix of tasks is fixed; groups whose rewards are all equal teach nothing and are dropped (their share is logged). The
prompts' two halves give two gradients, and the step is as long as these agree (`train.step.signal_share`): rewards that
say nothing move nothing. The call bonus fades to zero over the first half. Rollouts and gradients use the same
4-bit-rounded experts. Left out: partial rollouts and stale data; every update is on fresh samples.
"""

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from moonlet.data.tiny_world import World
from moonlet.data.tokenizer import Tokenizer
from moonlet.engine.generate import Sampling
from moonlet.model.model import Model
from moonlet.optim.muon import MuonAdamW
from moonlet.optim.schedule import cosine
from moonlet.rl.objective import advantages, policy_objective
from moonlet.rl.rollout import Episode, run
from moonlet.tasks import abstain, arithmetic, lookup, receipts
from moonlet.tasks.base import Item
from moonlet.tasks.rewards import rewards
from moonlet.tracker import Run
from moonlet.train import checkpoint
from moonlet.train.flops import forward_flops, training_flops
from moonlet.train.loop import Progress, mean_context
from moonlet.train.step import Stepper


@dataclass
class RLConfig:
    """One RL stage, as [rl] of the recipe. low, high: log-ratio bounds; tau: weight of the squared log-ratio; clip_tau:
    QK-Clip; random_reward: coin flips in place of scores, the control arm."""

    steps: int
    save_every: int
    prompts: int
    samples: int
    seed: int
    max_tokens: int
    call_bonus: float
    length_penalty: float
    needless_cost: float
    low: float
    high: float
    tau: float
    clip_tau: float
    random_reward: bool = False


def draw_item(rng: random.Random, world: World) -> Item:
    """One training item: of everything that must still be there afterwards, large sums most."""
    kind = rng.random()
    if kind < 0.4:
        return arithmetic.sample(rng, "train", digits=(2, 4))
    if kind < 0.55:
        return arithmetic.sample(rng, "train", digits=(1, 1))
    if kind < 0.63:
        return lookup.sample(rng, "train", world=world)
    if kind < 0.80:
        return receipts.sample(rng, "train", n=(1, 2))
    return abstain.sample(rng, "train", world=world)


def to_batch(pairs: list[tuple[Episode, float]]) -> dict[str, torch.Tensor]:
    """Episodes with their advantages -> right-padded rows: tokens, segments, loss (1 where the model chose), advantage,
    logprob."""
    longest = max(len(e.rollout.prompt) + len(e.rollout.ids) for e, _ in pairs)
    rows: dict[str, list[Sequence[float]]] = {k: [] for k in ("tokens", "segments", "loss", "advantage", "logprob")}
    for episode, gain in pairs:
        r = episode.rollout
        before, after = len(r.prompt), longest - len(r.prompt) - len(r.ids)
        rows["tokens"].append([*r.prompt, *r.ids, *[0] * after])
        rows["segments"].append([1] * (longest - after) + [0] * after)
        rows["loss"].append([0] * before + r.sampled + [0] * after)
        rows["advantage"].append([0.0] * before + [gain] * len(r.ids) + [0.0] * after)
        rows["logprob"].append([0.0] * before + r.logprobs + [0.0] * after)
    integers = ("tokens", "segments", "loss")
    return {k: torch.tensor(v, dtype=torch.long if k in integers else torch.float32) for k, v in rows.items()}


def reward_groups(groups: list[list[Episode]], config: RLConfig, bonus: float, rng: random.Random) -> list[list[float]]:
    if config.random_reward:
        return [[float(rng.random() < 0.5) for _ in group] for group in groups]
    weights = {"length_penalty": config.length_penalty, "needless_cost": config.needless_cost}
    return [rewards([e.score for e in g], [e.tokens for e in g], call_bonus=bonus, **weights) for g in groups]


def train_rl(
    model: Model,
    tokenizer: Tokenizer,
    world: World,
    optimizer: MuonAdamW,
    config: RLConfig,
    folder: Path,
    tracker: Run,
    stepper: Stepper,
    progress: Progress = lambda step, steps, log: None,
    draw: Callable[[random.Random, World], Item] = draw_item,
) -> dict[str, Any]:
    """Run (or resume) the stage in `folder`; returns totals {seconds, tokens, flops, skipped}."""
    totals = {"seconds": 0.0, "tokens": 0, "flops": 0.0, "skipped": 0}
    start = 0
    saved = checkpoint.load_newest(folder, model, optimizer)
    if saved is not None:
        start, totals = saved["step"], saved["totals"]
    objective = policy_objective(config.low, config.high, config.tau)
    for step in range(start, config.steps):
        began = time.perf_counter()
        rng = random.Random(f"rl {config.seed} {step}")
        items = [draw(rng, world) for _ in range(config.prompts)]
        repeated = [item for item in items for _ in range(config.samples)]
        seeds = [rng.getrandbits(48) for _ in repeated]
        episodes = run(
            model, tokenizer, repeated, seeds, Sampling(max_tokens=config.max_tokens), stepper.pool, stepper.workers
        )
        rolled = time.perf_counter() - began
        groups = [episodes[i : i + config.samples] for i in range(0, len(episodes), config.samples)]
        bonus = config.call_bonus * max(0.0, 1 - 2 * step / config.steps)
        scored = reward_groups(groups, config, bonus, rng)
        telling = [[*zip(group, advantages(r))] for group, r in zip(groups, scored) if max(r) > min(r)]
        log = {
            "reward": mean(r for group in scored for r in group),
            "correct": mean(e.score.correct for e in episodes),
            "calls": mean(e.score.calls > 0 for e in episodes),
            "tokens_per_answer": mean(e.tokens for e in episodes),
            "truncated": mean(e.rollout.finish != "stop" for e in episodes),
            "flat_groups": mean(max(r) == min(r) for r in scored),
        }
        made = sum(len(e.rollout.prompt) + len(e.rollout.ids) for e in episodes)
        totals["flops"] += made * sum(forward_flops(model.config, 100.0).values())
        if len(telling) > 1:
            halves = [to_batch([pair for group in telling[half::2] for pair in group]) for half in (0, 1)]
            scale = cosine(step, config.steps, 5 / config.steps)
            figures = stepper.step(
                model, optimizer, halves[0], scale, config.clip_tau, balance=False, objective=objective, other=halves[1]
            )
            sampled = sum(float(batch["loss"].sum()) for batch in halves)
            for key in ("masked", "mismatch_kl", "surprise"):
                figures[key] /= sampled
            totals["skipped"] += int(figures["skipped"])
            for batch in halves:
                real, targets = int((batch["segments"] > 0).sum()), float(batch["loss"].sum())
                made += real
                totals["flops"] += training_flops(model.config, real, mean_context(batch["segments"]), targets / real)
            log |= figures
        seconds = time.perf_counter() - began
        totals["seconds"] += seconds
        totals["tokens"] += made
        log |= {"tokens_per_second": made / seconds, "rollout_seconds": rolled, "update_seconds": seconds - rolled}
        tracker.log({f"rl/{k}": v for k, v in log.items()}, step=step)
        done = step + 1
        if done % config.save_every == 0 or done == config.steps:
            checkpoint.save(folder, done, model, optimizer, {"totals": totals})
        progress(done, config.steps, log)
    return totals
