// Numbers, times and values as text.
"use strict";

const WORDS = { nan: NaN, inf: Infinity, "-inf": -Infinity };

// JSON has no NaN or infinity: the board writes them as words. Anything that is no number is null.
function asNumber(value) {
  if (typeof value === "number") return value;
  return typeof value === "string" && value in WORDS ? WORDS[value] : null;
}

function number(value, digits = 4) {
  if (Number.isNaN(value)) return "NaN";
  if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
  const size = Math.abs(value);
  if (Number.isInteger(value) && size < 1e9) return value.toLocaleString("en").replace("-", "−");
  const text =
    size >= 1e6 || size < 1e-4
      ? value
          .toExponential(digits - 1)
          .replace(/\.?0+e/, "e")
          .replace("e+", "e")
      : Number(value.toPrecision(digits)).toLocaleString("en", { maximumFractionDigits: 20 });
  return text.replaceAll("-", "−");
}

function compact(value, digits = 4) {
  const size = Math.abs(value);
  for (const [unit, mark] of [
    [1e12, "T"],
    [1e9, "G"],
    [1e6, "M"],
    [1e3, "k"],
  ]) {
    if (size >= unit) return (Number((value / unit).toPrecision(digits)) + mark).replace("-", "−");
  }
  return number(value, digits);
}

// Any JSON value in one line.
function shown(value, digits = 4) {
  if (value === null || value === undefined) return "";
  const real = asNumber(value);
  if (real !== null) return number(real, digits);
  return typeof value === "string"
    ? value
    : Array.isArray(value) && value.every((one) => typeof one === "string")
      ? value.join(", ")
      : JSON.stringify(value);
}

function plural(count, word) {
  return `${count.toLocaleString("en")} ${word}${count === 1 ? "" : "s"}`;
}

function duration(seconds) {
  const s = Math.abs(seconds),
    sign = seconds < 0 ? "−" : "";
  if (s < 60) return `${sign}${Number(s.toPrecision(3))} s`;
  if (s < 3600) return `${sign}${Math.floor(s / 60)} min${Math.floor(s % 60) ? ` ${Math.floor(s % 60)} s` : ""}`;
  if (s < 172_800)
    return `${sign}${Math.floor(s / 3600)} h${Math.floor(s / 60) % 60 ? ` ${Math.floor(s / 60) % 60} min` : ""}`;
  return `${sign}${Number((s / 86_400).toPrecision(3))} d`;
}

function two(value) {
  return String(value).padStart(2, "0");
}

function day(date) {
  return `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())}`;
}

function clock(date, seconds = false) {
  return `${two(date.getHours())}:${two(date.getMinutes())}${seconds ? `:${two(date.getSeconds())}` : ""}`;
}

function when(time) {
  if (!time) return "";
  const date = new Date(time * 1000);
  return `${day(date)} ${clock(date, true)}`;
}

function ago(time) {
  const seconds = Date.now() / 1000 - time;
  if (!time) return "";
  if (seconds < 60) return "now";
  for (const [unit, mark] of [
    [86_400, "d"],
    [3600, "h"],
    [60, "min"],
  ]) {
    if (seconds >= unit) return `${Math.floor(seconds / unit)} ${mark} ago`;
  }
  return "";
}

// A field of a run by its name, as in a filter: name, config.lr, summary.eval/loss.
function fieldOf(run, field) {
  const dot = field.indexOf(".");
  const table = field.slice(0, dot);
  return table === "config" || table === "summary" ? run[table]?.[field.slice(dot + 1)] : run[field];
}

function fieldTitle(field) {
  return field.replace(/^(config|summary)\./, "").replace(/_/g, " ");
}

// Value to compare by: numbers before text before what is absent (NaN too).
function orderKey(value) {
  const real = asNumber(value);
  if (real !== null) return Number.isNaN(real) ? [2, 0] : [0, real];
  return value === null || value === undefined ? [2, 0] : [1, shown(value)];
}

function inOrder(a, b) {
  const [kind, left] = orderKey(a),
    [other, right] = orderKey(b);
  return kind - other || (left < right ? -1 : left > right ? 1 : 0);
}
