"""The tiny world: some hundreds of invented people, places, animals and things, and the rule of what is held out.

Everything the default run is trained and measured on comes from here, so that "held out" is one rule in one place and
no answer can be known from elsewhere. A number of two or more digits, a pair of one-digit operands or a name is held
out by the CRC-32 of its text: training text never contains it, evaluation uses nothing else. `World.table` is the
database behind the lookup tool. Sixteen places are famous: their mayor and river are told again and again in the
pretraining text (`tiny_world_text`), so that there is something to know by heart; everything else has to be looked up.
Leaves out any text: see `tiny_world_text` for documents and `moonlet.tasks` for questions.
"""

import random
from dataclasses import dataclass, field
from zlib import crc32

SPLITS = ("train", "seen", "unseen")
# {kind: {relation: kind of its value}}; "name" and the word lists end a chain of questions.
RELATIONS = {
    "place": {"mayor": "person", "river": "name", "animal": "animal"},
    "person": {"pet": "animal", "friend": "person", "home": "place", "job": "job"},
    "animal": {"color": "color", "food": "food", "owner": "person"},
    "thing": {"owner": "person", "material": "material", "place": "place"},
}
KINDS = tuple(RELATIONS)
WORDS = {
    kind: tuple(words.split())
    for kind, words in {
        "color": "red blue green black white brown gray yellow pink purple orange golden",
        "food": "bread fish rice corn apples nuts grass cheese honey berries soup eggs milk beans cake seeds",
        "job": "baker doctor farmer teacher painter sailor cook miner singer writer tailor guard pilot nurse judge",
        "material": "wood iron glass stone silver clay wool paper leather copper cotton bone",
    }.items()
}
FAMOUS_RELATIONS = ("mayor", "river")
FAMOUS = 16
TRAIN_COUNTS = {"place": 80, "person": 96, "animal": 96, "thing": 72}
HELD_OUT_COUNTS = {"place": 64, "person": 64, "animal": 64, "thing": 48}

# Few enough that a small model meets each thousands of times; each is one token (see train.corpus.train_tokenizer).
SYLLABLES = tuple(consonant + vowel for consonant in "bdfgkpvz" for vowel in "aiou")
# Joined syllables that happen to be known words.
_KNOWN = "Buda Dido Diva Fado Fava Fido Gobi Goda Judo Kaki Kava Koba Kobi Paki Vida Zaki"
KNOWN_WORDS = frozenset(_KNOWN.split())


def is_held_out(number: int) -> bool:
    """True where `number` has two or more digits and is kept out of all training text (one in eight)."""
    return abs(number) >= 10 and crc32(str(abs(number)).encode()) % 8 == 0


def is_held_out_pair(left: int, operator: str, right: int) -> bool:
    """The same for a sum of two one-digit numbers; `operator` is one of + - *. The order of the operands counts."""
    return 0 <= left <= 9 and 0 <= right <= 9 and crc32(f"{left}{operator}{right}".encode()) % 8 == 0


def is_held_out_name(name: str) -> bool:
    """True for two names in five."""
    return crc32(name.encode()) % 5 < 2


def number(rng: random.Random, digits: int, held_out: bool = False) -> int:
    """A whole number of exactly `digits` digits, held out or not; one digit is never held out, whatever is asked."""
    while True:
        drawn = rng.randrange(10 ** (digits - 1), 10**digits) if digits > 1 else rng.randrange(10)
        if digits == 1 or is_held_out(drawn) == held_out:
            return drawn


def result(left: int, operator: str, right: int) -> int:
    """What a sum makes; `operator` is one of + - *."""
    return {"+": left + right, "-": left - right, "*": left * right}[operator]


def invent_name(rng: random.Random, held_out: bool) -> str:
    """A pseudo-word of two or three syllables with a capital letter, on the asked side of the held-out rule."""
    while True:
        syllables = rng.sample(SYLLABLES, 2 if rng.random() < 0.25 else 3)
        name = "".join(syllables).capitalize()
        if is_held_out_name(name) == held_out and name not in KNOWN_WORDS:
            return name


@dataclass
class World:
    """The world of one seed.

    `table` {name: {relation: value}} over all entities; `kind` {name: kind}; `famous` the places whose mayor and river
    are told in the pretraining text; `train` and `held_out` {kind: names}. A held-out entity is related to held-out
    entities only, so no chain of questions crosses the split. `taken` are all names in use, rivers included.
    """

    seed: int
    table: dict[str, dict[str, str]] = field(init=False, repr=False)
    kind: dict[str, str] = field(init=False, repr=False)
    famous: list[str] = field(init=False, repr=False)
    train: dict[str, list[str]] = field(init=False, repr=False)
    held_out: dict[str, list[str]] = field(init=False, repr=False)
    taken: frozenset[str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        rng = random.Random(f"tiny world {self.seed}")
        taken: set[str] = set()
        self.table, self.kind = {}, {}
        self.famous = _new_names(rng, taken, FAMOUS, held_out=False)
        self.train = {kind: _new_names(rng, taken, TRAIN_COUNTS[kind], held_out=False) for kind in KINDS}
        self.held_out = {kind: _new_names(rng, taken, HELD_OUT_COUNTS[kind], held_out=True) for kind in KINDS}
        self._relate(rng, {**self.train, "place": self.famous + self.train["place"]}, taken, held_out=False)
        self._relate(rng, self.held_out, taken, held_out=True)
        self.taken = frozenset(taken)

    def _relate(self, rng: random.Random, names: dict[str, list[str]], taken: set[str], held_out: bool) -> None:
        """Fill in every relation of `names`, from `names` alone."""
        # Each person has one pet and each animal one owner, the same pairs; each mayor has one place.
        pets = dict(zip(names["person"], rng.sample(names["animal"], len(names["person"])), strict=True))
        mayors = rng.sample(names["person"], len(names["place"]))
        rivers = _new_names(rng, taken, len(names["place"]), held_out)
        given = {"pet": pets, "owner": {animal: person for person, animal in pets.items()}}
        given |= {"mayor": dict(zip(names["place"], mayors)), "river": dict(zip(names["place"], rivers))}
        for kind in KINDS:
            for name in names[kind]:
                self.kind[name] = kind
                row = self.table[name] = {}
                for relation, target in RELATIONS[kind].items():
                    value = given.get(relation, {}).get(name)
                    while value is None or value == name:
                        value = rng.choice(WORDS[target] if target in WORDS else names[target])
                    row[relation] = value

    def facts(self) -> list[tuple[str, str, str]]:
        """The facts to know by heart: (place, "mayor" or "river", value)."""
        return [
            (place, relation, self.table[place][relation]) for place in self.famous for relation in FAMOUS_RELATIONS
        ]

    def entities(self, split: str) -> dict[str, list[str]]:
        """{kind: names} that lookups of a split may be about; famous places are not among them."""
        return self.train if split == "train" else self.held_out

    def unknown_name(self, rng: random.Random, split: str) -> str:
        """A pseudo-word that names nothing in this world; the pools of training and evaluation are disjoint."""
        while True:
            name = invent_name(rng, held_out=split != "train")
            if name not in self.taken:
                return name


def _new_names(rng: random.Random, taken: set[str], count: int, held_out: bool) -> list[str]:
    names: list[str] = []
    while len(names) < count:
        name = invent_name(rng, held_out)
        if name not in taken:
            taken.add(name)
            names.append(name)
    return names
