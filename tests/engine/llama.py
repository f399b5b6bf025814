"""llama.cpp as an outside witness: logits at every position of a GGUF file, through the C functions that the xllamacpp
wheel exports. F32 cache, no flash attention. Skips where the wheel is missing or its structures have moved."""

import ctypes
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.ctypeslib import as_array
from torch import Tensor

from moonlet.engine import gguf_file
from moonlet.model.model import Model

I32, U32, F32, PTR, BOOL = ctypes.c_int32, ctypes.c_uint32, ctypes.c_float, ctypes.c_void_p, ctypes.c_bool


def fields(*groups: tuple[type, str]) -> list[tuple[str, type]]:
    return [(name, kind) for kind, names in groups for name in names.split()] + [("padding", ctypes.c_byte * 64)]


class ModelParams(ctypes.Structure):
    _fields_ = fields(
        (PTR, "devices buft_overrides"),
        (I32, "n_gpu_layers split_mode load_mode lazy_mode main_gpu"),
        (PTR, "tensor_split progress_cb progress_data kv_overrides"),
        (BOOL, "vocab_only check_tensors use_extra_bufts no_host no_alloc load_mtp"),
    )


class ContextParams(ctypes.Structure):
    _fields_ = fields(
        (U32, "n_ctx n_batch n_ubatch n_seq_max n_rs_seq n_outputs_max n_outputs_max_per_seq"),
        (I32, "n_threads n_threads_batch ctx_type rope_scaling pooling attention flash_attn"),
        (F32, "rope_freq_base rope_freq_scale yarn_ext yarn_attn yarn_beta_fast yarn_beta_slow"),
        (U32, "yarn_orig_ctx"),
        (F32, "defrag_thold"),
        (PTR, "cb_eval cb_eval_data"),
        (I32, "type_k type_v"),
        (PTR, "abort_cb abort_data"),
        (BOOL, "embeddings offload_kqv no_perf op_offload swa_full kv_unified"),
        (PTR, "samplers"),
        (ctypes.c_size_t, "n_samplers"),
        (PTR, "ctx_other"),
    )


class BatchC(ctypes.Structure):
    _fields_ = [
        ("n_tokens", I32),
        ("token", ctypes.POINTER(I32)),
        ("embd", PTR),
        ("pos", ctypes.POINTER(I32)),
        ("n_seq_id", ctypes.POINTER(I32)),
        ("seq_id", ctypes.POINTER(ctypes.POINTER(I32))),
        ("logits", ctypes.POINTER(ctypes.c_int8)),
    ]


QUIET = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, PTR)(lambda *_: None)


def library() -> ctypes.CDLL:
    module = pytest.importorskip("xllamacpp.xllamacpp")
    lib = ctypes.CDLL(module.__file__)
    lib.llama_model_default_params.restype = ModelParams
    lib.llama_context_default_params.restype = ContextParams
    lib.llama_model_load_from_file.argtypes = [ctypes.c_char_p, ModelParams]
    lib.llama_init_from_model.argtypes = [PTR, ContextParams]
    lib.llama_batch_init.restype = BatchC
    lib.llama_decode.argtypes = [PTR, BatchC]
    lib.llama_batch_free.argtypes = [BatchC]
    lib.llama_get_logits_ith.argtypes = [PTR, I32]
    lib.llama_get_logits_ith.restype = ctypes.POINTER(F32)
    lib.llama_get_memory.argtypes = lib.llama_model_get_vocab.argtypes = lib.llama_free.argtypes = [PTR]
    lib.llama_model_free.argtypes = lib.llama_vocab_n_tokens.argtypes = [PTR]
    lib.llama_memory_clear.argtypes = [PTR, BOOL]
    for name in ("model_load_from_file", "init_from_model", "get_memory", "model_get_vocab"):
        getattr(lib, f"llama_{name}").restype = PTR
    lib.llama_tokenize.argtypes = [PTR, ctypes.c_char_p, I32, ctypes.POINTER(I32), I32, BOOL, BOOL]
    lib.llama_log_set(QUIET, None)
    lib.llama_backend_init()
    c = lib.llama_context_default_params()
    found = (c.n_ctx, c.n_batch, c.n_ubatch, c.n_seq_max, c.n_rs_seq, c.n_threads, c.flash_attn, c.type_k, c.type_v)
    if found != (512, 2048, 512, 1, 0, 4, -1, 1, 1):
        pytest.skip(f"llama.cpp's structures have moved: {found}")
    return lib


class Llama:
    """One loaded file. sequences: how many may run side by side; betas: YaRN's, as --yarn-beta-fast and -slow give them
    to llama.cpp's programs."""

    def __init__(self, path: Path, sequences: int = 1, betas: tuple[float, float] | None = None) -> None:
        self.lib = lib = library()
        self.model = lib.llama_model_load_from_file(str(path).encode(), lib.llama_model_default_params())
        assert self.model, f"llama.cpp does not load {path}"
        c = lib.llama_context_default_params()
        c.n_seq_max, c.n_ctx = sequences, max(1100, 256 * sequences)
        c.n_batch = min(c.n_ctx, 4096)
        c.n_threads = c.n_threads_batch = 1
        c.flash_attn = c.type_k = c.type_v = 0
        if betas is not None:
            c.yarn_beta_fast, c.yarn_beta_slow = betas
        self.context = lib.llama_init_from_model(self.model, c)
        assert self.context
        self.vocab = lib.llama_model_get_vocab(self.model)
        self.size = lib.llama_vocab_n_tokens(self.vocab)
        self.batch = lib.llama_batch_init(c.n_batch, 0, 1)

    def clear(self) -> None:
        self.lib.llama_memory_clear(self.lib.llama_get_memory(self.context), True)

    def fed(self, tokens: Iterable[tuple[int, int, int]]) -> Tensor:
        """Logits [n, vocab] after each of (id, position, sequence)."""
        b, n = self.batch, 0
        for n, (token, position, sequence) in enumerate(tokens, 1):
            b.token[n - 1], b.pos[n - 1], b.n_seq_id[n - 1], b.logits[n - 1] = token, position, 1, 1
            b.seq_id[n - 1][0] = sequence
        b.n_tokens = n
        assert self.lib.llama_decode(self.context, b) == 0
        rows = [as_array(self.lib.llama_get_logits_ith(self.context, i), (self.size,)) for i in range(n)]
        return torch.from_numpy(np.stack(rows))

    def logits(self, ids: list[int]) -> Tensor:
        """Logits [n, vocab] of a fresh sequence."""
        self.clear()
        return self.fed((token, place, 0) for place, token in enumerate(ids))

    def greedy(self, prompts: list[list[int]], count: int) -> list[list[int]]:
        """The continuations of all prompts, side by side."""
        self.clear()
        lengths = torch.tensor([len(p) for p in prompts])
        fed = self.fed((token, at, row) for row, prompt in enumerate(prompts) for at, token in enumerate(prompt))
        best = fed[lengths.cumsum(0) - 1].argmax(-1)
        out = [best]
        for step in range(count - 1):
            best = self.fed(zip(best.tolist(), (lengths + step).tolist(), range(len(prompts)))).argmax(-1)
            out.append(best)
        return torch.stack(out, 1).tolist()

    def tokenize(self, text: str) -> list[int]:
        raw = text.encode()
        out = (I32 * (len(raw) + 8))()
        n = self.lib.llama_tokenize(self.vocab, raw, len(raw), out, len(out), False, False)
        return list(out[:n])

    def close(self) -> None:
        self.lib.llama_batch_free(self.batch)
        self.lib.llama_free(self.context)
        self.lib.llama_model_free(self.model)


@contextmanager
def opened(path: Path, **options: Any) -> Iterator[Llama]:
    one = Llama(path, **options)
    try:
        yield one
    finally:
        one.close()


def written(model: Model, folder: Path, kind: str = "f32") -> Path:
    """`model` as a file of token ids only."""
    gguf_file.write(model, None, folder / f"{kind}.gguf", kind, "test", None)
    return folder / f"{kind}.gguf"


@torch.no_grad()
def decided(model: Model, rows: Tensor) -> Tensor:
    """Which of the rows of ids [B, T] leave nothing to float noise: everywhere the best two tokens are 1e-4 apart or
    more, and the last expert that a router takes and the first that it leaves 1e-5. -> bool [B]."""
    hidden, stats = model.hidden(rows)
    best = model.lm_head(hidden).topk(2).values
    clear = best[..., 0] - best[..., 1] >= 1e-4
    for layer, router in stats.routers.items():
        gate = model.layers[layer].mlp.gate
        taken = (router.scores + gate.e_score_correction_bias).topk(gate.top_k).values[:, -1]
        clear &= (taken - router.cutoff >= 1e-5).view_as(clear)
    return clear.all(-1)


def first_decided(model: Model, candidates: Iterable[list[int]]) -> list[int]:
    return next(ids for ids in candidates if decided(model, torch.tensor([ids])))


@torch.no_grad()
def apart(ours: Model, theirs: Llama, prompts: list[list[int]]) -> tuple[Tensor, Tensor]:
    """At every position of all prompts: the largest difference of any logit, and whether the best token is the same."""
    worst, same = [], []
    for ids in prompts:
        a, b = ours(torch.tensor([ids]))[0], theirs.logits(ids)
        assert a.std() > 0.1
        worst.append((a - b).abs().amax(-1))
        same.append(a.argmax(-1) == b.argmax(-1))
    return torch.cat(worst), torch.cat(same)


def agree(ours: Model, theirs: Llama, prompts: list[list[int]]) -> None:
    """The witness's bounds: no logit 1e-3 apart, the median position 1e-4, and the same best token everywhere."""
    worst, same = apart(ours, theirs, prompts)
    assert same.all()
    assert worst.max() < 1e-3
    assert worst.median() < 1e-4
