"""The board over HTTP: its answers, and what it refuses."""

import asyncio
import http.client
import json
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.parse

import numpy as np
import pytest
import uvicorn

from moonlet.tracker import Histogram, Image, Rollout, Run, Table, Text, compact, read, server, wire
from moonlet.tracker.guard import WRITES, host_name
from moonlet.tracker.index import Index
from moonlet.tracker.push import Pusher


class Running:
    """A board over a real socket. `raw` sends exactly the headers it is given."""

    def __init__(self, root, **options):
        self.app, self.board = server.make_app(root, **options)
        self.socket = __import__("socket").create_server(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        self.server = uvicorn.Server(uvicorn.Config(self.app, log_level="critical", access_log=False))
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.socket]})

    def __enter__(self):
        self.thread.start()
        while not self.server.started:
            time.sleep(0.005)
        return self

    def __exit__(self, *error):
        self.server.should_exit = True
        self.thread.join()

    def raw(self, method, path, body=None, headers=()):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        for name, value in headers:
            connection.putheader(name, value)
        if body is not None:
            connection.putheader("content-length", str(len(body)))
        connection.endheaders(body)
        answer = connection.getresponse()
        data = answer.read()
        connection.close()
        return answer.status, data, dict(answer.getheaders())

    def send(self, method, path, content=None, **headers):
        body = None if content is None else json.dumps(content).encode()
        named = {"host": f"127.0.0.1:{self.port}", "content-type": "application/json", **headers}
        return self.raw(method, path, body, [(name.replace("_", "-"), value) for name, value in named.items()])

    def get(self, path, **query):
        status, data, _ = self.send("GET", f"{path}?{urllib.parse.urlencode(query)}")
        assert status == 200, data
        return json.loads(data)

    def post(self, path, content, token=True):
        more = {"x_moonlet_token": self.board.write_token} if token else {}
        status, data, headers = self.send("POST", path, content, **more)
        assert status == 200, data
        return wire.unpack(data) if headers["content-type"] == "application/octet-stream" else json.loads(data)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    for k in range(4):
        with Run(root / f"r{k}", {"lr": 10.0**-k, "model": {"depth": k % 2}}, tags=["even"] * (k % 2 == 0)) as run:
            for step in range(3000):
                run.log({"loss": k + 1 / (step + 1) + 100 * (step == 777), "tokens": step * 512.0}, step)
            talk = [{"role": "user", "content": "17*23?"}, {"role": "assistant", "content": "391", "logprobs": [-0.5]}]
            media = {"img": Image(np.zeros((4, 4))), "h": Histogram([1.0, 2.0, float("nan")]), "t": Text("<b>")}
            media |= {"table": Table(["a"], [[1]]), "talk": Rollout(talk, rewards={"right": 1.0, "form": 0.5})}
            run.log(media, 3000)
            run.event("file", "f", 1, None, b"<script>alert(1)</script>", type="text/html")
            run.alert("hot", "very")
    return root


@pytest.fixture(scope="module")
def board(root):
    with Running(root) as running:
        yield running


@pytest.fixture(scope="module")
def ids(board):
    return [row[0] for row in board.get("/api/runs", columns="id,name", sort="name")["rows"]]


def test_the_table(board, ids):
    found = board.get("/api/runs", filter="config.lr > 0.005", sort="-summary.loss", columns="name,config.model.depth")
    assert (found["total"], found["matched"]) == (4, 3)
    assert found["rows"] == [["r2", 0], ["r1", 1], ["r0", 0]]
    assert [run["name"] for run in board.get("/api/runs", search="EVEN r2")["runs"]] == ["r2"]
    assert board.get("/api/runs", sort="name", offset=1, limit=2, columns="name")["rows"] == [["r1"], ["r2"]]
    fields = board.get("/api/fields")
    assert {"name": "model.depth", "runs": 4} in fields["config"] and fields["tags"] == [{"name": "even", "runs": 2}]
    diff = board.post("/api/diff", {"runs": ids[:2]}, token=False)
    assert diff["keys"][0] == {"key": "lr", "values": [1.0, 0.1], "same": False}


def test_a_run_and_its_media(board, ids):
    run = board.get(f"/api/runs/{ids[0]}")
    assert {one["name"]: one["points"] for one in run["series"]} == {"loss": 3000, "tokens": 3000}
    assert run["attempts"][0]["exit"] is None and run["alerts"][0]["data"]["title"] == "hot"
    assert {one["kind"] for one in run["media"]} == {"image", "histogram", "text", "table", "rollout", "alert", "file"}
    first = board.get(f"/api/runs/{ids[0]}/media", limit=2)
    rest = board.get(f"/api/runs/{ids[0]}/media", after=first["next"])
    entries = {entry["kind"]: entry for entry in first["entries"] + rest["entries"]}
    assert len(first["entries"]) == 2 and rest["next"] is None and len(entries) == 7
    assert entries["text"]["data"] == {"text": "<b>"} and entries["rollout"]["data"]["reward"] == 1.5
    status, data, headers = board.send("GET", f"/api/runs/{ids[0]}/blob/{entries['image']['blob']}")
    assert status == 200 and data[:4] == b"\x89PNG" and headers["content-type"] == "image/png"
    status, _, headers = board.send("GET", f"/api/runs/{ids[0]}/blob/{entries['file']['blob']}")
    assert headers["content-type"] == "application/octet-stream" and "attachment" in headers["content-disposition"]
    histogram = board.get(f"/api/runs/{ids[0]}/histograms", name="h")
    assert sum(histogram["counts"][0]) == 2 and len(histogram["edges"][0]) == 65
    prompts = board.post("/api/rollouts", {"runs": ids[:2]}, token=False)["prompts"]
    assert prompts[0]["prompt"] == "17*23?" and [one["run"] for one in prompts[0]["rollouts"]] == ids[:2]
    points = board.get(f"/api/runs/{ids[0]}/points", name="loss")
    assert points["value"] == read(board.board.index.folder(ids[0]))["loss"].value.tolist()
    assert points["next"] is None
    page = board.get(f"/api/runs/{ids[0]}/points", name="loss", offset=2500, limit=400)
    assert (
        page["next"] == 2900
        and page["step"] == points["step"][2500:2900]
        and page["value"] == points["value"][2500:2900]
    )
    rows = board.send("GET", f"/api/runs/{ids[0]}/points?name=loss&format=csv")[1].decode().splitlines()
    assert rows[0] == "step,time,value" and [float(row.split(",")[2]) for row in rows[1:]] == points["value"]


@pytest.mark.parametrize("x", ["step", "time", "relative", "tokens"])
@pytest.mark.parametrize("scale", ["linear", "log"])
def test_curves_show_the_spike_on_every_axis(board, ids, x, scale):
    body = {
        "series": [{"run": one, "name": "loss"} for one in ids],
        "x": x,
        "scale": scale,
        "pixels": 200,
        "smooth": 0.9,
    }
    found = board.post("/api/m4", body, token=False)
    assert len(found["series"]) == 4 and found["x0"] < found["x1"]
    for k, series in enumerate(found["series"]):
        assert series["mode"] == "m4" and series["arrays"]["max"].max() == k + 1 / 778 + 100
        assert series["arrays"]["count"].sum() == series["points"] == 3000 - series["left_out"]
        assert len(series["arrays"]["smooth"]) == series["n"] == len(series["arrays"]["column"])
    near = {**body, "x0": found["x0"] + (found["x1"] - found["x0"]) * 0.5, "x1": found["x1"], "pixels": 2000}
    assert {series["mode"] for series in board.post("/api/m4", near)["series"]} == {"raw"}


def test_curves_over_groups(board, ids):
    found = board.post("/api/aggregate", {"groups": [{"label": "all", "runs": ids}], "name": "loss", "pixels": 100})
    stats = {series["stat"]: series["arrays"] for series in found["series"]}
    assert list(stats) == ["mean", "std", "min", "max", "q0.25", "q0.5", "q0.75"]
    assert stats["max"]["max"].max() == 103 + 1 / 778 and stats["mean"]["last"][-1] == pytest.approx(1.5 + 1 / 3000)


def test_live_points_arrive(tmp_path):
    with Run(tmp_path / "live") as run:
        run.log({"loss": 1.0}, 0)
        with Running(tmp_path) as running, server.following(running.board):
            cursor = running.get("/api/session")["cursor"]
            run.add_scalar("loss", 0.5, 1)
            start = time.monotonic()
            news = running.get("/api/changes", since=cursor, wait=10)
            assert time.monotonic() - start < 2 and len(news["runs"]) == 1 and news["cursor"] > cursor
            body = {"series": [{"run": news["runs"][0], "name": "loss"}]}
            assert running.post("/api/m4", body)["series"][0]["arrays"]["y"].tolist() == [1.0, 0.5]


def test_edits_views_and_sql_need_the_token(board, ids):
    before = board.get("/api/runs", sort="name")["runs"]
    for path in WRITES:
        for token in ({}, {"x_moonlet_token": "wrong"}, {"x_moonlet_token": ""}):
            status, data, _ = board.send("POST", path, {"runs": ids, "set": {"notes": "x"}}, **token)
            assert status == 403 and b"X-Moonlet-Token" in data
    assert board.get("/api/runs", sort="name")["runs"] == before
    undo = board.post("/api/edit", {"runs": ids[:1], "set": {"notes": "hello", "deleted": True}})["undo"]
    assert board.get("/api/runs")["matched"] == 3 and board.get("/api/runs", deleted=1)["matched"] == 4
    assert board.post("/api/undo", {"undo": undo}) == {"runs": ids[:1]}
    assert board.get("/api/runs", sort="name")["runs"] == before
    assert board.post("/api/views", {"name": "v", "state": {"a": [1]}})["views"] == [{"name": "v", "state": {"a": [1]}}]
    assert board.post("/api/views", {"name": "v"})["views"] == board.get("/api/views")["views"] == []
    sql = "SELECT count(*), max(value) FROM points WHERE name = 'loss'"
    assert board.post("/api/query", {"sql": sql})["rows"] == [[12000, 103 + 1 / 778]]
    for bad in ("SELECT * FROM read_csv('/etc/passwd')", "COPY runs TO '/tmp/x.csv'", "INSTALL httpfs", "nonsense"):
        assert board.send("POST", "/api/query", {"sql": bad}, x_moonlet_token=board.board.write_token)[0] == 400


def test_hosts_and_origins(board):
    port = board.port
    good = [f"127.0.0.1:{port}", "127.0.0.1", f"localhost:{port}", "LOCALHOST", f"[::1]:{port}"]
    bad = [
        "evil.example",
        f"evil.example:{port}",
        "127.0.0.1.nip.io",
        "[::ffff:127.0.0.1]",
        "",
        "localhost.evil.example",
    ]
    bad += ["127.0.0.1:80:80", "127.0.0.1@evil.example", "0.0.0.0", "localhost.", "127.1", "2130706433", "[::1", "a b"]
    for host in good:
        assert board.raw("GET", "/api/session", headers=[("Host", host)])[0] == 200, host
    for host in bad:
        assert board.raw("GET", "/api/session", headers=[("Host", host)])[0] in (400, 403), host
    assert board.raw("GET", "/api/session")[0] in (400, 403)
    assert board.raw("GET", "/api/session", headers=[("Host", good[0]), ("Host", "evil.example")])[0] in (400, 403)
    token = ("X-Moonlet-Token", board.board.write_token)
    for origin in ("http://evil.example", "null", f"http://127.0.0.1:{port + 1}", f"http://localhost:{port}", "x"):
        for kind in ("application/json", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
            headers = [("Host", good[0]), ("Origin", origin), ("Content-Type", kind), token]
            assert board.raw("POST", "/api/views", b'{"name": "v"}', headers)[0] == 403, origin
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        headers = [("Host", good[0]), ("Content-Type", kind), token]
        assert board.raw("POST", "/api/views", b'{"name": "v"}', headers)[0] == 415
    assert board.send("GET", "/api/runs", sec_fetch_site="cross-site")[0] == 403
    assert board.send("PUT", "/api/runs")[0] == board.send("OPTIONS", "/api/edit")[0] == 405
    long = [("Host", good[0]), ("Content-Type", "application/json"), ("Content-Length", "9000000")]
    assert board.raw("POST", "/api/diff", headers=long)[0] == 413


def test_a_refused_body_that_comes_late_does_not_reset_the_connection(board):
    head = f"POST /api/views HTTP/1.1\r\nHost: 127.0.0.1:{board.port}\r\nContent-Type: text/plain\r\n"
    with socket.create_connection(("127.0.0.1", board.port), timeout=10) as peer:
        peer.sendall(f"{head}Content-Length: 13\r\n\r\n".encode())
        answer = peer.recv(4096)
        assert answer.startswith(b"HTTP/1.1 415")
        time.sleep(0.1)
        for part in (b'{"name"', b': "v"}'):
            peer.sendall(part)
            time.sleep(0.05)
        while part := peer.recv(4096):
            answer += part
    assert b"application/json" in answer and answer.endswith(b"}")


def test_every_answer_forbids_foreign_scripts(board, ids):
    for path in ("/api/session", "/nope", "/api/runs?filter=(", f"/api/runs/{ids[0]}/blob/0", "/", "/api/runs"):
        headers = {name.lower(): value for name, value in board.send("GET", path)[2].items()}
        policy = headers["content-security-policy"]
        assert "script-src 'self';" in policy and "unsafe" not in policy and "default-src 'none'" in policy
        assert headers["x-content-type-options"] == "nosniff" and headers["x-frame-options"] == "DENY"
        assert "access-control-allow-origin" not in headers


def traversals():
    dots = ["..", "%2e%2e", "%252e%252e", "..%00", "....", "..;", ".%2e", "%c0%ae%c0%ae", "..%5c", "%uff0e%uff0e"]
    slashes = ["/", "%2f", "%252f", "\\", "%5c", "%c0%af", "//", "/./", "%2f%2f"]
    ends = [
        "etc/passwd",
        "server.py",
        "__init__.py",
        "index.sqlite",
        "edits.jsonl",
        "metrics/000001.log",
        "%00",
        "#",
        "?x",
    ]
    for dot in dots:
        for slash in slashes:
            for end in ends:
                yield (dot + slash) * 3 + end
    yield from ("/etc/passwd", "//etc/passwd", "C:\\x", "\\\\host\\share", "file:///etc/passwd", "%00", "~root")


async def direct(app, method, path, body=b"", headers=((b"host", b"localhost"),)):
    """Status and body of a request without a socket."""
    sent = []

    async def send(message):
        sent.append(message)

    async def receive():
        return {"type": "http.request", "body": body, "more_body": False}

    clean = urllib.parse.unquote(path.split("?")[0].split("#")[0])
    scope = {"type": "http", "http_version": "1.1", "method": method, "path": clean, "raw_path": path.encode()}
    scope |= {"query_string": b"", "headers": list(headers), "root_path": "", "scheme": "http"}
    await app({**scope, "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 1)}, receive, send)
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent[1:])


def test_no_path_reaches_a_file(board, ids):
    async def every():
        heads = ("/page/", f"/api/runs/{ids[0]}/blob/", "/api/runs/")
        return [(head + form, *await direct(board.app, "GET", head + form)) for form in traversals() for head in heads]

    answers = asyncio.run(every())
    assert len(answers) > 2000
    wrong = [
        path for path, status, body in answers if status not in (400, 404) or b"root:" in body or b"import" in body
    ]
    assert wrong == []


def test_bad_requests_are_4xx(board, ids):
    for path in (
        "/api/runs?sort=nope",
        "/api/runs?limit=-1",
        "/api/runs?filter=a.b",
        "/api/runs?limit=x",
        f"/api/runs/{ids[0]}/points",
        f"/api/runs/{ids[0]}/points?name=loss&limit=2000000",
        "/api/changes?wait=99",
    ):
        assert board.send("GET", path)[0] == 400, path
    for path in ("/api/runs/nope", f"/api/runs/{ids[0]}/points?name=nope", f"/api/runs/{ids[0]}/blob/99999999999"):
        assert board.send("GET", path)[0] == 404, path
    m4 = {"series": [{"run": ids[0], "name": "loss"}]}
    for change in (
        {"pixels": 0},
        {"pixels": 10**9},
        {"scale": "cubic"},
        {"smooth": 1},
        {"x0": 5, "x1": 1},
        {"series": 1},
        {"series": [{"run": ids[0]}]},
        {"series": [{"run": ids[0], "name": "loss", "attempt": True}]},
        {"x0": "1"},
        {"x0": 10**400},
        {"x0": float("nan")},
        {"series": [{"run": ids[0], "name": "loss"}] * 2001},
    ):
        assert board.send("POST", "/api/m4", {**m4, **change})[0] == 400, change
    assert board.send("POST", "/api/m4", {"series": [{"run": "nope", "name": "loss"}]})[0] == 404
    assert board.raw("POST", "/api/m4", b"{", [("Host", "localhost"), ("Content-Type", "application/json")])[0] == 400
    empty = board.post("/api/m4", {"series": [{"run": ids[0], "name": "nope"}]}, token=False)
    assert empty["series"][0]["points"] == 0


ODD = [None, True, 0, -1, 1.5, 1e308, 10**400, 2**63, float("nan"), float("inf"), "", "log", "\ud800", "x" * 30_000]
ODD += [[], [[]], [None], ["nope"], [{}], {}, {"a": 1}, {"runs": 1}]


def mutations(body):
    """A body with each of its parts, at any depth, replaced by each odd value, and without it."""
    yield from ODD
    parts = list(body.items() if isinstance(body, dict) else enumerate(body))
    for key, part in parts:
        if isinstance(body, dict):
            yield {other: value for other, value in parts if other != key}
        for other in mutations(part) if isinstance(part, dict | list) else ODD:
            copy = body.copy()
            copy[key] = other
            yield copy


def test_no_body_makes_the_board_fail(tmp_path):
    with Run(tmp_path / "r") as run:
        run.log({"loss": 1.0, "talk": Rollout([{"role": "user", "content": "?"}])}, 0)
    app, board = server.make_app(tmp_path)
    (one,) = board.index.records
    window = {"x": "step", "x0": 0, "x1": 2.5, "pixels": 10, "scale": "linear", "smooth": 0.5}
    bodies = {
        "m4": {"series": [{"run": one, "name": "loss", "attempt": 1}], **window},
        "aggregate": {"groups": [{"label": "g", "runs": [one]}], "name": "loss", "quantiles": [0.5], **window},
        "rollouts": {"runs": [one], "name": "talk", "prompt": "?", "step": 0, "limit": 5},
        "diff": {"runs": [one]},
        "bundle": {"runs": [one], "names": ["loss"]},
        "edit": {"runs": [one], "set": {"notes": "x", "add_tags": ["t"], "color": "#112233", "archived": False}},
        "undo": {"undo": 0},
        "views": {"name": "v", "state": {"a": 1}},
        "purge": {"runs": [one]},
    }
    headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
    headers.append((b"x-moonlet-token", board.write_token.encode()))

    async def every():
        return [
            (path, body, *await direct(app, "POST", f"/api/{path}", json.dumps(body).encode(), headers))
            for path, valid in bodies.items()
            for body in [valid, *mutations(valid)]
        ]

    answers = asyncio.run(every())
    assert len(answers) > 1000
    assert [found for found in answers if found[2] not in (200, 400, 404)] == []
    assert {path for path, body, status, _ in answers if body is bodies[path] and status == 200} == bodies.keys() - {
        "purge"
    }


def test_a_team_board_asks_for_its_token(root):
    with Running(root, token="s3cret") as team:
        assert team.send("GET", "/api/runs")[0] == 401 and team.send("GET", "/")[0] == 401
        assert team.send("GET", "/?token=wrong")[0] == 401 and team.send("GET", "/api/runs?token=s3cret")[0] == 401
        assert team.send("GET", "/api/runs", authorization="Bearer s3cret")[0] == 200
        status, _, headers = team.send("GET", "/?token=s3cret")
        cookie = headers["set-cookie"]
        assert status == 303 and "HttpOnly" in cookie and "SameSite=Strict" in cookie
        assert team.send("GET", "/api/runs", cookie=cookie.split(";")[0])[0] == 200
    with pytest.raises(ValueError, match="--token"):
        server.serve(root, host="0.0.0.0", port=0)
    with pytest.raises(ValueError, match="belong together"):
        server.serve(root, tls=(root, None))


def test_host_names():
    for value, name in {"A:1": "a", "[::1]:5": "[::1]", "[::1]": "[::1]", "a:b": "a:b", "a:": "a:", "[::1": ""}.items():
        assert host_name(value) == name


def test_push_arrives_whole_after_failures(tmp_path):
    (tmp_path / "store").mkdir()
    run = Run(tmp_path / "spool")
    run.log({"loss": 1.0}, 0)
    with Running(tmp_path / "store") as running:
        away = Pusher("http://127.0.0.1:9", "t", tmp_path / "spool", "mine")
        assert not away.send() and away.error
        wrong = Pusher(f"http://127.0.0.1:{running.port}", "wrong", tmp_path / "spool", "mine")
        assert not wrong.send() and "403" in wrong.error
        pusher = Pusher(f"http://127.0.0.1:{running.port}", running.board.write_token, tmp_path / "spool", "mine")
        assert pusher.send()
        for step in range(1, 500):
            run.log({"loss": 1 / step}, step)
        again = Pusher(pusher.url, pusher.token, tmp_path / "spool", "mine")  # a restart knows no sizes
        assert again.send() and pusher.send()
        run.close()
        assert again.stop()
    assert read(tmp_path / "store" / "mine")["loss"].value.tolist() == read(tmp_path / "spool")["loss"].value.tolist()
    with pytest.raises(ValueError, match="letters"):
        Pusher("http://x", "t", tmp_path, "../up")


def test_a_start_waits_for_no_slow_import():
    code = "import sys, moonlet.tracker.server; print(*{'numpy', 'fastapi', 'pydantic', 'duckdb'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"


def test_a_bad_log_is_tried_once_and_again_when_it_changed(tmp_path, monkeypatch):
    with Run(tmp_path / "r") as run:
        run.log({"loss": 1.0}, 0)
    path = run.path
    path.write_bytes(path.read_bytes() + b"damage" * 9)
    index = Index(tmp_path)
    index.scan()
    looked = []
    monkeypatch.setattr(compact, "compact_run", lambda folder, *ages: looked.append(folder))
    monkeypatch.setattr(compact, "ENDED_SECONDS", -1.0)
    refused = set()
    for _ in range(3):
        compact.compact_one(index, refused)
    assert len(looked) == 1
    path.write_bytes(path.read_bytes() + b"more")
    index.scan()
    compact.compact_one(index, refused)
    assert len(looked) == 2


def test_answers_come_at_once_and_the_end_waits_for_nobody(tmp_path):
    command = [sys.executable, "-m", "moonlet", "board", str(tmp_path), "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    address = process.stderr.readline().split("//")[1].strip().rstrip("/")
    connection = http.client.HTTPConnection(address, timeout=10)
    times = []
    for _ in range(30):
        start = time.monotonic()
        connection.request("GET", "/api/session")
        assert connection.getresponse().read()
        times.append(time.monotonic() - start)
    assert min(times[15:]) < 0.03  # a body that waits for the acknowledgement of its head takes 0.04 s
    connection.request("GET", "/api/changes?since=99&wait=25")
    time.sleep(0.1)
    start = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert json.loads(connection.getresponse().read())["runs"] == [] and process.wait(10) == 0
    assert time.monotonic() - start < 5 and process.stderr.read() == ""
    process.stderr.close()
    connection.close()
