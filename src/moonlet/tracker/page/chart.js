// One chart: asks for the columns of its window, draws them, and follows the pointer.
//
// Wheel (with Ctrl in a grid of charts) zooms at the pointer, a drag zooms to what it spans (in y too when it is high),
// Shift and a drag or a horizontal wheel pan, two presses show all again. What is there is drawn at once, moved to its
// new place; the exact columns of the new window follow. Half a window on either side is fetched with it.
"use strict";

const MARGIN_SHARE = 0.5; // of the window, fetched on either side
const HEIGHTS = [170, 220, 340];
const MOST_ROWS = 12; // of the readout
const FETCH_PACE = 100; // milliseconds between fetches while the window moves

// The window in x that all charts of a page share; null shows everything.
const zoom = { x0: state.x0, x1: state.x1, charts: new Set() };
const keepZoom = delayed(() => setState({ x0: zoom.x0, x1: zoom.x1 }), 300);
function setZoom(x0, x1) {
  zoom.x0 = x0;
  zoom.x1 = x1;
  for (const chart of zoom.charts) chart.moved();
  keepZoom();
}
listeners.push((changed) => {
  if ((changed.has("x0") || changed.has("x1")) && (state.x0 !== zoom.x0 || state.x1 !== zoom.x1)) setZoom(state.x0, state.x1);
});

class Chart {
  // plan: {name, title, series: [{run, name, color, label, dash}]} or {…, groups: [{label, color, runs}]}
  constructor(plan, { big = false, tools = [] } = {}) {
    this.big = big;
    this.y = null; // its own window in y after a zoom, else fitted
    this.hidden = false; // out of sight: it waits
    this.canvas = el("canvas", { "aria-label": plan.title, role: "img" });
    this.over = el("canvas.over");
    this.note = el("span.note");
    this.readout = el("div.readout", { hidden: true });
    this.stage = el("div.stage", { tabIndex: big ? 0 : -1 }, this.canvas, this.over, this.readout);
    this.logTool = button("log", () => this.toggleLog(), { className: "quiet", title: "Log y axis" });
    this.node = el("figure.chart", {}, el("figcaption", el("span.title", { title: plan.title }, plan.title), this.note,
      el("span.tools", this.logTool, tools, button("⋯", (event) => this.menu(event.target), {
        className: "quiet", title: "Picture, points", "aria-label": `More of ${plan.title}` }))), this.stage);
    this.controller = new AbortController();
    this.refreshSoon = paced(() => this.refresh(), FETCH_PACE);
    this.size = new ResizeObserver(() => this.moved());
    this.size.observe(this.stage);
    this.follow();
    this.setPlan(plan);
    zoom.charts.add(this);
  }

  close() {
    zoom.charts.delete(this);
    this.size.disconnect();
    this.controller.abort();
    this.node.remove();
  }

  setPlan(plan) {
    const before = this.plan;
    this.plan = plan;
    const key = JSON.stringify([plan.groups?.map((g) => g.runs) ?? plan.series.map((s) => [s.run, s.name]), state.x]);
    if (before && key === this.key) this.draw(); // colours or labels
    else if (before) this.y = null;
    if (key !== this.key) this.full = null;
    this.key = key;
    this.stage.style.height = this.big ? "" : `${HEIGHTS[state.size]}px`;
    this.logTool.setAttribute("aria-pressed", this.ylog);
    this.refresh();
  }

  get ylog() { return state.ylog.includes(this.plan.title); }

  toggleLog() {
    this.y = null;
    const { title } = this.plan;
    setState({ ylog: this.ylog ? state.ylog.filter((one) => one !== title) : [...state.ylog, title] });
  }

  // The window that is shown: the zoom, or all of the data.
  get window() {
    return zoom.x0 === null ? this.full ?? [0, 1] : [zoom.x0, zoom.x1];
  }

  // The window moved or the size changed: draw what is there, then fetch.
  moved() {
    if (!this.node.isConnected || this.hidden || (expanded && expanded !== this)) return;
    this.draw();
    if (this.data) this.refreshSoon(); else this.refresh();
  }

  draw() {
    if (this.drawing) return;
    this.drawing = requestAnimationFrame(() => { this.drawing = 0; this.paint(); });
  }

  // Fetch the window unless it is there; `news`: even so. One request at a time, the latest window last.
  async refresh(news = false) {
    if (news) this.asked = "";
    if (!this.node.isConnected || !this.stage.clientWidth) return;
    if (this.busy) { this.again = true; return; }
    this.busy = true;
    try {
      do {
        this.again = false;
        const whole = zoom.x0 === null, body = this.request(whole), asked = JSON.stringify(body);
        if (asked === this.asked) continue;
        this.asked = asked;
        const data = await (body.groups ? api.aggregate : api.m4)(body, this.controller.signal);
        if (this.asked && asked !== this.asked) continue;
        this.data = data;
        if (whole) this.full = this.data.x0 < this.data.x1 ? [this.data.x0, this.data.x1] : spread(this.data.x0);
        this.failed = null;
        this.draw();
      } while (this.again);
    } catch (error) {
      this.asked = "";
      if (error.name !== "AbortError") { this.failed = error.message; this.draw(); }
    } finally {
      this.busy = false;
    }
  }

  request(whole) {
    const many = (this.plan.groups ?? this.plan.series).length > 20;
    const ratio = many ? 1 : Math.min(devicePixelRatio || 1, 2);
    let pixels = Math.max(50, Math.round((this.stage.clientWidth - (this.frame?.left ?? LEAST_LEFT) - MARGIN.right) * ratio));
    let x0 = null, x1 = null;
    if (!whole) {
      const log = state.xlog && zoom.x0 > 0;
      const [a, b] = log ? [Math.log(zoom.x0), Math.log(zoom.x1)] : [zoom.x0, zoom.x1];
      const more = Math.round(pixels * MARGIN_SHARE), wide = ((b - a) * more) / pixels;
      [x0, x1] = log ? [Math.exp(a - wide), Math.exp(b + wide)] : [a - wide, b + wide];
      pixels += 2 * more;
    }
    const body = { x: state.x, x0, x1, pixels, scale: state.xlog ? "log" : "linear" };
    if (this.plan.groups) {
      const groups = this.plan.groups.map(({ label, runs }) => ({ label, runs }));
      return { ...body, groups, name: this.plan.name, quantiles: [0.25, 0.5, 0.75] };
    }
    return { ...body, series: this.plan.series.map(({ run, name }) => ({ run, name })), smooth: state.smooth };
  }

  // The series of the answer with the colours of the plan.
  lines() {
    if (!this.plan.groups) {
      return this.data.series.map((series, i) => ({ series, ...this.plan.series[i] })).filter(({ series, color }) => color && series.points);
    }
    const stats = new Map(this.data.series.map((series) => [`${series.label}\n${series.stat}`, series]));
    const of = (label, stat) => stats.get(`${label}\n${stat}`);
    const ends = { minmax: ["min", "max"], quartiles: ["q0.25", "q0.75"] }[state.band];
    return this.plan.groups.map(({ label, color }) => {
      const series = of(label, state.stat === "median" ? "q0.5" : "mean");
      if (!series?.points) return null;
      const band = ends ? ends.map((end) => of(label, end)) : around(series, of(label, "std"));
      return { series, color, label, band: band.every((one) => one?.mode === series.mode) ? band : null };
    }).filter(Boolean);
  }

  view(width, height) {
    const lines = this.lines();
    return { width, height, window: this.window, header: this.data, lines, y: this.y, kind: state.x, xlog: state.xlog,
      ylog: this.ylog, smooth: state.smooth > 0 && !this.plan.groups };
  }

  paint() {
    if (!this.node.isConnected) return;
    const width = this.stage.clientWidth, height = this.stage.clientHeight;
    if (!width || !height) return;
    const ctx = fitted(this.canvas, width, height);
    const colors = themeColors();
    ctx.fillStyle = colors.paper;
    ctx.fillRect(0, 0, width, height);
    if (!this.data) {
      if (this.failed) this.say(ctx, this.failed, width, height, colors.bad);
      return;
    }
    const view = this.view(width, height);
    Object.assign(this, drawPlot(ctx, view, colors), { shown: view });
    const points = this.data.series.reduce((sum, one) => sum + one.points, 0);
    if (!view.lines.length) this.say(ctx, "No points in this window", width, height, colors.soft);
    this.node.classList.toggle("empty", !points && zoom.x0 === null);
    const left = this.data.series.reduce((sum, one) => sum + one.left_out, 0);
    const notes = [];
    if (this.ylog && view.lines.some(({ series }) => belowZero(series))) notes.push("values ≤ 0 at the lower edge");
    if (left) notes.push(`${plural(left, "point")} without ${state.xlog ? "log " : ""}${state.x}`);
    if (this.failed) notes.push(this.failed);
    const noted = notes.join(" · ");
    if (this.note.textContent !== noted) this.note.textContent = noted;
    if (this.pointer) this.point(this.pointer);
    if (!this.painted) performance.mark("chart-painted");
    this.painted = true;
  }

  say(ctx, words, width, height, color) {
    Object.assign(ctx, { font: FONT, textAlign: "center", textBaseline: "middle", fillStyle: color });
    ctx.fillText(words, width / 2, height / 2);
  }

  // Pointer: readout, zoom and pan.
  follow() {
    const { stage } = this;
    const at = (event) => {
      const box = stage.getBoundingClientRect();
      return { x: event.clientX - box.left, y: event.clientY - box.top };
    };
    const touches = new Map();
    let drag = null;
    stage.addEventListener("wheel", (event) => {
      if (!this.sx || !(this.big || event.ctrlKey || event.metaKey || event.shiftKey)) return;
      event.preventDefault();
      const side = event.shiftKey && !event.deltaX ? event.deltaY : event.deltaX;
      if (Math.abs(side) > Math.abs(event.deltaY) || event.shiftKey) this.pan(side);
      else this.scaleAt(at(event).x, Math.exp(Math.max(-400, Math.min(400, event.deltaY)) * 0.002));
    }, { passive: false });
    stage.addEventListener("pointerdown", (event) => {
      if (event.pointerType === "touch") touches.set(event.pointerId, at(event).x);
      if (event.button !== 0 || !this.sx || event.target.closest("button")) return;
      if (event.pointerType !== "touch") {
        event.preventDefault();
        stage.setPointerCapture(event.pointerId);
        drag = { from: at(event), pan: event.shiftKey, last: at(event).x };
        if (this.big) stage.focus({ preventScroll: true });
      }
    });
    stage.addEventListener("pointermove", (event) => {
      const here = at(event);
      if (touches.size === 2 && touches.has(event.pointerId)) {
        const [other] = [...touches].find(([id]) => id !== event.pointerId).slice(1);
        const before = Math.abs(touches.get(event.pointerId) - other), now = Math.abs(here.x - other);
        touches.set(event.pointerId, here.x);
        if (before > 8 && now > 8) this.scaleAt((here.x + other) / 2, before / now);
      } else if (drag?.pan) {
        this.pan(drag.last - here.x);
        drag.last = here.x;
      } else if (drag) {
        drag.to = here;
        this.overlay(drag);
      } else if (!this.pinned) this.point(here);
    });
    const up = (event) => {
      touches.delete(event.pointerId);
      const done = drag;
      drag = null;
      if (!done || event.type === "pointercancel") return;
      const { from, to = from } = done;
      if (!done.pan && Math.abs(to.x - from.x) > 4) this.zoomTo(from, to);
      else if (!done.pan) this.pin(from);
    };
    stage.addEventListener("pointerup", up);
    stage.addEventListener("pointercancel", up);
    stage.addEventListener("pointerleave", () => { if (!this.pinned && !drag) this.point(null); });
    stage.addEventListener("dblclick", () => this.reset());
    stage.addEventListener("keydown", (event) => {
      const act = { ArrowLeft: () => this.pan(-60), ArrowRight: () => this.pan(60), "+": () => this.scaleAt(null, 0.7),
        "=": () => this.scaleAt(null, 0.7), "-": () => this.scaleAt(null, 1.4), 0: () => this.reset() }[event.key];
      if (!act || event.ctrlKey || event.metaKey) return;
      event.preventDefault();
      event.stopPropagation();
      act();
    });
  }

  reset() {
    this.y = null;
    this.pin(null);
    setZoom(null, null);
    this.draw();
  }

  scaleAt(px, factor) {
    const { frame } = this;
    const middle = Math.min(Math.max(px ?? (frame.left + frame.right) / 2, frame.left), frame.right);
    this.take(middle + (frame.left - middle) * factor, middle + (frame.right - middle) * factor);
  }

  pan(by) {
    this.take(this.frame.left + by, this.frame.right + by);
  }

  // Show what lies between two pixel places; beyond all data it is all of it.
  take(left, right) {
    const [x0, x1] = this.window;
    const scale = makeScale(x0, x1, this.frame.left, this.frame.right, state.xlog && x0 > 0);
    const a = scale.back(left), b = scale.back(right);
    if (!Number.isFinite(a) || !Number.isFinite(b) || !(b - a > Math.max(Math.abs(a), Math.abs(b)) * 1e-13)) return;
    if (this.full && a <= this.full[0] && b >= this.full[1]) setZoom(null, null); else setZoom(a, b);
  }

  zoomTo(from, to) {
    const { frame, sx, sy } = this;
    const inside = (x) => Math.min(Math.max(x, frame.left), frame.right);
    const [x0, x1] = [sx.back(inside(Math.min(from.x, to.x))), sx.back(inside(Math.max(from.x, to.x)))];
    const spans = Math.abs(to.y - from.y) > 30 && Math.abs(to.y - from.y) < (frame.bottom - frame.top) * 0.85;
    this.y = spans ? [sy.back(Math.max(from.y, to.y)), sy.back(Math.min(from.y, to.y))] : this.y;
    if (x1 > x0) setZoom(x0, x1);
  }

  pin(here) {
    this.pinned = here !== null && !this.pinned;
    this.readout.classList.toggle("pinned", this.pinned);
    this.point(here);
  }

  overlay(drag = null) {
    const ctx = fitted(this.over, this.stage.clientWidth, this.stage.clientHeight);
    if (drag === null) return ctx;
    const { from, to } = drag;
    const { accent } = themeColors();
    const high = Math.abs(to.y - from.y) > 30 && Math.abs(to.y - from.y) < (this.frame.bottom - this.frame.top) * 0.85;
    const [y, height] = high ? [Math.min(from.y, to.y), Math.abs(to.y - from.y)] : [this.frame.top, this.frame.bottom - this.frame.top];
    ctx.fillStyle = accent;
    ctx.globalAlpha = 0.16;
    ctx.fillRect(Math.min(from.x, to.x), y, Math.abs(to.x - from.x), height);
    ctx.globalAlpha = 1;
    this.readout.hidden = true;
    return ctx;
  }

  // Show the values at a place of the stage, nearest curve first; null hides them.
  point(here) {
    this.pointer = here;
    const ctx = this.overlay();
    this.readout.hidden = true;
    if (!here || !this.sx || !this.shown || here.x < this.frame.left - 6 || here.x > this.frame.right + 6) return;
    const rows = readoutRows(this.shown, this.sx, this.sy, here);
    if (!rows.length) return;
    const colors = themeColors();
    ctx.strokeStyle = colors.soft;
    ctx.lineWidth = 1;
    ctx.beginPath();
    ctx.moveTo(Math.round(rows[0].px) + 0.5, this.frame.top);
    ctx.lineTo(Math.round(rows[0].px) + 0.5, this.frame.bottom);
    ctx.stroke();
    for (const row of rows.slice(0, MOST_ROWS)) {
      ctx.fillStyle = row.color;
      ctx.strokeStyle = colors.paper;
      ctx.beginPath();
      ctx.arc(row.px, Math.min(Math.max(row.py, this.frame.top), this.frame.bottom), row === rows[0] ? 4 : 3, 0, 7);
      ctx.fill();
      ctx.stroke();
    }
    const lines = rows.slice(0, MOST_ROWS).map((row) => el("div.row", {}, el("i", { style: { background: row.color } }),
      this.pinned && row.run ? button(row.label, () => openRun(row.run), { className: "link", title: "Open this run" })
        : el("span.label", row.label), el("b", row.text)));
    const more = rows.length > MOST_ROWS ? el("div.soft", `and ${rows.length - MOST_ROWS} more`) : null;
    this.readout.replaceChildren(el("div.at", placeText(rows[0].x, state.x)), ...lines, more ?? "");
    this.readout.hidden = false;
    const right = here.x > this.stage.clientWidth / 2;
    this.readout.style.left = right ? "" : `${Math.round(here.x + 14)}px`;
    this.readout.style.right = right ? `${Math.round(this.stage.clientWidth - here.x + 14)}px` : "";
  }

  menu(anchor) {
    const file = this.plan.title.replace(/[^\w.-]+/g, "-").slice(0, 80) || "chart";
    const close = (act) => () => { closePopover(); act(); };
    popover(anchor, el("div.menu",
      button("PNG picture", close(() => this.picture(file))),
      button("SVG picture", close(() => this.svg(file))),
      button("Raw points as CSV", close(() => this.points(file))),
      button("Show everything again", close(() => this.reset())),
      this.plan.menu?.map(([words, act]) => button(words, close(act)))));
  }

  // Title, picture and legend at twice the size, or as SVG.
  compose(ctx, width, height) {
    const colors = themeColors();
    const lines = this.lines();
    ctx.fillStyle = colors.paper;
    ctx.fillRect(0, 0, width, height + 46 + 16 * Math.min(lines.length, 40));
    drawPlot(ctx, this.view(width, height), colors);
    Object.assign(ctx, { fillStyle: colors.ink, font: FONT.replace("11px", "12px"), textAlign: "left", textBaseline: "middle" });
    ctx.fillText(this.plan.title, 12, height + 18);
    ctx.font = FONT;
    lines.slice(0, 40).forEach(({ color, label }, i) => {
      ctx.fillStyle = color;
      ctx.fillRect(12, height + 35 + 16 * i, 10, 3);
      ctx.fillStyle = colors.ink;
      ctx.fillText(label, 28, height + 37 + 16 * i);
    });
  }

  picture(file) {
    const width = this.stage.clientWidth, height = this.stage.clientHeight;
    const canvas = el("canvas", { width: 2 * width, height: 2 * (height + 46 + 16 * Math.min(this.lines().length, 40)) });
    const ctx = canvas.getContext("2d");
    ctx.scale(2, 2);
    this.compose(ctx, width, height);
    canvas.toBlob((blob) => download(`${file}.png`, blob));
  }

  svg(file) {
    const width = this.stage.clientWidth, height = this.stage.clientHeight;
    const ctx = new SvgContext(width, height + 46 + 16 * Math.min(this.lines().length, 40));
    this.compose(ctx, width, height);
    download(`${file}.svg`, new Blob([ctx.text()], { type: "image/svg+xml" }));
  }

  async points(file) {
    const wanted = this.plan.series ?? this.plan.groups.flatMap((group) => group.runs.map((run) => ({ run, name: this.plan.name })));
    const parts = ["run,name,step,time,value\n"];
    const cell = (words) => `"${String(words).replaceAll('"', '""')}"`;
    for (const { run, name } of wanted) {
      const found = await api.points(run, name);
      parts.push(found.step.map((step, i) => `${run},${cell(name)},${step},${found.time[i]},${found.value[i]}\n`).join(""));
    }
    download(`${file}.csv`, new Blob(parts, { type: "text/csv" }));
  }
}

let expanded = null; // the large chart, while it is open: the others wait

// Values of every line at the pointer: {label, text, color, run, x, px, py}, the nearest to it first.
function readoutRows(view, sx, sy, here) {
  const rows = [];
  const want = sx.back(here.x);
  for (const { series, color, label, run, band } of view.lines) {
    const places = placesOf(series, view.header);
    if (!places.length) continue;
    let i = Math.min(lowerBound(places, want), places.length - 1);
    if (i > 0 && Math.abs(sx.at(places[i - 1]) - here.x) < Math.abs(sx.at(places[i]) - here.x)) i -= 1;
    const raw = series.mode === "raw";
    const value = raw ? series.y[i] : series.last[i];
    let words = number(value, 6);
    if (!raw && series.count[i] > 1) words = `${number(series.min[i], 5)} … ${number(series.max[i], 5)}  (${compact(series.count[i], 3)} points)`;
    if (band && raw) words += `  (${number(band[0].y[i], 4)} … ${number(band[1].y[i], 4)})`;
    if (series.smooth) words += `  ~ ${number(series.smooth[i], 5)}`;
    const x = raw ? places[i] : series.x_last[i];
    const py = Number.isFinite(value) ? sy.at(value) : sy.to;
    let away = Math.abs(py - here.y);
    if (!raw && series.min[i] === series.min[i]) {
      const top = sy.at(series.max[i]), bottom = sy.at(series.min[i]);
      away = here.y < top ? top - here.y : here.y > bottom ? here.y - bottom : 0;
    }
    rows.push({ label, text: words, color, run, x, px: sx.at(places[i]), py, away: away + Math.max(0, Math.abs(sx.at(places[i]) - here.x) - 12) * 4 });
  }
  return rows.sort((a, b) => a.away - b.away);
}

function fitted(canvas, width, height) {
  const ratio = Math.min(devicePixelRatio || 1, 2);
  if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
  }
  const ctx = canvas.getContext("2d");
  ctx.setTransform(ratio, 0, 0, ratio, 0, 0);
  ctx.clearRect(0, 0, width, height);
  return ctx;
}

function spread(place) {
  return [place - 0.5, place + 0.5];
}

function belowZero(series) {
  return (series.mode === "raw" ? series.y : series.min).some((value) => value <= 0);
}

// mean − std … mean + std as two series of the mean's form.
function around(mean, std) {
  if (!std || std.mode !== mean.mode) return [];
  const keys = mean.mode === "raw" ? ["y"] : ["min", "max"];
  return [-1, 1].map((sign) => ({ ...mean, ...Object.fromEntries(keys.map((key) => [key, mean[key].map((m, i) => m + sign * (std[key][i] ?? 0))])) }));
}
