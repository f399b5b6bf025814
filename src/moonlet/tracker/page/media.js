// What a run logged beside numbers: text, images, histograms over time, tables, its console, alerts.
"use strict";

const BATCH = 60; // entries fetched at once
const ANSI = /\u001b\[[0-9;?]*[ -/]*[@-~]/g; // colour codes of terminals

// One block for each name of a kind.
function mediaBlocks(run, kind, block) {
  const names = run.media.filter((one) => one.kind === kind);
  if (!names.length)
    return [
      el("p.notice", `This run logged no ${kind === "image" ? "images" : kind === "text" ? "text" : `${kind}s`}.`),
    ];
  return names.map((one) => {
    const body = el("div");
    const node = el(
      "section.block",
      el(
        "h3",
        one.name || "unnamed",
        el(
          "small",
          ` ${one.count.toLocaleString("en")}`,
          one.last_step === null ? "" : `, to step ${one.last_step.toLocaleString("en")}`,
        ),
      ),
      body,
    );
    block(run, one, body).catch((error) => body.append(el("p.error", error.message)));
    return node;
  });
}

// Entries as they come, with a button for the next ones.
async function paged(run, { kind, name: one }, body, make) {
  let after = -1;
  const more = button("Show more", () => next(), { hidden: true });
  const list = el(`div.entries.${kind}`);
  body.append(list, more);
  const next = async () => {
    const found = await api.media(run.id, { kind, name: one, after, limit: BATCH });
    list.append(...found.entries.map(make));
    after = found.next;
    more.hidden = after === null;
  };
  await next();
}

function stepOf(entry) {
  return `step ${entry.step === null || entry.step === undefined ? "?" : entry.step.toLocaleString("en")}`;
}

function textBlock(run, media, body) {
  return paged(run, media, body, (entry) =>
    el("article.text", el("small", `${stepOf(entry)} · ${when(entry.time)}`), el("pre", shown(entry.data?.text))),
  );
}

function imageBlock(run, media, body) {
  return paged(run, media, body, (entry) => {
    const caption = [stepOf(entry), entry.data?.caption].filter(Boolean).map(shown).join(" · ");
    if (entry.blob === null) return el("p.soft", `${caption}: no picture`);
    const src = api.blobUrl(run.id, entry.blob);
    const image = el("img", { src, alt: caption, loading: "lazy" });
    image.addEventListener("error", () => image.replaceWith(el("span.soft", "not a picture that can be shown")));
    const large = () => modal(media.name || "image", el("img.large", { src, alt: caption }), el("p.soft", caption));
    return el(
      "figure.image",
      el("button", { type: "button", onclick: large, "aria-label": `Enlarge ${caption}` }, image),
      el("figcaption", caption),
    );
  });
}

function tableBlock(run, media, body) {
  return paged(run, media, body, (entry) => {
    const columns = (entry.data?.columns ?? []).map((one) => shown(one)),
      rows = entry.data?.rows ?? [];
    let sorted = rows,
      by = null,
      count = 200;
    const tbody = el("tbody");
    const more = button(
      "Show all rows",
      () => {
        count = Infinity;
        fill();
      },
      { hidden: rows.length <= count },
    );
    const fill = () => {
      tbody.replaceChildren(
        ...sorted.slice(0, count).map((row) =>
          el(
            "tr",
            (Array.isArray(row) ? row : []).map((value) =>
              el(asNumber(value) === null ? "td" : "td.number", { title: shown(value, 12) }, shown(value, 6)),
            ),
          ),
        ),
      );
      more.hidden = rows.length <= count;
    };
    const order = (i) => () => {
      const down = by === i;
      by = down ? null : i;
      sorted = rows.slice().sort((a, b) => inOrder(a[i], b[i]) * (down ? -1 : 1));
      fill();
    };
    fill();
    return el(
      "article",
      el("small", `${stepOf(entry)} · ${plural(rows.length, "row")}`),
      el(
        "div.across",
        el(
          "table.data",
          el(
            "thead",
            el(
              "tr",
              columns.map((one, i) => el("th", button(one, order(i), { className: "link", title: "Sort" }))),
            ),
          ),
          tbody,
        ),
      ),
      more,
    );
  });
}

// Histograms over time as one picture: x is the step, y the value, dark where many values lie.
async function histogramBlock(run, media, body) {
  const data = await api.histograms(run.id, media.name);
  const canvas = el("canvas"),
    over = el("canvas.over"),
    readout = el("div.readout", { hidden: true });
  const stage = el("div.stage.heat", canvas, over, readout);
  body.append(stage);
  const all = data.edges.flat().map(asNumber).filter(Number.isFinite);
  const [lo, hi] = roomy(
    all.reduce((a, b) => Math.min(a, b), Infinity),
    all.reduce((a, b) => Math.max(a, b), -Infinity),
    false,
  );
  const steps = data.step.map((step, i) => step ?? i);
  let sx = null,
    sy = null,
    frame = null;
  const draw = () => {
    const width = stage.clientWidth,
      height = stage.clientHeight;
    if (!width) return;
    const ctx = fitted(canvas, width, height),
      colors = themeColors();
    frame = frameOf(ctx, width, height, { lo, hi, log: false });
    const ends = steps.length > 1 ? [steps[0], steps.at(-1)] : [steps[0] - 1, steps[0] + 1];
    const half = (ends[1] - ends[0]) / Math.max(steps.length - 1, 1) / 2;
    sx = makeScale(ends[0] - half, ends[1] + half, frame.left, frame.right);
    sy = makeScale(lo, hi, frame.bottom, frame.top);
    drawAxes(ctx, frame, sx, sy, "step", colors);
    const cells = densities(data, steps, half, sx, sy, frame);
    const most = cells.grid.reduce((a, b) => Math.max(a, b), 0) || 1;
    ctx.fillStyle = colors.accent;
    for (let x = 0; x < cells.width; x += 1) {
      for (let y = 0; y < cells.height; y += 1) {
        const share = cells.grid[x * cells.height + y] / most;
        if (!share) continue;
        ctx.globalAlpha = 0.06 + 0.94 * Math.sqrt(share);
        ctx.fillRect(frame.left + x * 2, frame.top + y * 2, 2, 2);
      }
    }
    ctx.globalAlpha = 1;
  };
  stage.addEventListener("pointermove", (event) => {
    if (!sx) return;
    const box = stage.getBoundingClientRect(),
      x = event.clientX - box.left,
      y = event.clientY - box.top;
    const want = sx.back(x);
    const i = steps.reduce((best, step, k) => (Math.abs(step - want) < Math.abs(steps[best] - want) ? k : best), 0);
    const edges = data.edges[i].map(asNumber),
      value = sy.back(y);
    const bin = edges.findIndex((edge, k) => k + 1 < edges.length && value >= edge && value < edges[k + 1]);
    const ctx = fitted(over, stage.clientWidth, stage.clientHeight),
      colors = themeColors();
    const most = Math.max(...data.counts[i], 1);
    ctx.fillStyle = colors.ink;
    ctx.globalAlpha = 0.5;
    data.counts[i].forEach((count, k) => {
      // the one under the pointer, as bars from its step
      const top = sy.at(edges[k + 1]),
        wide = (count / most) * 90,
        left = sx.at(steps[i]);
      ctx.fillRect(left > frame.right - 90 ? left - wide : left, top, wide, Math.max(sy.at(edges[k]) - top - 0.5, 0.5));
    });
    readout.replaceChildren(
      el("div.at", `step ${steps[i].toLocaleString("en")}`),
      el(
        "div.row",
        bin < 0
          ? "outside its bins"
          : `${number(edges[bin])} … ${number(edges[bin + 1])}: ${number(data.counts[i][bin])}`,
      ),
    );
    readout.hidden = false;
    readout.style.left = x > box.width / 2 ? "" : `${x + 14}px`;
    readout.style.right = x > box.width / 2 ? `${box.width - x + 14}px` : "";
  });
  stage.addEventListener("pointerleave", () => {
    readout.hidden = true;
    fitted(over, stage.clientWidth, stage.clientHeight);
  });
  new ResizeObserver(draw).observe(stage);
}

// Counts a cell of 2 × 2 pixels, each bin spread evenly over the cells it covers, each step over its columns.
function densities(data, steps, half, sx, sy, frame) {
  const width = Math.ceil((frame.right - frame.left) / 2),
    height = Math.ceil((frame.bottom - frame.top) / 2);
  const grid = new Float64Array(width * height),
    many = new Float64Array(width);
  steps.forEach((step, i) => {
    const from = Math.max(0, Math.floor((sx.at(step - half) - frame.left) / 2)),
      to = Math.min(width, Math.max(from + 1, Math.floor((sx.at(step + half) - frame.left) / 2)));
    const column = new Float64Array(height);
    data.counts[i].forEach((count, k) => {
      const low = asNumber(data.edges[i][k]),
        high = asNumber(data.edges[i][k + 1]);
      if (!(count > 0) || !Number.isFinite(low) || !Number.isFinite(high)) return;
      const top = (sy.at(high) - frame.top) / 2,
        bottom = Math.max((sy.at(low) - frame.top) / 2, top + 1e-3);
      for (let y = Math.max(0, Math.floor(top)); y < Math.min(height, bottom); y += 1) {
        column[y] += (count * (Math.min(y + 1, bottom) - Math.max(y, top))) / (bottom - top);
      }
    });
    const sum = column.reduce((a, b) => a + b, 0) || 1;
    for (let x = from; x < to; x += 1) {
      many[x] += 1;
      for (let y = 0; y < height; y += 1) grid[x * height + y] += column[y] / sum;
    }
  });
  for (let x = 0; x < width; x += 1) for (let y = 0; y < height; y += 1) if (many[x]) grid[x * height + y] /= many[x];
  return { grid, width, height };
}

// What the run printed, lines as a terminal would leave them, followed while it grows.
const consoleLog = {
  async show(run, body) {
    this.run = run;
    this.after = -1;
    this.tail = "";
    this.view = el("div.console", { tabIndex: 0, "aria-label": "Console" });
    const search = el("input", {
      type: "search",
      placeholder: "Search lines",
      "aria-label": "Search lines",
      oninput: delayed(() => this.search(search.value), 150),
    });
    body.replaceChildren(el("div.bar", search, (this.count = el("span.soft"))), this.view);
    this.lines = [];
    await this.more();
    this.view.scrollTop = this.view.scrollHeight;
    if (!this.lines.length)
      this.view.append(el("p.notice", "Nothing was kept: run.watch(console=True) keeps what Python prints."));
  },

  async more() {
    const { run, view } = this;
    for (let next = this.after; next !== null;) {
      const found = await api.media(run.id, { kind: "console", after: next, limit: 5000 });
      if (!found.entries.length || view !== this.view) return;
      this.after = found.entries.at(-1).index;
      this.add(found.entries);
      next = found.next;
    }
  },

  add(entries) {
    const atEnd = this.view.scrollTop + this.view.clientHeight > this.view.scrollHeight - 40;
    if (!this.lines.length) this.view.replaceChildren();
    for (const { data } of entries) {
      const words = String(data?.text ?? "").replace(ANSI, "");
      const lines = words
        .replace(/\r\n/g, "\n")
        .replace(/\n$/, "")
        .split("\n")
        .map((line) => line.slice(line.lastIndexOf("\r", line.length - 2) + 1).replace(/\r$/, ""));
      const last = this.lines.at(-1),
        loud = data?.stream === "stderr";
      if (last?.loud === loud && last.lines.length < 200) {
        last.lines.push(...lines);
        last.node.textContent = last.lines.join("\n");
        continue;
      }
      this.lines.push({ lines, loud, node: el(loud ? "pre.stderr" : "pre", lines.join("\n")) });
      this.view.append(this.lines.at(-1).node);
    }
    this.count.textContent = plural(
      this.lines.reduce((sum, one) => sum + one.lines.length, 0),
      "line",
    );
    if (atEnd) this.view.scrollTop = this.view.scrollHeight;
  },

  search(words) {
    const test = matcher(words);
    let hits = 0;
    for (const { lines, node } of this.lines) {
      const kept = words ? lines.filter(test) : lines;
      hits += kept.length;
      node.hidden = !kept.length;
      node.textContent = kept.join("\n");
    }
    this.count.textContent = plural(hits, "line");
  },
};

function alertList(run) {
  const alerts = run.alerts.slice().sort((a, b) => b.time - a.time);
  if (!alerts.length)
    return el("p.notice", "No alert: run.alert(title, text) makes one, and the board's rules do (docs/tracker.md).");
  return el(
    "ul.alerts",
    alerts.map(({ time, data, step }) =>
      el(
        `li.${["info", "warning", "error"].includes(data?.level) ? data.level : "warning"}`,
        el("b", shown(data?.title)),
        el("span", shown(data?.text)),
        el("small", `${when(time)}${step === null || step === undefined ? "" : ` · step ${step}`}`),
      ),
    ),
  );
}
