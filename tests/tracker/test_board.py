"""The command line of the board, alerts and the static bundle."""

import base64
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import duckdb
import numpy as np
import pytest

from moonlet.tracker import Image, Run, alerts, bundle
from moonlet.tracker.alerts import Watch
from moonlet.tracker.board import main
from moonlet.tracker.curves import Curves
from moonlet.tracker.index import Index, edits, run_id


def board(*words: object, runs: Path = Path("runs"), out: Path | None = None) -> int:
    return main([str(word) for word in words], runs, out, False, None, None, token=None)


@pytest.fixture
def root(tmp_path):
    with Run(tmp_path / "runs" / "a", {"lr": 0.1}) as run:
        for step in range(10):
            run.log({"loss": step / 7}, step)
        run.log({"img": Image(np.zeros((2, 2)))}, 10)
    return tmp_path / "runs"


def test_query_export_compact_import(root, tmp_path, capsys):
    assert board("query", "SELECT name, count(*) AS n, max(value) AS v FROM points GROUP BY name", runs=root) == 0
    assert capsys.readouterr().out == f"name,n,v\nloss,10,{9 / 7}\n"
    assert board("compact", root) == 0 and capsys.readouterr().out.strip().endswith("000001.columns")
    assert board("export", runs=root, out=tmp_path / "points.parquet") == 0
    rows = duckdb.sql(f"SELECT step, value FROM '{tmp_path / 'points.parquet'}' ORDER BY step").fetchall()
    assert rows == [(step, step / 7) for step in range(10)]
    (tmp_path / "x.csv").write_text("step,loss\n1,2.5\n")
    assert board("import", tmp_path / "x.csv", out=root) == 0
    assert capsys.readouterr().out.strip() == str(root / "x")
    assert board("query", "SELECT name FROM runs ORDER BY name", runs=root) == 0
    assert capsys.readouterr().out == "name\na\nx\n"
    for bad in (
        ["query", "nonsense"],
        ["import", "absent"],
        ["export"],
        ["push", "x"],
        ["compact", tmp_path / "absent"],
    ):
        assert board(*bad, runs=root) == 2
        assert capsys.readouterr().err.startswith("moonlet: "), bad


def test_serving_stops_quietly(root):
    command = [sys.executable, "-m", "moonlet", "board", str(root), "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert "http://127.0.0.1:" in process.stderr.readline()
    process.terminate()
    assert process.wait(10) in (0, -15, 143) and "Traceback" not in process.stderr.read()


def test_alerts(tmp_path):
    rules = tmp_path / "rules.toml"
    said = tmp_path / "said"
    tell = (
        f'command = ["{sys.executable}", "-c", "import sys; open(r\'{said}\', \'a\').write(sys.argv[1] + chr(10))"]\n'
    )
    rules.write_text(
        f'[[rule]]\nwhen = "nonfinite"\nseries = "*loss"\n{tell}[[rule]]\nwhen = "spike"\nseries = "loss"\nsigma = 8\n'
        '[[rule]]\nwhen = "expression"\nfilter = "summary.acc > 0.9"\n[[rule]]\nwhen = "stall"\nseconds = 0.0\n'
        "filter = \"name == 'nobody'\"\n"
    )
    watch = Watch(rules)
    with Run(tmp_path / "runs" / "a") as run:
        rng = np.random.default_rng(0)
        for step in range(100):
            run.log({"loss": rng.standard_normal(), "acc": 0.5}, step)
        index = Index(tmp_path / "runs")
        index.scan()

        def titles() -> list[str]:
            index.poll()
            watch.look(index)
            return [alert["data"]["title"] for alert in edits(tmp_path / "runs" / "a")[1]]

        assert titles() == []
        run.log({"loss": float("nan"), "acc": 0.95}, 100)
        run.log({"loss": 99.0, "acc": 0.95}, 101)
        assert sorted(titles()) == ["expression: a", "nonfinite: a loss", "spike: a loss"]
        assert len(titles()) == 3  # each once
    end = time.monotonic() + 10
    while not (said.exists() and said.read_text()) and time.monotonic() < end:
        time.sleep(0.02)
    assert said.read_text() == "nonfinite: a loss\n"
    for bad in ("", "x = 1", '[[rule]]\nwhen = "never"', '[[rule]]\nwhen = "spike"\nsgima = 1', "[["):
        rules.write_text(bad)
        with pytest.raises(ValueError, match=r"rules|when"):
            Watch(rules)
    flat = alerts.checked({"when": "spike"}, rules)
    assert alerts.oddity(flat, np.arange(50), np.r_[np.ones(49), 2.0], 0) is None  # no deviation to measure against


def test_a_bundle_holds_everything_and_runs_nothing_else(root):
    with Run(root / "evil", {"k": "</script><script>alert(1)</script>"}) as run:
        run.add_points("<!--<script>", [0], [0.0], [1.0])
    index = Index(root)
    index.scan()
    page = b'<!doctype html><html><head><link rel="stylesheet" href="page/a.css">'
    page += b'<script src="page/a.js" defer></script></head><body>hi</body></html>'
    files = {"index.html": (page, ""), "a.css": (b"p{color:red}", ""), "a.js": (b'let x = "</script>";', "")}
    text = bundle.bundle(index, Curves(index), files, [run_id("a"), run_id("evil")], None).decode()
    assert text.count("<script") == 2 and "page/a." not in text and "sha256-" in text and "unsafe" not in text
    data = json.loads(re.search(r'<script type="application/json" id="bundle">(.*?)</script>', text)[1])
    points = {one["name"]: np.frombuffer(base64.b64decode(one["value"])) for one in data["points"]}
    assert points["loss"].tolist() == [step / 7 for step in range(10)] and points["<!--<script>"].tolist() == [1.0]
    assert data["runs"][1]["config"] == {"k": "</script><script>alert(1)</script>"}
    (blob,) = data["blobs"][run_id("a")].values()
    assert blob.startswith("data:image/png;base64,")
