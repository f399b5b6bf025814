"""A model laid out for the native decoder (model/kernels/native/decode.cpp), and the call that runs it.

`PackedModel(model)` copies every matrix into panels and keeps pointers to the other weights, so it belongs to the
weights of that moment: pack again after a step of training, and inside `rounded_experts` for the 4-bit values. Experts
that are in 4 bits (`quant.packed_experts`) stay so; `weights` says how the other matrices are kept: fp32, int8 or int4,
where their width is a multiple of 32 (quantised.h: their inputs are rounded to 8 bits then). The router is always fp32.
With `consume` the model's own weights are given up as they are packed, layer by layer; with `scratch` the experts'
panels lie in unnamed files of that folder, which the system reads as they are used and drops when memory is short.
The structures mirror those of decode.h, field by field. fp32 on a CPU only (`can_pack`).
"""

import ctypes
import math
import mmap
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, repeat
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from moonlet.model.attn_res import AttnResMix
from moonlet.model.kda import KDA, KDAState
from moonlet.model.kernels.glu import native_betas
from moonlet.model.kernels.native import address, call, library, pointer, usable
from moonlet.model.mla import MLA
from moonlet.model.model import Cache, Layer, Model
from moonlet.model.moe import MLP, Experts, MoE
from moonlet.quant.grids import GROUP, int_codes
from moonlet.quant.packed_experts import PackedExperts

PANEL, PANEL8 = 16, 8  # columns of a panel, as in gemm.h and quantised.h
STACKS = ("w1", "w3", "w2")
KINDS = {"fp32": 0, "int4": 1, "mxfp4": 2, "int8": 3}
POINTER, INT, FLOAT = ctypes.c_void_p, ctypes.c_int, ctypes.c_float
ZERO = np.zeros(1, dtype=np.int32)


def named(kind: type, *names: str) -> tuple[tuple[str, type], ...]:
    return tuple((name, kind) for name in names)


class MatrixC(ctypes.Structure):
    _fields_ = (("panels", POINTER), *named(INT, "in_", "out", "kind"))


class KDAC(ctypes.Structure):
    _fields_ = (
        *named(MatrixC, "qkv", "f_a", "f_b", "beta", "g_a", "g", "o"),
        *named(POINTER, "taps", "dt_bias", "A_log", "o_norm"),
        *named(INT, "heads", "head_dim", "width", "bounded"),
        *named(FLOAT, "lower", "eps", "l2_eps"),
    )


class MLAC(ctypes.Structure):
    _fields_ = (
        *named(MatrixC, "q_a", "q", "kv_a", "k_up", "v_up", "g", "o"),
        *named(POINTER, "q_norm", "kv_norm", "frequencies"),
        *named(INT, "heads", "rope"),
        *named(FLOAT, "scale", "rotation", "eps"),
    )


class MLPC(ctypes.Structure):
    _fields_ = (*named(MatrixC, "gate", "up", "down"), *named(FLOAT, "beta", "linear"))


class MoEC(ctypes.Structure):
    _fields_ = (
        *named(MatrixC, "router", "down", "up", "w1", "w3", "w2"),
        *named(POINTER, "bias", "norm"),
        *named(INT, "experts", "chosen", "renormalize", "on_disk"),
        *named(FLOAT, "factor", "beta", "linear", "eps"),
        ("shared", MLPC),
    )


class LayerC(ctypes.Structure):
    _fields_ = (
        *named(POINTER, "kda", "mla", "moe", "mlp"),
        *named(POINTER, "attention_query", "attention_norm", "ffn_query", "ffn_norm"),
        ("banks", INT),
    )


class ModelC(ctypes.Structure):
    _fields_ = (
        *named(POINTER, "embedding", "layers", "query", "norm"),
        ("head", MatrixC),
        ("depth", INT),
        ("eps", FLOAT),
    )


class StateC(ctypes.Structure):
    _fields_ = (*named(POINTER, "memory", "conv"), *named(ctypes.c_size_t, "memory_row", "conv_row"))


@dataclass
class Memory:
    """Where the native decoder finds a cache: per layer its arrays, per row `lengths` [rows] and the pages of its
    latents, `table` [rows, width] int32; a page holds `page` tokens."""

    states: ctypes.Array
    lengths: Tensor
    table: Tensor
    page: int


def in_rows(cache: Cache) -> Memory:
    """A cache with one tensor a layer: each row is one page."""
    states, page = (StateC * len(cache.layers))(), 1
    for state, layer in zip(states, cache.layers):
        if isinstance(layer, KDAState):
            state.memory, state.memory_row = address(layer.S), layer.S.stride(0)
            state.conv, state.conv_row = address(layer.conv), layer.conv.stride(0)
        else:
            state.memory, state.memory_row = address(layer.latents), layer.latents.stride(0)
            page = layer.latents.shape[1]
    return Memory(states, cache.lengths, torch.arange(len(cache.lengths), dtype=torch.int32)[:, None], page)


def on_disk(folder: Path, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """A tensor whose memory is a file without a name in `folder`: it goes when the tensor does."""
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        file.truncate(math.prod(shape) * dtype.itemsize)
        return torch.from_file(file.name, shared=True, size=math.prod(shape), dtype=dtype).view(*shape)


def give_up(part: nn.Module) -> None:
    """Leave `part` without its weights."""
    for tensor in [*part.parameters(), *part.buffers()]:
        tensor.data = tensor.data.new_empty(0)


def can_pack(model: Model) -> bool:
    return usable(*model.parameters())


class PackedModel:
    """`decode` runs it; `kept` holds what the structures point to."""

    def __init__(self, model: Model, weights: str = "fp32", consume: bool = False, scratch: Path | None = None) -> None:
        self.kept: list[object] = []
        self.mapped: list[Tensor] = []
        self.weights, self.consume, self.scratch = weights, consume, scratch
        c = model.config
        layers = (LayerC * c.num_hidden_layers)(*(self.layer(layer, c.attn_res_block_size) for layer in model.layers))
        final = model.output_attn_res if c.attn_res_block_size is not None else None
        self.vocab_size = c.vocab_size
        self.model = ModelC(
            self.values(model.embed_tokens.weight),
            self.address(layers),
            self.query(final),
            self.values(model.norm.weight),
            self.matrix(model.lm_head.weight),
            c.num_hidden_layers,
            c.rms_norm_eps,
        )
        if consume:
            give_up(model.lm_head)
        for panels in self.mapped:  # read without neighbours from now on: experts are used in no order
            ctypes.CDLL(None).madvise(pointer(panels), ctypes.c_size_t(panels.nbytes), mmap.MADV_RANDOM)

    def decode(
        self,
        memory: Memory,
        rows: Sequence[int],
        queues: Sequence[Sequence[int]],
        wanted: Sequence[int] | None = None,
        threads: int = 1,
        features: Tensor | None = None,
    ) -> Tensor:
        """Feed queues[i] (at least one token each) to row rows[i] of the cache, in place; logits [sum, vocab] after
        the last wanted[i] tokens of each queue, one if not given. The cache must have room (`cache.reserve`).
        features [tokens, blocks, d], if given, takes `Stats.blocks` of every token."""
        counts = np.array([len(queue) for queue in queues], dtype=np.int32)
        ids = np.fromiter(chain.from_iterable(queues), np.int64, int(counts.sum()))
        starts = np.concatenate([ZERO, counts.cumsum(dtype=np.int32)])
        where = np.array(rows, dtype=np.int32)
        after = np.ones_like(counts) if wanted is None else np.array(wanted, dtype=np.int32)
        logits = torch.empty(int(after.sum()), self.vocab_size)
        kernels = library()
        assert kernels is not None
        if kernels.decode.argtypes is None:
            pointers = (POINTER,) * 7
            kernels.decode.argtypes = (*pointers, INT, INT, POINTER, POINTER, POINTER, INT, INT)
        lengths, table = memory.lengths.data_ptr(), memory.table
        arrays = ids.ctypes.data, where.ctypes.data, starts.ctypes.data, lengths, ctypes.addressof(memory.states)
        pages = table.data_ptr(), table.shape[1], memory.page
        taken = None if features is None else address(features)
        out = after.ctypes.data, logits.data_ptr(), taken, len(queues), threads
        kernels.decode(ctypes.addressof(self.model), *arrays, *pages, *out)
        memory.lengths.numpy()[where] += counts
        return logits

    def layer(self, layer: Layer, block: int | None) -> LayerC:
        attention, ffn = layer.self_attn, layer.mlp
        kda = self.address(self.kda(attention)) if isinstance(attention, KDA) else None
        mla = self.address(self.mla(attention)) if isinstance(attention, MLA) else None
        moe = self.address(self.moe(ffn)) if isinstance(ffn, MoE) else None
        mlp = self.address(self.mlp(ffn)) if isinstance(ffn, MLP) else None
        made = LayerC(
            *(kda, mla, moe, mlp),
            self.query(layer.self_attention_res if block else None),
            self.values(layer.input_layernorm.weight),
            self.query(layer.mlp_res if block else None),
            self.values(layer.post_attention_layernorm.weight),
            int(block is not None and layer.index % block == 0),
        )
        if self.consume:
            give_up(layer)
        return made

    def kda(self, a: KDA) -> KDAC:
        taps = torch.cat([a.q_conv1d.weight, a.k_conv1d.weight, a.v_conv1d.weight]).squeeze(1)
        full_rank = hasattr(a, "g_proj")
        return KDAC(
            self.matrix(torch.cat([a.q_proj.weight, a.k_proj.weight, a.v_proj.weight])),
            *(self.matrix(m.weight) for m in (a.f_a_proj, a.f_b_proj, a.b_proj)),
            MatrixC() if full_rank else self.matrix(a.g_a_proj.weight),
            self.matrix(a.g_proj.weight if full_rank else a.g_b_proj.weight),
            self.matrix(a.o_proj.weight),
            *(self.values(x) for x in (taps.t(), a.dt_bias, a.A_log, a.o_norm.weight)),
            *(a.num_heads, a.head_dim, taps.shape[1], int(a.lower_bound is not None)),
            *(float(a.lower_bound or 0.0), a.o_norm.eps, a.l2_eps),
        )

    def mla(self, a: MLA) -> MLAC:
        low_rank = hasattr(a, "q_a_proj")
        up = a.kv_b_proj.weight.unflatten(0, (a.num_heads, -1))
        up_k, up_v = up.split([a.nope, a.v_head_dim], dim=1)  # [H, nope | v, rank]
        return MLAC(
            self.matrix(a.q_a_proj.weight) if low_rank else MatrixC(),
            self.matrix(a.q_b_proj.weight if low_rank else a.q_proj.weight),
            self.matrix(a.kv_a_proj_with_mqa.weight),
            self.matrix(up_k.transpose(1, 2)),
            self.matrix(up_v),
            self.matrix(a.g_proj.weight) if hasattr(a, "g_proj") else MatrixC(),
            self.matrix(a.o_proj.weight),
            self.values(a.q_a_layernorm.weight) if low_rank else None,
            self.values(a.kv_a_layernorm.weight),
            None if a.use_nope else self.values(a.frequencies),
            *(a.num_heads, a.rope),
            *(a.scale, 1.0 if a.use_nope else a.rope_factor, a.kv_a_layernorm.eps),
        )

    def moe(self, m: MoE) -> MoEC:
        e, latent = m.experts, hasattr(m, "routed_expert_down_proj")
        norm = hasattr(m, "routed_expert_norm")
        return MoEC(
            self.float_matrix(m.gate.weight),
            self.matrix(m.routed_expert_down_proj.weight) if latent else MatrixC(),
            self.matrix(m.routed_expert_up_proj.weight) if latent else MatrixC(),
            *self.experts(e),
            self.values(m.gate.e_score_correction_bias),
            self.values(m.routed_expert_norm.weight) if norm else None,
            *(m.gate.weight.shape[0], m.gate.top_k, int(m.gate.renormalize), int(self.scratch is not None)),
            *(m.gate.factor, *native_betas(*e.act), m.routed_expert_norm.eps if norm else 0.0),
            self.mlp(m.shared_experts) if hasattr(m, "shared_experts") else MLPC(),
        )

    def experts(self, e: Experts | PackedExperts) -> list[MatrixC]:
        """w1, w3, w2: all of them in one form."""
        if isinstance(e, PackedExperts):
            return [self.quantised(map(e.codes, repeat(name), range(e.count)), e.count, e.format) for name in STACKS]
        narrow = all(w.shape[-1] % GROUP == 0 for w in (e.w1, e.w2))
        return [(self.matrix if narrow else self.float_matrix)(w) for w in (e.w1, e.w3, e.w2)]

    def mlp(self, m: MLP) -> MLPC:
        return MLPC(*(self.matrix(p.weight) for p in (m.gate_proj, m.up_proj, m.down_proj)), *native_betas(*m.act))

    def query(self, read: AttnResMix | None) -> int | None:
        return None if read is None else self.values(read.norm.weight * read.proj.weight[0])

    def matrix(self, weight: Tensor) -> MatrixC:
        """weight [out, in], or a stack [n, out, in] packed one after another, in the form that was asked for."""
        if self.weights == "fp32" or weight.shape[-1] % GROUP:
            return self.float_matrix(weight)
        stack = weight.detach().reshape(-1, *weight.shape[-2:])
        largest = 7 if self.weights == "int4" else 127
        return self.quantised((int_codes(one, largest) for one in stack), len(stack), self.weights)

    def quantised(self, matrices: Iterable[tuple[Tensor, Tensor]], count: int, format: str) -> MatrixC:
        """`count` matrices: codes [out, in] and scale [out, in/32] as `quant.grids` has them, one byte a code."""
        panels: Tensor | None = None
        for place, (codes, scale) in enumerate(matrices):
            out, width = codes.shape
            codes, scale = (codes + 8, scale.bfloat16()) if format == "int4" else (codes, scale)
            scale = scale.bfloat16() if format == "int8" else scale
            if panels is None:
                group = PANEL8 * (GROUP if format == "int8" else GROUP // 2) + PANEL8 * scale.element_size()
                panels = self.room(count, -(-out // PANEL8) * (width // GROUP) * group)
            call("pack_quantised", codes.contiguous(), scale.contiguous(), panels[place], KINDS[format], width, out)
        assert panels is not None
        self.kept.append(panels)
        return MatrixC(panels.data_ptr(), width, out, KINDS[format])

    def room(self, count: int, size: int) -> Tensor:
        """[count, size] bytes; stacks lie in `scratch` where there is one."""
        if self.scratch is None or count == 1:
            return torch.empty(count, size, dtype=torch.uint8)
        self.mapped.append(on_disk(self.scratch, (count, size), torch.uint8))
        return self.mapped[-1]

    def float_matrix(self, weight: Tensor) -> MatrixC:
        weight = weight.detach().contiguous()
        out, width = weight.shape[-2:]
        stack = weight.reshape(-1, out, width)
        panels = torch.empty(stack.shape[0], -(-out // PANEL) * PANEL * width)
        for one, to in zip(stack, panels):
            call("pack_matrix", one, to, width, out)
        self.kept.append(panels)
        return MatrixC(panels.data_ptr(), width, out, KINDS["fp32"])

    def values(self, weights: Tensor) -> int:
        """Address of a tensor that stays."""
        weights = weights.detach().contiguous()
        self.kept.append(weights)
        return weights.data_ptr()

    def address(self, structure: ctypes.Structure | ctypes.Array) -> int:
        self.kept.append(structure)
        return ctypes.addressof(structure)
