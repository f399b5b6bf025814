// Rows of the table: made once, filled with whatever run scrolls into them, and what a press on them does.
"use strict";

Object.assign(runsTable, {
  makeRow() {
    const tick = el("input", { type: "checkbox" });
    const swatch = el("button.swatch", { type: "button", title: "Colour" });
    const fold = el("span.fold"),
      dot = el("span.dot"),
      label = el("button.name", { type: "button" });
    const cells = this.columns.map(() => el("div.cell", { role: "gridcell" }));
    const node = el(
      "div.row",
      { role: "row" },
      el("div.cell.tick", tick, swatch),
      el("div.cell.first", { role: "gridcell" }, fold, dot, label),
      cells,
    );
    const row = { node, tick, swatch, fold, dot, label, cells, i: 0 };
    node.row = row;
    return row;
  },

  fill(row, i, item, { drawn, picked, colors }) {
    row.i = i;
    row.node.style.transform = `translateY(${i * ROW}px)`;
    row.node.classList.toggle("cursor", i === this.cursor && document.body.classList.contains("keys"));
    row.node.classList.toggle("group", Boolean(item?.runs));
    row.node.classList.toggle("member", Boolean(this.groups && item && !item.runs));
    row.tick.disabled = !item;
    row.swatch.hidden = !item || Boolean(item.runs && !state.group.length);
    row.dot.className = "dot";
    row.node.setAttribute("aria-rowindex", i + 1);
    if (!item) {
      row.label.textContent = "…";
      row.fold.textContent = "";
      for (const cell of row.cells) cell.textContent = "";
      return;
    }
    if (item.runs) return this.fillGroup(row, item, picked);
    row.fold.textContent = "";
    row.tick.checked = drawn.has(item.id) || picked.has(item.id);
    row.tick.classList.toggle("auto", state.picked === null && drawn.has(item.id));
    row.tick.setAttribute("aria-label", `Tick ${item.name}`);
    const drawnHere = drawn.has(item.id) && !state.group.length;
    row.swatch.style.setProperty("--color", colors.get(item.id) ?? item.color ?? "transparent");
    row.swatch.classList.toggle("off", !drawnHere);
    row.swatch.setAttribute("aria-label", `Colour of ${item.name}`);
    row.dot.classList.add(item.state);
    row.dot.title = item.state;
    row.label.textContent = item.name || item.id;
    row.label.title = `${item.name}\n${item.id}${item.notes ? `\n${item.notes}` : ""}`;
    row.node.classList.toggle("open", item.id === state.run && state.tab === "run");
    this.columns.forEach((column, k) => {
      const words = cellText(item, column),
        cell = row.cells[k];
      if (cell.textContent !== words) cell.textContent = words;
      cell.title = column === "created" || column === "updated" ? when(item[column]) : words;
      cell.classList.toggle("number", numeric(column));
      cell.classList.toggle("state", column === "state");
    });
  },

  pressed(event) {
    const row = event.target.closest(".row")?.row;
    const item = row && this.item(row.i);
    if (!item) return;
    const before = this.cursor;
    this.cursor = row.i;
    const ids = (one) => (one?.runs ? one.runs.map((run) => run.id) : one ? [one.id] : []);
    if (event.target === row.tick) {
      const on = row.tick.checked;
      const [from, to] = event.shiftKey ? [Math.min(before, row.i), Math.max(before, row.i)] : [row.i, row.i];
      const every = [];
      for (let i = from; i <= to; i += 1) every.push(...ids(this.item(i)));
      togglePicked(every, on);
    } else if (event.target === row.swatch && !item.runs) {
      if (!api.offline) colorPicker(row.swatch, [item.id], item.color);
    } else if (item.runs) {
      this.fold(item);
    } else if (event.target === row.label) {
      openRun(item.id);
    }
    this.draw();
  },
});
