// Time, memory, rate or error against length, both axes logarithmic, as SVG.

function logTicks(low, high) {
  const ticks = [];
  const few = high / low > 2000;
  for (let e = Math.floor(Math.log10(low)); e <= Math.ceil(Math.log10(high)); e++) {
    for (const m of few ? [1] : [1, 2, 5]) {
      const tick = m * 10 ** e;
      if (tick >= low && tick <= high) ticks.push(tick);
    }
  }
  return ticks;
}

function plain(tick) {
  if (tick >= 1e6 || tick < 1e-3) return tick.toExponential(0).replace("+", "");
  return grouped(String(Number(tick.toPrecision(6))));
}

// A scale from [low, high], logarithmic, to pixels [from, to].
function logScale(low, high, from, to) {
  const width = Math.log(high / low);
  return (v) => from + ((to - from) * Math.log(v / low)) / width;
}

// Heights of labels: near the wanted ones, in their order, `gap` apart and inside [low, high].
function spread(wanted, gap, low, high) {
  const order = wanted.map((_, i) => i).sort((a, b) => wanted[a] - wanted[b]);
  const placed = [];
  let above = -Infinity;
  for (const i of order) above = placed[i] = Math.max(wanted[i], above + gap, low);
  let below = high + gap;
  for (const i of order.reverse()) below = placed[i] = Math.min(placed[i], below - gap);
  return placed;
}

// One chart per machine, over the same lengths and heights.
function drawCharts(box, onChoose) {
  const quantity = QUANTITIES[state.show];
  const machines = compared();
  const [records, published] = [drawn(), printed()];
  const known = records.filter((r) => quantity.value(r) !== null);
  const sizes = [
    ...known.flatMap((r) => [quantity.value(r), ...(quantity.ends(r) || [])]),
    ...published.map((p) => PRINTED[state.show](p)),
  ].filter((v) => v > 0);
  const [low, high] = sizes.length ? [Math.min(...sizes) / 1.3, Math.max(...sizes) * 1.3] : [1, 10];
  const all = distinct([...records, ...published].map((r) => r.seq_len)).sort((a, b) => a - b);
  const isWide = box.clientWidth >= 700;
  const width = Math.max(isWide ? box.clientWidth / machines.length : box.clientWidth, 280);
  box.replaceChildren(...machines.map((machine) => {
    const own = visible(machine);
    const isMeasured = selected(machine).length > 0;
    const parts = [drawChart(own, { low, high, all, width, isMeasured, published }, onChoose)];
    const dtype = own.length ? `, ${own[0].dtype}` : "";
    if (machines.length > 1) parts.unshift(make("h3", {}, DATA.machines[machine] + dtype));
    return make("div", {}, ...parts);
  }));
}

function drawChart(records, { low, high, all, width, isMeasured, published }, onChoose) {
  const quantity = QUANTITIES[state.show];
  const labelled = width >= 500;
  const height = labelled ? 420 : 330;
  const known = records.filter((r) => quantity.value(r) !== null);
  const untimed = records.filter((r) => quantity.value(r) === null);
  const longest = Math.max(0, ...records.map((r) => labelOf(r).length));
  const edge = { left: 58, right: labelled ? Math.min(30 + 6.6 * longest, width / 2) : 12,
    top: untimed.length ? 44 : 14, bottom: 44 };
  const svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, role: "group",
    "aria-label": `${quantity.title} against length` });
  const pad = all.length > 1 ? 1.12 : 2;
  const x = logScale(all[0] / pad, all[all.length - 1] * pad, edge.left, width - edge.right);
  const y = logScale(low, high, height - edge.bottom, edge.top);
  drawAxes(svg, { x, y, all, low, high, width, height, edge });
  if (!records.length) {
    svg.append(draw("text", { x: (edge.left + width - edge.right) / 2, y: height / 2,
      "text-anchor": "middle" }, isMeasured ? "all are hidden" : "nothing measured in this setting"));
  }
  const ends = [];
  const points = [];
  for (const line of lines()) {
    const own = known.filter((r) => r.line === line).sort((a, b) => a.seq_len - b.seq_len);
    const look = own.length && DATA.looks[own[0].system];
    if (own.length > 1) {
      const at = own.map((r) => `${x(r.seq_len).toFixed(1)},${y(quantity.value(r)).toFixed(1)}`);
      svg.append(draw("polyline", { class: line === state.line ? "line chosen" : "line",
        points: at.join(" "), stroke: look.color }));
    }
    for (const r of own) points.push([r, x(r.seq_len), y(quantity.value(r))]);
    if (own.length) {
      const last = own[own.length - 1];
      ends.push({ x: x(last.seq_len), y: y(quantity.value(last)), text: labelOf(last), look, line });
    }
  }
  points.push(...drawUntimed(svg, untimed, x, edge, width));
  for (const p of published) svg.append(drawPrinted(p, x(p.seq_len), y(PRINTED[state.show](p))));
  for (const [r, px, py] of points) svg.append(drawPoint(r, px, py, y, quantity, onChoose));
  // With more lines than this only the chosen one has a label.
  const named = ends.length > 20 ? ends.filter((end) => end.line === state.line) : ends;
  if (labelled) drawLabels(svg, named, width - edge.right + 14, edge.top, height - edge.bottom);
  return svg;
}

// A published figure: a white diamond in the colour of its system.
function drawPrinted(p, px, py) {
  const look = DATA.looks[p.system];
  const name = `${look.name}, ${tokens(p.seq_len)} tokens, published: ${printedWords(p)}`;
  const group = draw("g", { class: "published", role: "img", "aria-label": name,
    "data-system": p.system, "data-length": p.seq_len });
  group.append(draw("title", {}, name), draw("path", { d: "M0,-6L6,0L0,6L-6,0Z", fill: "#fff",
    stroke: look.color, "stroke-width": 1.4,
    transform: `translate(${px.toFixed(1)} ${py.toFixed(1)})` }));
  return group;
}

function printedWords(p) {
  return `${number(PRINTED[state.show](p))} ${QUANTITIES[state.show].unit}, ${DATA.card}, ${p.dtype}`;
}

function drawAxes(svg, { x, y, all, low, high, width, height, edge }) {
  const [left, right, bottom] = [edge.left, width - edge.right, height - edge.bottom];
  for (const tick of logTicks(low, high)) {
    svg.append(draw("line", { class: "grid", x1: left, x2: right, y1: y(tick), y2: y(tick) }));
    svg.append(draw("text", { x: left - 8, y: y(tick) + 4, "text-anchor": "end" }, plain(tick)));
  }
  svg.append(draw("line", { class: "axis", x1: left, x2: right, y1: bottom, y2: bottom }));
  let free = -Infinity;
  for (const n of all) {
    svg.append(draw("line", { class: "axis", x1: x(n), x2: x(n), y1: bottom, y2: bottom + 5 }));
    if (x(n) - free < 34) continue;
    free = x(n);
    svg.append(draw("text", { x: x(n), y: bottom + 19, "text-anchor": "middle" }, tokens(n)));
  }
  const middle = (left + right) / 2;
  svg.append(draw("text", { x: middle, y: height - 6, "text-anchor": "middle" },
    "sequence length, tokens (K = 1024)"));
}

// Records without the quantity, side by side at their length in a band above the axes.
function drawUntimed(svg, untimed, x, edge, width) {
  if (!untimed.length) return [];
  svg.append(draw("line", { class: "grid", x1: edge.left, x2: width - edge.right, y1: 32, y2: 32 }));
  svg.append(draw("text", { x: edge.left - 8, y: 22, "text-anchor": "end" }, "none"));
  const seen = new Map();
  return untimed.map((r) => {
    const place = seen.get(r.seq_len) || 0;
    seen.set(r.seq_len, place + 1);
    const count = untimed.filter((other) => other.seq_len === r.seq_len).length;
    return [r, x(r.seq_len) + 13 * (place - (count - 1) / 2), 18];
  });
}

function drawPoint(record, px, py, y, quantity, onChoose) {
  const isChosen = record === chosen();
  const value = quantity.value(record);
  const ends = value === null ? null : quantity.ends(record);
  const shown = value === null ? statusWords(record) : `${interval(value, ends)} ${quantity.unit}`;
  const name = `${labelOf(record)}, ${tokens(record.seq_len)} tokens: ${shown.trim()}`;
  const group = draw("g", { class: "point", role: "button", tabindex: isChosen ? 0 : -1,
    "aria-pressed": isChosen, "aria-label": name, "data-line": record.line,
    "data-machine": record.machine, "data-length": record.seq_len, "data-x": px, "data-y": py });
  group.append(draw("title", {}, name));
  if (ends && ends[0] !== null) {
    const color = DATA.looks[record.system].color;
    group.append(draw("line", { x1: px, x2: px, y1: y(ends[0]), y2: y(ends[1]), stroke: color,
      "stroke-width": 1.2 }));
  }
  group.append(draw("circle", { class: "halo", cx: px, cy: py, r: 9, "pointer-events": "all" }));
  group.append(marker(record, px, py, 4.4));
  group.addEventListener("click", () => onChoose(record, false));
  return group;
}

function drawLabels(svg, ends, at, top, bottom) {
  const heights = spread(ends.map((end) => end.y), 14, top, bottom);
  ends.forEach((end, i) => {
    svg.append(draw("line", { class: "leader", x1: end.x + 7, y1: end.y, x2: at - 4, y2: heights[i],
      stroke: end.look.color }));
    const text = draw("text", { x: at, y: heights[i] + 4 }, end.text);
    text.style.fill = end.look.ink;
    svg.append(text);
  });
}

// Left and right: the same line at its next length; up and down: the next point at this length.
function neighbour(points, current, key) {
  const place = (p) => [Number(p.dataset.x), Number(p.dataset.y)];
  const sideways = key === "ArrowLeft" || key === "ArrowRight";
  const sign = key === "ArrowLeft" || key === "ArrowUp" ? -1 : 1;
  const axis = sideways ? 0 : 1;
  const same = sideways ? "line" : "length";
  const away = (p) => sign * (place(p)[axis] - place(current)[axis]);
  const fitting = points.filter((p) => p !== current && p.dataset[same] === current.dataset[same]);
  // Points at the same place go by their order.
  const later = (p) => away(p) > 0 ||
    (away(p) === 0 && sign * (points.indexOf(p) - points.indexOf(current)) > 0);
  const after = fitting.filter(later).sort((a, b) => away(a) - away(b) ||
    sign * (points.indexOf(a) - points.indexOf(b)));
  return after[0];
}
