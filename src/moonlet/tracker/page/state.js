// What the page shows, kept in its address: a link or a saved view is exactly this.
"use strict";

const text = (value) => typeof value === "string";
const maybeText = (value) => value === null || text(value);
const flag = (value) => typeof value === "boolean";
const texts = (value) => Array.isArray(value) && value.every(text);
const maybeTexts = (value) => value === null || texts(value);
const maybeReal = (value) => value === null || Number.isFinite(value);
const oneOf =
  (...words) =>
  (value) =>
    words.includes(value);

// key: [default, test of a value from an address]
const FIELDS = {
  tab: ["charts", oneOf("runs", "charts", "compare", "sweep", "rollouts", "run")],
  run: [null, maybeText], // the one that is open
  part: ["overview", text], // of the open run
  search: ["", text],
  filter: ["", text],
  sort: ["-created", text],
  show: ["active", oneOf("active", "archived", "deleted")],
  group: [[], texts],
  stat: ["mean", oneOf("mean", "median", "range")],
  columns: [null, maybeTexts], // null: chosen by the page
  picked: [null, maybeTexts], // null: the first runs of the table
  metrics: ["", text],
  x: ["step", text],
  xlog: [false, flag],
  ylog: [[], texts], // charts with a log axis
  smooth: [0, (value) => value >= 0 && value < 1],
  band: ["minmax", oneOf("minmax", "quartiles", "std")],
  x0: [null, maybeReal],
  x1: [null, maybeReal],
  size: [1, oneOf(0, 1, 2)],
  charts: [[], (value) => Array.isArray(value) && value.every(texts)], // own charts: lists of series
  closed: [["system"], texts],
  wide: [false, flag],
  differing: [true, flag],
  axes: [null, maybeTexts],
  hue: [null, maybeText],
  across: [null, maybeText],
  up: [null, maybeText],
  prompt: [null, maybeText],
  left: [null, maybeText],
  right: [null, maybeText],
};
const MAX_LINKED = 400; // ids of picked runs that an address holds

const state = readAddress();
const listeners = [];

function readAddress() {
  const found = {};
  const given = new URLSearchParams(location.hash.slice(1));
  for (const [key, [fallback, valid]] of Object.entries(FIELDS)) {
    let value = given.get(key);
    if (value !== null && typeof fallback !== "string") {
      try {
        value = JSON.parse(value);
      } catch {
        value = undefined;
      }
    }
    found[key] = value !== undefined && given.has(key) && valid(value) ? value : structuredClone(fallback);
  }
  return found;
}

function address() {
  const out = new URLSearchParams();
  for (const [key, [fallback]] of Object.entries(FIELDS)) {
    const value = key === "picked" && state.picked?.length > MAX_LINKED ? null : state[key];
    if (JSON.stringify(value) !== JSON.stringify(fallback)) {
      out.set(key, typeof fallback === "string" ? value : JSON.stringify(value));
    }
  }
  const written = out.toString();
  return written ? `#${written}` : location.pathname + location.search;
}

// Change some fields. `push`: the browser's Back comes back to what was before.
function setState(changes, push = false) {
  const changed = Object.keys(changes).filter((key) => JSON.stringify(changes[key]) !== JSON.stringify(state[key]));
  if (!changed.length) return;
  Object.assign(state, changes);
  try {
    history[push ? "pushState" : "replaceState"](null, "", address());
  } catch {
    /* too many changes a second, or a file's address: the state itself is right */
  }
  tell(new Set(changed));
}

function tell(changed) {
  for (const listen of listeners) listen(changed);
}

function loadState(next) {
  const changed = Object.keys(FIELDS).filter((key) => JSON.stringify(next[key]) !== JSON.stringify(state[key]));
  Object.assign(state, next);
  if (changed.length) tell(new Set(changed));
}
addEventListener("popstate", () => loadState(readAddress()));
addEventListener("hashchange", () => loadState(readAddress()));

// The whole filter, with what the table shows of archived and deleted runs.
function fullFilter() {
  const rest = { active: "not archived", archived: "archived and not deleted", deleted: "deleted" }[state.show];
  return state.filter.trim() ? `(${state.filter}) and ${rest}` : rest;
}

const DRAWN = 10,
  DRAWN_MOST = 100; // runs drawn unasked, and at most
let firstRuns = []; // ids at the top of the table
let scanning = false; // the board has not looked into every folder yet
function noRunWords() {
  return scanning
    ? "Reading the runs below this folder…"
    : "No run yet. Start one that logs with moonlet.tracker.Run below this folder: it appears here by itself.";
}
function drawnIds() {
  return (state.picked ?? firstRuns.slice(0, DRAWN)).slice(0, DRAWN_MOST);
}

// Told by the table when the first rows changed.
function setFirstRuns(ids) {
  const before = drawnIds().join();
  firstRuns = ids;
  if (state.picked === null && drawnIds().join() !== before) tell(new Set(["picked"]));
}

function togglePicked(ids, on) {
  const picked = new Set(state.picked ?? drawnIds());
  for (const id of ids) on ? picked.add(id) : picked.delete(id);
  setState({ picked: [...picked] });
}

const PALETTE = [
  "#3b7ae0",
  "#e07b1a",
  "#2a9d6b",
  "#d6455b",
  "#8a63d2",
  "#1a9fb5",
  "#a5713f",
  "#d65fa6",
  "#8a961f",
  "#7084a6",
];

// A run's own colour; without one, by its id, the next free one where two of the drawn ones would be alike.
function colorsOf(runs) {
  const taken = new Map(),
    out = new Map();
  for (const run of runs) if (run.color) out.set(run.id, run.color);
  for (const run of runs) {
    if (run.color) continue;
    let place = parseInt(run.id.slice(-6), 36) % PALETTE.length || 0;
    const least = Math.min(...PALETTE.map((_, i) => taken.get(i) ?? 0));
    while ((taken.get(place) ?? 0) > least) place = (place + 1) % PALETTE.length;
    taken.set(place, (taken.get(place) ?? 0) + 1);
    out.set(run.id, PALETTE[place]);
  }
  return out;
}

function stored(key) {
  try {
    return localStorage.getItem(`moonlet-board-${key}`);
  } catch {
    return null;
  }
}

function store(key, value) {
  try {
    localStorage.setItem(`moonlet-board-${key}`, value);
  } catch {
    /* private window: nothing is kept */
  }
}
