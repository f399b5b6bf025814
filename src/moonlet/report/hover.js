// The nearest point of a curve under the pointer. Rows of a chart are [x, y, text], sorted by x, in viewBox units.
const points = JSON.parse(document.getElementById("points").textContent);
const tip = document.getElementById("tip");
for (const chart of document.querySelectorAll("svg.chart")) {
  const rows = points[chart.parentElement.id];
  const dot = chart.querySelector(".dot");
  if (!rows || !dot) continue;
  const hide = () => { tip.hidden = true; dot.setAttribute("visibility", "hidden"); };
  const show = (event) => {
    const box = chart.getBoundingClientRect();
    const x = (event.clientX - box.left) / box.width * chart.viewBox.baseVal.width;
    let low = 0, high = rows.length - 1;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (rows[middle][0] < x) low = middle + 1; else high = middle;
    }
    if (low > 0 && x - rows[low - 1][0] < rows[low][0] - x) low -= 1;
    const [px, py, text] = rows[low];
    dot.setAttribute("cx", px);
    dot.setAttribute("cy", py);
    dot.setAttribute("visibility", "visible");
    tip.textContent = text;
    tip.hidden = false;
    tip.style.left = Math.max(8, Math.min(event.clientX + 12, innerWidth - tip.offsetWidth - 8)) + "px";
    tip.style.top = Math.max(8, box.top - tip.offsetHeight) + "px";
  };
  chart.addEventListener("pointermove", show);
  chart.addEventListener("pointerdown", show);
  chart.addEventListener("pointerleave", hide);
}
