"""The training step, forward and backward, on this machine: native kernels, plain PyTorch, and transformers.

    python benchmarks/train_step.py [--repeats 5] [--shapes quickstart laptop]

quickstart: the K3 model of recipes/quickstart.toml, batch 8 x 256, this project's native kernels against its own plain
PyTorch path. laptop: the Kimi Linear form (hidden 384, 8 layers, 16 experts top-4, vocabulary 8 K), batch 4 x 512,
native kernels against transformers' KimiLinearForCausalLM, eager, fp32 (bf16 and torch.compile are not compared). Both
sides get all cores: this project one worker thread a core, the others PyTorch's own threads. First the losses must
agree (2e-5), then the sides take turns and the median counts. FLOPs are those of `train.flops` for both sides; MFU is
against the fp32 GEMM peak measured in the same run. Writes runs/bench/train_step.json.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

from moonlet.files import write_json
from moonlet.model.config import ModelConfig, for_depth, from_json
from moonlet.model.kernels import native
from moonlet.model.model import Model
from moonlet.model.weights import from_published
from moonlet.train.flops import gemm_gflops, training_flops
from moonlet.train.step import Batch, Stepper

Side = Callable[[], float]  # one forward and backward pass; the mean loss
THREADS = os.cpu_count() or 1


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


def quickstart() -> tuple[ModelConfig, Batch, dict[str, Side]]:
    config = for_depth(4, 2048)
    model, data = Model(config).init_weights(0), batch(8, 256, 2048)
    return (
        config,
        data,
        {"moonlet, plain PyTorch": ours(model, data, False), "moonlet, native": ours(model, data, True)},
    )


def laptop() -> tuple[ModelConfig, Batch, dict[str, Side]]:
    import transformers
    from safetensors.torch import load_file

    transformers.logging.set_verbosity_error()
    linear = {"kda_layers": [1, 2, 3, 5, 6, 7], "full_attn_layers": [4, 8], "head_dim": 64, "num_heads": 6}
    config = transformers.KimiLinearConfig(
        vocab_size=8192,
        hidden_size=384,
        intermediate_size=1024,
        moe_intermediate_size=128,
        num_hidden_layers=8,
        num_attention_heads=6,
        num_key_value_heads=6,
        kv_lora_rank=128,
        qk_nope_head_dim=64,
        qk_rope_head_dim=32,
        v_head_dim=64,
        num_experts=16,
        num_experts_per_token=4,
        num_shared_experts=1,
        pad_token_id=None,
        linear_attn_config={**linear, "short_conv_kernel_size": 4},
    )
    torch.manual_seed(0)
    eager = {"attn_implementation": "eager", "experts_implementation": "eager"}
    theirs = transformers.KimiLinearForCausalLM._from_config(config, **eager)
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        model = Model(from_json(Path(folder) / "config.json"))
        from_published(model, load_file(f"{folder}/model.safetensors"))
    data = batch(4, 512, 8192)

    def run() -> float:
        torch.set_num_threads(THREADS)
        logits = theirs(data["tokens"]).logits
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), data["tokens"][:, 1:].flatten())
        torch.autograd.grad(loss, list(theirs.parameters()), allow_unused=True)
        return float(loss.detach())

    return model.config, data, {"transformers, eager": run, "moonlet, native": ours(model, data, True)}


SHAPES = {"quickstart": quickstart, "laptop": laptop}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    options = parser.parse_args()
    if native.why_not():
        raise SystemExit(native.why_not())
    peak, rows = gemm_gflops(THREADS), []
    print(f"fp32 GEMM peak {peak:.0f} GFLOP/s on {THREADS} threads")
    print(f"{'shape':12}{'side':26}{'ms':>9}{'tokens/s':>10}{'GFLOP/s':>9}{'MFU':>6}{'ratio':>7}")
    for shape in options.shapes:
        config, data, sides = SHAPES[shape]()
        losses = [run() for run in sides.values()]
        if max(losses) - min(losses) > 2e-5:
            raise SystemExit(f"{shape}: the losses differ: {losses}")
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(options.repeats):
            for name, run in sides.items():
                began = time.perf_counter()
                run()
                seconds[name].append(time.perf_counter() - began)
        tokens = data["tokens"].numel()
        flops = training_flops(config, tokens, (data["tokens"].shape[1] + 1) / 2)
        slowest = statistics.median(next(iter(seconds.values())))
        for name, times in seconds.items():
            took = statistics.median(times)
            rate, speed = tokens / took, flops / took / 1e9
            rows.append({"shape": shape, "side": name, "seconds": took, "all": times, "tokens_per_second": rate})
            rows[-1] |= {"gflops": speed, "mfu": speed / peak, "ratio": slowest / took}
            print(
                f"{shape:12}{name:26}{1000 * took:9.0f}{rate:10,.0f}{speed:9.1f}{100 * speed / peak:5.0f}%"
                f"{slowest / took:6.1f}x"
            )
    path = Path("runs/bench/train_step.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"threads": THREADS, "gemm_gflops": peak, "rows": rows})


if __name__ == "__main__":
    main()
