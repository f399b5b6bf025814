// Making elements. Every text from a run reaches the page here, as text: no function takes HTML.
// The files are classic scripts in the order of index.html; each sees the names of those before it. So that a bundle
// of runs works from a single file, there are no modules.
"use strict";

// el("button.small", {title: "…", onclick}, "text", child, …); null children are left out.
function el(spec, props, ...children) {
  const [tag, ...classes] = spec.split(".");
  const node = document.createElement(tag);
  if (classes.length) node.className = classes.join(" ");
  if (
    props !== undefined &&
    (props === null || props instanceof Node || typeof props !== "object" || Array.isArray(props))
  ) {
    children.unshift(props);
    props = {};
  }
  for (const [key, value] of Object.entries(props ?? {})) {
    if (value === undefined || value === null) continue;
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (key === "style") for (const [name, set] of Object.entries(value)) node.style.setProperty(name, set);
    else if (key === "role" || key.startsWith("aria-") || key.startsWith("data-")) node.setAttribute(key, value);
    else node[key] = value;
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

function button(text, onclick, props = {}) {
  return el("button", { type: "button", onclick, ...props }, text);
}

// A <select>; options are texts or [value, text].
function choice(options, value, onchange, props = {}) {
  const items = options.map((one) => (Array.isArray(one) ? one : [one, one]));
  const node = el(
    "select",
    { onchange: () => onchange(node.value), ...props },
    items.map(([key, text]) => el("option", { value: key }, text)),
  );
  node.value = value;
  return node;
}

// A small window at an element; closes on Escape, on a press outside, and when another opens.
let popped = null;
function popover(anchor, ...children) {
  closePopover();
  const box = el("div.popover", { role: "dialog" }, children);
  document.body.append(box);
  const at = anchor.getBoundingClientRect();
  const left = Math.max(8, Math.min(at.left, innerWidth - box.offsetWidth - 8));
  const below = at.bottom + 4 + box.offsetHeight <= innerHeight || at.top < box.offsetHeight;
  box.style.left = `${left}px`;
  box.style.top = `${Math.max(8, below ? at.bottom + 4 : at.top - box.offsetHeight - 4)}px`;
  popped = { box, anchor };
  (box.querySelector("input:not([type=color]), textarea, button") ?? box).focus?.({ preventScroll: true });
  return box;
}

function closePopover() {
  if (popped === null) return false;
  const { box, anchor } = popped;
  popped = null;
  if (box.contains(document.activeElement)) anchor.focus?.({ preventScroll: true });
  box.remove();
  return true;
}

addEventListener(
  "pointerdown",
  (event) => {
    if (popped && !popped.box.contains(event.target) && !popped.anchor.contains(event.target)) closePopover();
  },
  true,
);

// A modal window with a title. Resolves when it is closed.
function modal(title, ...children) {
  const box = el(
    "dialog.modal",
    {},
    el(
      "header",
      el("h2", title),
      button("Close", () => box.close(), { className: "quiet" }),
    ),
    ...children,
  );
  box.addEventListener("click", (event) => {
    if (event.target === box) box.close();
  });
  box.addEventListener("close", () => box.remove());
  document.body.append(box);
  box.showModal();
  return box;
}

// A line at the bottom that goes away; `action` is [text, function].
function toast(text, action = null, seconds = action ? 12 : 5) {
  const tray = document.querySelector(".toasts") ?? document.body.appendChild(el("div.toasts", { role: "status" }));
  const line = el(
    "div.toast",
    {},
    el("span", text),
    action &&
      button(action[0], () => {
        line.remove();
        action[1]();
      }),
    button("×", () => line.remove(), { "aria-label": "Dismiss", className: "quiet" }),
  );
  tray.append(line);
  while (tray.children.length > 4) tray.firstChild.remove();
  setTimeout(() => line.remove(), seconds * 1000);
}

function download(name, blob) {
  const url = URL.createObjectURL(blob);
  el("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 30_000);
}

async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    toast("Copied.");
  } catch {
    modal("Copy this", el("textarea.copy", { value: text, rows: 4, readOnly: true }));
  }
}

// At most one call every `wait` milliseconds, the last one always made.
function paced(call, wait) {
  let timer = 0,
    last = 0;
  return (...given) => {
    clearTimeout(timer);
    const left = last + wait - performance.now();
    timer = setTimeout(
      () => {
        last = performance.now();
        call(...given);
      },
      Math.max(0, left),
    );
  };
}

function delayed(call, wait) {
  let timer = 0;
  return (...given) => {
    clearTimeout(timer);
    timer = setTimeout(() => call(...given), wait);
  };
}
