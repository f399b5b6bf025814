"""What this machine can do at most, and what that means for a training step: the roofline.

    python benchmarks/roofline.py [--seconds 2] [--json]

Measures the matrix-product peak (fp32, and bf16 where the processor has instructions for it) and the memory's read
bandwidth, on one thread and on all, each the best within `seconds`. Then, for the two shapes of train_step.py, FLOPs
and bytes of one micro-batch of 2048 tokens by part (`train.flops`), FLOPs a byte, which of the two peaks binds, and the
least time. No step can be faster; train_step.py says what share of it is reached. Writes runs/bench/roofline.json.
"""

import argparse
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from train_step import LAPTOP

from moonlet.doctor import report
from moonlet.files import write_json
from moonlet.model.config import ModelConfig, for_depth
from moonlet.model.linear import has_bf16
from moonlet.train.flops import Cost, costs, gemm_gflops, read_gigabytes
from moonlet.train.step import MICRO_TOKENS

SHAPES = {"quickstart": (for_depth(4, 2048), 256), "laptop": (ModelConfig(**LAPTOP), 512)}  # config, tokens a row


def machine(seconds: float) -> dict[str, Any]:
    """Peaks by number of threads: GFLOP/s of products (null where bf16 would be emulated), GB/s of reads."""
    cores, rows = os.cpu_count() or 1, []
    for threads in sorted({1, cores}):
        bf16 = gemm_gflops(threads, seconds, torch.bfloat16) if has_bf16() else None
        row = {"threads": threads, "fp32_gflops": gemm_gflops(threads, seconds), "bf16_gflops": bf16}
        rows.append({**row, "read_gigabytes_per_s": read_gigabytes(threads, seconds)})
    return {"processor": report()["processor"], "peaks": rows}


def row(part: str, cost: Cost, gflops: float, gigabytes: float) -> dict[str, Any]:
    intensity = sum(cost.flops) / sum(cost.bytes)
    bound = "compute" if intensity > gflops / gigabytes else "memory"
    least = cost.seconds(gflops, gigabytes)
    return {"part": part, **asdict(cost), "flops_per_byte": intensity, "bound": bound, "least_seconds": least}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--json", action="store_true", help="print the JSON document and nothing else")
    options = parser.parse_args()
    result = machine(options.seconds)
    peaks = result["peaks"][-1]
    gflops, gigabytes = peaks["fp32_gflops"], peaks["read_gigabytes_per_s"]
    result["shapes"] = {
        name: [
            row(part, cost, gflops, gigabytes) for part, cost in costs(config, MICRO_TOKENS, (length + 1) / 2).items()
        ]
        for name, (config, length) in SHAPES.items()
    }
    write_json(Path("runs/bench/roofline.json"), result)
    print(json.dumps(result, indent=2) if options.json else "\n".join(lines(result)))


def lines(result: dict[str, Any]) -> list[str]:
    out = [str(result["processor"])]
    for peak in result["peaks"]:
        bf16 = f"bf16 {peak['bf16_gflops']:.0f}" if peak["bf16_gflops"] else "no bf16 instructions"
        out.append(
            f"{peak['threads']} threads: fp32 {peak['fp32_gflops']:.0f} GFLOP/s, {bf16}, "
            f"reads {peak['read_gigabytes_per_s']:.1f} GB/s"
        )
    for name, rows in result["shapes"].items():
        head = f"{'GFLOP':>9}{'MB':>8}{'FLOP/B':>8}{'bound':>9}{'least ms':>10}"
        out += ["", f"{name}, {MICRO_TOKENS} tokens, forward + backward", f"{'part':12}{head}"]
        for r in rows:
            flops, moved = sum(r["flops"]) / 1e9, sum(r["bytes"]) / 1e6
            out.append(
                f"{r['part']:12}{flops:9.2f}{moved:8.0f}{r['flops_per_byte']:8.0f}{r['bound']:>9}"
                f"{1000 * r['least_seconds']:10.1f}"
            )
        out.append(f"{'all':12}{1000 * sum(r['least_seconds'] for r in rows):44.1f}")
    return out


if __name__ == "__main__":
    main()
