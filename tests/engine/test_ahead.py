"""Drafts and masks under a grammar: the same text with drafts and without, in fewer steps."""

from pathlib import Path

import pytest

pytest.importorskip("llguidance")

from helpers import tiny_model_folder

from moonlet.engine.engine import Engine
from moonlet.engine.request import Limits
from moonlet.model.kernels.native import library, why_not

USER = [{"role": "user", "content": "hello"}]
NOTE = {"type": "object", "properties": {"text": {"enum": ["hello hello", "hello there"]}}, "required": ["text"]}
TOOLS = [{"type": "function", "function": {"name": "write_a_note", "parameters": NOTE}}]
ASKED = {
    "pattern": {"structure": {"regex": "(one, two, three, (four|five); ){9}"}},
    "schema": {"structure": {"json_schema": {"type": "array", "items": NOTE, "minItems": 6, "maxItems": 9}}},
    "calls": {"tools": TOOLS, "tool_choice": "required", "presence_penalty": 0.1},
}


@pytest.mark.skipif(library() is None, reason=f"no native kernels: {why_not()}")
@pytest.mark.parametrize("name", ASKED)
def test_drafts_change_nothing_but_the_steps(name: str, tmp_path: Path) -> None:
    folder, said, steps = tiny_model_folder(tmp_path), [], []
    for speculate in (True, False):
        engine = Engine(folder, Limits(speculate=speculate))
        replies = [
            engine.chat(USER, seed=seed, max_tokens=300, thinking=False, logit_bias={engine.stop: 3.0}, **ASKED[name])
            for seed in range(3)
        ]
        said.append([(r.content, [c["function"] for c in r.tool_calls], r.finish_reason) for r in replies])
        steps.append(engine.scheduler.steps)
        assert bool(engine.scheduler.accepted) == speculate
    assert said[0] == said[1] and steps[0] < steps[1]
