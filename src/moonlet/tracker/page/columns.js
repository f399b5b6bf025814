// Which columns the table of runs has, and what its cells show.
"use strict";

const BASE = ["id", "name", "state", "color", "tags", "notes", "archived", "deleted"]; // always asked for
const PLAIN = ["state", "last_step", "points", "created", "updated", "attempts", "tags", "notes", "id"];
const TITLES = { last_step: "step", created: "created", updated: "updated" };

// The columns in sight. Unless they were chosen: what most runs have, losses and rewards first.
function columnsInSight(fields, varying = new Set()) {
  if (state.columns) return state.columns;
  const most = (list, count, likely) =>
    [...list]
      .filter(({ name: one }) => !one.startsWith("system/"))
      .sort((a, b) => likely(b.name) - likely(a.name) || b.runs - a.runs || (a.name < b.name ? -1 : 1))
      .slice(0, count)
      .map(({ name: one }) => one);
  const good = (one) => (/loss|reward|accuracy|score|bits/i.test(one) ? 1 : 0) + (/val|eval|test/i.test(one) ? 0.5 : 0);
  const knob = (one) =>
    (varying.has(one) ? 2 : 0) +
    (/(^|\.)(lr|learning_rate|seed|batch_size|size|width|depth|layers)$/i.test(one) ? 1 : 0);
  return [
    ...most(fields.summary, 2, good).map((one) => `summary.${one}`),
    "last_step",
    ...most(fields.config, 3, knob).map((one) => `config.${one}`),
    "created",
    "tags",
  ];
}

function columnWidth(column) {
  return (
    { tags: 150, notes: 200, id: 140, created: 92, updated: 92 }[column] ?? (column.startsWith("config.") ? 96 : 88)
  );
}

function cellText(run, column) {
  const value = fieldOf(run, column);
  if (column === "created" || column === "updated") return ago(value);
  if (column === "points") return value ? compact(value, 3) : "";
  return shown(value);
}

// Columns of measured numbers stand to the right, settings and words to the left.
function numeric(column) {
  return column.startsWith("summary.") || ["last_step", "points", "attempts"].includes(column);
}

// Statistics over a group as one text, for its row.
function statText(stats) {
  if (!stats || !stats.n) return "";
  const real = (value) => number(asNumber(value) ?? NaN, 4);
  if (state.stat === "range") return `${real(stats.min)} … ${real(stats.max)}`;
  if (state.stat === "median") return real(stats.quantiles["0.5"]);
  return stats.n > 1 ? `${real(stats.mean)} ± ${number(asNumber(stats.std) ?? NaN, 2)}` : real(stats.mean);
}

function statTitle(stats) {
  if (!stats || !stats.n) return "";
  const real = (value) => number(asNumber(value) ?? NaN, 6);
  const q = stats.quantiles;
  return (
    `${plural(stats.n, "run")}\nmean ${real(stats.mean)}, std ${real(stats.std)}\n` +
    `min ${real(stats.min)}, max ${real(stats.max)}\n` +
    `quartiles ${real(q["0.25"])}, ${real(q["0.5"])}, ${real(q["0.75"])}`
  );
}

// Pick columns or fields to group by.
function fieldNames(fields, kinds = ["config", "summary"]) {
  return kinds.flatMap((kind) => fields[kind].map(({ name: one }) => `${kind}.${one}`));
}
