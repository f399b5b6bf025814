// The charts of the ticked runs: one for each series, in sections by the first part of its name, drawn once they scroll
// into sight; charts of several series that the reader made; the settings that all of them share.
"use strict";

const PART = 40; // charts that a section shows at first
const AT_ONCE = 4; // charts drawn without waiting to be seen
const OTHER = "other";

const chartsTab = {
  cards: new Map(), // key → {plan, chart or null, node}
  more: new Map(), // section → charts shown

  show(host) {
    this.host = host;
    this.bar = el("div.bar");
    this.notice = el("p.notice");
    this.grid = el("div.sections");
    host.replaceChildren(this.bar, this.notice, this.grid);
    this.seen = new IntersectionObserver(
      (entries) => {
        for (const { target, isIntersecting } of entries) this.seenNow(target.key, isIntersecting);
      },
      { root: host, rootMargin: "300px" },
    );
    this.controls();
    return this.update(new Set(["picked"]));
  },

  hide() {
    for (const card of this.cards.values()) card.chart?.close();
    this.cards.clear();
    this.seen?.disconnect();
  },

  controls() {
    const search = el("input", {
      type: "search",
      placeholder: "Search charts",
      value: state.metrics,
      "aria-label": "Search charts",
      oninput: delayed(() => setState({ metrics: search.value }), 120),
    });
    this.axis = el("span");
    const smooth = el("input", {
      type: "range",
      min: 0,
      max: 0.999,
      step: 0.001,
      value: state.smooth,
      title: "Smoothing, over the raw points",
      "aria-label": "Smoothing",
      oninput: paced(() => setState({ smooth: Math.min(Number(smooth.value), 0.999) }), 60),
    });
    this.smoothText = el("output", "");
    this.bar.replaceChildren(
      search,
      this.axis,
      el(
        "label.check",
        {},
        el("input", {
          type: "checkbox",
          checked: state.xlog,
          onchange: (event) => setState({ xlog: event.target.checked, x0: null, x1: null }),
        }),
        "log x",
      ),
      el("label.slide", {}, "smooth", smooth, this.smoothText),
      (this.band = el("span")),
      choice(
        [
          ["0", "small"],
          ["1", "medium"],
          ["2", "large"],
        ],
        String(state.size),
        (value) => setState({ size: Number(value) }),
        { title: "Size of the charts", "aria-label": "Size of the charts" },
      ),
      button("New chart", (event) => this.newChart(event.target), { title: "A chart of several series" }),
      (this.resetTool = button("Show all", () => setZoom(null, null), { title: "Undo the zoom (double click)" })),
    );
  },

  axisChoice(names) {
    const likely = names.filter((one) => /token|flop|epoch|example|sample/i.test(one));
    const options = [
      "step",
      "time",
      "relative",
      ...likely,
      ...(["step", "time", "relative", ...likely].includes(state.x) ? [] : [state.x]),
    ];
    this.axis.replaceChildren(
      el(
        "label",
        {},
        "x ",
        choice(
          [...options, ["", "other series…"]],
          state.x,
          (value) => {
            if (value) setState({ x: value, x0: null, x1: null });
            else
              pickFields(
                this.axis,
                names,
                [state.x],
                (picked) => setState({ x: picked.at(-1) ?? "step", x0: null, x1: null }),
                true,
              );
          },
          { "aria-label": "x axis" },
        ),
      ),
    );
  },

  async update(changed) {
    if (!this.host) return;
    this.resetTool.hidden = state.x0 === null;
    if (changed.has("wide") || (changed.has("tab") && changed.size === 1)) return;
    this.smoothText.textContent = state.smooth ? state.smooth.toFixed(state.smooth > 0.99 ? 3 : 2) : "off";
    this.band.replaceChildren(
      ...(state.group.length
        ? [
            choice(
              [
                ["mean", "mean"],
                ["median", "median"],
              ],
              state.stat === "median" ? "median" : "mean",
              (value) => setState({ stat: value }),
              { "aria-label": "Line of a group" },
            ),
            choice(
              [
                ["minmax", "min to max"],
                ["quartiles", "quartiles"],
                ["std", "± std"],
              ],
              state.band,
              (value) => setState({ band: value }),
              { "aria-label": "Band of a group" },
            ),
          ]
        : []),
    );
    const turn = (this.turn = {});
    const ids = drawnIds();
    const groups = state.group.length ? runsTable.chartGroups() : null;
    const runs = await recordsOf(groups ? groups.flatMap((group) => group.runs.slice(0, 1)) : ids);
    if (turn !== this.turn || !this.host.isConnected) return;
    const names = seriesNames(runs);
    this.axisChoice(names);
    this.notice.textContent = this.noticeText(runs, groups);
    this.lay(this.plans(names, runs, groups));
  },

  noticeText(runs, groups) {
    if (!runs.length)
      return state.picked?.length === 0
        ? "No run is ticked: tick some in the table."
        : runsTable.total === 0
          ? noRunWords()
          : "No run matches.";
    const picked = groups ? groups.total : (state.picked?.length ?? 0);
    const most = groups ? groups.length : DRAWN_MOST;
    return picked > most
      ? `Drawn are the first ${most} of ${picked.toLocaleString("en")} ${groups ? "groups" : "ticked runs"}.`
      : "";
  },

  plans(names, runs, groups) {
    const colors = colorsOf(runs);
    const dashes = [[], [5, 3], [1.5, 2.5], [8, 3, 2, 3]];
    const planOf = (title, series, own) => {
      const plan = { title, name: series[0], own, key: `${own ?? ""}:${title}` };
      if (groups) return { ...plan, groups };
      const label = (run, one) => (series.length > 1 ? `${run.name} · ${one}` : run.name);
      const one = (run, metric, k) => ({
        run: run.id,
        name: metric,
        color: colors.get(run.id),
        label: label(run, metric),
        dash: dashes[k % 4],
      });
      return { ...plan, series: series.flatMap((metric, k) => runs.map((run) => one(run, metric, k))) };
    };
    const words = matcher(state.metrics);
    const sections = new Map();
    if (state.charts.length) {
      sections.set(
        "own charts",
        state.charts.map((series, i) => {
          const plan = planOf(series.join(", "), series, i + 1);
          plan.menu = [["Remove this chart", () => setState({ charts: state.charts.filter((_, k) => k !== i) })]];
          return plan;
        }),
      );
    }
    for (const one of names.filter(words)) {
      const slash = one.indexOf("/"),
        section = slash > 0 ? one.slice(0, slash) : OTHER;
      if (!sections.has(section)) sections.set(section, []);
      sections.get(section).push({
        title: one,
        make: () => ({
          ...planOf(one, [one]),
          menu: [["Copy to a chart of its own", () => setState({ charts: [...state.charts, [one]] })]],
        }),
      });
    }
    return sections;
  },

  // Sections and cards, keeping what is there.
  lay(sections) {
    const nodes = [],
      kept = new Set();
    for (const [section, plans] of sections) {
      const open = !state.closed.includes(section);
      const head = el(
        "button.head",
        {
          type: "button",
          "aria-expanded": open,
          onclick: () =>
            setState({ closed: open ? [...state.closed, section] : state.closed.filter((one) => one !== section) }),
        },
        el("span.arrow", open ? "▾" : "▸"),
        section,
        el("small", String(plans.length)),
      );
      const grid = el(`div.grid.size${state.size}`);
      const count = this.more.get(section) ?? PART;
      for (const given of open ? plans.slice(0, count) : []) {
        const plan = given.make?.() ?? given;
        kept.add(plan.key);
        grid.append(this.card(plan));
      }
      const rest = open ? plans.length - count : 0;
      nodes.push(
        el(
          "section",
          {},
          head,
          grid,
          rest > 0 &&
            button(`Show ${Math.min(rest, PART)} more of ${rest}`, () => {
              this.more.set(section, count + PART);
              this.update(new Set(["metrics"]));
            }),
        ),
      );
    }
    const scroll = this.host.scrollTop;
    this.grid.replaceChildren(...nodes);
    this.host.scrollTop = scroll;
    for (const key of [...kept].slice(0, AT_ONCE)) this.wake(key); // the observer would tell of these a frame later
    for (const [key, card] of this.cards) {
      if (kept.has(key)) continue;
      card.chart?.close();
      this.seen.unobserve(card.node);
      this.cards.delete(key);
    }
    for (const card of this.cards.values()) if (card.chart) card.chart.setPlan(card.plan);
  },

  card(plan) {
    let card = this.cards.get(plan.key);
    if (!card) {
      const node = el("div.card", {}, el("div.title", plan.title));
      node.key = plan.key;
      card = { node, chart: null };
      this.cards.set(plan.key, card);
      this.seen.observe(node);
    }
    card.plan = plan;
    card.node.style.minHeight = `${HEIGHTS[state.size] + 30}px`;
    return card.node;
  },

  seenNow(key, inSight) {
    if (inSight) this.wake(key);
    const chart = this.cards.get(key)?.chart;
    if (!chart || chart.hidden === !inSight) return;
    chart.hidden = !inSight;
    if (inSight) chart.moved();
  },

  wake(key) {
    const card = this.cards.get(key);
    if (!card || card.chart) return;
    const grow = button("⤢", () => expand(card.plan), {
      className: "quiet",
      title: "Large",
      "aria-label": `Enlarge ${card.plan.title}`,
    });
    card.chart = new Chart(card.plan, { tools: [grow] });
    card.node.replaceChildren(card.chart.node);
    card.chart.refresh();
  },

  refreshData(ids) {
    for (const { chart } of this.cards.values()) {
      const runs = chart?.plan.series?.map((one) => one.run) ?? chart?.plan.groups.flatMap((group) => group.runs) ?? [];
      if (chart && runs.some((id) => ids.has(id))) chart.refresh(true);
    }
    expanded?.refresh(true);
  },

  repaint() {
    for (const { chart } of this.cards.values()) chart?.draw();
  },

  async newChart(anchor) {
    const names = seriesNames(await recordsOf(drawnIds()));
    pickFields(anchor, names, [], (picked) => setState({ charts: [...state.charts, picked] }));
  },
};

function expand(plan) {
  const chart = (expanded = new Chart(plan, { big: true }));
  const rows = plan.series ?? plan.groups;
  const legend = el(
    "ul.legend",
    rows.slice(0, 60).map(({ label, color }) => el("li", {}, el("i", { style: { background: color } }), label)),
    rows.length > 60 ? el("li", `and ${rows.length - 60} more`) : null,
  );
  const box = modal(plan.title, chart.node, legend);
  box.classList.add("large");
  box.addEventListener("close", () => {
    chart.close();
    expanded = null;
    for (const one of zoom.charts) one.moved();
  });
  const sync = () => {
    if (chart.node.isConnected) chart.setPlan(chart.plan);
    else listeners.splice(listeners.indexOf(sync), 1);
  };
  listeners.push(sync);
  chart.stage.focus();
}
