"""Lets tests here import `small_models` and `llama`: importlib mode puts no test folder on the path. What the tests of
the scheduler share beside `scheduling`."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "model")]

import pytest
from scheduling import CHUNK_END, PAGE
from small_models import FORMS, random_model

from moonlet.engine import cache, scheduler
from moonlet.engine.generate import Decoder
from moonlet.engine.packed import can_pack


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    made = Decoder(random_model(FORMS["k3"](), std=0.2))
    if not can_pack(made.model):
        pytest.skip("no native kernels here")
    return made


@pytest.fixture
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (cache, scheduler):
        monkeypatch.setattr(module, "PAGE", PAGE)
    monkeypatch.setattr(scheduler, "CHUNK_END", CHUNK_END)
    monkeypatch.setattr(scheduler, "SHORTEST_JUNCTION", 2)
