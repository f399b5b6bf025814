"""The serving side of the engine: prefix cache, agent trace, speculation, decoding of many streams.

    python benchmarks/engine.py [--model runs/quickstart/model] [--repeats 3] [--only prefix decode context ...]

*Shared prefix*: 32 prompts of 4,096 equal tokens and 32 of their own (random weights, the quickstart's shape), time to
first token with the cache and without, one after another and all at once; the first request is cold in both.
*Agent trace*: the trained model adds numbers and receipts in one conversation of 100 assistant turns with its tools;
prompt tokens computed against those that are new (neither in the prompt before nor made by the model), all by greedy
sampling. *Speculation*: the same conversation with drafts and without, alternated, rendering and tools included, by the
clock and by CPU time; the texts must be equal. *Replay*: the same requests to `shapes.kimi` in INT4, drafts, cache and
all, but each token sampled is the trace's, whatever the model says.
*Decoding*: requests of 150 prompt tokens at temperature 1 through the scheduler's own thread, one consumer, first token
to last; bytes are those of shapes.py, shares of the read bandwidth measured in the same run.
*Context*: one stream of `shapes.kimi` in INT4 and of the same with KDA layers alone, the decoder alone, after
1 K to 128 K tokens. Latents are random numbers put straight into the cache: what they are does not change the time.
MLA's share is what a step takes longer than after one token.
*Mismatch*: the trained model samples 64 answers at temperature 1; mismatch_kl (k3) is the mean of exp(-r) - 1 + r, r
being a token's log-prob from the engine less that of the training forward in fp32 with the experts' 4-bit values.
*Snapshots*: a greedy text of 1,000 tokens of the trained model as 20 turns that each go on from a snapshot, states in
bf16, against fp32. The best of the repeats counts, as the machine may be shared; its load is noted. Writes
runs/bench/engine.json.
"""

import argparse
import json
import os
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from shapes import kimi, read_bandwidth, step_bytes

from moonlet.engine import burst
from moonlet.engine import scheduler as scheduling
from moonlet.engine.engine import Engine
from moonlet.engine.generate import Decoder
from moonlet.engine.load import load
from moonlet.engine.packed import PackedModel, in_rows
from moonlet.engine.request import Limits, Request
from moonlet.engine.sampling import Picked, SamplingParams
from moonlet.engine.scheduler import Scheduler
from moonlet.engine.weights import WEIGHTS
from moonlet.files import write_json
from moonlet.model.config import for_depth
from moonlet.model.kernels import native
from moonlet.model.mla import MLAState
from moonlet.model.model import Model
from moonlet.tasks import arithmetic, receipts
from moonlet.tasks.base import ALL_TOOLS, environment

SHARED, OWN, REQUESTS, TURNS = 4096, 32, 32, 100
CONTEXTS = (1024, 8192, 32768, 131072)
ROWS = ("prefix", "decode", "context", "mismatch", "snapshots", "agent")


def begin(scheduler: Scheduler, prompts: Sequence[list[int]], tokens: int) -> list[Request]:
    params = SamplingParams(max_tokens=tokens)
    requests = [Request(prompt, params, seed, frozenset()) for seed, prompt in enumerate(prompts)]
    for request in requests:
        scheduler.submit(request)
    return requests


def wait(request: Request) -> list[Picked]:
    """Until it is over; what it was given."""
    got: list[Picked] = []
    while not isinstance(one := request.out.get(), str):
        if isinstance(one, Exception):
            raise one
        got += one
    return got


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


def noting(submit: Callable[[Request], None], requests: list[Request]) -> Callable[[Request], None]:
    def noted(request: Request) -> None:
        requests.append(request)
        submit(request)

    return noted


def trace(folder: Path, repeats: int) -> dict[str, object]:
    runs: dict[bool, list[dict[str, float]]] = {True: [], False: []}
    said, drafted, accepted = set(), 0, 0
    for _ in range(repeats):
        for speculate in (True, False):
            engine, requests = Engine(folder, Limits(speculate=speculate)), []
            engine.scheduler.submit = noting(engine.scheduler.submit, requests)
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
        **replay(requests, min(repeats, 2)),
    }


def replay(requests: list[Request], repeats: int) -> dict[str, float]:
    """What drafts gain where a step is 700 M parameters: seconds of the turns alone, one after another."""
    model = Model(kimi()).init_weights(0)
    decoder = Decoder(model, PackedModel(model, "int4", consume=True))
    texts = [(one.prompt, one.tokens[len(one.prompt) :]) for one in requests]
    seconds: dict[bool, list[float]] = {True: [], False: []}
    sampled, steps, bursts = scheduling.choose_rows, {}, burst.SECONDS
    burst.SECONDS = 0.0  # they sample natively
    for _ in range(repeats):
        for speculate in (True, False):
            scheduler, began = Scheduler(decoder, Limits(speculate=speculate)), time.perf_counter()
            for prompt, text in texts:
                request = Request(prompt, SamplingParams(max_tokens=len(text)), 0, frozenset())

                def told(
                    logits: np.ndarray, *_: object, request: Request = request, text: list[int] = text
                ) -> list[int]:
                    return [*text[request.made : request.made + len(logits)], *[0] * len(logits)][: len(logits)]

                scheduling.choose_rows = told
                scheduler.submit(request)
                assert [one.token for one in wait(request)] == text
            seconds[speculate].append(time.perf_counter() - began)
            steps[speculate] = scheduler.steps
    scheduling.choose_rows, burst.SECONDS = sampled, bursts
    fast, slow = min(seconds[True]), min(seconds[False])
    return {
        "replay_steps_with_drafts": steps[True],
        "replay_steps_without": steps[False],
        "replay_seconds_with_drafts": fast,
        "replay_seconds_without": slow,
        "replay_speculation": slow / fast,
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


def context_row(repeats: int, steps: int = 8) -> dict[str, object]:
    """Decode rate of one stream after ever longer contexts."""
    out: dict[str, object] = {}
    threads = len(os.sched_getaffinity(0))
    for name, config in (("kda_mla_3_to_1", kimi()), ("kda_only", kimi(full_attention=False))):
        model = Model(config).init_weights(0)
        packed = PackedModel(model, "int4", consume=True)
        cache = model.new_cache(1, CONTEXTS[-1] + steps)
        for layer in cache.layers:
            if isinstance(layer, MLAState):
                layer.latents.normal_()
        seconds = dict.fromkeys((1, *CONTEXTS), float("inf"))
        for _ in range(repeats):
            for length in seconds:
                cache.lengths.fill_(length)
                began = time.perf_counter()
                for step in range(steps):
                    packed.decode(in_rows(cache), [0], [[step]], None, threads)
                seconds[length] = min(seconds[length], (time.perf_counter() - began) / steps)
        rows = {}
        for n in CONTEXTS:
            read = step_bytes(model, packed, 1, n) / seconds[n]
            rows[n] = {"tokens_per_s": 1 / seconds[n], "mla_share": 1 - seconds[1] / seconds[n], "bytes_per_s": read}
            print(f"{name}, {n:,} tokens: " + ", ".join(f"{key} {value:,.2f}" for key, value in rows[n].items()))
        out[name] = {"rows": rows, "rate_kept": seconds[CONTEXTS[0]] / seconds[CONTEXTS[-1]]}
        print(f"{name}: rate kept {seconds[CONTEXTS[0]] / seconds[CONTEXTS[-1]]:.0%}")
    return out


def prompts_of_tasks(engine: Engine, count: int) -> list[list[int]]:
    rng, prompts = random.Random(0), []
    for _ in range(count):
        item = (receipts if rng.random() < 0.5 else arithmetic).sample(rng, "train")
        segments = engine.format.render(item.messages, ALL_TOOLS, thinking=True, add_generation_prompt=True)
        prompts.append(engine.tokenizer.encode_segments(segments))
    return prompts


@torch.no_grad()
def mismatch(folder: Path) -> dict[str, float]:
    """mismatch_kl by the form of the weights."""
    trainer, found = load(folder)[0], {}
    for weights in (form for form in WEIGHTS if form != "gpu"):
        engine, ratios = Engine(folder, weights=weights), []
        params = SamplingParams(max_tokens=96, logprobs=True)
        requests = [
            Request(prompt, params, seed, frozenset([engine.stop]))
            for seed, prompt in enumerate(prompts_of_tasks(engine, 64))
        ]
        for request in requests:
            engine.scheduler.submit(request)
        for request in requests:
            got, start = wait(request), len(request.prompt)
            logprobs = trainer(torch.tensor([request.tokens]))[0, start - 1 : -1].log_softmax(-1)
            trained = logprobs.gather(1, torch.tensor(request.tokens[start:])[:, None])[:, 0].double()
            ratios.append(torch.tensor([one.logprob for one in got]).double() - trained)
        r = torch.cat(ratios)
        found[weights] = float(((-r).exp() - 1 + r).mean())
    print("mismatch_kl: " + ", ".join(f"{weights} {kl:.1e}" for weights, kl in found.items()))
    return found


def snapshots(folder: Path, turns: int = 20, tokens: int = 50) -> dict[str, float]:
    """What keeping the states of snapshots in bf16 changes: the exact text is fed back turn by turn."""
    said: dict[str, list[Picked]] = {"fp32": [], "bf16": []}
    bytes_of = {}
    for kind, got in said.items():
        engine = Engine(folder, Limits(snapshots=kind, speculate=False))
        bytes_of[kind] = engine.scheduler.pool.saved_bytes
        told = prompts_of_tasks(engine, 1)[0]
        params = SamplingParams(temperature=0, max_tokens=tokens, logprobs=True, top_logprobs=20)
        for turn in range(turns):
            request = Request(list(told), params, 0, frozenset())
            engine.scheduler.submit(request)
            got += wait(request)
            assert bool(request.cached_tokens) == bool(turn)
            told += [one.token for one in said["fp32"][turn * tokens : (turn + 1) * tokens]]
    pairs = list(zip(said["fp32"], said["bf16"]))
    apart = [abs(a.logprob - dict(b.top)[a.token]) for a, b in pairs if a.token in dict(b.top)]
    out = {
        "tokens": len(pairs),
        "greedy_agreement": fmean(a.token == b.token for a, b in pairs),
        "logprob_mean_difference": fmean(apart),
        "logprob_largest_difference": max(apart),
        **{f"bytes_{kind}": n for kind, n in bytes_of.items()},
    }
    print("snapshots in bf16: " + ", ".join(f"{key} {value:.4g}" for key, value in out.items()))
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("runs/quickstart/model"))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=ROWS, default=ROWS)
    options = parser.parse_args()
    if native.why_not():
        raise SystemExit(native.why_not())
    out: dict[str, object] = {"load_before": os.getloadavg()[0], "cores": len(os.sched_getaffinity(0))}
    out["read_bandwidth"] = bandwidth = read_bandwidth()
    torch.set_num_threads(1)
    model = Model(for_depth(4, 2048, {})).init_weights(0).eval()
    decoder = Decoder(model)
    for name, at_once in (("one_after_another", False), ("at_once", True)) if "prefix" in options.only else ():
        on, off = (
            min(first_tokens(decoder, cached, at_once) for _ in range(options.repeats)) for cached in (True, False)
        )
        out[f"first_token_{name}"] = {"cached_s": on, "cold_s": off, "ratio": off / on}
        print(f"time to first token, {name}: {1000 * on:.1f} ms cached, {1000 * off:.1f} ms cold, {off / on:.1f} x")
    for streams in (1, 8, 64) if "decode" in options.only else ():
        rate, step = max(decoding(decoder, streams) for _ in range(options.repeats)), 0.0
        if decoder.packed is not None:
            step = step_bytes(model, decoder.packed, streams, 214)
        read = step * rate / streams
        row = {"tokens_per_s": rate, "bytes_per_token": step / streams, "bytes_per_s": read}
        out[f"decode_{streams}"] = {**row, "share_of_read_bandwidth": read / bandwidth}
        print(
            f"decoding, {streams} streams: {rate:,.0f} tokens/s, {step / streams / 1e6:.2f} MB a token, "
            f"{read / 1e9:.1f} GB/s, {read / bandwidth:.0%} of the read bandwidth"
        )
    if "context" in options.only:
        out["context"] = context_row(options.repeats)
    if not (options.model / "config.json").exists():
        print(f"no trained model: {options.model} is not there (make quickstart)")
    else:
        if "mismatch" in options.only:
            out["mismatch_kl"] = mismatch(options.model)
        if "snapshots" in options.only:
            out["snapshots"] = snapshots(options.model)
        if "agent" in options.only:
            out["agent"] = found = trace(options.model, options.repeats)
            print(", ".join(f"{k} {v:,.2f}" if isinstance(v, float) else f"{k} {v:,}" for k, v in found.items()))
    out["load_after"] = os.getloadavg()[0]
    write_json(Path("runs/bench/engine.json"), out)


if __name__ == "__main__":
    main()
