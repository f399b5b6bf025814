"""The draft model at work: what may come next, guessed from the model's features, for several requests at once.

`load_draft` reads `draft.safetensors` beside a model. `NativeDraft` lays it out for the native decoder, which then
takes rows x_t in place of embeddings; the head is the model's packed one. `Drafts` keeps, for each
request, how far the draft's own latents (a layer more in the cache's pages, so snapshots carry them) come from the
model's features, and the features that wait to be taken up. Latents of guessed places are written over when the true
features are known, so a wrong guess leaves nothing to undo. What a snapshot does not carry is the feature at its end,
for which a zero stands: drafts may be worse for it, texts cannot differ.

Each place of a draft is sampled with the request's settings and the random number that the model's own token there will
be sampled with: where the two distributions agree, so do the tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from moonlet.engine.cache import Pool
from moonlet.engine.packed import LayerC, Memory, ModelC, PackedModel, StateC
from moonlet.engine.request import Request
from moonlet.engine.sampling import choose
from moonlet.engine.tensor_files import opened
from moonlet.errors import InputError
from moonlet.model.draft import Draft, block_count, published_name
from moonlet.model.kernels.native import pointer
from moonlet.model.model import Model

FILE = "draft.safetensors"
LENGTH = 3  # tokens of a draft
SURE = 0.6  # a draft ends behind the first token of which it is less sure
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


class NativeDraft(PackedModel):
    """A draft for the model that `target` holds; like it, it belongs to the weights of the moment."""

    def __init__(self, draft: Draft, model: Model, target: PackedModel) -> None:
        self.kept, self.mapped = [target], []
        self.weights, self.consume, self.scratch = target.weights, False, None
        self.draft, self.config, self.vocab_size = draft, model.config, target.vocab_size
        self.embedding = model.embed_tokens.weight
        layers = (LayerC * 1)(self.layer(draft.layers[0], None))  # type: ignore[arg-type]
        norm, eps = self.values(draft.norm.weight), model.config.rms_norm_eps
        self.model = ModelC(None, self.address(layers), None, norm, target.model.head, 1, eps)

    @torch.no_grad()
    def guess(
        self, memory: Memory, rows: Sequence[int], tokens: Sequence[list[int]], before: Tensor, wanted: int
    ) -> tuple[Tensor, Tensor]:
        """Feed each row its tokens, `before` [sum, d] the h of the place before each; logits after the last `wanted`
        (0 or 1) of each, and g [sum, d]."""
        x = self.draft.inputs(self.embedding[[token for queue in tokens for token in queue]], before)
        self.model.embedding = pointer(x).value
        places, g = iter(range(len(x))), torch.empty_like(x)
        queues = [[next(places) for _ in queue] for queue in tokens]
        return self.decode(memory, rows, queues, [wanted] * len(rows), features=g), g


@dataclass
class Behind:
    """Of one request: the draft has taken up `length` places; `features` [n, d] are the h of the places from length - 1
    on, each needed for the place behind it."""

    length: int
    features: Tensor

    def next(self, n: int) -> Tensor:
        taken, self.features = self.features.split([n, len(self.features) - n])
        self.length += n
        return taken


class Drafts:
    """Of one scheduler; all but `fuse` is its own thread's to call."""

    def __init__(self, native: NativeDraft, pool: Pool) -> None:
        """pool: with the draft's layer as its last."""
        self.native, self.blocks = native, block_count(native.config)
        state = (StateC * 1)(pool.memory.states[-1])
        self.memory = Memory(state, torch.zeros_like(pool.memory.lengths), pool.table, pool.memory.page)

    def room(self, tokens: int) -> Tensor:
        """Where the decoder writes its features of so many tokens."""
        return torch.empty(tokens, self.blocks, self.native.embedding.shape[1])

    @torch.no_grad()
    def fuse(self, features: Tensor, tokens: Sequence[list[int]]) -> tuple[Tensor, ...]:
        """Features as `room` gave them -> h [n, d] for each queue of tokens."""
        return self.native.draft.fuse(features).split([len(queue) for queue in tokens])

    def begin(self, length: int) -> Behind:
        """For a request whose sequence holds `length` places: the last one's h is not known."""
        return Behind(length, torch.zeros(1, self.native.embedding.shape[1]))

    def learn(self, request: Request, h: Tensor, start: int) -> None:
        """h [n, d] of the places from `start` on, which have been fed and stay."""
        behind = request.behind
        assert behind is not None
        first = behind.length - 1 + len(behind.features)  # the first that is missing
        if first < start + len(h):
            behind.features = torch.cat([behind.features, h[first - start :]])
        if len(behind.features) > MOST_WAITING:
            self.follow(request)

    def follow(self, request: Request) -> None:
        """Take up what is known, as far as the sequence goes: before a snapshot, and where no draft has done it."""
        held, behind = request.held, request.behind
        assert held is not None and behind is not None
        start = behind.length
        n = min(held.length - start, len(behind.features))
        if n > 0:
            self.guess([request], [start], [request.tokens[start : start + n]], behind.next(n), 0)

    def propose(self, requests: Sequence[Request]) -> dict[Request, list[int]]:
        """What may come next: at most LENGTH tokens, for which there must be room behind those that are known."""
        going: list[Request] = []
        starts, tokens, before = [], [], []
        for request in requests:
            behind, known = request.behind, len(request.tokens)
            if behind is not None and len(behind.features) >= known - behind.length > 0:  # not behind a forced text
                going.append(request)
                starts.append(behind.length)
                tokens.append(request.tokens[behind.length :])
                before.append(behind.next(known - behind.length))
        drafts: dict[Request, list[int]] = {request: [] for request in going}
        h = torch.cat(before) if before else torch.empty(0)
        for place in range(LENGTH):
            if not going:
                break
            logits, g = self.guess(going, starts, tokens, h, 1)
            last = torch.tensor([len(queue) for queue in tokens]).cumsum(0) - 1
            uniforms = [request.row.uniforms(place + 1)[place] for request in going if request.row is not None]
            chosen = choose(logits.numpy(), [request.asked for request in going], uniforms)
            sure = logits.softmax(-1)[range(len(chosen)), chosen] > SURE
            for request, token, good in zip(going, chosen, sure.tolist()):
                drafts[request] += [token] * good
            on = [i for i, token in enumerate(chosen) if sure[i] and not self.last(going[i], token, place)]
            going, tokens, h = [going[i] for i in on], [[chosen[i]] for i in on], g[last[on]]
            starts = [len(request.tokens) + place for request in going]
        return drafts

    @staticmethod
    def last(request: Request, token: int, place: int) -> bool:
        """Whether the text must end with this draft's token, or behind it with the model's own."""
        return token in request.stop or request.made + place + 2 >= request.asked.max_tokens

    def guess(
        self, requests: Sequence[Request], starts: Sequence[int], tokens: Sequence[list[int]], h: Tensor, wanted: int
    ) -> tuple[Tensor, Tensor]:
        rows = [request.held.row for request in requests if request.held is not None]
        self.memory.lengths[rows] = torch.tensor(starts)
        return self.native.guess(self.memory, rows, tokens, h, wanted)
