"""The hybrid cache of all live sequences: MLA latents in pages, one KDA state a sequence, and snapshots of both.

A page holds `PAGE` tokens' latents of all MLA layers; sequences and snapshots that share a prefix share its pages, and
whoever is about to write into a shared page gets its own copy first. A state row holds S and the convolution tail of
all KDA layers: fixed in size, so a snapshot copies it. All lie in arenas whose memory the system commits when it is
first touched; everything in use, snapshots too, counts against one budget of bytes. fp32, as the decoder computes; the
states of snapshots, of which there are many more than live sequences, in bf16 where that is asked for.
`prefix.py` says which snapshots are kept and found. Left out: live states in fewer bits, and pages moved to a disk.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from moonlet.engine.packed import Memory, StateC
from moonlet.errors import InputError
from moonlet.model.kda import KDAState
from moonlet.model.kernels.native import pointer
from moonlet.model.mla import MLAState
from moonlet.model.model import Cache, Model

PAGE = 64  # tokens; a multiple of 8 keeps the decoder's sums in one order
MOST_SNAPSHOTS = 4096
SNAPSHOTS = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(eq=False)
class Held:
    """What a sequence or a snapshot holds: a state row (those of snapshots are numbered behind those of sequences),
    pages in order, and how many tokens they have taken up."""

    row: int
    pages: list[int]
    length: int


class Pool:
    """Pages and state rows for at most `sequences` live sequences of `context` tokens, within `budget` bytes."""

    def __init__(
        self, model: Model, sequences: int, context: int, budget: int, further: int = 0, snapshots: str = "fp32"
    ) -> None:
        """further: numbers a token of one more layer's latents, a draft's. snapshots: fp32, or bf16 for their states.
        InputError for another word, and where the budget does not hold one sequence of 2 pages."""
        shapes = model.new_cache(1, PAGE).layers + [MLAState(torch.zeros(1, PAGE, further))] * bool(further)
        sizes = [n.S.numel() + n.conv.numel() if isinstance(n, KDAState) else n.latents.numel() for n in shapes]
        kinds = [isinstance(layer, KDAState) for layer in shapes]
        self.shapes, self.offsets = shapes, [sum(s for s, k in zip(sizes[:i], kinds) if k == kinds[i])
                                             for i in range(len(shapes))]  # fmt: skip
        state = sum(s for s, kda in zip(sizes, kinds) if kda)
        page = sum(s for s, kda in zip(sizes, kinds) if not kda)
        self.state_bytes, self.page_bytes, self.budget, self.used = 4 * state, 4 * page, budget, 0
        count = (budget - self.state_bytes) // self.page_bytes if page else 0
        if budget < self.state_bytes + 2 * self.page_bytes:
            least = self.state_bytes + 2 * self.page_bytes
            raise InputError(f"a cache of {budget} bytes holds no sequence: give at least {least}")
        if snapshots not in SNAPSHOTS:
            raise InputError(f"snapshots={snapshots!r}: one of {', '.join(SNAPSHOTS)}")
        self.context = min(context, count * PAGE) if page else context
        self.saved_bytes = state * SNAPSHOTS[snapshots].itemsize
        saved = min(MOST_SNAPSHOTS, budget // max(1, self.saved_bytes))
        self.device = model.embed_tokens.weight.device
        self.states = torch.empty(sequences, state, device=self.device)
        self.saved = torch.empty(saved, state, dtype=SNAPSHOTS[snapshots], device=self.device)
        self.pages = torch.empty(count, page, device=self.device)
        self.free_rows, self.free_snapshots = [*range(sequences)][::-1], [*range(sequences, sequences + saved)][::-1]
        self.free_pages, self.users = [*range(count)][::-1], [0] * count
        self.table = torch.zeros(sequences, max(1, -(-self.context // PAGE)), dtype=torch.int32)
        self.memory = self.as_memory(sequences)

    def as_memory(self, sequences: int) -> Memory:
        """The arenas as the native decoder sees them."""
        states = (StateC * len(self.shapes))()
        for state, layer, offset in zip(states, self.shapes, self.offsets):
            arena = self.states if isinstance(layer, KDAState) else self.pages
            state.memory, state.memory_row = (pointer(arena).value or 0) + 4 * offset, arena.stride(0)
            if isinstance(layer, KDAState):
                state.conv, state.conv_row = state.memory + 4 * layer.S.numel(), arena.stride(0)
        return Memory(states, torch.zeros(sequences, dtype=torch.long), self.table, PAGE)

    def open(self, snapshot: Held | None = None) -> Held | None:
        """A new sequence, empty or going on from a snapshot; None where no row or no memory is left."""
        if not self.free_rows or self.used + self.state_bytes > self.budget:
            return None
        held = Held(self.free_rows.pop(), [], 0)
        self.used += self.state_bytes
        if snapshot is None:
            self.states[held.row].zero_()
        else:
            self.states[held.row].copy_(self.saved[snapshot.row - len(self.states)])
            self.share(snapshot, held)
            self.table[held.row, : len(held.pages)] = torch.tensor(held.pages, dtype=torch.int32)
        self.memory.lengths[held.row] = held.length
        return held

    def grow(self, held: Held, tokens: int) -> bool:
        """Make the next `tokens` places of a sequence its own to write; False, and nothing done, without memory."""
        if not self.page_bytes:
            return True
        last = held.length // PAGE  # the page that is written first
        copied = last < len(held.pages) and self.users[held.pages[last]] > 1
        new = max(0, -(-(held.length + tokens) // PAGE) - len(held.pages))
        if (new or copied) and not self.fits(new + copied):
            return False
        if copied:
            own = self.take_page()
            self.pages[own].copy_(self.pages[held.pages[last]])
            self.drop_page(held.pages[last])
            held.pages[last] = own
            self.table[held.row, last] = own
        for _ in range(new):
            held.pages.append(self.take_page())
            self.pages[held.pages[-1]].zero_()  # attention of `gather` multiplies by 0 what lies behind the last token
            self.table[held.row, len(held.pages) - 1] = held.pages[-1]
        return True

    def snapshot(self, held: Held) -> Held | None:
        """A copy of the state and a share of the pages as they are now; None without memory."""
        if not self.free_snapshots or self.used + self.saved_bytes > self.budget:
            return None
        saved = Held(self.free_snapshots.pop(), [], 0)
        self.used += self.saved_bytes
        self.saved[saved.row - len(self.states)].copy_(self.states[held.row])
        self.share(held, saved)
        return saved

    def rewind(self, held: Held, state: torch.Tensor, length: int) -> None:
        """Back to a copy of the state row, taken when the sequence had `length` tokens."""
        self.states[held.row].copy_(state)
        held.length = length
        self.memory.lengths[held.row] = length

    def release(self, held: Held) -> None:
        """Give back what a sequence or a snapshot holds."""
        for page in held.pages:
            self.drop_page(page)
        live = held.row < len(self.states)
        (self.free_rows if live else self.free_snapshots).append(held.row)
        self.used -= self.state_bytes if live else self.saved_bytes
        held.pages = []

    def share(self, giver: Held, taker: Held) -> None:
        taker.length = giver.length
        taker.pages = giver.pages[: -(-giver.length // PAGE)]
        for page in taker.pages:
            self.users[page] += 1

    def fits(self, pages: int) -> bool:
        return pages <= len(self.free_pages) and self.used + pages * self.page_bytes <= self.budget

    def take_page(self) -> int:
        page = self.free_pages.pop()
        self.users[page] = 1
        self.used += self.page_bytes
        return page

    def drop_page(self, page: int) -> None:
        self.users[page] -= 1
        if not self.users[page]:
            self.free_pages.append(page)
            self.used -= self.page_bytes

    def numbers(self, sequences: Sequence[Held], pages: int) -> torch.Tensor:
        """What `gather` takes, [n, 2 + pages] int64 on the CPU: state row, length, the first pages (the last one again
        where there are fewer: a sequence looks at no other's numbers)."""
        filled = [(held, (held.pages + (held.pages[-1:] or [0]) * pages)[:pages]) for held in sequences]
        return torch.tensor([[held.row, held.length, *own] for held, own in filled])

    def gather(self, rows: torch.Tensor, lengths: torch.Tensor, table: torch.Tensor) -> Cache:
        """Sequences as a cache of one tensor a layer, for a model without kernels: of their state rows [n], lengths [n]
        and pages [n, P], whose tokens are its places."""
        layers: list[KDAState | MLAState] = []
        for layer, offset in zip(self.shapes, self.offsets):
            if isinstance(layer, KDAState):
                middle = offset + layer.S.numel()
                S, conv = self.states[rows, offset:middle], self.states[rows, middle : middle + layer.conv.numel()]
                layers.append(KDAState(S.view(-1, *layer.S.shape[1:]), conv.view(-1, *layer.conv.shape[1:])))
            else:
                latents = self.pages[table, offset : offset + layer.latents.numel()]
                layers.append(MLAState(latents.view(len(table), -1, layer.latents.shape[2])))
        return Cache(layers, lengths)

    def scatter(
        self, rows: torch.Tensor, table: torch.Tensor, cache: Cache, which: torch.Tensor, place: torch.Tensor
    ) -> None:
        """Write a gathered cache back into the arenas: all states, and the latents of new tokens, each at `place` of
        its sequence number `which` (both [tokens])."""
        page, slot = table[which, place // PAGE], place % PAGE
        for old, new, offset in zip(self.shapes, cache.layers, self.offsets):
            if isinstance(old, KDAState) and isinstance(new, KDAState):
                middle = offset + old.S.numel()
                self.states[rows, offset:middle] = new.S.flatten(1)
                self.states[rows, middle : middle + old.conv.numel()] = new.conv.flatten(1)
            elif isinstance(old, MLAState) and isinstance(new, MLAState):
                arena = self.pages[:, offset : offset + old.latents.numel()].unflatten(1, (PAGE, -1))
                arena[page, slot] = new.latents[which, place]
