// One record: its facts, every sample by round, its file and the command that made it.

function drawRecord(record) {
  const by = (id) => document.getElementById(id);
  by("record-title").textContent =
    `${labelOf(record)}, ${grouped(String(record.seq_len))} tokens: ` +
    (record.status === "ok" ? `${interval(record.median, [record.low, record.high])} ms`
      : statusWords(record));
  by("facts").replaceChildren(...facts(record).flatMap(([name, value]) =>
    [make("dt", {}, name), make("dd", {}, value)]).reduce(paired, []));
  const timed = record.samples.length > 0;
  for (const id of ["strip", "strip-note", "samples"]) by(id).hidden = !timed;
  by("strip").replaceChildren();
  if (timed) drawStrip(by("strip"), record);
  by("samples").querySelector("div").replaceChildren(...record.samples.map((samples, i) =>
    make("p", { "data-round": i + 1 }, `${record.rounds[i]}: ${samples.join(", ")}`)));
  by("path").textContent = record.path;
  // Inside the report the page has no location that a relative path could start from.
  if (location.protocol !== "data:") {
    by("path").href = "../" + record.path.split("/").map(encodeURIComponent).join("/");
  }
  by("command").textContent = record.command;
  by("provenance").textContent = `${DATA.machines[record.machine]}; PyTorch ${record.torch}` +
    (record.commit ? `; commit ${record.commit.slice(0, 12)}` : "");
}

// dt and dd of one fact stay together in the grid.
function paired(boxes, element, i) {
  if (i % 2 === 0) boxes.push(make("div", {}));
  boxes[boxes.length - 1].append(element);
  return boxes;
}

function facts(record) {
  const found = [["System", DATA.looks[record.system].name], ["Pattern", patternWords(record)]];
  if (record.status !== "ok") {
    return [...found, ["Status", statusWords(record)], ["Reason", record.reason || DASH]];
  }
  const memory = record.memory === null ? DASH : `${number(record.memory / 2 ** 20)} MiB`;
  found.push(
    ["Median time", `${interval(record.median, [record.low, record.high])} ms`],
    ...printedOf(record),
    ["Peak memory beyond the inputs", memory],
    ["Useful work", rateWords(record)],
    ["Share of dense attention's pairs", `${number(100 * record.density)} %`],
    ["Error against the oracle", errorWords(record.error, record.dense_error)],
  );
  if (record.gradient_error !== null) {
    const words = errorWords(record.gradient_error, record.dense_gradient_error);
    found.push(["Error of the gradients", words]);
  }
  found.push(["Backend", record.backend || DASH],
    ["Rounds, samples", `${record.samples.length}, ${record.samples.flat().length}`]);
  return found;
}

// What the write-up prints of the same system and shape.
function printedOf(record) {
  const parts = ["experiment", "pass", "is_causal", "heads", "batch", "seq_len", "system"];
  const found = PUBLISHED.find((p) => parts.every((name) => p[name] === record[name]));
  if (!found || !record.as_published) return [];
  const words = [found.time && `${number(found.time)} ms`,
    found.memory && `${number(found.memory)} MiB`].filter(Boolean).join(", ");
  return [[`Published (${DATA.card}, ${found.dtype})`, words]];
}

function patternWords(record) {
  if (record.sparsity === null) return record.pattern;
  return `${record.pattern}, ${sparsityOf(record)} % sparse`;
}

function rateWords(record) {
  if (record.rate === null) return DASH;
  const { value, ends } = rateOf(record);
  return `${interval(value, ends)} ${rateUnit()[1]}`;
}

function errorWords(error, dense) {
  if (error === null) return DASH;
  return dense ? `${number(error)} (dense: ${number(dense)})` : number(error);
}

// One row per round, its samples in the order they were taken.
function drawStrip(box, record) {
  const rows = record.samples;
  const all = rows.flat();
  const [low, high] = [Math.min(...all), Math.max(...all)];
  const slack = (high - low || high) * 0.04;
  const width = Math.max(box.clientWidth, 260);
  const [left, right, top, row] = [74, 14, 12, 30];
  const bottom = top + rows.length * row;
  const x = (v) => left + ((width - left - right) * (v - low + slack)) / (high - low + 2 * slack);
  const svg = draw("svg", { viewBox: `0 0 ${width} ${bottom + 24}`, role: "img",
    "aria-label": `${all.length} samples from ${number(low)} to ${number(high)} ms` });
  if (record.low !== null) {
    const wide = Math.max(x(record.high) - x(record.low), 1);
    svg.append(draw("rect", { x: x(record.low), y: top, width: wide, height: bottom - top,
      fill: "#eef4f9" }));
  }
  svg.append(draw("line", { class: "axis", x1: x(record.median), x2: x(record.median), y1: top,
    y2: bottom }));
  rows.forEach((samples, i) => {
    const middle = top + row * (i + 0.5);
    svg.append(draw("text", { x: left - 10, y: middle + 4, "text-anchor": "end" },
      `round ${i + 1}`));
    samples.forEach((sample, k) => {
      const shift = samples.length > 1 ? (k / (samples.length - 1) - 0.5) * row * 0.6 : 0;
      const dot = draw("circle", { class: "sample", cx: x(sample).toFixed(1),
        cy: (middle + shift).toFixed(1), r: 3, fill: DATA.looks[record.system].color,
        "fill-opacity": 0.65, "data-ms": sample, "data-round": i + 1 });
      dot.append(draw("title", {}, `${record.rounds[i]}, sample ${k + 1}: ${sample} ms`));
      svg.append(dot);
    });
  });
  svg.append(draw("line", { class: "axis", x1: left, x2: width - right, y1: bottom, y2: bottom }));
  for (const tick of evenTicks(low, high, width < 500 ? 3 : 6)) {
    svg.append(draw("line", { class: "axis", x1: x(tick), x2: x(tick), y1: bottom, y2: bottom + 4 }));
    svg.append(draw("text", { x: x(tick), y: bottom + 18, "text-anchor": "middle" }, plain(tick)));
  }
  svg.append(draw("text", { x: left - 10, y: bottom + 18, "text-anchor": "end" }, "ms"));
  box.append(svg);
}

function evenTicks(low, high, count) {
  const rough = (high - low || Math.abs(high) || 1) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= rough);
  const ticks = [];
  for (let k = Math.ceil(low / step); k * step <= high; k++) ticks.push(k * step);
  return ticks.length ? ticks : [low];
}
