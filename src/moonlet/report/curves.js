// The report's curves, drawn by the board's plot.js; a pointer on one shows what is there. All data is in the page.
"use strict";

const LOG_RANGE = 1000; // a log axis from this ratio of the largest to the smallest value, where all are above 0
const tip = document.getElementById("tip");
const given = JSON.parse(document.getElementById("curves-data").textContent);

function makeCurve(figure) {
  const bytes = Uint8Array.from(atob(given[figure.id]), (one) => one.charCodeAt(0));
  const header = decodeCurves(bytes.buffer),
    [series] = header.series;
  const [low, high] = rangeOf(series, header, header.x0, header.x1, false);
  const window = header.x0 < header.x1 ? [header.x0, header.x1] : [header.x0 - 0.5, header.x0 + 0.5];
  const shared = { window, header, kind: "step", y: null, xlog: false, ylog: low > 0 && high / low >= LOG_RANGE };
  if (shared.ylog) figure.querySelector("figcaption .soft").append(", log axis");
  const stage = figure.querySelector(".stage"),
    [canvas, over] = stage.children;
  let drawn = null;

  function draw() {
    const size = { width: stage.clientWidth, height: stage.clientHeight },
      colors = themeColors();
    const view = { ...shared, ...size, lines: [{ series, color: colors.accent }] };
    drawn = { view, ...drawPlot(fitted(canvas, size.width, size.height), view, colors) };
    hide();
  }

  function hide() {
    tip.hidden = true;
    fitted(over, stage.clientWidth, stage.clientHeight);
  }

  function show(event) {
    const box = stage.getBoundingClientRect();
    const here = { x: event.clientX - box.left, y: event.clientY - box.top };
    const [row] = readoutRows(drawn.view, drawn.sx, drawn.sy, here);
    const ctx = fitted(over, stage.clientWidth, stage.clientHeight);
    ctx.fillStyle = row.color;
    ctx.beginPath();
    ctx.arc(row.px, Math.min(Math.max(row.py, drawn.frame.top), drawn.frame.bottom), 3.5, 0, 7);
    ctx.fill();
    tip.textContent = `${placeText(row.x, "step")}: ${row.text}`;
    tip.hidden = false;
    tip.style.left = `${Math.max(8, Math.min(event.clientX + 12, innerWidth - tip.offsetWidth - 8))}px`;
    tip.style.top = `${Math.max(8, box.top - tip.offsetHeight)}px`;
  }

  stage.addEventListener("pointermove", show);
  stage.addEventListener("pointerdown", show);
  stage.addEventListener("pointerleave", hide);
  new ResizeObserver(draw).observe(stage);
  return draw;
}

const redraw = [...document.querySelectorAll("figure.series")].map(makeCurve);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  keptColors = null;
  for (const draw of redraw) draw();
});
