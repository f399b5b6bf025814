r"""How text is cut before BPE: two patterns, and where the published encoder cuts what is very long.

`PUBLISHED_PATTERN` is that of `tokenization_kimi.py` in the Kimi repositories (K2, Kimi Linear, K3): runs of Han apart;
a word takes one leading space or symbol, ends before a capital that follows a small letter, and keeps its English
contraction; digits by up to three; symbols with the line ends after them; line ends; other whitespace, less the last
one before a word. `PATTERN` is moonlet's own: digits one by one, because small models then learn arithmetic, and no
contractions.

tiktoken's regex engine remembers each step of `\s+(?!\S)` and overflows at a million spaces. `PATTERN` takes whitespace
by at most 64. The published encoder cuts the text instead, and each cut ends a token: `cut` does the same, so ids equal
its own at any length. A tokenizer.json cannot say this: its engine differs from the published encoder where a text
passes 400,000 characters, or a run of whitespace or of anything else 25,000.
"""

import re

PATTERN = (
    r"\p{Han}+"
    r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}&&[^\p{Han}\p{Lu}]][\p{L}\p{M}&&[^\p{Han}]]*"
    r"|\p{Lu}[\p{L}\p{M}&&[^\p{Han}]]*"
    r"|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s{0,64}[\r\n]+"
    r"|\s{1,64}(?!\S)"
    r"|\s"
)

UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"
CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
PUBLISHED_PATTERN = "|".join(
    [
        r"[\p{Han}]+",
        rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+{CONTRACTION}",
        rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*{CONTRACTION}",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
)
PATTERNS = {"digits": PATTERN, "published": PUBLISHED_PATTERN}

LONGEST, LONGEST_RUN = 400_000, 25_000  # characters
# Python's own whitespace, as the published encoder has it: U+001C to U+001F are in, unlike in the patterns.
LONG_RUN = re.compile(rf"(?<!\s)\s{{{LONGEST_RUN + 1},}}|(?<!\S)\S{{{LONGEST_RUN + 1},}}")


def cut(text: str) -> list[str]:
    """`text` in the parts that the published encoder encodes each on its own: one, unless it is very long."""
    if len(text) <= LONGEST_RUN:
        return [text]
    parts = []
    for start in range(0, len(text), LONGEST):
        block = text[start : start + LONGEST]
        runs = (run.span() for run in LONG_RUN.finditer(block))
        ends = [end for first, last in runs for end in range(first + LONGEST_RUN, last, LONGEST_RUN)]
        parts += [block[begin:end] for begin, end in zip([0, *ends], [*ends, len(block)], strict=True)]
    return parts
