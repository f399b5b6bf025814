"""One KDA layer, forward and backward, on one thread: plain PyTorch against the native kernels, alternated.

    python benchmarks/kda_layer.py [--repeats 20]

B = 8 rows of T = 256 tokens, the shape of K3 nano: hidden 128, 4 heads of 32, bounded gate. First both paths must agree
(output and every gradient, 1e-5 of the norm). Then each part (convolution, gate, recurrence, output norm) and the whole
layer are timed, plain and native in turn; the least of the repeats counts, as the machine may be shared.
The recurrence alone also meets fla-core's naive chunk form and the chunk form that transformers falls back to without
fla's kernels, in both their own tiles of 64 (outputs and gradients within 1e-4 of the norm; a fifth of the repeats).
Growth: the native layer on one row of 512 to 32 K tokens, time a token. Prints tables and writes
runs/bench/kda_layer.json.
"""

import argparse
import importlib.util
import os
import sysconfig
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
LENGTHS = (512, 2048, 8192, 32768)
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


def random_layer() -> tuple[layer.KDA, torch.Generator]:
    r = torch.Generator().manual_seed(0)
    kda = layer.KDA(CONFIG)
    for p in kda.parameters():
        torch.nn.init.normal_(p, 0, 0.1, generator=r)
    kda.init_gates(r)
    return kda, r


def passes() -> dict[str, tuple[Pass, Pass]]:
    """(plain, native) of each part and of the layer."""
    kda, r = random_layer()
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


def rivals() -> dict[str, tuple[Pass, Pass]]:
    """(theirs, native) of the recurrence, on the same inputs."""
    from transformers.models.kimi_linear.modeling_kimi_linear import chunk_kimi_delta_attention

    path = (
        Path(sysconfig.get_paths()["purelib"]) / "fla" / "ops" / "kda" / "naive.py"
    )  # the package itself needs triton
    spec = importlib.util.spec_from_file_location("fla_naive_kda", path)
    assert spec is not None and spec.loader is not None
    fla = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fla)
    kda, r = random_layer()
    q, k, v = conv_qkv_torch(torch.randn(B, T, 3 * H * K, generator=r), torch.randn(3 * H * K, 4), None, None, H, 1e-6)
    g = kda_gate_torch(torch.randn(B, T, H * K, generator=r), kda.dt_bias, kda.A_log, -5.0)
    inputs = q, k, v, g, torch.rand(B, T, H, generator=r)
    native = both_ways(lambda *t: native_kda(*t)[0], *inputs)
    return {
        "fla, naive chunk": (both_ways(lambda *t: fla.naive_chunk_kda(*t, scale=1.0)[0], *inputs), native),
        "transformers, chunk": (
            both_ways(lambda q, *t: chunk_kimi_delta_attention(q * K**0.5, *t)[0], *inputs),
            native,
        ),
    }


def growth(repeats: int) -> list[dict[str, float]]:
    """The native layer on one row of each length, in turn."""
    kda, r = random_layer()
    runs = {n: layer_pass(kda, torch.randn(1, n, D, generator=r), native=True) for n in LENGTHS}
    best = {n: min(milliseconds(run) for _ in range(2)) for n, run in runs.items()}
    for _ in range(repeats):
        for n, run in runs.items():
            best[n] = min(best[n], milliseconds(run))
    first = best[LENGTHS[0]] / LENGTHS[0]
    return [{"tokens": n, "ms": ms, "us_per_token": 1000 * ms / n, "growth": ms / n / first} for n, ms in best.items()]


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
    load = [os.getloadavg()[0]]
    rows = contest(passes(), "plain", repeats, 1e-5)
    against = contest(rivals(), "theirs", max(1, repeats // 5), 1e-4)
    lengths = growth(max(1, repeats // 5))
    print(f"{'layer, one row':>18}{'ms':>10}{'us/token':>10}{'growth':>8}")
    for row in lengths:
        print(f"{row['tokens']:11} tokens{row['ms']:10.1f}{row['us_per_token']:10.2f}{row['growth']:8.2f}")
    load.append(os.getloadavg()[0])
    print(f"load before and after: {load[0]:.1f}, {load[1]:.1f}")
    shape = {"batch": B, "length": T, "hidden": D, "heads": H, "head_dim": K, "threads": 1, "load": load}
    write_json(Path("runs/bench/kda_layer.json"), {**shape, "rows": rows, "recurrence": against, "growth": lengths})


def contest(pairs: dict[str, tuple[Pass, Pass]], other: str, repeats: int, bound: float) -> dict[str, dict[str, float]]:
    """Times of each pair in turn, after both gave the same within `bound`."""
    rows = {}
    print(
        f"{'forward + backward':22}{other + ' ms':>10}{'native ms':>11}{'speed-up':>10}{'tokens/s':>11}{'differ':>10}"
    )
    for name, (before, after) in pairs.items():
        differ = disagreement(after(), before())
        if not differ < bound:
            raise SystemExit(f"{name}: the two differ by {differ:.1e} of the norm")
        slow, fast = (min(t) for t in zip(*((milliseconds(before), milliseconds(after)) for _ in range(repeats))))
        rate = 1000 * B * T / fast
        rows[name] = {f"{other}_ms": slow, "native_ms": fast, "tokens_per_s": rate, "differ": differ}
        print(f"{name:22}{slow:10.2f}{fast:11.2f}{slow / fast:9.1f}x{rate:11,.0f}{differ:10.1e}", flush=True)
    return rows


if __name__ == "__main__":
    main()
