"""The witness for the published reader is tiktoken itself, set up as tokenization_kimi.py in the Kimi folders does."""

import base64
import json
import random

import pytest
import tiktoken
from hypothesis import given
from hypothesis import strategies as st
from tiktoken.load import load_tiktoken_bpe
from tokenizers import Tokenizer as HuggingFaceTokenizer

from moonlet.data import stdlib_text, tiktoken_file
from moonlet.data.bpe import SINGLE_BYTES
from moonlet.data.tokenizer import PUBLISHED_PATTERN, SPECIALS, Tokenizer, train
from moonlet.errors import InputError

CHINESE = "月亮很小，星星很多。一只小猫在河边看月亮，它想知道月亮有多远。第3个故事：１２３，〇是零。"


@pytest.fixture(scope="module")
def trained():
    numbers = " ".join(str(n) for n in range(3000))
    return train([*stdlib_text.documents(300_000), CHINESE * 8, numbers * 3], 4096, PUBLISHED_PATTERN)


@pytest.fixture(scope="module")
def published(trained, tmp_path_factory):
    """A folder as the Kimi repositories have it, single bytes in GPT-2's order, and with tokens that no merge makes."""
    folder = tmp_path_factory.mktemp("published")
    order = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    single = [bytes([byte]) for byte in [*order, *(set(range(256)) - set(order))]]
    without_merges = [b" zzzqqq", b"~!~!~!", "龘靐齉".encode(), b"qzjx", "囍".encode()[:2] + b"!"]
    ranks = [*single, *trained.ranks[256:2000], *without_merges, *trained.ranks[2000:]]
    lines = [f"{base64.b64encode(token).decode()} {rank}\n" for rank, token in enumerate(ranks)]
    (folder / "tiktoken.model").write_text("".join(lines))
    first = len(ranks)
    names = {0: "[BOS]", 1: "[EOS]", 2: "<|im_end|>", 10: "<|im_system|>", 22: "<think>", 254: "[UNK]", 255: "[PAD]"}
    # Kimi Linear's reader takes 258 where its model has rows for 256.
    added = {str(first + n): {"content": name, "special": n != 22} for n, name in (names | {257: "[EXTRA]"}).items()}
    config = {"added_tokens_decoder": added, "bos_token": "[BOS]", "tokenizer_class": "TikTokenTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def witness(published):
    ranks = load_tiktoken_bpe(str(published / "tiktoken.model"))
    added = json.loads((published / "tokenizer_config.json").read_text())["added_tokens_decoder"]
    ids = range(len(ranks), len(ranks) + 256)
    special = {added.get(str(n), {"content": f"<|reserved_token_{n}|>"})["content"]: n for n in ids}
    return tiktoken.Encoding("kimi", pat_str=PUBLISHED_PATTERN, mergeable_ranks=ranks, special_tokens=special)


@pytest.fixture(scope="module")
def loaded(published):
    return Tokenizer.load(published)


@pytest.fixture(scope="module")
def converted(loaded, tmp_path_factory):
    folder = tmp_path_factory.mktemp("converted")
    loaded.save(folder)
    return folder


@pytest.fixture(scope="module")
def hugging_face(converted):
    engine = HuggingFaceTokenizer.from_file(str(converted / "tokenizer.json"))
    for token in json.loads((converted / "tokenizer.json").read_text())["added_tokens"]:
        assert engine.token_to_id(token["content"]) == token["id"]
    engine.encode_special_tokens = True  # text that spells a special token is text, as in `Tokenizer.encode`
    return engine


SCALARS = st.characters(exclude_categories=["Cs"])
WORDS = ["I'll", "DON'T", "we'Ve", "it'ſ", "月亮", "々", "ー", "한국어", "e\u0301", "\u0301\u0302", "🙂", "👩\u200d🔬"]
WORDS += ["1", "12", "123", "1234", "12,345.67", "٣٤٥٦", "½", "Ⅷ", "ǅ", "camelCase", "HTTPServer", " zzzqqq", "~!~!~!"]
WORDS += ["龘靐齉", "qzjx", "\n", "\r\n", "  ", "\t", "\u3000", "\x1c", "\x85", " " * 200, "-" * 90, "<think>", "[BOS]"]
ANY_TEXT = st.one_of(
    st.text(SCALARS),
    st.lists(st.one_of(st.sampled_from(WORDS), st.text(SCALARS, max_size=4)), max_size=14).map("".join),
    st.text(st.sampled_from(" \t\n\r\x0b\x85aA'sL1月.\u0301"), max_size=200),
)


@given(text=ANY_TEXT)
def test_ids_equal_those_of_the_published_encoder_and_of_hugging_face(loaded, witness, hugging_face, text):
    ids = loaded.encode(text)
    assert ids == witness.encode(text, disallowed_special=())
    assert ids == hugging_face.encode(text, add_special_tokens=False).ids
    assert loaded.decode(ids) == text


@given(data=st.data())
def test_ids_are_equal_in_text_made_of_tokens(loaded, witness, hugging_face, data):
    tokens = data.draw(st.lists(st.sampled_from(loaded.ranks), max_size=20))
    text = b"".join(tokens).decode("utf-8", "replace")
    assert loaded.encode(text) == witness.encode(text, disallowed_special=())
    assert loaded.encode(text) == hugging_face.encode(text, add_special_tokens=False).ids


def test_special_tokens_follow_the_ranks(loaded, witness, converted):
    first = len(loaded.ranks)
    assert loaded.vocab_size == first + 256 == witness.n_vocab
    assert loaded.special == {name: witness.encode_single_token(name) for name in witness.special_tokens_set}
    assert loaded.special["[PAD]"] == first + 255 and loaded.special[f"<|reserved_token_{first + 3}|>"] == first + 3
    assert loaded.decode([first + 22, *loaded.encode("<think>")]) == "<think><think>"
    assert Tokenizer.load(converted).special == loaded.special


def test_model_to_json_to_model(published, loaded, converted, tmp_path):
    again = Tokenizer.load(converted)
    assert (again.ranks, again.special, again.pattern) == (loaded.ranks, loaded.special, PUBLISHED_PATTERN)
    again.save_tiktoken(tmp_path, chat_template="{{ messages }}")
    assert (tmp_path / "tiktoken.model").read_bytes() == (published / "tiktoken.model").read_bytes()
    assert (tmp_path / "chat_template.jinja").read_text() == "{{ messages }}"
    back = Tokenizer.load(tmp_path)
    assert (back.ranks, back.special) == (loaded.ranks, loaded.special)
    back.save(tmp_path / "json")
    assert (tmp_path / "json" / "tokenizer.json").read_bytes() == (converted / "tokenizer.json").read_bytes()


def test_a_vocabulary_trained_here_reads_back(trained, tmp_path):
    trained.save_tiktoken(tmp_path)
    back = Tokenizer.load(tmp_path)
    assert (back.ranks, back.special, back.vocab_size) == (trained.ranks, trained.special, 4096)
    assert load_tiktoken_bpe(str(tmp_path / "tiktoken.model")) == {token: n for n, token in enumerate(trained.ranks)}
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert (config["bos_token"], config["pad_token"]) == ("[BOS]", "[PAD]")
    assert [entry["content"] for entry in config["added_tokens_decoder"].values()] == list(SPECIALS)
    assert sum(trained.decode([n]).isdigit() and len(trained.decode([n])) == 3 for n in range(256, 4080)) > 100


def test_another_pattern_cannot_be_written(tmp_path):
    digits = train(["x"], 272)
    with pytest.raises(InputError, match="published pattern"):
        digits.save_tiktoken(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("unit", [" ", " \n", "a", "A", "月", "\u3000", "\u0301", "!"])
def test_a_million_of_one_kind_is_encoded(loaded, witness, unit):
    part = unit * (25_000 // len(unit))  # the published encoder cuts here
    assert loaded.encode(part * 40) == 40 * witness.encode_ordinary(part)
    assert loaded.decode(loaded.encode(part * 40 + "x")) == part * 40 + "x"


def test_tokenizer_json_goes_first(published, trained, tmp_path):
    (tmp_path / "tiktoken.model").write_bytes((published / "tiktoken.model").read_bytes())
    trained.save(tmp_path)
    assert Tokenizer.load(tmp_path).ranks == trained.ranks


GOOD = [base64.b64encode(token) + b" %d" % rank for rank, token in enumerate([*SINGLE_BYTES, b"ab"])]
CONFIG = {"added_tokens_decoder": {"257": {"content": "[BOS]"}, "512": {"content": "[PAD]"}}}


def write(folder, lines=GOOD, config=CONFIG):
    (folder / "tiktoken.model").write_bytes(b"\n".join(lines))
    if config is not None:
        (folder / "tokenizer_config.json").write_text(config if isinstance(config, str) else json.dumps(config))


def test_blank_lines_order_and_line_ends_do_not_matter(tmp_path):
    write(tmp_path, [b"", *(line + b"\r" for line in reversed(GOOD)), b"", b""])
    loaded = Tokenizer.load(tmp_path)
    assert loaded.ranks == [*SINGLE_BYTES, b"ab"] and loaded.special["[PAD]"] == 512


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"YWI= 256 1", r"line 257: 3 fields"),
        (b"YWI=", r"line 257: 1 fields"),
        (b"YW*= 256", r"line 257: 'YW\*=' is not base64"),
        (b"YWI 256", r"line 257: 'YWI' is not base64"),
        (b"\xff\xfe 256", r"line 257: '\\xff\\xfe' is not base64"),
        (b"\x00" * 5000, r"line 257: 1 fields"),
        (b"= 256", r"line 257: '=' is not base64"),
        (b"YWI= -1", r"line 257: rank '-1' is not a whole number"),
        (b"YWI= 2.5", r"line 257: rank '2\.5' is not"),
        (b"YWI= 0x100", r"line 257: rank '0x100' is not"),
        (b"YWI= " + b"9" * 5000, r"line 257: rank '9{40}'\.\.\. is not"),
        (b"YWI= 300", r"line 257: rank 300, but 257 tokens have the ranks 0\.\.256"),
        (b"YWI= 65", r"line 257: rank 65 stands on line 66 too"),
        (b"QQ== 256", r"line 257: token b'A' stands on line 66 too"),
        (base64.b64encode(b"a" * 513) + b" 256", r"line 257: a token of 513 bytes"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, reason):
    write(tmp_path, [*GOOD[:256], line])
    with pytest.raises(InputError, match=rf"tiktoken\.model {reason}"):
        Tokenizer.load(tmp_path)


def test_a_missing_single_byte_is_named(tmp_path):
    lines = [line for line in GOOD if not line.startswith(b"QQ== ")]
    write(tmp_path, [line if not line.endswith(b" 256") else b"YWI= 65" for line in lines])
    with pytest.raises(InputError, match=r"tiktoken\.model: 1 of the 256 single bytes, b'A' first"):
        Tokenizer.load(tmp_path)


def test_an_absurd_size_is_refused_unread(tmp_path):
    write(tmp_path)
    with (tmp_path / "tiktoken.model").open("r+b") as file:
        file.truncate(1 << 40)  # a hole: nothing on the disk
    with pytest.raises(InputError, match=r"tiktoken\.model has 1,099,511,627,776 bytes, over 16,777,216"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (None, r"cannot read .*tokenizer_config\.json"),
        ("{", r"tokenizer_config\.json: "),
        ("[" * 100_000, r"tokenizer_config\.json: "),
        ("[]", r"no added_tokens_decoder"),
        ({}, r"no added_tokens_decoder"),
        ({"added_tokens_decoder": {}}, r"no added_tokens_decoder"),
        ({"added_tokens_decoder": {"256": {"content": "x"}}}, r"id '256' .* is not one of the 256 after 257 ranks"),
        ({"added_tokens_decoder": {"515": {"content": "x"}}}, r"id '515' .* is not one of the 256 after 257 ranks"),
        ({"added_tokens_decoder": {"-1": {"content": "x"}}}, r"id '-1' "),
        ({"added_tokens_decoder": {"٣٠٠": {"content": "x"}}}, r"id '٣٠٠' "),
        ({"added_tokens_decoder": {"257": "x"}}, r"id 257 in added_tokens_decoder has no printable content"),
        ({"added_tokens_decoder": {"257": {"content": ""}}}, r"id 257 in"),
        ({"added_tokens_decoder": {"257": {"content": "\ud800"}}}, r"id 257 in"),
        ({"added_tokens_decoder": {n: {"content": "x"} for n in ("257", "258")}}, r"two special tokens have one name"),
        ({"added_tokens_decoder": {"257": {"content": "<|reserved_token_300|>"}}}, r"two special tokens have one name"),
        (CONFIG | {"num_reserved_special_tokens": True}, r"num_reserved_special_tokens is True"),
        (CONFIG | {"num_reserved_special_tokens": 0}, r"num_reserved_special_tokens is 0"),
        (CONFIG | {"num_reserved_special_tokens": 10**9}, r"num_reserved_special_tokens is 1000000000"),
        (CONFIG | {"num_reserved_special_tokens": 16}, r"id '512' .* is not one of the 16 after 257 ranks"),
    ],
)
def test_a_bad_config_is_named(tmp_path, config, reason):
    write(tmp_path, config=config)
    with pytest.raises(InputError, match=reason):
        Tokenizer.load(tmp_path)


def test_a_file_cut_short_is_noticed_by_its_config(tmp_path):
    write(tmp_path, [*GOOD, b"YWJj 257", b"YWJjZA== 258", b"YmM= 259"])
    with pytest.raises(InputError, match=r"id '257' .* is not one of the 256 after 260 ranks"):
        Tokenizer.load(tmp_path)


def test_damage_anywhere_is_an_input_error_or_another_vocabulary(tmp_path):
    rng = random.Random(3)
    whole = b"\n".join(GOOD)
    config = json.dumps(CONFIG)
    for _ in range(120):
        name, content = rng.choice([("tiktoken.model", whole), ("tokenizer_config.json", config.encode())])
        write(tmp_path)
        place, length, more = rng.randrange(len(content)), rng.choice([0, 1, 1, 9, 400]), rng.choice([0, 1, 3])
        (tmp_path / name).write_bytes(content[:place] + rng.randbytes(more) + content[place + length :])
        try:
            loaded = Tokenizer.load(tmp_path)
        except InputError as error:
            assert name in str(error)
        else:
            assert len(set(loaded.ranks)) == len(loaded.ranks) and set(SINGLE_BYTES) <= set(loaded.ranks)
            assert len(loaded.special) == tiktoken_file.RESERVED
