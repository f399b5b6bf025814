"""One KDA layer, forward and backward, on one thread: plain PyTorch against the native kernels, alternated.

    python benchmarks/kda_layer.py [--repeats 20]

B = 8 rows of T = 256 tokens, the shape of K3 nano: hidden 128, 4 heads of 32, bounded gate. First both paths must agree
(output and every gradient, 1e-5 of the norm). Then each part (convolution, gate, recurrence, output norm) and the whole
layer are timed, plain and native in turn; the least of the repeats counts, as the machine may be shared. Prints a table
and writes runs/bench/kda_layer.json.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from moonlet.files import write_json
from moonlet.model import kda as layer
from moonlet.model.config import ModelConfig
from moonlet.model.kernels import native as kernels
from moonlet.model.kernels.conv import conv_qkv_torch, native_conv_qkv
from moonlet.model.kernels.gated_norm import gated_norm_torch, native_gated_norm
from moonlet.model.kernels.kda.chunk import chunk_kda
from moonlet.model.kernels.kda.gate import kda_gate_torch, native_kda_gate
from moonlet.model.kernels.kda.native import native_kda

B, T, D, H, K = 8, 256, 128, 4, 32
CONFIG = ModelConfig(
    vocab_size=16,
    hidden_size=D,
    intermediate_size=D,
    num_hidden_layers=1,
    num_attention_heads=H,
    kv_lora_rank=K,
    qk_nope_head_dim=K,
    qk_rope_head_dim=K,
    v_head_dim=K,
    q_lora_rank=K,
    hidden_act="situ",
    linear_attn_config={
        "kda_layers": [1],
        "full_attn_layers": [],
        "head_dim": K,
        "num_heads": H,
        "short_conv_kernel_size": 4,
        "use_full_rank_gate": True,
        "gate_lower_bound": -5.0,
    },
)

Pass = Callable[[], list[Tensor]]


def both_ways(function: Callable[..., Tensor | tuple[Tensor, ...]], *inputs: Tensor) -> Pass:
    """Forward and backward of `function`, all outputs counted in: -> outputs and gradients."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]

    def run() -> list[Tensor]:
        made = function(*leaves)
        outputs = [made] if isinstance(made, Tensor) else list(made)
        seeds = [torch.ones_like(o) for o in outputs]
        return [*(o.detach() for o in outputs), *torch.autograd.grad(outputs, leaves, seeds)]

    return run


def layer_pass(kda: layer.KDA, x: Tensor, native: bool) -> Pass:
    library = kernels.library

    def run() -> list[Tensor]:
        kernels.library = library if native else lambda: None  # type: ignore[assignment]
        try:
            leaf = x.clone().requires_grad_()
            y = kda(leaf)
            return [y.detach(), *torch.autograd.grad(y, [leaf, *kda.parameters()], torch.ones_like(y))]
        finally:
            kernels.library = library

    return run


def passes() -> dict[str, tuple[Pass, Pass]]:
    """(plain, native) of each part and of the layer."""
    r = torch.Generator().manual_seed(0)
    kda = layer.KDA(CONFIG)
    for p in kda.parameters():
        torch.nn.init.normal_(p, 0, 0.1, generator=r)
    kda.init_gates(r)
    qkv, taps = torch.randn(B, T, 3 * H * K, generator=r), torch.randn(3 * H * K, 4, generator=r)
    raw, gate = torch.randn(B, T, H * K, generator=r), torch.randn(B, T, H * K, generator=r)
    q, k, v = conv_qkv_torch(qkv, taps, None, None, H, 1e-6)
    g, beta = kda_gate_torch(raw, kda.dt_bias, kda.A_log, -5.0), torch.rand(B, T, H, generator=r)
    weight = torch.ones(K)

    def pair(plain: Callable, native: Callable, *inputs: Tensor) -> tuple[Pass, Pass]:
        return both_ways(plain, *inputs), both_ways(native, *inputs)

    x = torch.randn(B, T, D, generator=r)
    return {
        "conv, SiLU, L2 norm": pair(
            lambda x, w: conv_qkv_torch(x, w, None, None, H, 1e-6),
            lambda x, w: native_conv_qkv(x, w, None, None, H, 1e-6),
            qkv,
            taps,
        ),
        "gate": pair(
            lambda *t: kda_gate_torch(*t, -5.0), lambda *t: native_kda_gate(*t, -5.0), raw, kda.dt_bias, kda.A_log
        ),
        "recurrence": pair(lambda *t: chunk_kda(*t)[0], lambda *t: native_kda(*t)[0], q, k, v, g, beta),
        "gated norm": pair(
            lambda *t: gated_norm_torch(*t, 1e-5), lambda *t: native_gated_norm(*t, 1e-5), v, weight, gate
        ),
        "whole layer": (layer_pass(kda, x, native=False), layer_pass(kda, x, native=True)),
    }


def disagreement(a: list[Tensor], b: list[Tensor]) -> float:
    return max(float((x - y).norm() / y.norm().clamp(min=1e-30)) for x, y in zip(a, b, strict=True))


def milliseconds(run: Pass) -> float:
    began = time.perf_counter()
    run()
    return 1000 * (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=20)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    if kernels.why_not():
        raise SystemExit(kernels.why_not())
    rows = {}
    print(f"{'forward + backward':22}{'plain ms':>10}{'native ms':>11}{'speed-up':>10}{'tokens/s':>11}{'differ':>10}")
    for name, (plain, native) in passes().items():
        differ = disagreement(native(), plain())
        if not differ < 1e-5:
            raise SystemExit(f"{name}: plain and native differ by {differ:.1e} of the norm")
        times = [(milliseconds(plain), milliseconds(native)) for _ in range(repeats)]
        before, after = (min(t) for t in zip(*times))
        rate = 1000 * B * T / after
        rows[name] = {"plain_ms": before, "native_ms": after, "tokens_per_s": rate, "differ": differ}
        print(f"{name:22}{before:10.2f}{after:11.2f}{before / after:9.1f}x{rate:11,.0f}{differ:10.1e}")
    path = Path("runs/bench/kda_layer.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"batch": B, "length": T, "hidden": D, "heads": H, "head_dim": K, "threads": 1, "rows": rows})


if __name__ == "__main__":
    main()
