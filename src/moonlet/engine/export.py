"""A model folder in another form, for `moonlet export`: hf (experts in fp32), mxfp4, int4, or one GGUF file.

The numbers of the experts change only where a grid is chosen that they were not trained through; how much is told.
"""

import json
import math
from pathlib import Path

from moonlet.engine import gguf_arch, gguf_file
from moonlet.engine.card import card
from moonlet.engine.load import load, write
from moonlet.errors import InputError, nearest
from moonlet.files import check_writable
from moonlet.model.model import Model
from moonlet.quant.grids import round_to_grid

FOLDER_FORMATS = {"hf": "none", "mxfp4": "mxfp4", "int4": "int4"}


def export(folder: Path, to: str, out: Path, kind: str) -> list[str]:
    """Write `out`; lines to tell the user. kind: the matrices' type in a GGUF file."""
    if to not in (*FOLDER_FORMATS, "gguf"):
        raise InputError(f"--to {to}: {nearest(to, [*FOLDER_FORMATS, 'gguf'])}")
    if out.resolve() == folder.resolve():
        raise InputError(f"--out {out} is the model itself: choose another path")
    model, tokenizer = load(folder)
    check_writable(out.parent, 5 * sum(p.numel() for p in model.parameters()))
    template = folder / "chat_template.jinja"
    text = template.read_text() if template.exists() else None
    grid = FOLDER_FORMATS[to] if to != "gguf" else kind if kind in ("mxfp4", "int4") else "none"
    told = []
    if grid != "none":
        told = [f"Experts rounded to {grid}: relative error {rounding_error(model, grid):.2g}"]
    if to == "gguf":
        gguf_file.write(model, tokenizer, out, kind, out.stem, text)
        told += [f"note: {line}" for line in gguf_arch.differences(model.config)]
    else:
        if tokenizer is None:
            raise InputError(f"{folder} has no tokenizer.json; a folder is exported with its tokenizer")
        declared = folder / "tools.json"
        tools = json.loads(declared.read_text()) if declared.exists() else {"tools": []}
        write(out, model, tokenizer, grid, tools, text or "", card(folder, model.config, told))
    return [f"wrote {out}", *told]


def rounding_error(model: Model, grid: str) -> float:
    """Norm of what rounding the routed experts changes, over their norm."""
    stacks = [w.detach() for layer in model.layers if layer.moe for w in layer.mlp.experts.parameters()]
    changed = sum(float((round_to_grid(w, grid) - w).square().sum()) for w in stacks)
    whole = sum(float(w.square().sum()) for w in stacks)
    return math.sqrt(changed / max(whole, 1e-30))
