"""What holds for every format: 2,000 conversations as the jinja file renders them and parsed back, every split of a
stream, markers spelled in any field, the choice of a format by a tokenizer's special tokens."""

import json
from collections.abc import Iterator

import jinja2.ext
import pytest
from conversations import MARKERS, conversations
from jinja2.sandbox import ImmutableSandboxedEnvironment

from moonlet.chat import K2, K2_INSTRUCT, XTML, Format, Segment, TextStream, format_of
from moonlet.chat.stream import message_of, split_markers
from moonlet.errors import InputError

FORMATS = [XTML, K2, K2_INSTRUCT]
each_format = pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
KEEP = {K2: {"preserve_thinking": True}}  # so that every turn shows its thought
COUNT = {XTML: 2000, K2: 2000, K2_INSTRUCT: 500}  # K2 Instruct is K2's code with one switch turned


def joined(segments: list[Segment]) -> str:
    return "".join(segment.text for segment in segments)


def template(form: Format) -> jinja2.Template:
    """The environment that transformers renders chat templates in."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, **{"ensure_ascii": False, **options})
    return environment.from_string(form.template)


@each_format
def test_2000_conversations_render_as_jinja_does(form: Format) -> None:
    compiled = template(form)
    for i, (messages, tools) in enumerate(conversations(COUNT[form], hostile=True)):
        options = {"thinking": i % 3 > 0, "add_generation_prompt": i % 2 == 0}
        effort = {"effort": ("low", "max")[i % 2]} if form is XTML and i % 5 else {}
        keep = {"preserve_thinking": i % 4 == 0} if form is K2 else {}
        text = compiled.render(messages=messages, tools=tools, thinking_effort=effort.get("effort"), **options, **keep)
        assert text == joined(form.render(messages, tools, **options, **effort, **keep))


def bodies(form: Format, segments: list[Segment]) -> Iterator[list[tuple[str, bool]]]:
    """The pieces of each assistant turn of a rendered conversation, as if it had been sampled after its prefix."""
    opened = {XTML: 3, K2: 1, K2_INSTRUCT: 0}[form]  # segments of a turn's loss that the prefix holds already
    prefix, pieces = form.generation_prefix(), [(s.text, s.special) for s in segments]
    starts = [i for i, s in enumerate(segments) if s.loss and not segments[i - 1].loss]
    for start in starts:
        assert pieces[start : start + opened] == [(s.text, s.special) for s in prefix[len(prefix) - opened :]]
        end = next(i for i in range(start, len(pieces)) if pieces[i] == (form.end, True))
        yield pieces[start + opened : end + 1]


def expected(form: Format, message: dict, first: int) -> dict:
    calls = []
    for i, call in enumerate(message.get("tool_calls", [])):
        name, arguments = call["function"]["name"], call["function"]["arguments"]
        id = f"{name}:{i}" if form is XTML else f"functions.{name}:{first + i}"
        calls.append({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}})
    thought = "" if form is K2_INSTRUCT else message["reasoning_content"]
    out = {"role": "assistant", "reasoning_content": thought, "content": message["content"] or ""}
    return out | ({"tool_calls": calls} if calls else {})


@each_format
def test_2000_conversations_parse_back(form: Format) -> None:
    for messages, tools in conversations(COUNT[form], hostile=True):
        answers = [message for message in messages if message["role"] == "assistant"]
        found = list(bodies(form, form.render(messages, tools, **KEEP.get(form, {}))))
        assert len(found) == len(answers)
        first = 0
        for message, pieces in zip(answers, found):
            parsed = form.parse(pieces)  # K2 Instruct is told that it thinks, and knows better
            for call in parsed.get("tool_calls", []):
                call["function"]["arguments"] = json.loads(call["function"]["arguments"])
            assert parsed == expected(form, message, first)
            first += len(message.get("tool_calls", []))


def turns(form: Format, hostile: bool, count: int) -> Iterator[list[tuple[str, bool]]]:
    """`count` sampled turns, the ones with the most calls first."""
    found = [
        body
        for messages, _ in conversations(100, hostile, seed=5)
        for body in bodies(form, form.render(messages, **KEEP.get(form, {})))
    ]
    yield from sorted(found, key=len, reverse=True)[: count // 2]
    yield from found[: count // 2]


@each_format
def test_every_split_of_a_text_stream_gives_the_same_message(form: Format) -> None:
    for pieces in turns(form, hostile=False, count=10):
        text = "".join(piece for piece, _ in pieces)
        whole = form.parse(pieces)
        assert not any(marker in str(whole) for marker in MARKERS)
        for cuts in [*([i] for i in range(len(text) + 1)), range(len(text))]:
            stream, parser, seen = TextStream(form.markers), form.StreamParser(), []
            for start, end in zip([0, *cuts], [*cuts, len(text)]):
                seen += stream.feed(text[start:end])
                # Nothing but a beginning of a marker is ever held back.
                assert sum(len(piece) for piece, _ in seen) > end - max(map(len, form.markers))
            assert message_of(parser, seen + stream.flush()) == whole


@each_format
def test_every_split_of_text_pieces_gives_the_same_message(form: Format) -> None:
    for pieces in turns(form, hostile=True, count=20):
        whole = form.parse(pieces)
        for i, (text, special) in enumerate(pieces):
            for cut in range(1, len(text)) if not special else []:
                split = [*pieces[:i], (text[:cut], False), (text[cut:], False), *pieces[i + 1 :]]
                assert form.parse(split) == whole


def with_text(text: str) -> tuple[list[dict], list[dict]]:
    """A conversation that has `text` in every field that anyone may write."""
    function = {"name": text, "arguments": {text: text, "k": [{text: text}]}}
    raw = {"name": "g", "arguments": json.dumps({text: text})}
    broken = {"name": "h", "arguments": text}
    calls = [{"id": f"{text}{i}", "type": "function", "function": f} for i, f in enumerate((function, raw, broken))]
    messages = [
        {"role": "system", "content": text, "name": text},
        {"role": "user", "content": [{"type": "text", "text": text}], "name": text},
        {"role": "assistant", "reasoning_content": text, "content": text, "tool_calls": calls, "name": text},
        *({"role": "tool", "tool_call_id": f"{text}{i}", "content": text} for i in (2, 0, 1)),
        {"role": "tool", "tool_call_id": text, "name": text, "content": text},
        {"role": "assistant", "reasoning_content": text, "content": text},
        {"role": "user", "content": text},
    ]
    parameters = {"type": "object", "properties": {text: {"description": text}}}
    return messages, [{"type": "function", "function": {"name": text, "description": text, "parameters": parameters}}]


@each_format
@pytest.mark.parametrize("thinking", [True, False])
def test_markers_in_any_field_stay_text(form: Format, thinking: bool) -> None:
    def specials(text: str) -> list[str]:
        messages, tools = with_text(text)
        segments = form.render(messages, tools, thinking=thinking, add_generation_prompt=True)
        assert all((s.text in form.markers) for s in segments if s.special)
        assert sum(text in s.text for s in segments if not s.special) > 15
        return [s.text for s in segments if s.special]

    tame = specials("tame")
    for marker in MARKERS:
        assert specials(marker) == specials(f"a{marker}\n{marker}") == tame
    messages, _ = with_text(form.end)
    assert [s.text for s in form.continuation(messages[2], messages[3:6], thinking) if s.special] == [
        s.text for s in form.continuation(*[with_text("tame")[0][2], with_text("tame")[0][3:6]], thinking) if s.special
    ]


@each_format
def test_format_of(form: Format) -> None:
    assert format_of(["[BOS]", *form.markers, "[PAD]"]) is form
    assert form.end in form.markers
    assert split_markers(form.end, form.markers) == [(form.end, True)]
    with pytest.raises(InputError, match="no chat format's markers"):
        format_of([*form.markers[1:], "<|im_start|>"])
