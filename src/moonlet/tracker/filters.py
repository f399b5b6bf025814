"""Filter expressions over runs: `config.lr > 1e-3 and summary["eval/loss"] < 2 and "base" in tags and name ~ "k3-.*"`.

The words are Python's and are parsed by its `ast`, but nothing is evaluated by Python: only the nodes below are known,
and each becomes a small function of a run. A value that a run lacks is None; a comparison with None, or of kinds that
have no order, is false. `a ~ "pattern"` searches a regular expression; it is written as `a @ "pattern"` for the parser.
"""

import ast
import math
import operator
import re
from collections.abc import Callable, Iterable
from typing import Any

Getter = Callable[[dict[str, Any]], Any]
FIELDS = {"name", "id", "state", "created", "updated", "points", "last_step", "attempts", "tags", "notes", "archived"}
FIELDS |= {"folder", "color", "deleted"}
COMPARE = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}
ARITHMETIC = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}
WORDS = {"true": True, "false": False, "none": None}
MAX_LENGTH, MAX_TEXT, MAX_PATTERN = 1000, 10_000, 100


def parse(text: str) -> Getter:
    """The expression as a function of a run's record. Raises ValueError that says what is not understood."""
    if not text.strip():
        return lambda run: True
    if len(text) > MAX_LENGTH:
        raise ValueError(f"the filter has {len(text)} characters: {MAX_LENGTH} at most")
    parts = re.split(r"""("(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')""", text)
    source = "".join(part if i % 2 else part.replace("~", "@") for i, part in enumerate(parts))
    try:
        tree = ast.parse(source.strip(), mode="eval").body
        return _getter(tree)
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError(f"the filter {text!r} is not an expression: {getattr(error, 'msg', error)}") from error


def field(name: str) -> Getter:
    """`config.lr`, `summary.eval/loss` (all behind the first dot is the key) or one of FIELDS."""
    table, dot, key = name.partition(".")
    if dot and table in ("config", "summary"):
        return lambda run: run[table].get(key)
    if name not in FIELDS:
        raise ValueError(f"no field {name!r}: config.KEY, summary.KEY or one of {', '.join(sorted(FIELDS))}")
    return lambda run: run.get(name)


def choose(runs: Iterable[dict[str, Any]], text: str) -> list[dict[str, Any]]:
    wanted = parse(text)
    return [run for run in runs if wanted(run)]


def sort_key(get: Getter) -> Callable[[dict[str, Any]], Any]:
    """Numbers before text before what is absent; NaN is absent."""

    def key(run: dict[str, Any]) -> tuple[int, Any]:
        value = number(get(run))
        if value is None or (isinstance(value, float) and math.isnan(value)):
            return 2, 0
        return (0, value) if isinstance(value, int | float) else (1, str(value))

    return key


def number(value: Any) -> Any:
    """The words that JSON has for non-finite numbers as such numbers."""
    return float(value) if value in ("nan", "inf", "-inf") and isinstance(value, str) else value


def _getter(node: ast.AST) -> Getter:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float | str | None):
        constant = node.value
        return lambda run: constant
    if isinstance(node, ast.Name):
        if node.id.lower() in WORDS:
            word = WORDS[node.id.lower()]
            return lambda run: word
        return field(node.id)
    if isinstance(node, ast.Attribute | ast.Subscript):
        return _member(node)
    if isinstance(node, ast.BoolOp):
        parts = [_getter(value) for value in node.values]
        every = isinstance(node.op, ast.And)
        return lambda run: all(part(run) for part in parts) if every else any(part(run) for part in parts)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub):
        inner = _getter(node.operand)
        if isinstance(node.op, ast.Not):
            return lambda run: not inner(run)
        return lambda run: _apply(operator.sub, 0, inner(run))
    if isinstance(node, ast.BinOp):
        return _binary(node)
    if isinstance(node, ast.Compare):
        return _comparison(node)
    if isinstance(node, ast.List | ast.Tuple):
        items = [_getter(item) for item in node.elts]
        return lambda run: [item(run) for item in items]
    raise ValueError(f"the filter cannot use {ast.unparse(node)!r}: see the list in docs/tracker.md")


def _member(node: ast.Attribute | ast.Subscript) -> Getter:
    """config.a.b, config["a.b"], summary["eval/loss"]: dotted parts join to one key."""
    keys: list[str] = []
    inner: ast.AST = node
    while isinstance(inner, ast.Attribute | ast.Subscript):
        if isinstance(inner, ast.Attribute):
            keys.append(inner.attr)
        elif isinstance(inner.slice, ast.Constant) and isinstance(inner.slice.value, str):
            keys.append(inner.slice.value)
        else:
            raise ValueError(f"{ast.unparse(node)!r}: a key in brackets must be text in quotes")  # noqa: TRY004
        inner = inner.value
    if not isinstance(inner, ast.Name) or inner.id not in ("config", "summary"):
        raise ValueError(f"{ast.unparse(node)!r}: only config and summary have keys")
    return field(f"{inner.id}.{'.'.join(keys[::-1])}")


def _binary(node: ast.BinOp) -> Getter:
    left = _getter(node.left)
    if isinstance(node.op, ast.MatMult):
        if not isinstance(node.right, ast.Constant) or not isinstance(node.right.value, str):
            raise ValueError("behind ~ stands a pattern in quotes")  # noqa: TRY004
        pattern = safe_pattern(node.right.value)
        return lambda run: pattern.search(str(left(run) or "")[:MAX_TEXT]) is not None
    right, operation = _getter(node.right), ARITHMETIC.get(type(node.op))
    if operation is None:
        raise ValueError(f"the filter cannot use {ast.unparse(node)!r}: + - * / are there")
    return lambda run: _apply(operation, left(run), right(run))


def _comparison(node: ast.Compare) -> Getter:
    values = [_getter(value) for value in (node.left, *node.comparators)]
    tests: list[Callable[[Any, Any], bool]] = []
    for kind in node.ops:
        if isinstance(kind, ast.In | ast.NotIn):
            tests.append(_contains if isinstance(kind, ast.In) else lambda a, b: b is not None and not _contains(a, b))
        elif type(kind) in COMPARE:
            tests.append(_ordered(COMPARE[type(kind)]))
        else:
            raise ValueError(f"the filter cannot use {ast.unparse(node)!r}: no `is`")

    def test(run: dict[str, Any]) -> bool:
        found = [value(run) for value in values]
        return all(check(a, b) for check, a, b in zip(tests, found[:-1], found[1:], strict=True))

    return test


def safe_pattern(text: str) -> re.Pattern[str]:
    """A regular expression that cannot run away: no group is repeated and no two repeats follow each other closely."""
    if len(text) > MAX_PATTERN:
        raise ValueError(f"the pattern has {len(text)} characters: {MAX_PATTERN} at most")
    if re.search(r"\)\s*[*+{?]", text) or len(re.findall(r"(?<!\\)[*+{]", text)) > 3 or re.search(r"\\[1-9]", text):
        raise ValueError(f"the pattern {text!r} repeats a group or has more than three repeats: make it simpler")
    try:
        return re.compile(text)
    except re.error as error:
        raise ValueError(f"the pattern {text!r} is none: {error}") from error


def _apply(operation: Callable[[Any, Any], Any], a: Any, b: Any) -> Any:
    a, b = number(a), number(b)
    if a is None or b is None:
        return None
    if operation in ARITHMETIC.values() and not (isinstance(a, int | float) and isinstance(b, int | float)):
        return None
    try:
        return operation(a, b)
    except (TypeError, ZeroDivisionError, OverflowError):
        return None


def _ordered(compare: Callable[[Any, Any], Any]) -> Callable[[Any, Any], bool]:
    return lambda a, b: _apply(compare, a, b) is True


def _contains(a: Any, b: Any) -> bool:
    if isinstance(b, str):
        return isinstance(a, str) and a in b
    return isinstance(b, list) and a in b
