"""The engine against llama.cpp on the same weights: decoding of several streams, and prefill.

    python benchmarks/llama_cpp.py [--model kimi|dense|quickstart] [--threads 2] [--steps 32] [--repeats 5]
                                   [--streams 1 8 32]

`kimi` is a Kimi Linear form of 698 M parameters, 146 M active, random weights: ours with every matrix in INT4 (group
32, 4.5 bits) and inputs in 8 bits, llama.cpp's Q4_0 of the same weights (as many bits, inputs in 8 bits too). `dense`
is K2's form without experts, 1.03 B parameters, likewise. `quickstart` is the trained model of runs/quickstart with its
MXFP4 experts: the rest fp32 here, BF16 there. Neither side samples. llama.cpp runs with its defaults (F16 cache, its
own repacking). Sides alternate; the best of the repeats counts, as the machine may be shared. Before that the logits of
both are compared with the fp32 model's (the F32 file is held to llama.cpp by tests/engine/test_gguf.py). Bytes: the
weights that a step reads, once (active experts of all streams), and each stream's state. Prints a table with the share
of the read bandwidth measured in the same run; writes runs/bench/llama_cpp_NAME.json.
"""

import argparse
import ctypes
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "engine"))

from llama import Llama, library
from shapes import dense, kimi, read_bandwidth, step_bytes

from moonlet.engine import gguf_file
from moonlet.engine.load import load
from moonlet.engine.packed import PackedModel, in_rows
from moonlet.files import write_json
from moonlet.model.model import Model

STREAMS, PREFILL, PROMPT = (1, 8, 32), 512, 32


class Theirs(Llama):
    """llama.cpp with its defaults and several sequences."""

    def __init__(self, path: Path, threads: int) -> None:
        self.lib = lib = library()
        self.model = lib.llama_model_load_from_file(str(path).encode(), lib.llama_model_default_params())
        c = lib.llama_context_default_params()
        c.n_seq_max, c.n_ctx, c.n_batch = max(STREAMS), 1024 * max(STREAMS), PREFILL
        c.n_threads = c.n_threads_batch = threads
        self.context = lib.llama_init_from_model(self.model, c)
        assert self.model and self.context, f"llama.cpp does not load {path}"
        self.size = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(self.model))
        self.batch = lib.llama_batch_init(PREFILL, 0, 1)

    def clear(self) -> None:
        self.lib.llama_memory_clear(self.lib.llama_get_memory(self.context), True)

    def feed(self, queues: list[list[int]], start: int) -> torch.Tensor:
        """Logits after the last token of each sequence; at most PREFILL tokens in all."""
        b, i, last = self.batch, 0, []
        for sequence, queue in enumerate(queues):
            for n, token in enumerate(queue):
                b.token[i], b.pos[i], b.n_seq_id[i] = token, start + n, 1
                b.logits[i], b.seq_id[i][0] = n == len(queue) - 1, sequence
                i += 1
            last.append(i - 1)
        b.n_tokens = i
        assert self.lib.llama_decode(self.context, b) == 0
        rows = [ctypes.cast(self.lib.llama_get_logits_ith(self.context, n), ctypes.c_void_p).value for n in last]
        floats = ctypes.c_float * self.size
        return torch.stack([torch.frombuffer(floats.from_address(row), dtype=torch.float32).clone() for row in rows])


class Ours:
    def __init__(self, model: Model, weights: str, threads: int, consume: bool = False) -> None:
        self.model, self.packed, self.threads = model, PackedModel(model, weights, consume), threads
        self.clear()

    def clear(self) -> None:
        self.cache = self.model.new_cache(max(STREAMS), 1024)

    def feed(self, queues: list[list[int]], start: int) -> torch.Tensor:
        return self.packed.decode(in_rows(self.cache), range(len(queues)), queues, None, self.threads)


def prompts(streams: int, vocab: int) -> list[list[int]]:
    r = torch.Generator().manual_seed(streams)
    return torch.randint(0, vocab, (streams, PROMPT), generator=r).tolist()


def decode_seconds(side: Ours | Theirs, streams: int, steps: int, vocab: int) -> float:
    """Of one step, a token for each stream."""
    side.clear()
    queues = prompts(streams, vocab)
    side.feed([q[:1] for q in queues], 0)
    began = time.perf_counter()
    for step in range(1, steps + 1):
        side.feed([[q[step % PROMPT]] for q in queues], step)
    return (time.perf_counter() - began) / steps


def prefill_seconds(side: Ours | Theirs, vocab: int) -> float:
    side.clear()
    ids = torch.randint(0, vocab, (PREFILL,), generator=torch.Generator().manual_seed(0)).tolist()
    began = time.perf_counter()
    side.feed([ids], 0)
    return time.perf_counter() - began


def logits(side: Ours | Theirs, vocab: int) -> torch.Tensor:
    """Of 8 streams of 4 tokens."""
    side.clear()
    return torch.stack([side.feed([[q[n]] for q in prompts(8, vocab)], n) for n in range(4)]).flatten()


def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a, b]))[0, 1])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", choices=("kimi", "dense", "quickstart"), default="kimi")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--streams", type=int, nargs="+", default=STREAMS, choices=STREAMS)
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    with tempfile.TemporaryDirectory() as scratch, torch.no_grad():
        path = Path(scratch) / "model.gguf"
        if a.model == "quickstart":
            model, weights, kind = load(ROOT / "runs" / "quickstart" / "model", packed=True)[0], "fp32", "mxfp4"
            whole = load(ROOT / "runs" / "quickstart" / "model")[0]
        else:
            model, weights, kind = Model({"kimi": kimi, "dense": dense}[a.model]()).init_weights(0), "int4", "q4_0"
            whole = model
        vocab, load_before = model.config.vocab_size, os.getloadavg()[0]
        gguf_file.write(whole, None, path, kind, a.model, None)
        exact = logits(Ours(whole, "fp32", a.threads), vocab)  # its copy of the weights is gone before the next comes
        ours, theirs = Ours(model, weights, a.threads, consume=True), Theirs(path, a.threads)
        bandwidth, rows = read_bandwidth(), list[dict[str, Any]]()
        agree = {n: correlation(logits(side, vocab), exact) for n, side in (("moonlet", ours), ("llama_cpp", theirs))}
        for name, tokens, run in [
            *((f"decode, {n} streams", n, lambda s, n=n: decode_seconds(s, n, a.steps, vocab)) for n in a.streams),
            (f"prefill {PREFILL}", PREFILL, lambda s: prefill_seconds(s, vocab)),
        ]:
            took: dict[str, list[float]] = {"ours": [], "theirs": []}
            for _ in range(a.repeats):
                took["ours"].append(run(ours))
                took["theirs"].append(run(theirs))
            best = {side: min(seconds) for side, seconds in took.items()}
            read = step_bytes(model, ours.packed, tokens) / best["ours"]
            rows.append(
                {
                    "measure": name,
                    "moonlet_tokens_per_second": tokens / best["ours"],
                    "llama_cpp_tokens_per_second": tokens / best["theirs"],
                    "ratio": best["theirs"] / best["ours"],
                    "bytes_per_second": read,
                    "share_of_read_bandwidth": read / bandwidth,
                }
            )
    result = {
        "model": a.model,
        "threads": a.threads,
        "load": [load_before, os.getloadavg()[0]],
        "read_bandwidth": bandwidth,
        "correlation_with_fp32": agree,
        "rows": rows,
    }
    write_json(ROOT / "runs" / "bench" / f"llama_cpp_{a.model}.json", result)
    print(f"{a.model}, {a.threads} threads, read {bandwidth / 1e9:.1f} GB/s, load {result['load']}")
    print(f"correlation of logits with fp32: {agree}")
    print(f"{'':22}{'moonlet':>12}{'llama.cpp':>12}{'ratio':>8}{'GB/s':>8}{'of read':>9}")
    for row in rows:
        print(
            f"{row['measure']:22}{row['moonlet_tokens_per_second']:>12,.0f}{row['llama_cpp_tokens_per_second']:>12,.0f}"
            f"{row['ratio']:>7.2f}x{row['bytes_per_second'] / 1e9:>8.1f}{row['share_of_read_bandwidth']:>9.0%}"
        )


if __name__ == "__main__":
    main()
