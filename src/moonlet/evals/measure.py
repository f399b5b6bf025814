"""Gates of the stages and the final measurement of a run; `moonlet eval` for any model folder.

A gate compares the point estimate with the recipe's bound and prints the interval beside it. `everything` measures the
model as it is served (loaded from `model/`), the same weights before rounding, and the SFT checkpoint that RL began at.
"""

import json
import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from moonlet.data.tiny_world import World
from moonlet.engine.load import load
from moonlet.errors import InputError, nearest
from moonlet.evals import suites
from moonlet.evals.bits import bits_per_byte
from moonlet.evals.interval import mean_interval, wilson
from moonlet.evals.suites import Player, row
from moonlet.model.model import Model
from moonlet.recipe import Recipe
from moonlet.rl.rollout import Episode
from moonlet.train.step import Stepper

RECEIPTS = {2: 100, 5: 100, 10: 100, 30: 20, 100: 16}
FINAL = "4-bit model after RL"


def tool_skill_gate(player: Player, n: int, bound: float) -> tuple[bool, str]:
    """SFT: of the sums the model chose to give to the calculator (temperature 1), how many came out right."""
    episodes = player.play(suites.arithmetic_items("seen", (2, 4), n), 1.0)
    called = [e.score.correct for e in episodes if e.score.calls]
    score, low, high = wilson(sum(called), len(called))
    shown = f"{score:.2f} of the sums given to the tool right [{low:.2f}, {high:.2f}]"
    return score >= bound, f"{shown}, n={len(called)}, gate >= {bound:g}"


def accuracy_gate(player: Player, n: int, bound: float) -> tuple[bool, str]:
    """RL: accuracy on held-out sums at temperature 1, the choice to call included."""
    episodes = player.play(suites.arithmetic_items("seen", (1, 4), n), 1.0)
    score, low, high = wilson(sum(e.score.correct for e in episodes), n)
    return score >= bound, f"{score:.2f} of held-out sums right [{low:.2f}, {high:.2f}], n={n}, gate >= {bound:g}"


def final_gate(rows: list[dict[str, Any]], bound: float) -> tuple[bool, str]:
    """The served model: greedy accuracy on wordings never seen."""
    r = find(rows, "arithmetic", "unseen", f"{FINAL}, greedy")
    text = f"{r['score']:.2f} of sums in unseen wordings right [{r['low']:.2f}, {r['high']:.2f}], n={r['n']}"
    return r["score"] >= bound, f"{text}, gate >= {bound:g}"


def find(rows: list[dict[str, Any]], suite: str, split: str, condition: str) -> dict[str, Any]:
    return next(r for r in rows if (r["suite"], r["split"], r["condition"]) == (suite, split, condition))


@dataclass
class Subject:
    """A run to measure: its folder and recipe, its models by stage (quantised or not), and who plays them."""

    recipe: Recipe
    folder: Path
    model: Callable[[str, bool], Model]
    player: Callable[[Model], Player]
    progress: Callable[[int, int, dict[str, float]], None]


def everything(c: Subject) -> dict[str, Any]:
    """rows, samples and expert load of results.json; the report stage adds stages, machine and totals."""
    n, steps = c.recipe.eval.items, 6
    served, tokenizer = load(c.folder / "model")
    assert tokenizer is not None
    player = c.player(served)
    rows, kept = suites.skill_rows(player, FINAL, n)
    c.progress(1, steps, {})
    counts = {k: v for k, v in RECEIPTS.items() if k <= c.recipe.eval.max_receipts}
    more, more_kept = suites.receipt_rows(player, FINAL, counts)
    c.progress(2, steps, {})
    after, after_big = suites.strategy_rows(player, "after RL", n // 2)
    c.progress(3, steps, {})
    before, _ = suites.strategy_rows(c.player(c.model("sft", True)), "before RL (SFT)", n // 2)
    c.progress(4, steps, {})
    rows += more + before + after + quantisation_rows(c.player(c.model("rl", False)), player, n // 2)
    c.progress(5, steps, {})
    held_out = json.loads((c.folder / "data" / "documents.json").read_text())["held_out"]
    for source, texts in held_out.items():
        for name, model in (("pretrained", c.model("pretrain", False)), (FINAL, served)):
            figures = bits_per_byte(model, tokenizer, texts[:60], c.recipe.data.seq_len)
            rows.append(row("held-out text", source, name, figures, len(texts[:60]), "bits per byte"))
    c.progress(6, steps, {})
    return {
        "run": {"name": c.recipe.run.name, "seed": c.recipe.run.seed},
        "results": rows,
        "experts": expert_load(served, [e.rollout.prompt + e.rollout.ids for e in after_big[:64]]),
        "samples": samples(kept + more_kept + after_big),
    }


def quantisation_rows(unrounded: Player, served: Player, n: int) -> list[dict[str, Any]]:
    """The same items with the experts as trained in fp32 and as served in 4 bits; paired difference."""
    items = suites.arithmetic_items("seen", (1, 4), n)
    before, after = ([e.score.correct for e in who.play(items, 0.0)] for who in (unrounded, served))
    rows = [suites.share("quantisation", "seen", "fp32 experts", before)]
    rows.append(suites.share("quantisation", "seen", "4-bit experts", after))
    pairs = [float(b) - float(a) for a, b in zip(before, after)]
    return [*rows, row("quantisation", "seen", "4-bit minus fp32", mean_interval(pairs), n, "difference")]


@torch.no_grad()
def expert_load(model: Any, sequences: list[list[int]]) -> dict[str, list[float]]:
    """Share of assignments that each expert of each MoE layer gets on the given sequences."""
    counts: dict[int, torch.Tensor] = {}
    for ids in sequences:
        _, stats = model.hidden(torch.tensor([ids]))
        for i, router in stats.routers.items():
            counts[i] = counts.get(i, 0) + router.counts
    return {f"layer {i + 1}": (v / v.sum()).tolist() for i, v in counts.items()}


def samples(episodes: list[Episode]) -> list[dict[str, Any]]:
    """Five right conversations of different tasks and one failure."""
    rng = random.Random(0)
    right, wrong = [e for e in episodes if e.score.correct], [e for e in episodes if not e.score.correct]
    chosen: list[Episode] = []
    for task in ("arithmetic", "lookup", "abstain", "receipts", "arithmetic"):
        of_task = [e for e in right if e.item.task == task and e not in chosen]
        chosen += of_task[:1] if task != "receipts" else sorted(of_task, key=lambda e: len(e.messages))[:1]
    chosen += [rng.choice(wrong)] if wrong else []
    return [
        {"title": f"{e.item.task}, {e.item.split} wording", "ok": e.score.correct, "messages": e.messages}
        for e in chosen
    ]


def stage_rows(stages: dict[str, Any]) -> list[dict[str, Any]]:
    keys = ("finished", "passed", "gate", "seconds", "tokens", "flops", "mfu", "input_passed")
    return [{"name": name} | {k: record[k] for k in keys if k in record} for name, record in stages.items()]


def headline(rows: list[dict[str, Any]]) -> list[str]:
    """What the model can do now, in a few lines."""
    wanted = [
        ("arithmetic", "unseen", f"{FINAL}, greedy", "sums of 1-4 digits with the calculator, unseen wordings"),
        ("arithmetic", "seen", f"{FINAL}, tool taken away", "the same sums without the tool"),
        ("lookup", "seen", f"{FINAL}, greedy", "facts about names never seen, one to three look-ups"),
        ("says it does not know", "unknown_closed", f"{FINAL}, greedy", 'says "I don\'t know" to unknown names'),
        ("receipts", "N=10", FINAL, "ten receipts added up, some twenty calls"),
    ]
    lines = []
    for suite, split, condition, text in wanted:
        found = [r for r in rows if (r["suite"], r["split"], r["condition"]) == (suite, split, condition)]
        for r in found:
            lines.append(f"{100 * r['score']:5.1f}% [{100 * r['low']:.1f}, {100 * r['high']:.1f}] {text} (n={r['n']})")
    return lines


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "unknown CPU"
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown CPU")


def world_seed(folder: Path) -> int:
    """Seed of the tiny world that the model in `folder` was taught, from its tools.json."""
    try:
        return int(json.loads((folder / "tools.json").read_text())["world_seed"])
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(
            f"{folder}/tools.json names no world_seed: the suites ask about a run's world; export the model again"
        ) from None


def main(model: Path, tasks: list[str] | None, as_json: bool) -> int:
    """`moonlet eval`: the suites of a model folder that has a tokenizer and tools.json."""
    known = ("skills", "receipts", "strategy")
    for task in tasks or []:
        if task not in known:
            raise InputError(f"unknown suite {task!r}; nearest: {nearest(task, known)}")
    loaded, tokenizer = load(model)
    if tokenizer is None:
        raise InputError(f"{model} has no tokenizer.json; evals need the tokenizer of the run")
    torch.set_num_threads(1)
    player = Player(loaded, tokenizer, World(world_seed(model)), Stepper(os.cpu_count() or 1))
    rows: list[dict[str, Any]] = []
    for task in tasks or known:
        if task == "skills":
            rows += suites.skill_rows(player, "model", 500)[0]
        elif task == "receipts":
            rows += suites.receipt_rows(player, "model", RECEIPTS)[0]
        else:
            rows += suites.strategy_rows(player, "model", 500)[0]
    if as_json:
        print(json.dumps({"model": str(model), "results": rows}))
        return 0
    for r in rows:
        what = f"{r['suite']:24} {r['split']:14} {r['condition']:32}"
        print(f"{what} {r['score']:.3f} [{r['low']:.3f}, {r['high']:.3f}] n={r['n']}")
    return 0
