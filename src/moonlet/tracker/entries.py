"""Events of a run as the page lists them: text, images, histograms, tables, rollouts, console lines, alerts.

An entry's number says where it is: the place of its source among the run's, times SPAN, plus its place in the source.
"""

from typing import Any

from moonlet.tracker.logfile import Event, Source, event_fields
from moonlet.tracker.media import image_type
from moonlet.tracker.reader import RunData

SPAN = 10**8
HIDDEN = {"config", "summary", "end", "gap", "about", "code"}  # shown elsewhere
Entry = dict[str, Any]


def listed(run: RunData, kind: str | None = None, name: str | None = None) -> list[tuple[int, Source, Event]]:
    """(number, source, event), oldest first within each source."""
    return [
        (place * SPAN + i, source, event)
        for place, source in enumerate(run.sources.values())
        for i, event in enumerate(source.events)
        if event.kind not in HIDDEN and kind in (None, event.kind) and name in (None, event.name)
    ]


def counts(run: RunData) -> list[dict[str, Any]]:
    """How many of each kind and name, and their first and last step."""
    found: dict[tuple[str, str], list[Event]] = {}
    for _, _, event in listed(run):
        found.setdefault((event.kind, event.name or ""), []).append(event)
    rows = []
    for (kind, name), events in sorted(found.items()):
        steps = [event.step for event in events if event.step is not None]
        ends = {"first_step": min(steps, default=None), "last_step": max(steps, default=None)}
        rows.append({"kind": kind, "name": name, "count": len(events), **ends})
    return rows


def entry(number: int, source: Source, event: Event) -> Entry:
    """ENTRY of docs/tracker.md."""
    fields, _ = event_fields(source.payload(event))
    about = {"index": number, "kind": event.kind, "name": event.name, "step": event.step, "time": event.time}
    blob = {"blob": None if event.blob is None else number, "type": fields.get("type")}
    return {**about, "attempt": source.attempt, "data": fields.get("data"), **blob}


def blob(run: RunData, number: int) -> tuple[bytes, str | None]:
    """The bytes of an entry and, where they are an image that a browser may draw, its type. Raises KeyError."""
    place, i = divmod(number, SPAN)
    sources = list(run.sources.values())
    if not 0 <= place < len(sources) or i >= len(sources[place].events):
        raise KeyError(number)
    event = sources[place].events[i]
    if event.blob is None:
        raise KeyError(number)
    data = sources[place].payload(event)[8 + event.blob :]
    return data, image_type(data)


def histograms(run: RunData, name: str) -> dict[str, Any]:
    entries = sorted((entry(*one) for one in listed(run, "histogram", name)), key=lambda one: one["step"] or 0)
    data = [one["data"] or {} for one in entries]
    return {
        "step": [one["step"] for one in entries],
        "time": [one["time"] for one in entries],
        "edges": [one.get("edges", []) for one in data],
        "counts": [one.get("counts", []) for one in data],
    }


def rollouts(
    runs: dict[str, RunData], name: str | None, prompt: str | None, step: int | None, limit: int
) -> list[dict[str, Any]]:
    """Of several runs, by prompt: which rollouts answer it. At most `limit`, the newest of each run first."""
    found: dict[str, dict[str, Any]] = {}
    for run_name, run in runs.items():
        chosen = [one for one in listed(run, "rollout", name) if step is None or one[2].step == step]
        for one in chosen[::-1][:limit]:
            data = entry(*one)["data"] or {}
            key = str(data.get("prompt", ""))
            if prompt is not None and key != prompt:
                continue
            place = found.setdefault(key, {"prompt": key, "text": key, "rollouts": []})
            facts = {"run": run_name, "step": one[2].step, "name": one[2].name, "index": one[0]}
            place["rollouts"].append(facts | {"reward": data.get("reward"), "attempt": one[1].attempt})
    return list(found.values())
