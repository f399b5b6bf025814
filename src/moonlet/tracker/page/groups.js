// The table of runs when it is grouped: all runs are fetched once, each group is a row with its statistics and opens.
"use strict";

const MOST_GROUPS = 24; // drawn as charts

Object.assign(runsTable, {
  async loadGroups(turn) {
    const answer = await api.runs(this.query({ limit: 100_000 }));
    if (turn !== this.turn) return;
    this.counts(answer);
    const found = new Map();
    for (const run of this.unpack(answer)) {
      const key = state.group.map((field) => fieldOf(run, field) ?? null);
      const id = JSON.stringify(key);
      if (!found.has(id)) found.set(id, { id, key, runs: [] });
      found.get(id).runs.push(run);
    }
    this.groups = [...found.values()].sort((a, b) => {
      for (let i = 0; i < a.key.length; i += 1) {
        const order = inOrder(a.key[i], b.key[i]);
        if (order) return order;
      }
      return 0;
    });
    for (const group of this.groups) {
      group.stats = Object.fromEntries(
        this.columns.map((column) => [column, statistics(group.runs.map((run) => asNumber(fieldOf(run, column))))]),
      );
    }
    this.flatten();
    setFirstRuns(this.groups.flatMap((group) => group.runs.map((run) => run.id)).slice(0, DRAWN));
    tell(new Set(["groups"]));
  },

  flatten() {
    this.items = this.groups.flatMap((group) => [group, ...(this.open.has(group.id) ? group.runs : [])]);
  },

  // Groups as charts draw them: of the ticked runs where some are ticked.
  chartGroups() {
    const picked = state.picked && new Set(state.picked);
    const all = (this.groups ?? [])
      .map((group, i) => ({
        label: groupLabel(group),
        color: PALETTE[i % PALETTE.length],
        runs: group.runs.map((run) => run.id).filter((id) => !picked || picked.has(id)),
      }))
      .filter((group) => group.runs.length);
    return Object.assign(all.slice(0, MOST_GROUPS), { total: all.length });
  },

  fillGroup(row, group, picked) {
    const ids = group.runs.map((run) => run.id);
    row.fold.textContent = this.open.has(group.id) ? "▾" : "▸";
    row.label.textContent = `${groupLabel(group)}  (${group.runs.length})`;
    row.label.title = groupLabel(group);
    row.tick.checked = ids.every((id) => picked.has(id));
    row.tick.classList.remove("auto");
    const place = this.groups.indexOf(group);
    row.swatch.style.setProperty("--color", PALETTE[place % PALETTE.length]);
    row.swatch.classList.toggle("off", place >= MOST_GROUPS);
    this.columns.forEach((column, k) => {
      row.cells[k].textContent = this.groupCell(group, column);
      row.cells[k].title = statTitle(group.stats[column]);
      row.cells[k].classList.toggle("number", numeric(column));
    });
  },

  // What all runs of the group share, or statistics over them.
  groupCell(group, column) {
    if (column === "created" || column === "updated") return "";
    const shared = cellText(group.runs[0], column);
    return group.runs.every((run) => cellText(run, column) === shared) ? shared : statText(group.stats[column]);
  },

  fold(group) {
    this.open.has(group.id) ? this.open.delete(group.id) : this.open.add(group.id);
    this.flatten();
    this.draw();
  },

  chooseGroup(anchor) {
    pickFields(anchor, ["name", "tags", "state", ...fieldNames(this.fields, ["config"])], state.group, (picked) =>
      setState({ group: picked }),
    );
    popped.box.lastChild.prepend(
      button("No groups", () => {
        closePopover();
        setState({ group: [] });
      }),
    );
  },
});

function groupLabel(group) {
  return state.group
    .map((field, i) => `${fieldTitle(field).split(".").at(-1)} ${group.key[i] === null ? "none" : shown(group.key[i])}`)
    .join(", ");
}

// Exact statistics of the numbers among some values; NaN is left out.
function statistics(values) {
  const known = values.filter((value) => value !== null && !Number.isNaN(value)).sort((a, b) => a - b);
  const count = known.length;
  if (!count) return null;
  const mean = known.reduce((sum, value) => sum + value, 0) / count;
  const quantile = (q) => {
    const place = (count - 1) * q,
      low = Math.floor(place);
    return known[low] === known[Math.ceil(place)]
      ? known[low]
      : known[low] + (known[Math.ceil(place)] - known[low]) * (place - low);
  };
  return {
    n: count,
    mean,
    std: Math.sqrt(known.reduce((sum, value) => sum + (value - mean) ** 2, 0) / count),
    min: known[0],
    max: known[count - 1],
    quantiles: { 0.25: quantile(0.25), 0.5: quantile(0.5), 0.75: quantile(0.75) },
  };
}
