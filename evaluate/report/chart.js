/* Accuracy against cost: a line per strategy through its budgets, bars are 95 % intervals, dotted is one plain sample.
   Points of one cost stand side by side, a few pixels apart. */

const AXES = [
  { key: "generated", name: "Tokens", unit: "tokens", label: "generated tokens per problem" },
  { key: "flops", name: "FLOPs", unit: "FLOPs", label: "FLOPs per problem (policy, prefixes cached)" },
  { key: "seconds_modelled", name: "Seconds", unit: "seconds", label: "modelled seconds per problem" },
];
const chosen = { axis: AXES[0], hidden: new Set() };
const MARGIN = { left: 46, right: 18, top: 14, bottom: 44 };

function showChart(task) {
  const rows = DATA.rows.filter((row) => row.task === task);
  const points = rows.filter((row) => row[chosen.axis.key] > 0 && !chosen.hidden.has(row.strategy));
  const box = byId("chart");
  showAxes(task);
  showLegend(task, rows);
  if (!points.length) {
    box.replaceChildren(make("p", { class: "note" }, `No ${chosen.axis.label} known for this run.`));
    return;
  }
  const width = Math.max(300, box.clientWidth), height = width < 560 ? 300 : 400;
  const names = STRATEGIES.filter((name) => points.some((row) => row.strategy === name));
  const scale = scales(points, rows.filter((row) => row.baseline), width, height, names);
  const picture = draw("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": `Accuracy against ${chosen.axis.label}; the leaderboard below holds the numbers` },
    grid(scale, width, height), baseline(rows, scale, width), names.map((name) => line(name, points, scale)));
  const tip = make("div", { class: "tip", hidden: true });
  picture.addEventListener("pointermove", (event) => point(event, picture, tip, points, scale));
  picture.addEventListener("pointerleave", () => { tip.hidden = true; highlight(null); });
  box.replaceChildren(picture, tip);
}

function scales(points, base, width, height, names) {
  const costs = points.map((row) => row[chosen.axis.key]);
  const [low, high] = [Math.min(...costs) / 1.25, Math.max(...costs) * 1.25].map(Math.log10);
  const ends = [...points, ...base].flatMap((row) => [row.accuracy_low ?? row.accuracy, row.accuracy_high ?? row.accuracy]);
  const step = Math.max(...ends) - Math.min(...ends) > 0.45 ? 0.2 : 0.1;
  const bottom = Math.max(0, Math.floor(Math.min(...ends) / step + 1e-9) * step), top = Math.max(bottom + step, Math.min(1, Math.ceil(Math.max(...ends) / step - 1e-9) * step));
  const inner = [width - MARGIN.left - MARGIN.right, height - MARGIN.top - MARGIN.bottom];
  const x = (cost) => MARGIN.left + inner[0] * (Math.log10(cost) - low) / (high - low);
  const gap = Math.min(4, (width < 560 ? 14 : 28) / names.length);
  return {
    x,
    place: (row) => x(row[chosen.axis.key]) + gap * (names.indexOf(row.strategy) - (names.length - 1) / 2),
    y: (share) => MARGIN.top + inner[1] * (1 - (share - bottom) / (top - bottom)),
    ticks: ticks(10 ** low, 10 ** high, width < 560 ? 5 : 9),
    shares: Array.from({ length: Math.round((top - bottom) / step) + 1 }, (_, i) => bottom + i * step),
  };
}

/* 1, 2, 5 times powers of ten; fewer of them where they would crowd. */
function ticks(low, high, most) {
  for (const steps of [[1, 2, 5], [1, 3], [1]]) {
    const found = [];
    for (let power = Math.floor(Math.log10(low)); 10 ** power <= high; power++) {
      found.push(...steps.map((step) => Number(`${step}e${power}`)).filter((x) => x >= low && x <= high));
    }
    if (found.length <= most) return found;
  }
  return [low, high];
}

function grid(scale, width, height) {
  const bottom = height - MARGIN.bottom;
  const rules = scale.shares.map((share) => [
    draw("line", { class: "rule", x1: MARGIN.left, x2: width - MARGIN.right, y1: scale.y(share), y2: scale.y(share) }),
    draw("text", { x: MARGIN.left - 10, y: scale.y(share) + 4, "text-anchor": "end" }, Math.round(100 * share) + " %"),
  ]);
  const marks = scale.ticks.map((cost) => [
    draw("line", { class: "tick", x1: scale.x(cost), x2: scale.x(cost), y1: bottom, y2: bottom + 5 }),
    draw("text", { x: scale.x(cost), y: bottom + 20, "text-anchor": "middle" }, short(cost)),
  ]);
  const name = draw("text", { class: "axis", x: (MARGIN.left + width - MARGIN.right) / 2, y: height - 6, "text-anchor": "middle" }, chosen.axis.label);
  return draw("g", { class: "grid" }, rules.flat(), marks.flat(), name);
}

function baseline(rows, scale, width) {
  const base = rows.find((row) => row.baseline);
  if (!base) return null;
  const y = scale.y(base.accuracy);
  return draw("g", { class: "one" }, draw("line", { x1: MARGIN.left, x2: width - MARGIN.right, y1: y, y2: y }),
    draw("text", { x: width - MARGIN.right, y: y - 6, "text-anchor": "end" }, "one sample"));
}

function line(strategy, points, scale) {
  const mine = points.filter((row) => row.strategy === strategy).sort((a, b) => a[chosen.axis.key] - b[chosen.axis.key]);
  if (!mine.length) return null;
  const at = mine.map((row) => [scale.place(row), scale.y(row.accuracy), row]);
  const bars = at.filter(([, , row]) => row.accuracy_low != null).map(([x, , row]) => draw("line", { class: "bar", x1: x, x2: x, y1: scale.y(row.accuracy_low), y2: scale.y(row.accuracy_high) }));
  const path = draw("path", { d: "M" + at.map(([x, y]) => `${x.toFixed(1)} ${y.toFixed(1)}`).join("L") });
  return draw("g", { class: "line " + look(strategy), "data-strategy": strategy }, bars, path, at.map(([x, y]) => draw("circle", { cx: x, cy: y, r: 4.5 })));
}

function point(event, picture, tip, points, scale) {
  const bounds = picture.getBoundingClientRect();
  const [x, y] = [event.clientX - bounds.left, event.clientY - bounds.top];
  const far = (row) => Math.hypot(scale.place(row) - x, scale.y(row.accuracy) - y);
  const nearest = points.reduce((a, b) => (far(b) < far(a) ? b : a));
  tip.hidden = far(nearest) > 40;
  highlight(tip.hidden ? null : nearest.strategy);
  if (tip.hidden) return;
  const lines = [
    make("b", {}, `${nearest.strategy}, budget ${nearest.budget}`),
    make("span", {}, `${percent(nearest.accuracy)} % (${interval(nearest.accuracy_low, nearest.accuracy_high)})`),
    make("span", {}, `${short(nearest[chosen.axis.key])} ${chosen.axis.unit}`),
  ];
  if (nearest.difference != null) lines.push(make("span", {}, `${percent(nearest.difference, true)} points vs. one sample`));
  tip.replaceChildren(...lines);
  const px = scale.place(nearest), py = scale.y(nearest.accuracy);
  tip.style.left = Math.min(Math.max(0, px + 14), bounds.width - tip.offsetWidth) + "px";
  tip.style.top = (py > tip.offsetHeight + 16 ? py - tip.offsetHeight - 12 : py + 14) + "px";
}

function highlight(strategy) {
  for (const group of document.querySelectorAll("#chart g.line")) {
    group.classList.toggle("dim", strategy != null && group.dataset.strategy !== strategy);
  }
}

function showAxes(task) {
  byId("axes").replaceChildren(...AXES.map((axis) => make("button", { type: "button", "aria-pressed": String(axis === chosen.axis), onclick: () => { chosen.axis = axis; showChart(task); focusOn("axes", axis.name); } }, axis.name)));
}

function showLegend(task, rows) {
  const names = STRATEGIES.filter((name) => rows.some((row) => row.strategy === name));
  byId("legend").replaceChildren(...names.map((name) => {
    const toggle = () => {
      if (!chosen.hidden.delete(name)) chosen.hidden.add(name);
      showChart(task);
      focusOn("legend", name);
    };
    const on = { onpointerenter: () => highlight(name), onpointerleave: () => highlight(null), onclick: toggle };
    return make("button", { type: "button", "aria-pressed": String(!chosen.hidden.has(name)), ...on }, swatch(name), make("span", {}, name));
  }));
}

function focusOn(group, text) {
  [...byId(group).querySelectorAll("button")].find((button) => button.textContent === text)?.focus();
}
