"""Drafts by prompt lookup: what followed the last n tokens when they occurred before (Saxena, prompt lookup decoding).

Agents repeat themselves: they quote tool results, copy arguments and restate what was asked. A draft costs nothing to
make; the scheduler checks it in the step that would have made one token. Drafts grow while they are right and shrink
when they are wrong, so a text without repetition soon pays nothing. Left out: a draft model.
"""

NGRAM = 3
LONGEST = 16


class Drafter:
    """Of one request; `tokens` is its live list, which others append to."""

    def __init__(self, tokens: list[int]) -> None:
        self.tokens = tokens
        self.after: dict[tuple[int, ...], int] = {}  # an n-gram -> the place behind its last occurrence
        self.learnt = 0  # n-grams that begin before this place are in
        self.length, self.rest = 4, 0

    def propose(self, limit: int) -> list[int]:
        """At most `limit` tokens that may come next; none without an earlier occurrence, or after many misses."""
        tokens = self.tokens
        for start in range(self.learnt, len(tokens) - NGRAM):
            self.after[tuple(tokens[start : start + NGRAM])] = start + NGRAM
        self.learnt = max(self.learnt, len(tokens) - NGRAM)
        if self.rest:
            self.rest -= 1
            return []
        at = self.after.get(tuple(tokens[-NGRAM:]))
        return [] if at is None else tokens[at : at + min(limit, self.length)]

    def judge(self, drafted: int, accepted: int) -> None:
        """How many of the last draft were right."""
        if accepted == drafted:
            self.length = min(LONGEST, 2 * self.length)
        else:
            self.length = max(2, accepted + 1)
            self.rest = 0 if accepted else 4
