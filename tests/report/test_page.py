"""The report page, judged in a real browser: complete, self-contained, silent on the console, and safe."""

import html
import http.server
import json
import math
import random
import re
import threading
from collections.abc import Callable, Iterator
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moonlet.errors import InputError
from moonlet.report import write_report
from moonlet.tracker import Run, read

ATTACK = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
SECTIONS = ["Stages", "Results", "Receipts", "Compute", "Curves", "Experts", "Samples", "Run"]


def results() -> dict:
    def row(suite, split, condition, n, score, **more):
        half = 1.96 * math.sqrt(score * (1 - score) / n) if 0 < score < 1 else 0.02
        return {
            "suite": suite,
            "split": split,
            "condition": condition,
            "n": n,
            "score": score,
            "low": max(0, score - half),
            "high": score + half if "unit" in more else min(1, score + half),
            **more,
        }

    def stage(name, passed, gate, seconds, tokens, flops, input_passed=True, finished=True):
        return {
            "name": name,
            "finished": finished,
            "passed": passed,
            "gate": gate,
            "seconds": seconds,
            "tokens": tokens,
            "flops": flops,
            "mfu": flops / seconds / 168e9,
            "input_passed": input_passed,
        }

    def call(name, arguments):
        return {"id": f"{name}:0", "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}

    def chat(question, think, name, arguments, result, answer):
        return [
            {"role": "system", "content": "You are Moonlet. Use a tool where it helps."},
            {"role": "user", "content": question},
            {"role": "assistant", "reasoning_content": think, "content": "", "tool_calls": [call(name, arguments)]},
            {"role": "tool", "tool_call_id": f"{name}:0", "name": name, "content": result},
            {"role": "assistant", "reasoning_content": "The tool gave the answer.", "content": answer},
        ]

    arith = chat(
        "What is 483 * 27?",
        "Two numbers, one product: call the calculator.",
        "calculate",
        {"expression": "483*27"},
        "13041",
        "483 * 27 = 13041.",
    )
    lookup = chat(
        "Who is the mayor of Brightwater?",
        "Look it up.",
        "lookup",
        {"name": "Brightwater", "relation": "mayor"},
        "Tessa Quill",
        "Tessa Quill is the mayor of Brightwater.",
    )
    attack = chat(f"Repeat: {ATTACK}", ATTACK, ATTACK, {"text": ATTACK}, ATTACK, ATTACK)
    malformed = [
        {"role": "user", "content": "Add 2 and 2."},
        {"role": "assistant", "content": None, "malformed": "no name"},
    ]
    rng = random.Random(0)
    conditions = ("pretrained", "sft", "rl", "4-bit")
    rows = [
        row(suite, split, condition, 200, score - (split == "unseen") * 0.04)
        for suite, scores in {
            "arith": (0.05, 0.62, 0.91, 0.9),
            "lookup": (0.04, 0.8, 0.97, 0.96),
            "abstain": (0.5, 0.7, 0.88, 0.87),
        }.items()
        for split in ("seen", "unseen")
        for condition, score in zip(conditions, scores, strict=True)
    ]
    rows += [
        row("stdlib", "held out", condition, 64, score, unit="bits_per_byte")
        for condition, score in (("pretrained", 2.31), ("4-bit", 2.36))
    ]
    rows += [
        row("receipts", f"N={n}", condition, 60, score)
        for condition, scores in (("4-bit", (0.97, 0.93, 0.8, 0.55, 0.2)), ("sft", (0.8, 0.6, 0.3, 0.08, 0.01)))
        for n, score in zip((1, 2, 4, 8, 16), scores, strict=True)
    ]
    return {
        "run": {"name": "quickstart", "recipe": "recipes/quickstart.toml", "seed": 1, "note": ATTACK},
        "stages": [
            stage("pretrain", True, "held-out bits per byte < 2.5", 232.4, 3_200_000, 1.9e13),
            stage("sft", True, "tool calls parse >= 95%", 118.0, 1_100_000, 6.6e12),
            stage("rl", False, "unseen arith >= 0.95", 141.9, 420_000, 2.5e12),
            stage("distill", True, "within 2 points of the teacher", 44.0, 300_000, 1.8e12, input_passed=False),
            stage("quant", None, "", 9.1, 0, 0.0, finished=False),
        ],
        "results": rows,
        "experts": {
            f"layer {k}": [rng.gammavariate(4, 1) * (k != 2 or e != 5) for e in range(16)] for k in range(1, 6)
        },
        "samples": [
            {"title": "arithmetic with a tool", "ok": True, "messages": arith},
            {"title": "a fact from the table", "ok": True, "messages": lookup},
            {"title": f"hostile {ATTACK}", "ok": False, "messages": attack},
            {"title": "a call that does not parse", "ok": False, "messages": malformed},
            {
                "title": "no tool needed",
                "ok": True,
                "messages": [
                    {"role": "user", "content": "Hello!"},
                    {"role": "assistant", "content": "Hello. What shall we compute?"},
                ],
            },
            {
                "title": "long text",
                "ok": True,
                "messages": [
                    {
                        "role": "user",
                        "content": "List the receipts.\n" + "\n".join(f"receipt {k}: {k * 7}.50" for k in range(6)),
                    },
                    {
                        "role": "assistant",
                        "reasoning_content": "Sum them.",
                        "content": "105 and six halves: 108.00" + "x" * 90,
                    },
                ],
            },
        ],
        "machine": {"gemm_gflops": 168.0, "threads": 2, "cpu": "AMD EPYC 7B13"},
        "peak_memory_bytes": 1_830_000_000,
        "seconds": 551.3,
    }


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "quickstart"
    rng = random.Random(0)
    with Run(folder) as run:
        for step in range(2400):
            loss = 1.4 + 6 * math.exp(-step / 300) + rng.gauss(0, 0.08) + 9 * (step == 1500)
            run.log(
                {
                    "pretrain/loss": float("nan") if step in (700, 701) else loss,
                    "pretrain/grad_norm": 10 ** rng.gauss(-0.5, 0.5) * (1 + 300 * (step == 1500)),
                    "pretrain/learning_rate": 0.002 * min(step / 100, 1 - step / 2400),
                    "pretrain/tokens_per_second": 13_800 + rng.gauss(0, 500),
                    "pretrain/max_logit": 30 + step / 100 + rng.random(),
                    "pretrain/dead_experts": max(0, 0.2 - step / 4000),
                },
                step,
            )
        for step in range(300):
            run.log({"sft/loss": 0.9 * math.exp(-step / 90) + 0.2 + rng.gauss(0, 0.02), "sft/constant": 1.0}, step)
        for step in range(40):
            run.log(
                {
                    "rl/reward": 1 - math.exp(-step / 12),
                    "rl/mismatch_kl": 10 ** rng.gauss(-4, 1.2),
                    "rl/layer/3": step % 3,
                },
                step,
            )
        run.log({"resident_bytes": 1.2e9}, 0)
        run.log({f"odd/{ATTACK.replace('/', '')}": float("inf")}, 5)
    (folder / "report").mkdir()
    (folder / "report" / "results.json").write_text(json.dumps(results()))
    (folder / "manifest.json").write_text(json.dumps({"versions": {"torch": "2.13.0"}, "seed": 1, "note": ATTACK}))
    write_report(folder)
    return folder


class Page(HTMLParser):
    """Tags with their attributes, and the text of every element outside script and style."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text: list[str] = []
        self.inside = ""
        self.feed(source)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, {key: value or "" for key, value in attributes}))
        self.inside = tag

    def handle_endtag(self, tag):
        self.inside = ""

    def handle_data(self, data):
        if self.inside not in ("script", "style"):
            self.text.append(data)


@pytest.fixture
def tab(chromium: Any) -> Iterator[Callable[..., tuple[Any, list[str]]]]:
    """Opens a page -> (it, what its console says)."""
    contexts = []

    def open_page(address: str, width: int = 1200, **more: Any) -> tuple[Any, list[str]]:
        contexts.append(chromium.new_context(viewport={"width": width, "height": 800}, **more))
        page, said = contexts[-1].new_page(), []
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(address)
        return page, said

    yield open_page
    for context in contexts:
        context.close()


@pytest.fixture(scope="module")
def drawn(chromium: Any, run_folder: Path) -> Iterator[Any]:
    """The page of the run with its curves drawn; what it said fails at the end."""
    page, said = chromium.new_page(viewport={"width": 1200, "height": 800}), []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto((run_folder / "report" / "index.html").as_uri())
    yield page
    page.close()
    assert said == []


@pytest.fixture(scope="module")
def opened(drawn: Any) -> Page:
    """That page's tags and texts, after its script ran."""
    return Page(drawn.content())


def test_headline_and_every_section_are_there(opened):
    page = opened
    text = " ".join(" ".join(page.text).split())
    assert "It gets 86% of arith, 92% of lookup and 83% of abstain right." in text
    assert [attributes["id"] for tag, attributes in page.tags if tag == "section"] == [s.lower() for s in SECTIONS]
    assert "Not measured in this run." not in text
    assert "Trained in 9 min 11 s on AMD EPYC 7B13 with 2 threads; peak memory 1.83 GB." in text


def test_failed_gates_are_loud(opened):
    page = opened
    text = " ".join(" ".join(page.text).split())
    assert "Did not pass its gate: rl." in text
    assert "The input of distill did not pass its gate" in text and text.count("The input of") == 1
    assert text.count("not finished") == 1 and "no gate" in text


def test_nothing_is_fetched(run_folder, opened):
    page = opened
    for tag, attributes in page.tags:
        for key in ("src", "href", "srcset", "data", "action", "xlink:href"):
            assert key not in attributes or attributes[key].startswith(("#", "data:,")), (tag, attributes)
    source = (run_folder / "report" / "index.html").read_text()
    assert not re.search(r"""https?:|["'(=]//|url\(|@import""", source)


def test_script_in_a_sample_stays_text(run_folder, opened):
    page = opened
    assert [tag for tag, _ in page.tags].count("script") == 2 and "img" not in [tag for tag, _ in page.tags]
    assert not any(key.startswith("on") for _, attributes in page.tags for key in attributes)
    text = "".join(page.text)
    assert text.count(ATTACK) >= 7 and "owned · moonlet report" not in text
    assert text.strip().startswith("quickstart · moonlet report")
    source = (run_folder / "report" / "index.html").read_text()
    assert ATTACK not in source and html.escape(ATTACK).split("&#")[0][:40] in source


# Each curve's pixels: {name: {width, height, ratio, data}}, asked for `use`.
EACH = """(use, given) => Object.fromEntries([...document.querySelectorAll(SELECTOR)].map((figure) => {
  const canvas = figure.querySelector("canvas"), { width, height } = canvas;
  const copy = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  copy.drawImage(canvas, 0, 0);
  const { data } = copy.getImageData(0, 0, width, height);
  return [figure.dataset.series, use({ width, height, ratio: width / canvas.clientWidth, data }, given)];
}))"""
COLORED = """({ data }) => {
  let blue = 0, red = 0;
  for (let i = 0; i < data.length; i += 4) { blue += data[i + 2] - data[i] > 60; red += data[i] - data[i + 2] > 60; }
  return [blue, red];
}"""
# Rows, counted from the top, in which blue stands out within a pixel of a place, a share of the way.
ROWS = """({ width, height, ratio, data }, share) => {
  const [left, right] = [56 * ratio, width - 12 * ratio], x = Math.round(left + share * (right - left)), rows = [];
  for (let y = 0; y < height; y += 1) for (const at of [x - 1, x, x + 1]) {
    const [r, , b] = data.slice((y * width + at) * 4);
    if (b - r > 60) { rows.push(y / ratio); break; }
  }
  return rows;
}"""


def of_each(page: Any, use: str, given: Any = None, selector: str = "figure.series") -> dict[str, Any]:
    return page.evaluate(f"(given) => ({EACH.replace('SELECTOR', repr(selector))})({use}, given)", given)


def test_every_series_is_drawn(run_folder, drawn):
    found = of_each(drawn, COLORED)
    assert set(found) == set(read(run_folder)) and len(found) == 13
    broken = {name for name, series in read(run_folder).items() if not np.isfinite(series.value).all()}
    assert {name for name, (_, red) in found.items() if red} == broken and len(broken) == 2
    assert all(blue for name, (blue, _) in found.items() if not name.startswith("odd/"))


def test_a_spike_of_one_step_is_seen(drawn):
    of = "[data-series='pretrain/loss']"
    rows, beside = (of_each(drawn, ROWS, step / 2399, of)["pretrain/loss"] for step in (1500, 1450))
    assert min(rows) < 25 and max(rows) > 100 and min(beside) > 100


def test_pointer_shows_the_point(drawn):
    stage = drawn.locator('[data-series="pretrain/loss"] .stage')
    stage.scroll_into_view_if_needed()
    box = stage.bounding_box()
    drawn.mouse.move(box["x"] + 56 + 1500 / 2399 * (box["width"] - 68), box["y"] + 40)
    tip = drawn.locator("#tip").inner_text()
    assert re.fullmatch(r"step 1,50\d: 1\.\d+ … 10\.\d+ +\(8 points\)", tip), tip
    drawn.mouse.move(2, 2)
    assert drawn.locator("#tip").is_hidden()


def test_a_wide_range_gets_a_log_axis(drawn):
    notes = drawn.evaluate(
        "[...document.querySelectorAll('figure.series')].map((f) => [f.dataset.series, f.innerText])"
    )
    assert {name for name, text in notes if "log axis" in text} == {"pretrain/grad_norm", "rl/mismatch_kl"}


def test_the_theme_changes_the_drawing(drawn):
    corner = "({ data }) => data[0] + data[1] + data[2]"
    assert set(of_each(drawn, corner).values()) == {3 * 255}
    drawn.emulate_media(color_scheme="dark")
    drawn.evaluate("new Promise((go) => requestAnimationFrame(() => requestAnimationFrame(go)))")
    assert max(of_each(drawn, corner).values()) < 100
    drawn.emulate_media(color_scheme="light")


def test_policy_stops_a_script_that_got_in(tab, run_folder, tmp_path):
    source = (run_folder / "report" / "index.html").read_text()
    (tmp_path / "broken.html").write_text(source.replace("</main>", "<script>document.title = 'owned'</script></main>"))
    page, said = tab((tmp_path / "broken.html").as_uri())
    assert page.title() != "owned" and any("Content Security Policy" in line for line in said)


def test_page_asks_a_server_for_nothing_else(tab, run_folder):
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            asked.append(self.path)

    server = http.server.HTTPServer(("127.0.0.1", 0), partial(Handler, directory=run_folder / "report"))
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        tab(f"http://127.0.0.1:{server.server_port}/index.html")
    finally:
        server.shutdown()
        server.server_close()
    assert asked == ["/index.html"]


@pytest.mark.parametrize("width", [390, 1200])
def test_page_is_not_wider_than_the_window(tab, run_folder, width):
    page, _ = tab((run_folder / "report" / "index.html").as_uri(), width)
    assert page.evaluate("document.documentElement.scrollWidth") == width


def test_empty_run_says_so_everywhere(tab, tmp_path):
    (tmp_path / "run" / "report").mkdir(parents=True)
    (tmp_path / "run" / "report" / "results.json").write_text("{}")
    page, said = tab(write_report(tmp_path / "run").as_uri())
    text = " ".join(Page(page.content()).text)
    assert said == [] and "No capability was measured in this run." in text
    assert text.count("Not measured in this run.") == len(SECTIONS) - 1  # Compute says what it lacks
    assert "matrix multiplication peak was not measured" in text


def test_bad_input_is_named(tmp_path):
    with pytest.raises(InputError, match="results.json is missing"):
        write_report(tmp_path)
    (tmp_path / "report").mkdir()
    for content, words in (("{", "is not JSON"), ("[]", "holds a list")):
        (tmp_path / "report" / "results.json").write_text(content)
        with pytest.raises(InputError, match=words):
            write_report(tmp_path)
    (tmp_path / "report" / "results.json").write_text("{}")
    (tmp_path / "metrics").mkdir()
    (tmp_path / "metrics" / "000001.jsonl").write_text("damage\n")
    with pytest.raises(InputError, match="line 1 is damaged"):
        write_report(tmp_path)
