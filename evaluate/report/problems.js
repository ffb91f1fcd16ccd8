/* The problems: a list that is drawn in portions, and of each the evidence, unpacked when it is opened. */

const PORTION = 50, CANDIDATES = 8, LONG = 700;
const OUTCOMES = {
  r: ["right", "✓"],
  w: ["wrong", "✗"],
  u: ["unparsed", "?"],
  f: ["failed", "!"],
  ".": ["missing", "·"],
};
const LETTER = Object.fromEntries(Object.entries(OUTCOMES).map(([letter, [name]]) => [name, letter]));
const FILTERS = [
  ["all problems", () => true],
  ["cells disagree", (o) => o.includes("r") && /[wu]/.test(o)],
  ["no cell is right", (o) => !o.includes("r")],
  ["every cell is right", (o) => /^r+$/.test(o)],
  ["something failed or is missing", (o) => /[f.]/.test(o)],
];
const list = { task: null, shown: PORTION };

function showProblems(task) {
  list.task = task;
  const words = byId("search").value.toLowerCase();
  const [, keeps] = FILTERS[byId("filter").value];
  const found = DATA.problems.map((problem, i) => [problem, i]).filter(([p]) =>
    (task === DATA.all || p.task === task) && keeps(p.outcomes) && `${p.id} ${p.text} ${p.gold}`.toLowerCase().includes(words));
  byId("problems").replaceChildren(...found.slice(0, list.shown).map(([problem, i]) => item(problem, i)));
  byId("found").textContent = found.length === DATA.problems.length ? count(found.length, "problem") : `${found.length} of ${DATA.problems.length} problems`;
  byId("more").hidden = found.length <= list.shown;
  byId("more").textContent = `Show ${Math.min(PORTION, found.length - list.shown)} more`;
}

function item(problem, i) {
  const rights = [...problem.outcomes].filter((letter) => letter === "r").length;
  const had = [...problem.outcomes].filter((letter) => letter !== ".").length;
  const summary = make("summary", {},
    make("span", { class: "id" }, problem.id),
    make("span", { class: "question" }, problem.text),
    make("span", { class: "tally" }, strip(problem.outcomes), make("span", { class: "share" }, `${rights} of ${had} right`)));
  const entry = make("details", { class: "problem", "data-problem": problem.id }, summary);
  entry.addEventListener("toggle", () => entry.open && entry.children.length === 1 && open(entry, i));
  return entry;
}

/* One small bar a cell: tall is right, short is wrong, hollow unparsed, crossed failed; nothing where it is missing. */
function strip(outcomes) {
  const step = outcomes.length > 40 ? 3 : 5, wide = step - 1;
  const bars = { r: "", w: "", u: "", f: "" };
  [...outcomes].forEach((letter, i) => {
    if (letter === ".") return;
    const top = letter === "r" || letter === "f" ? 1 : 8;
    bars[letter] += `M${i * step} ${top}h${wide}V15h-${wide}z`;
  });
  const paths = Object.entries(bars).filter(([, d]) => d).map(([letter, d]) => draw("path", { class: OUTCOMES[letter][0], d }));
  const width = outcomes.length * step;
  return draw("svg", { class: "strip", viewBox: `0 0 ${width} 16`, width, height: 16, "aria-hidden": "true" }, paths);
}

async function unpack(i) {
  const bytes = Uint8Array.from(atob(byId(`evidence-${i}`).textContent), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return JSON.parse(await new Response(stream).text());
}

async function open(entry, i) {
  const body = make("div", { class: "body" }, make("p", { class: "note" }, "Opening …"));
  entry.append(body);
  try {
    const evidence = await unpack(i);
    const panel = make("div", { class: "panel", "aria-live": "polite" });
    const chooser = make("div", { class: "chooser" }, cellChoices(evidence, (cell) => showCell(panel, evidence, cell)));
    body.replaceChildren(asked(evidence, DATA.problems[i]), make("div", { class: "split" }, chooser, panel));
    chooser.querySelector("button.chip:not(:disabled)")?.click();
  } catch (error) {
    body.replaceChildren(make("p", { class: "note" }, `This problem's evidence can't be read: ${error.message}`));
  }
}

function asked(evidence, problem) {
  return make("div", { class: "asked" }, text(evidence.question, "prompt"),
    problem.gold == null ? null : make("p", { class: "gold" }, make("span", {}, "Expected"), make("b", {}, problem.gold)));
}

/* Rows of strategies, chips of budgets. */
function cellChoices(evidence, choose) {
  const names = [...new Set(DATA.cells.map(([strategy]) => strategy))];
  const several = new Set(DATA.cells.map(([, , replicate]) => replicate)).size > 1;
  return names.map((name) => make("div", { class: "choice" }, make("span", { class: "name" }, swatch(name), make("span", {}, name)),
    make("span", { class: "chips" }, DATA.cells.map((cell, i) => (cell[0] === name ? chip(cell, i, evidence, several, choose) : null)))));
}

function chip([strategy, budget, replicate], i, evidence, several, choose) {
  const outcome = evidence.cells[i]?.outcome ?? "missing";
  const pick = (event) => {
    const all = event.currentTarget.closest(".chooser").querySelectorAll("button.chip");
    all.forEach((other) => other.setAttribute("aria-pressed", String(other === event.currentTarget)));
    choose(i);
  };
  const label = `${strategy}, budget ${budget}${several ? `, replicate ${replicate}` : ""}: ${outcome}`;
  return make("button", { type: "button", class: `chip ${outcome}`, "aria-pressed": "false", "aria-label": label, title: label, disabled: outcome === "missing", onclick: pick },
    make("span", { class: "sign" }, OUTCOMES[LETTER[outcome]]?.[1] ?? "·"), several ? `${budget}·${replicate + 1}` : String(budget));
}

function showCell(panel, evidence, i) {
  const cell = evidence.cells[i], [strategy, budget] = DATA.cells[i];
  const head = make("header", {}, make("h3", {}, strategy, make("span", {}, ` budget ${budget}`)), badge(cell.outcome));
  const facts = make("p", { class: "facts" }, `${count(cell.generated, "token")} generated, ${short(cell.sequential)} in sequence; ${count(cell.pool.length, "candidate")}`);
  const reason = cell.error ? make("p", { class: "error" }, cell.error) : because(cell);
  panel.replaceChildren(head, reason, facts, ...[votes(evidence, cell)].filter(Boolean), candidates(evidence, cell));
}

function badge(outcome) {
  return make("span", { class: `badge ${outcome}` }, `${OUTCOMES[LETTER[outcome]]?.[1] ?? ""} ${outcome}`);
}

function because(cell) {
  return make("p", { class: "because" }, "Answer ", make("b", {}, cell.answer ?? "none"), ", chosen by ", make("i", {}, cell.why));
}

/* Candidates by their answer: how many, and what weighed for them. */
function votes(evidence, cell) {
  const classes = new Map();
  cell.pool.forEach((place, k) => {
    const response = evidence.responses[place];
    const answer = finished(response) ? response.answer : null;
    const entry = classes.get(answer) ?? { answer, n: 0, sum: 0, best: null, right: false };
    const weight = cell.weights[k];
    Object.assign(entry, { n: entry.n + 1, sum: entry.sum + (weight ?? 0), right: entry.right || response?.score > 0 });
    if (weight != null) entry.best = Math.max(weight, entry.best ?? weight);
    classes.set(answer, entry);
  });
  if (classes.size < 2 && cell.pool.length < 2) return null;
  const weights = cell.weights.filter((weight) => weight != null);
  const weighed = new Set(weights).size > 1, adds = weighed && weights.every((weight) => weight >= 0);
  const rows = [...classes.values()].sort((a, b) => (a.answer == null) - (b.answer == null) || b.n - a.n);
  const head = ["Answer", "Candidates", "", ...(adds ? ["Weight in all"] : []), ...(weighed ? ["Highest"] : [])];
  const most = Math.max(...rows.map((row) => row.n));
  const line = (row) => make("tr", { class: row.answer != null && row.answer === cell.answer ? "won" : null },
    make("th", { scope: "row" }, make("span", { class: "answer" }, row.answer ?? "none read"), row.right ? make("span", { class: "yes", title: "right" }, " ✓") : null),
    make("td", { class: "number" }, String(row.n)), make("td", { class: "share" }, meter(row.n / most, row.right)),
    adds ? make("td", { class: "number" }, short(row.sum)) : null, weighed ? make("td", { class: "number" }, short(row.best)) : null);
  return make("table", { class: "votes" }, make("thead", {}, make("tr", {}, head.map((name, i) => make("th", { scope: "col", class: i && i !== 2 ? "number" : null }, name)))), make("tbody", {}, rows.map(line)));
}

function meter(share, isRight) {
  return draw("svg", { class: "meter " + (isRight ? "right" : "wrong"), viewBox: "0 0 100 8", preserveAspectRatio: "none", "aria-hidden": "true" }, draw("rect", { width: 100 * share, height: 8, rx: 1 }));
}

const finished = (response) => response && (response.finish === "eos" || response.finish === "until");

/* The answer first, then the others in the order of their draw. */
function candidates(evidence, cell) {
  const others = cell.pool.map((place, k) => [place, cell.weights[k], k]);
  const winner = others.findIndex(([place]) => place === cell.response);
  const [won] = winner < 0 ? [[cell.response, null, null]] : others.splice(winner, 1);
  const box = make("div", { class: "candidates" }, candidate(evidence, won, true));
  const rest = others.map((other) => () => candidate(evidence, other, false));
  box.append(...rest.slice(0, CANDIDATES).map((build) => build()));
  if (rest.length > CANDIDATES) {
    const button = make("button", { type: "button", class: "more" }, `Show the other ${rest.length - CANDIDATES}`);
    button.addEventListener("click", () => button.replaceWith(...rest.slice(CANDIDATES).map((build) => build())));
    box.append(button);
  }
  return box;
}

function candidate(evidence, [place, weight, k], won) {
  const response = evidence.responses[place];
  if (!response) return make("article", { class: "candidate" }, make("p", { class: "note" }, "The text of this response is not in the run folder."));
  const kind = response.score > 0 ? "right" : response.finish === "failed" ? "failed" : response.answer == null ? "unparsed" : "wrong";
  const facts = [k == null ? null : `draw ${k + 1}`, weight == null ? null : `weight ${short(weight)}`, count(response.tokens, "token"), finished(response) ? null : `ends by ${response.finish}`, response.logprob == null ? null : `mean log p ${response.logprob.toFixed(2)}`];
  return make("article", { class: won ? "candidate chosen" : "candidate" },
    make("header", {}, won ? make("span", { class: "crown" }, "chosen") : null, badge(kind), make("b", { class: "answer" }, response.answer ?? "no answer"), make("span", { class: "facts" }, facts.filter(Boolean).join(" · "))),
    text(response.text, "response"));
}

/* Long texts fold. */
function text(words, style) {
  const block = make("pre", { class: style }, words || "(empty)");
  if (words.length <= LONG && words.split("\n").length <= 14) return block;
  block.classList.add("folded");
  const button = make("button", { type: "button", class: "unfold" }, "show all");
  button.addEventListener("click", () => { button.textContent = block.classList.toggle("folded") ? "show all" : "fold"; });
  return make("div", { class: "fold" }, block, button);
}
