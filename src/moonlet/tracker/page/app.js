// The page put together: bar, table, tabs; following the board's news.
"use strict";

const TABS = [
  ["runs", "Runs"],
  ["charts", "Charts"],
  ["compare", "Compare"],
  ["sweep", "Sweep"],
  ["rollouts", "Rollouts"],
  ["run", "Run"],
];
const VIEWS = { charts: chartsTab, compare: compareTab, sweep: sweepTab, rollouts: rolloutsTab, run: runTab };
const NEWS_PACE = 1000; // milliseconds between redraws by news

const left = el("aside.runs", { "aria-label": "Runs" });
const main = el("main.view", { tabIndex: -1 });
const tabs = el(
  "nav.tabs",
  { role: "tablist" },
  TABS.map(([key, title]) => button(title, () => setState({ tab: key }, true), { role: "tab", "data-tab": key })),
);
const root = el("span.root"),
  pulse = el("span.pulse", { title: "" }, "");
const split = el("div.split", {
  role: "separator",
  "aria-orientation": "vertical",
  tabIndex: 0,
  "aria-label": "Width of the table",
});
let view = null;

function applyTheme() {
  const theme = stored("theme");
  if (theme) document.documentElement.dataset.theme = theme;
  else delete document.documentElement.dataset.theme;
  repaint();
}

function dark() {
  return document.documentElement.dataset.theme
    ? document.documentElement.dataset.theme === "dark"
    : matchMedia("(prefers-color-scheme: dark)").matches;
}

function switchTheme() {
  store("theme", dark() ? "light" : "dark");
  applyTheme();
}

function repaint() {
  keptColors = null;
  chartsTab.repaint();
  for (const chart of runTab.charts) chart.draw();
  if (state.tab === "sweep") sweepTab.draw();
  expanded?.draw();
}
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", repaint);

function lay() {
  const top = el(
    "header.top",
    el("b.brand", "moonlet board"),
    root,
    pulse,
    el("span.grow"),
    button("Views", (event) => viewsMenu(event.currentTarget), {
      className: "quiet views",
      title: "Saved views, links (v)",
    }),
    button("◐", switchTheme, { className: "quiet", title: "Dark or light (d)", "aria-label": "Dark or light" }),
    button("?", showKeys, { className: "quiet", title: "Keys (?)", "aria-label": "Keys" }),
  );
  document.body.append(top, el("div.panes", left, split, el("div.right", tabs, main)));
  const width = Number(stored("width"));
  if (width) document.body.style.setProperty("--left", `${width}px`);
  const resize = (x) => {
    const wide = Math.round(Math.min(Math.max(x, 260), innerWidth - 320));
    document.body.style.setProperty("--left", `${wide}px`);
    store("width", wide);
  };
  split.addEventListener("pointerdown", (event) => {
    event.preventDefault();
    split.setPointerCapture(event.pointerId);
  });
  split.addEventListener("pointermove", (event) => {
    if (split.hasPointerCapture(event.pointerId)) resize(event.clientX);
  });
  split.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -24, ArrowRight: 24 }[event.key];
    if (by) {
      event.preventDefault();
      event.stopPropagation();
      resize(left.offsetWidth + by);
    }
  });
  runsTable.show(left);
}

async function showTab() {
  document.body.dataset.tab = state.tab;
  for (const tab of tabs.children) tab.setAttribute("aria-selected", tab.dataset.tab === state.tab);
  const next = VIEWS[state.tab] ?? (view || VIEWS.charts); // "runs" is a tab on phones only
  if (next === view) return;
  view?.hide();
  view = next;
  main.dataset.view = Object.keys(VIEWS).find((key) => VIEWS[key] === next);
  main.replaceChildren();
  main.scrollTop = 0;
  await view.show(main);
}

listeners.push(async (changed) => {
  document.body.classList.toggle("wide", state.wide);
  const before = view;
  if (changed.has("tab")) await showTab();
  if (view === before) view?.update(changed);
  runsTable.update(changed);
});

// News of the board: {runs: changed ids, removed: ids}.
async function onChanges({ runs, removed }) {
  const ids = new Set([...runs, ...removed]);
  for (const id of ids) records.delete(id);
  await runsTable.load();
  if (view === chartsTab && drawnIds().some((id) => ids.has(id))) await chartsTab.update(new Set(["picked"]));
  if (view === chartsTab || expanded) chartsTab.refreshData(ids);
  if (view === runTab && ids.has(runTab.id)) await runTab.changed();
  if ((view === compareTab || view === rolloutsTab) && drawnIds().some((id) => ids.has(id)))
    await view.update(new Set([view === compareTab ? "picked" : "data"]));
  if (view === sweepTab && !sweepTab.brushed) await sweepTab.update(new Set(["data"]));
}

async function setScanning(now) {
  if (now === scanning) return;
  scanning = now;
  runsTable.draw();
  if (view === chartsTab) await chartsTab.update(new Set(["picked"]));
}

function showPulse(kind, words) {
  pulse.className = `pulse ${kind}`;
  pulse.textContent = words;
}

async function followNews(cursor) {
  for (let tries = 0; ;) {
    try {
      if (document.hidden) await new Promise((go) => document.addEventListener("visibilitychange", go, { once: true }));
      const news = await api.changes(cursor, 25);
      cursor = news.cursor;
      tries = 0;
      showPulse("live", news.scanning ? "reading runs…" : "live");
      await setScanning(news.scanning);
      if (news.runs.length || news.removed.length) await onChanges(news);
    } catch (error) {
      tries += 1;
      showPulse("lost", error.status === 401 ? "token needed" : "not connected");
      await new Promise((go) => setTimeout(go, Math.min(1000 * tries, 10_000)));
      const session = await api.session().catch(() => null);
      if (session) {
        cursor = 0;
        records.clear();
      }
    }
    await new Promise((go) => setTimeout(go, NEWS_PACE));
  }
}

async function start() {
  applyTheme();
  lay();
  document.body.classList.toggle("wide", state.wide);
  const table = runsTable.load();
  try {
    const session = await api.session();
    root.textContent = session.root;
    root.title = session.root;
    showPulse("live", api.offline ? "" : session.scanning ? "reading runs…" : "live");
    scanning = Boolean(session.scanning);
    const shown = showTab();
    await Promise.all([table, shown]);
    if (!api.offline) followNews(session.cursor);
  } catch (error) {
    showPulse("lost", error.message);
  }
}

start();
