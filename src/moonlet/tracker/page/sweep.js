// All runs that match, as parallel coordinates and as a scatter: which settings lead where. A drag over an axis, or
// over the scatter, chooses runs, which can then be ticked.
"use strict";

const sweepTab = {
  brushes: new Map(), // axis → [low, high] as places
  runs: [],

  show(host) {
    this.host = host;
    this.bar = el("div.bar");
    this.lines = el("canvas");
    this.cloud = el("canvas");
    this.tip = el("div.readout", { hidden: true });
    this.parallel = el("div.stage.parallel", this.lines);
    this.scatter = el("div.stage.scatter", this.cloud);
    this.notice = el("p.notice");
    this.fields = el("div.bar");
    host.replaceChildren(this.bar, this.notice, this.parallel, this.fields, this.scatter, this.tip);
    this.size = new ResizeObserver(() => this.draw());
    this.size.observe(this.parallel);
    this.follow();
    return this.update(new Set(["filter"]));
  },

  hide() {
    this.size?.disconnect();
  },

  async update(changed) {
    const has = (...keys) => keys.some((key) => changed.has(key));
    if (has("search", "filter", "show", "axes", "hue", "across", "up", "data"))
      await this.load().catch((error) => toast(error.message));
    else if (has("picked")) this.draw();
  },

  query(columns, limit) {
    return {
      search: state.search,
      filter: fullFilter(),
      deleted: state.show === "deleted" ? 1 : 0,
      column: ["id", "name", "color", ...columns],
      limit,
    };
  },

  async load() {
    const all = await api.fields();
    this.names = fieldNames(all);
    const configs = all.config
      .slice()
      .sort((a, b) => b.runs - a.runs)
      .slice(0, 40)
      .map(({ name: one }) => `config.${one}`);
    const best = columnsInSight(all).find((column) => column.startsWith("summary.")) ?? fieldNames(all, ["summary"])[0];
    let axes = state.axes;
    if (!axes) {
      const sample = runsTable.unpack(await api.runs(this.query(configs, 400)));
      const varying = configs.filter(
        (field) => new Set(sample.map((run) => JSON.stringify(fieldOf(run, field)))).size > 1,
      );
      axes = [...varying.slice(0, 6), ...(best ? [best] : [])];
    }
    this.hue = state.hue ?? best ?? axes.at(-1);
    this.across = state.across ?? axes.find((field) => field !== best) ?? axes[0];
    this.up = state.up ?? best ?? axes[0];
    this.axes = axes;
    const wanted = [...new Set([...axes, this.hue, this.across, this.up])].filter(Boolean);
    this.runs = wanted.length ? runsTable.unpack(await api.runs(this.query(wanted, 100_000))) : [];
    if (!this.host.isConnected) return;
    this.brushes.clear();
    this.box = null;
    this.controls();
    this.draw();
  },

  controls() {
    const pick = (label, key, value) =>
      el(
        "label",
        {},
        `${label} `,
        choice(
          this.names.map((one) => [one, fieldTitle(one)]),
          value,
          (one) => setState({ [key]: one }),
        ),
      );
    this.count = el("span.soft");
    this.tick = button("Tick these", () => setState({ picked: this.chosen().map((run) => run.id) }), { hidden: true });
    this.bar.replaceChildren(
      button("Axes", (event) => pickFields(event.target, this.names, this.axes, (axes) => setState({ axes }))),
      pick("colour", "hue", this.hue),
      this.count,
      this.tick,
      (this.clear = button(
        "Clear",
        () => {
          this.brushes.clear();
          this.box = null;
          this.draw();
        },
        { className: "quiet", hidden: true },
      )),
    );
    this.fields.replaceChildren(pick("across", "across", this.across), pick("up", "up", this.up));
    this.notice.textContent =
      this.runs.length && this.axes.length
        ? ""
        : "Nothing varies between the runs that match: log a config, or choose axes.";
  },

  chosen() {
    return this.runs.filter((run) => {
      for (const [field, [low, high]] of this.brushes) {
        const place = this.scales?.get(field)?.at(fieldOf(run, field));
        if (place === null || place === undefined || place < low || place > high) return false;
      }
      if (!this.box) return true;
      const x = this.sx.at(fieldOf(run, this.across)),
        y = this.sy.at(fieldOf(run, this.up));
      return x !== null && y !== null && x >= this.box[0] && x <= this.box[2] && y >= this.box[1] && y <= this.box[3];
    });
  },

  draw() {
    if (this.waiting || !this.axes) return;
    this.waiting = requestAnimationFrame(() => {
      this.waiting = 0;
      this.paint();
    });
  },

  paint() {
    if (!this.host.isConnected || !this.parallel.clientWidth) return;
    const colors = themeColors();
    this.layParallel();
    this.layScatter();
    const chosen = new Set(this.chosen());
    this.brushed = this.brushes.size > 0 || Boolean(this.box);
    this.count.textContent = this.brushed
      ? `${chosen.size.toLocaleString("en")} of ${plural(this.runs.length, "run")}`
      : plural(this.runs.length, "run");
    this.tick.hidden = this.clear.hidden = !this.brushed;
    const hue = fieldScale(this.runs, this.hue ?? "", 0, 1);
    this.color = (run) => {
      const share = hue.share(fieldOf(run, this.hue));
      return share === null ? colors.soft : ramp(share);
    };
    this.paintParallel(colors, chosen);
    this.paintScatter(colors, chosen);
  },

  follow() {
    const at = (stage, event) => {
      const box = stage.getBoundingClientRect();
      return [event.clientX - box.left, event.clientY - box.top];
    };
    let drag = null;
    const begin = (stage, start) =>
      stage.addEventListener("pointerdown", (event) => {
        if (event.button !== 0 || !this.scales) return;
        drag = start(at(stage, event));
        if (drag && event.pointerType !== "touch") stage.setPointerCapture(event.pointerId);
      });
    begin(this.parallel, ([x, y]) => {
      const i = this.places.findIndex((place) => Math.abs(place - x) < 14);
      return i >= 0 ? { field: this.axes[i], from: y, moved: false } : null;
    });
    begin(this.scatter, ([x, y]) => ({ from: [x, y], moved: false }));
    const move = (stage) =>
      stage.addEventListener("pointermove", (event) => {
        const [x, y] = at(stage, event);
        if (!drag) return this.point(stage, x, y, event);
        if (drag.field) {
          drag.moved ||= Math.abs(y - drag.from) > 3;
          if (drag.moved) this.brushes.set(drag.field, [Math.min(y, drag.from), Math.max(y, drag.from)]);
        } else if (Math.hypot(x - drag.from[0], y - drag.from[1]) > 4 || drag.moved) {
          drag.moved = true;
          this.box = [
            Math.min(x, drag.from[0]),
            Math.min(y, drag.from[1]),
            Math.max(x, drag.from[0]),
            Math.max(y, drag.from[1]),
          ];
        }
        this.draw();
      });
    const end = (stage) => {
      stage.addEventListener("pointerup", () => {
        if (drag?.field && !drag.moved) this.brushes.delete(drag.field);
        if (drag?.from && !drag.field && !drag.moved) {
          this.box ? (this.box = null) : this.hover && openRun(this.hover.id);
        }
        drag = null;
        this.draw();
      });
      stage.addEventListener("pointerleave", () => {
        this.hover = null;
        this.tip.hidden = true;
        this.draw();
      });
    };
    for (const stage of [this.parallel, this.scatter]) {
      move(stage);
      end(stage);
    }
  },

  // The run under the pointer.
  point(stage, x, y, event) {
    if (!this.scales) return;
    let best = null,
      least = 10;
    for (const run of this.chosen()) {
      const away =
        stage === this.scatter
          ? Math.hypot(
              (this.sx.at(fieldOf(run, this.across)) ?? -99) - x,
              (this.sy.at(fieldOf(run, this.up)) ?? -99) - y,
            )
          : this.distance(run, x, y);
      if (away < least) [best, least] = [run, away];
    }
    if (best !== this.hover) {
      this.hover = best;
      this.draw();
    }
    this.tip.hidden = !best;
    if (!best) return;
    const facts = [...new Set([...this.axes, this.across, this.up, this.hue])].filter(Boolean);
    this.tip.replaceChildren(
      el("b", best.name || best.id),
      ...facts.map((field) =>
        el("div.row", el("span.label", fieldTitle(field)), el("b", shown(fieldOf(best, field)) || "–")),
      ),
    );
    const box = this.host.getBoundingClientRect();
    const left = event.clientX - box.left + 16;
    this.tip.style.left = `${Math.min(left, box.width - this.tip.offsetWidth - 16)}px`;
    this.tip.style.top = `${event.clientY - box.top + this.host.scrollTop + 12}px`;
  },

  distance(run, x, y) {
    const i = this.places.findIndex((place, k) => k + 1 < this.places.length && x >= place && x <= this.places[k + 1]);
    if (i < 0) return Infinity;
    const [a, b] = [i, i + 1].map((k) => this.scales.get(this.axes[k]).at(fieldOf(run, this.axes[k])) ?? this.low);
    return Math.abs(a + ((b - a) * (x - this.places[i])) / (this.places[i + 1] - this.places[i]) - y);
  },
};
