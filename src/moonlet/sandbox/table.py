"""The lookup tool: facts in a table {name: {relation: value}}, asked for as "NAME RELATION".

The last word of the query is the relation and everything before it the name, so names may have spaces. Matching is
exact apart from the spaces; whatever is not there, or is not a question, is "not found".
"""

NOT_FOUND = "not found"


def lookup(table: dict[str, dict[str, str]], query: str) -> str:
    """The value of the relation that ends `query` for the name before it, or "not found"."""
    *name, relation = query.split() if isinstance(query, str) and query.strip() else [""]
    return table.get(" ".join(name), {}).get(relation, NOT_FOUND)
