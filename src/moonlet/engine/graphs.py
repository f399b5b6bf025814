"""Decoding on a GPU with one launch a step: CUDA graphs of one token of each of some sequences.

A graph does again what was recorded, on the same memory, so all that changes between steps is in one tensor, `numbers`
[rows, 3 + pages] int64: of each row its token, and of its sequence the state row, the length and the pages. Inside, the
cache is gathered from the arenas (`cache.Pool`), the model runs as it is, and states and latents are written back. A
graph is made when the first step of its size comes, which takes a moment: rows and pages go by powers of two, and rows
that are left over repeat the first one, so they write what it writes. Where none can be made the steps go on without.
Left out: graphs of prompts, which have any length; latents read where they lie (they are copied together first).
Checked on a CPU by a recorder of its own (tests/engine/test_graphs.py); unchecked on a GPU so far.
"""

import logging
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from moonlet.engine.cache import Held, Pool
from moonlet.model.model import Model

FEWEST_PAGES = 4
log = logging.getLogger("moonlet.engine")
Run = Callable[[], Tensor]
Recorded = tuple[Tensor, Callable[[], None]]  # a result, and what computes it again


def record_cuda(run: Run) -> Recorded:
    """A CUDA graph of `run`, which is done a few times."""
    beside = torch.cuda.Stream()
    beside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(beside):
        for _ in range(3):  # kernels are compiled, and libraries take their memory, outside the graph
            run()
    torch.cuda.current_stream().wait_stream(beside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        out = run()
    return out, graph.replay


class Graphs:
    """Of one model and one cache."""

    def __init__(self, model: Model, pool: Pool, record: Callable[[Run], Recorded] = record_cuda) -> None:
        self.model, self.pool, self.record = model, pool, record
        self.made: dict[tuple[int, ...], tuple[Tensor, Recorded]] = {}

    @torch.no_grad()
    def decode(self, sequences: Sequence[Held], tokens: Sequence[int]) -> Tensor:
        """Feed each sequence, which must have room, a token; logits [n, vocab] fp32, there until the next call."""
        n, pages = len(sequences), max(len(held.pages) for held in sequences)
        numbers = torch.tensor(tokens).unsqueeze(1), self.pool.numbers(sequences, power(max(FEWEST_PAGES, pages)))
        rows = torch.cat(numbers, dim=1)
        rows = torch.cat([rows, rows[:1].expand(power(n) - n, -1)])
        if rows.shape not in self.made:
            self.made[rows.shape] = self.make(rows.to(self.pool.device))
        fixed, (logits, again) = self.made[rows.shape]
        fixed.copy_(rows)
        again()
        return logits[:n]

    def make(self, numbers: Tensor) -> tuple[Tensor, Recorded]:
        """The memory that a graph of this size reads, and the graph; states are left as they were."""
        before = self.pool.states[numbers[:, 1]]
        try:
            recorded = self.record(lambda: self.run(numbers))
        except RuntimeError as error:
            log.warning("no CUDA graph of %d rows, so their steps launch every kernel: %s", len(numbers), error)
            recorded = self.unrecorded(numbers)
        self.pool.states[numbers[:, 1]] = before
        return numbers, recorded

    def unrecorded(self, numbers: Tensor) -> Recorded:
        logits = self.run(numbers)

        def again() -> None:
            logits.copy_(self.run(numbers))

        return logits, again

    def run(self, numbers: Tensor) -> Tensor:
        """One step; nothing in it may depend on what the numbers are but through tensors."""
        tokens, rows, lengths, table = *numbers[:, :3].unbind(1), numbers[:, 3:]
        cache = self.pool.gather(rows, lengths, table)
        cache.seen = table.shape[1] * self.pool.memory.page
        hidden, _ = self.model.hidden(tokens.unsqueeze(1), cache=cache)
        self.pool.scatter(rows, table, cache, torch.arange(len(rows), device=rows.device), lengths)
        return self.model.lm_head(hidden[:, 0]).float()


def power(n: int) -> int:
    """The least power of two that is not below n."""
    return 1 << (n - 1).bit_length()
