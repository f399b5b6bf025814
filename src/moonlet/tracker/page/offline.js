// The board's API over the data inside a bundle: one HTML file, no server, nothing to change. Curves are cut into the
// same pixel columns as the server's, from the raw points. Leaves out filter expressions.
"use strict";

function offlineApi(data) {
  const runs = new Map(data.runs.map((run) => [run.id, run]));
  const stored = new Map(data.points.map((one) => [`${one.run}\n${one.name}`, one]));
  const decoded = new Map();

  function points(run, name) {
    const key = `${run}\n${name}`;
    if (!decoded.has(key) && stored.has(key)) {
      const one = stored.get(key);
      decoded.set(key, { step: doubles(one.step), time: doubles(one.time), value: doubles(one.value) });
    }
    return decoded.get(key) ?? { step: new Float64Array(0), time: new Float64Array(0), value: new Float64Array(0) };
  }

  // x ascending, y, and how many points have no place on this axis.
  function curve(run, name, axis) {
    const { step, time, value } = points(run, name);
    if (axis === "step") return { x: step, y: value, left: 0 };
    if (axis === "time" || axis === "relative") {
      const shift = axis === "relative" ? runs.get(run).created : 0;
      const order = [...time.keys()].sort((a, b) => time[a] - time[b] || a - b);
      return {
        x: Float64Array.from(order, (i) => time[i] - shift),
        y: Float64Array.from(order, (i) => value[i]),
        left: 0,
      };
    }
    const other = points(run, axis),
      pairs = [];
    for (let i = 0, k = -1; i < step.length; i += 1) {
      while (k + 1 < other.step.length && other.step[k + 1] <= step[i]) k += 1; // the last known value is carried on
      if (k >= 0 && !Number.isNaN(other.value[k])) pairs.push([other.value[k], value[i]]);
    }
    pairs.sort((a, b) => a[0] - b[0]);
    return {
      x: Float64Array.from(pairs, (pair) => pair[0]),
      y: Float64Array.from(pairs, (pair) => pair[1]),
      left: step.length - pairs.length,
    };
  }

  function windows(curves, labels, { x0 = null, x1 = null, pixels, scale, smooth = 0 }) {
    const log = scale === "log";
    const filled = curves.filter(({ x }) => x.length && (!log || x.at(-1) > 0));
    x1 ??= filled.length ? Math.max(...filled.map(({ x }) => x.at(-1))) : 1;
    x0 ??= filled.length
      ? Math.min(...filled.map(({ x }) => (log ? x[lowerBound(x, Number.MIN_VALUE)] : x[0])))
      : log
        ? x1 / 10
        : 0;
    return {
      x0,
      x1,
      pixels,
      scale,
      series: curves.map((one, i) => ({
        ...labels[i],
        gaps: [],
        ...cut(one, x0, x1, pixels, log, smooth),
        left_out: one.left + (log ? lowerBound(one.x, Number.MIN_VALUE) : 0),
      })),
    };
  }

  const reply = async (value) => value;
  const searched = (run) => [run.id, run.name, run.folder, run.notes ?? "", ...run.tags].join(" ").toLowerCase();
  const entries = (id, { kind, name, after = -1 }) =>
    (data.media[id] ?? []).filter(
      (one) =>
        one.index > after &&
        (!kind || one.kind === kind) &&
        (name === undefined || name === null || (one.name ?? "") === name),
    );

  return {
    offline: true,
    session: () => reply({ root: "a bundle of runs", cursor: 0 }),
    fields() {
      const count = (kind, keys) => {
        const found = new Map();
        for (const run of runs.values()) for (const key of keys(run)) found.set(key, (found.get(key) ?? 0) + 1);
        return [...found].sort().map(([name, many]) => ({ name, runs: many }));
      };
      return reply({
        config: count("config", (run) => Object.keys(run.config)),
        summary: count("summary", (run) => Object.keys(run.summary)),
        series: [],
        tags: [],
      });
    },
    runs({ search = "", sort = "-created", offset = 0, limit = 200, column = [], ids = null }) {
      const words = search.toLowerCase().split(/\s+/).filter(Boolean),
        field = sort.replace(/^-/, "");
      const found = [...runs.values()].filter(
        (run) => (!ids || ids.includes(run.id)) && words.every((word) => searched(run).includes(word)),
      );
      const absent = (run) => orderKey(fieldOf(run, field))[0] === 2;
      found.sort(
        (a, b) =>
          absent(a) - absent(b) || inOrder(fieldOf(a, field), fieldOf(b, field)) * (sort.startsWith("-") ? -1 : 1),
      );
      const facts = { total: runs.size, matched: found.length, cursor: 0 },
        part = found.slice(offset, offset + limit);
      return reply(
        column.length
          ? { ...facts, columns: column, rows: part.map((run) => column.map((one) => fieldOf(run, one) ?? null)) }
          : { ...facts, runs: part },
      );
    },
    run: (id) => reply(runs.get(id)),
    points(id, name) {
      const found = points(id, name);
      return reply({ step: [...found.step], time: [...found.time], value: [...found.value] });
    },
    media(id, given) {
      const found = entries(id, given),
        limit = given.limit ?? 100;
      return reply({ entries: found.slice(0, limit), next: found.length > limit ? found[limit - 1].index : null });
    },
    blobUrl: (id, number) =>
      /^data:image\/(png|jpeg|gif|webp);base64,/.test(data.blobs[id]?.[number] ?? "")
        ? data.blobs[id][number]
        : "data:,",
    histograms(id, name) {
      const found = entries(id, { kind: "histogram", name }).sort((a, b) => (a.step ?? 0) - (b.step ?? 0));
      return reply({
        step: found.map((one) => one.step),
        time: found.map((one) => one.time),
        edges: found.map((one) => one.data.edges ?? []),
        counts: found.map((one) => one.data.counts ?? []),
      });
    },
    m4: (body) =>
      reply(
        windows(
          body.series.map(({ run, name }) => curve(run, name, body.x)),
          body.series,
          body,
        ),
      ),
    aggregate(body) {
      const curves = [],
        labels = [];
      for (const group of body.groups) {
        for (const [stat, one] of aggregated(group.runs.map((run) => curve(run, body.name, body.x)))) {
          curves.push(one);
          labels.push({ label: group.label, stat, name: body.name });
        }
      }
      return reply(windows(curves, labels, { ...body, smooth: 0 }));
    },
    rollouts({ runs: wanted }) {
      const found = new Map();
      for (const run of wanted)
        for (const one of entries(run, { kind: "rollout" }).reverse()) {
          const key = String(one.data.prompt ?? "");
          if (!found.has(key)) found.set(key, { prompt: key, text: key, rollouts: [] });
          found.get(key).rollouts.push({
            run,
            step: one.step,
            name: one.name,
            index: one.index,
            reward: one.data.reward,
            attempt: one.attempt,
          });
        }
      return reply({ prompts: [...found.values()] });
    },
    diff(ids) {
      const configs = ids.map((id) => runs.get(id)?.config ?? {});
      const keys = [...new Set(configs.flatMap((config) => Object.keys(config)))].sort();
      return reply({
        runs: ids,
        keys: keys.map((key) => {
          const values = configs.map((config) => config[key] ?? null);
          return { key, values, same: new Set(values.map((value) => JSON.stringify(value))).size <= 1 };
        }),
      });
    },
    views: () => reply({ views: [] }),
  };
}

function doubles(base64) {
  const bytes = Uint8Array.from(atob(base64), (one) => one.charCodeAt(0));
  return new Float64Array(bytes.buffer);
}

// What /api/m4 gives of one curve: raw points, one beyond each end, or the columns that have points.
function cut({ x, y }, x0, x1, pixels, log, smooth) {
  const first = lowerBound(x, x0);
  let stop = lowerBound(x, x1);
  while (stop < x.length && x[stop] === x1) stop += 1;
  const points = Math.max(0, stop - first);
  const average = smooth > 0 ? moving(y, smooth) : null;
  if (points <= 2 * pixels) {
    const from = Math.max(first - 1, log ? lowerBound(x, Number.MIN_VALUE) : 0),
      to = Math.min(stop + 1, x.length);
    return {
      mode: "raw",
      points,
      x: x.slice(from, to),
      y: y.slice(from, to),
      ...(average && { smooth: average.slice(from, to) }),
    };
  }
  const place = log ? (value) => Math.log(value) : (value) => value;
  const a = place(x0),
    wide = (place(x1) - a) / pixels;
  const out = {
    column: [],
    count: [],
    first: [],
    min: [],
    max: [],
    last: [],
    x_first: [],
    x_last: [],
    flags: [],
    smooth: [],
  };
  for (let i = first, begin = first; i < stop; begin = i) {
    const column = Math.min(Math.floor((place(x[i]) - a) / wide), pixels - 1);
    let low = Infinity,
      high = -Infinity,
      flags = 0;
    for (; i < stop && Math.min(Math.floor((place(x[i]) - a) / wide), pixels - 1) === column; i += 1) {
      const value = y[i];
      if (!Number.isFinite(value)) flags |= Number.isNaN(value) ? 1 : value > 0 ? 2 : 4;
      else {
        if (value < low) low = value;
        if (value > high) high = value;
      }
    }
    const row = {
      column,
      count: i - begin,
      first: y[begin],
      min: low > high ? NaN : low,
      max: low > high ? NaN : high,
      last: y[i - 1],
      x_first: x[begin],
      x_last: x[i - 1],
      flags,
      smooth: average?.[i - 1],
    };
    for (const [key, value] of Object.entries(row)) out[key].push(value);
  }
  if (!average) delete out.smooth;
  return { mode: "m4", points, ...out };
}

// Exponential moving average of the finite values, corrected for its start.
function moving(y, weight) {
  let sum = 0,
    share = 1,
    last = NaN;
  return Float64Array.from(y, (value) => {
    if (Number.isFinite(value)) {
      sum = weight * sum + (1 - weight) * value;
      share *= weight;
      last = sum / (1 - share);
    }
    return last;
  });
}

// mean, std, min, max and quartiles at every x where any curve has a point.
function aggregated(curves) {
  const values = new Map();
  for (const { x, y } of curves) {
    const own = new Map();
    x.forEach((place, i) => own.set(place, y[i])); // a curve's last value at an x counts
    for (const [place, value] of own) values.has(place) ? values.get(place).push(value) : values.set(place, [value]);
  }
  const places = Float64Array.from(values.keys()).sort();
  const stats = Array.from(places, (place) => statistics(values.get(place)));
  const of = (pick) => ({ x: places, y: Float64Array.from(stats, (one) => (one ? pick(one) : NaN)), left: 0 });
  return [
    ["mean", of((one) => one.mean)],
    ["std", of((one) => one.std)],
    ["min", of((one) => one.min)],
    ["max", of((one) => one.max)],
    ...["0.25", "0.5", "0.75"].map((q) => [`q${q}`, of((one) => one.quantiles[q])]),
  ];
}
