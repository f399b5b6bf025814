"""Does a draft model pay? Processor time a token and the drafts that were right: by lookup, by the model, by both.

    python benchmarks/draft.py [--model runs/quickstart/model] [--repeats 3] [--length 3] [--sure 0.6]

`moonlet draft` makes the draft. *Held out*: one conversation after another over items and wordings that training never
saw, tools included, temperature 1, seeded. *Trace*: the agent of `engine.py`, whose long conversation repeats itself,
greedy. All sides give the same texts (checked). Time is the scheduler's own thread, the least of the repeats, sides in
turns; "draft" is the part of it that the draft model takes. Writes runs/bench/draft.json.
"""

import argparse
import json
import os
import random
import time
from collections.abc import Callable
from pathlib import Path

import torch
from engine import TURNS, conversation, texts

from moonlet.engine import draft as drafts
from moonlet.engine import speculate
from moonlet.engine.engine import Engine
from moonlet.engine.request import Limits
from moonlet.files import write_json
from moonlet.tasks import arithmetic, receipts
from moonlet.tasks.base import ALL_TOOLS, environment

SIDES = {"none": (False, False), "lookup": (True, False), "draft": (False, True), "both": (True, True)}
NGRAM, NEVER = speculate.NGRAM, 10**9


def held_out(engine: Engine, items: int) -> tuple[list[dict], dict[str, float]]:
    rng, said, tokens = random.Random(1), [], 0
    for number in range(items):
        item = (arithmetic, receipts)[number % 2].sample(rng, "unseen")
        messages, env = list(item.messages), environment(item)
        for turn in range(8):
            reply = engine.chat(messages, ALL_TOOLS, temperature=1.0, seed=number * 8 + turn, max_tokens=96)
            tokens += reply.completion_tokens
            messages.append(reply.message())
            if not reply.tool_calls:
                break
            for call in reply.tool_calls:
                result = env.call(call["function"]["name"], json.loads(call["function"]["arguments"]))
                messages.append({"role": "tool", "tool_call_id": call["id"], "content": result})
        said += messages
    return said, {"tokens": tokens}


def timed(owner: object, name: str, spent: list[float]) -> None:
    """Add the processor time of a method's calls to `spent`."""
    method: Callable = getattr(owner, name)

    def call(*arguments):
        began = time.thread_time()
        try:
            return method(*arguments)
        finally:
            spent[0] += time.thread_time() - began

    setattr(owner, name, call)


def places(proposed: list[tuple], length: int) -> list[dict[str, float]]:
    """By place of a draft: how many reached it with all before them right, and how many of those were right."""
    tried, right = [0] * length, [0] * length
    for request, known, guess in proposed:
        for place, token in enumerate(guess):
            if known + place >= len(request.tokens):
                break
            tried[place] += 1
            if request.tokens[known + place] != token:
                break
            right[place] += 1
    return [{"tried": t, "right": r, "share": r / max(1, t)} for t, r in zip(tried, right)]


def measure(folder: Path, side: str, work: Callable) -> tuple[str, dict]:
    by_lookup, by_draft = SIDES[side]
    speculate.NGRAM = NGRAM if by_lookup else NEVER
    engine = Engine(folder, Limits(speculate=by_lookup or by_draft), draft=by_draft)
    scheduler, step, drafting, proposed = engine.scheduler, [0.0], [0.0], []
    if scheduler.draft is not None:
        propose = scheduler.draft.propose

        def recorded(requests):
            found = propose(requests)
            proposed.extend((request, len(request.tokens), guess) for request, guess in found.items())
            return found

        scheduler.draft.propose = recorded  # type: ignore[method-assign]
        for name in ("propose", "learn", "follow"):
            timed(scheduler.draft, name, drafting)
    timed(scheduler, "step", step)
    messages, cost = work(engine)
    tokens = cost["tokens"]
    found = {
        "tokens": tokens,
        "steps": scheduler.steps,
        "us_a_token": 1e6 * step[0] / tokens,
        "draft_us_a_token": 1e6 * drafting[0] / tokens,
        "drafted": scheduler.drafted,
        "accepted": scheduler.accepted,
        "guessed": scheduler.guessed,
        "guessed_right": scheduler.guessed_right,
        "places": places(proposed, drafts.LENGTH),
    }
    return str(texts(messages)), found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("runs/quickstart/model"))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--items", type=int, default=60)
    parser.add_argument("--turns", type=int, default=TURNS)
    parser.add_argument("--length", type=int, default=drafts.LENGTH, help="tokens of a draft at most")
    parser.add_argument("--sure", type=float, default=drafts.SURE, help="a draft ends before a token less likely")
    options = parser.parse_args()
    if not (options.model / drafts.FILE).exists():
        raise SystemExit(f"{options.model} has no {drafts.FILE}: moonlet draft {options.model}")
    drafts.LENGTH, drafts.SURE = options.length, options.sure
    torch.set_num_threads(1)
    out: dict[str, object] = {"length": options.length, "sure": options.sure, "load_before": os.getloadavg()[0]}
    workloads = {
        "held_out": lambda engine: held_out(engine, options.items),
        "trace": lambda engine: conversation(engine, options.turns),
    }
    for name, work in workloads.items():
        said, runs = set(), {side: [] for side in SIDES}
        for _ in range(options.repeats):
            for side in SIDES:
                text, found = measure(options.model, side, work)
                said.add(text)
                runs[side].append(found)
        if len(said) != 1:
            raise SystemExit("the texts of the sides differ")
        out[name] = best = {side: min(runs[side], key=lambda one: one["us_a_token"]) for side in SIDES}
        for side, one in best.items():
            shares = ", ".join(f"{place['share']:.3f} of {place['tried']}" for place in one["places"])
            print(
                f"{name}, {side}: {one['us_a_token']:.0f} us a token ({one['draft_us_a_token']:.0f} the draft), "
                f"{one['tokens']} tokens in {one['steps']} steps, {one['accepted']} of {one['drafted']} drafts right, "
                f"of the draft model's {one['guessed_right']} of {one['guessed']}; by place: {shares or '-'}"
            )
    out["load_after"] = os.getloadavg()[0]
    write_json(Path("runs/bench/draft.json"), out)


if __name__ == "__main__":
    main()
