// Curves as bytes: docs/tracker.md, "Curves".
"use strict";

const ARRAYS = { f8: Float64Array, u4: Uint32Array, u1: Uint8Array };

// MLM4 bytes: header length, JSON header, then arrays, which become properties of their series.
function decodeCurves(buffer) {
  const length = new DataView(buffer).getUint32(4, true);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 8, length)));
  for (const series of header.series) {
    for (const [name, [kind, at, count]] of Object.entries(series.arrays)) {
      series[name] = new ARRAYS[kind](buffer, at, count);
    }
  }
  return header;
}
