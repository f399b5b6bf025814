"""The calculator against Python's own whole numbers, and everything it must refuse."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moonlet.errors import InputError
from moonlet.sandbox.calculator import MAX_DEPTH, MAX_DIGITS, evaluate

numbers = st.integers(0, 10**12).map(str)
expressions = st.recursive(
    numbers,
    lambda inner: st.one_of(
        st.builds("{} {} {}".format, inner, st.sampled_from("+-*"), inner),
        st.builds("({})".format, inner),
        st.builds("-{}".format, inner),
    ),
    max_leaves=8,
).filter(lambda text: len(text) <= 200)


@given(expressions)
def test_agrees_with_python(expression: str) -> None:
    expected = eval(expression)  # digits, operators and brackets that this test wrote
    if abs(expected) < 10**MAX_DIGITS:
        try:
            assert evaluate(expression) == str(expected)
        except InputError as error:
            assert "digits" in str(error)  # a number on the way was longer than the result


@given(st.text(alphabet="0123456789+-*x() a.,^/_٣", max_size=30))
def test_any_text_is_a_whole_number_or_refused(text: str) -> None:
    try:
        value = evaluate(text)
    except InputError:
        return
    assert value == str(int(value)) and set(text) <= set("0123456789+-*x() ")


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("17*23", "391"),
        ("17×23", "391"),
        ("17 x 23 X 2", "782"),
        ("2+3*4", "14"),
        ("(2+3)*4", "20"),
        ("10-3-4", "3"),
        ("-5", "-5"),
        ("2*-3", "-6"),
        ("--3 - -(4)", "7"),
        ("-0", "0"),
        ("007", "7"),
        (" 1 \t+\n1 ", "2"),
        ("9" * MAX_DIGITS, "9" * MAX_DIGITS),
        ("(" * MAX_DEPTH + "1" + ")" * MAX_DEPTH, "1"),
        ("-" * 199 + "1", "-1"),
    ],
)
def test_values(expression: str, value: str) -> None:
    assert evaluate(expression) == value


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("", "ends where a number is due"),
        ("1+", "ends where a number is due"),
        ("+1", "'\\+' where a number is due"),
        ("(1", "not closed"),
        ("1)", "unexpected '\\)'"),
        ("1 2", "unexpected '2'"),
        ("2(3)", "unexpected '\\('"),
        ("()", "'\\)' where a number is due"),
        ("7/2", "unexpected '/'"),
        ("2**3", "'\\*' where a number is due"),
        ("1.5", "unexpected '.'"),
        ("٣+1", "unexpected '٣'"),
        ("__import__('os')", "unexpected '_'"),
        ("1" * 201, "201 characters: at most 200"),
        ("9" * 61, "more than 60 digits"),
        ("9" * 40 + "*" + "9" * 40 + "*0", "more than 60 digits"),
        ("(" * 41 + "1" + ")" * 41, "more than 40 deep"),
    ],
)
def test_refusals(expression: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        evaluate(expression)


def test_not_text() -> None:
    with pytest.raises(InputError, match="expression is int"):
        evaluate(17)  # type: ignore[arg-type]
