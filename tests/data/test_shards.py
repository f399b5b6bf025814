import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moonlet.data import shards
from moonlet.data.shards import Loader, Rows, pack, row_order
from moonlet.errors import InputError

DOCUMENTS = st.lists(
    st.lists(st.tuples(st.integers(0, 0xFFFF), st.integers(0, 1)), max_size=24).map(
        lambda pairs: ([token for token, _ in pairs], [loss for _, loss in pairs])
    ),
    max_size=40,
)


def unpacked(rows: Rows) -> list[tuple[list[int], list[int]]]:
    """The documents of packed rows, by segment id."""
    found = []
    for tokens, segments, loss in zip(rows.tokens, rows.segments, rows.loss, strict=True):
        for segment in range(1, segments.max(initial=0) + 1):
            chosen = segments == segment
            found.append((tokens[chosen].tolist(), loss[chosen].tolist()))
    return found


def random_documents(count: int, seed: int = 0, longest: int = 512):
    rng = np.random.default_rng(seed)
    sizes = np.clip(rng.lognormal(4.8, 0.7, count).astype(int), 2, longest)
    return [(rng.integers(0, 2048, size).tolist(), rng.integers(0, 2, size).tolist()) for size in sizes]


@given(DOCUMENTS, st.integers(2, 24), st.integers(1, 4))
def test_packing_keeps_every_id_and_loss_exactly_once(documents, seq_len, open_rows):
    kept, shards.OPEN_ROWS = shards.OPEN_ROWS, open_rows
    try:
        rows = pack(documents, seq_len, split_long=True)
    finally:
        shards.OPEN_ROWS = kept
    expected = [
        (ids[start : start + seq_len], [0] + loss[start + 1 : start + seq_len])
        for ids, loss in documents
        for start in range(0, len(ids), seq_len)
    ]
    assert sorted(unpacked(rows)) == sorted(expected)
    assert rows.tokens.shape == rows.segments.shape == rows.loss.shape == (len(rows), seq_len)
    assert (rows.tokens.dtype, rows.segments.dtype, rows.loss.dtype) == (np.uint16, np.uint16, np.uint8)


@given(DOCUMENTS, st.integers(2, 24))
def test_segments_count_from_one_without_a_gap_and_padding_is_last(documents, seq_len):
    rows = pack(documents, seq_len, split_long=True)
    for tokens, segments, loss in zip(rows.tokens, rows.segments, rows.loss, strict=True):
        steps = np.diff(segments[segments > 0].astype(int))
        assert segments[0] == 1 and set(steps) <= {0, 1}
        padding = segments == 0
        assert not (padding[:-1] & ~padding[1:]).any()
        assert not tokens[padding].any() and not loss[padding].any()
        starts = np.flatnonzero(np.diff(segments.astype(int), prepend=0))
        assert not loss[starts].any()


def test_packing_is_deterministic_and_wastes_little():
    documents = random_documents(3000)
    first, again = pack(documents, 512), pack(documents, 512)
    for name in shards.DTYPES:
        assert (getattr(first, name) == getattr(again, name)).all()
    assert first.fill > 0.97
    lower_bound = -(-sum(len(ids) for ids, _ in documents) // 512)
    assert len(first) <= 1.03 * lower_bound + 2


def test_a_document_exactly_as_long_as_a_row_fills_it():
    rows = pack([([1, 2, 3, 4], [1, 1, 1, 1]), ([5, 6], [0, 1]), ([7, 8], [1, 1])], 4)
    assert rows.tokens.tolist() == [[1, 2, 3, 4], [5, 6, 7, 8]]
    assert rows.segments.tolist() == [[1, 1, 1, 1], [1, 1, 2, 2]]
    assert rows.loss.tolist() == [[0, 1, 1, 1], [0, 1, 0, 1]]
    assert rows.fill == 1.0 and rows.targets == 5
    assert pack([([1, 2, 3], [1, 1, 1]), ([4], [1])], 4).segments.tolist() == [[1, 1, 1, 2]]


@pytest.mark.parametrize(
    ("documents", "seq_len", "says"),
    [
        ([([1, 2, 3], [1, 1, 1])], 2, "document 0 has 3 tokens, more than seq_len 2"),
        ([([1, 2], [1])], 8, "document 0 has 2 ids and 1 loss marks"),
        ([([1], [1]), ([70000], [1])], 8, "document 1 has ids 70000..70000"),
        ([([-1], [1])], 8, "ids -1..-1"),
        ([], 1, "seq_len 1"),
    ],
)
def test_bad_documents_are_refused(documents, seq_len, says):
    with pytest.raises(InputError, match=says):
        pack(documents, seq_len)


def test_concatenate_joins_in_order_and_refuses_unequal_lengths():
    one, two = pack([([1, 2], [1, 1])], 4), pack([([3, 4, 5], [1, 1, 1])], 4)
    assert Rows.concatenate([two, one]).tokens.tolist() == [[3, 4, 5, 0], [1, 2, 0, 0]]
    with pytest.raises(InputError, match=r"lengths \[4, 8\]"):
        Rows.concatenate([one, pack([([1], [0])], 8)])
    with pytest.raises(InputError):
        Rows.concatenate([])


def test_save_and_load(tmp_path):
    rows = pack(random_documents(50), 512)
    rows.save(tmp_path / "train")
    rows.save(tmp_path / "train")
    loaded = Rows.load(tmp_path / "train")
    assert isinstance(loaded.tokens, np.memmap)
    for name in shards.DTYPES:
        assert (getattr(loaded, name) == getattr(rows, name)).all()
        assert getattr(loaded, name).dtype == getattr(rows, name).dtype
    loaded.save(tmp_path / "train")
    assert (Rows.load(tmp_path / "train").tokens == rows.tokens).all()
    pack([], 8).save(tmp_path / "empty")
    assert len(Rows.load(tmp_path / "empty")) == 0
    index = json.loads((tmp_path / "train" / "index.json").read_text())
    assert (index["rows"], index["seq_len"], index["targets"]) == (len(rows), 512, rows.targets)


@pytest.mark.parametrize("name", ["tokens.npy", "segments.npy", "loss.npy"])
def test_a_torn_changed_or_missing_shard_is_named(tmp_path, name):
    pack(random_documents(20), 512).save(tmp_path / "train")
    path = tmp_path / "train" / name
    data = path.read_bytes()
    path.write_bytes(data[:-1])
    with pytest.raises(InputError, match=rf"{name} has {len(data) - 1} bytes"):
        Rows.load(tmp_path / "train")
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(InputError, match=rf"{name} has changed"):
        Rows.load(tmp_path / "train")
    Rows.load(tmp_path / "train", verify=False)
    path.unlink()
    with pytest.raises(InputError, match=rf"cannot read .*{name}"):
        Rows.load(tmp_path / "train")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": "other"}', '{"format": "moonlet-rows-1", "rows": 1}'])
def test_a_damaged_index_is_named(tmp_path, text):
    (tmp_path / "index.json").write_text(text)
    with pytest.raises(InputError, match=r"index\.json is damaged"):
        Rows.load(tmp_path)
    with pytest.raises(InputError, match="cannot read"):
        Rows.load(tmp_path / "nowhere")


def test_pickled_arrays_are_never_read(tmp_path):
    pack([([1, 2], [0, 1])], 4).save(tmp_path / "train")
    path, index_path = tmp_path / "train" / "loss.npy", tmp_path / "train" / "index.json"
    np.save(path, np.array([{}], dtype=object), allow_pickle=True)
    index = json.loads(index_path.read_text())
    index["files"]["loss.npy"] = {"bytes": path.stat().st_size, "sha256": shards._sha256(path)}
    index_path.write_text(json.dumps(index))
    with pytest.raises(InputError, match=r"loss\.npy"):
        Rows.load(tmp_path / "train")


def test_row_order_is_pinned():
    # A change here would silently give every resumed run other data.
    assert row_order(0, 0, 8).tolist() == [3, 2, 1, 6, 0, 7, 4, 5]
    assert row_order(0, 1, 8).tolist() != [3, 2, 1, 6, 0, 7, 4, 5]
    assert row_order(1, 0, 8).tolist() != [3, 2, 1, 6, 0, 7, 4, 5]
    assert row_order(0, 0, 0).tolist() == []


@given(st.integers(0, 2**63), st.integers(0, 1000), st.integers(0, 200), st.integers(0, 5))
def test_row_order_is_a_permutation(seed, epoch, n, phase):
    order = row_order(seed, epoch, n, phase)
    assert sorted(order.tolist()) == list(range(n))
    assert (order == row_order(seed, epoch, n, phase)).all()


def numbered(count: int, first: int = 0) -> Rows:
    """Rows that hold their own number."""
    return pack([([first + n] * 2, [1, 1]) for n in range(count)], 2)


@given(st.integers(1, 30), st.integers(1, 12), st.integers(0, 99))
def test_each_epoch_visits_every_row_once(n, batch_rows, seed):
    loader = Loader(numbered(n), seed, batch_rows)
    steps = -(-3 * n // batch_rows)
    seen = np.concatenate([loader.batch(step)["tokens"][:, 0] for step in range(steps)])
    for epoch in range(3):
        assert sorted(seen[epoch * n : (epoch + 1) * n].tolist()) == list(range(n))


@given(st.data())
def test_any_step_gives_what_an_uninterrupted_run_gave(data):
    sizes = data.draw(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), min_size=1, max_size=3))
    phases = [(numbered(n, 100 * (place + 1)), steps) for place, (n, steps) in enumerate(sizes)]
    seed, batch_rows = data.draw(st.integers(0, 9)), data.draw(st.integers(1, 5))
    total = sum(steps for _, steps in phases)
    loader = Loader(phases, seed, batch_rows)
    run = [loader.batch(step) for step in range(total)]
    for step in data.draw(st.permutations(range(total))):
        resumed = Loader(phases, seed, batch_rows).batch(step)
        for name, array in run[step].items():
            assert (resumed[name] == array).all()
    place = [phase for phase, (_, steps) in enumerate(phases) for _ in range(steps)]
    for step, batch in enumerate(run):
        assert set((batch["tokens"] // 100 - 1).ravel().tolist()) == {place[step]}
    with pytest.raises(InputError, match=f"step {total} is outside the {total} steps"):
        loader.batch(total)
    with pytest.raises(InputError):
        loader.batch(-1)


def test_batch_types_and_epochs_that_differ():
    loader = Loader(numbered(64), seed=3, batch_rows=64)
    first, second = loader.batch(0), loader.batch(1)
    assert {name: (array.dtype, array.shape) for name, array in first.items()} == {
        "tokens": (np.int64, (64, 2)),
        "segments": (np.int64, (64, 2)),
        "loss": (np.float32, (64, 2)),
    }
    assert first["loss"].tolist() == [[0, 1]] * 64
    assert (first["tokens"] != second["tokens"]).any()
    assert (Loader(numbered(64), 4, 64).batch(0)["tokens"] != first["tokens"]).any()


def test_the_same_rows_in_two_phases_are_shuffled_differently():
    rows = numbered(64)
    loader = Loader([(rows, 1), (rows, 1)], seed=0, batch_rows=64)
    assert (loader.batch(0)["tokens"] != loader.batch(1)["tokens"]).any()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((numbered(1), -1, 1), "seed -1"),
        ((numbered(1), 0, 0), "batch_rows 0"),
        (([(numbered(1), 1), (pack([], 2), 1)], 0, 1), "phase 1 has no rows"),
        (([(numbered(1), -2)], 0, 1), "phase 0 has -2 steps"),
    ],
)
def test_bad_loaders_are_refused(arguments, says):
    with pytest.raises(InputError, match=says):
        Loader(*arguments)
