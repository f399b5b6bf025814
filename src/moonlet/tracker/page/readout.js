// What a chart says of the place under the pointer.
"use strict";

// Values of every line at the pointer: {label, text, color, run, x, px, py}, the nearest to it first.
function readoutRows(view, sx, sy, here) {
  const rows = [];
  const want = sx.back(here.x);
  for (const { series, color, label, run, band } of view.lines) {
    const places = placesOf(series, view.header);
    if (!places.length) continue;
    let i = Math.min(lowerBound(places, want), places.length - 1);
    if (i > 0 && Math.abs(sx.at(places[i - 1]) - here.x) < Math.abs(sx.at(places[i]) - here.x)) i -= 1;
    const raw = series.mode === "raw";
    const value = raw ? series.y[i] : series.last[i];
    let words = number(value, 6);
    if (!raw && series.count[i] > 1)
      words = `${number(series.min[i], 5)} … ${number(series.max[i], 5)}  (${compact(series.count[i], 3)} points)`;
    if (band && raw) words += `  (${number(band[0].y[i], 4)} … ${number(band[1].y[i], 4)})`;
    if (series.smooth) words += `  ~ ${number(series.smooth[i], 5)}`;
    const x = raw ? places[i] : series.x_last[i];
    const py = Number.isFinite(value) ? sy.at(value) : sy.to;
    let away = Math.abs(py - here.y);
    if (!raw && series.min[i] === series.min[i]) {
      const top = sy.at(series.max[i]),
        bottom = sy.at(series.min[i]);
      away = here.y < top ? top - here.y : here.y > bottom ? here.y - bottom : 0;
    }
    rows.push({
      label,
      text: words,
      color,
      run,
      x,
      px: sx.at(places[i]),
      py,
      away: away + Math.max(0, Math.abs(sx.at(places[i]) - here.x) - 12) * 4,
    });
  }
  return rows.sort((a, b) => a.away - b.away);
}
