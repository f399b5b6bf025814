"""What the engine says of the tokens that it sampled against what the trainer says: mismatch_kl (k3 estimator)."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from folders import publish
from scheduling import SMALL, by_hand, finish, request, result
from small_models import FORMS, random_ids, random_model

from moonlet.engine.generate import Decoder
from moonlet.engine.load import load
from moonlet.engine.weights import opened
from moonlet.model.kernels.native import library, why_not
from moonlet.model.model import Model

WIDE = {"hidden_size": 64, "intermediate_size": 96, "moe_intermediate_size": 32, "kv_lora_rank": 32}
WIDE |= {"qk_nope_head_dim": 32, "v_head_dim": 32, "routed_expert_hidden_size": 32}


@torch.no_grad()
def differences(trainer: Model, decoder: Decoder) -> torch.Tensor:
    """Log-prob of the engine minus the trainer's, of each of some hundred tokens sampled at temperature 1."""
    s = by_hand(decoder, replace(SMALL, step_tokens=64))
    everyone = [request(random_ids(1, 9 + n, seed=n)[0].tolist(), n, max_tokens=100) for n in range(5)]
    for one in everyone:
        s.submit(one)
    finish(s)
    out = []
    for one in everyone:
        got, _ = result(one)
        logprobs = trainer(torch.tensor([one.tokens]))[0].log_softmax(-1)
        places = torch.arange(len(one.prompt), len(one.tokens))
        trained = logprobs[places - 1, torch.tensor(one.tokens)[places]].double()
        out.append(torch.tensor([picked.logprob for picked in got]).double() - trained)
    assert len(torch.cat(out)) > 100
    return torch.cat(out)


def mismatch_kl(r: torch.Tensor) -> float:
    return float(((-r).exp() - 1 + r).mean())


@pytest.mark.parametrize("form", FORMS)
def test_log_probs_are_those_of_training(form: str) -> None:
    model = random_model(FORMS[form](), std=0.2)
    r = differences(model, Decoder(model))
    assert mismatch_kl(r) < 1e-6 and r.abs().max() < 1e-4


@pytest.mark.skipif(library() is None, reason=f"no native kernels: {why_not()}")
def test_in_4_and_8_bits(tmp_path: Path) -> None:
    """The trainer computes in fp32 with the 4-bit values; the engine rounds the inputs of experts, and more, to 8 bits.
    What that costs a trained model is in docs/performance.md; a random one's router minds it more."""
    folder = publish(tmp_path / "model", random_model(FORMS["k3"](**WIDE), std=0.1), experts="mxfp4")
    trainer, found = load(folder)[0], {}
    for weights in ("packed", "int8", "int4"):
        model, _, packed = opened(folder, weights, None)
        found[weights] = mismatch_kl(differences(trainer, Decoder(model, packed)))
    assert found["packed"] < found["int8"] < found["int4"] and found["packed"] < 0.01 and found["int8"] < 0.1
