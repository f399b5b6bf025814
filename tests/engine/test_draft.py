"""The draft model in the engine: the native draft is the one that was trained, and no text changes by it."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import tiny_model_folder
from safetensors.torch import load_file, save_file
from scheduling import SMALL, check, finish, memory, request, result, undisturbed
from small_models import VOCAB, random_ids

from moonlet.engine import draft as drafts
from moonlet.engine.draft import FILE, LENGTH, NativeDraft, load_draft
from moonlet.engine.engine import Engine
from moonlet.engine.generate import Decoder
from moonlet.engine.load import load
from moonlet.engine.packed import can_pack
from moonlet.engine.request import Limits
from moonlet.engine.scheduler import Scheduler
from moonlet.errors import InputError
from moonlet.model.draft import Draft, published_name
from moonlet.model.model import Stats, Where
from moonlet.train.draft import unrolled

pytestmark = pytest.mark.usefixtures("small_pages")
ROOMY = replace(SMALL, step_tokens=64, memory=1 << 20)


@pytest.fixture(scope="module")
def draft(decoder: Decoder) -> Draft:
    made = Draft(decoder.model.config).init_weights(0).requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for p in made.parameters():
        p.uniform_(0.5, 1.5, generator=generator) if p.ndim == 1 else p.normal_(0, 0.3, generator=generator)
    return made


@pytest.fixture(scope="module")
def native(decoder: Decoder, draft: Draft) -> NativeDraft:
    """Untrained: right at times."""
    return NativeDraft(draft, decoder.model, decoder.packed)


@pytest.fixture(autouse=True)
def whatever_it_thinks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(drafts, "SURE", 0.0)
    yield


def by_hand(decoder: Decoder, native: NativeDraft | None, limits: Limits = ROOMY) -> Scheduler:
    made = Scheduler(decoder, limits, native)
    made.alive = True
    return made


@torch.no_grad()
def test_a_chain_is_that_of_training(decoder: Decoder, native: NativeDraft, draft: Draft) -> None:
    """What the native draft has guessed, after prompts in chunks and several sequences at once, is what the unrolled
    steps hold for the likeliest at those places; each at most as far as it is sure."""
    model, s = decoder.model, by_hand(decoder, native)
    assert s.draft is not None
    everyone = []
    for n in (5, 12, 9):
        one = request(random_ids(1, n, n)[0].tolist())
        one.tokens, one.held = list(one.prompt), s.pool.open()
        assert one.held is not None and s.pool.grow(one.held, n + LENGTH)
        one.behind = s.draft.begin(0)
        features = torch.stack(model.hidden(torch.tensor([one.prompt]))[1].blocks, 2)[0]
        for start, end in ((0, 4), (4, n - 1)):
            s.draft.learn(one, features[start:end], start)
            one.held.length = end
            s.draft.follow(one)
        assert one.behind.length == n - 1
        everyone.append(one)
    shares = []
    for one, guesses in s.draft.propose(everyone).items():
        assert len(guesses) == LENGTH
        ids = torch.tensor([one.prompt + guesses])
        blocks = torch.stack(model.hidden(ids)[1].blocks, 2)
        steps = unrolled(draft, model.embed_tokens(ids), blocks, torch.ones_like(ids), LENGTH)
        last = len(one.prompt) - 1
        q = torch.stack([model.lm_head(draft.norm(g[0, last + i])) for i, g in enumerate(steps)]).softmax(-1)
        assert q.argmax(-1).tolist() == guesses
        shares.append(q.amax(-1).tolist())
    bound = sorted(p for share in shares for p in share)[4] * 1.0001
    drafts.SURE = bound
    for one in everyone:
        one.behind = s.draft.begin(0)
        s.draft.learn(one, torch.stack(model.hidden(torch.tensor([one.prompt]))[1].blocks, 2)[0, :-1], 0)
    for share, guesses in zip(shares, s.draft.propose(everyone).values()):
        assert len(guesses) == next((i for i, p in enumerate(share) if p < bound), LENGTH)


@pytest.mark.parametrize("temperature", [0.0, 0.4, 1.0])
def test_the_same_text_with_and_without(decoder: Decoder, native: NativeDraft, temperature: float) -> None:
    """Beside others, each with its own chain; tokens and log-probs are those of a request alone without a draft."""
    s = by_hand(decoder, native)
    everyone = [
        request(random_ids(1, 20 + n, n)[0].tolist(), n, max_tokens=40, temperature=temperature) for n in range(6)
    ]
    for one in everyone:
        s.submit(one)
    finish(s)
    assert s.guessed > s.guessed_right > 0
    for one in everyone:
        assert result(one) == undisturbed(decoder, one)


def test_the_same_text_after_preemption_and_hits(decoder: Decoder, native: NativeDraft) -> None:
    s = by_hand(decoder, native, replace(ROOMY, memory=3 * memory(decoder, 1, 10)))
    for turn in range(2):
        everyone = [request(random_ids(1, 30, 7)[0].tolist(), n, max_tokens=40, temperature=0.5) for n in range(4)]
        for one in everyone:
            s.submit(one)
        for step in range(2000):
            if not s.running and not s.waiting and not s.inbox:
                break
            if step % 7 == 3 and s.running:
                s.preempt(s.running[-1], {})
            s.step()
            check(s)
        for one in everyone:
            assert result(one) == undisturbed(decoder, one)
    assert s.preempted > 5 and s.guessed > 0 and any(one.cached_tokens for one in everyone)


def test_the_distribution_of_a_drafted_token_is_the_model_s(decoder: Decoder, native: NativeDraft) -> None:
    """The first token of 1,000 seeds, each guessed before it is sampled, by a chi-square test."""
    prompt, n = random_ids(1, 12, 2)[0].tolist(), 1000
    s = by_hand(decoder, native, replace(ROOMY, sequences=8, prefix_cache=False))
    everyone = [request(prompt, seed, temperature=1.0, max_tokens=LENGTH + 2, logprobs=False) for seed in range(n)]
    for start in range(0, n, 500):
        for one in everyone[start : start + 500]:
            s.submit(one)
        finish(s)
    assert s.guessed > n and s.guessed_right > n / 50
    seen = Counter(result(one)[0][0].token for one in everyone)
    p = decoder.model(torch.tensor([prompt]))[0, -1].softmax(-1).tolist()
    common = [token for token in range(VOCAB) if n * p[token] >= 5]
    rest = n - sum(seen[token] for token in common), n * (1 - sum(p[token] for token in common))
    pairs = [(seen[token], n * p[token]) for token in common] + [rest]
    chi_square = sum((found - wanted) ** 2 / wanted for found, wanted in pairs)
    assert chi_square < 2.5 * len(pairs), chi_square


def write_draft(folder: Path) -> Draft:
    draft = Draft(load(folder)[0].config).init_weights(3)
    save_file({published_name(n, draft): p.detach().contiguous() for n, p in draft.named_parameters()}, folder / FILE)
    return draft


def test_a_folder_with_a_draft(tmp_path: Path) -> None:
    """What was written is read, the engine takes it up, and answers as it does without."""
    folder = tiny_model_folder(tmp_path)
    assert load_draft(folder, load(folder)[0]) is None
    written = write_draft(folder)
    read = load_draft(folder, load(folder)[0])
    assert read is not None and all(map(torch.equal, read.state_dict().values(), written.state_dict().values()))
    if not can_pack(load(folder)[0]):
        pytest.skip("no native kernels here")
    ask = {"messages": [{"role": "user", "content": "12 + 30?"}], "max_tokens": 24, "seed": 3}
    with_draft, without = Engine(folder), Engine(folder, draft=False)
    assert with_draft.chat(**ask) == without.chat(**ask)
    assert with_draft.scheduler.guessed > 0 and without.scheduler.draft is None


def test_a_bad_file_is_refused(tmp_path: Path) -> None:
    folder = tiny_model_folder(tmp_path)
    write_draft(folder)
    model, tensors = load(folder)[0], load_file(folder / FILE)
    for change, words in (
        ({"fc.weight": torch.zeros(3, 3)}, r"fc.weight is \[3, 3\], not \[64, 128\]"),
        ({"more": torch.zeros(1)}, "does not fit the model beside it .more."),
    ):
        save_file(tensors | change, folder / FILE)
        with pytest.raises(InputError, match=words):
            load_draft(folder, model)
    whole = (folder / FILE).read_bytes()
    for cut in (0, 7, 200, len(whole) - 5):
        (folder / FILE).write_bytes(whole[:cut])
        with pytest.raises(InputError, match="is not a safetensors file"):
            load_draft(folder, model)


@torch.no_grad()
def test_the_draft_looks_back_over_a_window(
    decoder: Decoder, native: NativeDraft, draft: Draft, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a long prompt, its attention sees the last pages alone: with random weights others change the guess."""
    monkeypatch.setattr(drafts, "WINDOW", 1)
    model, s, different = decoder.model, by_hand(decoder, native), 0
    assert s.draft is not None
    for seed in range(12):
        one = request(random_ids(1, 70, seed)[0].tolist())
        one.tokens, one.held = list(one.prompt), s.pool.open()
        assert one.held is not None and s.pool.grow(one.held, 70 + LENGTH)
        one.behind, one.held.length = s.draft.begin(0), 69
        ids = torch.tensor([one.prompt])
        blocks = torch.stack(model.hidden(ids)[1].blocks, 2)
        s.draft.learn(one, blocks[0, :64], 0)
        s.draft.learn(one, blocks[0, 64:69], 64)
        h = torch.cat([torch.zeros(1, 1, blocks.shape[-1]), draft.fuse(blocks)[:, :-1]], 1)
        x, layer, guess = draft.inputs(model.embed_tokens(ids), h), draft.layers[0], []
        for begin in (69 // 8 * 8 - 8, 0):
            y = x[:, begin:] + layer.attention(layer.input_layernorm(x[:, begin:]), Where(), Stats())
            y = y[0, -1] + layer.ffn(layer.post_attention_layernorm(y), Stats())[0, -1]
            guess.append(int(model.lm_head(draft.norm(y)).argmax()))
        assert s.draft.propose([one])[one][0] == guess[0]
        different += guess[0] != guess[1]
        s.pool.release(one.held)
    assert different
