"""llama.cpp as an outside witness of chat templates: its own jinja engine, through the server of the xllamacpp wheel,
and its built-in K2 format, through the C function that the wheel exports."""

import ctypes
import json
import urllib.request
from pathlib import Path
from typing import Any

import pytest


class Served:
    """A tiny random model behind llama.cpp's server, with a chat template of our choice."""

    def __init__(self, gguf: Path, template: str) -> None:
        xllamacpp = pytest.importorskip("xllamacpp")
        params = xllamacpp.CommonParams()
        params.model.path, params.chat_template = str(gguf), template
        params.n_ctx, params.n_parallel, params.port = 256, 1, 0
        params.warmup, params.use_jinja = False, True
        self.server = xllamacpp.Server(params)

    def render(self, messages: list[dict], tools: list[dict] | None, **options: Any) -> str:
        """The prompt, with its generation prefix: what llama.cpp renders always ends with one."""
        spelled = json.loads(json.dumps(messages))
        for call in [call for message in spelled for call in message.get("tool_calls", [])]:
            call["function"]["arguments"] = json.dumps(call["function"]["arguments"], ensure_ascii=False)
        body = {"messages": spelled, "chat_template_kwargs": options} | ({"tools": tools} if tools else {})
        request = urllib.request.Request(
            self.server.listening_address + "/apply-template",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.load(response)["prompt"]


def gguf(folder: Path) -> Path:
    from helpers import tiny_model_folder

    from moonlet.engine.export import export

    pytest.importorskip("xllamacpp")
    export(tiny_model_folder(folder), "gguf", folder / "m.gguf", "f32")
    return folder / "m.gguf"


class Said(ctypes.Structure):
    _fields_ = [("role", ctypes.c_char_p), ("content", ctypes.c_char_p)]


def built_in(name: str, messages: list[dict]) -> str:
    """What llama.cpp's format of that name, written in C++, makes of roles and contents, with its prompt's end."""
    library = ctypes.CDLL(pytest.importorskip("xllamacpp.xllamacpp").__file__)
    said = (Said * len(messages))(*[(m["role"].encode(), m["content"].encode()) for m in messages])
    out = ctypes.create_string_buffer(1 << 16)
    apply = library.llama_chat_apply_template
    text, count = ctypes.c_char_p, ctypes.c_size_t
    apply.argtypes = [text, ctypes.POINTER(Said), count, ctypes.c_bool, text, ctypes.c_int32]
    length = apply(name.encode(), said, len(messages), True, out, len(out))
    assert 0 <= length < len(out)
    return out.raw[:length].decode()
