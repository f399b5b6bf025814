"""Compaction loses no bit, takes only closed logs, and pays off."""

import os
import struct

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from moonlet.tracker import Image, Run, Text, columns, compact, entries, read
from moonlet.tracker.reader import RunData

bits64 = st.integers(0, 2**64 - 1).map(lambda bits: struct.unpack("<d", struct.pack("<Q", bits))[0])
numbers = st.lists(st.one_of(bits64, st.floats(width=32), st.just(1.0), st.just(-0.0)), min_size=1, max_size=40)


def opened(folder) -> RunData:
    run = RunData(folder)
    run.refresh()
    return run


@settings(max_examples=50, deadline=None)
@given(values=numbers, steps=st.lists(st.integers(-(2**63), 2**63 - 1), min_size=40, max_size=40), zstd=st.booleans())
def test_every_bit_comes_back(tmp_path_factory, values, steps, zstd):
    folder = tmp_path_factory.mktemp("run")
    with Run(folder) as run:
        run.add_points("a", steps[: len(values)], np.array(values) * 0 + 1.5, values)
        run.add_points("b", steps[: len(values)], values, [1.0] * len(values))
    before = [[column.tobytes() for column in opened(folder).raw(name)] for name in "ab"]
    kept, columns.zstandard = columns.zstandard, columns.zstandard if zstd else None
    try:
        (path,) = compact.compact_run(folder)
    finally:
        columns.zstandard = kept
    assert os.listdir(folder / "metrics") == [path.name]
    assert [[column.tobytes() for column in opened(folder).raw(name)] for name in "ab"] == before


def test_blocks_join_and_events_and_stats_survive(tmp_path, monkeypatch):
    monkeypatch.setattr(columns, "BLOCK", 7)
    monkeypatch.setattr(columns, "EVENT_BLOCK", 50)
    with Run(tmp_path, {"lr": 0.1}) as run:
        for step in range(100):
            run.log({"loss": step / 7, "flat": 2.0, "odd": float("nan") if step % 9 == 0 else step}, step)
        run.log({"img": Image(np.zeros((2, 3, 3))), "t": Text("hello")}, 100)
    before = opened(tmp_path)
    listed = [entries.entry(*one) for one in entries.listed(before)]
    compact.compact_run(tmp_path)
    after = opened(tmp_path)
    assert after.fields("config") == {"lr": 0.1} and repr(after.stats()) == repr(before.stats())
    assert [entries.entry(*one) for one in entries.listed(after)] == listed
    assert entries.blob(after, listed[0]["index"])[1] == "image/png"
    assert after.sources["000001"].end == {"exit": None, "time": after.sources["000001"].end["time"]}
    for name in ("loss", "flat", "odd"):
        assert [c.tobytes() for c in after.raw(name)] == [c.tobytes() for c in before.raw(name)]


def test_only_closed_and_whole_logs_are_compacted(tmp_path):
    run = Run(tmp_path)
    run.log({"loss": 1.0}, 0)
    assert compact.compact_run(tmp_path) == []  # open
    run.close()
    data = run.path.read_bytes()
    run.path.write_bytes(data + b"torn")
    assert compact.compact_run(tmp_path) == []
    run.path.write_bytes(data)
    assert len(compact.compact_run(tmp_path)) == 1


def test_damage_in_columns_is_an_error_and_never_a_wrong_number(tmp_path):
    with Run(tmp_path) as run:
        for step in range(3000):
            run.log({"loss": np.sin(step)}, step)
    (path,) = compact.compact_run(tmp_path)
    data, wanted, raised = path.read_bytes(), read(tmp_path)["loss"], 0
    places = range(8, len(data), 97)
    for at in places:
        path.write_bytes(data[:at] + bytes([data[at] ^ 16]) + data[at + 1 :])
        try:
            found = read(tmp_path)["loss"]
        except ValueError as error:
            assert "damaged" in str(error)
            raised += 1
        else:  # a bit that means nothing to zstd
            assert all((getattr(found, k) == getattr(wanted, k)).all() for k in ("step", "time", "value"))
    assert raised > 0.9 * len(places)


def test_size_of_a_usual_run(tmp_path):
    rng = np.random.default_rng(0)
    values = (np.exp(-np.arange(5000) / 1000)[:, None] + rng.standard_normal((5000, 20)) / 100).astype(np.float32)
    with Run(tmp_path) as run:
        for step, row in enumerate(values.tolist()):
            run.log({f"m{i}": value for i, value in enumerate(row)}, step)
    (path,) = compact.compact_run(tmp_path)
    assert path.stat().st_size / 100_000 < 4.0  # bytes a point; TensorBoard's event file has 54
