// Above the table: search, filter, groups, columns, and what the filter understands.
"use strict";

Object.assign(runsTable, {
  controls() {
    const typed = (key) => delayed(() => setState({ [key]: this[key].value }), 200);
    this.search = el("input", {
      type: "search",
      placeholder: "Search runs",
      value: state.search,
      "aria-label": "Search runs",
      oninput: typed("search"),
    });
    this.filter = el("input.filter", {
      type: "text",
      placeholder: "Filter: config.lr > 1e-3 and summary.loss < 2",
      value: state.filter,
      spellcheck: false,
      autocomplete: "off",
      "aria-label": "Filter expression",
      hidden: api.offline,
      oninput: typed("filter"),
    });
    this.groupTool = button("Group", (event) => this.chooseGroup(event.target), {
      title: "Group runs, for example over seeds",
    });
    this.bar.replaceChildren(
      this.search,
      this.filter,
      el(
        "div.tools",
        button("?", (event) => this.filterHelp(event.target), {
          className: "quiet",
          hidden: api.offline,
          title: "Fields and examples for the filter",
          "aria-label": "Help for the filter",
        }),
        this.groupTool,
        (this.statTool = choice(
          [
            ["mean", "mean ± std"],
            ["median", "median"],
            ["range", "min … max"],
          ],
          state.stat,
          (value) => setState({ stat: value }),
          { "aria-label": "Statistic of a group", hidden: true },
        )),
        button("Columns", (event) => this.chooseColumns(event.target)),
        (this.showTool = choice(
          [
            ["active", "Active"],
            ["archived", "Archived"],
            ["deleted", "Deleted"],
          ],
          state.show,
          (value) => setState({ show: value, picked: null }),
          { "aria-label": "Which runs" },
        )),
        (this.wideTool = button("Wide", () => setState({ wide: !state.wide }), {
          title: "Table over the whole width (t)",
          className: "desktop",
        })),
      ),
    );
  },

  chooseColumns(anchor) {
    const names = [...PLAIN, ...fieldNames(this.fields)];
    const reset = button("Automatic", () => {
      closePopover();
      setState({ columns: null });
    });
    pickFields(anchor, names, this.columns, (picked) =>
      setState({
        columns: [
          ...this.columns.filter((one) => picked.includes(one)),
          ...picked.filter((one) => !this.columns.includes(one)),
        ],
      }),
    );
    popped.box.lastChild.prepend(reset);
  },

  filterHelp(anchor) {
    const insert = (words) => () => {
      this.filter.value = this.filter.value.trim() ? `${this.filter.value.trim()} and ${words}` : words;
      this.filter.focus();
    };
    const names = [
      ...PLAIN,
      ...this.fields.config.slice(0, 100).map(({ name: one }) => fieldWritten("config", one)),
      ...this.fields.summary.slice(0, 100).map(({ name: one }) => fieldWritten("summary", one)),
    ];
    popover(
      anchor,
      el("p.soft", "Joined with and, or, not. Compared with < <= == != >= > in ~ (a regular expression)."),
      el(
        "div.menu",
        ["config.lr > 1e-3", 'summary["eval/loss"] < 2', '"base" in tags', 'name ~ "k3-.*"', 'state == "running"'].map(
          (one) => button(one, insert(one), { className: "code" }),
        ),
      ),
      el("p.soft", "Fields"),
      el(
        "div.menu.choices",
        names.map((one) => button(one, insert(one), { className: "code" })),
      ),
    );
  },
});

function fieldWritten(table, key) {
  return /^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*$/.test(key) ? `${table}.${key}` : `${table}[${JSON.stringify(key)}]`;
}
