// Choosing among names: of series, settings, columns.
"use strict";

// Names of the series of some runs: what is a number in a summary.
function seriesNames(runs) {
  const found = new Set();
  for (const run of runs)
    for (const [key, value] of Object.entries(run.summary)) if (asNumber(value) !== null) found.add(key);
  const rank = (one) => (one.startsWith("system/") ? 2 : one.includes("/") ? 0 : 1);
  return [...found].sort((a, b) => rank(a) - rank(b) || (a < b ? -1 : 1));
}

// A test for names: a regular expression, or as plain text where it is none.
function matcher(words) {
  if (!words.trim()) return () => true;
  try {
    const pattern = new RegExp(words, "i");
    return (one) => pattern.test(one);
  } catch {
    return (one) => one.toLowerCase().includes(words.toLowerCase());
  }
}

// Choose some of many names, with a search.
function pickFields(anchor, names, chosen, done, single = false) {
  const picked = new Set(chosen);
  const list = el("div.choices");
  const fill = () =>
    list.replaceChildren(
      ...names
        .filter(matcher(search.value))
        .slice(0, 300)
        .map((one) =>
          el(
            "label.check",
            {},
            el("input", {
              type: single ? "radio" : "checkbox",
              name: "field",
              checked: picked.has(one),
              onchange: (event) => {
                if (single) picked.clear();
                event.target.checked ? picked.add(one) : picked.delete(one);
              },
            }),
            one,
          ),
        ),
    );
  const search = el("input", { type: "search", placeholder: "Search", oninput: fill, "aria-label": "Search names" });
  fill();
  popover(
    anchor,
    search,
    list,
    el(
      "div.buttons",
      button(
        "Done",
        () => {
          closePopover();
          if (picked.size) done([...picked]);
        },
        { className: "main" },
      ),
    ),
  );
}
