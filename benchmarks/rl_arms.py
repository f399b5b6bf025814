"""What RL is worth: four arms from one finished run, at temperature 1 on the same held-out items.

    python benchmarks/rl_arms.py runs/quickstart [--json arms.json]

Arms, each from the run's SFT checkpoint: as it is; RL (the run's own); SFT continued on the same mixed traces for the
wall time that RL took; RL with random rewards, same steps. And a twin from the pretrained checkpoint that is trained on
direct answers only, for as many steps as SFT had. Intervals are 95%; n = the recipe's eval.items.
"""

import argparse
import json
import random
import time
from pathlib import Path

from moonlet import recipe as recipes
from moonlet.chat.xtml import render
from moonlet.data.shards import Loader, Rows, one_a_row
from moonlet.evals import suites
from moonlet.files import write_json
from moonlet.model.model import Model
from moonlet.optim.schedule import cosine
from moonlet.rl.loop import train_rl
from moonlet.run import read_manifest
from moonlet.stages import Context, rl_config
from moonlet.tasks import arithmetic
from moonlet.tasks.mixture import sample_item
from moonlet.tracker import Run
from moonlet.train.loop import to_tensors


class Silent:
    """Stands where the board stands in a run; prints a line now and then."""

    def progress(self, done: int, total: int, log: dict[str, float]) -> None:
        if done % 10 == 0:
            print(f"  {done}/{total}", flush=True)


def sft_for(c: Context, model: Model, rows: Rows, seconds: float, steps: int) -> float:
    """Train on `rows` for `seconds` (or `steps` when seconds is 0) with the SFT settings; returns seconds used."""
    s = c.recipe.sft
    optimizer = c.optimizer(model, "sft")
    loader = Loader(rows, c.recipe.run.seed + 1, s.rows)
    began, step = time.perf_counter(), 0
    while True:
        spent = time.perf_counter() - began
        if (seconds and spent >= seconds) or (not seconds and step >= steps):
            return spent
        share = spent / seconds if seconds else step / steps
        scale = cosine(round(1000 * share), 1000, c.recipe.optim.warmup_fraction)
        c.stepper.step(model, optimizer, to_tensors(loader.batch(step)), scale, c.recipe.optim.qk_clip_tau)
        step += 1


def direct_rows(c: Context, count: int) -> Rows:
    """Sums answered from the head, the tool not offered."""
    rng, out = random.Random(f"direct {c.recipe.run.seed}"), []
    for _ in range(count):
        messages: list = []
        for _ in range(2):
            item = sample_item(rng, c.world, "arithmetic")
            answered = arithmetic.demonstrate(item, rng, "direct")
            messages += [{k: v for k, v in m.items() if k != "loss"} for m in answered]  # the result is a target here
        out.append(c.tokenizer.encode_with_loss(render(messages)))
    return one_a_row(out, c.recipe.sft.seq_len)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    settings = json.loads((options.run / "config.json").read_text())
    overrides = [
        f"{s}.{k}={json.dumps(e['value'])}"
        for s, keys in settings.items()
        for k, e in keys.items()
        if e["from"] == "--set"
    ]
    c = Context(recipes.load(options.run / "recipe.toml", overrides), options.run, read_manifest(options.run))
    c.board = Silent()  # type: ignore[assignment]
    n, rows = c.recipe.eval.items, []
    budget = c.manifest["stages"]["rl"]["seconds"]
    mixed = Rows.load(c.folder / "data" / "sft-mixed")

    def measure(name: str, model: Model) -> None:
        found, _ = suites.strategy_rows(c.player(model), name, n)
        rows.extend(found)
        for r in found:
            print(f"{r['suite']:22} {r['condition']:42} {r['score']:7.3f} [{r['low']:.3f}, {r['high']:.3f}] n={r['n']}")

    measure("SFT", c.model("sft", True))
    measure("RL", c.model("rl", True))
    model = c.model("sft", True)
    spent = sft_for(c, model, mixed, budget, 0)
    measure(f"SFT continued {spent:.0f} s", model)
    model, config = c.model("sft", True), rl_config(c)
    config.random_reward = True
    optimizer = c.optimizer(model, "rl")
    folder = options.run / "arms" / "random"
    with Run(folder) as log:
        train_rl(model, c.tokenizer, c.world, optimizer, config, folder, log, c.stepper, c.board.progress)
    measure("RL, random rewards", model)
    twin = c.model("pretrain", True)
    steps = c.recipe.sft.steps
    sft_for(c, twin, direct_rows(c, steps * c.recipe.sft.rows), 0, steps)
    items = [suites.replace(item, tools=[]) for item in suites.arithmetic_items("seen", (1, 4), n)]
    hits = [e.score.correct for e in c.player(twin).play(items, 0.0)]
    rows.append(suites.share("arithmetic", "seen", "twin trained on direct answers, greedy", hits))
    print(rows[-1])
    if options.json:
        write_json(options.json, {"run": str(options.run), "rl_seconds": budget, "results": rows})
    c.close()


if __name__ == "__main__":
    main()
