import json
import random
import shutil
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as HuggingFaceTokenizer

from moonlet.data import bpe, stdlib_text, tokenizer
from moonlet.data.tokenizer import PATTERN, SPECIALS, Tokenizer, train
from moonlet.errors import InputError

CHINESE = "月亮很小，星星很多。一只小猫在河边看月亮，它想知道月亮有多远。第3个故事：１２３，〇是零。"


@dataclass(frozen=True)
class Segment:
    text: str
    special: bool = False
    loss: bool = False


@pytest.fixture(scope="module")
def texts():
    return [*stdlib_text.documents(200_000), CHINESE * 8]


@pytest.fixture(scope="module")
def trained(texts):
    return train(texts, 1024)


@pytest.fixture(scope="module")
def folder(trained, tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer")
    trained.save(path)
    return path


@pytest.fixture(scope="module")
def hugging_face(folder):
    engine = HuggingFaceTokenizer.from_file(str(folder / "tokenizer.json"))
    engine.encode_special_tokens = True  # text that spells a special token is text, as in `Tokenizer.encode`
    return engine


@pytest.fixture(scope="module")
def tangled(tmp_path_factory):
    """A vocabulary of overlapping letter runs, where an engine that breaks ties otherwise would show: with its twin."""
    rng = random.Random(5)
    words = ("".join(rng.choices("ab", k=rng.randint(1, 14))) for _ in range(2000))
    trained = train([" ".join(words)], 700)
    path = tmp_path_factory.mktemp("tangled")
    trained.save(path)
    return trained, HuggingFaceTokenizer.from_file(str(path / "tokenizer.json"))


SCALARS = st.characters(exclude_categories=["Cs"])
SNIPPETS = st.sampled_from(
    [
        "def f(x):\n    return x",
        "  ",
        "\t",
        "\r\n",
        "\n\n",
        "'s",
        "12,345.67",
        "月亮",
        "々",
        "ー",
        "e\u0301",
        "\u200d",
        "🙂",
    ]
    + ["\x00", "\x1b[0m", "\x85", "\u2028", "\u3000", "\ufeff", "\u00a0", "<|open|>", "[EOS]", "Ⅷ", "½", "٣", "Ǆ", "ß"]
    + [" " * 63, " " * 64, " " * 65, "-" * 40, "\\u1234", "{'a': [1]}", "http://a.b/c?d=e&f", "x" * 80]
)
ANY_TEXT = st.one_of(
    st.text(SCALARS),
    st.lists(st.one_of(SNIPPETS, st.text(SCALARS, max_size=4)), max_size=12).map("".join),
    st.text(st.sampled_from(" \t\n\r\x0b\x0c\x85aA1月.\u0301"), max_size=200),
)


@given(text=ANY_TEXT)
def test_ids_equal_those_of_hugging_face(trained, hugging_face, text):
    assert trained.encode(text) == hugging_face.encode(text, add_special_tokens=False).ids


@given(text=st.text("ab ", max_size=60))
def test_ids_equal_those_of_hugging_face_where_merges_compete(tangled, text):
    ours, theirs = tangled
    assert ours.encode(text) == theirs.encode(text, add_special_tokens=False).ids


@given(text=ANY_TEXT)
def test_round_trip(trained, text):
    ids = trained.encode(text)
    assert trained.decode(ids) == text
    assert all(0 <= number < trained.vocab_size - len(SPECIALS) for number in ids)


def test_ids_are_bytes_then_merges_then_specials(trained):
    assert trained.vocab_size == 1024
    assert trained.ranks[:256] == [bytes([byte]) for byte in range(256)]
    assert [trained.special[name] for name in SPECIALS] == list(range(1008, 1024))
    assert len(set(trained.ranks)) == 1008
    assert trained.encode("") == [] and trained.decode([]) == ""


def test_a_token_is_the_encoding_of_its_own_bytes(trained):
    for rank, token in enumerate(trained.ranks):
        assert trained._encoding._core_bpe.encode_single_piece(token) == [rank]
        assert len(bpe.last_parts(token, {other: n for n, other in enumerate(trained.ranks[:rank])})) <= 2


def test_digits_stand_alone_and_words_take_their_space(trained):
    def split(text: str) -> list[str]:
        return [trained.decode([number]) for number in trained.encode(text)]

    assert split("1234") == list("1234")
    assert split(" 12") == [" ", "1", "2"]
    assert split("def self") == ["def", " self"]
    assert split("x\n        return") == ["x", "\n", "       ", " return"]


def test_text_that_spells_a_special_token_is_text(trained):
    for name in SPECIALS:
        ids = trained.encode(f"a{name}b")
        assert not set(ids) & set(trained.special.values())
        assert trained.decode(ids) == f"a{name}b"
        assert trained.pieces(ids) == [(f"a{name}b", False)]


def test_segments(trained):
    segments = [
        Segment("<|open|>", special=True),
        Segment("message"),
        Segment("<|sep|>", special=True, loss=True),
        Segment("<|open|>", loss=True),
        Segment(""),
    ]
    ids, loss = trained.encode_with_loss(segments)
    assert ids == trained.encode_segments(segments) == trained.encode_segments(iter(segments))
    text_ids = trained.encode("<|open|>")
    message = trained.encode("message")
    assert ids == [trained.special["<|open|>"], *message, trained.special["<|sep|>"], *text_ids]
    assert loss == [0] * (1 + len(message)) + [1] * (1 + len(text_ids))
    assert trained.decode(ids) == "<|open|>message<|sep|><|open|>"
    assert trained.pieces(ids) == [("<|open|>", True), ("message", False), ("<|sep|>", True), ("<|open|>", False)]
    with pytest.raises(InputError, match=r"'<\|close' is not a special token"):
        trained.encode_segments([Segment("<|close", special=True)])


def test_cached_segments_stay_right(trained, monkeypatch):
    monkeypatch.setattr(tokenizer, "CACHED_SEGMENTS", 3)
    trained._cache.clear()
    words = [Segment(f"word {n} " * (1 + n % 12)) for n in range(40)]
    for _ in range(2):
        ids = trained.encode_segments(words)
        assert ids == [number for word in words for number in trained.encode(word.text)]
        assert len(trained._cache) <= 3
        ids.append(-1)  # the caller's list is its own
    single = trained.encode_segments(words[:1])
    single.clear()
    assert trained.encode_segments(words[:1]) == trained.encode(words[0].text)


@given(data=st.data())
def test_stream_gives_what_decode_gives(trained, data):
    ids = data.draw(st.lists(st.integers(0, trained.vocab_size - 1) | st.integers(0x80, 0xFF), max_size=40))
    stream = trained.stream()
    pushed = [stream.push(number) for number in ids]
    pieces = [piece for part in pushed for piece in part] + stream.flush()
    assert "".join(text for text, _ in pieces) == trained.decode(ids)
    merged: list[tuple[str, bool]] = []
    for text, special in pieces:
        if merged and not special and not merged[-1][1]:
            merged[-1] = (merged[-1][0] + text, False)
        else:
            merged.append((text, special))
    assert merged == trained.pieces(ids)
    assert stream.flush() == []


def test_stream_holds_back_an_unfinished_character(trained):
    stream = trained.stream()
    assert [stream.push(byte) for byte in "月".encode()] == [[], [], [("月", False)]]
    assert [stream.push(byte) for byte in b"\xf0\x9f"] == [[], []]
    assert stream.push(trained.special["<|sep|>"]) == [("\ufffd", False), ("<|sep|>", True)]
    assert stream.push(0xE6) == []
    assert stream.push(ord("x")) == [("\ufffdx", False)]  # now definitely invalid
    assert stream.push(0xFF) == [("\ufffd", False)]
    assert stream.push(0xE6) == []
    assert stream.flush() == [("\ufffd", False)]
    assert [stream.push(byte) for byte in "é".encode()] == [[], [("é", False)]]


@pytest.mark.parametrize("number", [-1, 1024, 10**6])
def test_an_id_outside_the_vocabulary_is_refused(trained, number):
    with pytest.raises(InputError, match=r"outside 0\.\.1023"):
        trained.decode([number])
    with pytest.raises(InputError):
        trained.stream().push(number)


def test_lone_surrogates_become_the_replacement_character(trained):
    assert trained.decode(trained.encode("a\ud800b")) == "a\ufffdb"


def test_save_and_load(trained, tmp_path):
    (tmp_path / "other.txt").write_text("stays")
    trained.save(tmp_path, chat_template="{{ messages }}")
    names = ["chat_template.jinja", "other.txt", "tokenizer.json", "tokenizer_config.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert (tmp_path / "chat_template.jinja").read_text() == "{{ messages }}"
    loaded = Tokenizer.load(str(tmp_path))
    assert (loaded.ranks, loaded.special, loaded.pattern) == (trained.ranks, trained.special, PATTERN)
    before = (tmp_path / "tokenizer.json").read_bytes()
    loaded.save(tmp_path)
    assert (tmp_path / "tokenizer.json").read_bytes() == before


def test_auto_tokenizer_gives_the_same_ids(trained, folder, texts):
    transformers = pytest.importorskip("transformers")
    auto = transformers.AutoTokenizer.from_pretrained(str(folder))
    assert len(auto) == trained.vocab_size
    assert (auto.bos_token_id, auto.eos_token_id, auto.pad_token_id, auto.unk_token_id) == tuple(
        trained.special[name] for name in ("[BOS]", "[EOS]", "[PAD]", "[UNK]")
    )
    for text in [*texts[:40], CHINESE, " ,.!? \n\n\t 's n't\u0301", "a\x00b"]:
        ids = auto(text, split_special_tokens=True)["input_ids"]
        assert ids == trained.encode(text)
        assert auto.decode(ids) == text
    marked = "<|open|>a<|close|>[EOS]"
    segments = [Segment("<|open|>", True), Segment("a"), Segment("<|close|>", True), Segment("[EOS]", True)]
    assert auto(marked)["input_ids"] == trained.encode_segments(segments)
    assert auto.convert_tokens_to_ids(list(SPECIALS)) == [trained.special[name] for name in SPECIALS]


def damage(saved, case):
    model = saved["model"]
    if case == "other model":
        del model["merges"]
    elif case == "gap":
        model["vocab"][list(model["vocab"])[-1]] += 1
    elif case == "two merges swapped":
        model["merges"][0], model["merges"][1] = model["merges"][1], model["merges"][0]
    elif case == "merge too few":
        model["merges"].pop()
    elif case == "a token without its merge":
        model["vocab"] = {text: rank for rank, text in enumerate([*model["vocab"], "zqzqzq"])}
        for token in saved["added_tokens"]:
            token["id"] += 1
    elif case == "a merge of other parts":
        left, right = next(pair for pair in model["merges"] if len(pair[0]) > 1)
        place = model["merges"].index([left, right])
        model["merges"][place] = [left[0], left[1:] + right]
    elif case == "a token of 600 bytes":
        model["vocab"] = {text: rank for rank, text in enumerate([*model["vocab"], "z" * 600])}
    elif case == "one name twice":
        saved["added_tokens"][1]["content"] = saved["added_tokens"][0]["content"]
    elif case == "merge too many":
        model["merges"].append(model["merges"][0])
    elif case == "specials elsewhere":
        saved["added_tokens"][0]["id"] = 5
    elif case == "bad pattern":
        saved["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = "("
    elif case == "vocab a list":
        model["vocab"] = []
    elif case == "not byte level":
        model["vocab"] = {f"▁{text}": rank for text, rank in model["vocab"].items()}
    return saved


@pytest.mark.parametrize(
    "case",
    ["other model", "gap", "two merges swapped", "merge too many", "specials elsewhere", "bad pattern", "vocab a list"]
    + ["not byte level", "merge too few", "a token without its merge", "a merge of other parts", "a token of 600 bytes"]
    + ["one name twice"],
)
def test_a_foreign_or_damaged_file_is_refused(folder, tmp_path, case):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(damage(json.loads(path.read_text()), case)))
    with pytest.raises(InputError, match=r"tokenizer\.json is not a tokenizer that moonlet wrote"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "[" * 100_000, b"\xff\xfe"])
def test_a_torn_file_is_refused(tmp_path, content):
    data = content if isinstance(content, bytes) else content.encode()
    (tmp_path / "tokenizer.json").write_bytes(data)
    with pytest.raises(InputError, match=r"tokenizer\.json"):
        Tokenizer.load(tmp_path)


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"cannot read .*tokenizer\.json"):
        Tokenizer.load(tmp_path / "nowhere")


def test_training_is_deterministic_and_checks_its_size(texts):
    few = texts[:40]
    assert train(few, 400).ranks == train(iter(few), 400).ranks
    assert train(["x"], 272).vocab_size == 272
    with pytest.raises(InputError, match="vocab_size 271 is below 272"):
        train(few, 271)
    with pytest.raises(InputError, match="vocab_size 400 is more than the text gives"):
        train(["ab"], 400)


@pytest.mark.parametrize("unit", [" ", " \n", "a", "月", "\u3000"])
def test_a_million_of_one_kind_is_encoded(trained, unit):
    text = unit * 1_000_000 + "x"
    assert trained.decode(trained.encode(text)) == text
