// One run: what it is, and everything it logged, in parts.
"use strict";

const PARTS = [
  ["overview", "Overview"],
  ["charts", "Charts"],
  ["text", "Text"],
  ["image", "Images"],
  ["histogram", "Histograms"],
  ["table", "Tables"],
  ["system", "System"],
  ["console", "Console"],
  ["alerts", "Alerts"],
];

function openRun(id) {
  setState({ tab: "run", run: id }, true);
}

const runTab = {
  charts: [],

  show(host) {
    this.host = host;
    this.id = null;
    return this.update(new Set(["run"]));
  },

  hide() {
    for (const chart of this.charts) chart.close();
    this.charts = [];
  },

  async update(changed) {
    const has = (...keys) => keys.some((key) => changed.has(key));
    const id = state.run ?? drawnIds()[0];
    if (!id) return this.host.replaceChildren(el("p.notice", "Press a run's name in the table to open it."));
    if (has("run") || id !== this.id) {
      try {
        this.run = await api.run(id);
      } catch (error) {
        return this.host.replaceChildren(
          el("p.notice", error.status === 404 ? "This run is not here any more." : error.message),
        );
      }
      this.id = id;
      this.lay();
    } else if (has("part")) this.lay();
    else if (has("x", "xlog", "ylog", "smooth", "size")) for (const chart of this.charts) chart.setPlan(chart.plan);
  },

  // Told when the board says that this run changed.
  async changed() {
    if (!this.id) return;
    const run = await api.run(this.id).catch(() => null);
    if (!run || run.id !== this.id || !this.host.isConnected) return;
    const edited = ["name", "color", "state", "tags", "notes", "archived", "deleted"].some(
      (key) => JSON.stringify(run[key]) !== JSON.stringify(this.run[key]),
    );
    this.run = run;
    if (state.part === "console") await consoleLog.more();
    else if (this.charts.length) for (const chart of this.charts) chart.refresh(true);
    else if (!this.host.contains(document.activeElement) || document.activeElement === this.host) this.lay();
    if (edited) this.fillHead();
  },

  lay() {
    this.hide();
    const { run } = this;
    const counts = new Map();
    for (const one of run.media) counts.set(one.kind, (counts.get(one.kind) ?? 0) + one.count);
    counts.set("alerts", run.alerts.length);
    const parts = PARTS.filter(
      ([key]) =>
        ["overview", "charts", "alerts", state.part].includes(key) ||
        counts.get(key) ||
        (key === "system" && run.series.some((one) => one.name.startsWith("system/"))),
    );
    const part = parts.some(([key]) => key === state.part) ? state.part : "overview";
    const nav = el(
      "nav.parts",
      { role: "tablist" },
      parts.map(([key, title]) =>
        button(
          counts.get(key) ? `${title} ${compact(counts.get(key), 3)}` : title,
          () => setState({ part: key }, true),
          { role: "tab", "aria-selected": key === part },
        ),
      ),
      counts.get("rollout")
        ? button(`Rollouts ${counts.get("rollout")}`, () => setState({ picked: [run.id], tab: "rollouts" }, true))
        : null,
    );
    const body = el("div.partbody");
    this.host.replaceChildren(this.makeHead(), nav, body);
    if (part === "overview") body.append(...this.overview());
    if (part === "charts")
      this.drawCharts(
        body,
        run.series.filter((one) => !one.name.startsWith("system/")),
      );
    if (part === "system")
      this.drawCharts(
        body,
        run.series.filter((one) => one.name.startsWith("system/")),
      );
    const blocks = { text: textBlock, image: imageBlock, histogram: histogramBlock, table: tableBlock };
    if (blocks[part]) body.append(...mediaBlocks(run, part, blocks[part]));
    if (part === "console") consoleLog.show(run, body).catch((error) => toast(error.message));
    if (part === "alerts") body.append(alertList(run));
  },

  makeHead() {
    const ids = [this.run.id];
    const free = !api.offline;
    this.title = el("input.title", {
      "aria-label": "Name",
      readOnly: !free,
      maxLength: 500,
      onchange: ({ target }) => edit(ids, { name: target.value }, "Renamed."),
    });
    this.notes = el("textarea.notes", {
      placeholder: free ? "Notes" : "",
      "aria-label": "Notes",
      readOnly: !free,
      hidden: !free && !this.run.notes,
      rows: Math.min(6, (this.run.notes ?? "").split("\n").length),
      onchange: ({ target }) => edit(ids, { notes: target.value }, "Notes kept."),
    });
    this.swatch = el("button.swatch", {
      type: "button",
      title: "Colour",
      "aria-label": "Colour",
      disabled: !free,
      onclick: () => colorPicker(this.swatch, ids, this.run.color),
    });
    this.state = el("span.state");
    this.marks = el("div.line.tags");
    this.saved = { title: "", notes: "" }; // what the board has of the two fields
    this.fillHead();
    return el("header.runhead", el("div.line", this.swatch, this.title, this.state), this.marks, this.notes);
  },

  // In place: a field whose text was typed and is not saved yet keeps it, and the focus.
  fillHead() {
    const { run, saved } = this;
    for (const [name, value] of [
      ["title", run.name],
      ["notes", run.notes ?? ""],
    ]) {
      if (this[name].value === saved[name]) this[name].value = value;
      saved[name] = value;
    }
    this.swatch.style.setProperty("--color", colorsOf([run]).get(run.id));
    this.state.className = `state ${run.state}`;
    this.state.textContent = run.state;
    const ids = [run.id];
    const free = !api.offline;
    this.marks.replaceChildren(
      ...run.tags.map((tag) => el("span.tag", tag)),
      free ? button("Tag", (event) => tagEditor(event.target, ids, run.tags), { className: "quiet" }) : "",
      el("span.grow"),
      button("Draw only this", () => setState({ picked: ids, tab: "charts" }, true)),
      ...(free
        ? [
            button(run.archived ? "Unarchive" : "Archive", () => archive(ids, !run.archived)),
            button(run.deleted ? "Restore" : "Delete", () => remove(ids, !run.deleted)),
            button("Bundle", () => makeBundle(ids)),
          ]
        : []),
    );
  },

  overview() {
    const { run } = this;
    const facts = [
      ["id", run.id],
      ["folder", run.folder],
      ["created", when(run.created)],
      ["updated", when(run.updated)],
      ["took", duration(run.updated - run.created)],
      ["steps", run.last_step === null ? "" : run.last_step.toLocaleString("en")],
      ["points", run.points.toLocaleString("en")],
    ];
    const code = run.code ?? {};
    const source = [
      ["commit", code.commit],
      ["branch", code.branch],
      ["python", code.python],
      ["platform", code.platform],
      ["command", Array.isArray(code.argv) ? code.argv.map((one) => shown(one)).join(" ") : code.argv],
      [
        "changed files",
        Array.isArray(code.changed) && code.changed.length ? code.changed.map((one) => shown(one)).join("\n") : null,
      ],
    ];
    const odd = run.series.filter((one) => one.nonfinite);
    return [
      odd.length
        ? el(
            "p.alarm",
            `${plural(
              odd.reduce((sum, one) => sum + one.nonfinite, 0),
              "value",
            )} not finite: ${odd
              .map((one) => one.name)
              .slice(0, 8)
              .join(", ")}`,
          )
        : "",
      run.gaps.length
        ? el(
            "p.alarm",
            `Points were lost ${plural(run.gaps.length, "time")}: ${run.gaps
              .map((gap) => `${plural(gap.points ?? 0, "point")} until ${when(gap.to)}`)
              .slice(0, 5)
              .join("; ")}`,
          )
        : "",
      el(
        "div.columns",
        el("section.block", el("h3", "Run"), pairs(facts)),
        source.some(([, value]) => value) ? el("section.block", el("h3", "Code"), pairs(source)) : null,
      ),
      el(
        "div.columns",
        el("section.block", el("h3", `Config (${Object.keys(run.config).length})`), pairs(Object.entries(run.config))),
        el(
          "section.block",
          el("h3", `Summary (${Object.keys(run.summary).length})`),
          pairs(Object.entries(run.summary)),
        ),
      ),
      el(
        "section.block",
        el("h3", `Series (${run.series.length})`),
        grid(
          ["name", "points", "first step", "last step", "last", "min", "max", "not finite"],
          run.series.map((one) => [
            one.name,
            one.points,
            one.first_step,
            one.last_step,
            one.last,
            one.min,
            one.max,
            one.nonfinite || null,
          ]),
        ),
      ),
      run.attempts.length
        ? el(
            "section.block",
            el("h3", `Attempts (${run.attempts.length})`),
            grid(
              ["attempt", "host", "pid", "started", "updated", "ended", "exit", "points", "damage"],
              run.attempts.map((one) => [
                one.attempt,
                one.host,
                one.pid,
                when(one.started),
                when(one.updated),
                when(one.ended),
                one.ended ? (one.exit ?? "ok") : "",
                one.points,
                one.damage,
              ]),
            ),
          )
        : "",
    ];
  },

  drawCharts(body, series) {
    const grid = el(`div.grid.size${state.size}`);
    body.append(series.length ? grid : el("p.notice", "This run logged no numbers."));
    const color = colorsOf([this.run]).get(this.run.id);
    const waiting = new IntersectionObserver(
      (entries) => {
        for (const { target, isIntersecting } of entries) {
          if (!isIntersecting || target.firstChild) continue;
          const plan = {
            title: target.series,
            name: target.series,
            series: [{ run: this.run.id, name: target.series, color, label: this.run.name }],
          };
          const chart = new Chart(plan, {
            tools: [button("⤢", () => expand(plan), { className: "quiet", title: "Large" })],
          });
          this.charts.push(chart);
          target.append(chart.node);
        }
      },
      { root: this.host, rootMargin: "300px" },
    );
    for (const one of series) {
      const card = el("div.card", { style: { "min-height": `${HEIGHTS[state.size] + 30}px` } });
      card.series = one.name;
      grid.append(card);
      waiting.observe(card);
    }
  },
};

function pairs(entries) {
  const known = entries.filter(([, value]) => value !== null && value !== undefined && value !== "");
  if (!known.length) return el("p.soft", "nothing");
  return el(
    "table.pairs",
    el(
      "tbody",
      known.map(([key, value]) => el("tr", el("th", key), el("td", { title: shown(value, 16) }, shown(value, 8)))),
    ),
  );
}

function grid(titles, rows) {
  return el(
    "div.across",
    el(
      "table.data",
      el(
        "thead",
        el(
          "tr",
          titles.map((title, i) => el(rows.some((row) => asNumber(row[i]) !== null) ? "th.number" : "th", title)),
        ),
      ),
      el(
        "tbody",
        rows.map((row) =>
          el(
            "tr",
            row.map((value) =>
              el(asNumber(value) === null ? "td" : "td.number", { title: shown(value, 12) }, shown(value, 6)),
            ),
          ),
        ),
      ),
    ),
  );
}
