"""A model folder in other forms: what stays the same, what is told, what is refused and leaves nothing behind."""

import json
from pathlib import Path

import pytest
import torch
from helpers import tiny_model_folder
from llama import opened, written
from small_models import k2, k3, random_model

from moonlet.engine.export import export
from moonlet.engine.load import load
from moonlet.errors import InputError


@torch.no_grad()
def test_a_gguf_file_tells_where_it_differs(tmp_path: Path) -> None:
    folder = tiny_model_folder(tmp_path)
    told = export(folder, "gguf", tmp_path / "m.gguf", "f32")
    assert any("epsilons differ" in line for line in told)
    model, tokenizer = load(folder)
    assert tokenizer is not None
    text = "What is 12 + 3045? 多少？ 算一下 7乘8。\n\n(Hi) \t there!"
    ids = tokenizer.encode(text)
    with opened(tmp_path / "m.gguf") as theirs:
        assert theirs.tokenize(text) == ids
        assert 0 < (model(torch.tensor([ids]))[0] - theirs.logits(ids)).abs().max() < 5e-3
    told = export(folder, "gguf", tmp_path / "m.gguf", "mxfp4")
    assert "experts rounded to mxfp4: relative error 0" in told


def test_folders_in_other_forms(tmp_path: Path) -> None:
    folder = tiny_model_folder(tmp_path)
    model, _ = load(folder)
    ids = torch.arange(40)[None]
    with torch.no_grad():
        for to in ("hf", "mxfp4"):  # the experts are on that grid already
            export(folder, to, tmp_path / to, "f32")
            assert torch.equal(load(tmp_path / to)[0](ids), model(ids))
        told = export(folder, "int4", tmp_path / "int4", "f32")
        assert "int4: relative error 0." in told[-1]
        assert 0 < (load(tmp_path / "int4")[0](ids) - model(ids)).abs().max() < 0.5
    assert json.loads((tmp_path / "hf" / "tools.json").read_text())["tools"]


def test_bad_input(tmp_path: Path) -> None:
    folder = tiny_model_folder(tmp_path)
    for to, kind, word in (("gguff", "f32", "gguf"), ("gguf", "f64", "f16")):
        with pytest.raises(InputError, match=word):
            export(folder, to, tmp_path / "x", kind)
    with pytest.raises(InputError, match="is the model itself"):
        export(folder, "hf", folder, "f32")
    for kind in ("q8_0", "q4_0", "mxfp4"):
        with pytest.raises(InputError, match=rf"blk\.\d.*does not go into {kind.upper()} .* try f16"):
            written(random_model(k3()), tmp_path, kind)
    with pytest.raises(InputError, match="mla_use_nope"):
        written(random_model(k2(mla_use_nope=True)), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
