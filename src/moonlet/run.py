"""A whole run, stage by stage, in one folder: data, tokenizer, pretrain, sft, rl, quant, eval, report.

A finished stage is skipped, an interrupted one resumes from its newest checkpoint, so the same command always goes on
where the last one stopped. Each stage has two statuses: *finished*, and *passed* its capability gate, a held-out score
named in the recipe. A stage whose input did not pass still runs, and says so in the table, the report and at the end.
What each stage does is in `stages.py`; here are order, resuming, and the record in manifest.json.
"""

import hashlib
import json
import platform
import resource
import shutil
import time
from pathlib import Path
from typing import Any

import torch

from moonlet import recipe as recipes
from moonlet.errors import InputError, nearest
from moonlet.files import check_writable, write_atomic, write_json
from moonlet.model.config import for_depth
from moonlet.progress import Board
from moonlet.stages import STAGES, Context

FOLDERS = {"data": "data", "tokenizer": "tokenizer", "quant": "model", "eval": "report"}
NEEDED_BYTES = 300_000_000


def run(recipe_path: Path, out: Path | None, from_stage: str | None, until: str | None, overrides: list[str]) -> int:
    """Run (or resume) a recipe into `out` (default runs/NAME). 0 when every gate passed or was absent, else 1."""
    recipe = recipes.load(recipe_path, overrides)
    for name in (from_stage, until):
        if name is not None and name not in STAGES:
            raise InputError(f"unknown stage {name!r}; nearest: {nearest(name, STAGES)}")
    for_depth(recipe.model.depth, recipe.tokenizer.vocab_size, recipe.model.published)  # a wrong shape ends here
    folder = Path(out) if out is not None else Path("runs") / recipe.run.name
    check_writable(folder, NEEDED_BYTES)
    settings = recipes.resolved(recipe)
    same_settings(folder, settings)
    write_json(folder / "config.json", settings)
    write_atomic(folder / "recipe.toml", Path(recipe_path).read_bytes())
    manifest = read_manifest(folder)
    if from_stage is not None:
        forget(folder, manifest, from_stage)
    names = list(STAGES)
    wanted = names[: names.index(until) + 1] if until else names
    context = Context(recipe, folder, manifest)
    began, before = time.perf_counter(), manifest.get("seconds", 0.0)
    try:
        with Board(recipe.run.name, names, manifest["stages"]) as board:
            context.board = board
            for name in wanted:
                if manifest["stages"].get(name, {}).get("finished"):
                    continue
                board.start(name, input_passed(manifest, names, name))
                started = time.perf_counter()
                record = STAGES[name](context)
                record = {"seconds": time.perf_counter() - started, **record, "finished": True}
                record["input_passed"] = input_passed(manifest, names, name)
                manifest["stages"][name] = record
                manifest["seconds"] = before + time.perf_counter() - began
                manifest["peak_memory_bytes"] = max(manifest.get("peak_memory_bytes", 0), peak_memory())
                write_json(folder / "manifest.json", manifest)
                board.finish(name, record)
    finally:
        context.close()
    return conclude(folder, manifest, names)


def same_settings(folder: Path, settings: dict[str, Any]) -> None:
    """A folder belongs to one recipe: another value for any key is an error that names it."""
    path = folder / "config.json"
    if not path.exists():
        return
    old = json.loads(path.read_text())
    for section, keys in settings.items():
        for key, entry in keys.items():
            value = old.get(section, {}).get(key, {}).get("value")
            if value != json.loads(json.dumps(entry["value"])):
                raise InputError(
                    f"{folder} was made with {section}.{key}={value!r}, now {entry['value']!r}; "
                    "give another --out, or remove the folder"
                )


def read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / "manifest.json"
    if path.exists():
        return json.loads(path.read_text())
    versions = {"python": platform.python_version(), "torch": torch.__version__, "machine": platform.machine()}
    return {"versions": versions, "stages": {}}


def forget(folder: Path, manifest: dict[str, Any], stage: str) -> None:
    """Drop a stage and everything after it."""
    names = list(STAGES)
    for name in names[names.index(stage) :]:
        manifest["stages"].pop(name, None)
        shutil.rmtree(folder / FOLDERS.get(name, name), ignore_errors=True)
    write_json(folder / "manifest.json", manifest)


def input_passed(manifest: dict[str, Any], names: list[str], name: str) -> bool:
    """False when any earlier stage missed its gate."""
    earlier = [manifest["stages"].get(n, {}) for n in names[: names.index(name)]]
    return all(stage.get("passed") is not False for stage in earlier)


def peak_memory() -> int:
    """Largest resident memory of this process so far, bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if platform.system() == "Darwin" else 1024)


def digest(folder: Path) -> str:
    """sha256 of the final weights, first 16 digits."""
    return hashlib.sha256((folder / "model" / "model.safetensors").read_bytes()).hexdigest()[:16]


def conclude(folder: Path, manifest: dict[str, Any], names: list[str]) -> int:
    """Say what the model can do, which gates were missed, and what to type next."""
    missed = [n for n in names if manifest["stages"].get(n, {}).get("passed") is False]
    for name in missed:
        print(f"NOT PASSED: {name} finished below its gate: {manifest['stages'][name]['gate']}")
    if manifest["stages"].get("report", {}).get("finished"):
        for line in manifest["stages"]["report"]["headline"]:
            print(line)
        print(f"weights {digest(folder)}, {manifest['seconds']:.0f} s, report {folder}/report/index.html")
        print(f"\n  moonlet chat {folder}/model\n  moonlet serve {folder}/model\n  moonlet board {folder.parent}/")
    return 1 if missed else 0
