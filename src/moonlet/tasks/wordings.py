"""How the tasks are asked: plain templates, for training and, never seen in training, for the "unseen" split.

Each table is {"train": templates, "unseen": templates}. A template is Chinese if it has a Han character. The order of
two operands in the question is always the order of the sum. Around a template may stand an opening and a closing, which
are held out in the same way.
"""

import random
import re

HAN = re.compile(r"[\u3400-\u9fff]")

# {a} {op} {b} apart, or {e}: "12 + 34", "12+34", "12 plus 34".
ARITHMETIC = {
    "train": (
        "{e}",
        "{e} = ?",
        "{e}?",
        "What is {e}?",
        "Compute {e}.",
        "Calculate {e}.",
        "Work out {e}.",
        "Find {e}.",
        "Please compute {e}.",
        "How much is {e}?",
        "Tell me {e}.",
        "I need {e}.",
        "Give me {e}.",
        "Can you do {e}?",
        "Could you compute {e} for me?",
        "Solve {e}.",
        "Evaluate {e}.",
        "What does {e} make?",
        "What does {e} give?",
        "The value of {e}?",
        "What is the result of {e}?",
        "Help me with {e}.",
        "My homework says {e}.",
        "Quick: {e}",
        "Question: {e}",
        "Problem: {e}.",
        "Answer this: {e}",
        "I want to know {e}.",
        "Do you know {e}?",
        "Let me have {e}.",
        "Say {e} as one number.",
        "Write {e} as one number.",
        "My teacher asks {e}.",
        "The bill is {e}.",
        "We need {e} today.",
        "Do {e} now.",
        "And {e}?",
        "Next: {e}",
        "How many is {e}?",
        "Please give the answer to {e}.",
        "It says {e} here. So?",
        "{e}, what is that?",
        "{e} is what?",
        "I have to pay {e}. How much?",
        "Now {e}, please.",
        "Take {a} {op} {b}.",
        "Start with {a}, then {op} {b}.",
        "Numbers {a} and {b}, operator {op}.",
        "Operator {op}, numbers {a} and {b}.",
        "Use {op} on {a} and {b}.",
        "With {a} and {b}, do {op}.",
        "First {a}, then {op}, then {b}.",
        "m is {a} and n is {b}. What is m {op} n?",
        "If m is {a} and n is {b}, find m {op} n.",
        "I have {a}. Now {op} {b}.",
        "{a}, {op} {b}. What is it?",
        "Apply {op} to {a} and {b}.",
        "Left {a}, right {b}, sign {op}.",
        "The first number is {a}. The second is {b}. What is first {op} second?",
        "Put {op} between {a} and {b}.",
        "{e}等于多少？",
        "计算{e}。",
        "请算{e}。",
        "{e}是多少？",
        "帮我算一下{e}。",
        "我想知道{e}。",
        "算一算：{e}",
        "先是{a}，再{op}{b}。",
        "{e}，等于？",
        "{a}和{b}，用{op}。",
    ),
    "unseen": (
        "Any idea what {e} comes to?",
        "Reply with {e} worked out.",
        "What do I get for {e}?",
        "Figure out {e} for me.",
        "On my paper: {e}. And the answer?",
        "Here is one for you: {e}.",
        "My friend says {e} is hard. What is it?",
        "{e} equals what?",
        "I must know {e} before lunch.",
        "Can somebody tell me what {e} is?",
        "This line reads {e}, so give its value.",
        "You get numbers {a} and {b} and do {op}.",
        "Begin at {a} and {op} {b}.",
        "Enter {a}, press {op}, enter {b}. What shows?",
        "请告诉我{e}的结果。",
        "{e}得几？",
    ),
}

# {q}: a noun phrase such as "the pet of the mayor of Lomi"; {w}: who or what.
LOOKUP = {
    "train": (
        "{w} is {q}?",
        "Tell me {q}.",
        "{q}?",
        "I need {q}.",
        "Give me {q}.",
        "Find {q}.",
        "Look up {q}.",
        "Please find {q}.",
        "Do you know {q}?",
        "Can you tell me {q}?",
        "Can you find {q}?",
        "I want to know {q}.",
        "I am looking for {q}.",
        "Question: {w} is {q}?",
        "Name {q}.",
        "Say {q}.",
        "Could you look up {q}?",
        "Help me find {q}.",
        "Let me know {q}.",
        "So {w} is {q}?",
        "My friend asks: {w} is {q}?",
        "For my notes: {q}.",
        "Quick question: {w} is {q}?",
        "Check {q} for me.",
        "Get {q}, please.",
        "{q}, please.",
        "I forgot {q}.",
        "I wonder {w} {q} is.",
        "Tell me {w} {q} is.",
        "Do you know {w} {q} is?",
        "Search for {q}.",
        "Read me {q}.",
        "One thing: {w} is {q}?",
        "We need {q}.",
        "Show me {q}.",
        "And {w} is {q}?",
        "Just {q}.",
        "Next: {q}.",
        "I would like {q}.",
        "Write {q}.",
        "{q}是{w}？",
        "请问{q}是{w}？",
        "请查{q}。",
        "告诉我{q}。",
        "我想知道{q}。",
        "帮我找{q}。",
        "你知道{q}吗？",
        "查一下{q}。",
    ),
    "unseen": (
        "Any idea {w} {q} is?",
        "Could somebody name {q}?",
        "What can you say about {q}?",
        "My list has no entry for {q}. Fill it in.",
        "Here is what I want: {q}.",
        "Figure out {w} {q} is.",
        "I must have {q} before lunch.",
        "{q} is {w}?",
        "Reply with {q}.",
        "I keep asking {w} {q} is.",
        "Someone wants {q} from you.",
        "Remind me {w} {q} is.",
        "能告诉我{q}吗？",
        "我需要{q}。",
    ),
}
# Training also asks for the last relation in words of its own; {x} is the noun phrase before it.
LOOKUP_OWN = {
    "mayor": "Who is mayor of {x}?",
    "river": "Which river runs through {x}?",
    "animal": "Which animal lives in {x}?",
    "pet": "Which pet does {x} have?",
    "friend": "Who is a friend of {x}?",
    "home": "Where is the home of {x}?",
    "job": "What job does {x} have?",
    "color": "What color is {x}?",
    "food": "What food does {x} eat?",
    "owner": "Who is owner of {x}?",
    "material": "Of what material is {x}?",
    "place": "In which place is {x}?",
}

# {s}: a total to start from.
RECEIPTS = {
    "train": (
        "Add up my receipts.",
        "Sum my receipts, please.",
        "What do my receipts come to?",
        "Total my receipts.",
        "Please total all receipts.",
        "How much did I spend? Check my receipts.",
        "Go through my receipts and add them.",
        "I need the total of my receipts.",
        "Count up the receipts.",
        "Tell me the sum of my receipts.",
        "Can you add my receipts?",
        "Receipts: total?",
        "Add all the receipts together.",
        "Give me the receipt total.",
        "Find the total of the receipts.",
        "My receipts are in the box. Add them.",
        "Work out what I paid in all.",
        "Read each receipt and add it.",
        "All receipts, one total, please.",
        "Could you sum up the receipts?",
        "请把我的收据加起来。",
        "我的收据一共多少？",
        "算一下收据总数。",
        "I already have {s}. Add up my receipts.",
        "Start at {s} and add my receipts.",
        "Begin with {s}, then add every receipt.",
        "My total so far is {s}. Add the receipts.",
        "Add my receipts to {s}.",
        "So far {s}. Now the receipts.",
        "Last week I had {s}. Add the new receipts.",
        "The book says {s}. Add all receipts.",
        "Put my receipts on top of {s}.",
        "{s} plus all my receipts?",
        "From {s}, go on with the receipts.",
        "I spent {s} before. What is it with the receipts?",
        "Old total {s}. New total with receipts?",
        "Please add the receipts to my {s}.",
        "We had {s}. Add every receipt.",
        "With {s} to start, total my receipts.",
        "Sum: {s} and then the receipts.",
        "There is {s} on the list. Add my receipts.",
        "Take {s} and add each receipt.",
        "Already paid {s}. Count the receipts too.",
        "我已经有{s}。请加上收据。",
        "从{s}开始，加上所有收据。",
        "先有{s}，再加收据，一共多少？",
    ),
    "unseen": (
        "Here are my receipts. What is the grand total?",
        "I want one number for all receipts.",
        "Figure out the sum over my receipts.",
        "Receipts are waiting. Add each of them up.",
        "What did everything cost? See the receipts.",
        "收据总共是多少？",
        "My purse shows {s}. Figure in the receipts.",
        "Count on from {s} with my receipts.",
        "Given {s}, what is the total after all receipts?",
        "Keep {s} in mind and add up the receipts.",
        "The first page ends with {s}. Add the receipts to it.",
        "原来是{s}，加上收据是多少？",
    ),
}

OPENINGS: dict[str, tuple[str, ...]] = {
    "train": ("Hi. ", "Hello. ", "Please help. ", "Hey. ", "OK. ", "Good morning. ", "I have a question. "),
    "unseen": ("Excuse me. ", "Good evening. ", "Sorry to bother you. "),
}
CLOSINGS: dict[str, tuple[str, ...]] = {
    "train": (" Thanks.", " Thank you.", " Please answer."),
    "unseen": (" Many thanks.", " Cheers."),
}
ZH_AROUND = {"train": ("你好。", "谢谢。"), "unseen": ("您好。", "多谢。")}


def is_chinese(text: str) -> bool:
    return HAN.search(text) is not None


def side(split: str) -> str:
    """Which wordings a split uses: "unseen" its own, the others those of training."""
    return "unseen" if split == "unseen" else "train"


def around(rng: random.Random, split: str, question: str) -> str:
    """`question`, one time in five with an opening and one time in seven with a closing."""
    zh, which = is_chinese(question), side(split)
    if rng.random() < 0.2:
        question = (ZH_AROUND[which][0] if zh else rng.choice(OPENINGS[which])) + question
    if rng.random() < 0.15:
        question += ZH_AROUND[which][1] if zh else rng.choice(CLOSINGS[which])
    return question
