"""What each stage of a run does: a function of the run's context that returns its record for the manifest.

The record holds tokens, FLOPs and MFU where they make sense, `passed` and `gate` where the recipe sets one. Stages hand
over through the run's folder only, so that each can be run alone after the ones before it.
"""

import json
import os
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch

from moonlet.chat import chat_template
from moonlet.data import drills, stdlib_text
from moonlet.data.presplit import PATTERNS
from moonlet.data.shards import Loader, Rows
from moonlet.data.tiny_world import World
from moonlet.data.tokenizer import Tokenizer
from moonlet.engine import load as folders
from moonlet.errors import InputError
from moonlet.evals import measure
from moonlet.evals.bits import bits_per_byte
from moonlet.evals.suites import Player
from moonlet.files import write_json
from moonlet.model.config import ModelConfig, for_depth
from moonlet.model.linear import has_bf16
from moonlet.model.model import Model
from moonlet.model.recall import start_with_recall
from moonlet.optim.muon import MuonAdamW, OptimConfig, muon_blocks
from moonlet.progress import Board
from moonlet.quant.grids import rounded_experts
from moonlet.recipe import Recipe, Sft
from moonlet.report import write_report
from moonlet.rl.loop import RLConfig, train_rl
from moonlet.tasks.base import ALL_TOOLS
from moonlet.tasks.dictation import dictations
from moonlet.tracker import Run
from moonlet.train import checkpoint, corpus
from moonlet.train.flops import gemm_gflops
from moonlet.train.loop import LoopConfig, train
from moonlet.train.step import Stepper

Record = dict[str, Any]


@dataclass
class Context:
    """Everything a stage may use."""

    recipe: Recipe
    folder: Path
    manifest: dict[str, Any]
    board: Board = field(init=False)

    @cached_property
    def threads(self) -> int:
        return self.recipe.run.threads or os.cpu_count() or 1

    @cached_property
    def stepper(self) -> Stepper:
        torch.set_num_threads(1)
        precision = self.recipe.run.precision
        bf16 = has_bf16() if precision == "auto" else precision == "bf16"
        self.manifest["precision"] = "bf16" if bf16 else "fp32"
        return Stepper(self.threads, bf16)

    @cached_property
    def tracker(self) -> Run:
        return Run(self.folder)

    @cached_property
    def world(self) -> World:
        return World(self.recipe.data.world_seed)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer.load(self.folder / "tokenizer")

    @cached_property
    def config(self) -> ModelConfig:
        special = self.tokenizer.special
        ids = {"bos_token_id": special["[BOS]"], "pad_token_id": special["[PAD]"]}
        ids["eos_token_id"] = special["<|end_of_msg|>"]
        overrides = {**ids, "max_position_embeddings": 32768, **self.recipe.model.published}
        return for_depth(self.recipe.model.depth, self.tokenizer.vocab_size, overrides)

    @cached_property
    def gemm(self) -> float:
        if "gemm_gflops" not in self.manifest:
            dtype = torch.bfloat16 if self.stepper.bf16 else torch.float32
            self.manifest["gemm_gflops"] = gemm_gflops(self.threads, dtype=dtype)
        return self.manifest["gemm_gflops"]

    def model(self, stage: str, quantised: bool) -> Model:
        """The newest checkpoint of `stage`; with `quantised` its experts go through the recipe's 4-bit grid."""
        model = Model(self.config)
        if checkpoint.load_newest(self.folder / stage, model) is None:
            raise InputError(f"{self.folder / stage} has no whole checkpoint; run with --from {stage}")
        if quantised:
            model.expert_format = self.recipe.quant.format
        return model

    def optimizer(self, model: Model, stage: Literal["pretrain", "sft", "rl"]) -> MuonAdamW:
        """With the settings of a stage; pretraining's stand in [optim], and SFT has its momentum and weight decay."""
        r = self.recipe
        rates: Any = {"pretrain": r.optim, "sft": r.sft, "rl": r.rl}[stage]
        decay, momentum = (0.0, r.rl.momentum) if stage == "rl" else (r.optim.weight_decay, r.optim.momentum)
        return MuonAdamW(model, muon_blocks(model), OptimConfig(rates.muon_lr, rates.adamw_lr, decay, momentum))

    def player(self, model: Model) -> Player:
        return Player(model, self.tokenizer, self.world, self.stepper)

    def figures(self, totals: dict[str, Any]) -> Record:
        """Totals of a training stage with its MFU against this machine's measured GEMM peak."""
        mfu = totals["flops"] / max(totals["seconds"], 1e-9) / (self.gemm * 1e9)
        return {**totals, "mfu": mfu}

    def close(self) -> None:
        for name in ("tracker", "stepper"):
            if name in self.__dict__:
                (self.tracker.close if name == "tracker" else self.stepper.pool.shutdown)()


def data(c: Context) -> Record:
    """Corpus documents, written as JSON, with the manifest of their sources."""
    settings = c.recipe.data
    training, held_out = corpus.documents(c.world, settings.stdlib_bytes, settings.world_documents, c.recipe.run.seed)
    write_json(c.folder / "data" / "documents.json", {"training": training, "held_out": held_out})
    c.manifest["sources"] = {"stdlib": stdlib_text.manifest(), "world_seed": settings.world_seed}
    return {"documents": len(training), "bytes": sum(len(t.encode()) for t in training)}


def documents(c: Context) -> dict[str, Any]:
    return json.loads((c.folder / "data" / "documents.json").read_text())


def tokenizer(c: Context) -> Record:
    """Train the BPE, then encode and pack everything the training stages read."""
    r, seed = c.recipe, c.recipe.run.seed
    texts = documents(c)
    pattern = PATTERNS[r.tokenizer.pattern]
    made = corpus.train_tokenizer(texts["training"], c.world, r.tokenizer.vocab_size, seed, pattern)
    made.save(c.folder / "tokenizer", chat_template=chat_template())
    words = drills.lower_case_words(texts["training"])
    practice = drills.drills(c.world, seed, r.data.drills) + dictations(c.world, words, seed, r.data.dictations)
    random.Random(f"practice {seed}").shuffle(practice)
    rows = corpus.pretrain_rows(made, practice, r.data.seq_len)
    rows.save(c.folder / "data" / "drills")
    plain = [drills.predictable_targets(text) for text in texts["training"]]
    rows = corpus.pretrain_rows(made, [*plain, *practice[: len(plain) // 2]], r.data.seq_len)
    rows.save(c.folder / "data" / "pretrain")
    for phase, steps in sft_phases(r.sft):
        conversations = corpus.sft_rows(made, c.world, phase, steps * r.sft.rows, r.sft.seq_len, seed)
        conversations.save(c.folder / "data" / f"sft-{phase}")
    return {"vocab_size": made.vocab_size, "pretrain_rows": len(rows), "fill": rows.fill}


def sft_phases(s: Sft) -> list[tuple[str, int]]:
    """The phases of SFT that have steps, in order."""
    short, mixed = round(s.steps * s.short_share), round(s.steps * s.mixed_share)
    return [(p, n) for p, n in (("short", short), ("tool", s.steps - short - mixed), ("mixed", mixed)) if n > 0]


def pretrain(c: Context) -> Record:
    r = c.recipe
    model = Model(c.config).init_weights(r.run.seed)
    if r.pretrain.recall_start:
        start_with_recall(model, r.run.seed)
    optimizer = c.optimizer(model, "pretrain")
    first = round(r.pretrain.steps * r.pretrain.drill_share)
    phases = [("drills", first), ("pretrain", r.pretrain.steps - first)]
    loader = Loader([(Rows.load(c.folder / "data" / p), n) for p, n in phases if n], r.run.seed, r.pretrain.rows)
    config = LoopConfig(
        "pretrain", r.pretrain.steps, r.run.save_every, r.optim.warmup_fraction, tau=r.optim.qk_clip_tau
    )
    totals = train(model, optimizer, loader, config, c.folder / "pretrain", c.tracker, c.stepper, c.board.progress)
    held_out = [t for texts in documents(c)["held_out"].values() for t in texts]
    score, low, high = bits_per_byte(model, c.tokenizer, held_out, r.data.seq_len)
    gate = f"{score:.2f} bits per byte held out [{low:.2f}, {high:.2f}], gate <= {r.pretrain.gate:g}"
    return {**c.figures(totals), "passed": score <= r.pretrain.gate, "gate": gate}


def sft(c: Context) -> Record:
    r = c.recipe
    model = c.model("pretrain", quantised=True)
    optimizer = c.optimizer(model, "sft")
    parts = [(Rows.load(c.folder / "data" / f"sft-{phase}"), steps) for phase, steps in sft_phases(r.sft)]
    loader = Loader(parts, r.run.seed, r.sft.rows)
    config = LoopConfig("sft", r.sft.steps, r.run.save_every, r.optim.warmup_fraction, tau=r.optim.qk_clip_tau)
    totals = train(model, optimizer, loader, config, c.folder / "sft", c.tracker, c.stepper, c.board.progress)
    passed, gate = measure.tool_skill_gate(c.player(model), r.eval.gate_items, r.sft.gate)
    return {**c.figures(totals), "passed": passed, "gate": gate}


def rl_config(c: Context) -> RLConfig:
    r = c.recipe.rl
    return RLConfig(
        steps=r.steps,
        save_every=max(1, c.recipe.run.save_every // 5),
        prompts=r.prompts,
        samples=r.samples,
        seed=c.recipe.run.seed,
        max_tokens=r.max_tokens,
        call_bonus=r.call_bonus,
        length_penalty=r.length_penalty,
        needless_cost=r.needless_cost,
        low=r.log_ratio_low,
        high=r.log_ratio_high,
        tau=r.tau,
        clip_tau=c.recipe.optim.qk_clip_tau,
    )


def rl(c: Context) -> Record:
    r = c.recipe
    model = c.model("sft", quantised=True)
    optimizer = c.optimizer(model, "rl")
    totals = train_rl(
        model, c.tokenizer, c.world, optimizer, rl_config(c), c.folder / "rl", c.tracker, c.stepper, c.board.progress
    )
    passed, gate = measure.accuracy_gate(c.player(model), r.eval.gate_items, r.rl.gate)
    return {**c.figures(totals), "passed": passed, "gate": gate}


def quant(c: Context) -> Record:
    """Write model/: published layout, experts packed to 4 bits, and check that it gives the trained logits back."""
    model = c.model("rl", quantised=True)
    tools = {"tools": list(ALL_TOOLS), "table": c.world.table, "world_seed": c.recipe.data.world_seed}
    folders.write(c.folder / "model", model, c.tokenizer, c.recipe.quant.format, tools, chat_template())
    loaded, _ = folders.load(c.folder / "model")
    ids = torch.arange(c.config.vocab_size).remainder(c.config.vocab_size)[None, :256]
    with torch.no_grad(), rounded_experts(model):
        difference = float((loaded(ids) - model(ids)).abs().max())
    gate = f"packed weights give the trained logits back, largest difference {difference:.1e}, gate <= 1e-4"
    return {"passed": difference <= 1e-4, "gate": gate, "format": c.recipe.quant.format}


def evaluate(c: Context) -> Record:
    """Every figure of the report, on the model as served (loaded from model/)."""
    results = measure.everything(measure.Subject(c.recipe, c.folder, c.model, c.player, c.board.progress))
    results["machine"] = {"gemm_gflops": c.gemm, "threads": c.threads, "cpu": measure.cpu_name()}
    write_json(c.folder / "report" / "results.json", results)
    passed, gate = measure.final_gate(results["results"], c.recipe.eval.gate)
    return {"passed": passed, "gate": gate}


def report(c: Context) -> Record:
    """The page; results.json gets the stages' records as they now stand."""
    path = c.folder / "report" / "results.json"
    results = json.loads(path.read_text())
    results["stages"] = measure.stage_rows(c.manifest["stages"])
    results["seconds"] = c.manifest["seconds"]
    results["peak_memory_bytes"] = c.manifest["peak_memory_bytes"]
    write_json(path, results)
    write_report(c.folder)
    return {"headline": measure.headline(results["results"])}


STAGES: dict[str, Callable[[Context], Record]] = {
    "data": data,
    "tokenizer": tokenizer,
    "pretrain": pretrain,
    "sft": sft,
    "rl": rl,
    "quant": quant,
    "eval": evaluate,
    "report": report,
}
