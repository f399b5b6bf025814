"""The forms for a GPU, as far as a CPU can tell: which is chosen, what they compute, and that no tensor stays behind.

Grouped products and flex attention run on a CPU as plain references of torch's own; fla's kernels need Triton
(test_gpu_fla.py). For the way from a loaded model to a training step and a sampled token, "meta" stands for the GPU:
tensors without data, which do not mix with those of the CPU.
"""

import ast
import ctypes
import math
import re
import runpy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.attention.flex_attention as flex
from small_models import FORMS, random_ids, random_model, relative
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from moonlet.engine import cache as cache_module
from moonlet.engine.cache import Held, Pool
from moonlet.engine.generate import Decoder, Sampling, generate, pick
from moonlet.engine.graphs import Graphs
from moonlet.engine.weights import FP32, on_gpu
from moonlet.model.kernels import attention, conv, experts, gpu, kda, native
from moonlet.model.kernels.kda import gate
from moonlet.model.linear import bf16_products
from moonlet.model.model import Model
from moonlet.optim.balance import quantile_balance
from moonlet.optim.muon import MuonAdamW, OptimConfig, muon_blocks
from moonlet.optim.qk_clip import qk_clip
from moonlet.quant.grids import rounded_experts
from moonlet.train.step import compute, cross_entropy

BF16, FP32_, FP64 = torch.bfloat16, torch.float32, torch.float64


def numbers(*shape: int, seed: int = 0, dtype: torch.dtype = FP32_) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=FP64).to(dtype).requires_grad_()


def differ(form: Callable[..., Sequence[Tensor]], plain: Callable[..., Sequence[Tensor]], x: list[Tensor]) -> float:
    """The largest relative error of outputs and gradients, the plain form being in fp64."""
    exact = [t.detach().double().requires_grad_() for t in x]
    made, truth = form(*x), plain(*exact)
    w = [numbers(*t.shape, seed=9) for t in truth]
    grads, true_grads = (
        torch.autograd.grad(sum(((o * v).sum() for o, v in zip(out, w)), torch.zeros(())), leaves, allow_unused=True)
        for out, leaves in ((made, x), (truth, exact))
    )
    return max(relative(a, b) for a, b in zip([*made, *grads], [*truth, *true_grads], strict=True))


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """CPU tensors pass for those of a GPU."""
    monkeypatch.setattr(gpu, "here", lambda *tensors: all(t is None or t.dtype in gpu.DTYPES for t in tensors))
    monkeypatch.setattr(native, "ready", lambda: False)


@pytest.mark.parametrize("fla", [True, False])
@pytest.mark.parametrize("dtype", [BF16, FP32_, FP64])
def test_the_form_that_is_chosen(fla: bool, dtype: torch.dtype, elsewhere: None, monkeypatch: Any) -> None:
    chosen: list[str] = []

    def record(owner: Any, name: str) -> None:
        monkeypatch.setattr(owner, name, lambda *a, **k: chosen.append(name) or (torch.zeros(1), torch.zeros(1)))

    for name in ("fla_kda", "fla_kda_gate", "fla_conv_qkv"):
        record(gpu, name)
    for owner, name in (
        (kda, "chunk_kda"),
        (kda, "step"),
        (gate, "kda_gate_torch"),
        (conv, "conv_qkv_torch"),
        (attention, "attention_flex"),
        (attention, "attention_torch"),
        (experts, "routed_grouped"),
        (experts, "routed_torch"),
    ):
        record(owner, name)
    monkeypatch.setattr(gpu, "ready", lambda: fla)
    q, state, segments = torch.zeros(1, 20, 2, 16, dtype=dtype), torch.zeros(1, 2, 16, 16), torch.ones(1, 20)
    g, beta = torch.zeros(1, 20, 2, 16), torch.zeros(1, 20, 2)
    exact = torch.get_float32_matmul_precision()

    def forms(run: Callable[[], object]) -> str:
        run()
        return chosen.pop()

    kernel = fla and dtype == BF16
    assert forms(lambda: kda.delta_rule(q, q, q, g, beta)) == ("fla_kda" if kernel else "chunk_kda")
    assert forms(lambda: kda.delta_rule(q, q, q, g, beta, state)) == ("fla_kda" if kernel else "chunk_kda")
    assert forms(lambda: kda.delta_rule(q, q, q, g, beta, state, segments)) == "chunk_kda"
    one = [t[:, :1] for t in (q, q, q, g, beta)]
    assert forms(lambda: kda.delta_rule(*one, state)) == ("fla_kda" if kernel else "step")
    with torch.no_grad():  # token by token there are no products, so fp32 is exact
        assert forms(lambda: kda.delta_rule(*one, state)) == ("fla_kda" if fla and dtype != FP64 else "step")
    torch.set_float32_matmul_precision("high")
    try:
        tf32 = fla and dtype in (BF16, FP32_)
        assert forms(lambda: kda.delta_rule(q, q, q, g, beta)) == ("fla_kda" if tf32 else "chunk_kda")
    finally:
        torch.set_float32_matmul_precision(exact)
    x, taps, past = torch.zeros(1, 5, 96, dtype=dtype), torch.zeros(96, 4, dtype=dtype), torch.zeros(1, 3, 96)
    kernel = fla and dtype in (BF16, FP32_)
    assert forms(lambda: conv.conv_qkv(x, taps, None, None, 2, 1e-6)) == (
        "fla_conv_qkv" if kernel else "conv_qkv_torch"
    )
    assert forms(lambda: conv.conv_qkv(x, taps, past, None, 2, 1e-6)) == (
        "fla_conv_qkv" if kernel else "conv_qkv_torch"
    )
    assert forms(lambda: conv.conv_qkv(x, taps, past, segments, 2, 1e-6)) == "conv_qkv_torch"
    assert forms(lambda: gate.kda_gate(x, taps, past, None)) == ("fla_kda_gate" if kernel else "kda_gate_torch")
    kv, k_r = torch.zeros(1, 20, 2, 24, dtype=dtype), torch.zeros(1, 20, 8, dtype=dtype)
    wide = "attention_torch" if dtype == FP64 else "attention_flex"
    assert forms(lambda: attention.attention(q, kv, k_r, None, 1.0)) == wide
    assert forms(lambda: attention.attention(q[..., :12], kv[..., :20], k_r, None, 1.0)) == "attention_torch"
    z, w = torch.zeros(3, 8, dtype=dtype), torch.zeros(4, 16, 8, dtype=dtype)
    form = "routed_grouped" if dtype == BF16 else "routed_torch"
    assert forms(lambda: experts.routed_experts(z, segments, z, w, w, w, ("silu", 1.0, None))) == form
    assert forms(lambda: experts.routed_experts(z, segments, z, w[:, :12], w, w, ("silu", 1.0, None))) == "routed_torch"


def test_a_cpu_s_tensors_are_not_on_a_gpu() -> None:
    assert gpu.here() and gpu.here(None) and not gpu.here(torch.zeros(1)) and not gpu.usable(torch.zeros(1))


@pytest.mark.parametrize("act", [("silu", 4.0, None), ("situ", 4.0, 25.0)])
def test_grouped_experts(act: tuple[str, float, float | None]) -> None:
    """Two experts have no token: their gradients are zeros, not what was in the memory."""
    chosen = torch.tensor([[0, 2], [5, 0], [2, 5], [4, 2], [0, 5]] * 5)
    weights = [numbers(6, 16, 8, seed=i) for i in (1, 2)] + [numbers(6, 8, 16, seed=3)]
    x = [t.detach().to(BF16).requires_grad_() for t in (numbers(25, 8), numbers(25, 2, seed=4), *weights)]
    error = differ(
        lambda z, p, *w: [experts.routed_grouped(z, chosen, p, *w, act)],
        lambda z, p, *w: [experts.routed_torch(z, chosen, p, *w, act)],
        x,
    )
    assert error < 1e-2
    u = experts.routed_grouped(x[0], chosen, x[1], *x[2:], act)
    for grad in torch.autograd.grad((u * u.detach()).sum(), x[2:]):
        assert grad[0].any() and not grad[1].any() and not grad[3].any()


@pytest.mark.parametrize("packed", [False, True], ids=["one_document", "packed"])
@pytest.mark.parametrize("T", [5, 150])
def test_flex_attention(T: int, packed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's own reference of it has all that the kernel has; only the checks before it say that a CPU has not."""
    options = {"BACKEND": "AUTO", "OUTPUT_MAX": True, "OUTPUT_LOGSUMEXP": True}
    monkeypatch.setattr(flex, "_validate_device", lambda *_: None)
    monkeypatch.setattr(flex, "_apply_kernel_options", lambda *_: options)
    monkeypatch.setattr(flex, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    monkeypatch.setattr(attention, "compiled", lambda: flex.flex_attention)
    segments = torch.stack([torch.arange(T) // 40, torch.arange(T) // 77]) if packed else None
    x = [numbers(2, T, 3, 20), numbers(2, T, 3, 28, seed=1), numbers(2, T, 4, seed=2)]
    largest: list[Tensor] = []

    def run(form: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., list[Tensor]]:
        def only_o(*x: Tensor) -> list[Tensor]:
            o, most = form(*x, segments, 0.4)
            largest.append(most.double())
            return [o]

        return only_o

    assert differ(run(attention.attention_flex), run(attention.attention_torch), x) < 2e-6
    assert relative(*largest) < 1e-6


def test_borders() -> None:
    segments = torch.tensor([[1, 1, 2, 3, 3, 0], [4, 4, 4, 4, 4, 4], [4, 4, 5, 5, 5, 5]])
    assert gpu.borders(segments).tolist() == [0, 2, 3, 5, 6, 12, 14, 18]
    assert gpu.borders(segments) is gpu.borders(segments) and gpu.borders(segments.clone()) is not gpu.borders(segments)


@pytest.mark.parametrize("form", FORMS)
def test_bf16_decodes_what_it_computes(form: str) -> None:
    """As on a GPU but for the kernels: the cache, in fp32, and a model that is not."""
    model = on_gpu(random_model(FORMS[form](num_experts_per_token=6)), torch.device("cpu"))
    dtypes = {p.dtype for n, p in model.named_parameters() if n.endswith(FP32)}, model.lm_head.weight.dtype
    assert dtypes == ({FP32_}, BF16)
    ids = random_ids(2, 21)
    decoder, cache = Decoder(model), model.new_cache(2, 4)
    assert decoder.packed is None
    for start, end in ((0, 13), (13, 14), (14, 21)):
        logits = decoder.feed(cache, [0, 1], ids[:, start:end].tolist())
    with torch.no_grad():
        assert relative(logits, model(ids)[:, -1]) < 0.02
    (made,) = generate(decoder, [ids[0].tolist()], [1], 0, Sampling(max_tokens=5))
    assert len(made.ids) == 5 and all(math.isfinite(p) for p in made.logprobs)


def test_the_page_s_snippet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It trains, on whatever device it names."""
    page = Path(__file__).parents[2] / "docs" / "on-a-gpu.md"
    (snippet,) = re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)
    exact = torch.get_float32_matmul_precision()
    try:
        script = tmp_path / "snippet.py"
        script.write_text(snippet.replace('"cuda"', '"cpu"').replace("(8, 256)", "(2, 40)"))
        runpy.run_path(str(script))
    finally:
        torch.set_float32_matmul_precision(exact)
    log = ast.literal_eval(capsys.readouterr().out)
    assert log["skipped"] == 0 and math.isfinite(log["loss"])


class Apart(TorchDispatchMode):
    """Runs meta tensors; refuses operators that mix them with the CPU's, but for copies and indices. What
    comes back to the CPU is 40, and masks are true throughout."""

    MAY_MIX = ("aten::copy_", "aten::_to_copy", "aten::index", "aten::index_put_", "aten::_index_put_impl_")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        flat = torch.utils._pytree.tree_leaves((args, kwargs))
        tensors = [t for t in flat if isinstance(t, Tensor)]
        devices = {t.device.type for t in tensors if t.ndim}
        name = func._schema.name
        assert len(devices) < 2 or name in self.MAY_MIX, f"{name} on {devices}"
        if devices == {"cpu", "meta"} and "index" in name:
            assert args[0].is_meta, f"{name}: a tensor of the CPU with the GPU's indices"
        if args and isinstance(args[0], Tensor) and args[0].is_meta:
            if name == "aten::_local_scalar_dense":
                return 40
            if name == "aten::_to_copy" and kwargs.get("device") == torch.device("cpu"):
                return torch.full(args[0].shape, 40, dtype=kwargs.get("dtype") or args[0].dtype)
            if name == "aten::bincount":
                return args[0].new_empty(args[2])
            if name == "aten::index" and args[1][0].dtype == torch.bool:
                mask = args[1][0]
                return args[0].new_empty(mask.numel(), *args[0].shape[mask.ndim :])
        return func(*args, **(kwargs or {}))


def moved(form: str, dtype: torch.dtype) -> Model:
    model = Model(FORMS[form](moe_intermediate_size=32, routed_expert_hidden_size=32 if form == "k3" else None))
    return model.to("meta", dtype)


@pytest.mark.parametrize(("form", "bf16"), [("k3", True), ("kimi_linear", False), ("k2_yarn", True)])
def test_a_training_step_stays_on_its_device(form: str, bf16: bool) -> None:
    model = moved(form, FP32_)
    model.expert_format = "mxfp4"
    optimizer = MuonAdamW(model, muon_blocks(model), OptimConfig(1e-3, 1e-3))
    ids = random_ids(1, 40)
    batch = {"tokens": ids, "segments": torch.arange(40)[None] // 15, "loss": torch.ones_like(ids)}
    with Apart():
        with rounded_experts(model), bf16_products(model, bf16):
            grads, (part,) = compute(model, [batch], 39.0, cross_entropy)
        optimizer.step(dict(zip(optimizer.params, grads)), 1.0)
        qk_clip(model, part.stats.max_logits, 100.0)
        quantile_balance(model, {i: [(s.scores, s.cutoff)] for i, s in part.stats.routers.items()})
    assert {g.device.type for g in grads} == {"meta"}


@pytest.mark.parametrize(("form", "dtype"), [("k3", BF16), ("kimi_linear", FP32_), ("k2_yarn", BF16)])
def test_decoding_stays_on_its_device(form: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "pointer", lambda arena: ctypes.c_void_p(64))  # nobody reads it there
    model = moved(form, dtype)
    with Apart():
        decoder, cache = Decoder(model), model.new_cache(2, 4)
        logits = decoder.feed(cache, [1, 0], [[1, 2, 3], [4]])
        pick(logits, np.array([0.5, 0.5]), Sampling(top_p=0.9))
        pool = Pool(model, 3, 256, 1 << 20)
        held = [Held(0, [1, 2], 38), Held(2, [0], 39)]
        assert decoder.extend(pool, held, [[1, 2], [3]], [1, 1]).shape == (2, model.config.vocab_size)
        step = Graphs(model, pool).run(torch.ones(2, 7, dtype=torch.long, device="meta"))
    assert {logits.device.type, step.device.type, pool.pages.device.type} == {"meta"}
