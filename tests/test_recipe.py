"""Recipes: values, their sources, and an answer to everything that can be wrong."""

import json
from pathlib import Path

import pytest

from moonlet import recipe as recipes
from moonlet.errors import InputError


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.toml"
    path.write_text(text)
    return path


def complaint(path: Path, *overrides: str) -> str:
    with pytest.raises(InputError) as caught:
        recipes.load(path, overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_values_and_sources(tmp_path: Path) -> None:
    path = write(tmp_path, '[run]\nname = "a"\nseed = 3\n[optim]\nmomentum = 0.9\nmuon_lr = 1\n')
    recipe = recipes.load(path, ["run.seed=4", "quant.format=int4", "run.seed = 5"])
    assert (recipe.run.name, recipe.run.seed, recipe.optim.momentum, recipe.optim.muon_lr) == ("a", 5, 0.9, 1.0)
    assert recipe.quant.format == "int4"
    values = recipes.resolved(recipe)
    assert values["run"]["name"] == {"value": "a", "from": "recipe"}
    assert values["run"]["seed"] == {"value": 5, "from": "--set"}
    assert values["quant"]["format"] == {"value": "int4", "from": "--set"}
    assert values["run"]["threads"] == {"value": 0, "from": "default"}
    assert json.loads(json.dumps(values)) == values


def test_resolved_values_make_the_same_recipe(tmp_path: Path) -> None:
    recipe = recipes.load(write(tmp_path, "[model]\ndepth = 3\nhidden_size = 64\n"))
    again = {section: {k: v["value"] for k, v in keys.items()} for section, keys in recipes.resolved(recipe).items()}
    assert recipes.Recipe.model_validate(again).model_dump() == recipe.model_dump()


def test_every_field_is_described() -> None:
    for name, section in recipes.SECTIONS.items():
        for key, field in section.model_fields.items():
            assert field.description, f"{name}.{key}"
            assert not field.is_required(), f"{name}.{key}"


def test_published_model_keys(tmp_path: Path) -> None:
    text = "[model]\ndepth = 4\nhidden_size = 64\nlinear_attn_config = { head_dim = 16, kda_layers = [1, 2, 3] }\n"
    recipe = recipes.load(write(tmp_path, text), ["model.hidden_act=silu"])
    assert recipe.model.published == {
        "hidden_size": 64,
        "linear_attn_config": {"head_dim": 16, "kda_layers": [1, 2, 3]},
        "hidden_act": "silu",
    }
    assert recipes.resolved(recipe)["model"]["hidden_act"] == {"value": "silu", "from": "--set"}


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("[optm]\n", ["recipe.toml", "[optm]", "'optim'"]),
        ("[optim]\nmuonlr = 1.0\n", ["recipe.toml", "'muonlr' in [optim]", "'muon_lr'"]),
        ("seed = 1\n", ["recipe.toml", "[seed]"]),
        ("run = 1\n", ["write [run]"]),
        ("[optim.muon_lr]\nx = 1\n", ["optim.muon_lr is a table"]),
        ("[model.a.b]\nx = 1\n", ["model.a", "one level"]),
        ("[run]\nseed = -1\n", ["recipe.toml: run.seed = -1", "greater than or equal to 0", "default 0"]),
        ("[run]\nthreads = 257\n", ["run.threads = 257", "less than or equal to 256"]),
        ("[run]\nseed = '1'\n", ["run.seed = '1'", "valid integer"]),
        ("[run]\nseed = true\n", ["run.seed = True", "valid integer"]),
        ("[optim]\nmuon_lr = nan\n", ["optim.muon_lr = nan", "finite"]),
        ("[quant]\nformat = 'int3'\n", ["quant.format = 'int3'", "'mxfp4', 'int4' or 'none'"]),
        ("[run]\nseed = -1\nthreads = -1\n", ["run.seed = -1", "; ", "run.threads = -1"]),
        ("[model]\ndepth = 0\n", ["model.depth = 0", "default 4"]),
        ("[run\n", ["recipe.toml is not valid TOML", "line 1"]),
    ],
)
def test_bad_recipes(tmp_path: Path, text: str, parts: list[str]) -> None:
    message = complaint(write(tmp_path, text))
    assert [part for part in parts if part not in message] == [], message


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("seed=1", ["--set seed=1", "section.key=value"]),
        ("run.seed", ["section.key=value"]),
        ("run.seed=", ["section.key=value"]),
        ("rn.seed=1", ["--set rn.seed=1", "[rn]", "'run'"]),
        ("run.sed=1", ["'sed'", "'seed'"]),
        ("run.seed=x", ["--set: run.seed = 'x'", "valid integer"]),
        ("run.seed=1\nthreads=2", ["--set: run.seed = ", "valid integer"]),
        ("run.seed={ a = 1 }", ["run.seed is a table"]),
        ("optim.muon_lr=2", ["--set: optim.muon_lr = 2", "less than or equal to 1"]),
    ],
)
def test_bad_overrides(tmp_path: Path, override: str, parts: list[str]) -> None:
    message = complaint(write(tmp_path, ""), override)
    assert [part for part in parts if part not in message] == [], message


def test_unreadable_files(tmp_path: Path) -> None:
    assert "does not exist" in complaint(tmp_path / "none.toml")
    assert "cannot read" in complaint(tmp_path)
    (tmp_path / "latin.toml").write_bytes(b"# caf\xe9")
    assert "not valid TOML" in complaint(tmp_path / "latin.toml")


def test_recipe_does_not_change(tmp_path: Path) -> None:
    recipe = recipes.load(write(tmp_path, ""))
    with pytest.raises(ValueError, match="frozen"):
        recipe.run.seed = 1
