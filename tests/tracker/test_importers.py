"""Runs of other trackers come in whole.

`data/` holds event files of torch 2.13's SummaryWriter with tensorboard 2.21. wandb's own files describe a machine, so
one is built here, as are the databases of trackio and MLflow, by the layout of those packages.
"""

import json
import shutil
import sqlite3
import struct
import threading
import time
import zlib
from pathlib import Path

import numpy as np
import pytest

from moonlet.tracker import entries, read
from moonlet.tracker.imports import bring, kind_of
from moonlet.tracker.imports.event_file import EventFile, crc32c
from moonlet.tracker.media import png
from moonlet.tracker.reader import RunData

DATA = Path(__file__).parent / "data"
HISTOGRAM = {"_type": "histogram", "bins": [0, 1, 2], "values": [3, 4]}
FIRST = "events.out.tfevents.1700000000.host.1.0"


def opened(folder) -> RunData:
    run = RunData(folder)
    run.refresh()
    return run


@pytest.fixture(scope="module")
def tensorboard(tmp_path_factory) -> RunData:
    out = tmp_path_factory.mktemp("out")
    assert list(bring(DATA, out)) == [str(out)] * 2  # two event files in one folder: two attempts of one run
    return opened(out)


def test_tensorboard_scalars_are_bit_equal(tensorboard):
    loss = tensorboard.series("train/loss")
    assert loss.step.tolist() == list(range(60)) and loss.time.tolist() == [1.7e9 + i / 8 for i in range(60)]
    assert loss.value.tolist() == [float(np.float32(1 / (i + 1))) for i in range(60)]
    other = tensorboard.series("train/läss")
    assert other.step.tolist() == [i * 1000 for i in range(60)] and other.value.tolist() == [
        -float(i) for i in range(60)
    ]
    assert tensorboard.series("double").value.tolist() == [0.1] and tensorboard.series("new").value.tolist() == [0.5]
    assert np.isnan(tensorboard.series("nan").value).all() and tensorboard.series("inf").value.tolist() == [-np.inf]
    assert tensorboard.series("acc").value.tolist() == [0.5]
    config = tensorboard.fields("config")
    assert (config["lr"], config["opt"], config["flag"]) == (0.1, "sgd", True)


def test_tensorboard_media(tensorboard):
    found = {one[2].kind: entries.entry(*one) for one in entries.listed(tensorboard)}
    assert set(found) == {"histogram", "text", "image"}
    assert found["text"]["data"] == {"text": "hello **w**"} and found["text"]["step"] == 8
    data, kind = entries.blob(tensorboard, found["image"]["blob"])
    assert kind == "image/png" and struct.unpack(">II", data[16:24]) == (5, 4)
    histogram = found["histogram"]["data"]
    assert sum(histogram["counts"]) == 100 and (histogram["min"], histogram["max"]) == (0.0, 99.0)
    assert len(histogram["edges"]) == len(histogram["counts"]) + 1


def test_crc_is_castagnoli():
    assert crc32c(np.frombuffer(b"123456789", np.uint8)[None])[0] == 0xE3069283
    assert crc32c(np.frombuffer(b"12345678" * 2, np.uint8).reshape(2, 8)).tolist() == [0x6087809A] * 2


def test_damage_is_named_and_a_torn_end_waits(tmp_path):
    data = (DATA / FIRST).read_bytes()
    path = tmp_path / FIRST
    for at in (3, 200, len(data) // 2, len(data) - 3):
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        with pytest.raises(ValueError, match="damaged at byte"):
            list(EventFile(path).read())
    path.write_bytes(data[:-5])
    events = EventFile(path)
    torn = sum(len(messages) + sum(len(c[0]) for c in scalars.values()) for scalars, messages in events.read())
    path.write_bytes(data)
    rest = [(scalars, messages) for scalars, messages in events.read()]
    whole = sum(len(m) + sum(len(c[0]) for c in s.values()) for s, m in EventFile(path).read())
    assert torn == whole - 1 and len(rest) == 1


def test_a_growing_file_is_followed_within_a_second(tmp_path):
    data, source = (DATA / FIRST).read_bytes(), tmp_path / "logs" / "run"
    source.mkdir(parents=True)
    (source / FIRST).write_bytes(data[:3000])
    lines = bring(tmp_path / "logs", tmp_path / "out", follow=True)
    next(lines)
    before = len(read(tmp_path / "out" / "run")["train/loss"].step)
    follower = threading.Thread(target=lambda: next(lines, None), daemon=True)
    follower.start()
    with open(source / FIRST, "ab") as file:
        file.write(data[3000:])
    start = time.monotonic()
    while len(read(tmp_path / "out" / "run")["train/loss"].step) < 60 and time.monotonic() - start < 5:
        time.sleep(0.01)
    assert before < 60 and time.monotonic() - start < 1


def field(number: int, value: int | bytes) -> bytes:
    def varint(n: int) -> bytes:
        out = b""
        while n > 127:
            out, n = out + bytes([n & 127 | 128]), n >> 7
        return out + bytes([n])

    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def item(key: str, value: object) -> bytes:
    return field(1, field(1, key.encode()) + field(16, json.dumps(value).encode()))


def leveldb(records: list[bytes]) -> bytes:
    out = b":W&B\xbd\xc6\x00"
    for record in records:
        first = True
        while True:
            room = 32768 - len(out) % 32768
            if room < 7:
                out += bytes(room)
                continue
            piece, record = record[: room - 7], record[room - 7 :]
            kind = (1 if not record else 2) if first else (4 if not record else 3)
            out += struct.pack("<IHB", zlib.crc32(bytes([kind]) + piece), len(piece), kind) + piece
            first = False
            if not record:
                break
    return out


def test_wandb(tmp_path):
    history = [
        field(
            2, item("loss", 1 / (i + 1)) + item("_step", i) + item("_timestamp", 1.7e9 + i) + item("odd", {"x": "NaN"})
        )
        for i in range(300)
    ]
    run = field(17, field(3, b"p") + field(4, item("lr", 0.1) + item("_wandb", {})) + field(10, b"tag"))
    long = field(2, item("note", "x" * 70_000) + item("_step", 300))
    last = [long, field(5, field(1, b"\n\x03s.b\x82\x01\x011")), field(4, item("layers", 3))]
    data = leveldb([run, *history, *last])
    (tmp_path / "run-abc.wandb").write_bytes(data)
    assert list(bring(tmp_path, tmp_path / "out")) == [str(tmp_path / "out" / "abc")]
    found = opened(tmp_path / "out" / "abc")
    assert found.series("loss").value.tolist() == [1 / (i + 1) for i in range(300)]
    assert np.isnan(found.series("odd.x").value).all() and len(found.series("odd.x").step) == 300
    assert found.fields("config")["lr"] == 0.1 and found.fields("config")["wandb.tags"] == ["tag"]
    assert [len(entries.entry(*one)["data"]["text"]) for one in entries.listed(found, "text")] == [70_000]
    at = data.index(b"loss")
    (tmp_path / "run-abc.wandb").write_bytes(data[:at] + b"l0ss" + data[at + 4 :])
    with pytest.raises(ValueError, match="damaged"):
        list(bring(tmp_path / "run-abc.wandb", tmp_path / "out2"))


PNG = png(np.zeros((2, 3, 3), np.uint8))


def test_wandb_media(tmp_path):
    """As wandb 0.31 writes them offline: a key for each part, files beside the log."""
    files = tmp_path / "files" / "media"
    (files / "images").mkdir(parents=True)
    (files / "images" / "a.png").write_bytes(PNG)
    (files / "t.table.json").write_text('{"columns": ["a", "b"], "data": [[1, "x"]]}')
    parts = {"_type": "image-file", "path": "media/images/a.png", "width": 3, "height": 2, "caption": "c"}
    several = {"_type": "images/separated", "filenames": ["media/images/a.png"] * 2, "width": 3, "height": 2}
    spread = {f"img.{key}": value for key, value in parts.items()} | {f"h.{k}": v for k, v in HISTOGRAM.items()}
    whole = {"imgs": several, "t": {"_type": "table-file", "path": "media/t.table.json"}, "loss": 0.5}
    whole |= {"p": {"_type": "histogram", "values": [1, 2], "packedBins": {"min": 0.5, "size": 0.25, "count": 2}}}

    def brought(row: dict, name: str) -> RunData:
        data = b"".join(item(key, value) for key, value in row.items()) + item("_step", 7)
        (tmp_path / f"run-{name}.wandb").write_bytes(leveldb([field(2, data)]))
        (line,) = bring(tmp_path / f"run-{name}.wandb", tmp_path / "out")
        return opened(Path(line))

    run = brought(spread | whole, "media")
    found = [
        (entry["kind"], entry["name"], entry["data"]) for entry in (entries.entry(*one) for one in entries.listed(run))
    ]
    picture = {"width": 3, "height": 2}
    assert sorted(found, key=str) == sorted(
        [
            ("image", "img", picture | {"caption": "c"}),
            *[("image", "imgs", picture | {"caption": None})] * 2,
            ("histogram", "h", {"edges": [0, 1, 2], "counts": [3, 4]}),
            ("histogram", "p", {"edges": [0.5, 0.75, 1.0], "counts": [1, 2]}),
            ("table", "t", {"columns": ["a", "b"], "rows": [[1, "x"]]}),
        ],
        key=str,
    )
    number = next(one[0] for one in entries.listed(run, "image"))
    assert entries.blob(run, number) == (PNG, "image/png") and run.names() == ["loss"]
    (tmp_path / "secret.png").write_bytes(PNG)
    for name, path in (("up", "../secret.png"), ("root", str(tmp_path / "secret.png"))):
        with pytest.raises(ValueError, match="leads out"):
            brought({"img": parts | {"path": path}}, name)
    (files / "link.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(ValueError, match="leads out"):
        brought({"img": parts | {"path": "media/link.png"}}, "link")
    with pytest.raises(ValueError, match="is no images/separated"):
        brought({"img": {"_type": "images/separated"}}, "bad")
    for row in ({"img": parts | {"path": "media/gone.png"}}, {"v": {"_type": "video-file", "path": "x"}}):
        with pytest.warns(UserWarning, match=r"not there|not imported"):
            assert list(entries.listed(brought(row, f"gone{len(row)}{next(iter(row))}"))) == []


def test_trackio_media_and_traces(tmp_path):
    """As trackio 0.43 writes them."""
    (tmp_path / "media" / "p").mkdir(parents=True)
    (tmp_path / "media" / "p" / "a.png").write_bytes(PNG)
    database = sqlite3.connect(tmp_path / "p.db")
    database.executescript("""
        CREATE TABLE metrics
          (id INTEGER PRIMARY KEY, run_id TEXT, timestamp TEXT, run_name TEXT, step INTEGER, metrics TEXT);
        CREATE TABLE traces
          (id TEXT, run_id TEXT, timestamp TEXT, run_name TEXT, step INTEGER, key TEXT, messages TEXT);
    """)
    row = {"img": {"_type": "trackio.image", "file_path": "p/a.png", "caption": "c"}, "loss": 0.5}
    row |= {"t": {"_type": "trackio.table", "_value": [{"a": 1}, {"b": "x"}]}}
    row |= {"m": {"_type": "trackio.markdown", "_value": "# hi"}, "h": {**HISTOGRAM, "_type": "trackio.histogram"}}
    values = ("r", "2026-01-01T00:00:00+00:00", "n", 3)
    insert = "INSERT INTO metrics (run_id, timestamp, run_name, step, metrics) VALUES (?, ?, ?, ?, ?)"
    database.execute(insert, (*values, json.dumps(row).encode()))
    talk = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
    database.execute("INSERT INTO traces VALUES ('x', ?, ?, ?, ?, 'talk', ?)", (*values, json.dumps(talk)))
    database.commit()
    (line,) = bring(tmp_path / "p.db", tmp_path / "out")
    run = opened(Path(line))
    found = {one[2].kind: entries.entry(*one) for one in entries.listed(run)}
    assert found["image"]["data"]["caption"] == "c" and entries.blob(run, found["image"]["blob"]) == (PNG, "image/png")
    assert found["table"]["data"] == {"columns": ["a", "b"], "rows": [[1, None], [None, "x"]]}
    assert found["text"]["data"] == {"text": "# hi"} and found["histogram"]["data"]["counts"] == [3, 4]
    assert found["rollout"]["data"]["messages"] == talk and found["rollout"]["data"]["prompt"] == "hi"
    assert {one["step"] for one in found.values()} == {3} and run.names() == ["loss"]


def test_trackio_and_mlflow(tmp_path):
    trackio = sqlite3.connect(tmp_path / "p.db")
    trackio.executescript("""
        CREATE TABLE metrics
          (id INTEGER PRIMARY KEY, run_id TEXT, timestamp TEXT, run_name TEXT, step INTEGER, metrics TEXT);
        CREATE TABLE configs (id INTEGER PRIMARY KEY, run_id TEXT, run_name TEXT, config TEXT, created_at TEXT);
    """)
    for i in range(50):
        row = (
            f"id{i % 2}",
            f"2026-01-01T00:00:{i:02d}+00:00",
            "same",
            i,
            json.dumps({"loss": i / 7, "inf": "Infinity"}),
        )
        trackio.execute("INSERT INTO metrics (run_id, timestamp, run_name, step, metrics) VALUES (?, ?, ?, ?, ?)", row)
    trackio.execute("INSERT INTO configs (run_id, run_name, config) VALUES ('id0', 'same', '{\"lr\": 0.1}')")
    trackio.commit()
    first, second = (opened(Path(line)) for line in bring(tmp_path / "p.db", tmp_path / "trackio"))
    assert (
        first.series("loss").value.tolist() == [i / 7 for i in range(0, 50, 2)] and first.fields("config")["lr"] == 0.1
    )
    assert second.series("inf").value.tolist() == [np.inf] * 25 and "lr" not in second.fields("config")

    mlflow = sqlite3.connect(tmp_path / "m.db")
    mlflow.executescript("""
        CREATE TABLE experiments (experiment_id INTEGER, name TEXT);
        CREATE TABLE runs (run_uuid TEXT, name TEXT, experiment_id INTEGER);
        CREATE TABLE metrics (key TEXT, value REAL, timestamp INTEGER, run_uuid TEXT, step INTEGER, is_nan INTEGER);
        CREATE TABLE params (key TEXT, value TEXT, run_uuid TEXT);
        CREATE TABLE tags (key TEXT, value TEXT, run_uuid TEXT);
        INSERT INTO experiments VALUES (0, '../Default');
        INSERT INTO runs VALUES ('abc', 'n', 0);
        INSERT INTO params VALUES ('lr', '0.1', 'abc'), ('flag', 'True', 'abc');
        INSERT INTO metrics VALUES ('a', 0.0, 1700000000500, 'abc', 0, 1);
        INSERT INTO metrics VALUES ('a', -1.7976931348623157e308, 1, 'abc', 1, 0);
    """)
    mlflow.commit()
    (line,) = bring(tmp_path / "m.db", tmp_path / "mlflow")
    found = opened(Path(line))
    assert line == str(tmp_path / "mlflow" / "_Default" / "abc") and found.series("a").time[0] == 1700000000.5
    assert np.isnan(found.series("a").value[0]) and found.series("a").value[1] == -np.inf
    assert found.fields("config") == {"imported_from": "m.db", "lr": 0.1, "flag": True}

    place = tmp_path / "mlruns" / "0" / "r1"
    (place / "metrics" / "eval").mkdir(parents=True)
    (place / "params").mkdir()
    (place / "meta.yaml").write_text("run_id: r1\n")
    (place / "metrics" / "eval" / "loss").write_text("1700000000000 0.5 0\n1700000001000 0.25 1\n")
    (place / "params" / "lr").write_text("0.1")
    (line,) = bring(tmp_path / "mlruns", tmp_path / "files")
    assert read(line)["eval/loss"].value.tolist() == [0.5, 0.25]


def test_tables(tmp_path):
    (tmp_path / "a.csv").write_text("step,loss,name,acc\n0,1.5,x,\n10,0.5,y,0.25\n")
    (tmp_path / "b.jsonl").write_text(
        '{"_step": 3, "loss": 1, "time": 7.5}\n{"_step": 4, "loss": 0.5, "a": {"b": 2}}\n'
    )
    for name in ("a.csv", "b.jsonl"):
        list(bring(tmp_path / name, tmp_path / "out"))
    a, b = read(tmp_path / "out" / "a"), read(tmp_path / "out" / "b")
    assert a["loss"].step.tolist() == [0, 10] and a["acc"].value.tolist() == [0.25] and set(a) == {"loss", "acc"}
    assert b["loss"].time[0] == 7.5 and b["a.b"].value.tolist() == [2.0]
    with pytest.raises(ValueError, match="a run already"):
        list(bring(tmp_path / "a.csv", tmp_path / "out"))
    (tmp_path / "c.jsonl").write_text("{}\nnope\n")
    with pytest.raises(ValueError, match="line 2"):
        list(bring(tmp_path / "c.jsonl", tmp_path / "out"))


def test_what_is_nothing(tmp_path):
    (tmp_path / "x.txt").write_text("x")
    for path in (tmp_path, tmp_path / "x.txt", tmp_path / "absent"):
        with pytest.raises(ValueError, match=r"nothing that can be imported|not there"):
            kind_of(path)
    shutil.copy(DATA / FIRST, tmp_path / FIRST)
    assert kind_of(tmp_path) == "tensorboard"
