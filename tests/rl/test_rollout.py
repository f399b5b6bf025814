"""Rollouts keep their tokens, and trainer and engine agree on them, through 4-bit experts too."""

import random
from collections.abc import Iterator
from statistics import mean

import pytest
import torch
from helpers import tiny_tokenizer

from moonlet.chat.xtml import render
from moonlet.engine.generate import Decoder, Sampling, generate
from moonlet.model.config import for_depth
from moonlet.model.model import Model
from moonlet.optim.muon import MuonAdamW, OptimConfig, muon_blocks
from moonlet.quant.grids import rounded_experts
from moonlet.rl.loop import to_batch
from moonlet.rl.objective import policy_objective
from moonlet.rl.rollout import Episode, run
from moonlet.tasks import arithmetic
from moonlet.train.step import Stepper

STOP = tiny_tokenizer().special["<|end_of_msg|>"]


def model(expert_format: str) -> Model:
    """Random weights with experts so large that their rounding shows in the log-probs."""
    tokenizer = tiny_tokenizer()
    shape = {"hidden_size": 64, "num_attention_heads": 2, "num_heads": 2, "max_position_embeddings": 512}
    shape |= {"moe_intermediate_size": 32, "routed_expert_hidden_size": 32}
    made = Model(for_depth(3, tokenizer.vocab_size, shape)).init_weights(0)
    for name, p in made.named_parameters():
        if p.ndim >= 2 and "conv1d" not in name and "res.proj" not in name:
            p.data *= 6
    made.expert_format = expert_format
    return made


@pytest.fixture(scope="module")
def stepper() -> Iterator[Stepper]:
    made = Stepper(2)
    yield made
    made.pool.shutdown()


def episodes(player: Model, stepper: Stepper) -> list[Episode]:
    rng = random.Random(0)
    items = [arithmetic.sample(rng, "train") for _ in range(6)]
    return run(player, tiny_tokenizer(), items, list(range(6)), Sampling(max_tokens=60), stepper.pool, stepper.workers)


def mismatch(trainer: Model, played: list[Episode], stepper: Stepper) -> float:
    """Mean k3 estimate of the KL between engine and trainer over the sampled tokens, as an RL step logs it."""
    optimizer = MuonAdamW(trainer, muon_blocks(trainer), OptimConfig(0.0, 0.0))
    batch = to_batch([(e, 1.0) for e in played])
    objective = policy_objective(-10, 10, 0.0)
    log = stepper.step(trainer, optimizer, batch, 0.0, 1e9, balance=False, objective=objective)
    return log["mismatch_kl"] / float(batch["loss"].sum())


def test_trainer_and_engine_agree_through_rounded_experts(stepper: Stepper) -> None:
    played = episodes(model("mxfp4"), stepper)
    assert sum(e.tokens for e in played) > 100
    assert abs(mismatch(model("mxfp4"), played, stepper)) < 1e-7
    assert mismatch(model("none"), played, stepper) > 1e-4  # one side in 4 bits and the other not would show


def test_prompt_and_tokens_are_kept(stepper: Stepper) -> None:
    tokenizer, played = tiny_tokenizer(), episodes(model("none"), stepper)
    for episode in played:
        rollout = episode.rollout
        prompt = render(episode.item.messages, episode.item.tools, add_generation_prompt=True)
        assert rollout.prompt == tokenizer.encode_segments(prompt)
        assert len(rollout.ids) == len(rollout.logprobs) == len(rollout.sampled) <= 60
        assert episode.tokens == sum(rollout.sampled)
    batch = to_batch([(e, float(i)) for i, e in enumerate(played)])
    for row, episode in enumerate(played):
        rollout, start = episode.rollout, len(episode.rollout.prompt)
        end = start + len(rollout.ids)
        assert batch["tokens"][row, :end].tolist() == rollout.prompt + rollout.ids
        assert batch["loss"][row].tolist()[start:end] == rollout.sampled
        assert batch["loss"][row, :start].sum() == batch["loss"][row, end:].sum() == 0
        assert batch["segments"][row].sum() == end
        assert (batch["advantage"][row, start:end] == row).all()


def test_forced_tokens_are_no_targets() -> None:
    """What a hook hands over after a stop goes in as it is, with no log-prob, and sampling goes on after it."""
    player, given = model("mxfp4"), [7, 8, 9]
    seen: list[tuple[int, list[int]]] = []

    def hook(row: int, ids: list[int]) -> list[int] | None:
        seen.append((row, list(ids)))
        return given if sum(r == row for r, _ in seen) == 1 else None

    with rounded_experts(player):
        prompts, sampling = [[1, 2, 3], [4, 5]] * 4, Sampling(max_tokens=400)
        rollouts = generate(Decoder(player), prompts, list(range(8)), STOP, sampling, hook)
    rows = {row for row, _ in seen}
    assert len(rows) > 2
    for row in rows:
        r = rollouts[row]
        at = r.ids.index(STOP) + 1
        if len(r.ids) > at:
            assert (
                r.ids[at : at + 3] == given
                and r.sampled[at : at + 3] == [0, 0, 0]
                and r.logprobs[at : at + 3] == [0.0] * 3
            )
            assert all(s == 1 for s in r.sampled[:at] + r.sampled[at + 3 :])
            assert all(p < 0 for p in r.logprobs[:at] + r.logprobs[at + 3 :])
        assert r.finish == ("stop" if r.ids.count(STOP) == 2 else "length")
    assert mean(len(r.ids) for r in rollouts) > 20
    with torch.no_grad(), rounded_experts(player):  # each sampled token has the log-prob of the uncached forward
        r = max((rollouts[row] for row in rows), key=lambda r: len(r.ids))
        whole = torch.tensor([[*r.prompt, *r.ids]])
        logprobs = (
            player(whole)[0].log_softmax(-1)[len(r.prompt) - 1 : -1].gather(1, torch.tensor(r.ids)[:, None])[:, 0]
        )
    kept = torch.tensor(r.sampled).bool()
    assert (logprobs - torch.tensor(r.logprobs))[kept].abs().max() < 1e-4
