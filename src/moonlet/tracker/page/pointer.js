// What a chart does under the pointer: readout, zoom, pan.
//
// Wheel (with Ctrl in a grid of charts) zooms at the pointer, a drag zooms to what it spans (in y too when it is high),
// Shift and a drag or a horizontal wheel pan, two fingers pinch, two presses show all again.
"use strict";

const MOST_ROWS = 12; // of the readout

Object.assign(Chart.prototype, {
  follow() {
    const { stage } = this;
    const at = (event) => {
      const box = stage.getBoundingClientRect();
      return { x: event.clientX - box.left, y: event.clientY - box.top };
    };
    const touches = new Map();
    let drag = null;
    stage.addEventListener(
      "wheel",
      (event) => {
        if (!this.sx || !(this.big || event.ctrlKey || event.metaKey || event.shiftKey)) return;
        event.preventDefault();
        const side = event.shiftKey && !event.deltaX ? event.deltaY : event.deltaX;
        if (Math.abs(side) > Math.abs(event.deltaY) || event.shiftKey) this.pan(side);
        else this.scaleAt(at(event).x, Math.exp(Math.max(-400, Math.min(400, event.deltaY)) * 0.002));
      },
      { passive: false },
    );
    stage.addEventListener("pointerdown", (event) => {
      if (event.pointerType === "touch") touches.set(event.pointerId, at(event).x);
      if (event.button !== 0 || !this.sx || event.target.closest("button")) return;
      if (event.pointerType !== "touch") {
        event.preventDefault();
        stage.setPointerCapture(event.pointerId);
        drag = { from: at(event), pan: event.shiftKey, last: at(event).x };
        if (this.big) stage.focus({ preventScroll: true });
      }
    });
    stage.addEventListener("pointermove", (event) => {
      const here = at(event);
      if (touches.size === 2 && touches.has(event.pointerId)) {
        const [other] = [...touches].find(([id]) => id !== event.pointerId).slice(1);
        const before = Math.abs(touches.get(event.pointerId) - other),
          now = Math.abs(here.x - other);
        touches.set(event.pointerId, here.x);
        if (before > 8 && now > 8) this.scaleAt((here.x + other) / 2, before / now);
      } else if (drag?.pan) {
        this.pan(drag.last - here.x);
        drag.last = here.x;
      } else if (drag) {
        drag.to = here;
        this.overlay(drag);
      } else if (!this.pinned) this.point(here);
    });
    const up = (event) => {
      touches.delete(event.pointerId);
      const done = drag;
      drag = null;
      if (!done || event.type === "pointercancel") return;
      const { from, to = from } = done;
      if (!done.pan && Math.abs(to.x - from.x) > 4) this.zoomTo(from, to);
      else if (!done.pan) this.pin(from);
    };
    stage.addEventListener("pointerup", up);
    stage.addEventListener("pointercancel", up);
    stage.addEventListener("pointerleave", () => {
      if (!this.pinned && !drag) this.point(null);
    });
    stage.addEventListener("dblclick", () => this.reset());
    stage.addEventListener("keydown", (event) => {
      const act = {
        ArrowLeft: () => this.pan(-60),
        ArrowRight: () => this.pan(60),
        "+": () => this.scaleAt(null, 0.7),
        "=": () => this.scaleAt(null, 0.7),
        "-": () => this.scaleAt(null, 1.4),
        0: () => this.reset(),
      }[event.key];
      if (!act || event.ctrlKey || event.metaKey) return;
      event.preventDefault();
      event.stopPropagation();
      act();
    });
  },

  reset() {
    this.y = null;
    this.pin(null);
    setZoom(null, null);
    this.draw();
  },

  scaleAt(px, factor) {
    const { frame } = this;
    const middle = Math.min(Math.max(px ?? (frame.left + frame.right) / 2, frame.left), frame.right);
    this.take(middle + (frame.left - middle) * factor, middle + (frame.right - middle) * factor);
  },

  pan(by) {
    this.take(this.frame.left + by, this.frame.right + by);
  },

  // Show what lies between two pixel places; beyond all data it is all of it.
  take(left, right) {
    const [x0, x1] = this.window;
    const scale = makeScale(x0, x1, this.frame.left, this.frame.right, state.xlog && x0 > 0);
    const a = scale.back(left),
      b = scale.back(right);
    if (!Number.isFinite(a) || !Number.isFinite(b) || !(b - a > Math.max(Math.abs(a), Math.abs(b)) * 1e-13)) return;
    if (this.full && a <= this.full[0] && b >= this.full[1]) setZoom(null, null);
    else setZoom(a, b);
  },

  zoomTo(from, to) {
    const { frame, sx, sy } = this;
    const inside = (x) => Math.min(Math.max(x, frame.left), frame.right);
    const [x0, x1] = [sx.back(inside(Math.min(from.x, to.x))), sx.back(inside(Math.max(from.x, to.x)))];
    const spans = Math.abs(to.y - from.y) > 30 && Math.abs(to.y - from.y) < (frame.bottom - frame.top) * 0.85;
    this.y = spans ? [sy.back(Math.max(from.y, to.y)), sy.back(Math.min(from.y, to.y))] : this.y;
    if (x1 > x0) setZoom(x0, x1);
  },

  pin(here) {
    this.pinned = here !== null && !this.pinned;
    this.readout.classList.toggle("pinned", this.pinned);
    this.point(here);
  },

  overlay(drag = null) {
    const ctx = fitted(this.over, this.stage.clientWidth, this.stage.clientHeight);
    if (drag === null) return ctx;
    const { from, to } = drag;
    const { accent } = themeColors();
    const high = Math.abs(to.y - from.y) > 30 && Math.abs(to.y - from.y) < (this.frame.bottom - this.frame.top) * 0.85;
    const [y, height] = high
      ? [Math.min(from.y, to.y), Math.abs(to.y - from.y)]
      : [this.frame.top, this.frame.bottom - this.frame.top];
    ctx.fillStyle = accent;
    ctx.globalAlpha = 0.16;
    ctx.fillRect(Math.min(from.x, to.x), y, Math.abs(to.x - from.x), height);
    ctx.globalAlpha = 1;
    this.readout.hidden = true;
    return ctx;
  },

  // Show the values at a place of the stage, nearest curve first; null hides them.
  point(here) {
    this.pointer = here;
    const ctx = this.overlay();
    this.readout.hidden = true;
    if (!here || !this.sx || !this.shown || here.x < this.frame.left - 6 || here.x > this.frame.right + 6) return;
    const rows = readoutRows(this.shown, this.sx, this.sy, here);
    if (!rows.length) return;
    const colors = themeColors();
    ctx.strokeStyle = colors.soft;
    ctx.lineWidth = 1;
    ctx.beginPath();
    ctx.moveTo(Math.round(rows[0].px) + 0.5, this.frame.top);
    ctx.lineTo(Math.round(rows[0].px) + 0.5, this.frame.bottom);
    ctx.stroke();
    for (const row of rows.slice(0, MOST_ROWS)) {
      ctx.fillStyle = row.color;
      ctx.strokeStyle = colors.paper;
      ctx.beginPath();
      ctx.arc(row.px, Math.min(Math.max(row.py, this.frame.top), this.frame.bottom), row === rows[0] ? 4 : 3, 0, 7);
      ctx.fill();
      ctx.stroke();
    }
    const lines = rows
      .slice(0, MOST_ROWS)
      .map((row) =>
        el(
          "div.row",
          {},
          el("i", { style: { background: row.color } }),
          this.pinned && row.run
            ? button(row.label, () => openRun(row.run), { className: "link", title: "Open this run" })
            : el("span.label", row.label),
          el("b", row.text),
        ),
      );
    const more = rows.length > MOST_ROWS ? el("div.soft", `and ${rows.length - MOST_ROWS} more`) : null;
    this.readout.replaceChildren(el("div.at", placeText(rows[0].x, state.x)), ...lines, more ?? "");
    this.readout.hidden = false;
    const right = here.x > this.stage.clientWidth / 2;
    this.readout.style.left = right ? "" : `${Math.round(here.x + 14)}px`;
    this.readout.style.right = right ? `${Math.round(this.stage.clientWidth - here.x + 14)}px` : "";
  },
});
