// What every canvas needs: the theme's colours, and pixels as fine as the screen's.
"use strict";

// Colours of the page's theme as a canvas takes them. Asking costs a layout: they are kept until the theme changes.
let keptColors = null;
function themeColors() {
  if (keptColors) return keptColors;
  const probe = document.body.appendChild(document.createElement("span"));
  const out = {};
  for (const key of ["paper", "panel", "ink", "soft", "line", "bad", "accent"]) {
    probe.style.color = `var(--${key})`;
    out[key] = getComputedStyle(probe).color;
  }
  probe.remove();
  return (keptColors = out);
}

// The 2D context of a canvas, made width × height CSS pixels large and cleared.
function fitted(canvas, width, height) {
  const ratio = Math.min(devicePixelRatio || 1, 2);
  if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
  }
  const ctx = canvas.getContext("2d");
  ctx.setTransform(ratio, 0, 0, ratio, 0, 0);
  ctx.clearRect(0, 0, width, height);
  return ctx;
}
