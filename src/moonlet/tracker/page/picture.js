// A chart as a file: PNG, SVG, its raw points.
"use strict";

const LEGEND_ROWS = 40; // runs named below a picture

Object.assign(Chart.prototype, {
  menu(anchor) {
    const file = this.plan.title.replace(/[^\w.-]+/g, "-").slice(0, 80) || "chart";
    const close = (act) => () => {
      closePopover();
      act();
    };
    popover(
      anchor,
      el(
        "div.menu",
        button(
          "PNG picture",
          close(() => this.picture(file)),
        ),
        button(
          "SVG picture",
          close(() => this.svg(file)),
        ),
        button(
          "Raw points as CSV",
          close(() => this.points(file)),
        ),
        button(
          "Show everything again",
          close(() => this.reset()),
        ),
        this.plan.menu?.map(([words, act]) => button(words, close(act))),
      ),
    );
  },

  // Title, picture and legend at twice the size, or as SVG.
  compose(ctx, width, height) {
    const colors = themeColors();
    const lines = this.lines();
    ctx.fillStyle = colors.paper;
    ctx.fillRect(0, 0, width, height + 46 + 16 * Math.min(lines.length, LEGEND_ROWS));
    drawPlot(ctx, this.view(width, height), colors);
    Object.assign(ctx, {
      fillStyle: colors.ink,
      font: FONT.replace("11px", "12px"),
      textAlign: "left",
      textBaseline: "middle",
    });
    ctx.fillText(this.plan.title, 12, height + 18);
    ctx.font = FONT;
    lines.slice(0, LEGEND_ROWS).forEach(({ color, label }, i) => {
      ctx.fillStyle = color;
      ctx.fillRect(12, height + 35 + 16 * i, 10, 3);
      ctx.fillStyle = colors.ink;
      ctx.fillText(label, 28, height + 37 + 16 * i);
    });
  },

  picture(file) {
    const width = this.stage.clientWidth,
      height = this.stage.clientHeight;
    const canvas = el("canvas", {
      width: 2 * width,
      height: 2 * (height + 46 + 16 * Math.min(this.lines().length, LEGEND_ROWS)),
    });
    const ctx = canvas.getContext("2d");
    ctx.scale(2, 2);
    this.compose(ctx, width, height);
    canvas.toBlob((blob) => download(`${file}.png`, blob));
  },

  svg(file) {
    const width = this.stage.clientWidth,
      height = this.stage.clientHeight;
    const ctx = new SvgContext(width, height + 46 + 16 * Math.min(this.lines().length, LEGEND_ROWS));
    this.compose(ctx, width, height);
    download(`${file}.svg`, new Blob([ctx.text()], { type: "image/svg+xml" }));
  },

  async points(file) {
    const wanted =
      this.plan.series ?? this.plan.groups.flatMap((group) => group.runs.map((run) => ({ run, name: this.plan.name })));
    const parts = ["run,name,step,time,value\n"];
    const cell = (words) => `"${String(words).replaceAll('"', '""')}"`;
    for (const { run, name } of wanted) {
      const found = await api.points(run, name);
      parts.push(
        found.step.map((step, i) => `${run},${cell(name)},${step},${found.time[i]},${found.value[i]}\n`).join(""),
      );
    }
    download(`${file}.csv`, new Blob(parts, { type: "text/csv" }));
  },
});
