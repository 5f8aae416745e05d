"use strict";
/* A few charts in plain SVG: lines, a scatter, rows with a dot and an interval. One unit is one CSS pixel;
   colours are CSS variables, so a change of theme needs no redrawing. */

const SVG_SPACE = "http://www.w3.org/2000/svg";

function element(tag, attributes, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

function shape(tag, attributes, ...children) {
  return fill(document.createElementNS(SVG_SPACE, tag), attributes, children);
}

function fill(node, attributes, children) {
  for (const [key, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (key === "style") node.style.cssText = value;
    else node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

/* Scales and ticks */

function ticksBetween(low, high, count, whole) {
  const raw = whole ? Math.max(1, (high - low) / count) : (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = (whole ? [1, 2, 5, 10] : [1, 2, 2.5, 5, 10]).map((m) => m * power).find((s) => s >= raw * 0.999);
  const out = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + step * 1e-9; k += 1) out.push(Number((k * step).toPrecision(12)));
  return out;
}

function logTicksBetween(low, high) {
  const decades = Math.log10(high / low);
  const marks = decades > 3 ? [1] : decades > 1.3 ? [1, 3] : [1, 2, 5];
  const out = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power += 1) {
    for (const mark of marks) {
      const value = mark * 10 ** power;
      if (value >= low * 0.999 && value <= high * 1.001) out.push(Number(value.toPrecision(6)));
    }
  }
  return out.length > 1 ? out : ticksBetween(low, high, 3);
}

function makeScale(domain, range, log) {
  const place = log ? Math.log : (value) => value;
  const a = place(domain[0]), b = place(domain[1]);
  const span = b - a || 1;
  const scale = (value) => range[0] + ((place(value) - a) / span) * (range[1] - range[0]);
  scale.domain = domain;
  return scale;
}

function extent(values) {
  let low = Infinity, high = -Infinity;
  for (const value of values) { if (value < low) low = value; if (value > high) high = value; }
  return low <= high ? [low, high] : null;
}

function yDomain(values, spec) {
  const found = extent(values.filter((v) => v !== null && (!spec.log || v > 0)));
  if (!found) return null;
  let [low, high] = found;
  if (spec.log) return [low / 1.12, high * 1.12];
  if (spec.zero) low = Math.min(0, low);
  const pad = (high - low || Math.abs(high) || 1) * 0.05;
  return [spec.zero && low === 0 ? 0 : Math.max(low - pad, spec.floor ?? -Infinity), Math.min(high + pad, spec.ceiling ?? Infinity)];
}

/* Labels that would overlap are moved apart, as little as possible, and kept between `low` and `high`. */
function moveApart(labels, gap, low, high) {
  labels.sort((a, b) => a.y - b.y);
  let floor = low;
  for (const label of labels) { label.at = Math.max(label.y, floor); floor = label.at + gap; }
  let ceiling = high;
  for (const label of [...labels].reverse()) { label.at = Math.min(label.at, ceiling); ceiling = label.at - gap; }
}

/* At most `most` of a list, evenly over it, with its first and last: more names than there is room for would cover all. */
function spread(list, most) {
  return list.length <= most ? list : list.filter((_, k) => Math.round((Math.round((k * (most - 1)) / (list.length - 1)) * (list.length - 1)) / (most - 1)) === k);
}

let measuring = null;
function textWidth(text, bold) {
  measuring = measuring || document.createElement("canvas").getContext("2d");
  measuring.font = `${bold ? 600 : 400} 12px ${getComputedStyle(document.documentElement).getPropertyValue("--sans")}`;
  return measuring.measureText(text).width;
}

function clipped(text, most) {
  return text.length > most ? `${text.slice(0, most - 1)}…` : text;
}

/* Lines.
   spec: series [{label, colour, points [[x, y]], thin, fine, dash, stepped, end, marks (weights of the points)}], x {label,
   domain, format, parts}, y {format, log, zero, mirrored, floor, ceiling, domain}, rugs [{colour, at [x]}], height. */
function lineChart(host, spec) {
  host.replaceChildren();
  const series = spec.series.filter((s) => s.points.some((p) => p[1] !== null));
  if (!series.length) { host.append(element("p", { class: "note" }, "Nothing to show: all arms are switched off.")); return; }
  const width = Math.max(260, host.clientWidth || 600);
  const rugs = (spec.rugs || []).filter((rug) => rug.at.length);
  const ends = spread(series.filter((s) => s.end), Math.floor(((spec.height || 250) - 10) / 14));
  const right = ends.length ? Math.min(150, Math.max(...ends.map((s) => textWidth(clipped(s.end, 22), true))) + 16) : 10;
  const domain = spec.y.domain || yDomain(series.flatMap((s) => s.points.map((p) => p[1])), spec.y);
  const yTicks = spec.y.log ? logTicksBetween(...domain) : ticksBetween(...domain, 4);
  const left = Math.max(...yTicks.map((t) => textWidth(spec.y.format(t)))) + 12;
  const plotHeight = spec.height || 250, top = 10, rugTop = plotHeight + 5, rugHeight = rugs.length * 8;
  const height = plotHeight + rugHeight + 40;
  const x = makeScale(spec.x.domain, [left, width - right]);
  const y = makeScale(domain, [plotHeight, top], spec.y.log);
  const root = shape("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", tabindex: 0, "aria-label": describe(spec, series) });
  const clip = `clip-${(lineChart.count = (lineChart.count || 0) + 1)}`;
  root.append(shape("clipPath", { id: clip }, shape("rect", { x: left, y: top - 6, width: width - right - left + 4, height: plotHeight - top + 8 })));

  for (const tick of yTicks) {
    root.append(shape("line", { class: tick === 0 && spec.y.mirrored ? "axis" : "grid", x1: left, x2: width - right, y1: y(tick), y2: y(tick) }),
      shape("text", { x: left - 8, y: y(tick) + 4, "text-anchor": "end" }, spec.y.format(tick)));
  }
  const base = plotHeight + rugHeight + (rugs.length ? 6 : 0);
  root.append(shape("line", { class: "axis", x1: left, x2: width - right, y1: plotHeight, y2: plotHeight }));
  const xTicks = ticksBetween(...spec.x.domain, Math.max(2, Math.floor((width - left - right) / 52)), !spec.x.parts);
  for (const tick of xTicks) root.append(shape("text", { x: x(tick), y: base + 17, "text-anchor": "middle" }, spec.x.format(tick)));
  root.append(shape("text", { x: width - right, y: base + 34, "text-anchor": "end" }, spec.x.label));
  rugs.forEach((rug, lane) => {
    const path = rug.at.map((at) => `M${x(at).toFixed(1)} ${rugTop + lane * 8}v5.5`).join("");
    root.append(shape("path", { d: path, style: `stroke: ${rug.colour}; stroke-width: 1.4; fill: none` }));
  });

  const lines = shape("g", { "clip-path": `url(#${clip})` });
  root.append(lines);
  for (const s of series) {
    const style = `fill: none; stroke: ${s.colour}; stroke-linejoin: round; stroke-linecap: ${s.dash ? "butt" : "round"}; stroke-width: ${s.thin ? 1 : s.fine ? 1.3 : 2}; ${s.thin ? "opacity: .6;" : ""} ${s.dash ? `stroke-dasharray: ${s.dash}` : ""}`;
    lines.append(shape("path", { d: linePath(s, x, y, spec.y.log), style }));
    if (s.marks) s.points.forEach(([px, py], k) => root.append(shape("circle", { class: "dot", cx: x(px), cy: y(py), r: 1.8 + 6 * Math.sqrt(s.marks[k] / Math.max(...s.marks)), style: `fill: ${s.colour}` })));
  }
  const labels = ends.map((s) => ({ s, y: Math.min(plotHeight, Math.max(top, y(lastOf(s.points)))) }));
  moveApart(labels, 14, top, plotHeight - 2);
  const endOf = (s) => x(Math.max(...s.points.filter((p) => p[1] !== null).map((p) => p[0]))) + 9;
  for (const label of labels) root.append(shape("text", { class: "name", x: Math.min(endOf(label.s), width - right + 9), y: label.at + 4, style: `fill: ${label.s.colour}` }, clipped(label.s.end, 22)));
  host.append(root);
  hover(host, root, spec, series, x, y, { left, right: width - right, top, bottom: plotHeight, width });
}

function lastOf(points) {
  for (let k = points.length - 1; k >= 0; k -= 1) if (points[k][1] !== null) return points[k][1];
  return 0;
}

function linePath(s, x, y, log) {
  let path = "", pen = "M", before = null;
  for (const [px, py] of s.points) {
    if (py === null || (log && py <= 0)) { pen = "M"; before = null; continue; }
    const at = `${x(px).toFixed(1)} ${y(py).toFixed(1)}`;
    path += s.stepped && before !== null ? `H${x(px).toFixed(1)}V${y(py).toFixed(1)}` : `${pen}${at}`;
    pen = "L"; before = py;
  }
  return path;
}

function describe(spec, series) {
  const parts = series.filter((s) => s.label).map((s) => `${s.label} ends at ${spec.y.format(lastOf(s.points))}`);
  return `${spec.title || "line chart"}: ${parts.join(", ")}`;
}

/* The values at one place on the x axis: under the pointer, or by the arrow keys. */
function hover(host, root, spec, series, x, y, box) {
  const places = [...new Set(series.flatMap((s) => s.points.map((p) => p[0])))].sort((a, b) => a - b);
  const cross = shape("line", { class: "cross", y1: box.top, y2: box.bottom, visibility: "hidden" });
  const dots = shape("g", {});
  root.append(cross, dots);
  const tip = element("div", { class: "tip" });
  host.append(tip);
  let current = -1;
  const show = (index) => {
    current = Math.max(0, Math.min(places.length - 1, index));
    const at = places[current];
    fill(cross, { x1: x(at), x2: x(at), visibility: "visible" }, []);
    dots.replaceChildren();
    const rows = [];
    for (const s of series) {
      const value = valueAt(s, at);
      if (value === null || value === undefined) continue;
      rows.push({ s, value });
      if (!s.thin && value >= y.domain[0]) dots.append(shape("circle", { class: "dot", cx: x(at), cy: y(value), r: 4, style: `fill: ${s.colour}` }));
    }
    rows.sort((a, b) => b.value - a.value);
    tip.replaceChildren(element("b", {}, `${spec.x.name || spec.x.label} ${spec.x.format(at)}`),
      ...rows.slice(0, 14).map(({ s, value }) => element("div", {}, element("i", { style: `--c: ${s.colour}` }, s.label), element("span", {}, (spec.y.exact || spec.y.format)(value)))));
    tip.style.display = "block";
    const share = host.clientWidth / box.width;
    const onLeft = x(at) * share > host.clientWidth / 2;
    tip.style.left = onLeft ? "auto" : `${x(at) * share + 14}px`;
    tip.style.right = onLeft ? `${host.clientWidth - x(at) * share + 14}px` : "auto";
  };
  const hide = () => { cross.setAttribute("visibility", "hidden"); dots.replaceChildren(); tip.style.display = "none"; current = -1; };
  root.addEventListener("pointermove", (event) => {
    const frame = root.getBoundingClientRect();
    const px = ((event.clientX - frame.left) / frame.width) * box.width;
    let nearest = 0;
    places.forEach((place, index) => { if (Math.abs(x(place) - px) < Math.abs(x(places[nearest]) - px)) nearest = index; });
    show(nearest);
  });
  root.addEventListener("pointerleave", hide);
  root.addEventListener("blur", hide);
  root.addEventListener("keydown", (event) => {
    const move = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (event.key === "Escape") hide();
    if (!move) return;
    event.preventDefault();
    show(current < 0 ? (move > 0 ? 0 : places.length - 1) : current + move);
  });
}

function valueAt(s, at) {
  let value;
  for (const [px, py] of s.points) {
    if (px === at) return py;
    if (s.stepped && px < at) value = py;
  }
  return value;
}

/* Points with names. points: [{x, y, low, high, seeds, from, best, colour, label, name}]: `low` to `high` is a spread, `seeds`
   [[x, y]] are drawn faint, `from` is the height of a ring (a teacher's); a line joins the `best`. */
function scatterChart(host, spec) {
  host.replaceChildren();
  if (!spec.points.length) { host.append(element("p", { class: "note" }, "Nothing to show: all arms are switched off.")); return; }
  const width = Math.max(260, host.clientWidth || 600), plotHeight = spec.height || 280, top = 16, right = 20;
  const found = extent(spec.points.map((p) => p.x));
  const xDomain = [found[0] / 1.5, found[1] * 1.9];
  const domain = yDomain(spec.points.flatMap((p) => [p.low, p.high]), spec.y);
  const yTicks = ticksBetween(...domain, 5);
  const left = Math.max(...yTicks.map((t) => textWidth(spec.y.format(t)))) + 12;
  const x = makeScale(xDomain, [left, width - right], true), y = makeScale(domain, [plotHeight, top]);
  const root = shape("svg", { viewBox: `0 0 ${width} ${plotHeight + 40}`, role: "img", "aria-label": spec.points.map((p) => `${p.label}: ${spec.y.format(p.y)} % at ${spec.x.format(p.x)}${p.best ? ", on the Pareto front" : ""}`).join("; ") });
  for (const tick of yTicks) {
    root.append(shape("line", { class: "grid", x1: left, x2: width - right, y1: y(tick), y2: y(tick) }), shape("text", { x: left - 8, y: y(tick) + 4, "text-anchor": "end" }, spec.y.format(tick)));
  }
  root.append(shape("line", { class: "axis", x1: left, x2: width - right, y1: plotHeight, y2: plotHeight }));
  for (const tick of logTicksBetween(...xDomain)) {
    root.append(shape("line", { class: "axis", x1: x(tick), x2: x(tick), y1: plotHeight, y2: plotHeight + 4 }), shape("text", { x: x(tick), y: plotHeight + 18, "text-anchor": "middle" }, spec.x.format(tick)));
  }
  root.append(shape("text", { x: width - right, y: plotHeight + 36, "text-anchor": "end" }, spec.x.label));
  const labels = spec.points.filter((p) => p.name).map((p) => ({ p, y: y(p.y) }));
  moveApart(labels, 15, top, plotHeight - 4);
  const front = spec.points.filter((p) => p.best).sort((a, b) => a.x - b.x);
  // A staircase: between two arms of the front one gets the accuracy of the cheaper for the price of the dearer.
  const stairs = front.map((p, k) => (k ? `H${x(p.x).toFixed(1)}V${y(p.y).toFixed(1)}` : `M${x(p.x).toFixed(1)} ${y(p.y).toFixed(1)}`)).join("");
  if (front.length > 1) root.append(shape("path", { class: "front", d: stairs }));
  for (const p of spec.points) {
    const px = x(p.x), py = y(p.y);
    for (const [sx, sy] of p.seeds) root.append(shape("circle", { cx: x(sx), cy: y(sy), r: 2.5, style: `fill: ${p.colour}; opacity: .45` }));
    if (p.high > p.low) root.append(shape("line", { x1: px, x2: px, y1: y(p.low), y2: y(p.high), style: `stroke: ${p.colour}; stroke-width: 1.5` }));
    if (p.from !== null && p.from !== undefined && p.from >= domain[0]) root.append(shape("line", { x1: px, x2: px, y1: y(p.from), y2: py, style: `stroke: ${p.colour}; opacity: .5` }), shape("circle", { cx: px, cy: y(p.from), r: 4.5, style: `fill: var(--ground); stroke: ${p.colour}; stroke-width: 2` }));
    root.append(shape("circle", { class: "dot", cx: px, cy: py, r: 5.5, style: `fill: ${p.colour}` }, shape("title", {}, `${p.label}: ${spec.y.format(p.y)} % at ${spec.x.format(p.x)}`)));
    if (p.best) root.append(shape("circle", { cx: px, cy: py, r: 8.5, style: `fill: none; stroke: ${p.colour}` }));
  }
  for (const { p, at } of labels) {
    const px = x(p.x), py = y(p.y);
    // The front comes from below and goes on to the right: the left is free there.
    const room = textWidth(p.name, true) + 16, beyond = px + room > width || (p.best && front.length > 1 && px - room > left);
    if (Math.abs(at - py) > 4) root.append(shape("line", { x1: px, x2: px + (beyond ? -11 : 11), y1: py, y2: at, style: `stroke: ${p.colour}; opacity: .5` }));
    root.append(shape("text", { class: "name", x: px + (beyond ? -13 : 13), y: at + 4, "text-anchor": beyond ? "end" : "start", style: `fill: ${p.colour}` }, clipped(p.name, 30)));
  }
  host.append(root);
}

/* Rows of marks on one axis. rows: [{label, colour, low, high, ring, disc}] ; low to high is drawn as a line. */
function rowChart(host, spec) {
  host.replaceChildren();
  const width = Math.max(260, host.clientWidth || 600), gap = 34, top = 8;
  const bottom = top + gap * spec.rows.length;
  const left = Math.min(190, Math.max(...spec.rows.map((r) => textWidth(clipped(r.label, 26), true))) + 18), right = 60;
  const values = spec.rows.flatMap((r) => [r.low, r.high, r.ring, r.disc]).filter((v) => v !== null && v !== undefined);
  if (spec.zero) values.push(0);
  const found = extent(values), pad = (found[1] - found[0] || 1) * 0.08;
  const x = makeScale([found[0] - pad, Math.min(found[1] + pad, spec.ceiling ?? Infinity)], [left, width - right]);
  const root = shape("svg", { viewBox: `0 0 ${width} ${bottom + 36}`, role: "img", "aria-label": spec.title });
  for (const tick of ticksBetween(...x.domain, Math.max(2, Math.floor((width - left - right) / 110)))) {
    root.append(shape("line", { class: tick === 0 && spec.zero ? "zero" : "grid", x1: x(tick), x2: x(tick), y1: top, y2: bottom }), shape("text", { x: x(tick), y: bottom + 16, "text-anchor": "middle" }, spec.format(tick)));
  }
  root.append(shape("text", { x: width - right, y: bottom + 33, "text-anchor": "end" }, spec.label));
  spec.rows.forEach((row, index) => {
    const cy = top + gap * (index + 0.5);
    const colour = `fill: ${row.colour}; stroke: ${row.colour}`;
    root.append(shape("text", { class: "name", x: left - 14, y: cy + 4, "text-anchor": "end", style: `fill: ${row.colour}` }, clipped(row.label, 26)));
    if (row.low !== null && row.low !== undefined) root.append(shape("line", { x1: x(row.low), x2: x(row.high), y1: cy, y2: cy, style: `${colour}; stroke-width: 2` }));
    if (row.ring !== null && row.ring !== undefined) root.append(shape("circle", { cx: x(row.ring), cy, r: 5.5, style: `fill: var(--ground); stroke: ${row.colour}; stroke-width: 2` }), shape("text", { x: x(row.ring), y: cy - 11, "text-anchor": "middle" }, spec.format(row.ring)));
    if (row.disc !== null && row.disc !== undefined) root.append(shape("circle", { class: "dot", cx: x(row.disc), cy, r: 6, style: colour.replace(/stroke.*/, "") }), shape("text", { class: "name", x: x(row.disc), y: cy - 11, "text-anchor": "middle" }, spec.exact ? spec.exact(row.disc) : spec.format(row.disc)));
  });
  host.append(root);
}

/* Amounts that come out of each other by factors, on one logarithmic axis. rows: [{label, value, joule}] */
function cascadeChart(host, spec) {
  host.replaceChildren();
  const width = Math.max(260, host.clientWidth || 400), gap = 40, top = 4, bottom = top + gap * spec.rows.length;
  const left = Math.max(...spec.rows.map((row) => textWidth(row.label))) + 16;
  const right = Math.max(...spec.rows.map((row) => Math.max(textWidth(spec.format(row.value), true), textWidth(si(row.joule, "J"))))) + 16;
  const x = makeScale(spec.domain, [left, width - right], true);
  const at = (value) => x(Math.max(value, spec.domain[0]));
  const root = shape("svg", { viewBox: `0 0 ${width} ${bottom + 22}`, role: "img", "aria-label": `${spec.title}: ${spec.rows.map((row) => `${row.label} ${spec.format(row.value)}`).join(", ")}` });
  for (let power = Math.ceil(Math.log10(spec.domain[0])); 10 ** power <= spec.domain[1]; power += 1) {
    root.append(shape("line", { class: "grid", x1: x(10 ** power), x2: x(10 ** power), y1: top, y2: bottom }), shape("text", { x: x(10 ** power), y: bottom + 15, "text-anchor": "middle" }, spec.format(10 ** power)));
  }
  spec.rows.forEach((row, k) => {
    const y = top + gap * (k + 0.5), before = k ? spec.rows[k - 1].value : null, last = k === spec.rows.length - 1;
    root.append(shape("text", { x: left - 12, y: y + 4, "text-anchor": "end" }, row.label));
    if (before && row.value) {
      const factor = row.value / before;
      root.append(shape("line", { x1: at(before), x2: at(before), y1: y - gap + 6, y2: y, class: "cross" }));
      root.append(shape("line", { x1: at(before), x2: at(row.value), y1: y, y2: y, style: `stroke: ${spec.colour}; stroke-width: 5; opacity: .35` }));
      if (Math.abs(at(before) - at(row.value)) > 30) root.append(shape("text", { x: (at(before) + at(row.value)) / 2, y: y - 7, "text-anchor": "middle" }, factor >= 1 ? `× ${Number(factor.toPrecision(3))}` : `÷ ${Number((1 / factor).toPrecision(2))}`));
    }
    root.append(shape("circle", { class: "dot", cx: at(row.value), cy: y, r: last ? 6 : 4.5, style: `fill: ${spec.colour}` }));
    root.append(shape("text", { class: "name", x: width, y: y - 1, "text-anchor": "end", style: `fill: ${last ? spec.colour : "var(--ink)"}` }, spec.format(row.value)));
    root.append(shape("text", { x: width, y: y + 13, "text-anchor": "end" }, si(row.joule, "J")));
  });
  host.append(root);
}
