"use strict";
/* The group maps: one square a layer, a slider through the rewiring events, two ways to look. */

const wired = runs.filter((run) => run.maps && window.DecompressionStream);
const view = { run: null, at: Infinity, mode: "existing", cards: [], timer: null };

async function unpack(maps) {
  const bytes = await inflate(maps.stream);
  const all = maps.bits === 8 ? new Uint8Array(bytes) : maps.bits === 16 ? new Uint16Array(bytes) : new Uint32Array(bytes);
  let offset = 0;
  return maps.index.map(({ layer, rows, cols, max, steps }) => {
    const size = rows * cols;
    const frames = steps.map((_, k) => {
      const frame = all.subarray(offset + k * size, offset + (k + 1) * size); // differences become counts in place
      if (k) for (let cell = 0; cell < size; cell += 1) frame[cell] += all[offset + (k - 1) * size + cell];
      return frame;
    });
    offset += size * steps.length;
    return { layer, rows, cols, max, steps, frames };
  });
}

/* What step `k` of the run shows of a layer whose maps may have been written at fewer steps. */
function frameAt(map, step) {
  let found = 0;
  map.steps.forEach((at, k) => { if (at <= step) found = k; });
  return found;
}

function drawMaps() {
  if (!view.run || !view.run.frames) return;
  const { structure } = view.run, step = view.run.mapSteps[view.at];
  const ramp = [0, 1, 2, 3, 4].map((k) => rgb(`--ramp-${k}`));
  const change = [rgb("--loss"), rgb("--still"), rgb("--gain")];
  const k = structure.step.indexOf(step);
  for (const { canvas, map, line, total } of view.cards) {
    const now = frameAt(map, step), frame = map.frames[now], earlier = now ? map.frames[now - 1] : null;
    const context = canvas.getContext("2d"), image = context.createImageData(map.cols, map.rows);
    for (let cell = 0; cell < frame.length; cell += 1) {
      const moved = earlier ? frame[cell] - earlier[cell] : 0;
      const colour = view.mode === "existing" ? blend(ramp, frame[cell] / Math.max(1, map.max))
        : blend(change, 0.5 + (moved ? Math.sign(moved) * Math.max(0.16, Math.min(0.5, Math.abs(moved) / (2 * map.swing))) : 0));
      image.data.set([...colour, 255], 4 * cell);
    }
    context.putImageData(image, 0, 0);
    const layer = view.run.layers.find((one) => one.name === map.layer);
    const existing = k >= 0 && structure.connections[map.layer] ? structure.connections[map.layer][k] : null;
    const swapped = k > 0 && structure.dropped[map.layer];
    line.replaceChildren(
      element("span", {}, element("b", {}, existing !== null && layer ? `${density(existing / layer.of)} %` : "–")),
      swapped ? element("span", {}, element("span", { class: "minus" }, `−${count(structure.dropped[map.layer][k])}`), " ", element("span", { class: "plus" }, `+${count(structure.grown[map.layer][k])}`)) : element("span", {}, k === 0 ? "birth" : ""));
    total.textContent = existing !== null && layer ? `${count(existing)} of ${count(layer.of)} connections` : "";
  }
  drawReadout(k, step);
}

function drawReadout(k, step) {
  const { structure } = view.run;
  const total = (table) => Object.values(table).reduce((sum, values) => sum + (values[k] || 0), 0);
  const facts = [["arm", view.run.label], ["optimiser step", count(step)], ["epoch", epochOf(view.run, step).toFixed(1)]];
  if (k >= 0) {
    facts.push(["density", `${density(structure.density[k])} %`], ["connections", count(total(structure.connections))],
      ["dropped", k ? count(total(structure.dropped)) : "–"], ["grown", k ? count(total(structure.grown)) : "–"],
      ["in-time exploration", structure.exploration[k] === null ? "–" : `${density(structure.exploration[k])} %`]);
  }
  find("#readout").replaceChildren(...facts.map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, value))));
  const last = structure.number[structure.number.length - 1];
  const text = view.at === 0 ? (last ? `birth, before ${count(last)} events` : "birth") : k >= 0 ? `event ${count(structure.number[k])} of ${count(last)}` : `step ${count(step)}`;
  find("#event-text").textContent = text;
  find("#event").setAttribute("aria-valuetext", `${text}, step ${step}`);
  find("#map-key").replaceChildren(...(view.mode === "existing"
    ? [element("span", {}, "no connection", element("i", { class: "ramp" }), "most of this layer in this run")]
    : [element("span", {}, element("i", { class: "chip", style: "background: var(--loss)" }), "fewer than on the map before"), element("span", {}, element("i", { class: "chip", style: "background: var(--gain)" }), "more"), element("span", {}, "groups that lose as many as they gain do not show")]),
  ...(view.run.maps.frames < view.run.maps.of ? [element("span", {}, `${view.run.maps.frames} of ${view.run.maps.of} maps, to keep this file small`)] : []),
  ...(view.run.maps.pool > 1 ? [element("span", {}, `maps pooled by ${view.run.maps.pool} to keep this file small`)] : []));
}

/* Which units of the layer a row or column of its map stands for. */
function units(layer, axis, index) {
  const of = layer && layer.shape ? layer.shape[axis] : null;
  if (of === null) return `group ${index}`;
  const groups = Math.min(of, 64), pool = view.run.maps.pool;
  const first = Math.floor((index * pool * of) / groups), last = Math.floor((Math.min((index + 1) * pool, groups) * of) / groups) - 1;
  return first === last ? `${first}` : `${first}–${last}`;
}

function mapCard(map) {
  const layer = view.run.layers.find((one) => one.name === map.layer);
  const canvas = element("canvas", { width: map.cols, height: map.rows, role: "img", "aria-label": `wiring of ${map.layer}` });
  const line = element("p", {}), total = element("p", {});
  const field = element("div", { class: "field" }, canvas);
  field.addEventListener("pointermove", (event) => {
    const box = canvas.getBoundingClientRect();
    const row = Math.floor(((event.clientY - box.top) / box.height) * map.rows), col = Math.floor(((event.clientX - box.left) / box.width) * map.cols);
    const value = map.frames[frameAt(map, view.run.mapSteps[view.at])][row * map.cols + col];
    if (value !== undefined) field.title = `output ${units(layer, 0, row)}, input ${units(layer, 1, col)}: ${count(value)} connections`;
  });
  const shapeText = layer && layer.shape ? layer.shape.join(" × ") : "";
  const card = element("div", { class: "map" }, element("h4", {}, layerName(map.layer), " ", element("span", {}, shapeText)), field, line, total);
  return { card, canvas, map, line, total };
}

async function showMaps(run) {
  stopPlaying();
  view.run = run;
  run.frames = run.frames || (await unpack(run.maps));
  if (view.run !== run) return;
  for (const map of run.frames) {
    map.swing = map.swing || Math.max(1, ...map.frames.slice(1).map((frame, k) => frame.reduce((most, value, cell) => Math.max(most, Math.abs(value - map.frames[k][cell])), 0)));
  }
  run.mapSteps = [...new Set(run.frames.flatMap((map) => map.steps))].sort((a, b) => a - b);
  view.at = Math.min(view.at, run.mapSteps.length - 1);
  const slider = find("#event");
  slider.max = run.mapSteps.length - 1;
  slider.value = view.at;
  slider.closest(".slider").hidden = run.mapSteps.length < 2;
  find("#map-mode").hidden = run.mapSteps.length < 2;
  if (run.mapSteps.length < 2) setMode("existing");
  view.cards = run.frames.map(mapCard);
  // Rows as even as they can be: five layers in one row, six in two rows of three.
  find("#maps").style.setProperty("--columns", Math.max(4, Math.ceil(view.cards.length / Math.ceil(view.cards.length / 5))));
  find("#maps").replaceChildren(...view.cards.map((one) => one.card));
  drawMaps();
}

function stopPlaying() { clearInterval(view.timer); view.timer = null; find("#play").textContent = "play"; }

function setMode(mode) {
  view.mode = mode;
  for (const button of document.querySelectorAll("[data-mode]")) button.setAttribute("aria-pressed", button.dataset.mode === mode);
}
for (const button of document.querySelectorAll("[data-mode]")) button.addEventListener("click", () => { setMode(button.dataset.mode); drawMaps(); });
find("#event").addEventListener("input", (event) => { stopPlaying(); view.at = Number(event.target.value); drawMaps(); });
find("#play").addEventListener("click", () => {
  if (view.timer) { stopPlaying(); return; }
  find("#play").textContent = "stop";
  if (view.at >= view.run.mapSteps.length - 1) view.at = -1;
  view.timer = setInterval(() => {
    view.at += 1;
    find("#event").value = view.at;
    drawMaps();
    if (view.at >= view.run.mapSteps.length - 1) stopPlaying();
  }, Math.max(120, Math.min(550, 12000 / view.run.mapSteps.length)));
});

repaints.push(drawMaps, paintFields);
charts.push(paintFields);
together("#wiring", [["maps", wired, showMaps], ["fields", withFields, showFields], ["degrees", runs.filter((run) => run.degrees.length), showDegrees]]);
together("#activity", [["raster", runs.filter((run) => run.raster && run.raster.layers.length), showRaster],
  ["neurons", finished.filter((run) => ((run.result.neurons || {}).layers || []).length), showNeurons]]);
choose(wired.find((run) => run.structure.step.length > 1) || runs.find((run) => run.result) || runs[0]);
redraw();
