// The table of runs: only the rows in sight exist, and only their pages are asked for. Search, filter and sort are the
// server's work.
"use strict";

const ROW = 28,
  PAGE = 100,
  EXTRA = 6; // pixels a row, runs a request, rows beyond the edges

const runsTable = {
  total: null, // runs below the folder, once known
  matched: 0,
  pages: new Map(), // page → rows
  groups: null, // [{key, runs, stats: {column: …}}] when grouped
  open: new Set(), // keys of groups that are open
  cursor: 0,
  rows: [],
  fields: { config: [], summary: [], series: [], tags: [] },

  show(host) {
    this.bar = el("div.tablebar");
    this.bulk = el("div.bulk", { hidden: true });
    this.error = el("p.error", { hidden: true });
    this.head = el("div.thead", { role: "row" });
    this.body = el("div.tbody", { role: "rowgroup" });
    this.empty = el("p.notice");
    this.scroller = el(
      "div.scroller",
      { tabIndex: 0, role: "grid", "aria-label": "Runs" },
      this.head,
      this.body,
      this.empty,
    );
    this.foot = el("div.tfoot");
    host.replaceChildren(this.bar, this.bulk, this.error, this.scroller, this.foot);
    this.scroller.addEventListener("scroll", () => this.draw());
    new ResizeObserver(() => this.draw()).observe(this.scroller);
    this.body.addEventListener("click", (event) => this.pressed(event));
    this.controls();
  },

  async load() {
    try {
      const first = await Promise.all([api.fields(), api.runs(this.query({ column: [], limit: DRAWN }))]);
      this.fields = first[0];
      for (const run of first[1].runs) records.set(run.id, run);
      if (!state.group.length) setFirstRuns(first[1].runs.map((run) => run.id));
      this.chooseSight(first[1].runs);
      await this.reload();
    } catch (error) {
      this.fail(error);
    }
  },

  // Without chosen columns: settings that differ among the first runs come before those that do not.
  chooseSight(runs = []) {
    const before = this.columns?.join();
    const differs = ({ name: key }) => new Set(runs.map((run) => JSON.stringify(run.config[key]))).size > 1;
    if (!this.varying?.size) this.varying = new Set(this.fields.config.filter(differs).map((one) => one.name));
    this.columns = columnsInSight(this.fields, this.varying);
    if (this.columns.join() !== before) this.drawHead();
  },

  async update(changed) {
    const has = (...keys) => keys.some((key) => changed.has(key));
    if (document.activeElement !== this.search) this.search.value = state.search;
    if (document.activeElement !== this.filter) this.filter.value = state.filter;
    this.showTool.value = state.show;
    this.statTool.value = state.stat;
    if (has("columns")) this.chooseSight();
    if (has("sort", "group") && this.columns) this.drawHead();
    if (has("search", "filter", "show", "sort", "columns", "group")) {
      if (has("search", "filter", "show")) {
        this.cursor = 0;
        this.scroller.scrollTop = 0;
      }
      await this.reload();
    } else this.draw();
  },

  query(more) {
    const fields = !this.columns
      ? []
      : [
          ...BASE,
          ...this.columns.filter((one) => !BASE.includes(one)),
          ...state.group.filter((one) => !BASE.includes(one) && !this.columns.includes(one)),
        ];
    return {
      search: state.search,
      filter: fullFilter(),
      sort: state.sort,
      deleted: state.show === "deleted" ? 1 : 0,
      column: fields,
      ...more,
    };
  },

  // Rows of an answer as runs: {id, name, …, config: {…}, summary: {…}} with the asked fields.
  unpack({ columns, rows }) {
    return rows.map((row) => {
      const run = { config: {}, summary: {} };
      columns.forEach((column, i) => {
        const dot = column.indexOf("."),
          table = column.slice(0, dot);
        if (table === "config" || table === "summary") run[table][column.slice(dot + 1)] = row[i];
        else run[column] = row[i];
      });
      return run;
    });
  },

  async reload() {
    const turn = (this.turn = {});
    try {
      if (state.group.length) await this.loadGroups(turn);
      else {
        const top = this.scroller.scrollTop,
          pageAt = (y) => Math.floor(Math.max(0, y) / ROW / PAGE);
        const wanted = [...new Set([0, pageAt(top), pageAt(top + this.scroller.clientHeight)])];
        const found = await Promise.all(wanted.map((one) => api.runs(this.query({ offset: one * PAGE, limit: PAGE }))));
        if (turn !== this.turn) return;
        this.groups = null;
        this.pages = new Map(wanted.map((one, i) => [one, this.unpack(found[i])]));
        this.counts(found[0]);
        setFirstRuns(
          this.pages
            .get(0)
            .slice(0, DRAWN)
            .map((run) => run.id),
        );
      }
      this.error.hidden = true;
    } catch (error) {
      if (turn === this.turn) this.fail(error);
      return;
    }
    this.cursor = Math.min(this.cursor, Math.max(0, this.count() - 1));
    this.draw();
  },

  counts({ total, matched }) {
    const empty = !matched && (this.matched !== 0 || this.total !== total);
    this.total = total;
    this.matched = matched;
    if (empty) tell(new Set(["picked"])); // so that the other side says why it is empty
  },

  fail(error) {
    this.error.textContent = error.message;
    this.error.hidden = false;
  },

  count() {
    return this.groups ? this.items.length : this.matched;
  },

  item(i) {
    return this.groups ? this.items[i] : this.pages.get(Math.floor(i / PAGE))?.[i % PAGE];
  },

  // Ask for the pages in sight that are missing.
  need: delayed(async function (first, last) {
    const table = runsTable,
      turn = table.turn;
    if (table.groups) return;
    for (let page = Math.floor(first / PAGE); page <= Math.floor(last / PAGE); page += 1) {
      if (table.pages.has(page)) continue;
      table.pages.set(page, []);
      try {
        const found = await api.runs(table.query({ offset: page * PAGE, limit: PAGE }));
        if (turn !== table.turn) return;
        table.pages.set(page, table.unpack(found));
        if (found.matched !== table.matched) table.counts(found);
        table.draw();
      } catch (error) {
        table.pages.delete(page);
        if (turn === table.turn) table.fail(error);
      }
    }
  }, 40),

  drawHead() {
    const [, field] = state.sort.match(/^-?(.*)$/),
      down = state.sort.startsWith("-");
    const title = (column, words) =>
      el(
        numeric(column) ? "button.cell.number" : "button.cell",
        {
          type: "button",
          role: "columnheader",
          title: `${column}: press to sort`,
          "aria-sort": field === column ? (down ? "descending" : "ascending") : "none",
          onclick: () =>
            setState({
              sort:
                field === column && !down
                  ? `-${column}`
                  : field === column
                    ? column
                    : /^(summary|created|updated|points|last_step)/.test(column) &&
                        !/loss|perplexity|error/i.test(column)
                      ? `-${column}`
                      : column,
            }),
        },
        el("span", words),
        field === column ? (down ? " ↓" : " ↑") : "",
      );
    const all = el("input", {
      type: "checkbox",
      title: "Tick all runs that match, or none",
      "aria-label": "Tick all",
      onchange: (event) => this.tickAll(event.target.checked),
    });
    this.all = all;
    this.head.replaceChildren(
      el("div.cell.tick", all),
      title("name", state.group.length ? `name / ${state.group.map(fieldTitle).join(", ")}` : "name"),
      ...this.columns.map((column) => title(column, TITLES[column] ?? fieldTitle(column))),
    );
    const first = state.group.length ? 240 : 180;
    const widths = this.columns.map((column) => columnWidth(column) + (state.group.length && numeric(column) ? 50 : 0));
    this.scroller.style.setProperty(
      "--columns",
      `34px minmax(${first}px, 1.6fr) ${widths.map((wide) => `minmax(${wide}px, 1fr)`).join(" ")}`,
    );
    this.scroller.style.setProperty("--least", `${46 + first + widths.reduce((sum, wide) => sum + wide, 0)}px`);
    this.rows = [];
    this.body.replaceChildren();
  },

  draw() {
    if (this.waiting) return;
    this.waiting = requestAnimationFrame(() => {
      this.waiting = 0;
      this.paint();
    });
  },

  paint() {
    if (!this.columns) return;
    const count = this.count(),
      top = this.scroller.scrollTop,
      height = this.scroller.clientHeight;
    const first = Math.max(0, Math.floor(top / ROW) - EXTRA),
      last = Math.min(count, Math.ceil((top + height) / ROW) + EXTRA);
    this.body.style.height = `${count * ROW}px`;
    while (this.rows.length < last - first) {
      const row = this.makeRow();
      this.rows.push(row);
      this.body.append(row.node);
    }
    const drawn = new Set(drawnIds()),
      picked = new Set(state.picked ?? []);
    const seen = [];
    for (let i = first; i < last; i += 1)
      if (this.item(i)?.id !== undefined && !this.item(i).runs) seen.push(this.item(i));
    const rowOfId = new Map(seen.map((run) => [run.id, run]));
    const colors = colorsOf(
      drawnIds()
        .map((id) => records.get(id) ?? rowOfId.get(id))
        .filter(Boolean),
    );
    this.rows.forEach((row, k) => {
      const i = first + k;
      row.node.hidden = i >= last;
      if (i < last) this.fill(row, i, this.item(i), { drawn, picked, colors });
    });
    if (last > first) this.need(first, last - 1);
    const ticked = state.picked?.length ?? 0;
    this.all.checked = ticked > 0 && ticked >= this.matched;
    this.all.indeterminate = ticked > 0 && ticked < this.matched;
    this.bulk.hidden = !ticked;
    const mark = `${state.picked} ${state.show}`;
    if (ticked && this.bulkMark !== mark) this.bulk.replaceChildren(...bulkBar(state.picked));
    this.bulkMark = ticked ? mark : "";
    this.groupTool.setAttribute("aria-pressed", state.group.length > 0);
    this.wideTool.setAttribute("aria-pressed", state.wide);
    this.statTool.hidden = !state.group.length;
    this.empty.textContent =
      this.total === null || count
        ? ""
        : this.total === 0
          ? noRunWords()
          : "No run matches the search and filter.";
    const of =
      this.matched === this.total
        ? plural(this.total ?? 0, "run")
        : `${this.matched.toLocaleString("en")} of ${plural(this.total ?? 0, "run")}`;
    const all = this.groups ? `${plural(this.groups.length, "group")}, ${of}` : of;
    this.foot.textContent = scanning ? `${all} so far` : all;
  },

  async tickAll(on) {
    if (!on) return setState({ picked: null });
    const { rows } = await api.runs(this.query({ limit: 20_000, column: ["id"] }));
    setState({ picked: rows.map(([id]) => id) });
  },

  // Keyboard: move the cursor, and what it is on.
  move(by) {
    document.body.classList.add("keys");
    this.cursor = Math.min(Math.max(0, this.cursor + by), Math.max(0, this.count() - 1));
    const top = this.cursor * ROW,
      { scrollTop, clientHeight } = this.scroller;
    if (top < scrollTop) this.scroller.scrollTop = top;
    if (top + 2 * ROW > scrollTop + clientHeight) this.scroller.scrollTop = top + 2 * ROW - clientHeight;
    this.draw();
  },

  here() {
    return this.item(this.cursor);
  },

  tickHere() {
    const item = this.here();
    if (!item) return;
    const ids = item.runs ? item.runs.map((run) => run.id) : [item.id],
      picked = new Set(state.picked ?? drawnIds());
    togglePicked(ids, !ids.every((id) => picked.has(id)));
  },
};
