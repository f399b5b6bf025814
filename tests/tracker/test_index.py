"""The list of runs: found, kept, made again; states; edits with undo; names that want to be paths."""

import os
import shutil
import signal
import subprocess
import sys

import pytest

from moonlet.tracker import Run
from moonlet.tracker.index import Index, run_id

HOSTILE = ["<img src=x onerror=alert(1)>", "..", "%2e%2e", "a\nb", "née", "\udcff", "'; DROP TABLE run; --", "x" * 200]


def scanned(root) -> Index:
    index = Index(root)
    index.scan()
    return index


def one(folder, **config) -> None:
    with Run(folder, config) as run:
        run.log({"loss": 1.0, "acc": float("nan")}, 3)
        run.log({"loss": 0.5}, 4)


def test_runs_are_found_described_and_remembered(tmp_path):
    one(tmp_path / "g" / "a", lr=0.1, model={"depth": 4})
    one(tmp_path / "b")
    one(tmp_path / "b" / "inner")
    (tmp_path / "b" / "pretrain" / "step-1").mkdir(parents=True)
    (tmp_path / ".hidden" / "metrics").mkdir(parents=True)
    os.symlink(tmp_path / "b", tmp_path / "link")
    index = scanned(tmp_path)
    assert {record["folder"] for record in index.records.values()} == {"g/a", "b", "b/inner"}
    record = index.records[run_id("g/a")]
    assert record["config"] == {"lr": 0.1, "model.depth": 4} and record["summary"] == {"loss": 0.5, "acc": "nan"}
    assert (record["state"], record["points"], record["last_step"], record["attempts"]) == ("finished", 3, 4, 1)
    again = Index(tmp_path)
    assert again.records == index.records  # from SQLite, nothing read
    (tmp_path / ".moonlet-board" / "index.sqlite").write_bytes(b"rubbish" * 1000)
    assert scanned(tmp_path).records == index.records
    shutil.rmtree(tmp_path / "b" / "inner")
    again.scan()
    assert run_id("b/inner") in again.removed and len(again.records) == 2


def test_states(tmp_path):
    running = Run(tmp_path / "running")
    running.log({"loss": 1}, 0)
    with pytest.raises(RuntimeError), Run(tmp_path / "failed") as run:
        run.log({"loss": 1}, 0)
        raise RuntimeError("no")
    code = "import sys, os, signal; from moonlet.tracker import Run; Run(sys.argv[1]).log({'a': 1}, 0)\n"
    killed = [sys.executable, "-c", code + "os.kill(os.getpid(), signal.SIGKILL)", str(tmp_path / "killed")]
    assert subprocess.run(killed, check=False).returncode == -signal.SIGKILL
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "left open")], check=True)
    subprocess.run([sys.executable, "-c", code + "1 / 0", str(tmp_path / "raised")], check=False, capture_output=True)
    index = scanned(tmp_path)
    states = {record["name"]: record["state"] for record in index.records.values()}
    failed = dict.fromkeys(("failed", "killed", "raised"), "failed")
    assert states == {"running": "running", "left open": "finished", **failed}
    version = index.version
    index.poll()
    assert index.version == version
    running.add_scalar("loss", 7.0, 1)
    index.poll()
    assert index.changed == {**index.changed, run_id("running"): version + 1}
    assert index.records[run_id("running")]["summary"]["loss"] == 7.0
    running.close()
    index.poll()
    assert index.records[run_id("running")]["state"] == "finished"


def test_undo_takes_back_only_what_the_edit_set(tmp_path):
    one(tmp_path / "a")
    a = run_id("a")
    index = scanned(tmp_path)
    renamed = index.edit([a], {"name": "new"})
    index.edit([a], {"notes": "written since"})
    index.undo(renamed)
    assert index.records[a]["name"] == "a" and index.records[a]["notes"] == "written since"


def test_edits_undo_and_purge(tmp_path):
    one(tmp_path / "a")
    one(tmp_path / "b")
    a, b = run_id("a"), run_id("b")
    index = scanned(tmp_path)
    first = index.edit([a, b], {"tags": ["x", "x", "y"], "notes": "n", "color": "#12ab34", "name": "new"})
    second = index.edit([a], {"add_tags": ["z"], "remove_tags": ["x"], "deleted": True, "archived": True})
    record = index.records[a]
    assert record["tags"] == ["y", "z"] and record["deleted"] and record["name"] == "new" and record["archived"]
    assert scanned(tmp_path).records[a]["tags"] == ["y", "z"]  # with the run, not with the index
    with pytest.raises(ValueError, match="not marked deleted"):
        index.purge([a, b])
    assert index.undo(second) == [a]
    assert index.records[a]["tags"] == ["x", "y"] and not index.records[a]["deleted"]
    with pytest.raises(ValueError, match="no edit"):
        index.undo(second)
    index.undo(first)
    assert index.records[b]["tags"] == [] and index.records[b]["name"] == "b" and index.records[b]["color"] is None
    index.edit([a], {"deleted": True})
    (tmp_path / "a" / "weights").write_text("kept")
    index.purge([a])
    assert (
        a not in index.records and (tmp_path / "a" / "weights").exists() and not (tmp_path / "a" / "metrics").exists()
    )
    for bad in ({"tags": "x"}, {"color": "red"}, {"nome": 1}, {"deleted": 1}, {"notes": "x" * 30_000}):
        with pytest.raises(ValueError, match="color|tags|nome|deleted|notes"):
            index.edit([b], bad)
    with pytest.raises(KeyError):
        index.edit(["nope"], {})


def test_hostile_names_are_text(tmp_path):
    for i, name in enumerate(HOSTILE):
        with Run(tmp_path / f"r{i}", {name: name}, name=name, tags=[name], notes=name) as run:
            run.event("text", name, 1, {"text": name})
            run.add_points(name, [1], [1.0], [2.0])
    index = scanned(tmp_path)
    assert len(index.records) == len(HOSTILE)
    for i, name in enumerate(HOSTILE):
        record = index.records[run_id(f"r{i}")]
        shown = name.encode("utf-8", "replace").decode()
        assert record["name"] == shown and record["tags"] == [shown] and record["summary"] == {shown: 2.0}
    index.edit([run_id("r0")], {"notes": "\udcff", "tags": HOSTILE})
    assert sorted(os.listdir(tmp_path)) == sorted([".moonlet-board", *(f"r{i}" for i in range(len(HOSTILE)))])


def test_links_inside_metrics_are_not_followed(tmp_path):
    one(tmp_path / "a")
    secret = tmp_path / "secret.jsonl"
    secret.write_text('{"step": 1, "time": 1, "values": {"secret": 1}}\n')
    os.symlink(secret, tmp_path / "a" / "metrics" / "000009.jsonl")
    os.symlink(secret, tmp_path / "a" / "metrics" / "edits.jsonl")
    index = scanned(tmp_path)
    assert "secret" not in index.records[run_id("a")]["summary"]
    with pytest.raises(OSError, match="link"):
        index.edit([run_id("a")], {"notes": "x"})


def test_no_folder_and_rubbish_logs(tmp_path):
    with pytest.raises(ValueError, match="is not a folder"):
        Index(tmp_path / "absent")
    (tmp_path / "bad" / "metrics").mkdir(parents=True)
    for i, data in enumerate([b"", b"moonlog1", b"rubbish" * 99, b"moonlog1" + b"\xff" * 99, b"moonlog1" + bytes(99)]):
        (tmp_path / "bad" / "metrics" / f"00000{i}.log").write_bytes(data)
    (tmp_path / "bad" / "metrics" / "000007.columns").write_bytes(b"rubbish" * 99)
    one(tmp_path / "good")
    assert scanned(tmp_path).records[run_id("good")]["points"] == 3
