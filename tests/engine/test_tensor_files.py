"""Published folders as they come: sharded, prefixed, in 16 bits, with more than the text model; and hostile ones."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from folders import publish
from safetensors.torch import save_file
from small_models import FORMS, random_ids, random_model

from moonlet.engine.load import load
from moonlet.engine.tensor_files import INDEX, SINGLE
from moonlet.errors import InputError
from moonlet.model.weights import to_published

IDS = random_ids(2, 20)


@torch.no_grad()
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shards", [1, 3])
def test_every_form_comes_back(form: str, shards: int, tmp_path: Path) -> None:
    model = random_model(FORMS[form]())
    loaded, tokenizer = load(publish(tmp_path / "m", model, shards))
    assert tokenizer is None and torch.equal(loaded(IDS), model(IDS))
    assert all(p.device.type == "cpu" and p.dtype == torch.float32 for p in loaded.parameters())


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bits_under_a_prefix_beside_other_parts(dtype: torch.dtype, tmp_path: Path) -> None:
    model = random_model(FORMS["k3"]())
    folder = publish(tmp_path / "m", model, 2, dtype, "language_model.", nested=True)
    more = {"vision_tower.proj.weight": torch.zeros(3), "mm_projector.bias": torch.zeros(2)}
    save_file(more, folder / "vision.safetensors")
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"] |= dict.fromkeys(more, "vision.safetensors")
    (folder / INDEX).write_text(json.dumps(index))
    for p in [*model.parameters(), *model.buffers()]:
        p.data = p.data.to(dtype).float()
    assert torch.equal(load(folder)[0](IDS), model(IDS))


@torch.no_grad()
def test_a_layer_for_multi_token_prediction_is_passed_over_and_a_layer_too_many_is_not(tmp_path: Path) -> None:
    model = random_model(FORMS["k2"]())
    folder = publish(tmp_path / "m", model)
    tensors, behind = to_published(model), f"model.layers.{model.config.num_hidden_layers}"
    extra = {f"{behind}.{n.split('.', 3)[3]}": v.clone() for n, v in tensors.items() if n.startswith("model.layers.3.")}
    save_file(tensors | extra, folder / SINGLE)
    with pytest.raises(InputError, match=rf"surplus {len(extra)}: {behind}"):
        load(folder)
    save_file(tensors | extra | {f"{behind}.eh_proj.weight": torch.zeros(32, 64)}, folder / SINGLE)
    assert torch.equal(load(folder)[0](IDS), model(IDS))


def rewritten(change: Callable[[dict], object]) -> Callable[[Path], None]:
    """Damage: the header of the first shard goes through `change`, its data stays."""

    def damage(folder: Path) -> None:
        path = min(folder.glob("*.safetensors"))
        data = path.read_bytes()
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        text = change(header)
        raw = text if isinstance(text, bytes) else json.dumps(header).encode()
        path.write_bytes(len(raw).to_bytes(8, "little") + raw + data[8 + length :])

    return damage


def overlap(header: dict) -> None:
    first, second = [n for n in header if n != "__metadata__"][:2]
    header[second]["data_offsets"] = header[first]["data_offsets"]


def twice(header: dict) -> bytes:
    name = next(n for n in header if n != "__metadata__")
    return (json.dumps(header)[:-1] + f', "{name}": {json.dumps(header[name])}}}').encode()


def huge(header: dict) -> None:
    header[next(n for n in header if n != "__metadata__")]["shape"] = [2**63, 2]


def first_shard(folder: Path) -> Path:
    return min(folder.glob("*.safetensors"))


def reindexed(change: Callable[[dict], object]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        index = json.loads((folder / INDEX).read_text())
        text = change(index)
        (folder / INDEX).write_text(text if isinstance(text, str) else json.dumps(index))

    return damage


def lead_out(index: dict) -> None:
    index["weight_map"]["lm_head.weight"] = "../secret.safetensors"


def misplace(index: dict) -> None:
    files = index["weight_map"]
    files["lm_head.weight"] = next(file for file in files.values() if file != files["lm_head.weight"])


class Boom:
    def __reduce__(self) -> tuple:
        return (exec, ("raise SystemExit('code ran')",))


HOSTILE: dict[str, Callable[[Path], object]] = {
    "cut off header": lambda folder: first_shard(folder).write_bytes(first_shard(folder).read_bytes()[:60]),
    "empty": lambda folder: first_shard(folder).write_bytes(b""),
    "header longer than the file": lambda folder: first_shard(folder).write_bytes(
        (2**63).to_bytes(8, "little") + first_shard(folder).read_bytes()[8:]
    ),
    "data cut off": lambda folder: first_shard(folder).write_bytes(first_shard(folder).read_bytes()[:-10]),
    "overlapping offsets": rewritten(overlap),
    "a size beyond 2^63": rewritten(huge),
    "a tensor twice": rewritten(twice),
    "nested for ever": rewritten(lambda header: b"[" * 100_000),
    "pickle": lambda folder: first_shard(folder).write_bytes(pickle.dumps(Boom())),
    "index out of the folder": reindexed(lead_out),
    "index absolute": reindexed(lambda index: index["weight_map"].update({"lm_head.weight": "/etc/x.safetensors"})),
    "index of a pickle": reindexed(lambda index: index["weight_map"].update({"lm_head.weight": "x.bin"})),
    "index with a missing shard": reindexed(
        lambda index: index["weight_map"].update({"lm_head.weight": "no.safetensors"})
    ),
    "index with another shard's tensor": reindexed(misplace),
    "index names a tensor twice": reindexed(
        lambda index: json.dumps(index).replace(
            '"weight_map": {', '"weight_map": {"model.norm.weight": "a.safetensors", '
        )
    ),
    "index without a map": reindexed(lambda index: "[]"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_files_are_refused_by_name(kind: str, tmp_path: Path) -> None:
    folder = publish(tmp_path / "m", random_model(FORMS["kimi_linear"]()), 3)
    HOSTILE[kind](folder)
    with pytest.raises(InputError, match=r"safetensors"):
        load(folder)


def test_a_packed_matrix_without_its_scale(tmp_path: Path) -> None:
    folder = publish(tmp_path / "m", random_model(FORMS["kimi_linear"]()))
    config = json.loads((folder / "config.json").read_text())
    group = {"format": "mxfp4-pack-quantized", "weights": {}}
    config["quantization_config"] = {"quant_method": "compressed-tensors", "config_groups": {"group_0": group}}
    (folder / "config.json").write_text(json.dumps(config))
    load(folder)  # the format stands in the group, and no matrix is packed
    tensors = to_published(random_model(FORMS["kimi_linear"]()))
    save_file({**tensors, "x.weight_packed": torch.zeros(2, 16, dtype=torch.uint8)}, folder / SINGLE)
    with pytest.raises(InputError, match="no x.weight_scale"):
        load(folder)
    group["format"] = "naive-quantized"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="naive-quantized"):
        load(folder)
