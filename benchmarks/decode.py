"""Decoding through the engine: the native decoder against the same model in PyTorch, alternated, same threads.

    python benchmarks/decode.py [--threads 2] [--tokens 256] [--repeats 3]

The quickstart's shape (depth 4, vocabulary 2048, random weights), prompts of 150 tokens with a common first half, then
`tokens` sampled ones at temperature 1, sampling and hand-over included. Before that both paths must give the same
logits (1e-5 of the norm). FLOP/s counts the decoded tokens' forward pass; bytes are the weights once a step plus each
stream's state, read and written. Peak: this machine's fp32 GEMM, measured in the same run. The least time of several
counts, as the machine may be shared: of runs with one token and of runs with all, and their difference is decoding.
Prints a table and writes runs/bench/decode.json.
"""

import argparse
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from moonlet.engine import generate as engine
from moonlet.engine.generate import Decoder, Sampling, generate_parallel
from moonlet.files import write_json
from moonlet.model.config import for_depth
from moonlet.model.kernels import native as kernels
from moonlet.model.model import Model
from moonlet.train.flops import forward_flops, gemm_gflops

PROMPT = 150


def prompts(streams: int) -> list[list[int]]:
    return [
        [*range(10, 10 + PROMPT // 2), *(500 + (stream + i) % 1000 for i in range(PROMPT // 2))]
        for stream in range(streams)
    ]


def state_bytes(model: Model, length: float) -> float:
    """Of one stream: KDA states and convolution tails (read and written), MLA latents (read)."""
    c, total = model.config, 0.0
    for i in range(c.num_hidden_layers):
        H, K = c.kda("num_heads"), c.kda("head_dim")
        kda = 2 * 4 * (H * K * K + (c.kda("short_conv_kernel_size", 4) - 1) * 3 * H * K)
        total += kda if c.is_kda(i) else 4 * length * (c.kv_lora_rank + c.qk_rope_head_dim)
    return total


def differ(model: Model) -> float:
    """Native logits against those of PyTorch after a prompt and one token, relative to the norm."""
    found = []
    for packed in (True, False):
        decoder = Decoder(model)
        decoder.packed = decoder.packed if packed else None
        cache, _ = decoder.prefill(prompts(3), 8)
        found.append(decoder.feed(cache, [0, 1, 2], [[5], [6], [7]]))
    return float((found[0] - found[1]).norm() / found[1].norm())


def seconds(
    pool: ThreadPoolExecutor, threads: int, model: Model, streams: int, tokens: int, native: bool
) -> list[float]:
    """Wall time of a batch of streams that make one token each, and one of those that make `tokens` more."""
    can_pack = engine.can_pack
    engine.can_pack = can_pack if native else lambda model: False
    try:
        took = []
        for length in (1, 1 + tokens):
            began = time.perf_counter()
            generate_parallel(
                pool, threads, model, prompts(streams), list(range(streams)), -1, Sampling(1.0, 1.0, length)
            )
            took.append(time.perf_counter() - began)
        return took
    finally:
        engine.can_pack = can_pack


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    if kernels.why_not():
        raise SystemExit(kernels.why_not())
    torch.set_num_threads(1)
    model = Model(for_depth(4, 2048, {})).init_weights(0).eval()
    if not (error := differ(model)) < 1e-5:
        raise SystemExit(f"native and PyTorch logits differ by {error:.1e} of the norm")
    peak = gemm_gflops(options.threads)
    flops = sum(forward_flops(model.config, PROMPT + options.tokens / 2).values())
    weights = 4 * sum(p.numel() for n, p in model.named_parameters() if n != "embed_tokens.weight")
    print(f"{'streams':>8}{'PyTorch t/s':>13}{'native t/s':>12}{'ratio':>7}{'GFLOP/s':>9}{'of GEMM':>9}{'GB/s':>7}")
    rows = []
    with ThreadPoolExecutor(options.threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for streams in (1, 8, 64):
            run = (pool, options.threads, model, streams, options.tokens)
            times = [(seconds(*run, native=False), seconds(*run, native=True)) for _ in range(options.repeats)]
            least = [[min(took) for took in zip(*side)] for side in zip(*times)]
            plain, native = (streams * options.tokens / (long - short) for short, long in least)
            steps = native / streams * min(streams, options.threads)  # each thread reads the weights for its streams
            moved = steps * weights + native * state_bytes(model, PROMPT + options.tokens / 2)
            row = {"streams": streams, "plain_tokens_per_s": plain, "native_tokens_per_s": native}
            row |= {"ratio": native / plain, "gflops": native * flops / 1e9, "gigabytes_per_s": moved / 1e9}
            rows.append({**row, "of_gemm_peak": row["gflops"] / peak})
            print(
                f"{streams:8}{plain:13,.0f}{native:12,.0f}{native / plain:6.1f}x{row['gflops']:9.1f}"
                f"{row['gflops'] / peak:9.0%}{row['gigabytes_per_s']:7.1f}"
            )
    write_json(
        Path("runs/bench/decode.json"), {"threads": options.threads, "gemm_gflops": peak, "differ": error, "rows": rows}
    )


if __name__ == "__main__":
    main()
