"""The board's page in a real Chromium: table, charts, comparison, rollouts, news, edits, links, bundle."""

import json
import re
import sqlite3
from itertools import chain
from xml.etree import ElementTree

import numpy as np
import pytest

from moonlet.tracker import Histogram, Image, Rollout, Run, Table, Text, server
from moonlet.tracker import format as f
from moonlet.tracker.index import Index, run_id

RUNS = 10_000
STEPS = 400


def loss(lr: float, seed: int) -> np.ndarray:
    return np.exp(-np.arange(STEPS) * lr) + 0.1 * seed + np.random.default_rng(seed).normal(0, 0.01, STEPS)


def rollout(step: int) -> Rollout:
    tokens = ["The answer", " is", " 42"]
    return Rollout(
        [
            {"role": "user", "content": "What is 6 times 7?"},
            {
                "role": "assistant",
                "reasoning_content": f"Thinking at step {step}.",
                "content": None,
                "tool_calls": [{"function": {"name": "calculate", "arguments": '{"expression": "6 * 7"}'}}],
            },
            {"role": "tool", "name": "calculate", "content": "42"},
            {
                "role": "assistant",
                "content": "".join(tokens),
                "tokens": tokens,
                "logprobs": [-0.01, -4.0, float("-inf")],
            },
        ],
        rewards={"correct": step / 100, "format": 0.25},
        checkpoint=f"step-{step}",
    )


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    for lr in (0.01, 0.02):
        for seed in range(3):
            config = {"lr": lr, "seed": seed, "model": {"width": 64}}
            with Run(root / f"lr{lr}-s{seed}", config, tags=["base"], notes="a note") as run:
                steps = np.arange(STEPS)
                run.add_points("train/loss", steps, 1e9 + steps, loss(lr, seed))
                run.add_points("train/tokens", steps, 1e9 + steps, steps * 2048.0)
                for step in (0, 100) if seed == 0 else ():
                    run.log({"rl/rollout": rollout(step), "note": Text(f"text at {step}")}, step)
                    run.log({"weights": Histogram(np.arange(step + 9.0)), "map": Image(np.ones((4, 4)))}, step)
                    run.log({"answers": Table(["question", "score"], [["b", 2], ["a", 10]])}, step)
                    run.event("console", data={"stream": "stdout", "text": f"\x1b[32mhello {step}\x1b[0m\n"})
                if seed == 0:
                    run.alert("spike", "of the loss", "error")
                    run.event("code", data={"commit": "abc123", "python": "3.11", "argv": ["train.py"]})
                    run.add_points("system/cpu", [0, 1], [1e9, 1e9 + 1], [10.0, 20.0])
    return root


@pytest.fixture(scope="module")
def address(serving, root):
    with serving(root) as address:
        yield address


def painted(tab) -> None:
    tab.until("[...chartsTab.cards.values()].filter((card) => card.chart?.data).length >= 1")


def test_table_of_10000_runs(serve, opened, tmp_path):
    with Run(tmp_path / "one") as run:
        run.log({"loss": 1.0}, 0)
    index = Index(tmp_path)
    index.scan()
    (one,) = index.records.values()
    rows = []
    for i in range(RUNS):  # 10,000 copies in the index, which is what a board reads at its start
        folder = f"run-{i:05d}"
        facts = {"config": {"lr": i / RUNS, "seed": i % 5}, "summary": {"loss": float(i % 1000)}, "created": 1.7e9 + i}
        rows.append((folder, "", f.dumps(one | facts | {"id": run_id(folder), "name": folder, "folder": folder})))
    with sqlite3.connect(tmp_path / ".moonlet-board" / "index.sqlite") as database:
        database.execute("DELETE FROM run")
        database.executemany("INSERT INTO run VALUES (?, ?, ?)", rows)
    database.close()
    address = serve(tmp_path, scan=False)
    tab = opened(address)
    tab.until("document.querySelector('.tfoot')?.textContent === '10,000 runs'")
    assert tab.until("document.querySelector('.row .name')?.textContent") == "run-09999"  # the newest first
    tab.run("runsTable.scroller.scrollTop = 5000 * 28")
    tab.until("[...document.querySelectorAll('.row .name')].some((node) => node.textContent === 'run-04995')")
    tab.run("runsTable.scroller.scrollTop = 1e9")
    tab.until("[...document.querySelectorAll('.row .name')].some((node) => node.textContent === 'run-00000')")
    assert tab.run("document.querySelectorAll('.tbody .row').length") < 80
    tab.page.get_by_role("columnheader", name="loss").click()
    tab.until("runsTable.item(0)?.summary.loss === 0 && runsTable.item(0).name !== 'run-00999'")
    tab.page.get_by_role("columnheader", name="loss").click()
    tab.until("runsTable.item(0)?.summary.loss === 999")
    tab.page.get_by_label("Filter expression").fill("config.lr >= 0.5 and summary.loss < 3 and config.seed == 2")
    tab.until("document.querySelector('.tfoot').textContent === '5 of 10,000 runs'")
    tab.page.get_by_label("Filter expression").fill("config.lr >=")
    tab.until("document.querySelector('.error:not([hidden])')?.textContent.includes('is not an expression')")
    tab.page.get_by_label("Filter expression").fill("")
    tab.page.get_by_label("Search runs").fill("run-0123")
    tab.until("document.querySelector('.tfoot').textContent === '10 of 10,000 runs'")
    tab.page.get_by_label("Tick all").check()
    tab.until("document.querySelector('.bulk b')?.textContent === '10 ticked'")
    tab.page.goto("about:blank")  # after this nothing more is said
    assert all(
        "status of 400" in said for said in tab.said
    )  # of the filter that is none; browsers report it themselves
    tab.said.clear()


def test_group_and_aggregate(address, opened):
    tab = opened(address)
    painted(tab)
    tab.page.get_by_role("button", name="Group").click()
    tab.page.get_by_label("config.lr").check()
    tab.page.get_by_role("button", name="Done").click()
    tab.until("runsTable.groups?.length === 2 && document.querySelectorAll('.row.group:not([hidden])').length === 2")
    last = np.array([loss(0.01, seed)[-1] for seed in range(3)])
    stats = tab.run("runsTable.groups[0].stats['summary.train/loss']")
    assert np.allclose([stats["mean"], stats["std"]], [last.mean(), last.std()])
    assert np.allclose(list(stats["quantiles"].values()), np.quantile(last, (0.25, 0.5, 0.75)))
    assert f"{last.mean():.4g} ± " in tab.page.locator(".row.group").first.inner_text()
    chart = "[...chartsTab.cards.values()].find((card) => card.plan.title === 'train/loss')?.chart"
    tab.until(f"{chart}?.data?.series.some((one) => one.stat === 'mean' && one.points === {STEPS})")
    line = tab.run(
        f"(() => {{ const {{ series, band }} = {chart}.lines()[0];"
        " return [series, ...band].map((one) => one.mode === 'raw' ? [...one.y] : []) })()"
    )
    curves = np.array([loss(0.01, seed) for seed in range(3)])
    assert np.allclose(line, [curves.mean(0), curves.min(0), curves.max(0)])
    tab.page.locator(".row.group .first").first.click()
    tab.until("document.querySelectorAll('.row.member:not([hidden])').length === 3")


def test_compare_and_sweep(address, opened):
    tab = opened(f"{address}#tab=compare")
    tab.until("document.querySelectorAll('.diff tbody tr').length > 2")
    assert tab.run("[...document.querySelectorAll('.diff tbody th')].map((node) => node.textContent)")[:3] == [
        "Config (2 of 3)",
        "lr",
        "seed",
    ]
    tab.page.get_by_label("only what differs").uncheck()
    tab.until("[...document.querySelectorAll('.diff tbody th')].some((node) => node.textContent === 'model.width')")
    tab.page.keyboard.press("Escape")
    tab.page.locator("main").click(position={"x": 5, "y": 600})
    tab.page.keyboard.press("3")
    tab.until(
        "state.tab === 'sweep' && sweepTab.runs.length === 6 && sweepTab.axes.length === 3 && sweepTab.scales.size > 0"
    )
    box = tab.page.locator(".parallel").bounding_box()
    place = tab.run("[sweepTab.places[0], sweepTab.scales.get('config.lr').at(0.02)]")
    x, y = box["x"] + place[0], box["y"] + place[1]
    tab.page.mouse.move(x, y - 12)
    tab.page.mouse.down()
    tab.page.mouse.move(x, y + 12, steps=4)
    tab.page.mouse.up()
    tab.page.get_by_role("button", name="Tick these").click()
    assert len(tab.until("state.picked")) == 3
    tab.page.get_by_role("main").get_by_role("button", name="Clear").click()
    dots = tab.run(
        "sweepTab.runs.map((run) => [sweepTab.sx.at(fieldOf(run, sweepTab.across)), "
        "sweepTab.sy.at(fieldOf(run, sweepTab.up)), run.id])"
    )
    x, y, _ = max(dots, key=lambda dot: dot[1])  # the lowest
    tab.page.locator(".scatter").scroll_into_view_if_needed()
    box = tab.page.locator(".scatter").bounding_box()
    inside = {name for dx, dy, name in dots if abs(dx - x) < 15 and abs(dy - y) < 15}
    tab.page.mouse.move(box["x"] + x - 15, box["y"] + y - 15)
    tab.page.mouse.down()
    tab.page.mouse.move(box["x"] + x + 15, box["y"] + y + 15, steps=4)
    tab.page.mouse.up()
    tab.page.get_by_role("button", name="Tick these").click()
    assert set(tab.until(f"state.picked.length === {len(inside)} && state.picked")) == inside != set()


def test_rollouts_of_two_checkpoints(address, opened):
    tab = opened(f"{address}#tab=rollouts")
    tab.until("document.querySelectorAll('.rollout').length === 2")
    left, right = (tab.page.locator(".rollout").nth(i).inner_text() for i in (0, 1))
    assert "Thinking at step 0." in left and "Thinking at step 100." in right
    assert "checkpoint step-0" in left and "checkpoint step-100" in right
    for pane in (left, right):
        assert all(part in pane for part in ("What is 6 times 7?", "calculate", '"expression": "6 * 7"', "result of"))
    assert tab.run(
        "[...document.querySelectorAll('.rewards')].map((node) => node.innerText.trim().split(/\\s+/).join(' '))"
    ) == [
        "correct 0 format 0.25 reward 0.25",
        "correct 1 format 0.25 reward 1.25",
    ]
    tokens = tab.run(
        "[...document.querySelectorAll('.rollout .tokens')].slice(0, 1).flatMap((node) => [...node.children])"
        ".map((node) => [node.textContent, node.style.getPropertyValue('--doubt'), node.title])"
    )
    assert tokens == [
        ["The answer", "0%", "log p −0.01, p 0.99"],
        [" is", "56%", "log p −4, p 0.0183"],
        [" 42", "70%", "log p −∞, p 0"],
    ]
    tab.page.get_by_label("Rollout on the left").select_option(index=3)
    tab.until("document.querySelector('.rollout').innerText.includes('Thinking at step 100.')")
    assert tab.run("new URLSearchParams(location.hash.slice(1)).get('left')")


PARTS = {
    "text": "document.querySelectorAll('article.text').length === 2",
    "image": "[...document.querySelectorAll('.image img')].filter((node) => node.naturalWidth === 4).length === 2",
    "table": "document.querySelectorAll('table.data').length === 2",
    "histogram": "document.querySelector('.heat canvas')?.width > 300",
    "console": "document.querySelector('.console pre')?.textContent === 'hello 0\\nhello 100'",
    "alerts": "document.querySelector('.alerts .error b')?.textContent === 'spike'",
    "charts": "document.querySelectorAll('.partbody canvas').length > 2",
    "system": "document.querySelectorAll('.partbody canvas').length === 2",
    "overview": "['model.width', 'commit'].every((key) => [...document.querySelectorAll('.pairs th')]"
    ".some((node) => node.textContent === key)) && main.innerText.includes('Attempts (1)')",
}


def test_what_a_run_logged(address, opened):
    tab = opened(f"{address}#tab=run&search=lr0.01-s0")
    for part, expression in PARTS.items():
        tab.until("document.querySelector('.parts')")
        tab.run(f"setState({{ part: '{part}' }})")
        tab.until(expression)


def test_news_appear_by_themselves(serve, opened, tmp_path, monkeypatch):
    monkeypatch.setattr(server, "SCAN_SECONDS", 0.5)
    with Run(tmp_path / "first") as run:
        run.log({"loss": 1.0}, 0)
    address = serve(tmp_path)
    tab = opened(address)
    painted(tab)
    with Run(tmp_path / "second", {"lr": 1}) as run:
        run.log({"loss": 3.5}, 0)
        tab.until("document.querySelector('.tfoot').textContent === '2 runs'", 25)
        assert tab.run("document.querySelector('.row .name').textContent") == "second"
        for step in range(1, 30):
            run.log({"loss": 3.5 / step}, step)
        tab.until("[...chartsTab.cards.values()][0].chart?.data.series.some((one) => one.points === 30)")
        tab.until("document.querySelector('.row .dot').classList.contains('running')")
    tab.until("document.querySelector('.row .dot').classList.contains('finished')")


def test_edits_keep_and_are_undone(serve, opened, tmp_path):
    for name in "abc":
        with Run(tmp_path / name) as run:
            run.log({"loss": 1.0}, 0)
    address = serve(tmp_path)
    tab = opened(address)
    tab.until("document.querySelectorAll('.row:not([hidden])').length === 3")
    tab.page.get_by_label("Tick b").uncheck()
    tab.until("state.picked?.length === 2")
    tab.page.get_by_role("button", name="Tag", exact=True).click()
    tab.page.get_by_label("New tag").fill("seen")
    tab.page.keyboard.press("Enter")
    tab.until("[...Array(3).keys()].filter((i) => runsTable.item(i).tags.includes('seen')).length === 2")
    for act in ("Archive", "Delete"):
        tab.page.get_by_role("button", name=act, exact=True).click()
        tab.until("document.querySelector('.tfoot').textContent === '1 of 3 runs'")
        tab.page.get_by_role("button", name="Undo").last.click()
        tab.until("document.querySelector('.tfoot').textContent === '3 runs'")
    tab.page.locator(".row .name").first.click()
    tab.until("document.querySelector('.runhead .title')")
    tab.page.get_by_label("Name").fill("renamed")
    tab.page.keyboard.press("Tab")
    tab.until("runsTable.item(0).name === 'renamed'")
    tab.page.get_by_label("Notes").fill("what it was for")
    tab.page.keyboard.press("Tab")
    tab.page.get_by_label("Colour", exact=True).click()
    tab.page.get_by_label("Colour #2a9d6b").click()
    tab.until("runsTable.item(0).color === '#2a9d6b'")
    address = serve(tmp_path)
    tab = opened(address)
    tab.until("runsTable.item(0)?.color === '#2a9d6b' && runsTable.item(0).name === 'renamed'")
    tab.until("runsTable.item(0).notes === 'what it was for'")


def test_text_typed_in_a_field_outlives_a_change_from_elsewhere(serve, opened, tmp_path):
    with Run(tmp_path / "a") as run:
        run.log({"loss": 1.0}, 0)
    tab = opened(serve(tmp_path))
    tab.until("document.querySelectorAll('.row:not([hidden])').length === 1")
    tab.page.locator(".row .name").first.click()
    tab.until("document.querySelector('.runhead .title')?.value === 'a'")
    tab.page.get_by_label("Notes").fill("half a thou")
    tab.page.evaluate("api.edit([state.run], { name: 'renamed', tags: ['new'] })")
    tab.until("document.querySelector('.runhead .title').value === 'renamed'")
    assert tab.page.get_by_label("Notes").input_value() == "half a thou"
    tab.page.keyboard.type("ght")
    tab.page.keyboard.press("Tab")
    tab.until("runsTable.item(0).notes === 'half a thought' && runsTable.item(0).tags.includes('new')")


def test_keyboard(address, opened):
    tab = opened(address)
    painted(tab)
    tab.page.keyboard.press("?")
    tab.until("document.querySelector('dialog[open] h2')?.textContent === 'Keys'")
    tab.page.keyboard.press("Escape")
    tab.until(
        "!document.querySelector('dialog[open]') && document.activeElement === document.body"
        " && runsTable.matched === 6 && drawnIds().length === 6"
    )
    tab.page.keyboard.press("j")
    tab.until("runsTable.here()?.id")
    tab.page.keyboard.press("Space")
    tab.until("state.picked?.length === 5")
    tab.page.keyboard.press("Enter")
    tab.until("state.tab === 'run' && document.querySelector('.runhead .title')?.value === runsTable.here().name")
    tab.page.keyboard.press("d")
    before = tab.run("getComputedStyle(document.body).backgroundColor")
    tab.page.keyboard.press("d")
    assert tab.run("getComputedStyle(document.body).backgroundColor") != before
    tab.page.keyboard.press("/")
    tab.page.keyboard.type("s2")
    tab.until("document.querySelector('.tfoot').textContent === '2 of 6 runs'")


def test_links_hold_the_view(address, opened):
    tab = opened(
        f"{address}#x=train/tokens&smooth=0.9&search=s1&sort=name&charts=%5B%5B%22train/loss%22,%22train/tokens%22%5D%5D"
    )
    painted(tab)
    tab.until("[...chartsTab.cards.values()][0].chart?.data?.series.length === 4")  # two runs, two series in one chart
    tab.until("[...chartsTab.cards.values()].every((card) => !card.chart || card.chart.data?.x1 === 399 * 2048)")
    tab.page.get_by_title("Saved views").click()
    tab.page.get_by_label("Name of this view").fill("mine")
    tab.page.get_by_role("button", name="Save").click()
    tab.until("document.querySelector('.toast span')?.textContent === 'View saved.'")
    tab.page.goto("about:blank")
    tab.page.goto(address)
    painted(tab)
    tab.page.get_by_title("Saved views").click()
    tab.page.get_by_role("button", name="mine", exact=True).click()
    tab.until("state.x === 'train/tokens' && state.smooth === 0.9 && runsTable.matched === 2")
    hostile = "#tab=%22x%22&run={}&columns=7&picked=[{}]&x0=%22a%22&smooth=9&charts=[1]&group=__proto__&size=17"
    tab.page.goto("about:blank")
    tab.page.goto(address + hostile)
    painted(tab)
    assert tab.run("JSON.stringify([state.tab, state.run, state.columns, state.picked, state.x0, state.smooth])") == (
        '["charts",null,null,null,null,0]'
    )


def test_phone_width(address, opened):
    tab = opened(address, width=390, height=800, color_scheme="dark")
    for name in ("charts", "runs", "compare", "sweep", "rollouts", "run"):
        tab.page.get_by_role("tab", name=name.title(), exact=True).click()
        tab.until(f"state.tab === '{name}' && (state.tab === 'runs' || main.children.length > 1)")
        tab.until("document.documentElement.scrollWidth <= 390 && main.scrollWidth <= 390")
        assert tab.run("getComputedStyle(document.querySelector('.runs')).display !== 'none'") == (name == "runs")


def test_pictures_of_a_chart(address, opened):
    tab = opened(address)
    painted(tab)
    more = tab.page.get_by_label("More of train/loss")
    more.click()
    with tab.page.expect_download() as saved:
        tab.page.get_by_role("button", name="SVG picture").click()
    tree = ElementTree.parse(saved.value.path())
    texts = [node.text for node in tree.iter("{http://www.w3.org/2000/svg}text")]
    assert "train/loss" in texts and "lr0.01-s0" in texts and "step" in texts
    paths = [node.get("d") for node in tree.iter("{http://www.w3.org/2000/svg}path")]
    assert sum(path.count("L") for path in paths) >= 6 * (STEPS - 1)  # every point of every run
    more.click()
    with tab.page.expect_download() as saved:
        tab.page.get_by_role("button", name="PNG picture").click()
    assert saved.value.path().read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    more.click()
    with tab.page.expect_download() as saved:
        tab.page.get_by_role("button", name="Raw points as CSV").click()
    rows = saved.value.path().read_text().splitlines()
    assert len(rows) == 6 * STEPS + 1 and rows[0] == "run,name,step,time,value"


def test_bundle_needs_no_server(address, opened, tmp_path):
    tab = opened(address)
    painted(tab)
    ids = tab.run("drawnIds()")
    tab.page.get_by_label("Tick all").check()
    with tab.page.expect_download() as saved:
        tab.page.get_by_role("button", name="Bundle").click()
    path = tmp_path / "bundle.html"
    saved.value.save_as(path)
    body = {"series": [{"run": ids[0], "name": "train/loss"}], "x": "train/tokens", "pixels": 37, "smooth": 0.9}
    body |= {"x0": 1000.5, "x1": 700_000, "scale": "log"}
    groups = {"groups": [{"label": "g", "runs": ids}], "name": "train/loss", "quantiles": [0.25, 0.5, 0.75]}
    groups |= {"x": "step", "x0": None, "x1": None, "pixels": 50, "scale": "linear"}
    plain = "(answer) => answer.series.map((one) => [one.mode, one.points, one.left_out, one.label, one.stat, "
    plain += "...['column', 'count', 'first', 'min', 'max', 'last', 'x_first', 'x_last', 'flags', 'smooth', 'x', 'y']"
    plain += ".map((key) => one[key] && [...one[key]])])"
    both = f"[api.m4({json.dumps(body)}), api.aggregate({json.dumps(groups)})]"
    asked = f"Promise.all({both}).then((all) => all.map({plain}))"
    served = tab.run(asked)
    away = opened(path.as_uri())
    painted(away)
    assert [url for url in away.asked if not url.startswith(("file:", "data:", "blob:"))] == []
    found = away.run(asked)
    assert [len(part) for part in found] == [len(part) for part in served] == [1, 7]
    for ours, theirs in zip(chain(*found), chain(*served), strict=True):
        assert ours[:5] == theirs[:5]
        for one, other in zip(ours[5:], theirs[5:], strict=True):
            assert (one is None) == (other is None)
            assert one is None or np.allclose(one, other, rtol=1e-9, atol=1e-12)
    for name in ("Compare", "Sweep", "Rollouts", "Run"):
        away.page.get_by_role("tab", name=name, exact=True).click()
        away.until(f"state.tab === '{name.lower()}'")
    away.page.get_by_role("tab", name="Rollouts", exact=True).click()
    away.until("document.querySelectorAll('.rollout').length === 2")


def test_a_board_that_still_reads_says_so(serve, opened, tmp_path):
    for name in "abc":
        with Run(tmp_path / name) as run:
            run.log({"loss": 1.0}, 0)
    app, board = server.make_app(tmp_path, scan=False)
    address = serve(tmp_path, made=(app, board))  # which outlives the pages
    board.index.scanning = True
    tab = opened(address)
    tab.until("document.querySelector('.pulse').textContent === 'reading runs…'")
    tab.until("main.innerText.includes('Reading the runs')")
    tab.until("document.querySelector('.runs').innerText.includes('Reading the runs')")
    tab.until("document.querySelector('.tfoot').textContent === '0 runs so far'")
    board.index.scan()
    tab.until("document.querySelector('.tfoot').textContent === '3 runs'")
    tab.until("document.querySelector('.pulse').textContent === 'live'")
    painted(tab)
    board.index.scanning = True  # a start that finds nothing new ends too
    tab = opened(address)
    tab.until("document.querySelector('.tfoot').textContent === '3 runs so far'")
    board.index.scan()
    tab.until("document.querySelector('.tfoot').textContent === '3 runs'")


def test_an_empty_folder_says_what_to_do(serve, opened, tmp_path):
    address = serve(tmp_path)
    tab = opened(address)
    tab.until("/No run yet/.test(document.querySelector('.runs').innerText)")
    assert re.search("No run yet", tab.text("main"))
