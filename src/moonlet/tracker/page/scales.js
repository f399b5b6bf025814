// Places on an axis and its ticks.
"use strict";

const FAR = 1e5; // pixels outside the picture where a place is held: canvases lose very large ones

// Maps lo … hi to from … to. A log scale holds what is not above 0 at its lower end.
function makeScale(lo, hi, from, to, log = false) {
  const [a, b] = log ? [Math.log(lo), Math.log(hi)] : [lo, hi];
  const slope = b > a ? (to - from) / (b - a) : 0;
  const middle = b > a ? from : (from + to) / 2;
  const low = Math.min(from, to) - FAR,
    high = Math.max(from, to) + FAR;
  const held = (place) => (place < low ? low : place > high ? high : place);
  return {
    lo,
    hi,
    log,
    from,
    to,
    at: log
      ? (value) => (value > 0 ? held(middle + (Math.log(value) - a) * slope) : from)
      : (value) => held(middle + (value - a) * slope),
    back: (place) => {
      const value = slope ? a + (place - middle) / slope : a;
      return log ? Math.exp(value) : value;
    },
  };
}

// lo … hi with room around it, and apart where all values are one.
function roomy(lo, hi, log) {
  if (!(lo <= hi)) return log ? [1, 10] : [0, 1];
  if (log) {
    if (lo === hi) return [lo / 2, hi * 2];
    const room = (hi / lo) ** 0.06;
    return [Math.max(lo / room, Number.MIN_VALUE), Math.min(hi * room, Number.MAX_VALUE)];
  }
  if (lo === hi) {
    const half = Math.abs(lo) * 0.1 || 1;
    return [lo - half, hi + half];
  }
  const room = hi / 16 - lo / 16; // the halves first: the difference of 1e308 and −1e308 is no number
  return [Math.max(lo - room, -Number.MAX_VALUE / 4), Math.min(hi + room, Number.MAX_VALUE / 4)];
}

function niceStep(span, count) {
  const rough = span / Math.max(count, 1);
  const power = 10 ** Math.floor(Math.log10(rough));
  return power * ([1, 2, 5].find((factor) => factor * power >= rough) ?? 10);
}

function linearTicks(lo, hi, count) {
  const step = niceStep(hi - lo, count);
  if (!(step > 0) || !Number.isFinite(step)) return [lo];
  const out = [];
  for (let k = Math.ceil(lo / step); k * step <= hi && out.length < 50; k += 1) out.push(k * step || 0);
  return out;
}

function logTicks(lo, hi, count) {
  const first = Math.floor(Math.log10(lo)),
    last = Math.ceil(Math.log10(hi));
  if (last - first <= 1 && hi / lo < 4) return linearTicks(lo, hi, count).filter((tick) => tick > 0);
  const every = Math.max(1, Math.ceil((last - first) / count));
  const factors = last - first <= Math.max(1, count / 3) ? [1, 2, 5] : [1];
  const out = [];
  for (let power = first; power <= last; power += every) {
    for (const factor of factors) {
      const tick = Number(`${factor}e${power}`);
      if (tick >= lo && tick <= hi) out.push(tick);
    }
  }
  return out;
}

const SECONDS = [
  0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200,
  10_800, 21_600, 43_200, 86_400, 172_800, 604_800, 1_209_600, 2_592_000, 7_776_000, 31_536_000,
];

// Ticks with their texts. kind: "time" (Unix seconds), "relative" (seconds), or anything else for plain numbers.
function ticksOf(lo, hi, count, kind = "", log = false) {
  if (log) return logTicks(lo, hi, count).map((tick) => [tick, kind === "relative" ? duration(tick) : compact(tick)]);
  if (kind !== "time" && kind !== "relative") {
    const ticks = linearTicks(lo, hi, count);
    const step = ticks.length > 1 ? ticks[1] - ticks[0] : 0;
    const size = Math.max(Math.abs(lo), Math.abs(hi));
    const digits = step > 0 ? Math.min(15, Math.max(4, Math.ceil(Math.log10(size / step)) + 1)) : 4;
    const shared = kind === "y" || step >= 1000 ? (tick) => compact(tick, digits) : (tick) => number(tick, digits);
    return ticks.map((tick) => [tick, shared(tick)]);
  }
  const step = SECONDS.find((one) => (hi - lo) / one <= count) ?? niceStep(hi - lo, count);
  const shift = kind === "time" && step >= 3600 ? new Date(lo * 1000).getTimezoneOffset() * 60 : 0;
  const out = [];
  for (let k = Math.ceil((lo - shift) / step); k * step + shift <= hi && out.length < 50; k += 1) {
    const tick = k * step + shift;
    const date = new Date(tick * 1000);
    out.push([
      tick,
      kind === "relative"
        ? duration(tick)
        : step < 86_400 && clock(date) !== "00:00"
          ? clock(date, step < 60)
          : day(date).slice(5),
    ]);
  }
  return out;
}

// One exact place on an axis, for the readout.
function placeText(value, kind) {
  if (kind === "time") return when(value);
  if (kind === "relative") return duration(value);
  return `${kind} ${Number.isInteger(value) ? value.toLocaleString("en") : number(value, 8)}`;
}
