"use strict";
/* The page: which arms are shown, what each chart draws, and the three things a reader moves (arms, event, constants). */

const page = JSON.parse(document.getElementById("data").textContent);
const runs = page.runs;
const hidden = new Set();
const charts = []; // functions that draw one chart again
const repaints = []; // functions that paint canvases again, when the theme has changed
const find = (selector) => document.querySelector(selector);
const colourOf = (run) => `var(--arm-${run.colour})`;
const shown = () => runs.filter((run) => !hidden.has(run.name));
const several = runs.length > new Set(runs.map((run) => run.name)).size; // an arm with several seeds is named once
const nameOf = (run) => (!several ? run.label : runs.find((other) => other.name === run.name) === run ? run.name : null);
const firstSeeds = () => shown().filter((run) => runs.find((other) => other.name === run.name) === run);

/* Numbers as text */

function si(value, unit = "") {
  if (value === null || value === undefined) return "–";
  if (value === 0) return `0 ${unit}`.trim();
  for (const [power, prefix] of [[12, "T"], [9, "G"], [6, "M"], [3, "k"], [0, ""], [-3, "m"], [-6, "µ"], [-9, "n"], [-12, "p"]]) {
    const scaled = value / 10 ** power;
    if (Math.abs(scaled) >= 0.9995 || power === -12) {
      const digits = Math.abs(scaled) >= 99.95 ? 0 : Math.abs(scaled) >= 9.995 ? 1 : 2;
      return `${scaled.toFixed(digits)} ${prefix}${unit}`.trim();
    }
  }
}
const short = (value) => si(value).replace(/\.0+(?=\s|$)/, "").replace(/(\.\d*?)0+(?=\s|$)/, "$1");
const count = (value) => (value === null || value === undefined ? "–" : Math.round(value).toLocaleString("en"));
const percent = (value, digits = 1) => (value === null || value === undefined ? "–" : (100 * value).toFixed(digits));
const trimmed = (value) => String(Number(value.toPrecision(6)));
const share = (value) => trimmed(100 * value);
function density(value) {
  if (value === null || value === undefined) return "–";
  const points = 100 * value;
  return points.toFixed(points >= 99.95 ? 0 : points >= 9.995 ? 1 : points >= 0.9995 ? 2 : 3);
}

/* Optimiser steps as epochs, so that events and epochs share one axis. */
function epochOf(run, step) {
  const { step: steps, epoch: epochs } = run.epochs;
  if (!steps.length) return step;
  let before = [0, 0];
  for (let k = 0; k < steps.length; k += 1) {
    if (step <= steps[k]) return before[1] + ((step - before[0]) / (steps[k] - before[0])) * (epochs[k] - before[1]);
    before = [steps[k], epochs[k]];
  }
  return (step / steps[steps.length - 1]) * epochs[epochs.length - 1];
}
const lastEpoch = Math.max(1, ...runs.flatMap((run) => run.epochs.epoch));
const epochAxis = { label: "epoch", domain: [0, lastEpoch], format: trimmed, name: "epoch" };
const eventAxis = { ...epochAxis, format: (value) => (Number.isInteger(value) ? String(value) : value.toFixed(1)) };

function lineOf(run, key) { return run.epochs.epoch.map((epoch, k) => [epoch, run.epochs[key][k]]); }
function rugs() {
  const seen = new Set();
  return shown().filter((run) => run.structure.step.length > 1 && !seen.has(run.name) && seen.add(run.name))
    .map((run) => ({ colour: colourOf(run), at: run.structure.step.slice(1).map((step) => epochOf(run, step)) }));
}

function figure(name, available, draw) {
  const node = find(`[data-figure="${name}"]`);
  if (!node) return;
  node.hidden = !available;
  if (!available) return;
  const section = node.closest("section");
  section.hidden = false;
  const host = node.querySelector(".chart, .multiples");
  charts.push(() => draw(host, node));
}

/* Small multiples: one chart an arm, all on the same axes. */
function multiples(host, node, chosen, seriesOf, spec) {
  host.replaceChildren();
  const note = node.querySelector("[data-seed]");
  if (note) note.textContent = several ? "Of several seeds the first is shown." : "";
  const all = chosen.map((run) => [run, seriesOf(run)]);
  const domain = spec.y.domain || yDomain(all.flatMap(([, series]) => series.flatMap((s) => s.points.map((p) => p[1]))), spec.y);
  if (!domain) { host.append(element("p", { class: "note" }, "Nothing to show: all arms are switched off.")); return; }
  for (const [run, series] of all) {
    const chart = element("div", { class: "chart" });
    host.append(element("div", {}, element("h4", { style: `color: ${colourOf(run)}` }, run.label, spec.beside ? element("small", {}, spec.beside(run)) : null), chart));
    lineChart(chart, { height: 170, ...spec, series, title: `${spec.title}, ${run.label}`, y: { ...spec.y, domain } });
  }
}

const layerName = (name) => name.replace(/\.weight$/, "");
function depthColour(index, of) {
  const at = of > 1 ? (index / (of - 1)) * 3 : 0, low = Math.min(2, Math.floor(at)), part = Math.round((at - low) * 100);
  return `color-mix(in oklab, var(--depth-${low + 1}) ${part}%, var(--depth-${low}))`;
}

/* Learning */

function learningLines(split) {
  return shown().flatMap((run) => {
    const validated = run.epochs.valid_accuracy.some((value) => value !== null);
    const valid = { label: run.label, colour: colourOf(run), points: lineOf(run, `valid_${split}`), fine: several, end: nameOf(run) };
    const train = { ...valid, label: `${run.label}, training`, points: lineOf(run, `train_${split}`), thin: validated, end: validated ? null : nameOf(run) };
    return !validated ? [train] : several ? [valid] : [train, valid];
  });
}
let zoomed = false;
figure("accuracy", runs.some((run) => run.epochs.epoch.length), (host) => {
  const series = learningLines("accuracy");
  const late = series.flatMap((s) => s.points.filter((p) => p[0] > lastEpoch / 2).map((p) => p[1]));
  const y = { format: share, exact: (v) => `${percent(v)} %`, ceiling: 1, floor: 0 };
  lineChart(host, { title: "accuracy by epoch", series, x: { ...epochAxis, domain: zoomed ? [lastEpoch / 2, lastEpoch] : [0, lastEpoch] }, y: zoomed ? { ...y, domain: yDomain(late, y) } : y, rugs: zoomed ? [] : rugs() });
});
figure("loss", runs.some((run) => run.epochs.epoch.length), (host) => {
  const series = learningLines("loss");
  lineChart(host, { title: "loss by epoch", series, x: epochAxis, y: { format: trimmed, exact: (v) => v.toPrecision(3), log: true }, rugs: rugs() });
});
if (several) find("#learning > .note").firstChild.textContent = "One line a seed, on the validation split. Each tick under the axis is a rewiring event of that arm. The arms can be switched off and on in the bar above.";
find("[data-zoom]").addEventListener("click", (event) => {
  zoomed = !zoomed;
  event.target.setAttribute("aria-pressed", zoomed);
  event.target.textContent = zoomed ? "all epochs" : "zoom to the last half";
  redraw();
});

/* Results */

const finished = runs.filter((run) => run.result);
function accuracyAgainst(cost, label) {
  return (host) => scatterChart(host, {
    points: page.frontier.filter((point) => point[cost] > 0 && !hidden.has(runs[point.run].name)).map((point) => {
      const run = runs[point.run];
      return { x: point[cost], y: point.accuracy, low: point.low, high: point.high, seeds: point.n > 1 ? point.seeds.map((seed) => [seed[cost === "operations" ? 0 : 1], seed[2]]) : [],
        from: point.teacher, best: point[`best_${cost}`], colour: colourOf(run), name: run.name, label: point.n > 1 ? `${run.name}, mean of ${point.n} seeds` : run.name };
    }),
    x: { label, format: short }, y: { format: share, ceiling: 1 },
  });
}
const compared = page.frontier.length > 1;
figure("frontier", compared && page.frontier.some((point) => point.operations > 0), accuracyAgainst("operations", "synaptic operations per sample"));
figure("connections-frontier", compared && page.frontier.some((point) => point.connections > 0), accuracyAgainst("connections", "connections"));
figure("forest", (page.forest || []).length > 0, (host) => {
  const named = Object.fromEntries(runs.map((run) => [run.name, run]));
  rowChart(host, {
    title: "paired differences", zero: true, label: "percentage points", format: trimmed, exact: (v) => (v > 0 ? "+" : "") + v.toFixed(2),
    rows: page.forest.map((row) => ({ label: row.arm, colour: colourOf(named[row.arm]), low: row.low, high: row.high, disc: row.mean })),
  });
});

/* Structure over time */

const evolving = runs.filter((run) => run.structure.step.length > 1);
const structured = runs.filter((run) => run.layers.length && run.structure.step.length > 1);
const overEvents = (run, values) => {
  const points = run.structure.step.map((step, k) => [epochOf(run, step), values[k]]);
  const end = run.epochs.epoch[run.epochs.epoch.length - 1];
  return end > points[points.length - 1][0] ? [...points, [end, points[points.length - 1][1]]] : points; // what is kept after the last event
};
figure("exploration", evolving.length, (host) => lineChart(host, {
  title: "in-time exploration", x: eventAxis, y: { format: share, exact: (v) => `${density(v)} %`, zero: true }, height: 200,
  series: shown().filter((run) => evolving.includes(run)).map((run) => ({ label: run.label, colour: colourOf(run), end: nameOf(run), fine: several, stepped: true, points: overEvents(run, run.structure.exploration) })),
}));
figure("survival", evolving.some((run) => run.structure.survival.slice(1).some((value) => value !== null)), (host) => lineChart(host, {
  title: "survival of the first connections", x: eventAxis, y: { format: share, exact: (v) => `${density(v)} %`, zero: true, ceiling: 1 }, height: 200,
  series: shown().filter((run) => evolving.includes(run)).map((run) => ({ label: run.label, colour: colourOf(run), end: nameOf(run), fine: several, stepped: true, points: overEvents(run, run.structure.survival) })),
}));
figure("exchange", evolving.length, (host) => lineChart(host, {
  title: "exchange at each event", x: eventAxis, y: { format: (v) => share(Math.abs(v)), exact: (v) => `${density(Math.abs(v))} %`, zero: true, mirrored: true }, height: 200,
  series: shown().filter((run) => evolving.includes(run)).flatMap((run) => {
    const { dropped, grown, connections, step } = run.structure;
    const total = (table, k) => Object.values(table).reduce((sum, values) => sum + (values[k] || 0), 0);
    const part = (table, sign) => step.map((at, k) => [epochOf(run, at), (sign * total(table, k)) / Math.max(1, total(connections, k))]).slice(1);
    return [{ label: `${run.label}, grown`, colour: colourOf(run), end: nameOf(run), fine: several, points: part(grown, 1) },
      { label: `${run.label}, dropped`, colour: colourOf(run), fine: several, dash: "4 2.5", points: part(dropped, -1) }];
  }),
}));
figure("densities", structured.length, (host, node) => multiples(host, node, firstSeeds().filter((run) => structured.includes(run)),
  (run) => run.layers.filter((layer) => layer.of).map((layer, k, list) => ({ label: layerName(layer.name), colour: depthColour(k, list.length), end: layerName(layer.name), stepped: true, points: overEvents(run, run.structure.connections[layer.name].map((value) => (value === null ? null : value / layer.of))) })),
  { title: "density of each layer", x: eventAxis, y: { format: share, exact: (v) => `${density(v)} %`, log: true } }));

/* Activity */

const active = runs.filter((run) => Object.keys(run.rates).length);
figure("rates", active.length, (host, node) => multiples(host, node, firstSeeds().filter((run) => active.includes(run)),
  (run) => Object.entries(run.rates).map(([name, values], k, list) => ({ label: name, colour: depthColour(k, list.length), end: name, points: run.epochs.epoch.map((epoch, at) => [epoch, values[at]]) })),
  { title: "firing rate", x: epochAxis, y: { format: share, exact: (v) => `${density(v)} %`, zero: true } }));
if (find("#activity table")) find("#activity").hidden = false;

/* Distillation */

const distilled = runs.filter((run) => run.epochs.distill_loss.some((value) => value !== null));
const taught = finished.filter((run) => run.result.teacher && run.result.teacher.accuracy !== null && run.result.teacher.accuracy !== undefined);
figure("parts", distilled.length, (host, node) => multiples(host, node, firstSeeds().filter((run) => distilled.includes(run)),
  (run) => [
    { label: "labels", colour: colourOf(run), end: "labels", points: lineOf(run, "label_loss") },
    { label: "distillation", colour: colourOf(run), end: "distillation", dash: "5 3", points: lineOf(run, "distill_loss") },
  ], { title: "parts of the loss", x: epochAxis, y: { format: trimmed, exact: (v) => v.toPrecision(3), zero: true } }));
figure("teachers", taught.length, (host) => rowChart(host, {
  title: taught.map((run) => `${run.label}: teacher ${percent(run.result.teacher.accuracy)} %, student ${percent(run.result.accuracy.last)} %`).join("; "),
  label: "test accuracy, %", format: (v) => trimmed(Number(v.toFixed(1))), ceiling: 100,
  rows: taught.map((run) => {
    const teacher = 100 * run.result.teacher.accuracy, student = 100 * run.result.accuracy.last;
    return { label: run.label, colour: colourOf(run), low: Math.min(teacher, student), high: Math.max(teacher, student), ring: teacher, disc: student };
  }),
}));

/* Cost */

if (finished.length) {
  find("#cost").hidden = false;
  const fields = { mac: find("#mac-pj"), ac: find("#ac-pj"), repeat: find("#repeat") };
  fields.mac.defaultValue = finished[0].result.energy.mac_pj;
  fields.ac.defaultValue = finished[0].result.energy.ac_pj;
  const draw = () => {
    const mac = Number(fields.mac.value) * 1e-12, ac = Number(fields.ac.value) * 1e-12;
    const rows = finished.map((run) => {
      const { macs, macs_repeated: repeated, acs } = run.result.synops;
      const multiplied = fields.repeat.checked ? repeated : macs;
      return { run, macs: multiplied, acs, parts: [multiplied * mac, acs * ac] };
    });
    const energy = (row) => row.parts[0] + row.parts[1];
    const most = Math.max(...rows.map(energy), 1e-30);
    const dense = (row) => rows.find((other) => row.run.dense !== null && other.run === runs[row.run.dense]);
    find("#cost-rows").replaceChildren(...rows.filter((row) => !hidden.has(row.run.name)).map((row) => {
      const reference = dense(row), colour = `--c: ${colourOf(row.run)}`;
      return element("tr", {},
        element("th", { scope: "row" }, element("span", { class: "swatch", style: `background: ${colourOf(row.run)}` }), row.run.label),
        element("td", {}, si(row.macs)), element("td", {}, si(row.acs)),
        element("td", { class: "wide left" }, element("div", { class: "stack", style: colour },
          element("i", { class: "mac", style: `width: ${(100 * row.parts[0]) / most}%` }), element("i", { class: "ac", style: `width: ${(100 * row.parts[1]) / most}%` }))),
        element("td", {}, si(energy(row), "J")),
        element("td", {}, reference && energy(reference) ? `${density(energy(row) / energy(reference))} %` : "–"));
    }));
  };
  find("#constants").addEventListener("input", () => redraw());
  find("#constants").addEventListener("reset", () => setTimeout(redraw));
  find("#constants").addEventListener("submit", (event) => event.preventDefault());
  fields.mac.value = fields.mac.defaultValue;
  fields.ac.value = fields.ac.defaultValue;
  charts.push(draw);
}

/* From a dense network to the operations that are left */

const counted = finished.filter((run) => run.result.synops.dense);
figure("cascade", counted.length, (host, node) => {
  host.replaceChildren();
  const note = node.querySelector("[data-seed]");
  if (note) note.textContent = several ? "Of several seeds the first is shown." : "";
  const mac = Number(find("#mac-pj").value) * 1e-12, ac = Number(find("#ac-pj").value) * 1e-12, repeat = find("#repeat").checked;
  const all = firstSeeds().filter((run) => counted.includes(run)).map((run) => {
    const { dense, steps, macs, acs, macs_repeated: repeated } = run.result.synops;
    const again = repeat && macs ? repeated / macs : 1, own = macs * again, full = dense.macs * again;
    const unrolled = repeat ? dense.step * steps : dense.steps;
    return { run, rows: [
      { label: "dense, one step", value: dense.step, joule: dense.step * mac },
      { label: steps > 1 ? `all ${steps} steps` : "the only step", value: unrolled, joule: unrolled * mac },
      { label: "where a spike arrives", value: dense.acs + full, joule: dense.acs * ac + full * mac },
      { label: "where a connection is", value: acs + own, joule: acs * ac + own * mac },
    ] };
  });
  if (!all.length) { host.append(element("p", { class: "note" }, "Nothing to show: all arms are switched off.")); return; }
  const found = extent(all.flatMap((one) => one.rows.map((row) => row.value)).filter((value) => value > 0)) || [1, 10];
  for (const { run, rows } of all) {
    const chart = element("div", { class: "chart" });
    host.append(element("div", {}, element("h4", { style: `color: ${colourOf(run)}` }, run.label), chart));
    cascadeChart(chart, { title: `operations of ${run.label}`, rows, colour: colourOf(run), domain: [found[0] / 1.4, found[1] * 1.4], format: short });
  }
});

/* Calibration */

const calibrated = finished.filter((run) => run.result.calibration && run.result.calibration.student);
const whole = { domain: [0, 1], format: share, parts: true };
figure("calibration", calibrated.length, (host, node) => multiples(host, node, firstSeeds().filter((run) => calibrated.includes(run)),
  (run) => {
    const { student, teacher } = run.result.calibration;
    const points = (one) => one.confidence.map((at, k) => [at, one.accuracy[k]]).filter((point) => point[0] !== null);
    return [{ label: "as sure as right", colour: "var(--faint)", thin: true, dash: "3 3", points: [[0, 0], [1, 1]] },
      ...(teacher ? [{ label: "teacher", colour: colourOf(run), dash: "5 3", fine: true, points: points(teacher) }] : []),
      { label: run.label, colour: colourOf(run), fine: true, points: points(student), marks: student.count.filter((n) => n) }];
  },
  { title: "reliability", x: { ...whole, label: "confidence, %", name: "confidence" }, y: { ...whole, exact: (v) => `${percent(v)} %` }, height: 210,
    beside: ({ result: { calibration: { student, teacher } } }) => `ECE ${percent(student.ece)} %${teacher ? `, teacher ${percent(teacher.ece)} %` : ""}` }));

/* Legend, theme, copying, printing */

function swatch(run) {
  return shape("svg", { width: 16, height: 10, "aria-hidden": "true" }, shape("path", { d: "M0 5h16", style: `stroke: ${colourOf(run)}; stroke-width: 3` }));
}
for (const run of runs.filter((one) => runs.find((other) => other.name === one.name) === one)) {
  const button = element("button", { type: "button", class: "arm", "aria-pressed": "true", title: run.name }, swatch(run), element("span", {}, run.name));
  button.addEventListener("click", () => {
    if (!hidden.delete(run.name)) hidden.add(run.name);
    button.setAttribute("aria-pressed", !hidden.has(run.name));
    redraw();
  });
  find("#legend").append(button);
}

function setTheme(theme, keep) {
  document.documentElement.dataset.theme = theme;
  find("#theme").textContent = theme === "dark" ? "light" : "dark";
  find("#theme").setAttribute("aria-label", `switch to ${theme === "dark" ? "light" : "dark"} colours`);
  if (keep) try { localStorage.setItem("regraft-theme", theme); } catch (error) { /* opened where nothing may be stored */ }
  for (const paint of repaints) paint();
}
find("#theme").addEventListener("click", () => setTheme(document.documentElement.dataset.theme === "dark" ? "light" : "dark", true));
let before = "light";
window.addEventListener("beforeprint", () => { before = document.documentElement.dataset.theme; setTheme("light"); });
window.addEventListener("afterprint", () => setTheme(before));
for (const button of document.querySelectorAll("[data-copy]")) {
  button.addEventListener("click", async () => {
    const text = button.previousElementSibling.textContent;
    try { await navigator.clipboard.writeText(text); button.textContent = "copied"; } catch (error) {
      getSelection().selectAllChildren(button.previousElementSibling);
      button.textContent = "selected";
    }
    setTimeout(() => { button.textContent = "copy"; }, 1600);
  });
}

function redraw() { for (const draw of charts) draw(); }
let width = 0;
new ResizeObserver(() => {
  if (document.body.clientWidth !== width) { width = document.body.clientWidth; requestAnimationFrame(redraw); } // later: drawing changes heights
}).observe(document.body);
setTheme(document.documentElement.dataset.theme);
