// Controls, table, and reactions to a choice.

const byId = (id) => document.getElementById(id);
const TITLES = { machine: "Machine", experiment: "Experiment", pass: "Pass", dtype: "Dtype",
  is_causal: "Attention", heads: "Heads", batch: "Batch", show: "Show", beside: "Beside it" };
const SHOWN = { time: "time", memory: "memory", rate: "useful FLOP/s", error: "error" };

function optionText(name, value) {
  if (name === "machine") return DATA.machines[value];
  if (name === "experiment") return DATA.experiments[value].title;
  return value.replace("_", " + ");
}

function fillSelect(select, values, chosenValue, text) {
  select.replaceChildren(...values.map((value) => {
    const option = make("option", { value }, text(value));
    option.selected = value === chosenValue;
    return option;
  }));
  select.disabled = values.length < 2;
}

function makeControls() {
  const [machine, ...others] = SETTING;
  for (const name of [machine, "beside", ...others, "show"]) {
    const select = make("select", { id: name, name });
    const long = name === "machine" || name === "beside" ? { class: "long" } : {};
    byId("setting").append(make("label", long, TITLES[name], select));
    select.addEventListener("change", () => change(() => {
      state[name] = select.value;
      state.besideDtype = null;
    }));
  }
  byId("setting").addEventListener("submit", (event) => event.preventDefault());
  byId("length").addEventListener("change", (event) => change(() => {
    state.length = Number(event.target.value);
  }));
}

function checkbox(group, value, isOn, onChange, ...content) {
  const box = make("input", { type: "checkbox", value });
  box.checked = isOn;
  box.addEventListener("change", () => onChange(box.checked));
  group.append(make("label", {}, box, ...content));
}

function drawControls() {
  for (const name of SETTING) {
    fillSelect(byId(name), options(name), state[name], (value) => optionText(name, value));
  }
  const others = Object.keys(DATA.machines).filter((machine) => machine !== state.machine);
  fillSelect(byId("beside"), ["", ...others], state.beside, (m) => DATA.machines[m] || "no other");
  fillSelect(byId("show"), Object.keys(SHOWN), state.show, (value) => SHOWN[value]);
  fillSelect(byId("length"), lengths(), state.length, (n) => grouped(String(n)));
  const focused = document.activeElement;
  const place = focused && focused.type === "checkbox" && [focused.closest("[role]"), focused.value];
  drawSparsities();
  drawLines();
  if (place) {
    const again = [...place[0].querySelectorAll("input")].find((box) => box.value === place[1]);
    if (again) again.focus();
  }
}

function drawSparsities() {
  const group = byId("sparsities");
  group.replaceChildren();
  const known = distinct(drawable().map(sparsityOf)).sort((a, b) =>
    (a === "none" ? -1 : Number(a)) - (b === "none" ? -1 : Number(b)));
  if (known.length < 2) return;
  for (const value of known) {
    const isOn = state.sparsities === null || state.sparsities.has(value);
    checkbox(group, value, isOn, (checked) => change(() => {
      state.sparsities = state.sparsities || new Set(known);
      if (checked) state.sparsities.add(value);
      else state.sparsities.delete(value);
    }), value === "none" ? "no block mask" : `${value} % sparse`);
  }
}

function drawLines() {
  const group = byId("lines");
  group.replaceChildren();
  const [all, records] = [lines(), drawable()];
  for (const line of all) {
    const record = records.find((r) => r.line === line);
    checkbox(group, line, !state.hidden.has(line), (checked) => change(() => {
      if (checked) state.hidden.delete(line);
      else state.hidden.add(line);
    }), swatch(record), labelOf(record));
  }
  const shown = distinct(drawn().map((r) => r.line)).length;
  byId("shown").textContent = `${shown} of ${all.length}`;
  const some = shown < all.length;
  const button = make("button", { type: "button", id: "all" }, some ? "Show all" : "Only the chosen");
  button.addEventListener("click", () => {
    change(() => {
      state.hidden = new Set(some ? [] : all.filter((line) => line !== state.line));
      if (some) state.sparsities = null;
    });
    byId("all").focus();
  });
  group.append(button);
}

const HEAD = ["System", "Time, ms", "Memory, MiB", "useful", "Error / dense's", "Pairs"];

function drawTable() {
  const order = lines();
  const rows = visible().filter((r) => r.seq_len === state.length)
    .sort((a, b) => order.indexOf(a.line) - order.indexOf(b.line));
  const unit = rateUnit()[1];
  const names = HEAD.map((name) => (name === "useful" ? `${unit}, useful` : name));
  const head = make("tr", {}, ...names.map((name) => make("th", { scope: "col" }, name)));
  byId("table").replaceChildren(make("thead", {}, head),
    make("tbody", {}, ...rows.map(tableRow)));
}

function tableRow(record) {
  const isChosen = record === chosen();
  const name = make("button", { type: "button", "aria-pressed": isChosen }, swatch(record),
    labelOf(record));
  name.addEventListener("click", () => choose(record, false));
  const row = make("tr", { "data-line": record.line, class: isChosen ? "chosen" : "" },
    make("td", {}, name));
  if (record.status !== "ok") {
    const words = [statusWords(record), record.reason].filter(Boolean).join(": ");
    row.append(make("td", { colspan: HEAD.length - 1, class: "reason" }, words));
    return row;
  }
  const rate = record.rate === null ? DASH : interval(rateOf(record).value, rateOf(record).ends);
  const error = record.dense_error ? number(record.error / record.dense_error) : DASH;
  const memory = record.memory === null ? null : record.memory / 2 ** 20;
  const cells = [interval(record.median, [record.low, record.high]), number(memory), rate, error,
    `${number(100 * record.density)} %`];
  row.append(...cells.map((text) => make("td", {}, text)));
  return row;
}

function drawAll() {
  const quantity = QUANTITIES[state.show];
  byId("question").textContent = DATA.experiments[state.experiment].question;
  byId("chart-title").textContent = quantity.title + (quantity.unit ? `, ${quantity.unit}` : "");
  drawControls();
  drawCharts(byId("chart"), choose);
  drawTable();
  drawRecord(chosen());
}

function change(edit) {
  edit();
  settle();
  drawAll();
  if (toHash() !== location.hash) history.replaceState(null, "", toHash());
}

function choose(record, withFocus) {
  change(() => {
    if (record.machine !== state.machine) {
      [state.machine, state.beside] = [state.beside, state.machine];
      [state.dtype, state.besideDtype] = [record.dtype, state.dtype];
    }
    state.line = record.line;
    state.length = record.seq_len;
  });
  if (withFocus) byId("chart").querySelector('[aria-pressed="true"]').focus();
}

async function copy(id) {
  const text = byId(id).textContent;
  try {
    await navigator.clipboard.writeText(text);
    announce("Copied");
  } catch {
    // Not every browser gives a local file the clipboard: then the text is selected instead.
    getSelection().selectAllChildren(byId(id));
    announce("Selected: copy with the keyboard");
  }
}

let clearing;
function announce(text) {
  byId("announced").textContent = text;
  clearTimeout(clearing);
  clearing = setTimeout(() => { byId("announced").textContent = ""; }, 2500);
}

byId("chart").addEventListener("keydown", (event) => {
  const current = event.target.closest(".point");
  if (!current) return;
  const points = [...current.closest("svg").querySelectorAll(".point")];
  const isArrow = event.key.startsWith("Arrow");
  const target = isArrow ? neighbour(points, current, event.key) : current;
  if (!isArrow && event.key !== "Enter" && event.key !== " ") return;
  event.preventDefault();
  if (!target) return;
  const { line, length, machine } = target.dataset;
  choose(visible(machine).find((r) => r.line === line && r.seq_len === Number(length)), true);
});
for (const button of document.querySelectorAll("[data-copies]")) {
  button.addEventListener("click", () => copy(button.dataset.copies));
}
window.addEventListener("hashchange", () => change(fromHash));
let drawnAt = innerWidth;
window.addEventListener("resize", () => {
  if (innerWidth !== drawnAt) drawAll();
  drawnAt = innerWidth;
});

makeControls();
if (window.matchMedia("(max-width: 640px)").matches) byId("systems").open = false;
change(fromHash);
