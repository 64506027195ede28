"use strict";
// The records, and the state of the page: what is selected, and its place in the address.

const DATA = JSON.parse(document.getElementById("data").textContent);
const RECORDS = DATA.columns.seq_len.map((_, i) => {
  const record = { index: i };
  for (const name of Object.keys(DATA.columns)) {
    const value = DATA.columns[name][i];
    record[name] = value !== null && DATA.in_texts.includes(name) ? DATA.texts[value] : value;
  }
  record.is_causal = record.is_causal ? "causal" : "not causal";
  record.batch = String(record.batch);
  for (const name of ["path", "command"]) {
    record[name] = record[name].replaceAll(DATA.stem, () => record.stem);
  }
  return record;
});
const SETTING = DATA.setting;
// The unit of useful work by machine: the same for all its records, so that they can be compared.
const RATE_UNITS = {};
for (const record of RECORDS) {
  const before = RATE_UNITS[record.machine];
  RATE_UNITS[record.machine] = before && before[0] === 1e12 ? before
    : record.rate >= 1e12 ? [1e12, "TFLOP/s"] : [1e9, "GFLOP/s"];
}

// The larger unit of the machines that are drawn.
function rateUnit() {
  return compared().map((m) => RATE_UNITS[m]).reduce((a, b) => (a[0] >= b[0] ? a : b));
}

// The useful work of a record in the unit of what is drawn, with its interval; null without.
function rateOf(record) {
  const [size] = rateUnit();
  const of = (rate) => (rate === null ? null : rate / size);
  return record.rate && { value: of(record.rate), ends: [of(record.rate_low), of(record.rate_high)] };
}

const QUANTITIES = {
  time: { title: "Median time", unit: "ms", value: (r) => r.median, ends: (r) => [r.low, r.high] },
  memory: { title: "Peak memory beyond the inputs", unit: "MiB", ends: () => null,
    value: (r) => (r.memory > 0 ? r.memory / 2 ** 20 : null) },
  rate: { title: "Useful work", get unit() { return rateUnit()[1]; },
    value: (r) => r.rate && rateOf(r).value, ends: (r) => r.rate && rateOf(r).ends },
  error: { title: "Relative error against the oracle", unit: "", value: (r) => r.error || null,
    ends: () => null },
};

// What a write-up prints; its dtype is often another one than that of the records.
const PUBLISHED = DATA.published.map((p) => ({ ...p, batch: String(p.batch),
  is_causal: p.is_causal ? "causal" : "not causal" }));
const PRINTED = { time: (p) => p.time, memory: (p) => p.memory };

// besideDtype: that of the machine beside, where it was chosen there.
const state = { show: "time", hidden: new Set(), sparsities: null, length: null, line: null,
  beside: "", besideDtype: null };

// The records of the selected setting on a machine, whatever is hidden. Of the machine beside it,
// where it has none of that dtype, those of the dtype that it has most of.
function selected(machine = state.machine) {
  const fitting = RECORDS.filter((r) => r.machine === machine &&
    SETTING.every((name) => ["machine", "dtype"].includes(name) || r[name] === state[name]));
  const of = (dtype) => fitting.filter((r) => r.dtype === dtype);
  if (machine === state.machine) return of(state.dtype);
  const known = [state.besideDtype, state.dtype].find((dtype) => of(dtype).length);
  if (known) return of(known);
  const [most] = distinct(fitting.map((r) => r.dtype))
    .sort((a, b) => of(b).length - of(a).length);
  return of(most);
}

// Those of all the machines that are drawn.
function drawable() {
  return compared().flatMap((machine) => selected(machine));
}

// The records that are drawn and listed.
function visible(machine = state.machine) {
  return selected(machine).filter((r) => isShown(r));
}

// What is drawn, on all machines.
function drawn() {
  return compared().flatMap((machine) => visible(machine));
}

// The machines that are drawn, side by side in the order of their list.
function compared() {
  return Object.keys(DATA.machines).filter((m) => m === state.machine || m === state.beside);
}

// What the write-up prints of the visible systems in the setting, and of the quantity shown.
function printed() {
  const value = PRINTED[state.show];
  const parts = ["experiment", "pass", "is_causal", "heads", "batch"];
  const systems = drawn().filter((r) => r.as_published).map((r) => r.system);
  return PUBLISHED.filter((p) => value && value(p) && systems.includes(p.system) &&
    parts.every((name) => p[name] === state[name]));
}

function isShown(record) {
  const wanted = state.sparsities === null || state.sparsities.has(sparsityOf(record));
  return wanted && !state.hidden.has(record.line);
}

function sparsityOf(record) {
  return record.sparsity === null ? "none" : String(Math.round(record.sparsity * 1e4) / 100);
}

function distinct(values) {
  return [...new Set(values)];
}

function lengths() {
  return distinct(visible().map((r) => r.seq_len)).sort((a, b) => a - b);
}

// The lines of the setting in the order of the figures.
function lines() {
  const systems = Object.keys(DATA.looks);
  const found = drawable().sort((a, b) => systems.indexOf(a.system) - systems.indexOf(b.system));
  return distinct(found.map((r) => r.line));
}

function chosen() {
  return visible().find((r) => r.line === state.line && r.seq_len === state.length);
}

function labelOf(record) {
  const label = DATA.looks[record.system].label;
  return record.line === record.system ? label : `${label}, ${record.pattern}`;
}

// Values that a part of the setting can take, given the parts before it; most records first.
function options(name) {
  const before = SETTING.slice(0, SETTING.indexOf(name));
  const fitting = RECORDS.filter((r) => before.every((part) => r[part] === state[part]));
  const count = new Map();
  for (const r of fitting) count.set(r[name], (count.get(r[name]) || 0) + 1);
  const found = [...count].sort((a, b) => b[1] - a[1] || (a[0] < b[0] ? -1 : 1));
  if (name === "machine") return Object.keys(DATA.machines);
  if (name === "experiment") return Object.keys(DATA.experiments).filter((e) => count.has(e));
  return found.map(([value]) => value);
}

// Replace every choice that has no records under the rest of the selection.
function settle() {
  for (const name of SETTING) {
    const known = options(name);
    if (!known.includes(state[name])) state[name] = known[0];
  }
  if (!DATA.machines[state.beside] || state.beside === state.machine) state.beside = "";
  if (!QUANTITIES[state.show]) state.show = "time";
  const known = distinct(drawable().map(sparsityOf));
  if (state.sparsities !== null) {
    state.sparsities = new Set(known.filter((s) => state.sparsities.has(s)));
    if (state.sparsities.size === 0 || state.sparsities.size === known.length) {
      state.sparsities = null;
    }
  }
  if (visible().length === 0) state.hidden.clear();
  if (visible().length === 0) state.sparsities = null;
  if (!lengths().includes(state.length)) state.length = usualLength();
  const here = visible().filter((r) => r.seq_len === state.length);
  if (!here.some((r) => r.line === state.line)) {
    state.line = lines().find((line) => here.some((r) => r.line === line));
  }
}

// The length with the most timed cases; the longest of several.
function usualLength() {
  const timed = (n) => visible().filter((r) => r.seq_len === n && r.status === "ok").length;
  return lengths().reduce((best, n) => (timed(n) >= timed(best) ? n : best));
}

function toHash() {
  const parts = new URLSearchParams();
  for (const name of SETTING) parts.set(name, state[name]);
  if (state.beside) parts.set("beside", state.beside);
  parts.set("show", state.show);
  parts.set("length", state.length);
  parts.set("line", state.line);
  if (state.sparsities) parts.set("sparsity", [...state.sparsities].sort().join(" "));
  for (const line of lines()) if (state.hidden.has(line)) parts.append("hide", line);
  return "#" + parts.toString();
}

function fromHash() {
  const parts = new URLSearchParams(location.hash.slice(1));
  for (const name of [...SETTING, "show", "line"]) {
    if (parts.has(name)) state[name] = parts.get(name);
  }
  state.beside = parts.get("beside") || "";
  state.length = parts.has("length") ? Number(parts.get("length")) : state.length;
  state.sparsities = parts.has("sparsity") ? new Set(parts.get("sparsity").split(" ")) : null;
  state.hidden = new Set(parts.getAll("hide"));
}
