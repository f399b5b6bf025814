"""moonlet convert: every form and pair of grids, what stays as it was, and the errors that it tells."""

import json
from pathlib import Path

import pytest
import torch
from folders import publish
from safetensors.torch import load_file, save_file
from small_models import FORMS, random_ids, random_model

from moonlet.engine.convert import convert
from moonlet.engine.load import load
from moonlet.engine.tensor_files import INDEX, SINGLE
from moonlet.errors import InputError
from moonlet.model.model import Model
from moonlet.model.weights import to_published
from moonlet.quant.grids import round_to_grid

IDS = random_ids(2, 20)
WIDE = {"moe_intermediate_size": 32, "num_hidden_layers": 4}


def model(form: str) -> Model:
    latent = {"routed_expert_hidden_size": 32} if form == "k3" else {}
    return random_model(FORMS[form](**WIDE, **latent))


def rounded(made: Model, *formats: str) -> Model:
    """The model with its experts on one grid after another."""
    for layer in made.layers:
        for w in layer.mlp.experts.parameters() if layer.moe else ():
            for format in formats:
                w.data = w.data.bfloat16().float() if format == "bf16" else round_to_grid(w.data, format)
    return made


@torch.no_grad()
@pytest.mark.parametrize("form", ["k3", "kimi_linear", "k2"])
@pytest.mark.parametrize(
    ("source", "to"),
    [(None, "int4"), (None, "mxfp4"), (None, "bf16"), ("int4", "mxfp4"), ("mxfp4", "int4"), ("mxfp4", "bf16")],
)
def test_experts_change_and_nothing_else(form: str, source: str | None, to: str, tmp_path: Path) -> None:
    made = model(form)
    folder = publish(tmp_path / "in", made, shards=3, experts=source)
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "modeling.py").write_text("raise SystemExit")
    told = convert(folder, to, tmp_path / "out")
    steps = [f for f in (source, to) if f]
    assert torch.equal(load(tmp_path / "out")[0](IDS), rounded(made, *steps)(IDS))
    before, after = (
        {k: v for f in d.glob("*.safetensors") for k, v in load_file(f).items()} for d in (folder, tmp_path / "out")
    )
    kept = [name for name in before if ".experts." not in name]
    assert all(torch.equal(before[name], after[name]) for name in kept)
    index = json.loads((tmp_path / "out" / INDEX).read_text())
    assert set(index["weight_map"]) == set(after)
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in after.values())
    assert {f.name for f in (tmp_path / "out").iterdir() if f.suffix != ".safetensors"} == {
        "config.json", "tokenizer_config.json", INDEX,
    }  # fmt: skip
    assert [line.split()[0] for line in told[2:]] == ["gate", "up", "down"]


def test_the_error_told_is_the_error_made(tmp_path: Path) -> None:
    made = model("kimi_linear")
    folder = publish(tmp_path / "in", made)
    told = convert(folder, "mxfp4", tmp_path / "out")
    w = torch.cat([t.flatten() for n, t in to_published(made).items() if n.endswith(".w2.weight")])
    change = round_to_grid(w, "mxfp4") - w
    count = 3 * made.config.num_experts
    assert told[-1].split() == ["down", str(count), f"{change.norm() / w.norm():.2g}", f"{change.abs().max():.2g}"]
    lossless = convert(tmp_path / "out", "bf16", tmp_path / "back")
    assert all(line.split()[2:] == ["0", "0"] for line in lossless[2:])


@torch.no_grad()
def test_a_multimodal_checkpoint_keeps_its_other_parts(tmp_path: Path) -> None:
    made = model("k3")
    folder = publish(tmp_path / "in", made, 2, torch.bfloat16, "language_model.", nested=True, experts="mxfp4")
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["quantization_config"]["ignore"] = ["lm_head", "re:.*mine.*"]
    (folder / "config.json").write_text(json.dumps(config | {"vision_config": {"a": 1}}))
    more = {"vision_tower.proj.weight": torch.randn(3, 5)}
    save_file(more, folder / "vision.safetensors")
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"] |= dict.fromkeys(more, "vision.safetensors")
    (folder / INDEX).write_text(json.dumps(index))
    convert(folder, "int4", tmp_path / "out")
    assert torch.equal(
        load_file(tmp_path / "out" / "vision.safetensors")["vision_tower.proj.weight"], more.popitem()[1]
    )
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["vision_config"] == {"a": 1} and "quantization_config" not in config
    quantization = config["text_config"]["quantization_config"]
    assert (quantization["format"], quantization["ignore"]) == ("pack-quantized", ["lm_head", "re:.*mine.*"])
    load(tmp_path / "out")


def test_bad_input(tmp_path: Path) -> None:
    folder = publish(tmp_path / "in", model("kimi_linear"), experts="int4")
    with pytest.raises(InputError, match="int4 already"):
        convert(folder, "int4", tmp_path / "out")
    with pytest.raises(InputError, match="mxfp4"):
        convert(folder, "mxfp44", tmp_path / "out")
    with pytest.raises(InputError, match="checkpoint itself"):
        convert(folder, "mxfp4", folder)
    with pytest.raises(InputError, match="config.json"):
        convert(tmp_path / "nowhere", "mxfp4", tmp_path / "out")
    narrow = publish(tmp_path / "narrow", random_model(FORMS["kimi_linear"]()))
    with pytest.raises(InputError, match="divisible by 32"):
        convert(narrow, "mxfp4", tmp_path / "out")
    dense = publish(tmp_path / "dense", random_model(FORMS["kimi_linear"](num_experts=0)))
    with pytest.raises(InputError, match="no routed experts"):
        convert(dense, "mxfp4", tmp_path / "out")
    assert not (tmp_path / "out").exists() and SINGLE in {f.name for f in folder.iterdir()}
