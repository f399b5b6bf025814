"""The built-in tools: what each is called, and what runs when a model calls it.

A model folder declares in `tools.json` what its model was taught to call: {"tools": [schemas], "table": {name:
{relation: value}}}. Declared tools that are built in here are offered; nothing could answer the others. Errors are
worded as in the training tasks, so that a model meets what it knows.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from moonlet.errors import InputError
from moonlet.sandbox import calculator, table

Run = Callable[[str], str]


@dataclass
class Tools:
    """`schemas` to offer, in OpenAI's form; `functions`: name to the one argument, which is text, and what runs."""

    schemas: list[dict]
    functions: dict[str, tuple[str, Run]]

    def call(self, name: str, arguments: str) -> str:
        """The result of one call. Whatever is wrong with the call is text too, "error: ...", for the model to read."""
        if name not in self.functions:
            return f"error: no tool {name[:20]}"
        wanted, run = self.functions[name]
        try:
            values = json.loads(arguments)
        except (ValueError, RecursionError):
            values = None
        if not isinstance(values, dict) or list(values) != [wanted]:
            return f"error: {name} takes {wanted}"
        if not isinstance(values[wanted], str):
            return "error: not text"
        try:
            return run(values[wanted])
        except InputError:
            return f"error: bad {wanted}"


def for_endpoint() -> Tools:
    """What any model can be offered: the calculator."""
    parameters = {"type": "object", "properties": {"expression": {"type": "string"}}}
    schema = {"type": "function", "function": {"name": "calculator", "parameters": parameters}}
    return Tools([schema], {"calculator": ("expression", calculator.evaluate)})


def for_folder(folder: Path) -> Tools:
    """The built-in tools that the model in `folder` was taught. Raises InputError for a broken tools.json."""
    path = folder / "tools.json"
    if not path.exists():
        return Tools([], {})
    try:
        declared = json.loads(path.read_bytes())
        facts = {name: dict(relations) for name, relations in declared.get("table", {}).items()}
        known = {"lookup": ("query", lambda query: table.lookup(facts, query))} | for_endpoint().functions
        schemas = {name: tool for tool in declared["tools"] if (name := tool["function"]["name"]) in known}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is not a tool declaration ({error}): export the model again") from error
    return Tools(list(schemas.values()), {name: known[name] for name in schemas})
