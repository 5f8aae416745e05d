"use strict";
/* One arm at a time, layer by layer: receptive fields of the first layer, degrees, one sample's spikes. */

const pickers = [];

async function inflate(stream) {
  const packed = Uint8Array.from(atob(stream), (letter) => letter.charCodeAt(0));
  return new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"))).arrayBuffer();
}

function rgb(name) {
  const hex = getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  return [1, 3, 5].map((k) => parseInt(hex.slice(k, k + 2), 16));
}

function blend(stops, at) {
  const place = Math.max(0, Math.min(1, at)) * (stops.length - 1), low = Math.min(stops.length - 2, Math.floor(place)), part = place - low;
  return stops[low].map((value, k) => value + (stops[low + 1][k] - value) * part);
}

/* Buttons with which to choose the arm; a choice in one section holds in all that have this arm. */
function picker(section, available, draw) {
  const host = find(`${section} [data-picker]`);
  const own = { available, draw, mark: () => {} };
  host.hidden = available.length < 2;
  if (available.length > 6) {
    const options = available.map((run, k) => element("option", { value: k }, run.label));
    const list = element("select", { "aria-label": "arm shown" }, ...options);
    list.addEventListener("change", () => choose(available[list.value]));
    own.mark = (run) => { list.value = available.indexOf(run); };
    host.classList.remove("segments");
    host.append(list);
  } else {
    const buttons = available.map((run) => element("button", { type: "button", "aria-pressed": "false" }, run.label));
    buttons.forEach((button, k) => button.addEventListener("click", () => choose(available[k])));
    own.mark = (run) => buttons.forEach((button, k) => button.setAttribute("aria-pressed", available[k] === run));
    host.append(...buttons);
  }
  pickers.push(own);
}

function choose(run) {
  for (const { available, draw, mark } of pickers) {
    const found = available.includes(run) ? run : available.find((other) => other.name === run.name);
    if (!found) continue;
    mark(found);
    draw(found);
  }
}

function tell(node, run, text) {
  node.querySelector("[data-arm]").textContent = runs.length > 1 ? `${run.label}${text ? ` · ${text}` : ""}` : text;
}

/* Receptive fields */

const withFields = runs.filter((run) => run.fields && window.DecompressionStream);
const fieldView = { run: null };

async function showFields(run) {
  fieldView.run = run;
  const { fields } = run;
  run.weights = run.weights || new Int8Array(await inflate(fields.stream));
  paintFields();
}

function paintFields() {
  const { run } = fieldView, node = find('[data-figure="fields"]');
  if (!run || !run.weights) return;
  const { fields } = run, [channels, rows, cols] = fields.shape;
  const place = channels < fields.channels ? `, ${channels} of ${fields.channels} channels` : "";
  const half = run.weights.length / 2;
  let drawn = 0;
  [...node.querySelectorAll("[data-when]")].forEach((host, when) => { drawn = paintTiles(host, run, run.weights.subarray(when * half, (when + 1) * half), when ? "at the end" : "at birth", channels, rows, cols); });
  tell(node, run, `${layerName(fields.layer)}, ${drawn} of ${fields.of} units${place}`);
  find("#fields-kept").textContent = `Of the ${count(fields.born)} connections that this layer was born with, ${count(fields.kept)} (${density(fields.kept / Math.max(1, fields.born))} %) are there at the end. The colours end at the 95th percentile, ±${trimmed(Number(fields.limit.toPrecision(2)))}.`;
}

function paintTiles(host, run, values, when, channels, rows, cols) {
  const { fields } = run, size = channels * rows * cols;
  const room = Math.max(160, host.clientWidth), strip = rows === 1;
  // A tile is about as large as a thumb; the inputs of a layer that is no picture make one strip a unit.
  const cell = strip ? room / (channels * cols) : Math.max(1, Math.min(11, Math.floor(84 / Math.max(rows, channels * cols * 0.6))));
  const high = strip ? 7 : rows * cell, part = cols * cell, wide = channels * part + (channels - 1) * 2, gap = strip ? 2 : Math.max(6, cell);
  const across = strip ? 1 : Math.max(1, Math.min(fields.units.length, Math.floor((room + gap) / (wide + gap))));
  const units = Math.min(fields.units.length, across * Math.max(2, Math.floor(460 / (high + gap))));
  const width = across * (wide + gap) - gap, height = Math.ceil(units / across) * (high + gap) - gap, dense = 2;
  const canvas = host.querySelector("canvas") || host.appendChild(element("canvas", { role: "img" }));
  canvas.setAttribute("aria-label", `weights ${when} of ${units} units of ${fields.layer}`);
  Object.assign(canvas, { width: Math.round(width * dense), height: Math.round(height * dense) });
  canvas.style.width = `${Math.min(width, room)}px`;
  const context = canvas.getContext("2d");
  context.scale(dense, dense);
  const stops = [rgb("--loss"), rgb("--zero"), rgb("--gain")], absent = rgb("--absent"), small = element("canvas", { width: cols, height: rows }), paper = small.getContext("2d");
  context.imageSmoothingEnabled = false;
  context.strokeStyle = getComputedStyle(document.documentElement).getPropertyValue("--hatch");
  for (let unit = 0; unit < units; unit += 1) {
    const left = (unit % across) * (wide + gap), top = Math.floor(unit / across) * (high + gap);
    for (let channel = 0; channel < channels; channel += 1) {
      const image = paper.createImageData(cols, rows), at = unit * size + channel * rows * cols, from = left + channel * (part + 2);
      for (let k = 0; k < rows * cols; k += 1) {
        const value = values[at + k];
        const there = value ? 0.5 + Math.sign(value) * Math.max(0.06, Math.abs(value) / 254) : 0.5;
        image.data.set([...(value === -128 ? absent : blend(stops, there)), 255], 4 * k);
      }
      paper.putImageData(image, 0, 0);
      context.drawImage(small, from, top, part, high);
      if (cell < 5 || strip) continue;
      context.beginPath();
      for (let k = 0; k < rows * cols; k += 1) if (values[at + k] === -128) {
        const x = from + (k % cols) * cell, y = top + Math.floor(k / cols) * cell;
        context.moveTo(x + 0.5, y + cell - 0.5); context.lineTo(x + cell - 0.5, y + 0.5);
      }
      context.stroke();
    }
  }
  return units;
}

/* Degrees */

function bars(values, colour, caption) {
  const width = 168, height = 44, most = Math.max(...values.counts), step = width / values.counts.length;
  const high = values.low + values.width * values.counts.length - 1;
  const root = shape("svg", { viewBox: `0 0 ${width} ${height + 14}`, role: "img", "aria-label": `${caption}: ${values.low} to ${high}, mean ${values.mean.toPrecision(3)}` });
  values.counts.forEach((n, k) => {
    const from = values.low + k * values.width, to = from + values.width - 1, tall = n ? Math.max(1, (n / most) * (height - 2)) : 0;
    root.append(shape("rect", { x: k * step + 0.5, y: height - tall, width: Math.max(0.8, Math.min(step - 1, 22)), height: tall, style: `fill: ${colour}` }, shape("title", {}, `${count(n)} with ${from === to ? count(from) : `${count(from)} to ${count(to)}`}`)));
  });
  root.append(shape("line", { class: "axis", x1: 0, x2: width, y1: height, y2: height }), shape("text", { x: 0, y: height + 12 }, count(values.low)));
  if (high > values.low) root.append(shape("text", { x: width, y: height + 12, "text-anchor": "end" }, count(high)));
  return element("div", { class: "chart bars" }, root);
}

function showDegrees(run) {
  const node = find('[data-figure="degrees"]');
  tell(node, run, "");
  find("#degrees").replaceChildren(...run.degrees.map((layer) => {
    const sides = [["in", "in-degree"], ["out", "out-degree"]];
    return element("div", { class: "map" }, element("h4", {}, layerName(layer.layer)),
      ...sides.flatMap(([side, caption]) => [
        element("p", {}, element("span", {}, side), layer[side].zero ? element("span", { class: "minus" }, `${count(layer[side].zero)} at 0`) : null,
          element("span", {}, "mean ", element("b", {}, Number(layer[side].mean.toPrecision(3)).toLocaleString("en")))),
        bars(layer[side], colourOf(run), caption),
      ]));
  }));
}

/* One sample's spikes, and neurons layer by layer */

function showRaster(run) {
  const node = find('[data-figure="raster"]'), { raster } = run;
  const right = raster.label === raster.answer ? "answered right" : `answered ${raster.answer}`;
  tell(node, run, `the first test sample, of class ${raster.label}, ${right}`);
  find("#raster").replaceChildren(...raster.layers.map((layer) => {
    const bits = Uint8Array.from(atob(layer.bits), (letter) => letter.charCodeAt(0)), n = layer.neurons.length, { steps } = layer;
    const width = 180, tall = 4, height = n * tall, step = width / steps, thick = Math.max(0.6, Math.min(step * 0.34, 9));
    let path = "", total = 0;
    for (let k = 0; k < steps * n; k += 1) if (bits[k >> 3] & (128 >> (k & 7))) {
      path += `M${((Math.floor(k / n) + 0.5) * step).toFixed(1)} ${(k % n) * tall + 0.5}v${tall - 1}`;
      total += 1;
    }
    const root = shape("svg", { viewBox: `0 0 ${width} ${height + 16}`, role: "img", "aria-label": `spikes of ${n} neurons of ${layer.layer} over ${steps} steps: ${total}` });
    root.append(shape("rect", { class: "panel", x: 0, y: 0, width, height }));
    const every = Math.ceil(steps / 8);
    for (let t = 0; t < steps; t += 1) {
      if (t) root.append(shape("line", { class: "grid", x1: t * step, x2: t * step, y1: 0, y2: height }));
      if (t % every === 0) root.append(shape("text", { x: (t + 0.5) * step, y: height + 13, "text-anchor": "middle" }, t + 1));
    }
    root.append(shape("path", { d: path, style: `stroke: ${colourOf(run)}; stroke-width: ${thick}; fill: none` }));
    return element("div", { class: "map" }, element("h4", {}, layer.layer, element("span", {}, `${n} of ${count(layer.of)} neurons`)), element("div", { class: "chart" }, root),
      element("p", {}, element("span", {}, "these fire"), element("span", {}, element("b", {}, `${density(total / (steps * n))} %`))));
  }));
}

function showNeurons(run) {
  const node = find('[data-figure="neurons"]');
  tell(node, run, "");
  find("#neuron-rows").replaceChildren(...run.result.neurons.layers.map((layer) => element("tr", {},
    element("th", { scope: "row" }, layer.name), ...["of", "removable", "constant", "silent"].map((key) => element("td", {}, count(layer[key]))))));
}

/* Which of these there are: `views` are triples of a figure, the runs that have it, and what draws it. */

function together(host, views) {
  const available = runs.filter((run) => views.some(([, own]) => own.includes(run)));
  for (const [name, own] of views) find(`[data-figure="${name}"]`).hidden = !own.length;
  if (!available.length) { find(`${host} [data-picker]`).hidden = true; return; }
  find(host).hidden = false;
  picker(host, available, (run) => {
    for (const [name, own, draw] of views) {
      find(`[data-figure="${name}"]`).hidden = !own.includes(run);
      if (own.includes(run)) draw(run);
    }
  });
}
