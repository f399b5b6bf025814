// How a sweep is drawn: scales of numbers and words, the lines of the parallel coordinates, the dots of the scatter.
"use strict";

const RAMP = [
  [68, 85, 180],
  [36, 137, 160],
  [44, 172, 110],
  [178, 184, 40],
  [236, 146, 42],
];
const AXIS_TOP = 34,
  AXIS_LOW = 26;

function ramp(share) {
  const place = Math.min(Math.max(share, 0), 1) * (RAMP.length - 1),
    i = Math.min(Math.floor(place), RAMP.length - 2);
  return `rgb(${RAMP[i].map((value, k) => Math.round(value + (RAMP[i + 1][k] - value) * (place - i))).join(" ")})`;
}

// Of few different numbers each is a tick.
function few(values) {
  const each = [...new Set(values)].sort((a, b) => a - b);
  return each.length <= 8 && each.length ? each.map((value) => [value, compact(value)]) : null;
}

// A scale for the values of one field: numbers (log where they span much), or words in order.
function fieldScale(runs, field, from, to) {
  const values = runs.map((run) => fieldOf(run, field)).filter((value) => value !== null && value !== undefined);
  const reals = values.map(asNumber);
  if (values.length && reals.every((value) => value !== null)) {
    const finite = reals.filter(Number.isFinite);
    const low = finite.reduce((a, b) => Math.min(a, b), Infinity),
      high = finite.reduce((a, b) => Math.max(a, b), -Infinity);
    const log = low > 0 && high / low >= 10;
    const [lo, hi] = low === high || !finite.length ? roomy(low, high, log) : [low, high];
    const scale = makeScale(lo, hi, from, to, log);
    const at = (value) => (Number.isFinite(asNumber(value)) ? scale.at(asNumber(value)) : null);
    return {
      at,
      share: (value) => (at(value) === null ? null : (at(value) - from) / (to - from)),
      ticks: few(finite) ?? ticksOf(lo, hi, 6, "y", log),
    };
  }
  const words = [...new Set(values.map((value) => shown(value)))].sort();
  const at = (value) => {
    const i = value === null || value === undefined ? -1 : words.indexOf(shown(value));
    return i < 0 ? null : words.length === 1 ? (from + to) / 2 : from + ((to - from) * i) / (words.length - 1);
  };
  const every = Math.ceil(words.length / 12);
  return {
    at,
    share: (value) => (at(value) === null ? null : (at(value) - from) / (to - from)),
    ticks: words.map((word) => [word, word.slice(0, 18)]).filter((_, i) => i % every === 0),
  };
}

Object.assign(sweepTab, {
  layParallel() {
    const width = this.parallel.clientWidth,
      height = this.parallel.clientHeight,
      side = Math.min(80, width / 8);
    this.places = this.axes.map((_, i) =>
      this.axes.length === 1 ? width / 2 : side + ((width - 2 * side) * i) / (this.axes.length - 1),
    );
    this.scales = new Map(this.axes.map((field) => [field, fieldScale(this.runs, field, height - AXIS_LOW, AXIS_TOP)]));
    this.low = height - 8; // where a line goes for a value that is absent
  },

  trace(ctx, run) {
    ctx.beginPath();
    this.axes.forEach((field, i) => {
      const y = this.scales.get(field).at(fieldOf(run, field)) ?? this.low;
      if (i) ctx.lineTo(this.places[i], y);
      else ctx.moveTo(this.places[i], y);
    });
    ctx.stroke();
  },

  paintParallel(colors, chosen) {
    const width = this.parallel.clientWidth,
      height = this.parallel.clientHeight;
    const ctx = fitted(this.lines, width, height);
    ctx.font = FONT;
    ctx.lineWidth = 1;
    if (this.brushed) {
      ctx.strokeStyle = colors.line;
      for (const run of this.runs) if (!chosen.has(run)) this.trace(ctx, run);
    }
    ctx.globalAlpha = Math.max(0.12, Math.min(0.85, 120 / chosen.size));
    for (const run of chosen) {
      ctx.strokeStyle = this.color(run);
      this.trace(ctx, run);
    }
    ctx.globalAlpha = 1;
    this.axes.forEach((field, i) => {
      const x = Math.round(this.places[i]) + 0.5,
        scale = this.scales.get(field),
        last = i === this.axes.length - 1 && i > 0;
      ctx.strokeStyle = colors.soft;
      ctx.beginPath();
      ctx.moveTo(x, AXIS_TOP);
      ctx.lineTo(x, height - AXIS_LOW);
      ctx.stroke();
      ctx.textAlign = "center";
      ctx.textBaseline = "alphabetic";
      ctx.fillStyle = colors.ink;
      ctx.fillText(
        clipped(ctx, fieldTitle(field), (width / this.axes.length) * 0.85),
        Math.min(Math.max(x, 40), width - 40),
        16,
      );
      ctx.textAlign = last ? "left" : "right";
      ctx.textBaseline = "middle";
      for (const [tick, label] of scale.ticks) {
        const y = scale.at(tick);
        const left = last ? x + 6 : x - 6,
          wide = ctx.measureText(label).width;
        ctx.globalAlpha = 0.75;
        ctx.fillStyle = colors.paper;
        ctx.fillRect(last ? left - 1 : left - wide - 1, y - 7, wide + 2, 14);
        ctx.globalAlpha = 1;
        ctx.fillStyle = colors.soft;
        ctx.fillText(label, left, y);
      }
      const brush = this.brushes.get(field);
      if (brush) {
        ctx.fillStyle = colors.accent;
        ctx.globalAlpha = 0.3;
        ctx.fillRect(x - 8, brush[0], 16, brush[1] - brush[0]);
        ctx.globalAlpha = 1;
      }
    });
    if (this.hover) {
      ctx.strokeStyle = colors.ink;
      ctx.lineWidth = 2;
      this.trace(ctx, this.hover);
    }
  },

  layScatter() {
    const width = this.scatter.clientWidth,
      height = this.scatter.clientHeight;
    this.sx = fieldScale(this.runs, this.across ?? "", 90, width - 40);
    this.sy = fieldScale(this.runs, this.up ?? "", height - 46, 16);
  },

  paintScatter(colors, chosen) {
    const width = this.scatter.clientWidth,
      height = this.scatter.clientHeight;
    const ctx = fitted(this.cloud, width, height);
    Object.assign(ctx, {
      font: FONT,
      lineWidth: 1,
      strokeStyle: colors.line,
      fillStyle: colors.soft,
      textBaseline: "middle",
      textAlign: "right",
    });
    ctx.beginPath();
    for (const [tick, label] of this.sy.ticks) {
      const y = Math.round(this.sy.at(tick)) + 0.5;
      ctx.moveTo(70, y);
      ctx.lineTo(width - 24, y);
      ctx.fillText(clipped(ctx, label, 60), 62, y);
    }
    ctx.stroke();
    ctx.textAlign = "center";
    for (const [tick, label] of this.sx.ticks) ctx.fillText(clipped(ctx, label, 90), this.sx.at(tick), height - 30);
    ctx.fillStyle = colors.ink;
    ctx.fillText(fieldTitle(this.across ?? ""), width / 2, height - 10);
    for (const run of this.runs) {
      const x = this.sx.at(fieldOf(run, this.across)),
        y = this.sy.at(fieldOf(run, this.up));
      if (x === null || y === null) continue;
      ctx.globalAlpha = chosen.has(run) ? 0.85 : 0.12;
      ctx.fillStyle = this.color(run);
      ctx.beginPath();
      ctx.arc(x, y, run === this.hover ? 6 : 3.5, 0, 7);
      ctx.fill();
    }
    ctx.globalAlpha = 0.2;
    ctx.fillStyle = colors.accent;
    if (this.box) ctx.fillRect(this.box[0], this.box[1], this.box[2] - this.box[0], this.box[3] - this.box[1]);
    ctx.globalAlpha = 1;
  },
});

// Words cut so that they fit.
function clipped(ctx, words, width) {
  if (ctx.measureText(words).width <= width) return words;
  let low = 0,
    high = words.length;
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (ctx.measureText(`${words.slice(0, middle)}…`).width <= width) low = middle;
    else high = middle - 1;
  }
  return `${words.slice(0, low)}…`;
}
