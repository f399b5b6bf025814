"""docs/recipe.md, made from the recipe's own fields, so that page, error messages and program cannot disagree.

`python tests/recipe_page.py > docs/recipe.md` writes the page again; tests/test_docs.py compares the two.
"""

from dataclasses import fields
from typing import Any, get_args

from pydantic.fields import FieldInfo

from moonlet.model.config import LINEAR_KEYS, ModelConfig, for_depth
from moonlet.recipe import SECTIONS

INTRODUCTION = """\
# What can a recipe say?

This page is generated from `src/moonlet/recipe.py` by `python tests/recipe_page.py > docs/recipe.md`.

A recipe is one TOML file a run, with sections and keys and nothing deeper (but for tables of published configs in
`[model]`). Every key has a default, so a recipe holds only what it changes; `recipes/quickstart.toml` is a short one.

- `--set section.key=value` on the command line goes on top of the file and may be repeated.
- An unknown section or key is an error that names the nearest valid one; a value out of bounds is an error that names
  the bound. Both end with exit code 2.
- The run's `config.json` lists every value and where it came from: `default`, `recipe` or `--set`.
- A folder belongs to one set of values: the same command resumes it, another value asks for another `--out`.
"""
MODEL = """\
`depth` is the one dial. It gives the shape by the rules of `for_depth` in `src/moonlet/model/config.py`:

| depth | hidden_size | heads | full attention (MLA) layers | latent | experts, chosen | attn_res_block_size |
|---|---|---|---|---|---|---|
{derived}

Any published config key may stand beside it and sets that part by hand:

{published};

of `linear_attn_config`: {linear}.

`vocab_size` and the three token ids come from the run's tokenizer.
"""
BOUNDS = {"ge": ">= {}", "gt": "> {}", "le": "<= {}", "lt": "< {}", "min_length": "at least {} character"}
BOUNDS["max_length"] = "at most {} characters"
FROM_TOKENIZER = {"vocab_size", "bos_token_id", "eos_token_id", "pad_token_id"}
TYPES = {int: "whole number", float: "number", str: "text", bool: "true or false"}


def page() -> str:
    """The whole page, with its last newline."""
    return INTRODUCTION + "".join(section(name) for name in SECTIONS)


def section(name: str) -> str:
    rows = [
        f"| `{key}` | {kind(field)} | {bounds(field)} | `{shown(field.default)}` | {field.description} |\n"
        for key, field in SECTIONS[name].model_fields.items()
    ]
    head = f"\n## [{name}]\n\n| key | type | bounds | default | meaning |\n|---|---|---|---|---|\n"
    return head + "".join(rows) + ("\n" + model_part() if name == "model" else "")


def kind(field: FieldInfo) -> str:
    return TYPES.get(field.annotation, "one of the words") if field.annotation else "anything"


def bounds(field: FieldInfo) -> str:
    if choices := get_args(field.annotation):
        return ", ".join(f"`{choice}`" for choice in choices)
    found = [(name, getattr(limit, name)) for limit in field.metadata for name in BOUNDS if hasattr(limit, name)]
    return ", ".join(BOUNDS[name].format(shown(value)) for name, value in found)


def shown(value: Any) -> str:
    """A number or text as one would write it in TOML, without quotes; large numbers with underscores."""
    return f"{value:_}" if type(value) is int else str(value)


def model_part() -> str:
    return MODEL.format(
        derived="\n".join(derived(depth) for depth in (3, 5, 9, 13, 17)),
        published=", ".join(f"`{field.name}`" for field in fields(ModelConfig) if field.name not in FROM_TOKENIZER),
        linear=", ".join(f"`{key}`" for key in sorted(LINEAR_KEYS)),
    )


def derived(depth: int) -> str:
    c = for_depth(depth, 2048)
    full = " ".join(str(layer) for layer in c.kda("full_attn_layers"))
    values = (c.hidden_size, c.num_attention_heads, full, c.routed_expert_hidden_size)
    chosen = f"{c.num_experts}, {c.num_experts_per_token}"
    return "| " + " | ".join(str(value) for value in (depth, *values, chosen, c.attn_res_block_size)) + " |"


if __name__ == "__main__":
    print(page(), end="")
