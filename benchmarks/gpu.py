"""Every form for a GPU against its plain twin on the same GPU: equal values and gradients first, then both timed.

    python benchmarks/gpu.py [--tokens 4096] [--repeats 20] [--json]

The operators at the widths of Kimi Linear (heads of 128, keys of 192 in MLA), a row of packed documents; 64 experts,
two of them with no token. The truth is the plain form in fp32 on the same inputs; the largest error of an output or a
gradient may be 1e-4 of its norm in fp32, 1e-2 in bf16. fla multiplies fp32 chunks as TF32 and is not chosen for them:
they are measured in bf16 alone. Then a K3 model of 8 layers, hidden 512: a training step with bf16 products, and
decoding in bf16, tokens a second without the forms for a GPU, with them, and with all launches of a step in one CUDA
graph, whose logits must be those of the step without (1e-2). Times are the least of `repeats`.
Writes runs/bench/gpu.json; exit code 1 where an error is out of bounds, 2 where torch finds no GPU.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from moonlet.engine.cache import Pool
from moonlet.engine.generate import Decoder
from moonlet.engine.graphs import Graphs
from moonlet.engine.weights import on_gpu
from moonlet.files import write_json
from moonlet.model.config import for_depth
from moonlet.model.kernels import gpu
from moonlet.model.kernels.attention import attention_flex, attention_torch
from moonlet.model.kernels.conv import conv_qkv_torch
from moonlet.model.kernels.experts import routed_grouped, routed_torch
from moonlet.model.kernels.kda.chunk import chunk_kda
from moonlet.model.kernels.kda.gate import kda_gate_torch
from moonlet.model.kernels.kda.naive import naive_kda
from moonlet.model.linear import bf16_products
from moonlet.model.model import Model
from moonlet.train.step import compute, cross_entropy

HEADS, K, NOPE, ROPE, V = 16, 128, 128, 64, 128
EXPERTS, CHOSEN, LATENT, WIDTH = 64, 8, 1024, 512
ROWS = 64  # sequences that decode
BOUNDS = {torch.float32: 1e-4, torch.bfloat16: 1e-2}
Form = Callable[..., Sequence[Tensor]]


@dataclass
class Case:
    """One operator: its form for a GPU and its plain twin, inputs in fp32, the dtypes that the former is chosen for."""

    name: str
    form: Form
    plain: Form
    inputs: list[Tensor]
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.bfloat16)
    backward: bool = True


def cases(T: int, device: torch.device) -> list[Case]:
    generator = torch.Generator(device).manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device)

    segments = (torch.rand(1, T, generator=generator, device=device) < 8 / T).long().cumsum(1)
    q, k = (torch.nn.functional.normalize(random(1, T, HEADS, K), dim=-1) for _ in range(2))
    v, beta, raw = random(1, T, HEADS, K), torch.sigmoid(random(1, T, HEADS)), random(1, T, HEADS * K)
    A_log, dt_bias = random(HEADS) / 4, random(HEADS * K)
    out = []
    for name, lower in (("bounded", -5.0), ("unbounded", None)):
        g = kda_gate_torch(raw, dt_bias, A_log, lower)
        out += [
            Case(
                f"decay, {name}",
                lambda *x, lower=lower: [gpu.fla_kda_gate(*x, lower)],
                lambda *x, lower=lower: [kda_gate_torch(*x, lower)],
                [raw, dt_bias, A_log],
                (torch.float32,),
            ),
            Case(
                f"KDA, {name}",
                lambda q, k, v, g, beta, lower=lower: gpu.fla_kda(
                    q, k, v, g.float(), beta.float(), None, segments, lower is not None
                ),
                lambda *x, lower=lower: chunk_kda(*floats(x), None, segments, pairwise=lower is None),
                [q * K**-0.5, k, v, g, beta],
                (torch.bfloat16,),
            ),
        ]
    one, state = [t[:, :ROWS].transpose(0, 1).contiguous() for t in (q, k, v, g, beta)], random(ROWS, HEADS, K, K)
    chosen = torch.rand(T, EXPERTS - 2, generator=generator, device=device).topk(CHOSEN, dim=1).indices
    act, w = ("situ", 4.0, 25.0), [random(EXPERTS, WIDTH, LATENT) / LATENT**0.5 for _ in range(2)]
    down = random(EXPERTS, LATENT, WIDTH) / WIDTH**0.5
    keys = [random(1, T, HEADS, NOPE + ROPE), random(1, T, HEADS, NOPE + V), random(1, T, ROPE)]
    scale = (NOPE + ROPE) ** -0.5
    return [
        *out,
        Case(
            f"KDA, a token of {ROWS} rows",
            lambda q, k, v, g, beta, S: gpu.fla_kda(q, k, v, g.float(), beta.float(), S.float(), None, False),
            lambda *x: naive_kda(*floats(x)),
            [*one, state],
            backward=False,
        ),
        Case(
            "convolution",
            lambda *x: gpu.fla_conv_qkv(*x, None, segments, HEADS, 1e-6),
            lambda *x: conv_qkv_torch(*x, None, segments, HEADS, 1e-6),
            [random(1, T, 3 * HEADS * K), random(3 * HEADS * K, 4)],
        ),
        Case(
            "attention",
            lambda *x: attention_flex(*x, segments, scale),
            lambda *x: attention_torch(*x, segments, scale),
            keys,
        ),
        Case(
            "experts",
            lambda z, p, *w: [routed_grouped(z, chosen, p, *w, act)],
            lambda z, p, *w: [routed_torch(z, chosen, p, *w, act)],
            [random(T, LATENT), torch.rand(T, CHOSEN, generator=generator, device=device), *w, down],
            (torch.bfloat16,),
        ),
    ]


def floats(x: Sequence[Tensor]) -> list[Tensor]:
    """In fp32, as the plain convolution hands them over."""
    return [t.float() for t in x]


def passes(form: Form, inputs: list[Tensor], backward: bool) -> Callable[[], list[Tensor]]:
    """One run: outputs, and with `backward` the gradients of the sum of those that have any."""
    leaves = [x.detach().clone().requires_grad_(backward) for x in inputs]

    def run() -> list[Tensor]:
        with torch.set_grad_enabled(backward):
            outputs = list(form(*leaves))
            grads = torch.autograd.grad([o.sum() for o in outputs if o.requires_grad], leaves) if backward else ()
        return [*(o.detach() for o in outputs), *grads]

    return run


def milliseconds(run: Callable[[], object], repeats: int) -> float:
    run()
    least = float("inf")
    for _ in range(repeats):
        torch.cuda.synchronize()
        began = time.perf_counter()
        run()
        torch.cuda.synchronize()
        least = min(least, time.perf_counter() - began)
    return 1000 * least


def measured(case: Case, dtype: torch.dtype, repeats: int) -> dict[str, Any]:
    inputs = [x.to(dtype) for x in case.inputs]
    form = passes(case.form, inputs, case.backward)
    truth = passes(case.plain, [x.float() for x in inputs], case.backward)()
    pairs = zip(form(), truth, strict=True)
    error = max(float((a.double() - b.double()).norm() / b.double().norm().clamp(min=1e-30)) for a, b in pairs)
    plain = passes(case.plain, inputs, case.backward)
    times = milliseconds(plain, repeats), milliseconds(form, repeats)
    row = {"operator": case.name, "dtype": str(dtype).removeprefix("torch."), "error": error, "bound": BOUNDS[dtype]}
    return {**row, "plain_ms": times[0], "gpu_ms": times[1]}


def whole(T: int, repeats: int, device: torch.device) -> list[dict[str, Any]]:
    """Tokens a second of a model, with the forms for a GPU and without."""
    config = for_depth(8, 8192, {"hidden_size": 512, "moe_intermediate_size": 256})
    ids = torch.randint(0, 8192, (1, T), generator=torch.Generator().manual_seed(0))
    batch = {"tokens": ids, "segments": 1 + torch.arange(T)[None] // 512, "loss": torch.ones_like(ids)}
    model = Model(config).init_weights(0).to(device)

    def train() -> None:
        with bf16_products(model):
            compute(model, [batch], float(T), cross_entropy)

    def both(name: str, run: Callable[[], object], tokens: int) -> dict[str, Any]:
        fast = milliseconds(run, repeats)
        with patch.object(gpu, "here", lambda *_: False):
            slow = milliseconds(run, repeats)
        return {"part": name, "plain_tokens_per_s": 1000 * tokens / slow, "gpu_tokens_per_s": 1000 * tokens / fast}

    rows = [both(f"training, {T} tokens", train, T)]
    decoder = Decoder(on_gpu(model.eval(), device))
    for count in (1, ROWS):
        pool = Pool(decoder.model, count, 512, 1 << 30)
        held = [one for _ in range(count) if (one := pool.open()) is not None and pool.grow(one, 129)]
        decoder.extend(pool, held, [ids[0, :128].tolist()] * count, [1] * count)
        for one in held:
            one.length = 128
        before, graphs = pool.states.clone(), Graphs(decoder.model, pool)
        feed = partial(decoder.extend, pool, held, [[1]] * count, [1] * count)
        truth = feed()
        pool.states.copy_(before)
        error = float((graphs.decode(held, [1] * count).cpu() - truth).norm() / truth.norm())
        row = both(f"decoding, {count} rows", feed, count)
        graph = milliseconds(partial(graphs.decode, held, [1] * count), repeats)
        rows.append({**row, "graph_tokens_per_s": 1000 * count / graph, "graph_error": error})
    return rows


def lines(result: dict[str, Any]) -> list[str]:
    head = f"{'operator':26}{'dtype':>10}{'error':>10}{'plain ms':>11}{'gpu ms':>9}{'speed-up':>10}"
    out = [f"{result['device']}, {result['tokens']} tokens, forward and backward", head]
    for r in result["operators"]:
        times = f"{r['plain_ms']:11.2f}{r['gpu_ms']:9.2f}{r['plain_ms'] / r['gpu_ms']:9.1f}x"
        wrong = "" if r["error"] <= r["bound"] else f"  above {r['bound']:g}"
        out.append(f"{r['operator']:26}{r['dtype']:>10}{r['error']:10.1e}{times}{wrong}")
    out += ["", f"{'model, tokens/s':26}{'plain':>12}{'gpu':>12}{'in a graph':>12}{'its error':>12}"]
    for r in result["model"]:
        graph = f"{r['graph_tokens_per_s']:12,.0f}{r['graph_error']:12.1e}" if "graph_error" in r else ""
        out.append(f"{r['part']:26}{r['plain_tokens_per_s']:12,.0f}{r['gpu_tokens_per_s']:12,.0f}{graph}")
    return out


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--json", action="store_true", help="print the JSON document and nothing else")
    options = parser.parse_args()
    if not torch.cuda.is_available() or gpu.why_not():
        problem = gpu.why_not() if torch.cuda.is_available() else "torch finds no GPU here"
        print(f"gpu: nothing to measure: {problem}", file=sys.stderr)
        return 2
    device = torch.device("cuda")
    operators = [
        measured(case, dtype, options.repeats) for case in cases(options.tokens, device) for dtype in case.dtypes
    ]
    torch.set_float32_matmul_precision("high")  # what docs/on-a-gpu.md trains with
    result = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "tokens": options.tokens}
    result |= {"operators": operators, "model": whole(options.tokens, options.repeats, device)}
    write_json(Path("runs/bench/gpu.json"), result)
    print(json.dumps(result, indent=2) if options.json else "\n".join(lines(result)))
    errors = [(r["error"], r["bound"]) for r in operators]
    errors += [(r["graph_error"], BOUNDS[torch.bfloat16]) for r in result["model"] if "graph_error" in r]
    return int(any(not error <= bound for error, bound in errors))


if __name__ == "__main__":
    sys.exit(main())
