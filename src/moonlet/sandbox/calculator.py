"""The calculator tool: whole-number arithmetic, parsed and never evaluated as code.

    sum     = product (("+" | "-") product)*
    product = signed (("*" | "×" | "x" | "X") signed)*
    signed  = "-"* (digits | "(" sum ")")

The text is at most 200 characters, brackets nest at most 40 deep and no number, given or reached on the way, has more
than 60 digits, so a call costs microseconds whatever a model writes. Leaves out division, powers and fractions.
"""

import re

from moonlet.errors import InputError

MAX_CHARACTERS = 200
MAX_DIGITS = 60
MAX_DEPTH = 40
TOKEN = re.compile(r"\s*([0-9]+|[-+*×xX()])")


def evaluate(expression: str) -> str:
    """The value of `expression` in decimal. Raises InputError where it is malformed or past a bound."""
    if not isinstance(expression, str):
        raise InputError(f"the expression is {type(expression).__name__}: it must be text such as '17*23'")
    if len(expression) > MAX_CHARACTERS:
        raise InputError(f"the expression has {len(expression)} characters: at most {MAX_CHARACTERS}")
    parser = _Parser(_tokens(expression))
    value = parser.sum(0)
    if parser.token:
        raise InputError(f"unexpected {parser.token!r}: write whole numbers joined by + - * and brackets")
    return str(value)


def _tokens(expression: str) -> list[str]:
    tokens, place, text = [], 0, expression.rstrip()
    while place < len(text):
        match = TOKEN.match(text, place)
        if not match:
            unknown = text[place:].lstrip()[0]
            raise InputError(f"unexpected {unknown!r}: write whole numbers joined by + - * and brackets")
        tokens.append(match[1])
        place = match.end()
    return tokens


class _Parser:
    """Recursive descent over `tokens`; `token` is the next one, "" at the end."""

    def __init__(self, tokens: list[str]) -> None:
        self.rest = iter(tokens)
        self.token = next(self.rest, "")

    def take(self) -> str:
        taken, self.token = self.token, next(self.rest, "")
        return taken

    def sum(self, depth: int) -> int:
        value = self.product(depth)
        while self.token in ("+", "-"):
            sign = 1 if self.take() == "+" else -1
            value = _bounded(value + sign * self.product(depth))
        return value

    def product(self, depth: int) -> int:
        value = self.signed(depth)
        while self.token in ("*", "×", "x", "X"):
            self.take()
            value = _bounded(value * self.signed(depth))
        return value

    def signed(self, depth: int) -> int:
        sign = 1
        while self.token == "-":
            self.take()
            sign = -sign
        token = self.take()
        if token.isdigit():
            return sign * _bounded(int(token))
        if token != "(":
            raise InputError(f"{repr(token) if token else 'the expression ends'} where a number is due")
        if depth == MAX_DEPTH:
            raise InputError(f"brackets nest more than {MAX_DEPTH} deep")
        value = self.sum(depth + 1)
        if self.take() != ")":
            raise InputError("a bracket is not closed")
        return sign * value


def _bounded(value: int) -> int:
    if abs(value) >= 10**MAX_DIGITS:
        raise InputError(f"a number has more than {MAX_DIGITS} digits")
    return value
