// Config and summary of any number of runs beside each other: one row a key, one column a run.
"use strict";

const SIDE = 40; // runs shown at first

const compareTab = {
  shown: SIDE,

  show(host) {
    this.host = host;
    return this.update(new Set(["picked"]));
  },

  async update(changed) {
    if (changed.has("tab") && changed.size === 1) return;
    const ids = state.picked ?? drawnIds();
    const shown = ids.slice(0, this.shown);
    const [runs, diff] = await Promise.all([recordsOf(shown), api.diff(shown)]).catch((error) => {
      toast(error.message);
      return [];
    });
    if (!runs || !this.host.isConnected) return;
    const search = el("input", {
      type: "search",
      placeholder: "Search keys",
      "aria-label": "Search keys",
      value: this.words ?? "",
      oninput: () => {
        this.words = search.value;
        fill();
      },
    });
    const only = el("input", {
      type: "checkbox",
      checked: state.differing,
      onchange: () => setState({ differing: only.checked }),
    });
    const place = new Map(diff.runs.map((id, i) => [id, i]));
    const config = diff.keys.map(({ key, values, same }) => ({
      key,
      same,
      values: runs.map((run) => values[place.get(run.id)]),
    }));
    const names = [...new Set(runs.flatMap((run) => Object.keys(run.summary)))].sort();
    const summary = names.map((key) => {
      const values = runs.map((run) => run.summary[key]);
      return { key, values, same: new Set(values.map((value) => JSON.stringify(value))).size <= 1 };
    });
    const colors = colorsOf(runs);
    const body = el("tbody");
    const fill = () => {
      const test = matcher(this.words ?? "");
      const rows = (title, list) => {
        const kept = list.filter((one) => (!state.differing || !one.same) && test(one.key));
        return [
          el("tr.part", el("th", { colSpan: runs.length + 1 }, `${title} (${kept.length} of ${list.length})`)),
          ...kept.map(rowOf),
        ];
      };
      body.replaceChildren(...rows("Config", config), ...rows("Summary", summary));
    };
    fill();
    const head = el(
      "tr",
      el("th", ""),
      runs.map((run) =>
        el(
          "th",
          {},
          el("i.mark", { style: { background: colors.get(run.id) } }),
          button(run.name || run.id, () => openRun(run.id), { className: "link", title: run.name }),
        ),
      ),
    );
    this.host.replaceChildren(
      el(
        "div.bar",
        search,
        el("label.check", {}, only, "only what differs"),
        el("span.soft", plural(ids.length, "run")),
      ),
      runs.length < 2 ? el("p.notice", "Tick two or more runs in the table to compare them.") : (null ?? ""),
      el("div.across", el("table.diff", el("thead", head), body)),
      ids.length > this.shown
        ? button(`Show ${ids.length - this.shown} more runs`, () => {
            this.shown += 200;
            this.update(new Set(["picked"]));
          })
        : "",
    );
  },

  hide() {},
};

// Numbers get a bar of where they lie between the row's ends; what differs from the first run is marked.
function rowOf({ key, values, same }) {
  const reals = values.map(asNumber),
    known = reals.filter((value) => value !== null && Number.isFinite(value));
  const low = Math.min(...known),
    high = Math.max(...known);
  return el(
    "tr",
    el("th", { title: key }, key),
    values.map((value, i) => {
      const cell = el(
        "td",
        { title: shown(value, 10) },
        value === null || value === undefined ? el("span.soft", "–") : shown(value, 5),
      );
      if (reals[i] !== null) cell.classList.add("number");
      if (!same && JSON.stringify(value) !== JSON.stringify(values[0])) cell.classList.add("other");
      if (!same && high > low && reals[i] !== null && Number.isFinite(reals[i])) {
        cell.style.setProperty("--share", `${((reals[i] - low) / (high - low)) * 100}%`);
        cell.classList.add("bar");
      }
      return cell;
    }),
  );
}
