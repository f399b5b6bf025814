// One chart: asks for the columns of its window and draws them.
//
// When the window moves, what is there is drawn at once at its new place; the exact columns of the new window follow.
// Half a window on either side is fetched with it. What the pointer does is in pointer.js, files are in picture.js.
"use strict";

const MARGIN_SHARE = 0.5; // of the window, fetched on either side
const HEIGHTS = [170, 220, 340];
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
  if ((changed.has("x0") || changed.has("x1")) && (state.x0 !== zoom.x0 || state.x1 !== zoom.x1))
    setZoom(state.x0, state.x1);
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
    this.node = el(
      "figure.chart",
      {},
      el(
        "figcaption",
        el("span.title", { title: plan.title }, plan.title),
        this.note,
        el(
          "span.tools",
          this.logTool,
          tools,
          button("⋯", (event) => this.menu(event.target), {
            className: "quiet",
            title: "Picture, points",
            "aria-label": `More of ${plan.title}`,
          }),
        ),
      ),
      this.stage,
    );
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
    if (before && key === this.key)
      this.draw(); // colours or labels
    else if (before) this.y = null;
    if (key !== this.key) this.full = null;
    this.key = key;
    this.stage.style.height = this.big ? "" : `${HEIGHTS[state.size]}px`;
    this.logTool.setAttribute("aria-pressed", this.ylog);
    this.refresh();
  }

  get ylog() {
    return state.ylog.includes(this.plan.title);
  }

  toggleLog() {
    this.y = null;
    const { title } = this.plan;
    setState({ ylog: this.ylog ? state.ylog.filter((one) => one !== title) : [...state.ylog, title] });
  }

  // The window that is shown: the zoom, or all of the data.
  get window() {
    return zoom.x0 === null ? (this.full ?? [0, 1]) : [zoom.x0, zoom.x1];
  }

  // The window moved or the size changed: draw what is there, then fetch.
  moved() {
    if (!this.node.isConnected || this.hidden || (expanded && expanded !== this)) return;
    this.draw();
    if (this.data) this.refreshSoon();
    else this.refresh();
  }

  draw() {
    if (this.drawing) return;
    this.drawing = requestAnimationFrame(() => {
      this.drawing = 0;
      this.paint();
    });
  }

  // Fetch the window unless it is there; `news`: even so. One request at a time, the latest window last.
  async refresh(news = false) {
    if (news) this.asked = "";
    if (!this.node.isConnected || !this.stage.clientWidth) return;
    if (this.busy) {
      this.again = true;
      return;
    }
    this.busy = true;
    try {
      do {
        this.again = false;
        const whole = zoom.x0 === null,
          body = this.request(whole),
          asked = JSON.stringify(body);
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
      if (error.name !== "AbortError") {
        this.failed = error.message;
        this.draw();
      }
    } finally {
      this.busy = false;
    }
  }

  request(whole) {
    const many = (this.plan.groups ?? this.plan.series).length > 20;
    const ratio = many ? 1 : Math.min(devicePixelRatio || 1, 2);
    let pixels = Math.max(
      50,
      Math.round((this.stage.clientWidth - (this.frame?.left ?? LEAST_LEFT) - MARGIN.right) * ratio),
    );
    let x0 = null,
      x1 = null;
    if (!whole) {
      const log = state.xlog && zoom.x0 > 0;
      const [a, b] = log ? [Math.log(zoom.x0), Math.log(zoom.x1)] : [zoom.x0, zoom.x1];
      const more = Math.round(pixels * MARGIN_SHARE),
        wide = ((b - a) * more) / pixels;
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
      return this.data.series
        .map((series, i) => ({ series, ...this.plan.series[i] }))
        .filter(({ series, color }) => color && series.points);
    }
    const stats = new Map(this.data.series.map((series) => [`${series.label}\n${series.stat}`, series]));
    const of = (label, stat) => stats.get(`${label}\n${stat}`);
    const ends = { minmax: ["min", "max"], quartiles: ["q0.25", "q0.75"] }[state.band];
    return this.plan.groups
      .map(({ label, color }) => {
        const series = of(label, state.stat === "median" ? "q0.5" : "mean");
        if (!series?.points) return null;
        const band = ends ? ends.map((end) => of(label, end)) : around(series, of(label, "std"));
        return { series, color, label, band: band.every((one) => one?.mode === series.mode) ? band : null };
      })
      .filter(Boolean);
  }

  view(width, height) {
    const lines = this.lines();
    return {
      width,
      height,
      window: this.window,
      header: this.data,
      lines,
      y: this.y,
      kind: state.x,
      xlog: state.xlog,
      ylog: this.ylog,
      smooth: state.smooth > 0 && !this.plan.groups,
    };
  }

  paint() {
    if (!this.node.isConnected) return;
    const width = this.stage.clientWidth,
      height = this.stage.clientHeight;
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
}

let expanded = null; // the large chart, while it is open: the others wait

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
  return [-1, 1].map((sign) => ({
    ...mean,
    ...Object.fromEntries(keys.map((key) => [key, mean[key].map((m, i) => m + sign * (std[key][i] ?? 0))])),
  }));
}
