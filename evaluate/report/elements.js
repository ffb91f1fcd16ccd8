/* Elements and numbers. All text goes through textContent: what a model wrote is never markup. */

const DATA = JSON.parse(document.getElementById("data").textContent);
const SVG = "http://www.w3.org/2000/svg";
const UNKNOWN = "–";
const byId = (id) => document.getElementById(id);

function make(tag, attributes = {}, ...children) {
  return dress(document.createElement(tag), attributes, children);
}

function draw(tag, attributes = {}, ...children) {
  return dress(document.createElementNS(SVG, tag), attributes, children);
}

function dress(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children.flat().filter((child) => child != null));
  return element;
}

/* Three digits and a suffix: 1234 → 1.23k. */
function short(x) {
  if (x == null) return UNKNOWN;
  const steps = [[1e18, "E"], [1e15, "P"], [1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]];
  for (const [size, suffix] of steps) {
    if (Math.abs(x) >= size * 0.9995) return plain(x / size) + suffix;
  }
  return plain(x);
}

function plain(x) {
  if (x !== 0 && Math.abs(x) < 0.001) return x.toExponential(1);
  return String(Math.abs(x) >= 1000 ? Math.round(x) : Number(x.toPrecision(3)));
}

function percent(x, sign = false) {
  if (x == null) return UNKNOWN;
  const said = (100 * x).toFixed(1).replace(/^-0\.0$/, "0.0").replace("-", "−");
  return sign && x > 0 && said !== "0.0" ? "+" + said : said;
}

function interval(low, high, sign = false) {
  return low == null ? "" : `${percent(low, sign)} to ${percent(high, sign)}`;
}

function pValue(p) {
  if (p == null) return UNKNOWN;
  return p < 0.0001 ? "< 0.0001" : p < 0.01 ? p.toFixed(4) : p.toFixed(2);
}

function count(n, one, many = one + "s") {
  return `${n.toLocaleString("en")} ${n === 1 ? one : many}`;
}

/* A label that may break before its verifier. */
function breakable(label) {
  return label.split(/(?=\()/).flatMap((part, i) => (i ? [make("wbr"), part] : [part]));
}

/* The look of each strategy, the same everywhere: one of ten hues, and a dash where hues repeat. */
const STRATEGIES = [...new Set(DATA.rows.map((row) => row.strategy))].sort();
const look = (strategy) => {
  const i = STRATEGIES.indexOf(strategy);
  return `hue hue-${i % 10} dash-${Math.floor(i / 10) % 3}`;
};

function swatch(strategy) {
  const line = draw("line", { x1: 0, y1: 6, x2: 18, y2: 6 });
  return draw("svg", { class: "swatch " + look(strategy), viewBox: "0 0 18 12", width: 18, height: 12, "aria-hidden": "true" },
    line, draw("circle", { cx: 9, cy: 6, r: 4 }));
}
