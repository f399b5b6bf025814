"""What routing costs: a layer of routed experts against a dense MLP of as many active FLOPs, forward and backward.

    python benchmarks/experts.py [--repeats 20]

2048 tokens, one thread, fp32, native kernels, random weights and router: 8 experts top-2 at width 64 (quickstart), 16
top-4 at 384 (the laptop shape of train_step.py) and 64 top-8 at 384, each against one MLP as wide as the chosen experts
together. Both do the same FLOPs but for the router (1 to 3% more). The sides take turns and the least of the repeats
counts, as the machine may be shared. Efficiency: the MLP's time over that of the experts. First the experts must
equal their twin in plain PyTorch (1e-5 of the norm). Writes runs/bench/experts.json.
"""

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from moonlet.files import write_json
from moonlet.model.config import for_depth
from moonlet.model.kernels import native
from moonlet.model.moe import MLP, MoE

TOKENS = 2048
SHAPES = {"quickstart": (64, 8, 2, 64), "laptop": (384, 16, 4, 128), "fine": (384, 64, 8, 128)}  # hidden, E, k, width


def passes(layer: nn.Module, x: Tensor) -> Callable[[], list[Tensor]]:
    """Forward and backward of a layer with random weights: -> output and gradients."""
    for i, p in enumerate(layer.parameters()):
        nn.init.normal_(p, 0, 0.05, generator=torch.Generator().manual_seed(i))

    def run() -> list[Tensor]:
        leaf = x.clone().requires_grad_()
        y = layer(leaf)
        y = y[0] if isinstance(y, tuple) else y
        return [y.detach(), *torch.autograd.grad(y.sum(), [leaf, *layer.parameters()])]

    return run


def seconds(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def twin(run: Callable[[], list[Tensor]]) -> list[Tensor]:
    library = native.library
    native.library = lambda: None  # type: ignore[assignment]
    try:
        return run()
    finally:
        native.library = library


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=20)
    repeats = parser.parse_args().repeats
    if native.why_not():
        raise SystemExit(native.why_not())
    torch.set_num_threads(1)
    load, rows = [os.getloadavg()[0]], []
    print(f"{'shape':12}{'dense ms':>10}{'experts ms':>12}{'GFLOP/s':>9}{'efficiency':>12}")
    for name, (hidden, E, k, width) in SHAPES.items():
        changes = {"hidden_size": hidden, "routed_expert_hidden_size": None, "num_shared_experts": 0}
        changes |= {"num_experts": E, "num_experts_per_token": k, "moe_intermediate_size": width}
        config = for_depth(4, 64, changes)
        x = torch.randn(1, TOKENS, hidden, generator=torch.Generator().manual_seed(0))
        dense, routed = passes(MLP(config, k * width), x), passes(MoE(config), x)
        differ = max(float((a - b).norm() / b.norm()) for a, b in zip(routed(), twin(routed), strict=True))
        if not differ < 1e-5:
            raise SystemExit(f"{name}: the experts differ from their twin by {differ:.1e} of the norm")
        dense()
        least, most = (min(t) for t in zip(*((seconds(dense), seconds(routed)) for _ in range(repeats))))
        gflops = 3 * 2 * 3 * hidden * k * width * TOKENS / most / 1e9
        rows.append({"shape": name, "dense_seconds": least, "experts_seconds": most, "efficiency": least / most})
        rows[-1] |= {"gflops": gflops, "differ": differ}
        print(f"{name:12}{1000 * least:10.1f}{1000 * most:12.1f}{gflops:9.1f}{least / most:12.0%}", flush=True)
    write_json(
        Path("runs/bench/experts.json"),
        {"threads": 1, "tokens": TOKENS, "load": [*load, os.getloadavg()[0]], "rows": rows},
    )


if __name__ == "__main__":
    main()
