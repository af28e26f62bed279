// One trial: its results, its curves, its sparsity by layer, how it was made, what went wrong.

import { address, get, path, post, sweepPage, trialPage } from "../api.js";
import { kept, keep } from "../address.js";
import { addressOf, curveControls, stateOf, toggle } from "../controls.js";
import { curveFigure, fetchCurves, groups, hasLength, loggedGroups } from "../curves.js";
import { byId, h, insertServerHtml, replace, throttled } from "../dom.js";
import * as format from "../format.js";
import { follow } from "../live.js";
import { showLogged } from "../logged.js";
import { figurePanel, plot, preloadPlotly, saveButtons, whenNear } from "../plot.js";
import { INTERRUPTED, confirm, copyButton, draw, empty, onKey, say, segmented, stateBadge } from "../shell.js";
import { neighbour } from "../trial_table.js";

const { sweep, trial: name } = document.body.dataset;
const reference = `${sweep}/${name}`;
const here = (...more) => path("trials", sweep, name, ...more);

let trial = null;
const view = stateOf(kept); // what curves run over, how they are smoothed
const panels = new Map(); // group of curves -> its figure
let curves = [];

const parts = Object.fromEntries(["chain", "evaluations", "logged", "curves", "layers", "model", "lineage", "config", "attempts", "command", "notes"].map((part) => [part, h("section")]));

async function load() {
  const last = trial;
  trial = await get(here());
  const shown = trial.logged ? ["curves", "logged", "notes", "attempts", "config"] : ["chain", "evaluations", "curves", "layers", "model", "notes", "attempts", "lineage", "config", "command"];
  if (!last) replace(byId("content"), ...shown.map((part) => parts[part]));
  showHead();
  if (trial.logged) void draw(parts.logged, () => showLogged(parts.logged, sweep, name));
  else showChain();
  showEvaluations();
  showModel();
  showAttempts(last);
  showLineage();
  if (!last) {
    showNotes();
    showConfig();
    showCommand();
  }
}

// Head

function showHead() {
  const measured = trial.stages.at(-1)?.evaluation ?? null;
  const sparsity = trial.stages.at(-1)?.sparsity ?? null;
  const after = trial.state === "finished" || !trial.stages.length ? "" : ` after ${trial.stages.at(-1).kind}`;
  const tokens = trial.stages.reduce((sum, stage) => sum + stage.train_tokens, 0);
  const seconds = trial.stages.reduce((sum, stage) => sum + stage.seconds, 0);
  const asked = sparsity?.target;
  const bounds = trial.interval ? `95% interval ${format.interval(trial.interval.low, trial.interval.high)}` : "";
  const running = trial.running_now ? trial.started : null;
  const state = trial.state === "running" && !trial.running_now ? INTERRUPTED : [trial.state, trial.reason === "early-stop" ? "stopped early" : trial.state];
  replace(
    byId("head"),
    h(
      "div.page-head",
      {},
      h(
        "div.titles",
        {},
        h("nav.crumbs", { "aria-label": "Where this is" }, h("a", { href: sweepPage(sweep) }, sweep)),
        h("h1", {}, (trial.logged && trial.label) || name),
        h("div.meta", {}, stateBadge(...state), trial.logged ? h("span.mono", {}, name) : trial.label && h("span", {}, trial.label), trial.asked && stateBadge("stopping", PENDING[trial.asked]), !trial.logged && h("span", {}, `seed ${trial.seed}`), trial.group !== name && h("span", {}, `group ${trial.group}`), !trial.shown && h("span.tag", {}, "no longer in the spec"), trial.implicit && h("span.tag", {}, "taken along as a teacher")),
      ),
      h(
        "div.actions",
        {},
        h("button", { type: "button", on: { click: () => void go(-1) }, title: "Trial before (k)", "aria-label": "Trial before" }, "←"),
        h("button", { type: "button", on: { click: () => void go(1) }, title: "Next trial (j)", "aria-label": "Next trial" }, "→"),
        h("button", { type: "button", on: { click: pick } }, "Compare …"),
        !trial.logged && trial.running_now && h("button", { type: "button", disabled: trial.asked === "stop", on: { click: () => void act("stop") } }, trial.asked === "stop" ? PENDING.stop : "Stop"),
        !trial.logged && ["failed", "stopped", "diverged"].includes(trial.state) && h("button", { type: "button", disabled: trial.asked === "retry", on: { click: () => void act("retry") } }, trial.asked === "retry" ? PENDING.retry : "Retry"),
      ),
    ),
    trial.error && h("div.problem", {}, h("p", {}, h("strong", {}, trial.reason ? `${trial.reason}: ` : ""), trial.error.length > 600 ? trial.error.slice(0, 600) + " …" : trial.error)),
    h(
      "div.panel.summary",
      {},
      h(
        "div.body",
        {},
        h(
          "dl.facts",
          {},
          !trial.logged && fact(`Perplexity${after}`, measured ? (measured.finite ? format.perplexity(measured.perplexity) : "not finite") : format.NONE, bounds),
          !trial.logged && fact(`Sparsity${after}`, sparsity?.selected ? format.percent(sparsity.pruned) : format.NONE, [asked !== null && asked !== undefined && `asked ${format.percent(asked)}`, sparsity?.selected && `all weights ${format.percent(sparsity.overall)}`, typeof sparsity?.coverage === "number" && `coverage ${format.percent(sparsity.coverage)}`].filter(Boolean).join(", ")),
          !trial.logged && fact("Tokens trained on", format.count(tokens)),
          trial.logged && fact("Started", format.time(trial.started)),
          !trial.logged && fact("Compute", format.duration(seconds), trial.stages.some((stage) => stage.cached) ? "shared stages included" : ""),
          running !== null && fact("Running for", format.duration(Date.now() / 1000 - running)),
          running === null && fact("Ended", format.time(trial.ended)),
          measured && fact("Measured", `${format.count(measured.tokens)} tokens`, measured.protocol),
        ),
      ),
    ),
  );
}

const fact = (label, value, more = null) => h("div", {}, h("dt", {}, label), h("dd", {}, value, more && h("small", {}, more)));

async function go(by) {
  const next = await neighbour(sweep, name, by);
  if (next === null) say(by > 0 ? "This is the last trial." : "This is the first trial.");
  else location.assign(trialPage(sweep, next) + location.search);
}

function pick() {
  const stored = `prunegpt-selected-${sweep}`;
  const chosen = new Set(JSON.parse(sessionStorage.getItem(stored) ?? "[]"));
  chosen.add(reference);
  sessionStorage.setItem(stored, JSON.stringify([...chosen].slice(-8)));
  location.assign(chosen.size > 1 ? "/compare?" + new URLSearchParams([...chosen].slice(-8).map((one) => ["trial", one])) : `/compare?${new URLSearchParams({ trial: reference })}`);
}

const QUESTIONS = {
  stop: ["Stop this trial?", `${reference} ends at its next safe point; what it has is kept, and it can be retried.`, "Stop the trial"],
  retry: ["Retry this trial?", `${reference} is requeued and runs in a new attempt. Published stages are not computed again.`, "Retry the trial"],
};

const PENDING = { stop: "Stopping …", retry: "Requeueing …" };

async function act(action) {
  const [title, text, words] = QUESTIONS[action];
  if (!(await confirm({ title, text, action: words, danger: action === "stop" }))) return;
  trial.asked = action;
  showHead(); // at once: it may take a while to happen
  try {
    say((await post(here("actions"), { action })).message);
  } catch (error) {
    trial.asked = "";
    showHead();
    say(error.message);
  }
  reload();
}

// Chain

function showChain() {
  const boxes = trial.chain.map((stage, index) => {
    const record = trial.stages[index];
    const value = record?.evaluation ? format.perplexity(record.evaluation.perplexity) : "";
    return h(
      "li",
      {},
      h(
        "div.box",
        { class: stage.state },
        h("div.row", {}, stateBadge(stage.state, stage.kind), h("span.mono.small.muted", { title: stage.key }, format.key(stage.key))),
        h("div.small.muted", {}, [record && (stage.cached ? "found computed" : record.seconds ? `computed in ${format.duration(record.seconds)}` : "computed"), value && `perplexity ${value}`, !record && stage.state].filter(Boolean).join(", ")),
        record?.notes?.length ? h("div.small", {}, record.notes.join(" ")) : null,
      ),
    );
  });
  replace(parts.chain, h("h2", {}, "Chain"), h("ol.chain", {}, boxes));
}

// What else the last stage was evaluated on

function showEvaluations() {
  const last = trial.stages.at(-1);
  const further = Object.entries(last?.also ?? {});
  parts.evaluations.hidden = further.length === 0;
  if (parts.evaluations.hidden) return;
  const all = last.evaluation ? [[last.evaluation.split, last.evaluation], ...further] : further;
  const rows = all.flatMap(([called, one]) => evaluated(called, one).map((row) => [...row, one.protocol]));
  const head = ["Evaluation", "Result", "Measured on", "Protocol"].map((text, index) => h("th", { scope: "col", class: index === 1 || index === 2 ? "number" : "" }, text));
  const body = rows.map(([called, value, on, protocol]) => h("tr", {}, h("th", { scope: "row" }, called), h("td.number", {}, value), h("td.number", {}, on), h("td.nowrap", {}, protocol)));
  replace(parts.evaluations, h("h2", {}, trial.state === "finished" ? "Evaluations" : `Evaluations after ${last.kind}`), h("div.panel", {}, h("div.scroll", { role: "region", "aria-label": "Evaluations" }, h("table", {}, h("thead", {}, h("tr", {}, head)), h("tbody", {}, body)))));
}

/** What an evaluation came to, in rows: what, the result, what it was measured on. */
function evaluated(called, { scores, speed, finite, perplexity, tokens }) {
  if (speed) return timed(called, speed);
  if (scores.length) return scores.map((score) => [`${score.task} (${score.metric})`, scored(score), `${score.documents.toLocaleString("en")} documents`]);
  return [[`Perplexity, ${called}`, finite ? format.perplexity(perplexity) : "not finite", `${tokens.toLocaleString("en")} tokens`]];
}

/** A measured speed; the noise is how far off the reference was beside itself. */
function timed(called, speed) {
  const name = called === "speed" ? "" : `, ${called}`;
  const ratio = ({ value, low, high }) => `× ${value.toFixed(3)} [${low.toFixed(3)}, ${high.toFixed(3)}]`;
  const rate = ({ value }, unit) => `${value.toLocaleString("en", { maximumSignificantDigits: 4 })} ${unit}`;
  const pairs = (noise) => `${speed.repeats} pairs of runs, noise ${(100 * noise).toFixed(1)}%`;
  return [
    [`Speed-up${name}`, ratio(speed.speedup), pairs(speed.noise)],
    [`Prefill speed-up${name}`, ratio(speed.speedup_prefill), pairs(speed.noise_prefill)],
    [`Decode${name}`, rate(speed.decode, "tokens/s"), ""],
    [`Prefill${name}`, rate(speed.prefill, "tokens/s"), ""],
    [`First token${name}`, rate(speed.first_token, "s"), ""],
    [`Memory${name}`, `${(speed.memory / 1e6).toLocaleString("en", { maximumFractionDigits: 1 })} MB`, ""],
  ];
}

const scored = ({ value, stderr }) => (value === null ? "not finite" : `${value.toFixed(4)}${stderr === null ? "" : ` ± ${stderr.toFixed(4)}`}`);

// Curves

const grouped = () => (trial.logged ? loggedGroups : groups)(trial.curves.map((curve) => curve.name));
const logs = new Set();
const grid = h("div.grid");
const single = h("div"); // metrics with one value, which make no line
const machineGrid = h("div.grid");
const machineTitle = h("summary");
const machine = h("details", { hidden: true, on: { toggle: () => machine.open && void draw(machineGrid, drawCurves) } }, machineTitle, machineGrid); // what a W&B client measures of it

async function loadCurves() {
  if (!parts.curves.firstChild) {
    const choose = curveControls(view, [...new Set(trial.curves.map((curve) => curve.name))], () => {
      keep(addressOf(view));
      void draw(grid, drawCurves);
    });
    const links = h("span.row", {}, ["csv", "json"].map((suffix) => h("a.button.small.quiet", { href: address(here(`points.${suffix}`)), download: "" }, `All points as ${suffix.toUpperCase()}`)));
    replace(parts.curves, h("div.section-head", {}, h("h2", {}, "Curves"), choose, links), grid, single, machine);
  }
  await drawCurves();
}

async function drawCurves() {
  const known = grouped();
  const names = known.flatMap((group) => group.names);
  curves = names.length ? await fetchCurves(sweep, name, names, view) : [];
  const shown = known.filter((group) => hasLength(curves.filter((curve) => group.names.includes(curve.name))));
  for (const group of shown) {
    if (panels.has(group.key)) continue;
    const log = toggle("log", false, () => toggleLog(group.key), `log axis: ${group.title}`);
    panels.set(group.key, figurePanel(group.title, { links: [log, ...saveButtons(() => panels.get(group.key).plot, `${name}-${group.key}`)] }));
  }
  const [wanted, aside] = [false, true].map((of) => shown.filter((group) => Boolean(group.machine) === of).map((group) => panels.get(group.key).panel));
  if (!wanted.length) {
    const ended = trial.state !== "running" && trial.state !== "waiting";
    replace(grid, h("div.panel", {}, empty("No curves", ended ? trial.logged ? "Nothing was logged more than once, so there is nothing to draw over time." : "Nothing was trained in this chain, so there is nothing to draw over time." : "They appear here while the trial runs.")));
  } else replace(grid, wanted);
  machine.hidden = !aside.length;
  machineTitle.textContent = format.plural(aside.length, "metric") + " of the machine";
  replace(machineGrid, aside);
  for (const group of shown) if (!group.machine || machine.open) await drawGroup(group);
  const alone = known.filter((group) => !shown.includes(group)).flatMap((group) => group.names);
  const values = alone.map((one) => [one, curves.filter((curve) => curve.name === one).at(-1)?.y.at(-1)]).filter(([, value]) => value !== undefined);
  replace(single, values.length > 0 && h("details.small", {}, h("summary", {}, `${format.plural(values.length, "metric")} measured once`), h("dl.links-list", {}, values.map(([one, value]) => [h("dt.mono", {}, one), h("dd", {}, format.number(value))]))));
}

function drawGroup(group) {
  const mine = curves.filter((curve) => group.names.includes(curve.name));
  const lines = mine.map((curve) => ({ label: curve.name, curve }));
  const figure = () => {
    const made = curveFigure(group, lines, view);
    if (trial.logged && view.axis === "step") made.layout.xaxis.title.text = "step";
    if (logs.has(group.key)) Object.assign(made.layout.yaxis, { type: "log", rangemode: "normal" });
    made.layout.shapes = borders(mine);
    return made;
  };
  return plot(panels.get(group.key).plot, figure, `${group.title} of ${name}, over ${view.axis !== "step" ? view.axis : trial.logged ? "steps" : "optimizer steps"}`);
}

/** A thin line where one stage of the chain ends and the next begins. */
function borders(mine) {
  const scale = view.axis === "time" ? 1 / 60 : 1;
  const starts = [...new Set(mine.map((curve) => curve.offset ?? 0))].filter((at) => at > 0);
  return starts.map((at) => ({ type: "line", x0: at * scale, x1: at * scale, yref: "paper", y0: 0, y1: 1, layer: "below", line: { color: "#888888", width: 1, dash: "dot" } }));
}

function toggleLog(key) {
  if (!logs.delete(key)) logs.add(key);
  void drawGroup(grouped().find((group) => group.key === key));
}

// Sparsity by layer

let layersPanel = null;

async function loadLayers() {
  const figure = await get(here("figures", "layers"));
  parts.layers.hidden = figure.data.length === 0; // nothing was pruned
  if (parts.layers.hidden) return;
  if (!layersPanel) {
    layersPanel = figurePanel(figure.layout.xaxis.type === "category" ? "Sparsity by layer" : "Sparsity by layer over time", { classes: "tall", links: saveButtons(() => layersPanel.plot, `${name}-layers`) });
    replace(parts.layers, layersPanel.panel);
  }
  layersPanel.plot.style.setProperty("height", `${Math.min(60, Math.max(14, 6 + 1.1 * figure.data[0].y.length))}rem`);
  await plot(layersPanel.plot, figure, `Heat map of sparsity by layer of ${name}`);
}

// Lineage, configuration, command

function showLineage() {
  const { parents, children, teachers, twins } = trial.lineage;
  const rows = [["Goes on from", parents], ["Taught by", teachers], ["Gone on from by", children], ["Same configuration", twins ?? []]].filter(([, found]) => found.length);
  parts.lineage.hidden = rows.length === 0;
  const link = ({ trial: other }) => {
    const [of, ...rest] = other.split("/");
    return h("a", { href: trialPage(of, rest.join("/")) }, of === sweep ? rest.join("/") : other);
  };
  replace(parts.lineage, h("h2", {}, "Lineage"), h("div.panel", {}, h("dl.links-list.body", {}, rows.map(([label, found]) => [h("dt", {}, label), h("dd", {}, found.slice(0, 40).map(link), found.length > 40 && h("span.muted", {}, `and ${found.length - 40} more`))]))));
}

function flatten(any, before = "") {
  if (any !== null && typeof any === "object" && Object.keys(any).length && !(Array.isArray(any) && any.every((one) => typeof one !== "object"))) {
    return Object.entries(any).flatMap(([key, value]) => flatten(value, before ? `${before}.${key}` : key));
  }
  return [[before, any]];
}

function showConfig() {
  const changed = new Map(trial.differences.filter((one) => !format.isEmpty(one.base) || !format.isEmpty(one.value)).map((one) => [one.path, one]));
  const rows = new Map(flatten(trial.config));
  for (const one of trial.differences) if (!rows.has(one.path)) rows.set(one.path, one.value);
  const covered = (at) => [...changed.keys()].find((key) => at === key || at.startsWith(key + "."));
  const body = h("tbody");
  const show = (which) => {
    const found = [...rows].filter(([at]) => which === "all" || covered(at));
    replace(body, found.map(([at, value]) => {
      const one = changed.get(at);
      return h("tr", { class: which === "all" && covered(at) ? "changed" : "" }, h("th.mono", { scope: "row" }, at), h("td", {}, format.value(value)), h("td", {}, one && one.base !== null && h("span.was", {}, format.value(one.base))));
    }));
    if (!found.length) replace(body, h("tr", {}, h("td.muted", { colspan: 3 }, "Nothing differs from the base of the sweep.")));
  };
  const choose = segmented("Which settings", [["changed", `Differences (${changed.size})`], ["all", "Everything"]], "changed", show);
  const copy = copyButton("Copy as JSON", () => JSON.stringify(trial.config, null, 2), { "data-what": "Configuration" });
  show("changed");
  replace(parts.config, h("div.section-head", {}, h("h2", {}, "Configuration"), choose, copy), h("div.panel", {}, h("div.scroll", {}, h("table.config", {}, h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Setting"), h("th", { scope: "col" }, "Here"), h("th", { scope: "col" }, "In the base"))), body))));
}

/** Something to copy into a shell or a script. */
const line = (text, label, what = "Command") => h("div.command", {}, h("pre", { "aria-label": label }, text), copyButton("Copy", text, { "data-what": what, "aria-label": `Copy: ${label}` }));
const above = (text) => h("p.small.muted", {}, text);

/** Where the model is and how to take it along; of one that was removed, how to have it again. */
function showModel() {
  const { model } = trial;
  parts.model.hidden = !model;
  if (!model) return;
  const ways = model.removed
    ? h("div.panel", {}, h("p.body", {}, model.removed))
    : [above("A folder or name that transformers loads:"), line(model.source, "Where the model is", "Path"), above("Write it to a folder of your own:"), line(model.export, "Command that writes the model to a folder"), above("From Python:"), line(model.python, "Code that opens the model", "Code")];
  replace(parts.model, h("h2", {}, "Model"), h("div.stack", {}, ways));
}

function showCommand() {
  replace(parts.command, h("h2", {}, "Reproduce"), h("div.stack", {}, line(trial.command, "Command that runs this trial"), trial.replay && [above("Or rerun the last attempt's folder:"), line(trial.replay, "Command that replays the attempt")]));
}

// Attempts and their logs

let logOf = null;
let logPlace = null;

function showAttempts(last) {
  const place = parts.attempts;
  place.hidden = trial.attempts.length === 0;
  if (last && JSON.stringify(last.attempts) === JSON.stringify(trial.attempts)) return void showLog();
  const ran = trial.attempts.filter((attempt) => attempt.log);
  if (logOf === null || !last || last.attempts.length !== trial.attempts.length) logOf = ran.at(-1)?.number ?? null;
  const rows = trial.attempts.toReversed().map((attempt) =>
    h(
      "tr",
      {},
      h("th", { scope: "row" }, String(attempt.number)),
      h("td", {}, stateBadge(attempt.state, attempt.outcome === "retried" ? `${attempt.state}, retried` : attempt.state)),
      h("td", {}, attempt.reason || attempt.error ? [attempt.reason && h("strong", {}, attempt.reason), attempt.reason && attempt.error && ": ", attempt.error.split("\n")[0]] : h("span.muted", {}, format.NONE), (attempt.trace || attempt.last_lines) && h("details", {}, h("summary", {}, attempt.trace ? "Trace" : "Last lines"), h("pre.log", { tabindex: 0 }, attempt.trace || attempt.last_lines))),
      h("td.nowrap", {}, format.time(attempt.started)),
      h("td.number", {}, format.duration((attempt.ended ?? Date.now() / 1000) - attempt.started)),
      h("td", {}, attempt.device || format.NONE),
      h("td", {}, attempt.log ? h("button.small", { type: "button", "aria-pressed": String(attempt.number === logOf), on: { click: () => chooseLog(attempt.number) } }, "Log") : h("span.muted", {}, "no worker ran")),
    ),
  );
  const head = ["Attempt", "State", "Reason", "Started", "Took", "Device", "Log"].map((text) => h("th", { scope: "col", class: text === "Took" ? "number" : "" }, text));
  logPlace = h("div");
  replace(place, h("h2", {}, "Attempts"), h("div.panel", {}, h("div.scroll", {}, h("table", {}, h("thead", {}, h("tr", {}, head)), h("tbody", {}, rows))), logPlace));
  whenNear(logPlace, showLog);
}

function chooseLog(number) {
  logOf = number;
  for (const button of parts.attempts.querySelectorAll("td button")) button.setAttribute("aria-pressed", String(button.closest("tr").firstChild.textContent === String(number)));
  void showLog();
}

async function showLog() {
  if (logOf === null || !logPlace) return;
  await draw(logPlace, async () => {
    const log = await get(here("log"), { attempt: logOf, tail: 200 });
    const before = logPlace.querySelector("pre");
    const atEnd = !before || before.scrollTop + before.clientHeight >= before.scrollHeight - 8;
    const top = before?.scrollTop ?? 0;
    const text = h("pre.log", { tabindex: 0, "aria-label": `End of the log of attempt ${logOf}` }, log.text || "The log is empty.");
    replace(logPlace, h("div.body.stack", { class: "log-box" }, h("div.row.small.muted", {}, h("span.mono", {}, log.path), h("span", {}, format.bytes(log.size)), log.truncated && h("span", {}, "the last 200 lines")), text));
    text.scrollTop = atEnd ? text.scrollHeight : top;
  });
}

// Note

function showNotes() {
  const { text, html } = trial.notes;
  const edit = h("button.small", { type: "button", on: { click: editNote } }, text ? "Edit" : "Write a note");
  replace(parts.notes, h("div.section-head", {}, h("h2", {}, "Note"), edit), text ? h("div.panel", {}, insertServerHtml(h("div.body.note-text"), html)) : null);
}

function editNote() {
  const field = h("textarea", { "aria-label": "Note, Markdown" });
  field.value = trial.notes.text;
  const form = h("form.panel", { on: { submit: save } }, h("div.body.stack", {}, field, h("div.row", {}, h("button.primary", { type: "submit" }, "Save"), h("button", { type: "button", on: { click: showNotes } }, "Cancel"), h("span.small.muted", {}, "Markdown"))));
  replace(parts.notes, h("h2", {}, "Note"), form);
  field.focus();

  async function save(event) {
    event.preventDefault();
    try {
      await post(here("note"), { text: field.value });
      trial.notes = (await get(here())).notes;
      showNotes();
    } catch (error) {
      say(error.message);
    }
  }
}

// All of it

const reload = throttled(1500, () => void load().catch((error) => say(error.message)));
const reloadCurves = throttled(800, async () => {
  try {
    await drawCurves();
  } catch (error) {
    say(error.message);
  }
});
const reloadLayers = throttled(5000, () => void loadLayers().catch((error) => say(error.message)));

preloadPlotly();
onKey("j", "Next trial", () => void go(1));
onKey("k", "Trial before", () => void go(-1));
onKey("c", "Compare with the selected trials", pick);
onKey("e", "Edit the note", editNote);
onKey("u", "Up to the sweep", () => location.assign(sweepPage(sweep)));
onKey("Escape", "Leave a field, close a menu", () => {});

await draw(byId("head"), async () => {
  await load();
  await Promise.all([draw(parts.curves, loadCurves), draw(parts.layers, loadLayers)]);
  const everything = () => {
    reload();
    reloadCurves();
    reloadLayers();
  };
  follow(sweep, {
    sweep: (event) => {
      if (event.more || event.changed.some((row) => row.id === trial.id)) everything();
      else if (!event.changed.length) reload(); // a coordinator came or went
    },
    points: (event) => {
      if (event.id !== trial.id && event.trial !== reference) return;
      const known = new Set(trial.curves.map((curve) => curve.name));
      const fresh = event.names.filter((one) => !known.has(one));
      trial.curves.push(...fresh.map((one) => ({ stage: 0, name: one, points: 1 })));
      reloadCurves();
      if (event.names.some((one) => one.startsWith("sparsity/"))) reloadLayers();
    },
    reload: everything,
  }, { trial: name, since: trial.revision });
});
