// What changes runs: colour, tags, name, notes, archive, delete. Every change can be undone until the board ends.
"use strict";

const undone = []; // numbers of edits that z takes back, the last one last

let lastEdit = Promise.resolve(); // edits are sent one after another: the board keeps the order they were made in

async function edit(ids, set, told = null) {
  if (api.offline || !ids.length) return;
  const sent = lastEdit.then(() => api.edit(ids, set));
  lastEdit = sent.catch(() => null);
  try {
    const { undo } = await sent;
    undone.push(undo);
    if (told) toast(told, ["Undo", () => undoEdit(undo)]);
    await noticed(ids);
  } catch (error) {
    toast(error.message);
  }
}

async function undoEdit(number = undone.at(-1)) {
  if (number === undefined) return toast("Nothing to undo.");
  try {
    const { runs } = await api.undo(number);
    undone.splice(undone.indexOf(number), 1);
    toast(`Undone for ${plural(runs.length, "run")}.`);
    await noticed(runs);
  } catch (error) {
    toast(error.message);
  }
}

// Show what an edit changed at once.
function noticed(ids) {
  for (const id of ids) records.delete(id);
  return onChanges({ runs: ids, removed: [] });
}

function archive(ids, archived = true) {
  return edit(ids, { archived }, `${archived ? "Archived" : "Back from the archive:"} ${plural(ids.length, "run")}.`);
}

function remove(ids, deleted = true) {
  return edit(
    ids,
    { deleted },
    deleted
      ? `Deleted ${plural(ids.length, "run")}. The files stay until they are purged.`
      : `Restored ${plural(ids.length, "run")}.`,
  );
}

function purge(ids) {
  const sure = button(
    "Remove for good",
    async () => {
      box.close();
      try {
        await api.purge(ids);
        setState({ picked: null });
        toast(`Removed ${plural(ids.length, "run")} for good.`);
        await noticed(ids);
      } catch (error) {
        toast(error.message);
      }
    },
    { className: "danger" },
  );
  const box = modal(
    "Remove for good?",
    el("p", `The metrics of ${plural(ids.length, "run")} are deleted from the disk. This cannot be undone.`),
    el(
      "div.buttons",
      button("Cancel", () => box.close()),
      sure,
    ),
  );
}

function colorPicker(anchor, ids, current = null) {
  const take = (color) => {
    closePopover();
    edit(ids, { color });
  };
  const own = el("input", {
    type: "color",
    value: current ?? PALETTE[0],
    title: "Any colour",
    "aria-label": "Any colour",
  });
  own.addEventListener("change", () => take(own.value));
  popover(
    anchor,
    el(
      "div.swatches",
      PALETTE.map((color) =>
        button("", () => take(color), {
          className: "swatch",
          style: { background: color },
          "aria-label": `Colour ${color}`,
        }),
      ),
      own,
    ),
    button("Automatic", () => take(null)),
  );
}

function tagEditor(anchor, ids, tags) {
  const input = el("input", { type: "text", placeholder: "New tag", maxLength: 200, "aria-label": "New tag" });
  const add = () => {
    if (input.value.trim()) {
      closePopover();
      edit(ids, { add_tags: [input.value.trim()] }, `Tagged ${plural(ids.length, "run")}.`);
    }
  };
  input.addEventListener("keydown", (event) => {
    if (event.key === "Enter") add();
  });
  popover(
    anchor,
    el("div.line", input, button("Add", add, { className: "main" })),
    tags.length
      ? el(
          "div.tags",
          tags.map((tag) =>
            el(
              "span.tag",
              tag,
              button(
                "×",
                () => {
                  closePopover();
                  edit(ids, { remove_tags: [tag] });
                },
                { "aria-label": `Remove the tag ${tag}` },
              ),
            ),
          ),
        )
      : null,
  );
}

// Marks for many runs at once, above the table.
function bulkBar(ids) {
  const tags = () => [...new Set(ids.flatMap((id) => records.get(id)?.tags ?? []))].slice(0, 40);
  const archived = state.show === "archived",
    deleted = state.show === "deleted";
  return [
    el("b", `${ids.length.toLocaleString("en")} ticked`),
    button("Compare", () => setState({ tab: "compare" }, true)),
    ...(api.offline
      ? []
      : [
          button("Tag", (event) => tagEditor(event.target, ids, tags())),
          button("Colour", (event) => colorPicker(event.target, ids)),
          deleted
            ? button("Restore", () => remove(ids, false))
            : button(archived ? "Unarchive" : "Archive", () => archive(ids, !archived)),
          deleted
            ? button("Remove for good", () => purge(ids), { className: "danger" })
            : button("Delete", () => {
                remove(ids);
                setState({ picked: null });
              }),
          button("Bundle", () => makeBundle(ids), { title: "One HTML file with these runs, to send to somebody" }),
        ]),
    button("Clear", () => setState({ picked: null }), { className: "quiet" }),
  ];
}

async function makeBundle(ids) {
  toast(`Packing ${plural(ids.length, "run")}…`);
  try {
    download("moonlet-board.html", await api.bundle(ids));
  } catch (error) {
    toast(error.message);
  }
}

async function viewsMenu(anchor) {
  let views = [];
  try {
    ({ views } = await api.views());
  } catch (error) {
    toast(error.message);
  }
  const input = el("input", {
    type: "text",
    placeholder: "Name of this view",
    maxLength: 200,
    "aria-label": "Name of this view",
  });
  const save = async () => {
    if (!input.value.trim()) return;
    closePopover();
    try {
      await api.saveView(input.value.trim(), location.hash.slice(1));
      toast("View saved.");
    } catch (error) {
      toast(error.message);
    }
  };
  input.addEventListener("keydown", (event) => {
    if (event.key === "Enter") save();
  });
  const open = (view) => () => {
    closePopover();
    location.hash = typeof view.state === "string" ? view.state : "";
  };
  const drop = (view) => async () => {
    closePopover();
    await api.saveView(view.name, null).catch((error) => toast(error.message));
  };
  popover(
    anchor,
    api.offline ? null : el("div.line", input, button("Save", save, { className: "main" })),
    el(
      "div.menu",
      views.map((view) =>
        el(
          "div.line",
          button(view.name, open(view), { className: "wide" }),
          api.offline
            ? null
            : button("×", drop(view), { className: "quiet", "aria-label": `Remove the view ${view.name}` }),
        ),
      ),
      button("Copy a link to this view", () => {
        closePopover();
        copyText(location.href);
      }),
      button("Start again with nothing set", () => {
        closePopover();
        location.hash = "";
      }),
    ),
  );
}
