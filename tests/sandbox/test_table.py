"""The lookup tool: its one spelling, and "not found" for all else."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moonlet.sandbox.table import NOT_FOUND, lookup

TABLE = {"Ada Byron": {"city": "Lund", "age": "36"}, "Bo": {"city": "Nice"}}
words = st.text(alphabet="abcXYZ019-é", min_size=1, max_size=8)
full_names = st.lists(words, min_size=1, max_size=3).map(" ".join)


@pytest.mark.parametrize(
    ("query", "answer"),
    [
        ("Ada Byron city", "Lund"),
        ("Ada Byron age", "36"),
        ("Bo city", "Nice"),
        ("  Bo   city ", "Nice"),
        ("Bo age", NOT_FOUND),
        ("Ada city", NOT_FOUND),
        ("bo city", NOT_FOUND),
        ("city", NOT_FOUND),
        ("Bo", NOT_FOUND),
        ("", NOT_FOUND),
    ],
)
def test_lookup(query: str, answer: str) -> None:
    assert lookup(TABLE, query) == answer


@given(st.dictionaries(full_names, st.dictionaries(words, words), max_size=5))
def test_every_fact_is_found(table: dict[str, dict[str, str]]) -> None:
    for name, facts in table.items():
        for relation, value in facts.items():
            assert lookup(table, f"{name} {relation}") == value
