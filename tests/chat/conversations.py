"""Seeded conversations, many and quickly: several tool loops, parallel calls, any unicode, empty thoughts; arguments as
dicts. `hostile` ones spell markers and tags of every format in all their text and give results out of order or with
unknown ids; the tame ones answer each call in order, so that all renderers of a format must agree on them."""

import random

from moonlet.chat import K2, XTML

MARKERS = (*XTML.markers, *K2.markers)
PLAIN = ["a", "Take 2 & 3.", "  ", "\n", '"', "'", "\\", "{}", "é", "月", "x\u0301", "\u202eabc", "👩‍👧", "\u2028",
         "&amp;", "```"]  # fmt: skip
HOSTILE = [*MARKERS, *(marker[:-1] for marker in MARKERS), "<", "|>", 'message role="user"', "think", "functions.add:0",
           "## Return of functions.add:0\n", "&quot;", "\x00", "\ufffd"]  # fmt: skip


class Maker:
    def __init__(self, seed: int, hostile: bool) -> None:
        self.random = random.Random(f"{seed} {hostile}")
        self.hostile = hostile
        self.fragments = PLAIN + HOSTILE * hostile

    def text(self, least: int = 0) -> str:
        text = "".join(self.random.choices(self.fragments, k=self.random.randint(least, 4)))
        return text if text.strip() or self.hostile else text.strip()

    def value(self, depth: int = 0) -> object:
        kind = self.random.randrange(6 if depth < 2 else 4)
        if kind < 4:
            return [self.text(), self.random.randint(-9, 10**12), self.random.random() < 0.5, None][kind]
        values = [self.value(depth + 1) for _ in range(self.random.randrange(3))]
        return values if kind == 4 else {self.text(): value for value in values}

    def name(self) -> str:
        return self.text(1) or "f" if self.hostile else self.random.choice(["add", "fs.read", "look-up", "a_1"])

    def named(self) -> dict:
        return {"name": self.name()} if self.random.random() < 0.3 else {}

    def tool(self) -> dict:
        properties = {self.text(): {"type": "string", "Enum": self.value()} for _ in range(self.random.randrange(3))}
        parameters = {"type": "object", "required": [], "additionalProperties": False, "properties": properties}
        return {
            "type": "function",
            "function": {"name": self.name(), "description": self.text(), "parameters": parameters},
        }

    def assistant(self, calls: int) -> dict:
        message = {"role": "assistant", "reasoning_content": self.text(), "content": self.text()} | self.named()
        if calls:
            message["content"] = message["content"] or (None if self.hostile else "")
            message["tool_calls"] = [
                {"id": f"call_{self.random.getrandbits(40)}", "type": "function", "function": self.function()}
                for _ in range(calls)
            ]
        return message

    def function(self) -> dict:
        arguments = {self.text(): self.value() for _ in range(self.random.randrange(3))}
        return {"name": self.name(), "arguments": arguments}

    def results(self, answer: dict) -> list[dict]:
        calls = answer["tool_calls"]
        results = [
            {"role": "tool", "tool_call_id": c["id"], "name": c["function"]["name"], "content": self.text()}
            for c in calls
        ]
        if self.hostile and self.random.random() < 0.5:
            self.random.shuffle(results)
        if self.hostile and self.random.random() < 0.3:
            results[0]["tool_call_id"] = self.random.choice(["unknown", "", calls[-1]["id"]])
        return results

    def conversation(self) -> list[dict]:
        """It ends in a user message, results, or an answer; a tame one opens with a system message."""
        system = not self.hostile or self.random.random() < 0.5
        messages = [{"role": "system", "content": self.text()}] if system else []
        for _ in range(self.random.randint(1, 2)):
            messages += [{"role": "user", "content": self.text()} | self.named()]
            for calls in self.random.choices([1, 1, 2, 3], k=self.random.randrange(3)):
                answer = self.assistant(calls)
                messages += [answer, *self.results(answer)]
            if self.random.random() < 0.8:
                messages += [self.assistant(0)]
        return messages


def conversations(count: int, hostile: bool, seed: int = 0) -> list[tuple[list[dict], list[dict] | None]]:
    """`count` pairs of messages and declared tools (None in every third)."""
    makers = [Maker(seed + i, hostile) for i in range(count)]
    return [(m.conversation(), [m.tool() for _ in range(2)] if i % 3 else None) for i, m in enumerate(makers)]
