"use strict";
const $ = (selector, within = document) => within.querySelector(selector);
const make = (name, attributes = {}, parent = null, text = null) => {
  const svg = ["svg", "g", "path", "line", "text", "circle", "rect", "clipPath"].includes(name);
  const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== null) node.textContent = text;
  parent?.append(node);
  return node;
};
const show = (value, digits = 5) => value === null ? "–" : value.toLocaleString("en", { maximumSignificantDigits: digits });

// theme: the reader's system decides until the button does
const root = document.documentElement, system = matchMedia("(prefers-color-scheme: dark)"), button = $("#theme");
const isDark = () => root.dataset.theme ? root.dataset.theme === "dark" : system.matches;
const applyTheme = () => { root.toggleAttribute("data-dark", isDark()); button.setAttribute("aria-pressed", isDark()); };
button.hidden = false;
button.onclick = () => {
  root.dataset.theme = isDark() ? "light" : "dark";
  try { localStorage.setItem("latentbits-theme", root.dataset.theme); } catch { /* not kept, then */ }
  applyTheme();
};
system.addEventListener("change", applyTheme);
applyTheme();

for (const copy of document.querySelectorAll(".copy")) {
  copy.hidden = false;
  copy.onclick = async () => {
    const code = $("code", copy.parentElement);
    getSelection().selectAllChildren(code);
    try { await navigator.clipboard.writeText(code.textContent); copy.textContent = "Copied"; } catch { copy.textContent = "Selected"; }
  };
}

const ticks = (low, high, count) => {
  const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find(factor => factor * power >= rough * 0.999);
  const found = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + step * 1e-9; k++) found.push(+(k * step).toPrecision(12));
  return found;
};
// digits that tell a series' values apart: more than five where they are large and close together
const digitsOf = values => {
  const known = values.filter(y => y !== null), [low, high] = extent(known), size = Math.max(...known.map(Math.abs));
  return high > low ? Math.min(7, Math.max(5, 3 + Math.ceil(Math.log10(size / (high - low))))) : 5;
};
const extent = values => [Math.min(...values), Math.max(...values)];
const nearest = (values, x) => values.reduce((best, value, i) => Math.abs(value - x) < Math.abs(values[best] - x) ? i : best, 0);
const dashes = ["", "7 3", "2 3", "9 3 2 3"];
let clips = 0;

// one choice of the horizontal axis for all charts of a section
const choices = new Map();
function axisChoice(section, axes) {
  if (!choices.has(section)) {
    const followers = [], controls = $("[data-axes]", section);
    controls.setAttribute("role", "group");
    controls.setAttribute("aria-label", "Horizontal axis");
    const buttons = axes.map((name, i) => make("button", { type: "button", "aria-pressed": i === 0 }, controls, name));
    buttons.forEach((chosen, i) => chosen.onclick = () => {
      buttons.forEach(each => each.setAttribute("aria-pressed", each === chosen));
      followers.forEach(follow => follow(i));
    });
    choices.set(section, followers);
  }
  return choices.get(section);
}

function drawChart(plot, chart) {
  let axis = 0, whole = !chart.limits, cursor = -1, geometry;
  const { series } = chart;
  const legend = make("div", { class: "legend" }, plot);
  make("span", {}, legend, chart.unit);
  const place = make("span", {}, legend);
  const readings = series.map((s, i) => {
    const item = make("span", {}, legend);
    if (s.name) {
      const swatch = make("svg", { viewBox: "0 0 24 12", "aria-hidden": true }, item);
      make("path", { d: "M1 6H23", class: `stroke s${s.color % 6}`, "stroke-dasharray": dashes[Math.floor(s.color / 6) % 4] }, swatch);
      item.append(`${s.name} `);
    }
    return make("b", {}, item);
  });
  const digits = series.map(s => digitsOf(s.y));
  const outside = y => y !== null && (y < chart.limits[0] || y > chart.limits[1]);
  if (chart.limits && series.some(s => s.y.some(outside))) {
    const all = make("button", { type: "button", "aria-pressed": false }, legend, "whole range");
    all.onclick = () => { whole = !whole; all.setAttribute("aria-pressed", whole); draw(); };
  }
  if (chart.axes.length > 1) axisChoice(plot.closest("section"), chart.axes).push(i => { axis = i; cursor = -1; draw(); });
  const canvas = make("div", { class: "canvas", role: "slider", tabindex: 0, "aria-label": `Values of: ${chart.title}`, "aria-valuemin": 0 }, plot);
  const points = () => [...new Set(series.flatMap(s => s.x[axis].filter(x => x !== null)))].sort((a, b) => a - b);

  function draw() {
    canvas.replaceChildren();
    const width = Math.max(260, canvas.clientWidth), height = chart.small ? 170 : 270;
    const scale = chart.logarithmic ? Math.log10 : x => x, xs = points();
    const ys = series.flatMap(s => s.y).filter(y => y !== null);
    let [low, high] = whole || !chart.limits ? extent(ys) : chart.limits;
    if (chart.kind === "bars") low = 0;
    if (!(high > low)) { low -= 0.5; high += 0.5; } else if (whole) { const pad = 0.04 * (high - low); low -= chart.kind === "bars" ? 0 : pad; high += pad; }
    let [left, right] = extent(xs.map(scale));
    if (!(right > left)) { left -= 0.5; right += 0.5; }
    const levels = ticks(low, high, chart.small ? 3 : 5), labels = levels.map(level => show(level, 7));
    const box = { left: 14 + 7 * Math.max(...labels.map(l => l.length)), right: width - 12, top: 10, bottom: height - 36 };
    const X = x => box.left + (scale(x) - left) / (right - left) * (box.right - box.left);
    const Y = y => box.bottom - (y - low) / (high - low) * (box.bottom - box.top);
    const svg = make("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": plot.dataset.alt }, canvas);
    levels.forEach((level, i) => {
      make("line", { x1: box.left, x2: box.right, y1: Y(level), y2: Y(level), class: "grid" }, svg);
      make("text", { x: box.left - 7, y: Y(level) + 4, "text-anchor": "end" }, svg, labels[i]);
    });
    const places = chart.logarithmic ? [...Array(8).keys()].map(k => 10 ** k).filter(x => scale(x) >= left && scale(x) <= right) : ticks(left, right, width / 90);
    for (const x of places) {
      const label = show(x, 7);  // whose last one must not leave the picture
      make("text", { x: Math.min(X(x), width - 1 - 3.5 * label.length), y: box.bottom + 17, "text-anchor": "middle" }, svg, label);
    }
    make("text", { x: box.right, y: height - 4, "text-anchor": "end" }, svg, chart.axes[axis]);
    const id = `clip${++clips}`, clip = make("clipPath", { id }, svg);
    make("rect", { x: box.left - 4, y: box.top - 4, width: box.right - box.left + 8, height: box.bottom - box.top + 5 }, clip);
    const inside = make("g", { "clip-path": `url(#${id})` }, svg);
    if (axis === 0) for (const [x, text] of chart.marks) {
      make("line", { x1: X(x), x2: X(x), y1: box.top, y2: box.bottom, class: "rule" }, inside);
      const end = X(x) > (box.left + box.right) / 2;
      make("text", { x: X(x) + (end ? -5 : 5), y: box.top + 8, "text-anchor": end ? "end" : "start" }, svg, text);
    }
    series.forEach((s, i) => {
      const known = s.x[axis].map((x, k) => [x, s.y[k]]).filter(([x, y]) => x !== null && y !== null);
      if (!known.length) return;
      if (chart.kind === "bars") {
        const half = known.length > 1 ? (known[1][0] - known[0][0]) / 2 : 0.5;
        const steps = known.map(([x, y]) => `V${Y(y)}H${X(x + half)}`).join("");
        make("path", { d: `M${X(known[0][0] - half)} ${Y(0)}${steps}V${Y(0)}Z`, class: `area s${s.color % 6}` }, inside);
        return;
      }
      make("path", { d: "M" + known.map(([x, y]) => `${X(x).toFixed(1)} ${Y(y).toFixed(1)}`).join("L"), class: `stroke s${s.color % 6}`, "stroke-dasharray": dashes[Math.floor(s.color / 6) % 4] }, inside);
      if (known.length <= 30) for (const [x, y] of known) make("circle", { cx: X(x), cy: Y(y), r: 2.75, class: `dot s${s.color % 6}` }, inside);
    });
    const pointer = make("g", {}, inside);
    geometry = { X, Y, box, svg, width, xs, pointer };
    canvas.setAttribute("aria-valuemax", xs.length - 1);
    read(cursor);
  }

  function read(k) {
    const { X, Y, box, xs, pointer } = geometry;
    cursor = Math.min(k, xs.length - 1);
    pointer.replaceChildren();
    canvas.setAttribute("aria-valuenow", Math.max(0, cursor));
    const at = cursor < 0 ? null : xs[cursor];
    place.textContent = at === null ? "" : `${chart.axes[axis]} ${show(at)}`;
    if (at !== null) make("line", { x1: X(at), x2: X(at), y1: box.top, y2: box.bottom, class: "rule" }, pointer);
    const said = series.map((s, i) => {
      const xsOf = s.x[axis], n = nearest(xsOf, at ?? 0), [first, last] = extent(xsOf), gap = (last - first) / Math.max(1, xsOf.length - 1);
      const known = at !== null && at >= first - gap && at <= last + gap && s.y[n] !== null;
      readings[i].textContent = at === null ? "" : known ? show(s.y[n], digits[i]) : "–";
      if (known) make("circle", { cx: X(xsOf[n]), cy: Y(s.y[n]), r: 4, class: `dot s${s.color % 6}` }, pointer);
      return `${s.name || chart.title} ${known ? show(s.y[n], digits[i]) : "none"}`;
    });
    canvas.setAttribute("aria-valuetext", at === null ? "no value chosen; arrow keys choose one" : `${place.textContent}: ${said.join(", ")}`);
  }

  const follow = event => {
    const { X, xs, svg, width } = geometry, frame = svg.getBoundingClientRect();
    read(nearest(xs.map(X), (event.clientX - frame.left) * width / frame.width));
  };
  canvas.addEventListener("pointermove", follow);
  canvas.addEventListener("pointerdown", follow);
  canvas.addEventListener("pointerleave", event => event.pointerType === "mouse" && document.activeElement !== canvas && read(-1));
  canvas.addEventListener("keydown", event => {
    const last = geometry.xs.length - 1, far = Math.max(1, Math.round(last / 10));
    const to = { ArrowRight: cursor + 1, ArrowUp: cursor + 1, ArrowLeft: cursor - 1, ArrowDown: cursor - 1, PageUp: cursor + far, PageDown: cursor - far, Home: 0, End: last, Escape: -1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    read(event.key === "Escape" ? -1 : Math.max(0, Math.min(last, to)));
  });
  let drawn = 0;
  new ResizeObserver(() => { if (canvas.clientWidth !== drawn) { drawn = canvas.clientWidth; draw(); } }).observe(canvas);
  draw();
}

function drawIntervals(plot, { rows, unit }) {
  const still = make("div", { class: "still" }, plot);
  function draw() {
    still.replaceChildren();
    const width = Math.max(260, still.clientWidth), narrow = width < 560, pitch = narrow ? 50 : 40;
    const box = { left: narrow ? 8 : 150, right: width - (narrow ? 8 : 130), bottom: 14 + pitch * rows.length };
    const reach = rows.flatMap(r => [r.monte_carlo, r.images].flatMap(e => [r.value - (e ?? 0), r.value + (e ?? 0)]));
    let [low, high] = extent(reach);
    const pad = 0.05 * (high - low) || 0.5;
    low -= pad; high += pad;
    const X = x => box.left + (x - low) / (high - low) * (box.right - box.left);
    const svg = make("svg", { viewBox: `0 0 ${width} ${box.bottom + 32}`, role: "img", "aria-label": plot.dataset.alt }, still);
    for (const x of ticks(low, high, (box.right - box.left) / 80)) {
      make("line", { x1: X(x), x2: X(x), y1: 4, y2: box.bottom, class: "grid" }, svg);
      make("text", { x: X(x), y: box.bottom + 16, "text-anchor": "middle" }, svg, show(x, 7));
    }
    make("text", { x: box.right, y: box.bottom + 30, "text-anchor": "end" }, svg, unit);
    rows.forEach((r, i) => {
      const y = 14 + pitch * (i + (narrow ? 0.72 : 0.5)), said = `${r.value.toFixed(3)}${r.monte_carlo === null ? "" : ` ± ${r.monte_carlo.toFixed(3)}`}`;
      make("text", { x: narrow ? box.left : 0, y: narrow ? y - 14 : y + 4 }, svg, r.name);
      make("text", { x: width - (narrow ? 8 : 0), y: narrow ? y - 14 : y + 4, "text-anchor": "end", class: "value" }, svg, said);
      for (const [error, thickness] of [[r.images, 1.25], [r.monte_carlo, 7]])
        if (error !== null) make("line", { x1: X(r.value - error), x2: X(r.value + error), y1: y, y2: y, class: `stroke s${i % 6}`, style: `stroke-width:${thickness}` }, svg);
      make("circle", { cx: X(r.value), cy: y, r: 4, class: `dot s${i % 6}`, style: "stroke:none" }, svg);
    });
  }
  let drawn = 0;
  new ResizeObserver(() => { if (still.clientWidth !== drawn) { drawn = still.clientWidth; draw(); } }).observe(still);
}

for (const plot of document.querySelectorAll(".plot")) {
  const chart = JSON.parse(plot.dataset.chart);
  (chart.kind === "intervals" ? drawIntervals : drawChart)(plot, chart);
}
