"""How the engine keeps a model's weights: every form answers, in the memory that it takes, and misuse is told."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from folders import publish
from helpers import tiny_model_folder
from small_models import FORMS, random_ids

from moonlet import Engine
from moonlet.engine import weights as weights_module
from moonlet.engine.generate import Decoder
from moonlet.engine.load import load
from moonlet.engine.weights import WEIGHTS, on_gpu, opened
from moonlet.errors import InputError
from moonlet.model.kernels.native import library, why_not
from moonlet.model.model import Model

pytestmark = pytest.mark.skipif(library() is None, reason=f"no native kernels: {why_not()}")
ON_A_CPU = [weights for weights in WEIGHTS if weights != "gpu"]


@torch.no_grad()
@pytest.mark.parametrize("weights", ON_A_CPU)
@pytest.mark.parametrize("on_disk", [False, True])
def test_logits_are_the_model_s(weights: str, on_disk: bool, tmp_path: Path) -> None:
    folder = tiny_model_folder(tmp_path)
    if on_disk and weights == "fp32":
        pytest.skip("refused")
    model, _, packed = opened(folder, weights, tmp_path if on_disk else None)
    assert packed is not None and model.lm_head.weight.numel() == model.layers[0].mlp.gate_proj.weight.numel() == 0
    whole, ids = load(folder)[0], random_ids(2, 30, vocab=model.config.vocab_size).tolist()
    logits = Decoder(model, packed).feed(model.new_cache(2, 40), [0, 1], ids)
    exact = whole(torch.tensor(ids))[:, -1]
    bound = {"fp32": 1e-4, "packed": 0.05, "int8": 0.1, "int4": 1.0}[weights]
    assert (logits - exact).abs().mean() / exact.std() < bound
    assert [path.name for path in tmp_path.iterdir()] == ["model"]  # what lies on the disk has no name


@pytest.mark.parametrize("weights", WEIGHTS)
def test_an_engine_answers(weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not torch.cuda.is_available():  # a CPU stands for the GPU: in bf16, without the native decoder
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(weights_module, "on_gpu", lambda model, _: on_gpu(model, torch.device("cpu")))
    engine = Engine(tiny_model_folder(tmp_path), weights=weights)
    said = [engine.chat([{"role": "user", "content": "2 + 3?"}], seed=1, max_tokens=12) for _ in range(2)]
    assert said[0].completion_tokens == 12 and said[0].message() == said[1].message()


SERVE = """
import resource, sys
from pathlib import Path
import torch
from moonlet.engine.generate import Decoder
from moonlet.engine.weights import opened

def run(folder, weights, scratch):
    model, _, packed = opened(Path(folder), weights, scratch)
    return Decoder(model, packed).feed(model.new_cache(1, 8), [0], [[1, 2, 3]])

run(sys.argv[1], "fp32", None)
private = next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmData"))
resource.setrlimit(resource.RLIMIT_DATA, (private + int(sys.argv[3]), -1))
run(sys.argv[2], "packed", Path(sys.argv[4]) if len(sys.argv) > 4 else None)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_experts_on_disk_need_no_memory(tmp_path: Path) -> None:
    sizes = {"hidden_size": 256, "moe_intermediate_size": 256, "num_experts": 96, "num_experts_per_token": 2}
    folder = publish(tmp_path / "m", Model(FORMS["kimi_linear"](**sizes)).init_weights(0), experts="mxfp4")
    file = (folder / "model.safetensors").stat().st_size
    experts = 3 * 3 * 96 * 256 * 256 * 17 // 32
    small = publish(tmp_path / "small", Model(FORMS["kimi_linear"]()).init_weights(0))

    def runs(*scratch: str) -> bool:
        room = file + experts // 2  # the file is mapped, beside it half of what the experts take
        command = [sys.executable, "-c", SERVE, str(small), str(folder), str(room), *scratch]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    assert runs(str(tmp_path)) and not runs()


def test_misuse_is_told(tmp_path: Path) -> None:
    folder = tiny_model_folder(tmp_path)
    for weights, scratch, word in (
        ("int5", None, "int8"),
        ("fp32", tmp_path, "packed, int8, int4"),
        ("int8", tmp_path / "nowhere", "must be a folder"),
        *([] if torch.cuda.is_available() else [("gpu", None, "finds no GPU")]),
    ):
        with pytest.raises(InputError, match=word):
            opened(folder, weights, scratch)
    plain = publish(tmp_path / "plain", Model(FORMS["kimi_linear"]()).init_weights(0))
    with pytest.raises(InputError, match="not in 4 bits"):
        opened(plain, "packed", None)
