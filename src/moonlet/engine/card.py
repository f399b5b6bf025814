"""The model card (README.md) of an exported folder: what the model is, how it was made and run, what it measures.

What it says comes from files: sizes from the config, the recipe from recipe.toml and the held-out figures, with n and
95% interval, from report/results.json of the run that the model folder lies in. A folder from elsewhere gets a card
without these two parts.
"""

import json
from pathlib import Path
from typing import Any

from moonlet.model import sizes
from moonlet.model.config import ModelConfig, is_k2


def card(folder: Path, c: ModelConfig, told: list[str]) -> str:
    """The card of the model in `folder`. told: what the export says about its numbers."""
    parts = sizes.parameters(c)
    total, active = sum(parts.values()), sum(sizes.active(parts, c).values())
    out = ["---", "library_name: transformers", "pipeline_tag: text-generation", "tags: [kimi, moonlet]", "---", ""]
    out += [f"# {name_of(folder)}", ""]
    out += [f"A language model in the form of {family(c)}: {total:,} parameters, of which a token meets {active:,}."]
    out += [f"{line}." for line in told]
    out += ["", "| part | parameters |", "|---|---|"]
    out += [f"| {part} | {count:,} |" for part, count in parts.items() if count]
    out += [*recipe(folder.parent / "recipe.toml"), *figures(folder.parent / "report" / "results.json")]
    return "\n".join([*out, *use(c), ""])


def name_of(folder: Path) -> str:
    """A run's model lies in RUN/model."""
    folder = folder.resolve()
    return folder.parent.name if folder.name == "model" else folder.name


def family(c: ModelConfig) -> str:
    if is_k2(c):
        return "Kimi K2 (MLA with rotary positions, experts)"
    if c.attn_res_block_size is not None:
        return "Kimi K3 (KDA and gated MLA, attention residuals, latent experts)"
    return "Kimi Linear (KDA and MLA, experts)"


def recipe(path: Path) -> list[str]:
    if not path.exists():
        return []
    return [
        "",
        "## How it was made",
        "",
        "By moonlet, with this recipe:",
        "",
        "```toml",
        path.read_text().strip(),
        "```",
    ]


def figures(path: Path) -> list[str]:
    """The table of held-out results."""
    if not path.exists():
        return []
    found = json.loads(path.read_text())
    out = ["", "## What it measures", "", f"On held-out items, seed {found['run']['seed']}, 95% intervals.", ""]
    out += ["| suite | split | condition | score | 95% | n |", "|---|---|---|---|---|---|"]
    for row in found["results"]:
        interval = f"{number(row.get('low'))} to {number(row.get('high'))}"
        cells = (row["suite"], row["split"], row["condition"], number(row["score"]), interval, row["n"])
        out.append(f"| {' | '.join(map(str, cells))} |")
    return out


def number(value: Any) -> str:
    return "–" if value is None else f"{value:.3g}"


def use(c: ModelConfig) -> list[str]:
    out = ["", "## How to run it", "", "```sh", "moonlet serve FOLDER", "```"]
    if c.attn_res_block_size is None:
        out += ["", "```python", "from transformers import AutoModelForCausalLM, AutoTokenizer", ""]
        out += ["model = AutoModelForCausalLM.from_pretrained(FOLDER)", "```"]
    return [
        *out,
        "",
        "Names and config are the published ones, as vLLM reads them; llama.cpp takes `moonlet export --to gguf`.",
    ]
