// Two to eight trials side by side.

import { comparePage, get, path, sweepPage, trialPage } from "../api.js";
import { keep, kept, keptAll } from "../address.js";
import { addressOf, curveControls, stateOf, toggle } from "../controls.js";
import { curveFigure, fetchCurves, groups, hasLength } from "../curves.js";
import { byId, h, replace, throttled } from "../dom.js";
import * as format from "../format.js";
import { follow } from "../live.js";
import { figurePanel, lineStyle, plot, preloadPlotly, saveButtons, whenNear } from "../plot.js";
import { draw, empty, onKey, stateBadge } from "../shell.js";

const MOST = 8;
const chosen = [...new Set(keptAll("trial"))].slice(0, MOST);
const view = stateOf(kept);
const logs = new Set(); // figures with a logarithmic axis
let compared = null;
let metrics = []; // names of all curves

const split = (reference) => [reference.slice(0, reference.indexOf("/")), reference.slice(reference.indexOf("/") + 1)];
const sweeps = [...new Set(chosen.map((one) => split(one)[0]))];
const titles = new Map(); // of W&B runs: their display names
const shortName = (reference) => titles.get(reference) ?? (sweeps.length === 1 ? split(reference)[1] : reference);
const go = (trials) => location.assign(comparePage(trials));

// Choosing

function adder() {
  const list = h("datalist", { id: "candidates" });
  const field = h("input", { type: "text", list: "candidates", placeholder: "Add a trial: SWEEP/TRIAL", "aria-label": "Add a trial, SWEEP/TRIAL", autocomplete: "off", size: 34 });
  const suggest = throttled(250, async () => {
    const text = field.value.trim();
    if (text.includes("/") && found.has(text)) return;
    const [sweep, words] = text.includes("/") ? split(text) : [sweeps[0], text];
    const names = sweep ? (await get(path("sweeps", sweep, "trials"), { q: words, limit: 20 }).catch(() => ({ trials: [] }))).trials.map((row) => `${sweep}/${row.name}`) : (await get("/sweeps")).sweeps.map((one) => `${one.name}/`);
    found = new Set(names);
    replace(list, names.filter((name) => !chosen.includes(name)).map((name) => h("option", { value: name })));
  });
  let found = new Set();
  field.addEventListener("input", () => {
    if (found.has(field.value) && !field.value.endsWith("/")) go([...chosen, field.value]);
    else suggest();
  });
  field.addEventListener("focus", suggest);
  const form = h("form.row", { on: { submit: (event) => (event.preventDefault(), field.value.trim().includes("/") && go([...chosen, field.value.trim()])) } }, field, list, h("button", { type: "submit" }, "Add"));
  onKey("/", "Add a trial", () => field.focus());
  return form;
}

// Side by side

function heads(trials, removable) {
  return trials.map((trial, index) =>
    h(
      "th",
      { scope: "col" },
      h("div", {}, swatch(index), h("a", { href: trialPage(...split(trial.trial)) }, shortName(trial.trial))),
      removable && chosen.length > 2 && h("button.quiet.small", { type: "button", "aria-label": `take out ${trial.trial}`, on: { click: () => go(chosen.filter((one) => one !== trial.trial)) } }, "take out"),
    ),
  );
}

function swatch(index) {
  return h("span.swatch", { "aria-hidden": "true", style: { color: lineStyle(index).color } });
}

const ROWS = [
  ["State", (trial) => stateBadge(trial.state)],
  ["Model", (trial) => trial.label],
  ["Seed", (trial) => trial.seed],
  ["Perplexity", (trial) => format.perplexity(trial.perplexity)],
  ["95% interval", (trial) => format.interval(trial.low, trial.high) || format.NONE],
  ["Sparsity", (trial) => format.percent(trial.sparsity)],
  ["Sparsity, all weights", (trial) => format.percent(trial.sparsity_all)],
  ["Coverage", (trial) => format.percent(trial.coverage)],
  ["Tokens trained on", (trial) => format.count(trial.tokens)],
  ["Compute", (trial) => format.duration(trial.seconds)],
  ["Protocol", (trial) => trial.protocol ?? format.NONE],
  ["Measured on", (trial) => (trial.text ? `${trial.split}, text ${trial.text.slice(0, 12)}` : format.NONE)],
];

function summary({ trials }) {
  const rows = ROWS.map(([label, show]) => h("tr", {}, h("th", { scope: "row" }, label), trials.map((trial) => h("td", {}, show(trial)))));
  return sheet("Results", trials, rows, true);
}

function differences({ trials, differences }) {
  const found = differences.filter(({ values }) => !values.every(format.isEmpty));
  if (!found.length) return [h("h2", {}, "Differences of configuration"), h("div.panel", {}, empty("No differences", "These trials have the same configuration."))];
  const rows = found.map(({ path: at, values }) => h("tr", {}, h("th.mono", { scope: "row" }, parted(at)), values.map((value, place) => h("td", { class: place && JSON.stringify(value) === JSON.stringify(values[0]) ? "muted" : "" }, format.value(value)))));
  return sheet("Differences of configuration", trials, rows);
}

/** A path that may break after its dots. */
const parted = (at) => at.split(/(?<=\.)/).flatMap((part, index) => [index > 0 && h("wbr"), part]);

function sheet(title, trials, rows, removable = false) {
  const head = h("tr", {}, h("th", { scope: "col" }, h("span.visually-hidden", {}, title)), heads(trials, removable));
  return [h("h2", {}, title), h("div.panel", {}, h("div.scroll", { tabindex: 0, role: "region", "aria-label": title }, h("table.compare-table", {}, h("thead", {}, head), h("tbody", {}, rows))))];
}

function tests({ tests: found }) {
  const head = ["First", "Second", "Ratio of perplexities", "95% interval", "Difference", "p", "Verdict"].map((text, index) => h("th", { scope: "col", class: index > 1 && index < 6 ? "number" : "" }, text));
  const rows = found.map((test) => {
    const none = test.ratio === null || test.ratio === undefined;
    return h(
      "tr",
      {},
      h("td.nowrap", {}, shortName(test.a)),
      h("td.nowrap", {}, shortName(test.b)),
      none
        ? h("td.muted", { colspan: 5 }, test.reason || "No test: the trials were not measured on the same windows.")
        : [
            h("td.number", {}, test.ratio.toFixed(4)),
            h("td.number", {}, `${test.low.toFixed(4)} – ${test.high.toFixed(4)}`),
            h("td.number", {}, format.signed(test.difference)),
            h("td.number", {}, format.probability(test.p)),
            h("td", { title: test.verdict ?? null }, test.p < 0.05 ? "differ" : "no difference shown"),
          ],
    );
  });
  const method = found.find((test) => test.method)?.method;
  return [h("h2", {}, "Paired tests"), h("div.panel", {}, h("div.scroll", { tabindex: 0, role: "region", "aria-label": "Paired tests" }, h("table", {}, h("thead", {}, h("tr", {}, head)), h("tbody", {}, rows)))), method && h("p.small.muted", {}, `Method: ${method}.`)];
}

// Curves overlaid

const panels = new Map();
const grid = h("div.grid");

async function loadCurves() {
  const all = await Promise.all(chosen.map((one) => fetchCurves(...split(one), metrics, view)));
  const names = [...new Set(all.flat().map((curve) => curve.name))].filter((name) => hasLength(all.flat().filter((curve) => curve.name === name)));
  if (!names.length) return void replace(grid, h("div.panel", {}, empty("No curves", "None of these trials has recorded any yet.")));
  // One figure per curve name: a figure of several names and several trials could not be distinguished.
  const shown = groups(names).flatMap((group) => group.names.filter((name) => !name.includes("target")).map((name) => ({ ...group, key: name, title: group.names.length > 1 ? `${group.title}: ${name}` : group.title, names: [name] })));
  for (const group of shown) {
    if (!panels.has(group.key)) panels.set(group.key, figurePanel(group.title, { links: [toggle("log", false, () => (logs.delete(group.key) || logs.add(group.key), void draw(grid, loadCurves)), `log axis: ${group.title}`), ...saveButtons(() => panels.get(group.key).plot, `compare-${group.key}`)] }));
  }
  const wanted = shown.map((group) => panels.get(group.key).panel);
  replace(grid, wanted);
  for (const group of shown) {
    const lines = chosen.flatMap((one, index) => {
      const mine = all[index].filter((curve) => curve.name === group.names[0]);
      return (mine.length ? mine : [{ stage: 0, name: group.names[0], x: [], y: [], offset: 0 }]).map((curve) => ({ label: shortName(one), curve }));
    });
    const figure = () => {
      const made = curveFigure(group, lines, view);
      if (logs.has(group.key)) Object.assign(made.layout.yaxis, { type: "log", rangemode: "normal" });
      return made;
    };
    await plot(panels.get(group.key).plot, figure, `${group.title} of ${chosen.map(shortName).join(", ")}`);
  }
}

// All of it

async function load() {
  compared = await get("/compare", { trial: chosen, name: ["perplexity"], points: 5 });
  for (const { trial, name, title } of compared.trials) if (title !== name) titles.set(trial, title);
  metrics = [...new Set((await Promise.all(chosen.map((one) => get(path("trials", ...split(one)))))).flatMap((trial) => trial.curves.map((curve) => curve.name)))].filter((name) => !name.startsWith("sparsity/"));
  const choose = curveControls(view, metrics, () => {
    keep(addressOf(view));
    void draw(grid, loadCurves);
  });
  replace(
    byId("content"),
    h("section", {}, summary(compared)),
    h("section", {}, tests(compared)),
    h("section", {}, h("div.section-head", {}, h("h2", {}, "Curves"), choose), grid),
    h("section", {}, differences(compared)),
  );
}

onKey("u", "Up to the sweep", () => location.assign(sweeps.length ? sweepPage(sweeps[0]) : "/"));
onKey("Escape", "Leave a field, close a menu", () => {});
const head = document.querySelector(".page-head");
if (sweeps.length) head.querySelector(".titles").prepend(h("nav.crumbs", { "aria-label": "Where this is" }, sweeps.map((sweep) => h("a", { href: sweepPage(sweep) }, sweep))));
head.append(h("div.actions", {}, chosen.length < MOST && adder()));

if (chosen.length < 2) {
  const words = chosen.length ? `${chosen[0]} is chosen. Add another one above, or select trials in the table of a sweep (x) and press c.` : "Select two to eight trials in the table of a sweep (x) and press c, or add them above.";
  replace(byId("content"), h("div.panel", {}, empty(chosen.length ? "One more" : "Nothing to compare yet", words)));
} else {
  preloadPlotly();
  await draw(byId("content"), async () => {
    await load();
    whenNear(grid, () => void draw(grid, loadCurves));
    const again = throttled(3000, () => void draw(byId("content"), load));
    const curvesAgain = throttled(2000, () => void draw(grid, loadCurves));
    const ids = new Set(compared.trials.map((trial) => trial.id));
    follow(sweeps.length === 1 ? sweeps[0] : null, {
      sweep: (event) => (event.more || event.changed.some((row) => ids.has(row.id))) && again(),
      points: (event) => ids.has(event.id) && curvesAgain(),
      reload: () => (again(), curvesAgain()),
    }, { since: compared.revision });
  });
}
addEventListener("themechange", () => compared && void draw(byId("content"), load));
