// Drawing of a chart on a 2D context (a canvas's, or that of svg.js). Nothing here knows of runs or the server.
//
// A series comes as its raw points or as pixel columns with the least, greatest, first and last value of each (M4):
// a column is a bar from least to greatest, and a line goes from each last point to the next first one. That covers
// the pixels that all points would. What is smoothed is drawn over it. A value that is not finite breaks the line and
// leaves a mark: × for NaN and ▲ at the upper edge, ▼ at the lower one.
"use strict";

const NAN_FLAG = 1,
  PLUS_FLAG = 2,
  MINUS_FLAG = 4;
const MARGIN = { top: 10, right: 12, bottom: 24 };
const STROKE = 16; // segments a path: a long zigzag in one path costs many times as much to fill
const LEAST_LEFT = 56; // in steps of 8, so that a new tick's text seldom moves the columns
const FONT = '11px system-ui, -apple-system, "Segoe UI", "Liberation Sans", sans-serif';

// The place of each pixel column's middle, in units of x.
function columnPlaces(series, header) {
  if (series.places) return series.places;
  const { x0, x1, pixels, scale } = header;
  const out = new Float64Array(series.column.length);
  const [a, b] = scale === "log" ? [Math.log(x0), Math.log(x1)] : [x0, x1];
  for (let i = 0; i < out.length; i += 1) {
    const place = a + ((series.column[i] + 0.5) / pixels) * (b - a);
    out[i] = scale === "log" ? Math.exp(place) : place;
  }
  return (series.places = out);
}

function placesOf(series, header) {
  return series.mode === "raw" ? series.x : columnPlaces(series, header);
}

// First index whose place is ≥ value.
function lowerBound(places, value) {
  let low = 0,
    high = places.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (places[middle] < value) low = middle + 1;
    else high = middle;
  }
  return low;
}

// Least and greatest finite value between two places; above 0 only when `log`.
function rangeOf(series, header, x0, x1, log) {
  const places = placesOf(series, header);
  const raw = series.mode === "raw";
  const lows = raw ? series.y : series.min,
    highs = raw ? series.y : series.max;
  let low = Infinity,
    high = -Infinity;
  const half = raw || series.column.length < 1 ? 0 : (header.x1 - header.x0) / header.pixels / 2;
  for (let i = lowerBound(places, x0 - half); i < places.length && places[i] <= x1 + half; i += 1) {
    for (const value of raw ? [lows[i]] : [lows[i], highs[i]]) {
      if (!Number.isFinite(value) || (log && value <= 0)) continue;
      if (value < low) low = value;
      if (value > high) high = value;
    }
  }
  return [low, high];
}

// The frame: where the picture lies in width × height, once the y ticks are known.
function frameOf(ctx, width, height, y, yKind) {
  ctx.font = FONT;
  const count = Math.min(10, Math.max(2, Math.floor((height - MARGIN.top - MARGIN.bottom) / 34)));
  const ticks = ticksOf(y.lo, y.hi, count, yKind ?? "y", y.log);
  const widest = Math.max(...ticks.map(([, text]) => ctx.measureText(text).width), 0);
  return {
    left: Math.max(LEAST_LEFT, Math.ceil((widest + 12) / 8) * 8),
    right: width - MARGIN.right,
    top: MARGIN.top,
    bottom: height - MARGIN.bottom,
    ticks,
  };
}

function drawAxes(ctx, frame, sx, sy, kind, colors) {
  ctx.font = FONT;
  ctx.lineWidth = 1;
  ctx.strokeStyle = colors.line;
  ctx.fillStyle = colors.soft;
  ctx.textAlign = "right";
  ctx.textBaseline = "middle";
  ctx.beginPath();
  for (const [tick, label] of frame.ticks) {
    const y = Math.round(sy.at(tick)) + 0.5;
    if (y < frame.top - 1 || y > frame.bottom + 1) continue;
    ctx.moveTo(frame.left, y);
    ctx.lineTo(frame.right, y);
    ctx.fillText(label, frame.left - 6, y);
  }
  ctx.stroke();
  ctx.textAlign = "center";
  ctx.textBaseline = "top";
  ctx.beginPath();
  ctx.strokeStyle = colors.soft;
  ctx.moveTo(frame.left, frame.bottom + 0.5);
  ctx.lineTo(frame.right, frame.bottom + 0.5);
  let free = -Infinity;
  const room = ctx.measureText(kind).width + 10;
  for (const [tick, label] of ticksOf(
    sx.lo,
    sx.hi,
    Math.max(2, Math.floor((frame.right - frame.left) / 74)),
    kind,
    sx.log,
  )) {
    const x = sx.at(tick),
      half = ctx.measureText(label).width / 2;
    if (x < frame.left - 1 || x > frame.right + 1) continue;
    ctx.moveTo(Math.round(x) + 0.5, frame.bottom);
    ctx.lineTo(Math.round(x) + 0.5, frame.bottom + 4);
    const at = Math.min(Math.max(x, half + 2), frame.right + MARGIN.right - half - 2);
    if (at - half < free || at + half > frame.right + MARGIN.right - room) continue;
    ctx.fillText(label, at, frame.bottom + 7);
    free = at + half + 8;
  }
  ctx.stroke();
  ctx.textAlign = "right";
  ctx.fillText(kind, frame.right + MARGIN.right - 2, frame.bottom + 7);
}

// Lost or damaged points: the stretch between the last point before and the first after.
function drawGaps(ctx, frame, sx, gaps, colors) {
  ctx.fillStyle = colors.bad;
  for (const [from, to] of gaps) {
    const x = Math.max(sx.at(from), frame.left),
      end = Math.min(sx.at(to), frame.right);
    if (end < frame.left || x > frame.right) continue;
    ctx.globalAlpha = 0.13;
    ctx.fillRect(x, frame.top, Math.max(end - x, 2), frame.bottom - frame.top);
    ctx.globalAlpha = 1;
    ctx.fillRect(x, frame.top, Math.max(end - x, 2), 2);
  }
}

function drawSeries(ctx, frame, sx, sy, series, header, { color, width, alpha = 1, dash = [] }) {
  ctx.strokeStyle = ctx.fillStyle = color;
  ctx.lineWidth = width;
  ctx.lineJoin = "bevel";
  ctx.lineCap = "round";
  ctx.globalAlpha = alpha;
  ctx.setLineDash(dash);
  if (series.mode === "raw") drawRaw(ctx, frame, sx, sy, series, width);
  else drawColumns(ctx, frame, sx, sy, series, header, width);
  ctx.globalAlpha = 1;
  ctx.setLineDash([]);
}

function drawRaw(ctx, frame, sx, sy, { x, y }, width) {
  const first = Math.max(lowerBound(x, sx.lo) - 1, 0),
    stop = Math.min(lowerBound(x, sx.hi) + 2, x.length);
  const dots = stop - first < (frame.right - frame.left) / 9;
  ctx.beginPath();
  let joined = false;
  for (let i = first; i < stop; i += 1) {
    if (!Number.isFinite(y[i])) {
      joined = false;
      continue;
    }
    const px = sx.at(x[i]),
      py = sy.at(y[i]);
    if (joined) ctx.lineTo(px, py);
    else {
      ctx.moveTo(px, py);
      if (!Number.isFinite(y[i + 1])) ctx.lineTo(px, py); // alone between two breaks: a dot
    }
    joined = true;
    if (i % STROKE === 0) {
      ctx.stroke();
      ctx.beginPath();
      ctx.moveTo(px, py);
    }
  }
  ctx.stroke();
  if (!dots) return;
  for (let i = first; i < stop; i += 1) {
    if (Number.isFinite(y[i]))
      ctx.fillRect(sx.at(x[i]) - width - 0.5, sy.at(y[i]) - width - 0.5, 2 * width + 1, 2 * width + 1);
  }
}

function drawColumns(ctx, frame, sx, sy, series, header, width) {
  const places = columnPlaces(series, header);
  const { min, max, first, last, x_first: begins, x_last: ends } = series;
  const start = Math.max(lowerBound(places, sx.lo) - 1, 0),
    stop = Math.min(lowerBound(places, sx.hi) + 1, places.length);
  ctx.beginPath();
  for (let i = start + 1; i < stop; i += 1) {
    // from each column's last point to the next one's first
    if (!Number.isFinite(last[i - 1]) || !Number.isFinite(first[i])) continue;
    ctx.moveTo(sx.at(ends[i - 1]), sy.at(last[i - 1]));
    ctx.lineTo(sx.at(begins[i]), sy.at(first[i]));
    if (i % STROKE === 0) {
      ctx.stroke();
      ctx.beginPath();
    }
  }
  ctx.stroke();
  for (let i = start; i < stop; i += 1) {
    if (min[i] !== min[i]) continue;
    const top = sy.at(max[i]),
      height = sy.at(min[i]) - top;
    ctx.fillRect(
      sx.at(places[i]) - width / 2,
      height < width ? top - width / 2 : top,
      width,
      height < width ? width : height,
    );
  }
}

// The average: at each raw point, or at each column's last one.
function drawSmooth(ctx, sx, sy, series, color, width) {
  const x = series.mode === "raw" ? series.x : series.x_last,
    y = series.smooth;
  ctx.strokeStyle = color;
  ctx.lineWidth = width;
  ctx.lineJoin = "round";
  ctx.beginPath();
  let joined = false;
  const stop = Math.min(lowerBound(x, sx.hi) + 2, x.length);
  for (let i = Math.max(lowerBound(x, sx.lo) - 1, 0); i < stop; i += 1) {
    if (!Number.isFinite(y[i])) {
      joined = false;
      continue;
    }
    if (joined) ctx.lineTo(sx.at(x[i]), sy.at(y[i]));
    else ctx.moveTo(sx.at(x[i]), sy.at(y[i]));
    joined = true;
  }
  ctx.stroke();
}

function drawBand(ctx, sx, sy, low, high, header, color) {
  const raw = low.mode === "raw";
  const places = placesOf(low, header),
    lows = raw ? low.y : low.min,
    highs = raw ? high.y : high.max;
  const start = Math.max(lowerBound(places, sx.lo) - 1, 0),
    stop = Math.min(lowerBound(places, sx.hi) + 2, places.length);
  ctx.fillStyle = color;
  ctx.globalAlpha = 0.22;
  if (!raw) {
    // bars of a column's width: a peak of one column stays as dark as the rest
    const wide = Math.max(1, (sx.at(header.x1) - sx.at(header.x0)) / header.pixels);
    for (let i = start; i < stop; i += 1) {
      const top = sy.at(highs[i]),
        height = sy.at(lows[i]) - top;
      if (height >= 0) ctx.fillRect(sx.at(places[i]) - wide / 2, top, wide, Math.max(height, 1));
    }
  }
  for (let begin = start; raw && begin < stop; begin += 1) {
    // one shape for each stretch without a break
    let end = begin;
    while (end < stop && Number.isFinite(lows[end]) && Number.isFinite(highs[end])) end += 1;
    if (end > begin) {
      ctx.beginPath();
      ctx.moveTo(sx.at(places[begin]), sy.at(highs[begin]));
      for (let i = begin; i < end; i += 1) ctx.lineTo(sx.at(places[i]), sy.at(highs[i]));
      for (let i = end - 1; i >= begin; i -= 1) ctx.lineTo(sx.at(places[i]), sy.at(lows[i]));
      ctx.closePath();
      ctx.fill();
    }
    begin = end;
  }
  ctx.globalAlpha = 1;
}

// Which marks stand where: Map from whole pixel to flags.
function oddPlaces(series, header, sx) {
  const out = new Map();
  const raw = series.mode === "raw",
    places = placesOf(series, header);
  for (let i = lowerBound(places, sx.lo); i < places.length && places[i] <= sx.hi; i += 1) {
    let flags = raw ? 0 : series.flags[i];
    if (raw && !Number.isFinite(series.y[i])) {
      flags = Number.isNaN(series.y[i]) ? NAN_FLAG : series.y[i] > 0 ? PLUS_FLAG : MINUS_FLAG;
    }
    if (flags) {
      const at = Math.round(sx.at(places[i]));
      out.set(at, (out.get(at) ?? 0) | flags);
    }
  }
  return out;
}

function drawOdd(ctx, frame, odd, colors) {
  ctx.strokeStyle = ctx.fillStyle = colors.bad;
  ctx.lineWidth = 1.5;
  const triangle = (x, y, up) => {
    ctx.beginPath();
    ctx.moveTo(x - 4, y + 3 * up);
    ctx.lineTo(x + 4, y + 3 * up);
    ctx.lineTo(x, y - 4 * up);
    ctx.closePath();
    ctx.fill();
  };
  for (const [x, flags] of odd) {
    if (flags & NAN_FLAG) {
      ctx.beginPath();
      ctx.moveTo(x - 3, frame.top - 6);
      ctx.lineTo(x + 3, frame.top);
      ctx.moveTo(x + 3, frame.top - 6);
      ctx.lineTo(x - 3, frame.top);
      ctx.stroke();
    }
    if (flags & PLUS_FLAG) triangle(x, frame.top + 5, 1);
    if (flags & MINUS_FLAG) triangle(x, frame.bottom - 5, -1);
  }
}

// view: {width, height, window: [x0, x1], header, lines: [{series, color, band?: [low, high], dash}],
// y: [lo, hi] or null, kind, xlog, ylog, smooth}. Returns {frame, sx, sy} for whoever places a pointer on it.
function drawPlot(ctx, view, colors) {
  const {
    width,
    height,
    window: [x0, x1],
    header,
    lines,
    xlog,
    ylog,
  } = view;
  let low = Infinity,
    high = -Infinity;
  for (const { series, band } of view.y ? [] : lines) {
    for (const one of band ? [series, ...band] : [series]) {
      const [a, b] = rangeOf(one, header, x0, x1, ylog);
      low = Math.min(low, a);
      high = Math.max(high, b);
    }
  }
  const [lo, hi] = view.y ?? roomy(low, high, ylog);
  ctx.fillStyle = colors.paper;
  ctx.fillRect(0, 0, width, height);
  const frame = frameOf(ctx, width, height, { lo, hi, log: ylog });
  const sx = makeScale(x0, x1, frame.left, frame.right, xlog),
    sy = makeScale(lo, hi, frame.bottom, frame.top, ylog);
  drawAxes(ctx, frame, sx, sy, view.kind, colors);
  ctx.save();
  ctx.beginPath();
  ctx.rect(frame.left, 0, frame.right - frame.left + 1, frame.bottom + 1);
  ctx.clip();
  for (const { series } of lines) drawGaps(ctx, frame, sx, series.gaps ?? [], colors);
  for (const { band, color } of lines) if (band) drawBand(ctx, sx, sy, band[0], band[1], header, color);
  const wide = lines.length > 30 ? 1 : 1.5;
  for (const { series, color, dash } of lines) {
    drawSeries(ctx, frame, sx, sy, series, header, {
      color,
      dash,
      width: view.smooth ? 1 : wide,
      alpha: view.smooth ? 0.38 : 1,
    });
  }
  if (view.smooth) for (const { series, color } of lines) if (series.smooth) drawSmooth(ctx, sx, sy, series, color, 2);
  const odd = new Map();
  for (const { series } of lines) {
    for (const [x, flags] of oddPlaces(series, header, sx)) odd.set(x, (odd.get(x) ?? 0) | flags);
  }
  drawOdd(ctx, frame, odd, colors);
  ctx.restore();
  return { frame, sx, sy };
}
