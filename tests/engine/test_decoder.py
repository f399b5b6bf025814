"""The decoder, native and plain: cached = uncached, and natively the same bits however the tokens come together."""

import pytest
import torch
from small_models import FORMS, random_ids, random_model
from torch import Tensor

from moonlet.engine.cache import Pool
from moonlet.engine.generate import Decoder, Sampling, generate
from moonlet.engine.packed import can_pack, in_rows
from moonlet.model.config import ModelConfig
from moonlet.model.model import Model

TOLERANCE = 2e-5
EXTRA = {
    "dense": lambda: FORMS["k3"](num_experts=0, first_k_dense_replace=4),
    "swiglu latent": lambda: FORMS["k3"](hidden_act="silu", latent_moe_use_norm=False, moe_renormalize=False),
    "no shared": lambda: FORMS["kimi_linear"](num_shared_experts=0, first_k_dense_replace=0),
    "wide latents": lambda: FORMS["k3"](kv_lora_rank=72),
    "uncapped": lambda: FORMS["k3"](activation_situ_linear_beta=None, attn_res_block_size=1),
}
ALL = {**FORMS, **EXTRA}


def decoder(config: ModelConfig, native: bool) -> tuple[Model, Decoder]:
    model = random_model(config)
    made = Decoder(model)
    if not native:
        made.packed = None
    elif not can_pack(model):
        pytest.skip("no native kernels here")
    return model, made


def fed_in_parts(made: Decoder, ids: Tensor, parts: list[list[int]]) -> Tensor:
    """Rows of `ids` fed by parts[step][row] tokens each; logits after each row's last token."""
    cache = made.model.new_cache(len(ids), 1)
    last: dict[int, Tensor] = {}
    for counts in parts:
        rows = [row for row, n in enumerate(counts) if n]
        begins = cache.lengths.tolist()
        queues = [ids[row, begins[row] : begins[row] + counts[row]].tolist() for row in rows]
        last |= dict(zip(rows, made.feed(cache, rows, queues)))
    return torch.stack([last[row] for row in range(len(ids))])


@torch.no_grad()
@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("form", ALL)
def test_cached_is_uncached(form: str, native: bool) -> None:
    model, made = decoder(ALL[form](), native)
    ids = random_ids(3, 40)
    parts = [[3, 1, 20], [0, 5, 2], [17, 0, 1], [2, 2, 2], *([[1, 1, 1]] * 3)]
    logits = fed_in_parts(made, ids, parts)
    for row, total in enumerate(map(sum, zip(*parts))):
        assert (logits[row] - model(ids[row : row + 1, :total])[0, -1]).abs().max() < TOLERANCE


@torch.no_grad()
@pytest.mark.parametrize("form", ALL)
def test_features_are_the_blocks_of_the_depth_bus(form: str) -> None:
    """Of every token, in groups (300 tokens are two) and whether logits are wanted or not."""
    model, made = decoder(ALL[form](), True)
    ids = random_ids(2, 150)
    cache = model.new_cache(2, 150)
    wanted = torch.stack(model.hidden(ids)[1].blocks, dim=2).flatten(0, 1)
    features = torch.full_like(wanted, torch.nan)
    made.packed.decode(in_rows(cache), [0, 1], ids.tolist(), [0, 1], features=features)
    assert wanted.shape[1] == {"k3": 2, "uncapped": 4}.get(form, wanted.shape[1])
    assert (features - wanted).abs().max() < TOLERANCE * wanted.abs().max()


@pytest.mark.parametrize("form", ALL)
def test_the_same_bits_alone_in_a_batch_whole_or_in_parts(form: str) -> None:
    _, made = decoder(ALL[form](), True)
    ids = random_ids(5, 30)
    whole = fed_in_parts(made, ids, [[30] * 5])
    token_by_token = fed_in_parts(made, ids, [[1] * 5] * 30)
    mixed = fed_in_parts(made, ids, [[1, 7, 30, 0, 16], [29, 20, 0, 1, 14], [0, 3, 0, 29, 0]])
    alone = torch.cat([fed_in_parts(made, ids[row : row + 1], [[30]]) for row in range(5)])
    for other in (token_by_token, mixed, alone):
        assert torch.equal(other, whole)


def test_long_batches_go_in_groups() -> None:
    """More than 256 new tokens in a call, in one sequence and in all of them."""
    model, made = decoder(FORMS["k3"](), True)
    ids = random_ids(4, 300)
    logits = fed_in_parts(made, ids, [[300, 130, 120, 10], [0, 170, 180, 290]])
    with torch.no_grad():
        assert (logits - model(ids)[:, -1]).abs().max() < TOLERANCE


def test_what_a_row_samples_does_not_depend_on_its_neighbours() -> None:
    _, made = decoder(FORMS["k3"](), True)
    prompts, seeds = [[1, 2, 3], [1, 2, 9, 8, 7], [1, 2]], [5, 6, 7]
    together = generate(made, prompts, seeds, 47, Sampling(max_tokens=40))
    for prompt, seed, row in zip(prompts, seeds, together):
        (alone,) = generate(made, [prompt], [seed], 47, Sampling(max_tokens=40))
        assert (alone.ids, alone.logprobs) == (row.ids, row.logprobs)


@torch.no_grad()
@pytest.mark.parametrize("tokens", [4096, 4097, 4300])
def test_a_long_context_has_the_same_bits_whoever_works_on_it(tokens: int) -> None:
    """Latents are averaged by spans of 4,096: whole, by a token at a time, by any team, and with pages."""
    model, made = decoder(FORMS["k2"](max_position_embeddings=8192), True)
    ids = random_ids(1, tokens + 3)[0].tolist()
    said = []
    for team in (1, 2, 3):
        pool = Pool(model, 1, 8192, 1 << 30)
        held = pool.open(None)
        assert held is not None and pool.grow(held, len(ids))
        for queue in (ids[:tokens], *([one] for one in ids[tokens:])):
            logits = made.extend(pool, [held], [queue], [1], team)
            held.length += len(queue)
        said.append(logits)
    cache = model.new_cache(1, len(ids))
    said.append(made.feed(cache, [0], [ids]))
    for other in said[1:]:
        assert torch.equal(other, said[0])
    plain = model(torch.tensor([ids]))[0, -1]
    assert (said[0] - plain).abs().max() < TOLERANCE
