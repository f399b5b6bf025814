"""Masks computed beside the step, and rows of a grammar beside drafted ones: they are not drafted themselves."""

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
def test_a_grammar_is_kept_and_not_drafted(name: str, tmp_path: Path) -> None:
    folder, said = tiny_model_folder(tmp_path), []
    for speculate in (True, False):
        engine = Engine(folder, Limits(speculate=speculate))
        asked = {"max_tokens": 300, "thinking": False, "logit_bias": {engine.stop: 3.0}}
        replies = [engine.chat(USER, seed=seed, **asked, **ASKED[name]) for seed in range(3)]
        said.append([(r.content, [c["function"] for c in r.tool_calls], r.finish_reason) for r in replies])
        assert engine.scheduler.accepted == 0
        free = engine.chat(USER, max_tokens=60, temperature=0, logit_bias={65: 100.0})
        assert free.completion_tokens == 60 and bool(engine.scheduler.accepted) == speculate
    assert said[0] == said[1]
