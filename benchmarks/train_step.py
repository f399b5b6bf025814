"""The training step, forward and backward, on this machine: native kernels, plain PyTorch, and transformers.

    python benchmarks/train_step.py [--repeats 5] [--contests quickstart laptop laptop_compiled k3_blocks]

quickstart: the K3 model of recipes/quickstart.toml, batch 8 x 256, this project's native kernels against its own plain
PyTorch path. laptop: the Kimi Linear form (hidden 384, 8 layers, 16 experts top-4, vocabulary 8 K), batch 4 x 512,
native kernels against transformers' KimiLinearForCausalLM, eager, fp32. laptop_compiled: the same against it under
torch.compile, compile time apart (it takes long: only if asked for). k3_blocks: the K3 form as wide and deep as laptop.
All in fp32.
Both sides get all cores: this project one worker thread a core, the others PyTorch's own threads. First the losses must
agree (2e-5), then the sides take turns and the median counts. FLOPs and bytes are those of `train.flops` for both
sides; MFU is against the fp32 GEMM peak, "of bound" against the roofline of both peaks, all measured in the same run.
"6 N a core": 6 x active parameters x tokens/s, by core, in GFLOP/s. "CPU ms": least processor time of all threads,
which other programs disturb less. Load is the machine's, before and after. Writes runs/bench/train_step.json.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from moonlet.files import write_json
from moonlet.model import sizes
from moonlet.model.config import ModelConfig, for_depth, from_json
from moonlet.model.kernels import native
from moonlet.model.model import Model
from moonlet.model.weights import from_published
from moonlet.train.flops import costs, gemm_gflops, read_gigabytes
from moonlet.train.step import MICRO_TOKENS, Batch, Stepper

Side = Callable[[], float]  # one forward and backward pass; the mean loss
THREADS = os.cpu_count() or 1
LAPTOP: dict[str, Any] = {
    "vocab_size": 8192,
    "hidden_size": 384,
    "intermediate_size": 1024,
    "moe_intermediate_size": 128,
    "num_hidden_layers": 8,
    "num_attention_heads": 6,
    "kv_lora_rank": 128,
    "qk_nope_head_dim": 64,
    "qk_rope_head_dim": 32,
    "v_head_dim": 64,
    "num_experts": 16,
    "num_experts_per_token": 4,
    "num_shared_experts": 1,
    "linear_attn_config": {
        "kda_layers": [1, 2, 3, 5, 6, 7],
        "full_attn_layers": [4, 8],
        "head_dim": 64,
        "num_heads": 6,
        "short_conv_kernel_size": 4,
    },
}
K3_BLOCKS = {
    "hidden_size": 384,
    "intermediate_size": 1152,
    "num_attention_heads": 12,
    "num_heads": 12,
    "q_lora_rank": 192,
    "kv_lora_rank": 192,
    "moe_intermediate_size": 192,
    "routed_expert_hidden_size": 192,
}


@dataclass
class Contest:
    """Sides that do the same work, the slowest first; `rows` x `length` tokens through `config`."""

    config: ModelConfig
    rows: int
    length: int
    sides: dict[str, Side]

    @property
    def tokens(self) -> int:
        return self.rows * self.length


def batch(rows: int, length: int, vocab: int) -> Batch:
    """Random tokens, each a target."""
    tokens = torch.randint(0, vocab, (rows, length), generator=torch.Generator().manual_seed(0))
    ones = torch.ones_like(tokens)
    return {"tokens": tokens, "segments": ones, "loss": ones}


def ours(model: Model, data: Batch, kernels: bool) -> Side:
    stepper, library = Stepper(THREADS), native.library

    def run() -> float:
        torch.set_num_threads(1)
        if not kernels:
            native.library = lambda: None  # type: ignore[assignment]
        try:
            return stepper.gradients(model, data)[0]
        finally:
            native.library = library

    return run


def quickstart() -> Contest:
    config = for_depth(4, 2048)
    model, data = Model(config).init_weights(0), batch(8, 256, 2048)
    sides = {"moonlet, plain PyTorch": ours(model, data, False), "moonlet, native": ours(model, data, True)}
    return Contest(config, 8, 256, sides)


def k3_blocks() -> Contest:
    config = for_depth(8, 8192, K3_BLOCKS)
    model, data = Model(config).init_weights(0), batch(4, 512, 8192)
    sides = {"moonlet, plain PyTorch": ours(model, data, False), "moonlet, native": ours(model, data, True)}
    return Contest(config, 4, 512, sides)


def laptop(compiled: bool = False) -> Contest:
    import transformers
    from safetensors.torch import load_file

    transformers.logging.set_verbosity_error()
    config = transformers.KimiLinearConfig(**LAPTOP, num_key_value_heads=6, pad_token_id=None)
    torch.manual_seed(0)
    eager = {"attn_implementation": "eager", "experts_implementation": "eager"}
    theirs = transformers.KimiLinearForCausalLM._from_config(config, **eager)
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        model = Model(from_json(Path(folder) / "config.json"))
        from_published(model, load_file(f"{folder}/model.safetensors"))
    data, parameters = batch(4, 512, 8192), list(theirs.parameters())
    forward = torch.compile(theirs) if compiled else theirs

    def run() -> float:
        torch.set_num_threads(THREADS)
        logits = forward(data["tokens"]).logits
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), data["tokens"][:, 1:].flatten())
        torch.autograd.grad(loss, parameters, allow_unused=True)
        return float(loss.detach())

    name = f"transformers, {'compiled' if compiled else 'eager'}"
    return Contest(model.config, 4, 512, {name: run, "moonlet, native": ours(model, data, True)})


CONTESTS = {
    "quickstart": quickstart,
    "laptop": laptop,
    "laptop_compiled": lambda: laptop(compiled=True),
    "k3_blocks": k3_blocks,
}


def measure(name: str, contest: Contest, repeats: int, gflops: float, gigabytes: float) -> list[dict[str, Any]]:
    """One row a side, after a first pass whose losses must agree."""
    start = time.perf_counter()
    first = [run() for run in contest.sides.values()]
    warm = time.perf_counter() - start
    if max(first) - min(first) > 2e-5:
        raise SystemExit(f"{name}: the losses differ: {first}")
    seconds: dict[str, list[float]] = {side: [] for side in contest.sides}
    cpu: dict[str, list[float]] = {side: [] for side in contest.sides}
    for _ in range(repeats):
        for side, run in contest.sides.items():
            began = time.perf_counter(), time.process_time()
            run()
            seconds[side].append(time.perf_counter() - began[0])
            cpu[side].append(time.process_time() - began[1])
    config, tokens = contest.config, contest.tokens
    found, passes = costs(config, MICRO_TOKENS, (contest.length + 1) / 2).values(), tokens / MICRO_TOKENS
    flops = passes * sum(sum(cost.flops) for cost in found)
    least = passes * sum(cost.seconds(gflops, gigabytes) for cost in found)
    active = sum(sizes.active(sizes.parameters(config), config).values())
    slowest, rows = statistics.median(next(iter(seconds.values()))), []
    for side, times in seconds.items():
        took = statistics.median(times)
        row = {"contest": name, "side": side, "seconds": took, "all": times, "tokens_per_second": tokens / took}
        row |= {"gflops": flops / took / 1e9, "mfu": flops / took / 1e9 / gflops, "of_bound": least / took}
        row |= {"six_n_gflops_a_core": 6 * active * tokens / took / 1e9 / THREADS, "ratio": slowest / took}
        rows.append(row | {"cpu_seconds": min(cpu[side]), "first_pass_seconds": warm})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--contests", nargs="+", choices=CONTESTS, default=["quickstart", "laptop", "k3_blocks"])
    options = parser.parse_args()
    if native.why_not():
        raise SystemExit(native.why_not())
    load = [os.getloadavg()[0]]
    gflops, gigabytes, rows = gemm_gflops(THREADS), read_gigabytes(THREADS), []
    print(f"fp32 GEMM {gflops:.0f} GFLOP/s, reads {gigabytes:.1f} GB/s on {THREADS} threads; load {load[0]:.1f}")
    print(
        f"{'contest':17}{'side':24}{'ms':>8}{'CPU ms':>8}{'tokens/s':>10}{'GFLOP/s':>9}{'MFU':>6}{'of bound':>10}"
        f"{'6 N a core':>12}{'ratio':>7}"
    )
    for name in options.contests:
        for row in measure(name, CONTESTS[name](), options.repeats, gflops, gigabytes):
            rows.append(row)
            print(
                f"{name:17}{row['side']:24}{1000 * row['seconds']:8.0f}{1000 * row['cpu_seconds']:8.0f}"
                f"{row['tokens_per_second']:10,.0f}"
                f"{row['gflops']:9.1f}{row['mfu']:6.0%}{row['of_bound']:10.0%}{row['six_n_gflops_a_core']:12.1f}"
                f"{row['ratio']:6.1f}x",
                flush=True,
            )
    load.append(os.getloadavg()[0])
    print(f"load after: {load[1]:.1f}")
    peaks = {"gemm_gflops": gflops, "read_gigabytes_per_s": gigabytes}
    write_json(Path("runs/bench/train_step.json"), {"threads": THREADS, **peaks, "load": load, "rows": rows})


if __name__ == "__main__":
    main()
