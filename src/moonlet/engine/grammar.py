"""Structured output: a grammar for the whole turn, so that what must be JSON, a pattern or a tool call cannot be else.

The grammar knows the chat format's markers as tokens: the thought stays free, then the answer holds to a JSON schema, a
regular expression or a choice, and a call names an offered tool and gives arguments that fit its schema, in the order
of its properties. JSON is compact, as in the training format. llguidance (extra `grammar`) computes which tokens may
come next: 14 us a token at a vocabulary of 2,048, where xgrammar takes 4; but it compiles a small schema in 0.6 ms, not
2 to 12, takes control tokens, and bounds its own work, so that a grammar which takes too long is refused or fails its
own request (2 cores of an AMD EPYC, 2026-11-28). Left out: other grammar languages.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from moonlet.chat.formats import XTML, Format
from moonlet.chat.k2 import ARGUMENT, CALL, CALL_END, SECTION, SECTION_END, THINK_END
from moonlet.chat.xtml import CLOSE, OPEN, SEP
from moonlet.data.tokenizer import Tokenizer
from moonlet.errors import InputError

LONGEST = 64 << 10  # characters of a grammar
MOST_CHOICES = 1024
TYPES = ("string", "number", "boolean", "null", "object", "array")
COMPACT = {"whitespace_flexible": False, "item_separator": ",", "key_separator": ":"}


class Matcher:
    """One request's place in its grammar."""

    def __init__(self, matcher: Any, vocab_size: int) -> None:
        self.matcher, self.vocab_size = matcher, vocab_size
        self.bits, self.ready = np.zeros((vocab_size + 31) // 32, dtype=np.int32), False

    def prepare(self) -> None:
        """Compute what `mask` applies, where that is not done yet."""
        if not self.ready:
            self.matcher.unsafe_compute_mask_ptr(self.bits.ctypes.data, self.bits.nbytes)
            self.ready = True

    def mask(self, logits: np.ndarray) -> None:
        """-inf, in place, for every token that may not come next. logits [vocab]."""
        self.prepare()
        self.check()
        logits[np.unpackbits(self.bits.view(np.uint8), count=self.vocab_size, bitorder="little") == 0] = -np.inf

    def take(self, token: int) -> None:
        self.ready = False
        self.matcher.consume_token(token)
        self.check()

    def check(self) -> None:
        if self.matcher.is_error():
            raise RuntimeError(f"the grammar came to no end: {self.matcher.get_error()[:200]}")


class Grammars:
    """Compiles grammars for one tokenizer and format."""

    def __init__(self, tokenizer: Tokenizer, format: Format) -> None:
        try:
            import llguidance
        except ImportError as error:
            raise InputError("structured output needs llguidance: pip install 'moonlet[grammar]'") from error
        self.tokenizer, self.format, self.library = tokenizer, format, llguidance
        tokenizers: Any = llguidance.LLTokenizer  # its stub leaves out the constructor
        ranks = {token: number for number, token in enumerate(tokenizer.ranks)}
        self.known = tokenizers.from_tiktoken(
            encoder=ranks,
            special_tokens=tokenizer.special,
            pattern=tokenizer.pattern,
            eos_token=tokenizer.special[format.end],
            n_vocab=tokenizer.vocab_size,
            slices=None,
        )
        self.limits = llguidance.LLParserLimits(verbose_errors=False)

    def turn(
        self,
        thinking: bool,
        structure: Mapping[str, Any] | None,
        tools: Sequence[Mapping[str, Any]],
        required: bool,
    ) -> Matcher:
        """A matcher for one assistant turn: content by `structure` ({"json_schema"}, {"regex"} or {"choice"}; None:
        free), calls of `tools` alone, at least one where `required`. InputError for a bad or too large grammar."""
        try:
            rules = [f"body: {self.content(structure)}", "TEXT: /(.|\\n)*/"]
            if self.format is XTML:
                rules += self.xtml(thinking, tools, required)
            else:
                rules += self.k2(thinking and self.format.name == "k2", tools, required)
            text = "\n".join(rules)
        except RecursionError as error:
            raise InputError("the schema is nested too deeply: flatten it") from error
        if len(text) > LONGEST:
            raise InputError(f"the grammar has {len(text)} characters, the limit is {LONGEST}: use a smaller schema")
        matcher = self.library.LLMatcher(self.known, text, log_level=0, limits=self.limits)
        if matcher.is_error():
            raise InputError(f"the schema, pattern or choice does not work: {matcher.get_error()[:200]}")
        return Matcher(matcher, self.tokenizer.vocab_size)

    def xtml(self, thinking: bool, tools: Sequence[Mapping[str, Any]], required: bool) -> list[str]:
        def opened(head: str) -> str:
            return f"{self.token(OPEN)} {literal(head)} {self.token(SEP)}"

        def closed(tag: str) -> str:
            return f"{self.token(CLOSE)} {literal(tag)} {self.token(SEP)}"

        rules = [f"response: {opened('response') if thinking else ''} body {closed('response')}"]
        calls = []
        for n, tool in enumerate(tools):
            name, parameters = parts(tool)
            head = f'{literal("call" + attribute("tool", name) + " index=")} /"[1-9][0-9]?"/'
            arguments = []
            for m, (key, schema) in enumerate(parameters.get("properties", {}).items()):
                kinds = []
                possible = kinds_of(schema)
                for kind in possible:
                    rule, value = as_json(narrowed(schema, kind), parameters), f"json_{n}_{m}_{kind}"
                    if len(possible) > 1 and self.library.LLMatcher.validate_grammar(f"start: {rule}", self.known):
                        continue  # nothing of this type fits, as a reference may say
                    if kind == "string":
                        value = self.raw(schema)
                    else:
                        rules.append(f"{value}: {rule}")
                    tag = "argument" + attribute("key", key) + attribute("type", kind)
                    kinds.append(f"{opened(tag)} {value} {closed('argument')}")
                rules.append(f"argument_{n}_{m}: {' | '.join(kinds)}")
                arguments.append(f"argument_{n}_{m}" + ("" if key in parameters.get("required", []) else "?"))
            rules.append(
                f"call_{n}: {self.token(OPEN)} {head} {self.token(SEP)} {' '.join(arguments)} {closed('call')}"
            )
            calls.append(f"call_{n}")
        if calls:
            rules.append(f"tools: {opened('tools')} ({' | '.join(calls)})+ {closed('tools')}")
        said = "response tools" if required else "response tools?" if calls else "response"
        silent = " | tools" if calls and thinking else ""
        thought = f"TEXT {closed('think')}" if thinking else ""
        return [f"start: {thought} ({said}{silent}) {closed('message')}", *rules]

    def k2(self, thinking: bool, tools: Sequence[Mapping[str, Any]], required: bool) -> list[str]:
        rules, calls = [], []
        for n, tool in enumerate(tools):
            name, parameters = parts(tool)
            closed = {"type": "object", "additionalProperties": False, **parameters}
            rules.append(f"arguments_{n}: {as_json(closed, {})}")
            head = f"{self.token(CALL)} {literal(f'functions.{name}:')} /[0-9]{{1,4}}/ {self.token(ARGUMENT)}"
            rules.append(f"call_{n}: {head} arguments_{n} {self.token(CALL_END)}")
            calls.append(f"call_{n}")
        if calls:
            rules.append(f"tools: {self.token(SECTION)} ({' | '.join(calls)})+ {self.token(SECTION_END)}")
        thought = f"TEXT {self.token(THINK_END)}" if thinking else ""
        return [f"start: {thought} body {'tools' if required else 'tools?' if calls else ''}", *rules]

    def content(self, structure: Mapping[str, Any] | None) -> str:
        if not structure:
            return "TEXT"
        ((kind, value),) = structure.items()
        if kind == "json_schema":
            return as_json(value, {})
        if kind == "regex":
            return pattern(value)
        if len(value) > MOST_CHOICES or not all(value):
            raise InputError(f"choice has {len(value)} texts: give at most {MOST_CHOICES}, none of them empty")
        return one_of(value)

    def raw(self, schema: Any) -> str:
        """A string argument, which stands in the turn as it is."""
        schema = schema if isinstance(schema, Mapping) else {}
        choices = [text for text in schema.get("enum") or [schema.get("const")] if isinstance(text, str) and text]
        if choices:
            return f"({one_of(choices)})"
        return pattern(schema["pattern"]) if isinstance(schema.get("pattern"), str) else "TEXT"

    def token(self, name: str) -> str:
        return f"<[{self.tokenizer.special[name]}]>"


def attribute(key: str, value: str) -> str:
    """An attribute of an XTML tag, as text."""
    return f' {key}="' + value.replace("&", "&amp;").replace('"', "&quot;") + '"'


def literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def one_of(texts: Iterable[str]) -> str:
    return " | ".join(map(literal, texts))


def pattern(regex: str) -> str:
    return "/" + regex.replace("/", "\\/").replace("\n", "\\n") + "/"


def as_json(schema: Any, root: Mapping[str, Any]) -> str:
    """JSON of a schema; what `root` defines is there to be referred to."""
    schema = dict(schema) if isinstance(schema, Mapping) else {}
    definitions = {key: root[key] for key in ("$defs", "definitions") if key in root}
    return "%json " + json.dumps({**definitions, **schema, "x-guidance": COMPACT}, ensure_ascii=False, allow_nan=False)


def parts(tool: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """A tool's name and the schema of its arguments, an object's."""
    function = tool["function"]
    parameters = function.get("parameters") or {}
    if not isinstance(parameters.get("properties", {}), Mapping):
        raise InputError(f"the tool {function['name']}: properties must be an object")
    return function["name"], dict(parameters)


def kinds_of(schema: Any) -> list[str]:
    """The XTML types that a value of this schema can have; all of them where it does not say."""
    given = schema.get("type") if isinstance(schema, Mapping) else None
    named = [given] if isinstance(given, str) else given if isinstance(given, list) else []
    kinds = ["number" if kind == "integer" else kind for kind in named]
    if not kinds and isinstance(schema, Mapping) and all(isinstance(v, str) for v in schema.get("enum", [0])):
        kinds = ["string"]
    return list(dict.fromkeys(kind for kind in kinds if kind in TYPES)) or list(TYPES)


def narrowed(schema: Any, kind: str) -> dict[str, Any]:
    """The part of a schema that has one of its types."""
    given = schema.get("type") if isinstance(schema, Mapping) else None
    named = [given] if isinstance(given, str) else given if isinstance(given, list) else [kind]
    if given and kind in ("null", "boolean"):  # bounds of the other types say nothing of them
        return {"type": kind}
    kept = [name for name in named if name == kind or (name == "integer" and kind == "number")]
    return {**(schema if isinstance(schema, Mapping) else {}), "type": kept[0] if len(kept) == 1 else kept}
