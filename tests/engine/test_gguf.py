"""F32 GGUF files against llama.cpp: logits at every position, greedy continuations, a trained model, token ids."""

import itertools
import random
from pathlib import Path

import pytest
import torch
from llama import agree, decided, first_decided, opened, written
from small_models import FORMS, YARN, k2, k3, kimi_linear, linear_attn, random_ids, random_model

from moonlet.data import tiny_world_text
from moonlet.data import tokenizer as tokenizers
from moonlet.data.presplit import PATTERN, PUBLISHED_PATTERN
from moonlet.data.shards import Loader
from moonlet.data.tiny_world import World
from moonlet.engine import gguf_file
from moonlet.engine.export import export
from moonlet.engine.generate import Decoder, Sampling, generate
from moonlet.engine.load import load, write
from moonlet.model.config import ModelConfig, for_depth
from moonlet.model.model import Model
from moonlet.optim.muon import MuonAdamW, OptimConfig, muon_blocks
from moonlet.train.corpus import pretrain_rows
from moonlet.train.loop import to_tensors
from moonlet.train.step import Stepper

ONE_EPS = {"rms_norm_eps": 1e-6, "mla_norm_eps": 1e-6, "l2_eps": 1e-6}
LENGTHS = [1, 2, 3, 4, 5, 7, 11, 16, 17, 31, 33, 64, 65, 100, 128, 200, 255, 300, 511, 1000]
TEXTS = tiny_world_text.documents(World(0), 0, 300)
UNSEEN = tiny_world_text.documents(World(0), 1, 60)
QUICKSTART = Path(__file__).parents[2] / "runs" / "quickstart" / "model"


def random_prompts(model: Model, lengths: list[int]) -> list[list[int]]:
    return [first_decided(model, (random_ids(1, n, s)[0].tolist() for s in itertools.count(n))) for n in lengths]


def same_continuations(model: Model, path: Path, ids: list[int]) -> None:
    """20 tokens after each of 200 prompts cut from `ids`, 1 to 20 tokens long, on whose way all is decided."""
    prompts = [ids[20 * i :][: 1 + i % 20] for i in range(len(ids) // 20)]
    ours = generate(Decoder(model), prompts, list(range(len(prompts))), -1, Sampling(0.0, max_tokens=20))
    clear = []
    for group in (ours[n::20] for n in range(20)):
        rows = torch.tensor([r.prompt + r.ids[:-1] for r in group])
        clear += [r for r, sure in zip(group, decided(model, rows)) if sure]
    assert len(clear) >= 200
    with opened(path, sequences=200) as theirs:
        assert [r.ids for r in clear[:200]] == theirs.greedy([r.prompt for r in clear[:200]], 20)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("form", FORMS)
def test_logits_are_llama_cpp_s(form: str, seed: int, tmp_path: Path) -> None:
    model = random_model(FORMS[form](**ONE_EPS, max_position_embeddings=2048), seed, std=0.2)
    with opened(written(model, tmp_path)) as theirs:
        agree(model, theirs, random_prompts(model, LENGTHS))


@pytest.mark.parametrize("form", FORMS)
def test_200_greedy_continuations_are_llama_cpp_s(form: str, tmp_path: Path) -> None:
    model = random_model(FORMS[form](**ONE_EPS, max_position_embeddings=2048), std=0.2)
    same_continuations(model, written(model, tmp_path), random_ids(1, 4800)[0].tolist())


def test_the_witness_sees_a_wrong_model(tmp_path: Path) -> None:
    model = random_model(FORMS["k3"](**ONE_EPS), std=0.2)
    ids = random_ids(1, 50)[0].tolist()
    with opened(written(model, tmp_path)) as theirs:
        agree(model, theirs, [ids])
        model.layers[1].self_attn.A_log.data += 0.1
        with pytest.raises(AssertionError):
            agree(model, theirs, [ids])


def random_config(form: str, seed: int) -> ModelConfig:
    r = random.Random(f"{form} {seed}")
    heads = r.choice([1, 2, 3])
    shape = {
        **ONE_EPS,
        "max_position_embeddings": 2048,
        "num_attention_heads": heads,
        "hidden_size": r.choice([20, 32, 48]),
        "num_hidden_layers": (layers := r.choice([2, 3, 4, 5])),
        "kv_lora_rank": r.choice([8, 13, 16]),
        "qk_nope_head_dim": r.choice([5, 8, 16]),
        "qk_rope_head_dim": r.choice([2, 4, 16]),
        "v_head_dim": r.choice([6, 12, 16]),
        "num_experts": r.choice([3, 6, 9]),
        "num_experts_per_token": r.choice([1, 2, 3]),
        "num_shared_experts": r.choice([1, 2]),
        "moe_intermediate_size": r.choice([8, 16, 20]),
        "first_k_dense_replace": r.choice([0, 1, 2]),
        "routed_scaling_factor": r.choice([1, 2.5]),
    }
    full = sorted({layers, r.randint(2, layers)})
    linear = {"full_attn_layers": full, "kda_layers": [i for i in range(1, layers + 1) if i not in full]}
    linear |= {"num_heads": heads, "head_dim": r.choice([4, 16, 20]), "short_conv_kernel_size": r.choice([3, 4])}
    if form == "kimi_linear":
        return kimi_linear(**shape, linear_attn_config=linear_attn(**linear))
    shape |= {"q_lora_rank": r.choice([None, 12]), "moe_renormalize": r.choice([True, False])}
    if form == "k3":
        k3_linear = {**(k3().linear_attn_config or {}), **linear, "gate_lower_bound": r.choice([-5.0, -2.5])}
        own = {"routed_expert_hidden_size": r.choice([8, 20]), "attn_res_block_size": r.choice([1, 2, 3])}
        own |= {"latent_moe_use_norm": r.choice([True, False])}
        return k3(**shape, **own, linear_attn_config=k3_linear)
    scaling = {**YARN, "factor": r.choice([2, 32]), "beta_fast": 32, "mscale_all_dim": r.choice([0.7, 1])}
    return k2(**shape, rope_theta=r.choice([1e4, 5e4]), rope_scaling=r.choice([None, scaling]))


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(200))
@pytest.mark.parametrize("form", ["k3", "kimi_linear", "k2"])
def test_logits_of_many_shapes(form: str, seed: int, tmp_path: Path) -> None:
    model = random_model(random_config(form, seed), seed, std=0.2)
    with opened(written(model, tmp_path)) as theirs:
        agree(model, theirs, random_prompts(model, [1, 9, 70, 200]))


@pytest.mark.parametrize("pattern", [PATTERN, PUBLISHED_PATTERN])
def test_token_ids_are_llama_cpp_s(pattern: str, tmp_path: Path) -> None:
    tokenizer = tokenizers.train(TEXTS, 512, pattern)
    path = tmp_path / "m.gguf"
    gguf_file.write(random_model(k2(vocab_size=tokenizer.vocab_size)), tokenizer, path, "f32", "test", None)
    texts = [
        *UNSEEN,
        "What is 12 + 3045? It's 42, they'LL say.",
        "def add(a, b):\n    return a + b\n",
        "多少？ 算一下 7乘8。北京abc",
        "(Hi) \t there!\n\n 1234567 x   y\r\n\r\n",
        "ünïcödé HELLOWorld naïve ΑΒΓ   ",
    ]
    with opened(path) as theirs:
        assert [theirs.tokenize(text) for text in texts] == [tokenizer.encode(text) for text in texts]


def trained(folder: Path) -> Path:
    """Write a model of K3's form after some steps on the tiny world's text."""
    tokenizer = tokenizers.train(TEXTS, 512)
    rows = pretrain_rows(tokenizer, [[(text, True)] for text in TEXTS], 128)
    widths = ["q_lora_rank", "kv_lora_rank", "routed_expert_hidden_size", "moe_intermediate_size"]
    shape = {"hidden_size": 64, "num_attention_heads": 2, "num_heads": 2, "intermediate_size": 96}
    shape |= {**dict.fromkeys(widths, 32), **ONE_EPS, "max_position_embeddings": 2048}
    model = Model(for_depth(4, tokenizer.vocab_size, shape)).init_weights(0)
    optimizer = MuonAdamW(model, muon_blocks(model), OptimConfig(muon_lr=0.02, adamw_lr=0.003))
    loader, stepper = Loader(rows, 0, 4), Stepper(1)
    losses = [stepper.step(model, optimizer, to_tensors(loader.batch(s)), 1.0, 100.0)["loss"] for s in range(30)]
    assert losses[-1] < losses[0] - 1
    write(folder, model, tokenizer, "none", {"tools": []}, "")
    return folder


def check_folder(folder: Path, out: Path) -> None:
    """A folder's F32 file: ids of unseen texts, logits of 20 prompts cut from them, 200 greedy continuations."""
    export(folder, "gguf", out, "f32")
    model, tokenizer = load(folder)
    assert tokenizer is not None
    ids = tokenizer.encode("".join(UNSEEN))
    with opened(out) as theirs:
        assert theirs.size == tokenizer.vocab_size
        for text in UNSEEN:
            assert theirs.tokenize(text) == tokenizer.encode(text)
        agree(model, theirs, [first_decided(model, (ids[s : s + n] for s in itertools.count(n))) for n in LENGTHS])
    same_continuations(model, out, ids[:5000])


def test_a_trained_model(tmp_path: Path) -> None:
    check_folder(trained(tmp_path / "model"), tmp_path / "m.gguf")


@pytest.mark.soak
def test_the_quickstart_s_model(tmp_path: Path) -> None:
    if not QUICKSTART.exists():
        pytest.skip("needs runs/quickstart: make quickstart")
    check_folder(QUICKSTART, tmp_path / "m.gguf")
