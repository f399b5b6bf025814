"""Experts that stay in 4 bits: the same logits as unpacked, and the memory that loading takes."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from folders import publish
from small_models import FORMS, random_ids, random_model

from moonlet.engine.load import load
from moonlet.errors import InputError
from moonlet.model.model import Model

SLACK = 8 << 20  # bytes; of the allocator
LATENT = {"k3": {"routed_expert_hidden_size": 32}}


def model(form: str) -> Model:
    return random_model(FORMS[form](moe_intermediate_size=32, **LATENT.get(form, {})))


@torch.no_grad()
@pytest.mark.parametrize("form", ["k3", "kimi_linear", "k2"])
@pytest.mark.parametrize("experts", ["mxfp4", "int4"])
def test_packed_experts_give_the_same_logits(form: str, experts: str, tmp_path: Path) -> None:
    folder = publish(tmp_path / "m", model(form), 2, torch.bfloat16, experts=experts)
    packed, whole = load(folder, packed=True)[0], load(folder)[0]
    for shape in ((2, 20), (4, 100)):  # few tokens and many take different ways through unpacked experts
        ids = random_ids(*shape)
        assert (packed(ids) - whole(ids)).abs().max() < 2e-5
    held = packed.layers[1].mlp.experts
    assert {t.dtype for n, t in held.named_buffers() if n.endswith("_packed")} <= {torch.uint8, torch.int32}
    assert not [*held.parameters()]


def test_misfits_are_told_by_their_packed_names(tmp_path: Path) -> None:
    folder = publish(tmp_path / "m", model("k2"), experts="int4")
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace('"n_routed_experts": 6', '"n_routed_experts": 7'))
    with pytest.raises(InputError, match=r"missing \d+: .*experts\.6\.gate_proj\.weight_packed"):
        load(folder, packed=True)


LOAD = """
import resource, sys
import torch
from moonlet.engine.load import load

def private():
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmData"))

load(sys.argv[1])
limit = private() + int(sys.argv[3])
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
load(sys.argv[2], packed=sys.argv[4] == "packed")
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
@pytest.mark.parametrize(("experts", "kept"), [(None, "whole"), ("mxfp4", "whole"), ("mxfp4", "packed")])
def test_loading_takes_the_weights_and_one_tensor_more(experts: str | None, kept: str, tmp_path: Path) -> None:
    """With private memory limited to that and the mapped files loading goes through; with less than the weights not."""
    sizes = {"vocab_size": 8192, "hidden_size": 256, "moe_intermediate_size": 256, "num_experts": 24}
    made = Model(FORMS["kimi_linear"](**sizes)).init_weights(0)
    small = publish(tmp_path / "small", model("kimi_linear"))
    folder = publish(tmp_path / "m", made, 2, torch.bfloat16, experts=experts)
    tensors = load(folder, packed=kept == "packed")[0].state_dict()
    weights, largest = sum(t.nbytes for t in tensors.values()), 4 * 8192 * 256
    mapped = sum(file.stat().st_size for file in folder.glob("*.safetensors"))

    def loads(room: int) -> bool:
        command = [sys.executable, "-c", LOAD, str(small), str(folder), str(room), kept]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    assert loads(mapped + weights + largest + SLACK) and not loads(mapped + weights - SLACK)
