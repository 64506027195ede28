// Numbers as text, as in analysis/rendering/text.py, and elements.

const DASH = "–";
const SVG = "http://www.w3.org/2000/svg";

function grouped(text) {
  const [whole, part] = text.split(".");
  const commas = whole.replace(/\B(?=(\d{3})+$)/g, ",");
  return part === undefined ? commas : `${commas}.${part}`;
}

// As toFixed, but a tie goes to the even digit, as in Python. Only a number that is one in binary
// too is a tie: 21.05 lies above it.
function fixed(value, digits) {
  const isTie = /^50*$/.test(value.toFixed(100).split(".")[1].slice(digits));
  const scaled = value * 10 ** digits;
  return (isTie ? (2 * Math.round(scaled / 2)) / 10 ** digits : value).toFixed(digits);
}

function decimals(value) {
  return value ? Math.min(Math.max(2 - Math.floor(Math.log10(Math.abs(value))), 0), 9) : 2;
}

// Three significant digits, thousands with commas; whole numbers below a million stay whole.
function number(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return DASH;
  const size = Math.abs(value);
  if (Number.isInteger(value) && size < 1e6) return grouped(String(value));
  if (size >= 1e6 || size < 1e-3) {
    const [mantissa, exponent] = value.toExponential(1).split("e");
    return `${mantissa}e${Number(exponent)}`;
  }
  if (size >= 100) return grouped(fixed(value, 0));
  return fixed(value, decimals(value));
}

// 1.87 [1.80, 1.95]: all with the decimals of the value's three significant digits.
function interval(value, ends) {
  if (value === null || value === undefined) return DASH;
  const form = (x) => grouped(fixed(x, decimals(value)));
  if (!ends || ends[0] === null) return form(value);
  const [low, high] = ends;
  if (low < value / 20 || high > value * 20) {
    return `${form(value)} [${number(low)}, ${number(high)}]`;
  }
  return `${form(value)} [${form(low)}, ${form(high)}]`;
}

// 512, 2K, 1M with K = 1024.
function tokens(n) {
  if (n >= 2 ** 20) return `${+(n / 2 ** 20).toPrecision(6)}M`;
  return n >= 1024 ? `${+(n / 1024).toPrecision(6)}K` : String(n);
}

function statusWords(record) {
  return DATA.reasons[record.status] || record.status;
}

function make(tag, attributes, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function draw(tag, attributes, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes || {})) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

// The marker of a record's system, centred at (x, y); hollow where nothing was timed.
function marker(record, x, y, size) {
  const look = DATA.looks[record.system];
  const timed = record.status === "ok";
  return draw("path", {
    d: look.marker,
    transform: `translate(${x.toFixed(1)} ${y.toFixed(1)}) scale(${size})`,
    fill: timed ? look.color : "#fff",
    stroke: look.color,
    "stroke-width": (timed ? 0.6 : 1.4) / size,
  });
}

function swatch(record) {
  const svg = draw("svg", { class: "swatch", viewBox: "-7 -7 14 14", "aria-hidden": "true" });
  svg.append(marker({ ...record, status: "ok" }, 0, 0, 4.5));
  return svg;
}
