/* The leaderboard, sorted by a click on a column, and the table of the pools. */

const right = (text) => ({ text, class: "number" });
const COLUMNS = [
  { key: "strategy", name: "Strategy", cell: strategyCell, first: true },
  { key: "budget", name: "Budget", cell: (row) => right(String(row.budget)) },
  { key: "accuracy", name: "Accuracy, %", cell: accuracyCell, down: true },
  { key: "difference", name: "vs. one sample", hint: "percentage points, paired by problem", cell: differenceCell, down: true },
  { key: "p_holm", name: "Holm p", hint: "sign-flip test, corrected over the rows", cell: (row) => right(pValue(row.p_holm)) },
  { key: "generated", name: "Tokens", hint: "generated, mean per problem", cell: shortCell("generated") },
  { key: "flops", name: "FLOPs", hint: "of the policy, prefixes cached", cell: shortCell("flops") },
  { key: "seconds_modelled", name: "Seconds", hint: "modelled from this run's rates", cell: shortCell("seconds_modelled") },
  { key: "equal_budget", name: "vs. self-consistency", hint: "of the same budget, percentage points", more: true, cell: versusCell("equal_budget"), down: true },
  { key: "equal_budget_p_holm", name: "Holm p", hint: "of the column before", more: true, cell: (row) => right(pValue(row.equal_budget_p_holm)) },
  { key: "equal_tokens", name: "… at equal tokens", hint: "beside the two budgets of self-consistency whose mean tokens enclose the row's", more: true, cell: versusCell("equal_tokens"), down: true },
  { key: "equal_tokens_p_holm", name: "Holm p", hint: "of the column before", more: true, cell: (row) => right(pValue(row.equal_tokens_p_holm)) },
  { key: "sequential", name: "Sequential", hint: "forward passes on the longest chain of draws", more: true },
  { key: "prefill", name: "Prefill", hint: "tokens read, prefixes cached", more: true },
  { key: "prefill_uncached", name: "Prefill, no cache", more: true },
  { key: "tokens_per_right", name: "Tokens per right", more: true },
  { key: "flops_uncached", name: "FLOPs, no cache", more: true },
  { key: "kv_bytes", name: "KV bytes", more: true },
  { key: "p", name: "p", hint: "sign-flip test", more: true, cell: (row) => right(pValue(row.p)) },
  { key: "p_mcnemar", name: "McNemar p", more: true, cell: (row) => right(pValue(row.p_mcnemar)) },
  { key: "frontier_share", name: "On frontier", hint: "share of resamples on the Pareto frontier, %", more: true, cell: (row) => right(percent(row.frontier_share)), down: true },
  { key: "questions", name: "Problems", more: true },
  { key: "replicates", name: "Replicates", more: true },
  { key: "paired", name: "Paired", hint: "problems that both sides have", more: true },
  { key: "unparsed", name: "Unparsed", more: true },
  { key: "failed", name: "Failed", more: true },
  { key: "missing", name: "Missing", more: true },
];
const sorting = { key: "accuracy", down: true };

function shortCell(key) {
  return (row) => right(short(row[key]));
}

function strategyCell(row) {
  const marks = [];
  if (row.frontier) marks.push(make("span", { class: "mark", title: "No row is both cheaper in tokens and better" }, "frontier"));
  if (row.oracle) marks.push(make("span", { class: "mark plain", title: "It looks at the expected answer" }, "ceiling"));
  if (row.failed) marks.push(make("span", { class: "mark bad", title: "Failed cells stay in the denominator" }, `${row.failed} failed`));
  if (row.missing) marks.push(make("span", { class: "mark bad", title: "Missing cells are in no denominator" }, `${row.missing} missing`));
  return { class: "strategy", text: make("span", {}, swatch(row.strategy), make("span", { class: "names" }, make("span", { class: "label" }, breakable(row.strategy)), marks)) };
}

function accuracyCell(row) {
  return {
    class: "number accuracy",
    text: make("span", {}, track(row), make("span", { class: "figures" }, make("b", {}, percent(row.accuracy)), make("small", {}, interval(row.accuracy_low, row.accuracy_high)))),
  };
}

/* The interval on a line from 0 to 100 %, with a tick where one plain sample is. */
function track(row) {
  const at = (x) => 4 + 142 * x;
  const base = DATA.rows.find((other) => other.baseline && other.task === row.task);
  const parts = [draw("line", { class: "rail", x1: 4, x2: 146, y1: 8, y2: 8 })];
  if (base) parts.push(draw("line", { class: "base", x1: at(base.accuracy), x2: at(base.accuracy), y1: 2, y2: 14 }));
  if (row.accuracy_low != null) parts.push(draw("line", { class: "range", x1: at(row.accuracy_low), x2: at(row.accuracy_high), y1: 8, y2: 8 }));
  parts.push(draw("circle", { cx: at(row.accuracy), cy: 8, r: 3.5 }));
  return draw("svg", { class: "track " + look(row.strategy), viewBox: "0 0 150 16", width: 150, height: 16, "aria-hidden": "true" }, parts);
}

function differenceCell(row) {
  if (row.baseline) return { class: "number faint", text: "one sample" };
  return gained(row.difference, row.difference_low, row.difference_high, row.p_holm);
}

function versusCell(key) {
  return (row) => (row[key] == null ? right(UNKNOWN) : gained(row[key], row[key + "_low"], row[key + "_high"], row[key + "_p_holm"]));
}

function gained(value, low, high, p) {
  const clear = p != null && p < 0.05 ? (value > 0 ? "gain" : "loss") : "";
  return {
    class: "number",
    text: make("span", { class: "figures" }, make("b", { class: clear }, percent(value, true)), make("small", {}, interval(low, high, true))),
  };
}

function showBoard(task) {
  const columns = COLUMNS.filter((column) => !column.more || byId("all-columns").checked);
  const rows = sorted(DATA.rows.filter((row) => row.task === task));
  const head = make("tr", {}, columns.map((column) => heading(column, task)));
  const body = rows.map((row) => make("tr", { class: row.baseline ? "baseline" : null }, columns.map((column) => cell(column, row))));
  byId("board").replaceChildren(make("thead", {}, head), make("tbody", {}, body));
}

function heading(column, task) {
  const active = sorting.key === column.key;
  const sort = () => {
    Object.assign(sorting, { key: column.key, down: active ? !sorting.down : Boolean(column.down) });
    showBoard(task);
    byId("board").querySelector(`th[data-key="${column.key}"] button`).focus();
  };
  const state = active ? (sorting.down ? "descending" : "ascending") : "none";
  const button = make("button", { type: "button", title: column.hint, onclick: sort }, column.name);
  return make("th", { scope: "col", "data-key": column.key, "aria-sort": state, class: column.first ? "strategy" : "number" }, button);
}

function cell(column, row) {
  const { text, class: style } = column.cell ? column.cell(row) : right(short(row[column.key]));
  return make(column.first ? "th" : "td", { class: style, scope: column.first ? "row" : null, "data-key": column.key }, text);
}

/* What is not known comes last in both directions; equals stay in order of strategy and budget. */
function sorted(rows) {
  const { key, down } = sorting;
  const compare = (a, b) => (typeof a === "string" ? a.localeCompare(b) : a - b);
  return rows.sort((a, b) => {
    if (a[key] == null || b[key] == null) return (a[key] == null) - (b[key] == null);
    return (down ? -1 : 1) * compare(a[key], b[key]) || a.strategy.localeCompare(b.strategy) || a.budget - b.budget;
  });
}

function showPools(task) {
  const figures = DATA.at_k.filter((x) => x.task === task);
  byId("pools-section").hidden = !figures.length;
  const ks = [...new Set(figures.map((x) => x.k))].sort((a, b) => a - b);
  const kinds = [...new Set(figures.map((x) => JSON.stringify([x.kind, x.verifier])))].map((x) => JSON.parse(x));
  const head = [make("th", { scope: "col", class: "strategy" }, "Choice among k"), ...ks.map((k) => make("th", { scope: "col", class: "number" }, `k = ${k}`))];
  const tail = ["AUROC", "within a problem"].map((name) => make("th", { scope: "col", class: "number" }, name));
  const body = kinds.map(([kind, verifier]) => poolRow(kind, verifier, ks, figures, DATA.rankings.find((x) => x.task === task && kind === "best" && x.verifier === verifier)));
  byId("pools").replaceChildren(make("thead", {}, make("tr", {}, head, tail)), make("tbody", {}, body));
}

function poolRow(kind, verifier, ks, figures, ranking) {
  const name = { pass: "a perfect choice (pass@k)", maj: "majority vote (maj@k)", worst: "the worst of k (worst@k)", best: verifier }[kind];
  const cells = ks.map((k) => {
    const x = figures.find((y) => y.kind === kind && y.verifier === verifier && y.k === k);
    return make("td", { class: "number" }, x ? estimate(percent(x.value), interval(x.low, x.high), `${x.questions} problems`) : UNKNOWN);
  });
  const areas = [["auroc", "auroc"], ["within", "within"]].map(([key]) => {
    const known = ranking && ranking[key] != null;
    const range = known && ranking[key + "_low"] != null ? `${ranking[key + "_low"].toFixed(2)} to ${ranking[key + "_high"].toFixed(2)}` : "";
    return make("td", { class: "number" }, known ? estimate(ranking[key].toFixed(2), range) : UNKNOWN);
  });
  return make("tr", {}, make("th", { scope: "row", class: "strategy" }, kind === "best" ? swatch(verifier) : null, make("span", { class: "label" }, breakable(name))), cells, areas);
}

function estimate(value, range, title) {
  return make("span", { class: "figures", title }, make("b", {}, value), make("small", {}, range));
}
