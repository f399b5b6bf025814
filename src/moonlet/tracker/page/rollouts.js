// Rollouts of the ticked runs: by prompt, two beside each other (two checkpoints, two runs, two tries), each with its
// thought, calls, results, rewards by part, and the log-probabilities of its tokens as colour.
"use strict";

const PROMPTS = 200; // listed at first

const rolloutsTab = {
  show(host) {
    this.host = host;
    this.logprobs = true;
    return this.update(new Set(["picked"]));
  },

  hide() {},

  async update(changed) {
    const has = (...keys) => keys.some((key) => changed.has(key));
    if (has("picked", "data")) {
      const ids = drawnIds();
      try {
        const [runs, found] = await Promise.all([
          recordsOf(ids),
          ids.length ? api.rollouts({ runs: ids, limit: 1000 }) : { prompts: [] },
        ]);
        this.names = new Map(runs.map((run) => [run.id, run.name || run.id]));
        this.prompts = found.prompts;
      } catch (error) {
        return toast(error.message);
      }
      this.lay();
    }
    if (has("picked", "data", "prompt", "left", "right")) await this.fill();
  },

  lay() {
    if (!this.prompts.length) {
      this.list = null;
      this.host.replaceChildren(
        el("p.notice", 'No ticked run has rollouts: run.log({"rl/rollout": Rollout(messages, rewards=…)}).'),
      );
      return;
    }
    this.words = "";
    const search = el("input", {
      type: "search",
      placeholder: "Search prompts",
      "aria-label": "Search prompts",
      oninput: () => {
        this.words = search.value;
        this.fillList();
      },
    });
    this.list = el("div.prompts", { role: "listbox", "aria-label": "Prompts" });
    const colour = el("input", {
      type: "checkbox",
      checked: this.logprobs,
      onchange: () => {
        this.logprobs = colour.checked;
        this.fill();
      },
    });
    this.panes = el("div.panes2");
    this.host.replaceChildren(
      el(
        "div.bar",
        search,
        el("label.check", {}, colour, "log-probs as colour"),
        (this.scale = el("span.scale", el("i"), "unlikely", el("i.sure"), "certain")),
      ),
      el("div.rollouts", this.list, this.panes),
    );
    this.fillList();
  },

  fillList() {
    const test = matcher(this.words);
    const found = this.prompts.filter((one) => test(one.text));
    const chosen = this.current()?.prompt;
    this.list.replaceChildren(
      ...found.slice(0, PROMPTS).map((one) =>
        el(
          "button.prompt",
          {
            type: "button",
            role: "option",
            "aria-selected": one.prompt === chosen,
            title: one.text,
            onclick: () => setState({ prompt: one.prompt, left: null, right: null }),
          },
          el("span", one.text || "no prompt"),
          el("small", String(one.rollouts.length)),
        ),
      ),
      found.length > PROMPTS ? el("p.soft", `and ${found.length - PROMPTS} more: search`) : "",
    );
  },

  current() {
    return this.prompts.find((one) => one.prompt === state.prompt) ?? this.prompts[0];
  },

  async fill() {
    if (!this.list) return;
    this.fillList();
    const prompt = this.current();
    const list = prompt.rollouts.slice().sort((a, b) => (a.step ?? 0) - (b.step ?? 0) || a.index - b.index);
    const key = (one) => `${one.run}:${one.index}`;
    const find = (mark) => list.find((one) => key(one) === mark);
    const right = find(state.right) ?? list.at(-1);
    const left =
      find(state.left) ??
      list.find((one) => one.run !== right.run || one.step !== right.step) ??
      (list.length > 1 ? list[0] : null);
    const turn = (this.turn = {});
    const entries = await Promise.all([left, right].map((one) => one && this.entry(one))).catch((error) => {
      toast(error.message);
      return null;
    });
    if (turn !== this.turn || !entries) return;
    const rewards = [...new Set(entries.flatMap((one) => Object.keys(one?.data?.rewards ?? {})))];
    this.panes.replaceChildren(
      ...[left, right]
        .map((one, i) =>
          one ? this.pane(one, entries[i], entries[1 - i], rewards, list, ["left", "right"][i], key) : null,
        )
        .filter(Boolean),
    );
    this.panes.classList.toggle("single", !left);
    this.scale.hidden =
      !this.logprobs || !entries.some((one) => one?.data?.messages?.some((message) => message?.logprobs));
  },

  async entry({ run, index }) {
    const { entries } = await api.media(run, { kind: "rollout", after: index - 1, limit: 1 });
    return entries[0]?.index === index ? entries[0] : null;
  },

  pane(one, entry, other, rewards, list, side, key) {
    const label = (each) =>
      `${this.names.get(each.run)} · step ${each.step ?? "?"}` +
      (each.reward == null ? "" : ` · reward ${shown(each.reward)}`);
    const data = entry?.data ?? {};
    const theirs = other?.data?.rewards ?? {};
    const select = choice(
      list.map((each) => [key(each), label(each)]),
      key(one),
      (value) => setState({ [side]: value }),
      { "aria-label": `Rollout on the ${side}` },
    );
    return el(
      "article.rollout",
      el("header", select),
      data.checkpoint ? el("p.soft", `checkpoint ${shown(data.checkpoint)}`) : null,
      rewardTable(data, rewards, theirs),
      el(
        "div.chat",
        (Array.isArray(data.messages) ? data.messages : []).map((message) => messageNode(message ?? {}, this.logprobs)),
      ),
    );
  },
};

// Rewards by part with a bar, the total last.
function rewardTable(data, parts, theirs) {
  const own = data.rewards ?? {};
  const reals = [...parts.map((part) => asNumber(own[part])), ...parts.map((part) => asNumber(theirs[part]))].filter(
    Number.isFinite,
  );
  const most = Math.max(1e-12, ...reals.map(Math.abs));
  const row = (title, value, strong) => {
    const real = asNumber(value);
    const bar = el("i.amount", { style: { width: `${Number.isFinite(real) ? (Math.abs(real) / most) * 100 : 0}%` } });
    if (real < 0) bar.classList.add("minus");
    return el(
      strong ? "tr.total" : "tr",
      el("th", title),
      el("td.number", shown(value ?? null) || "–"),
      el("td.track", strong ? null : bar),
    );
  };
  return el(
    "table.rewards",
    el(
      "tbody",
      parts.map((part) => row(part, own[part], false)),
      row("reward", data.reward, true),
    ),
  );
}

// One message: who, thought, text, calls. A tool's message is a result.
function messageNode(message, logprobs) {
  const role = typeof message.role === "string" ? message.role : "?";
  const known = ["system", "user", "assistant", "tool"].includes(role) ? role : "other";
  const parts = [el("div.who", role === "tool" ? `result${message.name ? ` of ${shown(message.name)}` : ""}` : role)];
  if (message.reasoning_content)
    parts.push(
      el("details.thought", { open: true }, el("summary", "thought"), el("div", shown(message.reasoning_content))),
    );
  const tokens = Array.isArray(message.tokens) && Array.isArray(message.logprobs) && logprobs;
  if (message.content !== null && message.content !== undefined && message.content !== "" && !tokens)
    parts.push(el("div.content", textOf(message.content)));
  for (const call of Array.isArray(message.tool_calls) ? message.tool_calls : []) {
    const made = call?.function ?? call ?? {};
    parts.push(el("div.call", el("b", shown(made.name) || "call"), el("pre", pretty(made.arguments))));
  }
  if (tokens)
    parts.push(
      el(
        "div.content.tokens",
        message.tokens.map((token, i) => tokenNode(shown(token), asNumber(message.logprobs[i]))),
      ),
    );
  if (message.malformed) parts.push(el("div.bad", `does not parse: ${shown(message.malformed)}`));
  return el(`div.message.${known}`, parts);
}

function tokenNode(token, logprob) {
  const node = el(
    "span",
    { title: logprob === null ? "no log-probability" : `log p ${number(logprob)}, p ${number(Math.exp(logprob), 3)}` },
    token,
  );
  if (logprob !== null)
    node.style.setProperty("--doubt", `${Number.isFinite(logprob) ? Math.round(Math.min(1, -logprob / 5) * 70) : 70}%`);
  return node;
}

function textOf(content) {
  return Array.isArray(content) ? content.map((part) => shown(part?.text ?? part)).join("\n") : shown(content);
}

// JSON arguments over several lines; what is no JSON as it is.
function pretty(given) {
  if (typeof given !== "string") return JSON.stringify(given ?? {}, null, 2);
  try {
    return JSON.stringify(JSON.parse(given), null, 2);
  } catch {
    return given;
  }
}
