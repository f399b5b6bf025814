"""GGUF files against llama.cpp: logits at every position, greedy continuations, token ids; what is refused."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers import tiny_model_folder, tiny_tokenizer
from llama import Llama, Opened
from small_models import FORMS, k3, random_ids, random_model

from moonlet.engine import gguf_file
from moonlet.engine.export import export
from moonlet.engine.generate import Decoder, Sampling, generate
from moonlet.engine.load import load
from moonlet.errors import InputError
from moonlet.model.model import Model
from moonlet.quant.grids import round_to_grid

ONE_EPS = {"rms_norm_eps": 1e-6, "mla_norm_eps": 1e-6}
LENGTHS = [1, 5, 17, 64, 100, 300, 1000]


@pytest.fixture
def llama() -> Iterator[Opened]:
    opened: list[Llama] = []

    def make(path: Path) -> Llama:
        opened.append(Llama(path))
        return opened[-1]

    yield make
    for one in opened:
        one.close()


def written(model: Model, path: Path, kind: str = "f32") -> Path:
    gguf_file.write(model, None, path, kind, "test", None)
    return path


@torch.no_grad()
def agree(ours: Model, theirs: Llama, prompts: list[list[int]]) -> None:
    """The witness's bounds: no logit 1e-3 apart, the median position 1e-4, and the same best token everywhere."""
    worst: list[torch.Tensor] = []
    for ids in prompts:
        a, b = ours(torch.tensor([ids]))[0], theirs.logits(ids)
        assert a.std() > 0.1 and torch.equal(a.argmax(-1), b.argmax(-1))
        worst.append((a - b).abs().amax(-1))
    assert torch.cat(worst).max() < 1e-3
    assert torch.cat(worst).median() < 1e-4


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("form", ["k3", "kimi_linear"])
def test_logits_are_llama_cpp_s(form: str, seed: int, tmp_path: Path, llama: Opened) -> None:
    model = random_model(FORMS[form](**ONE_EPS, max_position_embeddings=2048), seed, std=0.2)
    theirs = llama(written(model, tmp_path / "m.gguf"))
    agree(model, theirs, [random_ids(1, n, seed=n)[0].tolist() for n in LENGTHS])


def test_greedy_continuations_are_llama_cpp_s(tmp_path: Path, llama: Opened) -> None:
    model = random_model(FORMS["k3"](**ONE_EPS, max_position_embeddings=2048), std=0.2)
    theirs = llama(written(model, tmp_path / "m.gguf"))
    prompts = [random_ids(1, 3 + i, seed=i)[0].tolist() for i in range(20)]
    ours = generate(Decoder(model), prompts, list(range(20)), -1, Sampling(0.0, max_tokens=20))
    assert [r.ids for r in ours] == [theirs.greedy(prompt, 20) for prompt in prompts]


def test_the_witness_sees_a_wrong_model(tmp_path: Path, llama: Opened) -> None:
    model = random_model(FORMS["k3"](**ONE_EPS), std=0.2)
    theirs = llama(written(model, tmp_path / "m.gguf"))
    ids = random_ids(1, 50)[0].tolist()
    model.layers[1].self_attn.A_log.data += 0.1
    with pytest.raises(AssertionError):
        agree(model, theirs, [ids])


def test_a_model_folder_with_its_tokenizer(tmp_path: Path, llama: Opened) -> None:
    folder = tiny_model_folder(tmp_path)
    told = export(folder, "gguf", tmp_path / "m.gguf", "f32")
    assert any("epsilons differ" in line for line in told)
    theirs, (model, tokenizer) = llama(tmp_path / "m.gguf"), load(folder)
    assert tokenizer is not None and theirs.size == tokenizer.vocab_size
    texts = [
        "What is 12 + 3045? It is 42.",
        "def add(a, b):\n    return a + b\n",
        "多少？ 算一下 7乘8。",
        "(Hi) \t there!\n\n",
    ]
    for text in texts:
        assert theirs.tokenize(text) == tokenizer.encode(text)
    ids = tokenizer.encode(" ".join(texts))
    with torch.no_grad():
        ours = model(torch.tensor([ids]))[0]
    assert (ours - theirs.logits(ids)).abs().max() < 5e-3  # the epsilons differ


def test_mxfp4_experts_lose_nothing(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    model = random_model(k3(routed_expert_hidden_size=32, moe_intermediate_size=32, hidden_size=32))
    for layer in model.layers:
        for w in layer.mlp.experts.parameters() if layer.moe else ():
            w.data = round_to_grid(w.data, "mxfp4")
    path = written(model, tmp_path / "m.gguf", "mxfp4")
    stored = {t.name: t for t in gguf.GGUFReader(path).tensors}
    experts = stored["blk.1.ffn_up_exps.weight"]
    assert experts.tensor_type.name == "MXFP4" and stored["blk.1.attn_q.weight"].tensor_type.name == "BF16"
    back = torch.tensor(gguf.quants.dequantize(experts.data, experts.tensor_type))
    assert torch.equal(back, model.layers[1].mlp.experts.w3.detach())


@torch.no_grad()
@pytest.mark.parametrize("kind", ["f16", "bf16", "q8_0", "q4_0"])
def test_other_types_load_and_hold_the_weights(kind: str, tmp_path: Path, llama: Opened) -> None:
    sizes = {"hidden_size": 64, "kv_lora_rank": 32, "qk_nope_head_dim": 32, "v_head_dim": 32, "q_lora_rank": 32}
    sizes |= {"moe_intermediate_size": 32, "routed_expert_hidden_size": 32, "intermediate_size": 64}
    linear = {**(k3().linear_attn_config or {}), "head_dim": 32}
    model = random_model(k3(**ONE_EPS, **sizes, linear_attn_config=linear))
    for layer in model.layers[1:]:  # rounding would flip the near ties of an untrained router
        layer.mlp.gate.e_score_correction_bias.copy_(torch.arange(6.0))
    ids = random_ids(1, 40)[0].tolist()
    exact, rounded = (llama(written(model, tmp_path / f"{k}.gguf", k)).logits(ids) for k in ("f32", kind))
    if kind in ("f16", "bf16"):  # the others round activations too, and what that does grows from layer to layer
        assert 0 < float((rounded - exact).norm() / exact.norm()) < {"f16": 0.02, "bf16": 0.05}[kind]
    gguf = pytest.importorskip("gguf")
    stored = {t.name: t for t in gguf.GGUFReader(tmp_path / f"{kind}.gguf").tensors}
    for name, value in gguf_file.tensors(model):
        t = stored[name]
        back = torch.tensor(gguf.quants.dequantize(t.data, t.tensor_type)).reshape(value.shape)
        bound = {"F32": 0.0, "F16": 5e-4, "BF16": 4e-3, "Q8_0": 0.01, "Q4_0": 0.12}[t.tensor_type.name]
        assert float((back - value).norm() / value.norm()) <= bound, name
        assert (t.tensor_type.name == "F32") == (gguf_file.kind_of(name, value, kind) == "f32")


def test_folders_in_other_forms(tmp_path: Path) -> None:
    folder = tiny_model_folder(tmp_path)
    model, _ = load(folder)
    ids = torch.arange(40)[None]
    with torch.no_grad():
        for to in ("hf", "mxfp4"):  # the experts are on that grid already
            export(folder, to, tmp_path / to, "f32")
            assert torch.equal(load(tmp_path / to)[0](ids), model(ids))
        told = export(folder, "int4", tmp_path / "int4", "f32")
        assert "int4: relative error 0." in told[-1]
        assert 0 < (load(tmp_path / "int4")[0](ids) - model(ids)).abs().max() < 0.5
    assert json.loads((tmp_path / "hf" / "tools.json").read_text())["tools"]


def test_bad_input(tmp_path: Path) -> None:
    folder = tiny_model_folder(tmp_path)
    for to, kind, word in (("gguff", "f32", "gguf"), ("gguf", "f64", "f16")):
        with pytest.raises(InputError, match=word):
            export(folder, to, tmp_path / "x", kind)
    with pytest.raises(InputError, match=r"does not go into Q4_0 .* try f16"):
        written(random_model(k3()), tmp_path / "x", "q4_0")
    with pytest.raises(InputError, match="is the model itself"):
        export(folder, "hf", folder, "f32")
    with pytest.raises(InputError, match="K2"):
        written(random_model(FORMS["k2"]()), tmp_path / "x")
    with pytest.raises(InputError, match="gate_lower_bound"):
        linear = {k: v for k, v in (k3().linear_attn_config or {}).items() if k != "gate_lower_bound"}
        written(random_model(k3(linear_attn_config=linear)), tmp_path / "x")
    assert not (tmp_path / "x").exists() and not list(tmp_path.glob(".*"))
    assert tiny_tokenizer().vocab_size > 0
