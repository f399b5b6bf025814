"""A static bundle: one HTML file that shows chosen runs without a server, to send to somebody.

It is the page itself with its style and scripts put inside and allowed by their hashes, and the data of the runs as
JSON in an element that the page looks for (docs/tracker.md, "Bundle"). Nothing else can run in it or be fetched.
"""

import base64
import hashlib
import html
import re
from typing import Any

import numpy as np

from moonlet.tracker import entries
from moonlet.tracker import format as f
from moonlet.tracker.curves import Curves
from moonlet.tracker.index import Index, series_of
from moonlet.tracker.media import data_url

LINK = re.compile(r'<link rel="stylesheet" href="page/([\w./-]+)">')
SCRIPT = re.compile(r'<script src="page/([\w./-]+)" defer></script>')


_NONE = "'none'"


def bundle(
    index: Index, curves: Curves, files: dict[str, tuple[bytes, str]], runs: list[str], names: list[str] | None
) -> bytes:
    """The HTML. `names`: of the series to take, None for all. Raises KeyError for an unknown run."""
    page = files["index.html"][0].decode()
    hashes: list[str] = []
    scripts: list[str] = []

    def style(match: re.Match[str]) -> str:
        text = files[match[1]][0].decode()
        hashes.append(_hash(text))
        return f"<style>{text}</style>"

    def script(match: re.Match[str]) -> str:
        text = files[match[1]][0].decode().replace("</script", "<\\/script")
        scripts.append(_hash(text))
        return f"<script>{text}</script>"  # moved to the end of the body: `defer` means nothing without a source

    page = LINK.sub(style, page)
    inline = "".join(script(match) for match in SCRIPT.finditer(page))
    page = SCRIPT.sub("", page)
    data = f.dumps(contents(index, curves, runs, names)).replace("<", "\\u003c")
    allowed = {"script-src": scripts, "style-src": hashes}
    sources = "; ".join(f"{kind} {' '.join(those) if those else _NONE}" for kind, those in allowed.items())
    policy = f"default-src {_NONE}; {sources}; img-src data: blob:; base-uri {_NONE}; form-action {_NONE}"
    meta = f'<meta http-equiv="Content-Security-Policy" content="{html.escape(policy)}">'
    page = page.replace("<head>", f"<head>{meta}", 1)
    tail = f'<script type="application/json" id="bundle">{data}</script>{inline}'
    body = page.rfind("</body>")
    return (page[:body] + tail + page[body:] if body >= 0 else page + tail).encode("utf-8", "backslashreplace")


def contents(index: Index, curves: Curves, runs: list[str], names: list[str] | None) -> dict[str, Any]:
    found: dict[str, Any] = {"runs": [], "points": [], "media": {}, "blobs": {}}
    with index.lock:
        for name in runs:
            data = curves.run(name)
            more = {"series": series_of(data), "media": entries.counts(data), "attempts": [], "gaps": [], "alerts": []}
            found["runs"].append({**index.records[name], **more, "code": data.fields("code")})
            for series in data.names():
                if names is None or series in names:
                    one = data.series(series)
                    columns = {"step": one.step, "time": one.time, "value": one.value}
                    found["points"].append(
                        {"run": name, "name": series, **{key: _base64(column) for key, column in columns.items()}}
                    )
            listed = entries.listed(data)
            found["media"][name] = [entries.entry(*one) for one in listed]
            found["blobs"][name] = {}
            for number, _, event in listed:
                if event.blob is not None:
                    content, kind = entries.blob(data, number)
                    if kind:
                        found["blobs"][name][str(number)] = data_url(content, kind)
    return found


def _base64(column: np.ndarray) -> str:
    return base64.b64encode(column.astype("<f8").tobytes()).decode()


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
