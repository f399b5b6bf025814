"""Outside witnesses: llama.cpp's engine runs our templates, its built-in K2 format and the published templates agree
with our renderers, transformers keeps forged markers out at the same places as our segments."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conversations import conversations
from llama_chat import Served, built_in, gguf
from upstream import digest, ours

from moonlet.chat import K2, K2_INSTRUCT, XTML, Format
from moonlet.data.tokenizer import Tokenizer

FORMATS = [XTML, K2, K2_INSTRUCT]
each_format = pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
# Printed by upstream.py, which says how: 2,000 of 2,000 conversations are ours in each format.
PUBLISHED = {
    XTML: "292cedf0bb331227f9448063d3ead602b96ec19a6ecdaba0073e215fca42adca",
    K2: "f2145ba46fa6b4a10a82f9cfea9050651a36163a55195c67136073226872f60a",
    K2_INSTRUCT: "e983d0d6ba340785354696ad1ef1f5ea68cca8dd35bf89c42bd25ee4ab55646d",
}


def plain_keys(value: Any) -> Any:
    """`value` with the keys of all dicts numbered."""
    if isinstance(value, dict):
        return {str(i): plain_keys(inner) for i, inner in enumerate(value.values())}
    return [plain_keys(inner) for inner in value] if isinstance(value, list) else value


def joined(segments: list) -> str:
    return "".join(segment.text for segment in segments)


@each_format
def test_2000_conversations_are_the_published_template_s(form: Format) -> None:
    assert digest(ours(form.name)) == PUBLISHED[form]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Served]:
    path: Path = gguf(tmp_path_factory.mktemp("llama"))
    return lambda template: Served(path, template)


@each_format
def test_llama_cpp_runs_our_template(form: Format, served: Callable[[str], Served]) -> None:
    llama = served(form.template)
    for i, (messages, tools) in enumerate(conversations(25, hostile=True, seed=7)):
        messages += [{"role": "user", "content": "Go on."}] if messages[-1]["role"] == "assistant" else []
        options = {"preserve_thinking": i % 4 == 0} if form is K2 else {}
        expected = form.render(messages, tools, thinking=i % 3 > 0, add_generation_prompt=True, **options)
        assert llama.render(messages, tools, thinking=i % 3 > 0, **options) == joined(expected)


def test_k2_instruct_is_llama_cpp_s_built_in_format() -> None:
    for messages, _ in conversations(200, hostile=False):
        said = [m | {"name": None, "content": m["content"].replace("\0", "")} for m in messages if m["role"] != "tool"]
        said = [m | {"tool_calls": None} for m in said]
        assert built_in("kimi-k2", said) == joined(K2_INSTRUCT.render(said, add_generation_prompt=True))


@each_format
def test_transformers_finds_the_same_control_tokens(form: Format, tmp_path: Path) -> None:
    """With `sanitize_control_tokens` transformers marks what users wrote, renders our template, and encodes the marked
    text apart: another way to the same end, through its own reading of tokenizer.json and chat_template.jinja."""
    from helpers import tiny_tokenizer
    from transformers import AutoTokenizer

    ranks = tiny_tokenizer().ranks
    tokenizer = Tokenizer(ranks, specials=["[BOS]", "[EOS]", *form.markers, "[UNK]", "[PAD]"])
    tokenizer.save(tmp_path, form.template)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    controls = set(tokenizer.special.values())
    for messages, tools in conversations(60, hostile=True, seed=3):
        # It leaves the keys of dicts unmarked.
        for call in [call for message in messages for call in message.get("tool_calls", [])]:
            call["function"]["arguments"] = plain_keys(call["function"]["arguments"])
        for tool in tools or []:
            tool["function"]["parameters"]["properties"] = plain_keys(tool["function"]["parameters"]["properties"])
        segments = form.render(messages, tools, add_generation_prompt=True)
        encoded = theirs.apply_chat_template(
            messages, tools, add_generation_prompt=True, sanitize_control_tokens=True, return_dict=False
        )
        expected = tokenizer.encode_segments(segments)
        assert [i for i in encoded if i in controls] == [i for i in expected if i in controls]
        assert tokenizer.decode(encoded) == tokenizer.decode(expected) == joined(segments)
