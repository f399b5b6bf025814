"""torch.compile and FSDP2 around the native operators: one graph, the same logits and gradients.

Short test: Dynamo and AOTAutograd trace the K3 form, the graph then runs as it is (`aot_eager`); it must be one graph,
so that no operator is left to the interpreter. The other forms, and Inductor (a minute), stand behind `soak`.
FSDP2: two processes on gloo, each with half of the rows, against one process with all.
"""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from small_models import FORMS, linear_attn, random_ids, random_model, relative
from torch import Tensor

from moonlet.model.kernels import native
from moonlet.model.linear import bf16_products
from moonlet.model.model import Model

pytestmark = pytest.mark.skipif(native.library() is None, reason=f"no native kernels: {native.why_not()}")
THREE = ("k3", "kimi_linear", "k2")
SHARDED = [*((form, False) for form in THREE), ("k3", True)]  # form, products in bf16
BF16 = 2e-2  # a sum over half of the rows rounds otherwise than one over all


@pytest.fixture(autouse=True, scope="module")
def nan_in_new_memory() -> None:
    """Not here: the compiler makes tensors of its own while it traces."""


def two_layers(form: str) -> Model:
    """A KDA layer and an MLA layer with experts (K2: two MLA layers), all weights random."""
    changes = {} if form == "k2" else {"linear_attn_config": linear_attn(kda_layers=[1], full_attn_layers=[2])}
    if form == "k3":
        changes["linear_attn_config"] |= {"use_full_rank_gate": True, "gate_lower_bound": -5.0}
        changes["attn_res_block_size"] = 1
    return random_model(FORMS[form](num_hidden_layers=2, **changes))


def batch(rows: int = 4, T: int = 37) -> tuple[Tensor, Tensor]:
    """ids and segments [rows, T], documents packed."""
    return random_ids(rows, T), torch.stack([torch.arange(T) // (11 + 4 * i) + 1 for i in range(rows)])


def loss_and_gradients(model: torch.nn.Module, ids: Tensor, segments: Tensor) -> list[Tensor]:
    loss = F.cross_entropy(model(ids, segments)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    grads = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    return [loss.detach(), *(g for g in grads if g is not None)]


def same(got: list[Tensor], truth: list[Tensor], bound: float = 2e-5) -> None:
    assert len(got) == len(truth)
    for a, b in zip(got, truth):
        assert relative(a, b) < bound


def compiled_equals_eager(form: str, backend: str) -> tuple[Model, Model]:
    model = two_layers(form)
    truth = loss_and_gradients(model, *batch())
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend=backend, dynamic=False)
    same(loss_and_gradients(compiled, *batch()), truth)
    return model, compiled


@pytest.mark.parametrize("form", [THREE[0], *(pytest.param(form, marks=pytest.mark.soak) for form in THREE[1:])])
def test_traced(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(native, "call", lambda name, *rest, call=native.call: (calls.append(name), call(name, *rest)))
    compiled_equals_eager(form, "aot_eager")
    assert {"attention_forward", "attention_backward", "experts_backward"} <= set(calls)
    assert ("kda_backward" in calls) == (form != "k2")


@pytest.mark.soak
def test_traced_in_bf16() -> None:
    model, (ids, segments) = two_layers("k3"), batch()
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=False)
    with bf16_products(model):
        same(loss_and_gradients(compiled, ids, segments), loss_and_gradients(model, ids, segments), BF16)


@pytest.mark.soak
@pytest.mark.parametrize("form", THREE)
def test_other_lengths(form: str) -> None:
    """Compiled anew, or once for all lengths: the numbers that the kernels get are those of the batch."""
    model = two_layers(form)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for shape in ((4, 37), (2, 50), (3, 16)):
        same(loss_and_gradients(compiled, *batch(*shape)), loss_and_gradients(model, *batch(*shape)))


@pytest.mark.soak
@pytest.mark.parametrize("form", THREE)
def test_inductor(form: str) -> None:
    model, compiled = compiled_equals_eager(form, "inductor")
    with torch.no_grad():
        assert relative(compiled(*batch()), model(*batch())) < 2e-5


def shard(rank: int, port: int, out: str) -> None:
    """One of two processes: its half of the rows through a sharded model; rank 0 writes loss and whole gradients."""
    from torch.distributed import all_reduce, destroy_process_group, init_process_group
    from torch.distributed.fsdp import fully_shard

    init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    found = []
    for form, bf16 in SHARDED:
        model = two_layers(form)
        for layer in model.layers:
            fully_shard(layer.self_attn)
            fully_shard(layer.mlp)
        fully_shard(model)
        ids, segments = (t[2 * rank : 2 * rank + 2] for t in batch())
        with bf16_products(model, bf16):
            loss = F.cross_entropy(model(ids, segments)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
            loss.backward()
        loss = loss.detach() / 2
        all_reduce(loss)
        found.append([loss, *(p.grad.full_tensor() for p in model.parameters() if p.grad is not None)])
    if rank == 0:
        torch.save(found, out)
    destroy_process_group()


def test_fsdp(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    out = tmp_path / "gradients.pt"
    code = "import json, sys; from test_compiled import shard; shard(*json.loads(sys.argv[1]))"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path]), "OMP_NUM_THREADS": "1"}
    commands = [[sys.executable, "-c", code, json.dumps([rank, port, str(out)])] for rank in range(2)]
    running = [subprocess.Popen(c, env=env, stderr=subprocess.PIPE, text=True) for c in commands]
    for process in running:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    for (form, bf16), got in zip(SHARDED, torch.load(out), strict=True):
        model = two_layers(form)
        with bf16_products(model, bf16):
            truth = loss_and_gradients(model, *batch())
        same(got, truth, BF16 if bf16 else 2e-5)
