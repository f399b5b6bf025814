// The board's HTTP API (docs/tracker.md), or the same functions over the data inside a bundle.
"use strict";

class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

function serverApi() {
  let session = null;
  const clean = (text) => encodeURIComponent(String(text).toWellFormed());

  async function ask(path, { body, binary = false, signal, blob = false } = {}) {
    const headers = {};
    if (body !== undefined) headers["content-type"] = "application/json";
    if (session) headers["x-moonlet-token"] = session.token;
    let reply;
    try {
      const method = body === undefined ? "GET" : "POST";
      reply = await fetch(path, {
        method,
        headers,
        signal,
        body: body === undefined ? undefined : JSON.stringify(body),
      });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Refused(0, "The board does not answer.");
    }
    if (!reply.ok) {
      const told = await reply.json().catch(() => null);
      throw new Refused(reply.status, told?.error?.message ?? `The board answered ${reply.status}.`);
    }
    if (blob) return reply.blob();
    return binary ? decodeCurves(await reply.arrayBuffer()) : reply.json();
  }

  const query = (given) =>
    Object.entries(given)
      .filter(([, value]) => value !== "" && value !== null && value !== undefined)
      .flatMap(([key, value]) => (Array.isArray(value) ? value : [value]).map((one) => `${key}=${clean(one)}`))
      .join("&");

  return {
    offline: false,
    async session() {
      return (session = await ask("api/session"));
    },
    changes: (since, wait, signal) => ask(`api/changes?since=${since}&wait=${wait}`, { signal }),
    runs: (given, signal) => ask(`api/runs?${query(given)}`, { signal }),
    fields: () => ask("api/fields"),
    run: (id) => ask(`api/runs/${id}`),
    async points(id, name) {
      const all = { step: [], time: [], value: [] };
      for (let offset = 0; offset !== null; ) {
        const part = await ask(`api/runs/${id}/points?${query({ name, offset })}`);
        for (const key of Object.keys(all)) all[key] = all[key].concat(part[key]);
        offset = part.next;
      }
      return all;
    },
    media: (id, given) => ask(`api/runs/${id}/media?${query(given)}`),
    blobUrl: (id, number) => `api/runs/${id}/blob/${Number(number)}`,
    histograms: (id, name) => ask(`api/runs/${id}/histograms?${query({ name })}`),
    m4: (body, signal) => ask("api/m4", { body, binary: true, signal }),
    aggregate: (body, signal) => ask("api/aggregate", { body, binary: true, signal }),
    rollouts: (body) => ask("api/rollouts", { body }),
    diff: (runs) => ask("api/diff", { body: { runs } }),
    edit: (runs, set) => ask("api/edit", { body: { runs, set } }),
    undo: (undo) => ask("api/undo", { body: { undo } }),
    purge: (runs) => ask("api/purge", { body: { runs } }),
    views: () => ask("api/views"),
    saveView: (name, state) => ask("api/views", { body: { name, state } }),
    bundle: (runs) => ask("api/bundle", { body: { runs }, blob: true }),
  };
}

const bundled = document.getElementById("bundle");
const api = bundled ? offlineApi(JSON.parse(bundled.textContent)) : serverApi();

// Full records of runs by id, kept until the board says that they changed.
const records = new Map();
const ID_CHUNK = 40; // ids that one filter expression holds

async function recordsOf(ids) {
  const missing = ids.filter((id) => !records.has(id));
  const chunks = [];
  for (let i = 0; i < missing.length; i += ID_CHUNK) chunks.push(missing.slice(i, i + ID_CHUNK));
  await Promise.all(
    chunks.map(async (chunk) => {
      const filter = `id in [${chunk.map((id) => `"${id}"`).join(", ")}]`;
      const found = await api.runs({ filter, deleted: 1, limit: ID_CHUNK, ids: chunk });
      for (const run of found.runs) records.set(run.id, run);
    }),
  );
  return ids.map((id) => records.get(id)).filter(Boolean);
}
