"""What fits: counts against real models, the published sizes, predicted against measured memory, bad input."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parent / "engine"))

from folders import publish
from helpers import tiny_model_folder

from moonlet import fit
from moonlet.engine.cache import Pool
from moonlet.errors import InputError
from moonlet.model import sizes
from moonlet.model.kernels import native
from moonlet.model.model import Model
from moonlet.model.presets import PRESETS, preset
from moonlet.optim.muon import MuonAdamW, OptimConfig, muon_blocks


@pytest.mark.parametrize("name", ["nano", "laptop"])
def test_counts_are_those_of_the_model(name: str) -> None:
    c = preset(name)
    model = Model(c)
    parts, muon = sizes.parameters(c), fit.muon_parameters(c)
    assert sum(parts.values()) == sum(p.numel() for p in model.parameters())
    experts = sum(p.numel() for layer in model.layers if layer.moe for p in layer.mlp.experts.parameters())
    assert parts["routed experts"] == experts
    assert sizes.active(parts, c)["routed experts"] == experts * c.num_experts_per_token // c.num_experts
    optimizer = MuonAdamW(model, muon_blocks(model), OptimConfig(0.1, 0.1))
    assert muon == sum(optimizer.params[n].numel() for n in optimizer.blocks)
    held = 4 * sum(t.numel() for t in optimizer.state.values() if t.ndim)
    assert fit.facts(name, None, 1)["training_fp32"] == 3 * 4 * sum(parts.values()) + held
    short, long = (model.new_cache(1, n) for n in (0, 1000))
    token, sequence = fit.cache_bytes(c)
    assert sequence == 4 * sum(t.numel() for layer in short.layers for t in vars(layer).values())
    for kind, key in (("fp32", "state_per_sequence"), ("bf16", "snapshot_bf16")):
        assert Pool(model, 1, 64, 64 << 20, snapshots=kind).saved_bytes == fit.facts(name, None, 1)[key]
    here = 4 * sum(t.numel() for layer in long.layers for t in vars(layer).values())  # latents in fp32 here, not bf16
    assert here - sequence == 2 * 1000 * token


def test_published_sizes() -> None:
    k3, k2, linear = (fit.facts(name, None, 1) for name in ("kimi-k3", "kimi-k2", "kimi-linear-48b"))
    assert k3["total"] / 2.779e12 == pytest.approx(1, abs=1e-3)
    assert k3["active_total"] / 104.19e9 == pytest.approx(1, abs=1e-3)
    assert k2["total"] / 1.04e12 == pytest.approx(1, abs=0.02)
    assert linear["total"] / 48e9 == pytest.approx(1, abs=0.03) and linear["active_total"] / 3e9 < 1.05


def test_the_named_machines_hold_their_presets() -> None:
    card, desk = (fit.facts(f"{gb}gb", fit.memory_bytes(f"{gb}GB"), 131072)["memory"] for gb in (24, 128))
    assert card["fits"] and 1 * fit.GIB < card["room"] < 5 * fit.GIB and not card["bf16_fits"]
    assert desk["fits"] and fit.facts("128gb", None, 1)["total"] / 100e9 == pytest.approx(1, abs=0.1)
    big = fit.facts("kimi-k3", fit.memory_bytes("24GB"), 131072)["memory"]
    assert not big["fits"] and big["streams"] == big["longest_context"] == 0


MEASURE = """
import sys
from pathlib import Path
from moonlet.engine.weights import opened

def private():
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("RssAnon"))

opened(Path(sys.argv[1]), sys.argv[3], None)
before = private()
kept = opened(Path(sys.argv[2]), sys.argv[3], None)
print(private() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
@pytest.mark.parametrize(("weights", "fact"), [("fp32", "cpu"), ("int8", "cpu_int8")])
def test_predicted_memory_is_the_measured_one(weights: str, fact: str, tmp_path: Path) -> None:
    if native.why_not():
        pytest.skip("without the native decoder weights stay mapped")
    for name in ("nano", "laptop"):
        publish(tmp_path / name, Model(preset(name)).init_weights(0), dtype=torch.bfloat16, experts="mxfp4")
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "nano"), str(tmp_path / "laptop"), weights]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) / fit.facts("laptop", None, 1)[fact] == pytest.approx(1, abs=0.1)


TRAIN = """
import torch
from moonlet.model.model import Model
from moonlet.model.presets import preset
from moonlet.optim.muon import MuonAdamW, OptimConfig, muon_blocks
from moonlet.train.step import Stepper

def peak():
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))

def train(name, tokens):
    model, ids = Model(preset(name)).init_weights(0), torch.zeros(1, tokens, dtype=torch.long)
    optimizer = MuonAdamW(model, muon_blocks(model), OptimConfig(0.01, 0.01))
    batch = {"tokens": ids, "segments": torch.ones_like(ids), "loss": torch.ones_like(ids)}
    Stepper(1).step(model, optimizer, batch, 1.0, 100.0)

train("nano", 16)
before = peak()
train("nano", 4096)
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_predicted_memory_of_training_is_the_measured_one() -> None:
    if native.why_not():
        pytest.skip("without the native kernels a step keeps more")
    done = subprocess.run([sys.executable, "-c", TRAIN], capture_output=True, text=True, check=True)
    f = fit.facts("nano", None, 1)
    predicted = f["training_fp32"] + 4.096 * f["activations_per_1k_tokens"]
    assert int(done.stdout) / predicted == pytest.approx(1, abs=0.1)


def test_a_folder_and_a_table(tmp_path: Path) -> None:
    f = fit.facts(str(tiny_model_folder(tmp_path)), 2**30, 1000)
    text = "\n".join(fit.lines(f))
    assert f["memory"]["fits"] and "routed experts" in text and "fits with" in text
    rows = fit.presets([fit.facts(name, 2**30, 1000) for name in PRESETS])
    assert len(rows) == 3 + len(PRESETS) and "does not fit" in rows[3]
    assert json.loads(json.dumps(f)) == f


@pytest.mark.parametrize(
    ("text", "expected"), [("24GB", 24 * 2**30), ("1.5 GiB", 3 * 2**29), ("500M", 500 * 2**20), ("9", 9)]
)
def test_sizes(text: str, expected: int) -> None:
    assert fit.memory_bytes(text) == expected


@pytest.mark.parametrize("text", ["", "0", "-3GB", "lots", "1e999G", "nan"])
def test_bad_sizes(text: str) -> None:
    with pytest.raises(InputError, match="--memory"):
        fit.memory_bytes(text)


def test_unknown_names_get_the_nearest() -> None:
    with pytest.raises(InputError, match="kimi-k2"):
        fit.facts("kimi-k22", None, 1)
    torch.empty(0)  # the meta device of the counting does not stick
    assert torch.empty(1).device.type == "cpu"
