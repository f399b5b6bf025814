"""llama.cpp as an outside witness: logits at every position of a GGUF file, through the C functions that the xllamacpp
wheel exports. F32 cache, no flash attention. Skips where the wheel is missing or its structures have moved."""

import ctypes
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

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
    """One loaded file."""

    def __init__(self, path: Path, context: int = 1100) -> None:
        self.lib = lib = library()
        params = lib.llama_model_default_params()
        self.model = lib.llama_model_load_from_file(str(path).encode(), params)
        assert self.model, f"llama.cpp does not load {path}"
        c = lib.llama_context_default_params()
        c.n_ctx = c.n_batch = context
        c.n_threads = c.n_threads_batch = 2
        c.flash_attn = c.type_k = c.type_v = 0
        self.context = lib.llama_init_from_model(self.model, c)
        assert self.context
        self.vocab = lib.llama_model_get_vocab(self.model)
        self.size = lib.llama_vocab_n_tokens(self.vocab)
        self.batch = lib.llama_batch_init(context, 0, 1)

    def fed(self, ids: list[int], start: int) -> Tensor:
        """Logits [n, vocab] after each of ids, which stand at positions from `start`."""
        b = self.batch
        b.n_tokens = len(ids)
        for i, token in enumerate(ids):
            b.token[i], b.pos[i], b.n_seq_id[i], b.logits[i] = token, start + i, 1, 1
            b.seq_id[i][0] = 0
        assert self.lib.llama_decode(self.context, b) == 0
        rows = [self.lib.llama_get_logits_ith(self.context, i)[: self.size] for i in range(len(ids))]
        return torch.tensor(rows)

    def logits(self, ids: list[int]) -> Tensor:
        """Logits [n, vocab] of a fresh sequence."""
        self.lib.llama_memory_clear(self.lib.llama_get_memory(self.context), True)
        return self.fed(ids, 0)

    def greedy(self, prompt: list[int], count: int) -> list[int]:
        out, last = [], self.logits(prompt)[-1]
        for position in range(len(prompt), len(prompt) + count):
            out.append(int(last.argmax()))
            last = self.fed(out[-1:], position)[-1]
        return out

    def tokenize(self, text: str) -> list[int]:
        raw = text.encode()
        out = (I32 * (len(raw) + 8))()
        n = self.lib.llama_tokenize(self.vocab, raw, len(raw), out, len(out), False, False)
        return list(out[:n])

    def close(self) -> None:
        self.lib.llama_free(self.context)
        self.lib.llama_model_free(self.model)


Opened = Callable[[Path], Llama]
