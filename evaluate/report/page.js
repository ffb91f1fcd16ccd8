/* What stands above the tables, and the choice of the task. */

function showHeader() {
  const about = DATA.about;
  byId("name").textContent = about.run;
  const parts = [about.models.join(", "), count(about.problems, "problem"), count(about.cells, "cell"), count(about.responses, "response"), `${short(about.tokens_computed)} tokens computed, ${short(about.tokens_read)} read`, about.devices.join(", "), about.wall_seconds ? duration(about.wall_seconds) : ""];
  byId("facts").replaceChildren(...parts.filter(Boolean).map((part) => make("span", {}, part)));
  if (DATA.warnings.length) {
    byId("warnings").hidden = false;
    byId("warnings").open = DATA.warnings.length <= 4;
    byId("warnings").append(make("summary", {}, count(DATA.warnings.length, "warning")), make("ul", {}, DATA.warnings.map((warning) => make("li", {}, warning))));
  }
  const versions = Object.entries(about.versions).map(([name, version]) => `${name} ${version}`).join("\n");
  byId("recipe").textContent = [DATA.recipe.trim(), versions].filter(Boolean).join("\n\n");
  byId("recipe-section").hidden = !byId("recipe").textContent;
}

function duration(seconds) {
  if (seconds < 90) return `${plain(seconds)} s`;
  return seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`;
}

/* The row of the highest accuracy, in a sentence. */
function showLede(task) {
  const mine = DATA.rows.filter((row) => row.task === task);
  const rows = mine.some((row) => !row.oracle) ? mine.filter((row) => !row.oracle) : mine;
  const top = rows.reduce((a, b) => (b.accuracy > a.accuracy || (b.accuracy === a.accuracy && b.generated < a.generated) ? b : a));
  const range = top.accuracy_low == null ? "" : ` (95 % interval ${interval(top.accuracy_low, top.accuracy_high)})`;
  const parts = ["The highest accuracy, ", make("b", {}, percent(top.accuracy) + " %"), range, ", is that of ", make("b", {}, top.strategy), ` at a budget of ${top.budget}`];
  byId("lede").replaceChildren(...parts, ...against(top), ".");
}

function against(row) {
  if (row.difference == null) return [];
  const chance = row.p_holm == null ? "" : row.p_holm < 0.05 ? `, Holm p ${pValue(row.p_holm)}` : `, which may be chance (Holm p ${pValue(row.p_holm)})`;
  return [": ", make("b", {}, percent(row.difference, true) + " points"), " against one plain sample", chance, ", for ", make("b", {}, short(row.generated)), " generated tokens a problem"];
}

function showNotes(task) {
  const base = DATA.rows.find((row) => row.baseline && row.task === task);
  byId("notes").textContent = `Ranges are 95 % intervals from resampling whole problems. Tokens, FLOPs and seconds are means per problem; seconds are modelled from this run's measured rates. ${base ? `One sample: ${base.strategy} at budget 1, the tick in each accuracy bar.` : "No strategy drew one plain sample, so nothing is compared."} A failed cell gains no score and stays in the denominator.`;
}

function showTask(task) {
  list.shown = PORTION;
  const tasks = [...new Set(DATA.rows.map((row) => row.task))];
  byId("tasks").hidden = tasks.length < 2;
  byId("tasks").replaceChildren(...tasks.map((name) => make("button", { type: "button", "aria-pressed": String(name === task), onclick: () => { showTask(name); focusOn("tasks", name); } }, name)));
  for (const show of [showLede, showChart, showBoard, showNotes, showPools, showProblems]) show(task);
}

function start() {
  const task = () => list.task;
  showHeader();
  byId("filter").append(...FILTERS.map(([name], i) => make("option", { value: i }, name)));
  byId("key").append(...["right", "wrong", "unparsed", "failed"].map((name) => make("span", {}, strip(LETTER[name]), name)), make("span", {}, "one bar a cell, in the order of the chips"));
  const refine = () => { list.shown = PORTION; showProblems(task()); };
  byId("search").addEventListener("input", refine);
  byId("filter").addEventListener("change", refine);
  byId("more").addEventListener("click", () => { list.shown += PORTION; showProblems(task()); });
  byId("all-columns").addEventListener("change", () => showBoard(task()));
  showTask(DATA.rows[0].task);
  let width = byId("chart").clientWidth;
  new ResizeObserver(() => {
    if (byId("chart").clientWidth !== width) {
      width = byId("chart").clientWidth;
      showChart(task());
    }
  }).observe(byId("chart"));
}

start();
