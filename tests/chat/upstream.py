"""What the published templates render, as digests that test_witness.py holds our renderers to.

The templates are not ours to ship and no wheel has them, so the comparison was made once:

    PYTHONPATH=src:tests python tests/chat/upstream.py FOLDER

with llama.cpp's copies in FOLDER: Kimi-K3.jinja and Kimi-K2-Instruct.jinja as in the source archive of llama-cpp-python
0.3.36 (vendor/llama.cpp/models/templates), moonshotai-Kimi-K2-Thinking.jinja as of llama.cpp's commit 0c3c896. It
renders the same 2,000 conversations with each, in llama.cpp's own engine, and prints how many are ours and the digest.
`reduced` takes out of both what differs on purpose.
"""

import hashlib
import json
import re
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from conversations import conversations
from llama_chat import Served, gguf

from moonlet.chat import K2, K2_INSTRUCT, XTML

COUNT = 2000
FILES = {
    XTML.name: "Kimi-K3.jinja",
    K2.name: "moonshotai-Kimi-K2-Thinking.jinja",
    K2_INSTRUCT.name: "Kimi-K2-Instruct.jinja",
}
BEFORE_DATA = r'(?<=type="tool-declare"<\|sep\|>).*?(?=```json)|(?<=type="thinking-effort"<\|sep\|>).*?(?=<\|close)'
OPTION = re.compile(BEFORE_DATA, re.DOTALL)
CALLS_ALONE = "<|close|>think<|sep|><|open|>tools<|sep|>"
WITH_RESPONSE = "<|close|>think<|sep|><|open|>response<|sep|><|close|>response<|sep|><|open|>tools<|sep|>"
DECLARED = re.compile(r"(?<=tool_declare<\|im_middle\|>).*?(?=<\|im_end\|>)", re.DOTALL)


def reduced(text: str) -> str:
    """Of option messages only the data; the empty response channel of a turn of calls put in; K2's tools spelled one
    way; the <think> with which K2.5 and later end the prompt left out."""
    text = OPTION.sub(lambda found: (re.findall(r"(?<==)\w+", found[0]) or [""])[-1], text)
    text = DECLARED.sub(lambda found: json.dumps(json.loads(found[0]), sort_keys=True), text)
    return text.replace(CALLS_ALONE, WITH_RESPONSE).removesuffix("<think>")


def cases(name: str) -> Iterable[tuple[list[dict], list[dict] | None, dict]]:
    """Messages, tools and options of each conversation, for the format of that name."""
    for i, (messages, tools) in enumerate(conversations(COUNT, hostile=False)):
        if messages[-1]["role"] == "assistant":  # llama.cpp would go on with it
            messages.append({"role": "user", "content": "Go on."})
        options: dict = {"add_generation_prompt": True}
        if name == XTML.name:
            options |= {"thinking": i % 5 > 0, "effort": ("low", "high", "max", None)[i % 4]}
        if name == K2.name:  # its template takes the ids as they come
            rename(messages)
        yield messages, tools, options


def rename(messages: list[dict]) -> None:
    """Number all calls of a conversation, whose results stand in the order of the calls."""
    calls = [call for message in messages for call in message.get("tool_calls", [])]
    results = [message for message in messages if message["role"] == "tool"]
    for i, (call, result) in enumerate(zip(calls, results, strict=True)):
        call["id"] = result["tool_call_id"] = f"functions.{call['function']['name']}:{i}"


def ours(name: str) -> list[str]:
    render = {known.name: known.render for known in (XTML, K2, K2_INSTRUCT)}[name]
    rendered = (render(messages, tools, **options) for messages, tools, options in cases(name))
    return [reduced("".join(segment.text for segment in segments)) for segments in rendered]


def digest(texts: list[str]) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()


def main(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        model = gguf(Path(scratch))
        for name, file in FILES.items():
            served = Served(model, (folder / file).read_text())
            theirs = []
            for messages, tools, options in cases(name):
                options["thinking_effort"] = options.pop("effort", None)
                theirs.append(reduced(served.render(messages, tools, **options)))
            same = [a == b for a, b in zip(ours(name), theirs)]
            print(f"{name}: {sum(same)} of {len(same)} as {file}; {digest(theirs)}")
            if not all(same):
                print(ours(name)[same.index(False)], theirs[same.index(False)], sep="\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
