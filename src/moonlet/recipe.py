"""Recipes: one TOML file says everything about a run, and every value knows where it came from.

A recipe has sections and keys and nothing deeper, but for tables of published configs in [model]. Each section is a
class below and each key a field with its type, bounds, default and meaning. `load` reads the file, applies
`--set section.key=value` on top and checks all of it: an unknown name is answered with the nearest valid one, a wrong
value with its bound and a way out. `resolved` lists every value with its source ("default", "recipe" or "--set").
The published keys in [model] are checked by the model's own config when a run starts. No torch.
"""

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError

from moonlet.errors import InputError, nearest


class Section(BaseModel):
    """Strict: no text for a number and no 1 for true; unknown keys are errors; values cannot be changed afterwards."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Run(Section):
    name: str = Field("moonlet", min_length=1, max_length=100, description="what the run and its model are called")
    seed: int = Field(0, ge=0, lt=2**32, description="every random number of the run follows from it")
    threads: int = Field(0, ge=0, le=256, description="worker threads; 0 = all cores")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="operands of a training step's matrix products; auto: bf16 where the processor has it"
    )
    save_every: int = Field(50, ge=1, description="training steps between checkpoints; RL saves five times as often")


class Data(Section):
    stdlib_bytes: int = Field(400_000, ge=0, le=100_000_000, description="bytes of standard-library text to train on")
    world_documents: int = Field(6000, ge=100, le=1_000_000, description="tiny-world texts to train on")
    drills: int = Field(3000, ge=1, le=1_000_000, description="echoes, forms and tables to train on")
    dictations: int = Field(5000, ge=0, le=1_000_000, description="dictations to train on: questions and their calls")
    world_seed: int = Field(0, ge=0, lt=2**32, description="seed of the tiny world: its people, places and facts")
    seq_len: int = Field(256, ge=16, le=1_048_576, description="tokens in a packed pretraining row")


class Tokenizer(Section):
    vocab_size: int = Field(2048, ge=512, le=200_000, description="tokens, the 16 special ones included")
    pattern: Literal["digits", "published"] = Field(
        "digits", description="how text is split first: digits one by one, or as the published Kimi tokenizer does"
    )


class Chat(Section):
    format: Literal["xtml"] = Field("xtml", description="how a conversation is written as tokens")


class Model(Section):
    """`depth` derives the shape; any published config key beside it sets that part by hand."""

    model_config = ConfigDict(extra="allow")
    depth: int = Field(4, ge=1, le=128, description="layers; width, heads and experts derive from it")

    @property
    def published(self) -> dict[str, Any]:
        """The published config keys that the recipe sets by hand."""
        return dict(self.model_extra or {})


class Optim(Section):
    muon_lr: float = Field(0.01, gt=0, le=1, description="pretraining: peak learning rate of the matrices")
    adamw_lr: float = Field(0.01, gt=0, le=1, description="pretraining: peak learning rate of all else")
    weight_decay: float = Field(0.1, ge=0, le=1, description="decoupled weight decay, pretraining and SFT")
    momentum: float = Field(0.95, ge=0, lt=1, description="Muon momentum")
    qk_clip_tau: float = Field(100.0, gt=0, description="attention logits above it rescale their head's query and key")
    warmup_fraction: float = Field(0.01, ge=0, le=1, description="share of the steps with a rising learning rate")


class Pretrain(Section):
    steps: int = Field(200, ge=1, description="optimiser steps")
    drill_share: float = Field(0.5, ge=0, le=1, description="first part of the steps, on drills and dictations alone")
    rows: int = Field(8, ge=1, description="rows of data.seq_len tokens in a batch")
    recall_start: bool = Field(True, description="KDA layers begin as a memory of what followed each token")
    gate: float = Field(3.0, gt=0, description="held-out bits a byte that the stage must reach to pass")


class Sft(Section):
    steps: int = Field(400, ge=1, description="optimiser steps")
    rows: int = Field(8, ge=1, description="conversations in a batch")
    seq_len: int = Field(1536, ge=64, le=1_048_576, description="tokens at most; a longer conversation is left out")
    short_share: float = Field(0.5, ge=0, le=0.9, description="first part of the steps, on short conversations")
    mixed_share: float = Field(
        0.1, ge=0, le=1, description="last part of the steps, on traces with habits RL must judge"
    )
    muon_lr: float = Field(0.01, gt=0, le=1, description="peak learning rate of the matrices")
    adamw_lr: float = Field(0.01, gt=0, le=1, description="peak learning rate of all else")
    gate: float = Field(0.8, ge=0, le=1, description="share of the sums given to the tool that must come out right")


class Rl(Section):
    steps: int = Field(20, ge=1, description="optimiser steps")
    prompts: int = Field(32, ge=2, description="prompts a step, in two halves whose agreement is the step's length")
    samples: int = Field(8, ge=2, description="rollouts a prompt")
    max_tokens: int = Field(400, ge=16, description="limit of a rollout after its prompt, tool results included")
    muon_lr: float = Field(0.008, gt=0, le=1, description="peak learning rate of the matrices, at full agreement")
    adamw_lr: float = Field(0.008, gt=0, le=1, description="peak learning rate of all else, at full agreement")
    momentum: float = Field(0.8, ge=0, lt=1, description="Muon momentum; a long one lets noise in rewards add up")
    call_bonus: float = Field(0.1, ge=0, lt=1, description="reward of a valid call, gone after half of the steps")
    length_penalty: float = Field(0.5, ge=0, le=1, description="most that a long right answer loses to its siblings")
    needless_cost: float = Field(0.5, ge=0, le=1, description="what a right answer loses for a call that cannot help")
    log_ratio_low: float = Field(-0.7, lt=0, description="log-ratio below which a token gives no gradient")
    log_ratio_high: float = Field(0.7, gt=0, description="log-ratio above which a token gives no gradient")
    tau: float = Field(0.01, ge=0, description="weight of the squared log-ratio")
    gate: float = Field(0.8, ge=0, le=1, description="held-out accuracy at temperature 1 that must be reached")


class Quant(Section):
    format: Literal["mxfp4", "int4", "none"] = Field("mxfp4", description="4-bit grid of the expert weights")


class Eval(Section):
    items: int = Field(500, ge=10, le=1_000_000, description="held-out sums a split; other suites take a half of it")
    gate_items: int = Field(200, ge=10, description="items of a stage's gate")
    max_receipts: int = Field(100, ge=2, description="longest receipt task measured (of 2, 5, 10, 30, 100)")
    gate: float = Field(
        0.8, ge=0, le=1, description="greedy accuracy on unseen wordings that the served model must reach"
    )


class Recipe(Section):
    run: Run = Run()
    data: Data = Data()
    tokenizer: Tokenizer = Tokenizer()
    chat: Chat = Chat()
    model: Model = Model()
    optim: Optim = Optim()
    pretrain: Pretrain = Pretrain()
    sft: Sft = Sft()
    rl: Rl = Rl()
    quant: Quant = Quant()
    eval: Eval = Eval()
    _sources: dict[tuple[str, str], str] = PrivateAttr(default_factory=dict)


SECTIONS: dict[str, type[Section]] = {name: type(field.default) for name, field in Recipe.model_fields.items()}


def load(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe at `path` with `overrides` ("section.key=value") on top. Raises InputError on whatever is wrong."""
    values = _read(Path(path))
    sources = {}
    for section, keys in values.items():
        _check_section(section, str(path))
        if not isinstance(keys, dict):
            raise InputError(f"{path}: {section} is a section: write [{section}] and its keys below it")
        for key, value in keys.items():
            _check_key(section, key, value, str(path))
            sources[section, key] = "recipe"
    for override in overrides:
        section, key, value = _parse_override(override)
        values.setdefault(section, {})[key] = value
        sources[section, key] = "--set"
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        raise InputError("; ".join(_complaint(entry, sources, path) for entry in error.errors())) from None
    recipe._sources = sources
    return recipe


def resolved(recipe: Recipe) -> dict[str, dict[str, dict[str, Any]]]:
    """{section: {key: {"value": ..., "from": "default" | "recipe" | "--set"}}} of every value, for config.json."""
    return {
        section: {
            key: {"value": value, "from": recipe._sources.get((section, key), "default")}
            for key, value in values.items()
        }
        for section, values in recipe.model_dump().items()
    }


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_bytes().decode())
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: give the path of a recipe such as recipes/quickstart.toml") from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; give the path of a recipe file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid TOML: {error}") from None


def _check_section(section: str, where: str) -> None:
    if section not in SECTIONS:
        raise InputError(f"{where}: unknown section [{section}]: {nearest(section, SECTIONS)}")


def _check_key(section: str, key: str, value: Any, where: str) -> None:
    """Names and depth; the values are left to pydantic."""
    valid = SECTIONS[section].model_fields
    if section != "model":
        if key not in valid:
            raise InputError(f"{where}: unknown key {key!r} in [{section}]: {nearest(key, valid)}")
        if isinstance(value, dict):
            raise InputError(f"{where}: {section}.{key} is a table: a recipe has sections and keys, nothing deeper")
    elif isinstance(value, dict) and any(isinstance(inner, dict) for inner in value.values()):
        raise InputError(f"{where}: model.{key} holds a table in a table: a published config has one level at most")


def _parse_override(override: str) -> tuple[str, str, Any]:
    name, equals, text = override.partition("=")
    section, _, key = (part.strip() for part in name.partition("."))
    if not equals or not section or not key or not text.strip():
        raise InputError(f"--set {override}: write --set section.key=value, for example --set optim.muon_lr=0.01")
    _check_section(section, f"--set {override}")
    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        parsed = {}
    # A bare word is text: shells strip the quotes that TOML wants.
    value = parsed["value"] if parsed.keys() == {"value"} else text.strip()
    _check_key(section, key, value, f"--set {override}")
    return section, key, value


def _complaint(entry: Any, sources: dict[tuple[str, str], str], path: str | Path) -> str:
    """One pydantic error as: where, key = value: the bound; the fix."""
    section, key = entry["loc"][:2]
    where = "--set" if sources[section, key] == "--set" else path
    value, default = repr(entry["input"]), SECTIONS[section].model_fields[key].default
    shown = value if len(value) <= 60 else value[:57] + "..."
    bound = entry["msg"].removeprefix("Input ")
    return f"{where}: {section}.{key} = {shown} {bound}; change it or leave it out (default {default!r})"
