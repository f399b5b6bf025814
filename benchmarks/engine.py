"""The serving side of the engine: prefix cache, agent trace, speculation, decoding of many streams.

    python benchmarks/engine.py [--model runs/quickstart/model] [--repeats 3]

*Shared prefix*: 32 prompts of 4,096 equal tokens and 32 of their own (random weights, the quickstart's shape), time to
first token with the cache and without, one after another and all at once; the first request is cold in both.
*Agent trace*: the trained model adds numbers and receipts in one conversation of 100 assistant turns with its tools;
prompt tokens computed against those that are new (neither in the prompt before nor made by the model), all by greedy
sampling. *Speculation*: the same conversation with drafts and without, alternated, rendering and tools included, by the
clock and by CPU time; the texts must be equal.
*Decoding*: requests of 150 prompt tokens at temperature 1 through the scheduler's own thread, one consumer, first token
to last. The best of the repeats counts, as the machine may be shared; its load is noted. Writes runs/bench/engine.json.
"""

import argparse
import json
import os
import random
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import torch

from moonlet.engine.engine import Engine
from moonlet.engine.generate import Decoder
from moonlet.engine.request import Limits, Request
from moonlet.engine.sampling import SamplingParams
from moonlet.engine.scheduler import Scheduler
from moonlet.files import write_json
from moonlet.model.config import for_depth
from moonlet.model.kernels import native
from moonlet.model.model import Model
from moonlet.tasks import arithmetic, receipts
from moonlet.tasks.base import ALL_TOOLS, environment

SHARED, OWN, REQUESTS, TURNS = 4096, 32, 32, 100


def begin(scheduler: Scheduler, prompts: Sequence[list[int]], tokens: int) -> list[Request]:
    params = SamplingParams(max_tokens=tokens)
    requests = [Request(prompt, params, seed, frozenset()) for seed, prompt in enumerate(prompts)]
    for request in requests:
        scheduler.submit(request)
    return requests


def wait(request: Request) -> None:
    while not isinstance(one := request.out.get(), str):
        if isinstance(one, Exception):
            raise one


def first_tokens(decoder: Decoder, cached: bool, at_once: bool) -> float:
    """Mean seconds from submission to first token of all requests behind the first."""
    scheduler = Scheduler(decoder, Limits(prefix_cache=cached))
    shared = [10 + i * 7 % 1900 for i in range(SHARED)]
    prompts = [[*shared, *((r * 31 + i * 3) % 1900 for i in range(OWN))] for r in range(REQUESTS + 1)]
    wait(begin(scheduler, prompts[:1], 1)[0])
    began, seconds = time.perf_counter(), []
    if at_once:
        for request in begin(scheduler, prompts[1:], 1):
            wait(request)
            seconds.append(time.perf_counter() - began)
        return fmean(seconds)
    for prompt in prompts[1:]:
        began = time.perf_counter()
        wait(begin(scheduler, [prompt], 1)[0])
        seconds.append(time.perf_counter() - began)
    return fmean(seconds)


def conversation(engine: Engine, turns: int) -> tuple[list[dict], dict[str, float]]:
    """An agent at work: its messages, and what its turns cost."""
    rng, messages, made = random.Random(0), [], 0
    computed = new = tokens = before = 0
    began, cpu = time.perf_counter(), time.process_time()
    while made < turns:
        item = (receipts if rng.random() < 0.5 else arithmetic).sample(rng, "train")
        messages += item.messages
        env = environment(item)
        while made < turns:
            reply = engine.chat(messages, ALL_TOOLS, temperature=0, max_tokens=96)
            made, tokens = made + 1, tokens + reply.completion_tokens
            computed += reply.prompt_tokens - reply.cached_tokens
            new += reply.prompt_tokens - before
            before = reply.prompt_tokens + reply.completion_tokens
            messages.append(reply.message())
            if not reply.tool_calls:
                break
            for call in reply.tool_calls:
                result = env.call(call["function"]["name"], json.loads(call["function"]["arguments"]))
                messages.append({"role": "tool", "tool_call_id": call["id"], "content": result})
    cost = {"seconds": time.perf_counter() - began, "cpu": time.process_time() - cpu}
    return messages, {**cost, "computed": computed, "new": new, "tokens": tokens, "prompt": before}


def texts(messages: list[dict]) -> list[tuple[str, str]]:
    return [(m.get("reasoning_content", ""), m["content"]) for m in messages]


def trace(folder: Path, repeats: int) -> dict[str, object]:
    runs: dict[bool, list[dict[str, float]]] = {True: [], False: []}
    said, drafted, accepted = set(), 0, 0
    for _ in range(repeats):
        for speculate in (True, False):
            engine = Engine(folder, Limits(speculate=speculate))
            messages, cost = conversation(engine, TURNS)
            said.add(str(texts(messages)))
            runs[speculate].append(cost)
            if speculate:
                drafted, accepted = engine.scheduler.drafted, engine.scheduler.accepted
    if len(said) != 1:
        raise SystemExit("the texts with drafts and without differ")
    one = runs[False][0]
    fast, slow, fast_cpu, slow_cpu = (
        min(cost[kind] for cost in runs[speculate]) for kind in ("seconds", "cpu") for speculate in (True, False)
    )
    return {
        "turns": TURNS,
        "final_tokens": one["prompt"],
        "prompt_tokens_computed": one["computed"],
        "prompt_tokens_new": one["new"],
        "prefill_ratio": one["computed"] / one["new"],
        "made_tokens": one["tokens"],
        "drafted": drafted,
        "accepted": accepted,
        "seconds_with_drafts": fast,
        "seconds_without": slow,
        "speculation": slow / fast,
        "speculation_cpu": slow_cpu / fast_cpu,
    }


def decoding(decoder: Decoder, streams: int, tokens: int = 129) -> float:
    """Tokens a second of all streams together, from when all have their first one."""
    scheduler = Scheduler(decoder, Limits(prefix_cache=False, speculate=False))
    prompts = [[*range(10, 85), *(500 + (s + i) % 1000 for i in range(75))] for s in range(streams)]
    requests = begin(scheduler, prompts, tokens)
    for request in requests:
        request.out.get()
    began, made = time.perf_counter(), sum(request.made for request in requests)
    for request in requests:
        wait(request)
    return (streams * tokens - made) / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("runs/quickstart/model"))
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    if native.why_not():
        raise SystemExit(native.why_not())
    torch.set_num_threads(1)
    decoder = Decoder(Model(for_depth(4, 2048, {})).init_weights(0).eval())
    out: dict[str, object] = {"load_before": os.getloadavg()[0], "cores": len(os.sched_getaffinity(0))}
    for name, at_once in (("one_after_another", False), ("at_once", True)):
        on, off = (
            min(first_tokens(decoder, cached, at_once) for _ in range(options.repeats)) for cached in (True, False)
        )
        out[f"first_token_{name}"] = {"cached_s": on, "cold_s": off, "ratio": off / on}
        print(f"time to first token, {name}: {1000 * on:.1f} ms cached, {1000 * off:.1f} ms cold, {off / on:.1f} x")
    rates = {n: max(decoding(decoder, n) for _ in range(options.repeats)) for n in (1, 8, 64)}
    out["decode_tokens_per_s"] = rates
    print("decoding, tokens/s: " + ", ".join(f"{n} streams {rate:,.0f}" for n, rate in rates.items()))
    if (options.model / "config.json").exists():
        out["agent"] = found = trace(options.model, options.repeats)
        print(", ".join(f"{k} {v:,.2f}" if isinstance(v, float) else f"{k} {v:,}" for k, v in found.items()))
    else:
        print(f"no agent trace: {options.model} is not there (make quickstart)")
    out["load_after"] = os.getloadavg()[0]
    path = Path("runs/bench/engine.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, out)


if __name__ == "__main__":
    main()
