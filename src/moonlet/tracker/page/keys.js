// The keyboard, and the list of its keys.
"use strict";

const KEYS = [
  [
    "Table",
    [
      ["j k ↓ ↑", "next and previous run"],
      ["Space", "tick it"],
      ["Enter", "open it, or unfold a group"],
      ["a", "archive it, or what is ticked"],
      ["Delete", "delete it, or what is ticked"],
      ["z", "undo the last change"],
      ["Esc", "clear ticks; close what is open"],
      ["/", "search runs"],
      ["f", "filter"],
      ["t", "table over the whole width"],
    ],
  ],
  [
    "Page",
    [
      ["1 … 5", "Charts, Compare, Sweep, Rollouts, Run"],
      ["m", "search charts"],
      ["s", "smoothing on and off"],
      ["l", "log x axis"],
      ["0", "undo the zoom"],
      ["d", "dark or light"],
      ["v", "saved views"],
      ["?", "this list"],
    ],
  ],
  [
    "Charts",
    [
      ["drag", "zoom to it"],
      ["Shift + drag", "pan"],
      ["Ctrl + wheel", "zoom at the pointer (large chart: the wheel alone)"],
      ["two presses", "show everything"],
      ["press", "hold the readout; its names open runs"],
      ["← → = -", "pan and zoom the large chart"],
    ],
  ],
];

function showKeys() {
  modal(
    "Keys",
    el(
      "div.keylist",
      KEYS.map(([title, list]) =>
        el(
          "section",
          el("h3", title),
          el(
            "dl",
            list.flatMap(([key, what]) => [
              el(
                "dt",
                key.split(" ").map((one) => (/^(…|\+)$/.test(one) ? one : el("kbd", one))),
              ),
              el("dd", what),
            ]),
          ),
        ),
      ),
    ),
  );
}

function actedOn() {
  const item = runsTable.here();
  return state.picked?.length ? state.picked : item?.runs ? item.runs.map((run) => run.id) : item ? [item.id] : [];
}

addEventListener("keydown", (event) => {
  const typing = event.target.closest?.(
    "input:not([type=checkbox]):not([type=range]), textarea, select, [contenteditable]",
  );
  if (event.key === "Escape") {
    if (closePopover()) return;
    if (typing) return event.target.blur();
    if (!document.querySelector("dialog[open]")) setState({ picked: null });
    return;
  }
  if (typing || event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  const onControl = event.target.closest?.("button, a, input, summary");
  const acts = {
    j: () => runsTable.move(1),
    ArrowDown: () => runsTable.move(1),
    k: () => runsTable.move(-1),
    ArrowUp: () => runsTable.move(-1),
    PageDown: () => runsTable.move(20),
    PageUp: () => runsTable.move(-20),
    " ": onControl ? null : () => runsTable.tickHere(),
    Enter: onControl
      ? null
      : () => {
          const item = runsTable.here();
          if (item?.runs) runsTable.fold(item);
          else if (item) openRun(item.id);
        },
    a: () => archive(actedOn(), state.show !== "archived"),
    Delete: () => remove(actedOn(), state.show !== "deleted"),
    z: () => undoEdit(),
    "/": () => runsTable.search.select(),
    f: () => runsTable.filter.focus(),
    t: () => setState({ wide: !state.wide }),
    m: () => {
      setState({ tab: "charts" });
      document.querySelector('[aria-label="Search charts"]')?.select();
    },
    s: () => setState({ smooth: state.smooth ? 0 : 0.9 }),
    l: () => setState({ xlog: !state.xlog, x0: null, x1: null }),
    0: () => setZoom(null, null),
    d: () => switchTheme(),
    v: () => viewsMenu(document.querySelector(".top .views")),
    "?": () => showKeys(),
    ...Object.fromEntries(
      TABS.filter(([key]) => key !== "runs").map(([key], i) => [i + 1, () => setState({ tab: key }, true)]),
    ),
  };
  const act = Object.hasOwn(acts, event.key) ? acts[event.key] : null;
  if (!act || (api.offline && ["a", "Delete", "z", "f"].includes(event.key))) return;
  event.preventDefault();
  act();
});
addEventListener("pointerdown", () => document.body.classList.remove("keys"));
