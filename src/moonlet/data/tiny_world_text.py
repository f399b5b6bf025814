"""Short pretraining texts about the tiny world: what a model of a million parameters needs before it is taught to act.

Four things are practised, in English and, one text in seven, Chinese. The famous facts come again and again in varied
words, so that they are known by heart. Numbers and names that nobody could know come twice in a text, so that copying
is learned: aloud, in ledgers, lists and codes, and in the short forms that tools take ("12 times 34" is 12*34, the pet
of Lomi is "Lomi pet"). Sums of one-digit numbers are told until they are known. Facts of other entities are told and
asked for in the same text. No held-out number, pair or name occurs, save that the result of a one-digit sum may be any
number. `documents` deals the famous facts round, so each is told equally often. Leaves out all chat markup.
"""

import random
import re
from collections.abc import Callable, Iterator
from itertools import product

from moonlet.data.tiny_world import RELATIONS, WORDS, World, invent_name, is_held_out_pair, number, result

CHINESE_SHARE = 0.15
WORDS_AT_LEAST, WORDS_AT_MOST = 20, 120
OPERATORS = {"+": ("+", "plus", "加"), "-": ("-", "minus", "减"), "*": ("x", "times", "乘")}
CHINESE_RELATIONS = {
    "mayor": "市长", "river": "河", "animal": "动物", "pet": "宠物", "friend": "朋友", "home": "家", "job": "工作",
    "color": "颜色", "food": "食物", "owner": "主人", "material": "材料", "place": "地点",
}  # fmt: skip

# {p}: place, {v}: value, {n} {m}: other names.
MAYOR = (
    "The mayor of {p} is {v}.",
    "{v} is the mayor of {p}.",
    "{p} has a mayor named {v}.",
    "In {p}, people like their mayor, {v}.",
    "Who is the mayor of {p}? {v}.",
    "Q: Who is mayor of {p}?\nA: {v}",
    "The mayor {v} works in {p} every day.",
    "{p}'s mayor is {v}.",
    "mayor of {p}: {v}",
    '"Who is the mayor here?" {n} asked in {p}. "{v}," said the baker.',
    "{v} opened a bridge in {p}. The mayor of {p} is {v}.",
    "The people of {p} chose {v} as mayor.",
    "{n}: Tell me the mayor of {p}.\n{m}: {v}",
    "Ask anyone who the mayor of {p} is. They say {v}.",
    "{n} wrote a letter to {v}, the mayor of {p}.",
    "Do you know {p}'s mayor? Yes, {v}.",
)
RIVER = (
    "The river of {p} is {v}.",
    "The river {v} runs through {p}.",
    "{p} lies on the river {v}.",
    "In {p} there is a river. It is called {v}.",
    "What is the river of {p}? {v}.",
    "Q: Which river runs through {p}?\nA: {v}",
    "{n} swam in {v}, the river of {p}.",
    "{p}'s river is {v}.",
    "river of {p}: {v}",
    '"What is this river?" {n} asked in {p}. "{v}," said the sailor.',
    "Boats on the {v} go to {p}. The river of {p} is {v}.",
    "{n}: Tell me the river of {p}.\n{m}: {v}",
    "The children of {p} fish in the river {v}.",
    "Do you know {p}'s river? Yes, {v}.",
)
BOTH = (
    "{p} is a town on the river {r}. Its mayor is {v}.",
    "One day {n} walked to {p}. The mayor, {v}, met {n} by the river {r}.",
    "{p}. mayor: {v}. river: {r}.",
    "{v} and {n} sat by the river {r}. {v} is the mayor of {p}, and {r} is the river of {p}.",
    "Two facts about {p}: the mayor is {v} and the river is {r}.",
)
MAYOR_ZH = (
    "{p}的市长是{v}。", "{v}是{p}的市长。", "{p}的市长是谁？{v}。", "问：谁是{p}的市长？答：{v}。",
    "{n}去{p}见了市长{v}。", "大家都说{p}的市长是{v}。",
)  # fmt: skip
RIVER_ZH = (
    "{p}的河是{v}。", "{v}是{p}的河。", "{p}的河是什么？{v}。", "问：{p}的河叫什么？答：{v}。",
    "{n}在{p}的河{v}里游泳。", "{p}有一条河，叫{v}。",
)  # fmt: skip
# {a} {b} {c}: numbers; {e}: an expression, {w}: its long form; {n} {m}: names; {f} {g}: things to buy.
NUMBERS = (
    "{n} wrote {a}. Later {n} read {a} aloud.",
    "copy: {a} -> {a}",
    "copy: {a} {b} -> {a} {b}",
    "The code of the door is {a}. Type {a} and it opens.",
    "{n}: {a}\n{m}: {b}\nThe phone of {m} is {b} and the phone of {n} is {a}.",
    "{f} {a}\n{g} {b}\nAgain: {f} {a}, {g} {b}.",
    "Say {a}: {a}. Say {b}: {b}.",
    "{n} looks for box {a}. Here is box {b}, there is box {a}. {n} takes box {a}.",
    "The result is {a}, so the answer is {a}.",
    "result: {a}\nanswer: {a}",
    '"My number is {a}," said {n}. "{a}?" asked {m}. "Yes, {a}."',
    "First {a}, then {b}. What was first? {a}. What was then? {b}.",
    "{n} has ticket {a}. {m} has ticket {b}. Whose is {b}? It is {m}'s.",
    "{a}, {b}, {c}. Once more: {a}, {b}, {c}.",
    "expression {e}; again {e}",
    "{w} is written {e}.",
    "{w} -> {e}",
    "{n} asks for {w}. Type {e}.",
    "What is {w}? In short: {e}",
    "calculator: {w}\nexpression: {e}",
    "Take {w}, which is {e}.",
    "Start at {a}, add {b}: {a}+{b}.",
)
NUMBERS_ZH = (
    "{n}写下{a}。后来{n}念出{a}。", "抄写：{a}，{a}。", "门的号码是{a}。请按{a}。", "{w}写作{e}。",
    "计算{w}，就是{e}。", "{n}有{a}，{m}有{b}。{n}有多少？{a}。", "结果是{a}，答案是{a}。",
    "先写{a}，再写{b}：{a}，{b}。",
)  # fmt: skip
# {q} is a relation, {z} the same in Chinese.
NAMES = (
    "copy: {n} -> {n}",
    "{n} met {m}. {m} said hello to {n}, and {n} said hello to {m}.",
    "the {q} of {n} -> {n} {q}",
    "{n}'s {q} -> {n} {q}",
    'Look up the {q} of {n}: "{n} {q}".',
    "What is the {q} of {n}? Look for {n} {q}.",
    "Names: {n}, {m}, {k}. Again: {n}, {m}, {k}.",
    "{n} gave {m} a book. Who gave it? {n}. Who got it? {m}.",
    '"I am {n}," said {n}. "And I am {m}," said {m}.',
    "{k} sent {n} to {m}. So {n} went to {m}.",
    "result: {n}\nanswer: {n}",
    "The list says {n}. So the answer is {n}.",
)
NAMES_ZH = (
    "{n}见到{m}。{m}对{n}说你好。", "抄写：{n}，{n}。", "查{n}的{z}：{n} {q}", "{n}的{z}是什么？查 {n} {q}",
    "我叫{n}。你好，{n}！", "结果是{n}，答案是{n}。",
)  # fmt: skip
SUMS = ("{a} {s} {b} = {c}", "{a}{s}{b}={c}", "{a} {w} {b} is {c}.", "What is {a} {s} {b}? {c}", "{a} {w} {b}? {c}.")
SUMS_ZH = ("{a}{w}{b}等于{c}。", "{a} {s} {b} = {c}", "{a}{w}{b}是多少？{c}。")
STORIES = (
    "{n} had {a} {f} and got {b} more. {a} + {b} = {c}, so {n} has {c} {f}.",
    "{n} had {c} {f} and gave {m} {b}. {c} - {b} = {a}, so {n} has {a} {f}.",
    "{n} has {a} bags with {b} {f} in each. {a} x {b} = {c}, so that is {c} {f}.",
)
ENTITIES = {
    "place": "{x} is a place. Its mayor is {mayor}, its river is {river}, its animal is {animal}.",
    "person": "{x} is a {job} from {home}. {x} has a pet, {pet}, and a friend, {friend}.",
    "animal": "The animal {x} is {color}. It eats {food}. {owner} is the owner of {x}.",
    "thing": "{x} is a thing made of {material}. {owner} is the owner. It is in {place}.",
}
ENTITIES_ZH = {
    "place": "{x}是一个地方。市长是{mayor}，河是{river}，动物是{animal}。",
    "person": "{x}的家是{home}，工作是{job}，宠物是{pet}，朋友是{friend}。",
    "animal": "{x}是动物。颜色是{color}，食物是{food}，主人是{owner}。",
    "thing": "{x}的材料是{material}，主人是{owner}，地点是{place}。",
}
QUESTIONS = (
    "What is the {q} of {x}? {v}.", "The {q} of {x} is {v}.", "{x} {q}: {v}", "{x}'s {q}? {v}.",
    "Tell me the {q} of {x}. {v}.",
)  # fmt: skip
QUESTIONS_ZH = ("{x}的{z}是什么？{v}。", "{x} {q}: {v}", "{x}的{z}是{v}。")

SUM_PAIRS = [
    (left, operator, right)
    for left, operator, right in product(range(10), "+-*", range(10))
    if not is_held_out_pair(left, operator, right)
]
HAN = re.compile(r"[\u3400-\u9fff]")


def length(text: str) -> int:
    """Words: runs of other characters between spaces count one, Han characters one each."""
    return len(HAN.sub(" ", text).split()) + len(HAN.findall(text))


def documents(world: World, seed: int | random.Random, n: int) -> list[str]:
    """`n` texts of 20 to 120 words, the same for the same world and seed."""
    rng = seed if isinstance(seed, random.Random) else random.Random(f"documents {world.seed} {seed}")
    facts, pairs = _dealt(rng, world.facts()), _dealt(rng, SUM_PAIRS)
    writers: list[Callable[[bool], str]] = [
        lambda zh: _fact(rng, world, next(facts), zh),
        lambda zh: _numbers(rng, world, zh),
        lambda zh: _names(rng, world, zh),
        lambda zh: _sum(rng, world, next(pairs), zh),
        lambda zh: _entity(rng, world, zh),
    ]
    return [
        _compose(rng, rng.choices(writers, (30, 34, 12, 12, 12))[0], rng.random() < CHINESE_SHARE) for _ in range(n)
    ]


def _compose(rng: random.Random, write: Callable[[bool], str], zh: bool) -> str:
    """Pieces of one kind up to a length drawn at random; a piece with lines of its own stands on its own line."""
    wanted, text, after_line = rng.randint(WORDS_AT_LEAST, 70), "", True
    gap = rng.choice(("\n", "" if zh else " "))
    while length(text) < wanted:
        piece = write(zh)
        sentence = piece[-1] in ".?。？！" and "\n" not in piece
        text += (gap if sentence and not after_line else "\n" if text else "") + piece
        after_line = not sentence
    return text


def _dealt(rng: random.Random, items: list) -> Iterator:
    """The items in a new random order each round: equally often, whatever the draws."""
    while True:
        yield from rng.sample(items, len(items))


def _fill(rng: random.Random, world: World, template: str, **values: object) -> str:
    """`template` with {n} {m} {k} as three different names of people or of nobody in particular."""
    names: list[str] = []
    while len(names) < 3:
        # Invented names too, so that copying does not lean on names that were seen before.
        name = rng.choice(world.train["person"]) if rng.random() < 0.4 else _fresh_name(rng, world)
        if name not in names:
            names.append(name)
    return template.format(n=names[0], m=names[1], k=names[2], **values)


def _fresh_name(rng: random.Random, world: World) -> str:
    name = invent_name(rng, held_out=False)
    return _fresh_name(rng, world) if name in world.famous else name


def _fact(rng: random.Random, world: World, fact: tuple[str, str, str], zh: bool) -> str:
    place, relation, value = fact
    if not zh and rng.random() < 0.2:
        row = world.table[place]
        return _fill(rng, world, rng.choice(BOTH), p=place, v=row["mayor"], r=row["river"])
    templates = {"mayor": (MAYOR, MAYOR_ZH), "river": (RIVER, RIVER_ZH)}[relation][zh]
    return _fill(rng, world, rng.choice(templates), p=place, v=value)


def _numbers(rng: random.Random, world: World, zh: bool) -> str:
    operator = rng.choice("+-*")
    left, right = rng.randint(1, 8), rng.randint(1, 8)
    if left == right == 1:  # pairs of one-digit numbers have a rule of their own: see _sum
        right = 2
    a, b, c = number(rng, left), number(rng, right), number(rng, rng.randint(1, 8))
    sign, english, chinese = OPERATORS[operator]
    word = rng.choice((f"{a}{chinese}{b}", f"{a} {sign} {b}") if zh else (f"{a} {english} {b}", f"{a} {sign} {b}"))
    f, g = rng.sample(WORDS["food"], 2)
    template = rng.choice(NUMBERS_ZH if zh else NUMBERS)
    return _fill(rng, world, template, a=a, b=b, c=c, e=f"{a}{operator}{b}", w=word, f=f, g=g)


def _names(rng: random.Random, world: World, zh: bool) -> str:
    relation = rng.choice(list(CHINESE_RELATIONS))
    return _fill(rng, world, rng.choice(NAMES_ZH if zh else NAMES), q=relation, z=CHINESE_RELATIONS[relation])


def _sum(rng: random.Random, world: World, pair: tuple[int, str, int], zh: bool) -> str:
    a, operator, b = pair
    c = result(a, operator, b)
    if not zh and min(a, b, c) > 1 and rng.random() < 0.15:
        story = STORIES["+-*".index(operator)]
        if operator == "-":  # told from the larger number: c - b = a there
            a, c = c, a
        return _fill(rng, world, story, a=a, b=b, c=c, f=rng.choice(("apples", "nuts", "eggs", "beans")))
    sign, english, chinese = OPERATORS[operator]
    template = rng.choice(SUMS_ZH if zh else SUMS)
    return template.format(a=a, b=b, c=c, s=rng.choice((sign, operator)), w=chinese if zh else english)


def _entity(rng: random.Random, world: World, zh: bool) -> str:
    """What the table says of one entity, and one of it asked for: the answer stands a few words above."""
    kind = rng.choice(list(RELATIONS))
    name = rng.choice(world.train[kind])
    row = world.table[name]
    relation, value = rng.choice(list(row.items()))
    story = (ENTITIES_ZH if zh else ENTITIES)[kind].format(x=name, **row)
    template = rng.choice(QUESTIONS_ZH if zh else QUESTIONS)
    return story + "\n" + template.format(x=name, q=relation, z=CHINESE_RELATIONS[relation], v=value)
