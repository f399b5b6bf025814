"""What may come next: by prompt lookup, else by the draft model, for several requests at once.

`load_draft` reads `draft.safetensors` beside a model. `NativeDraft` lays it out for the native decoder, with the head
that the model has packed; a chain of guesses is one call (model/kernels/native/draft.cpp) and takes the likeliest token
at each place, for sampled texts too. `Drafts` keeps, for each request, how far the draft's own latents (a layer more in
the cache's pages, so snapshots carry them) come from the model's features, and the features that wait to be taken up.
Latents of guessed places are written over when the true features are known, so a wrong guess leaves nothing to undo.
What a snapshot does not carry is the feature at its end, for which a zero stands: that may cost a guess, never a text.
Where places have no positions, as in K3, the draft looks back over a window of pages only, so that a guess costs the
same in a long text; it was not trained so, and guesses no worse.
"""

import ctypes
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from moonlet.engine.cache import Pool
from moonlet.engine.packed import FLOAT, INT, POINTER, LayerC, MatrixC, Memory, ModelC, PackedModel, StateC, named
from moonlet.engine.request import Request
from moonlet.engine.speculate import Drafter
from moonlet.engine.tensor_files import opened
from moonlet.errors import InputError
from moonlet.model.draft import Draft, block_count, published_name
from moonlet.model.kernels.native import library, pointer
from moonlet.model.model import Model

FILE = "draft.safetensors"
LENGTH = 7  # tokens of a draft, as K3's
SURE = 0.6  # a draft ends behind the first token of which it is less sure
WINDOW = 4  # pages that the draft looks back over, beside the one it is in; only where places have no positions
MOST_WAITING = 64  # features of a request that wait before they are taken up without a draft


def load_draft(folder: Path, model: Model) -> Draft | None:
    """The draft beside a model, None where there is none. InputError for a file that is cut off or of another model."""
    path = Path(folder) / FILE
    if not path.exists():
        return None
    tensors = opened(path)
    draft = Draft(model.config).requires_grad_(False).eval()
    own = {published_name(name, draft): value for name, value in draft.named_parameters()}
    if surplus := sorted(set(tensors.keys()) ^ set(own)):
        raise InputError(f"{path} does not fit the model beside it ({surplus[0]}): write it again with moonlet draft")
    for name, value in own.items():
        stored = tensors.get_tensor(name)
        if stored.shape != value.shape:
            shapes = f"{name} is {list(stored.shape)}, not {list(value.shape)}"
            raise InputError(f"{path} does not fit the model beside it ({shapes}): write it again with moonlet draft")
        value.copy_(stored)
    return draft


class DraftC(ctypes.Structure):
    _fields_ = (
        ("layer", ModelC),
        *named(POINTER, "embedding", "embedding_norm", "feature_norm"),
        *named(MatrixC, "fuse", "join"),
    )


class NativeDraft(PackedModel):
    """A draft for the model that `target` holds; like it, it belongs to the weights of the moment."""

    def __init__(self, draft: Draft, model: Model, target: PackedModel) -> None:
        self.kept, self.mapped = [target], []
        self.weights, self.consume, self.scratch = target.weights, False, None
        self.multiplications = (
            sum(p.numel() for p in draft.parameters()) + model.lm_head.out_features * draft.fc.out_features
        )
        self.nope = model.config.mla_use_nope
        self.chosen, self.width, self.blocks = draft.blocks, model.config.hidden_size, block_count(model.config)
        layers = (LayerC * 1)(self.layer(draft.layers[0], None))  # type: ignore[arg-type]
        norm, eps = self.values(draft.norm.weight), model.config.rms_norm_eps
        self.draft = DraftC(
            ModelC(None, self.address(layers), None, norm, target.model.head, 1, eps),
            *map(self.values, (model.embed_tokens.weight, draft.enorm.weight, draft.hnorm.weight)),
            *(self.matrix(part.weight) for part in (draft.fc, draft.eh_proj)),
        )

    def chain(
        self,
        memory: Memory,
        rows: Sequence[int],
        tokens: Sequence[list[int]],
        features: Tensor,
        most: int,
        threads: int,
    ) -> list[list[int]]:
        """Feed each row its tokens behind memory.lengths[row] places, features [sum, blocks, d] of the place before
        each; at most `most` guesses a row, as far as it is SURE."""
        ids = torch.tensor([token for queue in tokens for token in queue])
        starts = torch.tensor([0, *itertools.accumulate(map(len, tokens))], dtype=torch.int32)
        where, made = torch.tensor(rows, dtype=torch.int32), torch.empty(len(rows), dtype=torch.int32)
        guesses = torch.empty(len(rows), most, dtype=torch.long)
        arrays = map(pointer, (ids, where, starts, memory.lengths))
        pages = pointer(memory.table), INT(memory.table.shape[1]), INT(memory.page)
        out = pointer(features), pointer(guesses), pointer(made), INT(len(rows)), INT(most), FLOAT(SURE), INT(threads)
        kernels = library()
        assert kernels is not None
        kernels.draft_chain(ctypes.byref(self.draft), *arrays, memory.states, *pages, *out)
        return [guess[:n] for guess, n in zip(guesses.tolist(), made.tolist())]


@dataclass
class Behind:
    """Of one request: the draft has taken up `length` places; `features` [n, blocks, d] are the model's of the places
    from length - 1 on, each needed for the place behind it."""

    length: int
    features: Tensor

    def next(self, n: int) -> Tensor:
        taken, self.features = self.features.split([n, len(self.features) - n])
        self.length += n
        return taken


class Drafts:
    """Of one scheduler, whose thread it belongs to."""

    def __init__(self, native: NativeDraft, pool: Pool, threads: int) -> None:
        """pool: with the draft's layer as its last."""
        self.native, self.threads = native, threads
        state = (StateC * 1)(pool.memory.states[-1])
        self.window = WINDOW if native.nope else pool.table.shape[1]
        self.table = pool.table
        self.memory = Memory(state, torch.zeros_like(pool.memory.lengths), pool.table.clone(), pool.memory.page)

    def room(self, tokens: int) -> Tensor:
        """Where the decoder writes its features of so many tokens."""
        return torch.empty(tokens, self.native.blocks, self.native.width)

    def begin(self, length: int) -> Behind:
        """For a request whose sequence holds `length` places: the last one's features are not known."""
        return Behind(length, torch.zeros(1, len(self.native.chosen), self.native.width))

    def learn(self, request: Request, features: Tensor, start: int) -> None:
        """features, as `room` had them, of the places from `start` on, which have been fed and stay."""
        behind = request.behind
        assert behind is not None
        first = behind.length - 1 + len(behind.features)  # the first that is missing
        if first < start + len(features):
            new = features[first - start :]
            new = new if len(self.native.chosen) == self.native.blocks else new[:, self.native.chosen]
            behind.features = torch.cat([behind.features, new])
        if len(behind.features) > MOST_WAITING:
            self.follow(request)

    def follow(self, request: Request) -> None:
        """Take up what is known, as far as the sequence goes: before a snapshot, and where no draft has done it."""
        held, behind = request.held, request.behind
        assert held is not None and behind is not None
        start = behind.length
        n = min(held.length - start, len(behind.features))
        if n > 0:
            self.chain({request: start}, [request.tokens[start : start + n]], behind.next(n), 0)

    def propose(self, requests: Sequence[Request]) -> dict[Request, list[int]]:
        """What may come next: at most LENGTH tokens, for which each must have room behind those that it has."""
        starts, tokens, features = {}, [], []
        for request in requests:
            behind, known = request.behind, len(request.tokens)
            if behind is not None and len(behind.features) >= known - behind.length > 0:  # not behind a forced text
                starts[request] = behind.length
                tokens.append(request.tokens[behind.length :])
                features.append(behind.next(known - behind.length))
        return dict(zip(starts, self.chain(starts, tokens, torch.cat(features), LENGTH))) if starts else {}

    def chain(
        self, starts: Mapping[Request, int], tokens: Sequence[list[int]], features: Tensor, most: int
    ) -> list[list[int]]:
        rows = [request.held.row for request in starts if request.held is not None]
        table, page = self.memory.table, self.memory.page
        for row, start in zip(rows, starts.values()):
            out = max(0, start // page - self.window)  # pages before the window: for the draft the text begins there
            table[row, : table.shape[1] - out] = self.table[row, out:]
            self.memory.lengths[row] = start - out * page
        return self.native.chain(self.memory, rows, tokens, features, most, self.threads)


def drafts_of(decoding: Sequence[Request], pool: Pool, model: Drafts | None) -> dict[Request, tuple[list[int], bool]]:
    """The drafts of these requests, with memory for them; True for the draft model's."""
    found: dict[Request, tuple[list[int], bool]] = {}
    without = []
    for request in decoding:
        assert request.row is not None and request.held is not None
        if request.row.grammar is not None:
            continue
        request.drafter = request.drafter or Drafter(request.tokens)
        limit, known = request.asked.max_tokens - request.made - 1, len(request.tokens) - request.held.length
        drafts = request.to_stop(request.drafter.propose(limit))
        if drafts and pool.grow(request.held, known + len(drafts)):
            found[request] = drafts, False
        elif model is not None and request.row.plain and limit >= LENGTH and pool.grow(request.held, known + LENGTH):
            without.append(request)
    if model is not None:
        found |= {one: (one.to_stop(drafts), True) for one, drafts in model.propose(without).items()}
    return found
