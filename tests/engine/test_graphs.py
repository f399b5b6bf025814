"""CUDA graphs of decoding, without CUDA: a recorder keeps the operators of one step and the memory of their results,
and runs the same operators on the same memory again. What a step computed from a number outside a tensor would then
stay what it was; operators that ask for one are refused, as a capture does."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from scheduling import by_hand, greedy
from small_models import FORMS, random_ids, random_model, relative
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from moonlet.engine.cache import Pool
from moonlet.engine.generate import Decoder
from moonlet.engine.graphs import Graphs, Recorded, Run, power
from moonlet.engine.weights import on_gpu
from moonlet.model.kernels import gpu, native

ASK = ("aten::_local_scalar_dense", "aten::nonzero", "aten::bincount", "aten::masked_select", "aten::_unique2")


class Tape(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.steps: list[tuple[Callable[..., Any], Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.name in ASK:
            raise RuntimeError(f"{func._schema.name} asks the GPU")
        out = func(*args, **(kwargs or {}))
        self.steps.append((func, args, kwargs or {}, out))
        return out

    def again(self) -> None:
        for func, args, kwargs, out in self.steps:
            new = func(*args, **kwargs)
            for old, now in zip(*(torch.utils._pytree.tree_leaves(t) for t in (out, new)), strict=True):
                if isinstance(old, Tensor) and old.data_ptr() != now.data_ptr():
                    old.copy_(now)


def record(run: Run) -> Recorded:
    with Tape() as tape:
        out = run()
    return out, tape.again


@pytest.fixture(autouse=True)
def without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU's kernels are no operators of torch; a bf16 model's experts take the form that they have on a GPU."""
    monkeypatch.setattr(native, "ready", lambda: False)
    monkeypatch.setattr(gpu, "here", lambda *tensors: all(t is None or t.dtype in gpu.DTYPES for t in tensors))


@torch.no_grad()
@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("form", FORMS)
def test_a_step_that_is_repeated_is_a_step(form: str, bf16: bool, caplog: pytest.LogCaptureFixture) -> None:
    """Sequences of other lengths, in other rows and pages, than those that were recorded; three steps of four rows,
    one of them there twice, and then one of two. All experts work, as rounding may choose others."""
    model = random_model(FORMS[form](max_position_embeddings=512, num_experts_per_token=6), std=0.07 if bf16 else 0.2)
    if bf16:
        model = on_gpu(model, torch.device("cpu"))
    pool, made = Pool(model, 6, 512, 1 << 26), Decoder(model)
    assert made.packed is None
    pool.pages.fill_(torch.nan)  # what was in the memory before
    held = [pool.open() for _ in range(5)]
    ids = random_ids(5, 300).tolist()

    def feed(queues: dict[int, list[int]]) -> Tensor:
        some = [held[i] for i in queues]
        for i, one in zip(queues, some):
            assert one is not None and pool.grow(one, len(queues[i]))
        logits = made.extend(pool, some, list(queues.values()), [1] * len(some))
        for i, one in zip(queues, some):
            one.length += len(queues[i])
        return logits

    lengths = [130, 7, 64, 200, 63]
    feed({i: row[:length] for i, (row, length) in enumerate(zip(ids, lengths))})
    made.graphs = Graphs(model, pool, record)
    for which in [(0, 1, 2), (3, 0, 1), (4, 3, 2), (1, 4)]:
        logits = feed({i: [ids[i][lengths[i]]] for i in which})
        for i, row in zip(which, logits):
            lengths[i] += 1
            truth = model(torch.tensor([ids[i][: lengths[i]]]))[0, -1]
            assert relative(row, truth) < (0.02 if bf16 else 1e-5)
    assert not caplog.records
    assert {tuple(shape) for shape in made.graphs.made} == {(4, 3 + 4), (2, 3 + 4)}
    assert pool.memory.lengths[[h.row for h in held]].tolist() == lengths


def test_a_graph_that_cannot_be_made(caplog: pytest.LogCaptureFixture) -> None:
    """The steps go on without, from the states that they had."""

    def broken(run: Run) -> Recorded:
        run()
        raise RuntimeError("operation not permitted when stream is capturing")

    model = random_model(FORMS["k3"](), std=0.2)
    said = []
    for recorder in (None, broken):
        pool, made = Pool(model, 2, 128, 1 << 24), Decoder(model)
        made.graphs = recorder and Graphs(model, pool, recorder)
        held = pool.open()
        assert held is not None
        for token in (1, 2, 3):
            pool.grow(held, 1)
            said.append(made.extend(pool, [held], [[token]], [1]).clone())
            held.length += 1
    for ours, plain in zip(said[3:], said[:3]):
        assert torch.allclose(ours, plain, atol=1e-5)
    assert "not permitted" in caplog.text and len(caplog.records) == 1


@pytest.mark.parametrize("form", ["k3", "k2_yarn"])
def test_served_texts_are_the_same(form: str) -> None:
    """Continuous batching with prefix hits and copied pages, greedy."""
    model = random_model(FORMS[form](), std=0.2)
    texts = []
    for recorder in (None, record):
        made = Decoder(model)
        s = by_hand(made)
        made.graphs = recorder and Graphs(model, s.pool, recorder)
        texts.append(greedy(s))
    for a, b in zip(*texts):
        assert [p.token for p in a] == [p.token for p in b]
    assert made.graphs is not None and len(made.graphs.made) > 1


def test_power() -> None:
    assert [power(n) for n in (1, 2, 3, 4, 5, 8, 9, 64)] == [1, 2, 4, 4, 8, 8, 16, 64]
