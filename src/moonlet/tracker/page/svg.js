// The part of a canvas's 2D context that plot.js uses, writing SVG elements: the picture of a chart as a file.
"use strict";

const SVG = "http://www.w3.org/2000/svg";

class SvgContext {
  constructor(width, height) {
    this.root = document.createElementNS(SVG, "svg");
    for (const [key, value] of Object.entries({ xmlns: SVG, width, height, viewBox: `0 0 ${width} ${height}` })) {
      if (key !== "xmlns") this.root.setAttribute(key, value);
    }
    this.into = this.root;
    this.measure = document.createElement("canvas").getContext("2d");
    Object.assign(this, { fillStyle: "#000", strokeStyle: "#000", lineWidth: 1, globalAlpha: 1, lineCap: "butt" });
    Object.assign(this, { lineJoin: "miter", textAlign: "left", textBaseline: "alphabetic", font: "11px sans-serif" });
    this.path = "";
    this.dash = [];
    this.clips = 0;
    this.run = null; // the path that the last fillRect went into
  }

  add(tag, given) {
    const node = document.createElementNS(SVG, tag);
    for (const [key, value] of Object.entries(given)) node.setAttribute(key, value);
    if (this.globalAlpha !== 1) node.setAttribute("opacity", this.globalAlpha);
    this.run = null;
    return this.into.appendChild(node);
  }

  beginPath() {
    this.path = "";
  }
  moveTo(x, y) {
    this.path += `M${round2(x)} ${round2(y)}`;
  }
  lineTo(x, y) {
    this.path += `L${round2(x)} ${round2(y)}`;
  }
  closePath() {
    this.path += "Z";
  }
  rect(x, y, w, h) {
    this.path += `M${round2(x)} ${round2(y)}h${round2(w)}v${round2(h)}h${round2(-w)}Z`;
  }
  setLineDash(dash) {
    this.dash = dash;
  }
  save() {
    this.saved = this.into;
  }
  restore() {
    this.into = this.saved;
    this.run = null;
  }

  clip() {
    const id = `clip${(this.clips += 1)}`;
    const box = this.into.appendChild(document.createElementNS(SVG, "clipPath"));
    box.id = id;
    box.appendChild(document.createElementNS(SVG, "path")).setAttribute("d", this.path);
    this.into = this.into.appendChild(document.createElementNS(SVG, "g"));
    this.into.setAttribute("clip-path", `url(#${id})`);
  }

  stroke() {
    if (!this.path) return;
    const given = { d: this.path, fill: "none", stroke: this.strokeStyle, "stroke-width": this.lineWidth };
    if (this.dash.length) given["stroke-dasharray"] = this.dash.join(" ");
    this.add("path", { ...given, "stroke-linejoin": this.lineJoin, "stroke-linecap": this.lineCap });
  }

  fill() {
    this.add("path", { d: this.path, fill: this.fillStyle });
  }

  fillRect(x, y, w, h) {
    const one = `M${round2(x)} ${round2(y)}h${round2(w)}v${round2(h)}h${round2(-w)}Z`,
      mark = `${this.fillStyle} ${this.globalAlpha}`;
    if (this.run?.mark === mark) {
      this.run.parts.push(one);
      return;
    }
    const node = this.add("path", { fill: this.fillStyle });
    this.run = { mark, node, parts: [one] };
    (this.runs ??= []).push(this.run);
  }

  measureText(text) {
    this.measure.font = this.font;
    return this.measure.measureText(text);
  }

  fillText(text, x, y) {
    const [, size, family] = this.font.match(/([\d.]+)px (.*)/);
    const node = this.add("text", {
      x: round2(x),
      y: round2(y),
      fill: this.fillStyle,
      "font-size": size,
      "font-family": family,
    });
    node.setAttribute("text-anchor", { left: "start", center: "middle", right: "end" }[this.textAlign]);
    node.setAttribute(
      "dominant-baseline",
      { top: "hanging", middle: "central", alphabetic: "auto" }[this.textBaseline],
    );
    node.textContent = text;
  }

  // The file's text.
  text() {
    for (const { node, parts } of this.runs ?? []) node.setAttribute("d", parts.join(""));
    return new XMLSerializer().serializeToString(this.root);
  }
}

function round2(value) {
  return Math.round(value * 100) / 100;
}
