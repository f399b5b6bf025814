"""moonlet export: other programs read it, nothing is lost on the way, what differs is told, and so the card does."""

import json
from pathlib import Path

import pytest
import torch
from helpers import tiny_model_folder, tiny_tokenizer
from llama import opened, written
from safetensors.torch import load_file
from small_models import FORMS, k2, k3, random_model

from moonlet.engine.export import export
from moonlet.engine.load import load, write
from moonlet.errors import InputError
from moonlet.model.model import Model
from moonlet.quant.grids import rounded_experts

SIZES = {"hidden_size": 64, "moe_intermediate_size": 32, "num_hidden_layers": 4}
IDS = torch.arange(60).view(2, 30)


def folder_of(model: Model, path: Path) -> Path:
    write(path, model, tiny_tokenizer(), "none", {"tools": []}, "{{ messages }}")
    return path


def model(form: str) -> Model:
    return random_model(FORMS[form](vocab_size=tiny_tokenizer().vocab_size, **SIZES))


@torch.no_grad()
@pytest.mark.parametrize(
    ("form", "to"), [("kimi_linear", "hf"), ("k2", "hf"), ("k2_yarn", "hf"), ("k2", "int4"), ("k2_yarn", "int4")]
)
def test_transformers_reads_the_export(form: str, to: str, tmp_path: Path) -> None:
    """Not INT4 of Kimi Linear: transformers 5.24 stops at its convolutions when a checkpoint is quantised."""
    transformers = pytest.importorskip("transformers", minversion="5.24")
    if to == "int4":
        pytest.importorskip("compressed_tensors")
    made = model(form)
    export(folder_of(made, tmp_path / "in"), to, tmp_path / "out", "f32")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", attn_implementation="eager", dtype="float32"
    )
    made.expert_format = "none" if to == "hf" else to
    with rounded_experts(made):
        assert (theirs(IDS).logits - made(IDS)).abs().max() < 1e-5
    assert theirs.config.max_position_embeddings == made.config.max_position_embeddings


def test_formats_give_the_same_model_back(tmp_path: Path) -> None:
    """MXFP4 to fp32 and back to MXFP4 is the same file, byte for byte in its tensors."""
    folder = tiny_model_folder(tmp_path)
    export(folder, "hf", tmp_path / "hf", "f32")
    told = export(tmp_path / "hf", "mxfp4", tmp_path / "again", "f32")
    assert told[1].endswith("relative error 0")
    first, again = (load_file(f / "model.safetensors") for f in (folder, tmp_path / "again"))
    assert first.keys() == again.keys() and all(torch.equal(t, again[n]) for n, t in first.items())
    for name in ("tokenizer.json", "chat_template.jinja", "generation_config.json", "tools.json"):
        assert (folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


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
    assert "Experts rounded to mxfp4: relative error 0" in told


def test_the_card(tmp_path: Path) -> None:
    run = tmp_path / "fine"
    run.mkdir()
    folder = tiny_model_folder(run)
    (run / "recipe.toml").write_text("[run]\nname = 'fine'\n")
    row = {"suite": "sums", "split": "seen", "condition": "greedy", "n": 500, "score": 0.93, "low": 0.9, "high": 0.95}
    (run / "report").mkdir()
    (run / "report" / "results.json").write_text(json.dumps({"run": {"seed": 3}, "results": [row]}))
    export(folder, "int4", tmp_path / "out", "f32")
    text = (tmp_path / "out" / "README.md").read_text()
    parameters = sum(p.numel() for p in load(folder)[0].parameters())
    assert "# fine\n" in text and f"{parameters:,} parameters" in text and "name = 'fine'" in text
    assert "| sums | seen | greedy | 0.93 | 0.9 to 0.95 | 500 |" in text and "rounded to int4" in text
    export(tmp_path / "out", "hf", tmp_path / "far", "f32")
    assert "recipe" not in (tmp_path / "far" / "README.md").read_text()


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
    (folder / "tokenizer.json").unlink()
    with pytest.raises(InputError, match=r"no tokenizer\.json"):
        export(folder, "hf", tmp_path / "out", "f32")
