// One sweep: progress, what runs, results, figures, trials, stages.

import { get, path, post, sweepPage, trialPage } from "../api.js";
import { holdAnchor } from "../anchor.js";
import { byId, h, insertServerHtml, replace, throttled } from "../dom.js";
import { Gallery, listFigures } from "../figures.js";
import * as format from "../format.js";
import { drawGraph } from "../graph.js";
import { follow } from "../live.js";
import { Panels } from "../panels.js";
import { preloadPlotly, whenNear } from "../plot.js";
import { progressBar, shareBar, sweepBadge } from "../progress.js";
import { LEAVE, confirm, draw, empty, loading, onKey, say, stateBadge } from "../shell.js";
import { TrialTable } from "../trial_table.js";

const name = document.body.dataset.sweep;
const here = (...more) => path("sweeps", name, ...more);
const SECTIONS = [["running", "Running"], ["results", "Results"], ["figures", "Figures"], ["panels", "Panels"], ["trials", "Trials"], ["stages", "Stages"]];

const STATES = ["finished", "running", "waiting", "failed", "diverged", "stopped"];

let sweep = null;
const gallery = new Gallery(name);
const OF_SEARCHES = ["parallel", "importance"]; // figures of the page of searches that this page has too

// Head

async function loadHead() {
  sweep = await get(here());
  showHead();
}

function showHead() {
  document.title = `${sweep.title || name} · PruneGPT`;
  const { progress } = sweep;
  const { counts } = sweep;
  const ours = sweep.coordinator !== null && ["", name].includes(sweep.coordinator.sweep);
  const running = sweep.state === "running" && sweep.running_now;
  const eta = progress.eta_seconds !== null && progress.eta_seconds !== undefined && running ? format.duration(progress.eta_seconds) : null;
  const from = ours && `coordinator ${sweep.coordinator.pid} on ${sweep.coordinator.host}, since ${format.time(sweep.coordinator.since)}`;
  replace(
    byId("head"),
    h(
      "div.page-head",
      {},
      h(
        "div.titles",
        {},
        h("h1", {}, sweep.title || name),
        h("div.meta", {}, sweep.asked ? stateBadge("stopping", PENDING[sweep.asked]) : sweepBadge(sweep, sweep.place), h("span.mono", {}, name), sweep.source && h("span.mono", { title: sweep.source }, sweep.source.split("/").slice(-2).join("/")), from && h("span", {}, from)),
      ),
      h(
        "div.actions",
        {},
        h("a.button", { href: sweepPage(name) + "/tables" }, "Tables"),
        (sweep.swept.length > 0 || sweep.logged) && h("a.button", { href: sweepPage(name) + "/search" }, "Search"),
        ours
          ? [actionButton("stop", "Stop"), actionButton("kill", "Kill", true)]
          : sweep.place
          ? actionButton("stop", "Leave the queue")
          : !sweep.logged && sweep.state !== "finished" && sweep.state !== "empty" && actionButton("resume", "Resume"),
      ),
    ),
    h(
      "div.panel.summary",
      {},
      h(
        "div.body.stack",
        {},
        progressBar(counts, progress.total),
        h("div.legend", {}, STATES.filter((state) => counts[state]).map((state) => stateBadge(state, `${counts[state].toLocaleString("en")} ${state}`))),
        h(
          "dl.facts",
          {},
          fact("Trials", `${progress.done} of ${progress.total}`),
          !sweep.logged && fact("Tokens trained on", progress.tokens_total ? `${format.count(progress.tokens_done)} of ${format.count(progress.tokens_total)}` : format.count(progress.tokens_done)),
          running && fact("Left", eta ?? "not known yet"),
          sweep.best && fact("Lowest perplexity", format.perplexity(sweep.best.perplexity), sweep.best.trial.replace(`${name}/`, "")),
          (sweep.searches ?? []).map((search) => fact(`Search ${search.name}`, `${format.plural(search.trials ?? search.n_trials, "trial")}`, `${search.sampler ? search.sampler + ", " : ""}for ${search.objectives.map(objective).join(" and ")}`)),
        ),
      ),
    ),
  );
  showSlots(sweep.slots ?? []);
}

const objective = (one) => (typeof one === "string" ? one : (one.name ?? one.metric ?? one.value ?? JSON.stringify(one)));
const fact = (label, value, more = null) => h("div", {}, h("dt", {}, label), h("dd", {}, value, more && h("small", {}, more)));

const QUESTIONS = {
  stop: { title: "Stop this sweep?", text: "Running trials end at their next safe point and what they have is kept. Resume resumes from there.", action: "Stop the sweep", danger: true },
  kill: { title: "Kill this sweep?", text: "Running trials are ended at once. Stages that were not published yet are lost and computed again on resume.", action: "Kill the sweep", danger: true },
  resume: { title: "Resume this sweep?", text: "A coordinator starts on this machine and runs the trials that are not finished. While another sweep of the root runs, it waits for its turn.", action: "Resume the sweep" },
};

const PENDING = { stop: "Stopping …", kill: "Killing …", resume: "Starting …" };

function actionButton(action, label, danger = false) {
  const pending = sweep.asked === action || sweep.asked === "kill";
  return h("button", { type: "button", class: danger ? "danger" : "", disabled: pending, on: { click: () => void act(action) } }, sweep.asked === action ? PENDING[action] : label);
}

async function act(action) {
  if (!(await confirm(action === "stop" && sweep.place ? LEAVE : QUESTIONS[action]))) return;
  sweep.asked = action;
  showHead(); // at once: it may take a while to happen
  try {
    say((await post(here("actions"), { action })).message);
  } catch (error) {
    sweep.asked = "";
    showHead();
    say(error.message);
  }
  reloadHead();
}

// What runs

function showSlots(slots) {
  byId("running").hidden = slots.length === 0;
  const [title, words] = sweep.running_now || sweep.logged ? ["Running", format.plural(slots.length, "trial")] : ["Interrupted", "Nothing runs these; Resume continues from their last checkpoints."];
  replace(byId("running"), h("div.section-head", {}, h("h2", { id: "running-title" }, title), h("span.muted", {}, words)), h("div.slots", {}, slots.map(slot)));
  showSections();
}

function slot(one) {
  const trial = one.trial.replace(`${name}/`, "");
  const calibrating = one.calibrated !== null && one.calibrated !== undefined;
  const share = calibrating ? one.calibrated : one.total ? Math.max(0, one.step) / one.total : 0;
  const unit = ["prune", "shrink"].includes(one.kind) ? "layer" : "step";
  const facts = [
    calibrating ? `calibrating, ${Math.round(100 * share)}%` : one.total ? `${unit} ${one.step.toLocaleString("en")} of ${one.total.toLocaleString("en")}` : one.step ? `step ${one.step.toLocaleString("en")}` : null,
    one.tokens ? `${format.count(one.tokens)} tokens` : null,
  ].filter(Boolean);
  return h(
    "article.slot",
    {},
    h("div.line", {}, h("a", { href: trialPage(name, trial) }, trial), h("span.muted", {}, one.kind ?? "")),
    shareBar(share, `${trial}: share of the steps of this stage`),
    h("div.line.small.muted", {}, h("span", {}, facts.join(", ") || "starting"), (sweep.running_now || sweep.logged) && h("span.nowrap", {}, format.duration(Date.now() / 1000 - one.started), one.eta !== null && one.eta !== undefined ? `, ${format.duration(one.eta)} left` : "")),
    h("div.line.small", {}, h("span", {}, one.perplexity ? `perplexity ${format.perplexity(one.perplexity)}` : ""), h("span.nowrap", {}, one.loss ? `loss ${format.number(one.loss)}` : "")),
  );
}

// Results

async function loadResults() {
  const declared = sweep.tables.length > 0 || sweep.logged; // without any the list of trials shows the same
  const { tables } = declared ? await get(here("tables")) : { tables: [] };
  const section = byId("results");
  section.hidden = tables.length === 0;
  const head = h("div.section-head", {}, h("h2", { id: "results-title" }, "Results"), h("a", { href: sweepPage(name) + "/tables" }, "Copy or download"));
  replace(section, head, h("div.grid.tables", {}, tables.map((table) => h("div.panel", {}, insertServerHtml(h("div.body.report"), table.html)))));
  for (const title of section.querySelectorAll(".report h2")) title.replaceWith(h("h3", {}, title.textContent));
  showSections();
}

// Figures

let figuresWanted = false;
const grid = h("div.grid", {}, loading("Drawing …"));
const none = h("div.small.muted");

function buildFigures() {
  byId("figures").hidden = false;
  replace(byId("figures"), h("h2", { id: "figures-title" }, "Figures"), grid, none);
  showSections();
  whenNear(byId("figures"), () => {
    figuresWanted = true;
    void draw(grid, loadFigures);
  }, { tab: true });
}

async function loadFigures() {
  preloadPlotly();
  const listed = await listFigures(name);
  const own = listed.filter((figure) => !figure.takes_search || OF_SEARCHES.includes(figure.name));
  const panels = gallery.show(own.filter((figure) => figure.missing === null));
  if (!panels.length) replace(grid, h("div.panel", {}, empty("Nothing to draw yet", "Figures appear here as soon as trials have been measured.")));
  else replace(grid, panels);
  const missing = own.filter((figure) => figure.missing !== null);
  replace(none, missing.length && panels.length ? h("details", {}, h("summary", {}, `${format.plural(missing.length, "figure")} without data`), h("ul", {}, missing.map((figure) => h("li", {}, `${figure.title}: ${figure.missing}`)))) : null);
}

// Panels

const panels = new Panels(byId("panels"), name);

function buildPanels() {
  byId("panels").hidden = false;
  showSections();
  whenNear(byId("panels"), () => void draw(byId("panels"), () => panels.load()), { tab: true });
}

// Stages

let graphWanted = false;

function buildStages() {
  if (sweep.logged) return () => {}; // nothing is shared by runs that others have made
  const section = byId("stages");
  section.hidden = false;
  const place = h("div.stages-graph.body", { tabindex: 0, role: "region", "aria-label": "Stage graph, scrollable" }, loading());
  const detail = h("div.graph-detail", { hidden: true, role: "status" });
  const legend = h("div.graph-legend", {}, stateBadge("published", "computed"), h("span.found", {}, "cached"), ["running", "waiting", "failed"].map((state) => stateBadge(state)), h("span.solid", {}, "resumes from"), h("span.dash", {}, "teacher"));
  replace(section, h("div.section-head", {}, h("h2", { id: "stages-title" }, "Stages"), legend), h("div.panel", {}, place, detail));
  showSections();
  const show = () =>
    draw(place, async () => {
      const graph = await get(here("graph"));
      if (graph.nodes.length) drawGraph(place, detail, graph, name);
      else replace(place, empty("No stages yet", "What trials share and compute once is drawn here."));
    });
  whenNear(section, () => {
    graphWanted = true;
    void show();
  }, { tab: true });
  return throttled(3000, () => graphWanted && void show());
}

// Sections: which are there, and which is in view

function showSections() {
  const links = SECTIONS.filter(([id]) => !byId(id).hidden).map(([id, title]) => h("a", { href: `#${id}`, data: { id } }, title));
  const bar = byId("sections");
  if (bar.children.length !== links.length) replace(bar, links);
  markSection();
}

function markSection() {
  const limit = 0.35 * innerHeight;
  let current = byId("sections").firstChild;
  for (const link of byId("sections").children) if (byId(link.dataset.id).getBoundingClientRect().top < limit) current = link;
  for (const link of byId("sections").children) current === link ? link.setAttribute("aria-current", "true") : link.removeAttribute("aria-current");
}

function nextSection(by) {
  const links = [...byId("sections").children];
  const at = links.findIndex((link) => link.hasAttribute("aria-current"));
  links[Math.max(0, Math.min(links.length - 1, at + by))]?.click();
}

// All of it

const reloadHead = throttled(1500, () => void loadHead().catch((error) => say(error.message)));
const reloadResults = throttled(3000, () => void loadResults().catch((error) => say(error.message)));

await draw(byId("head"), async () => {
  byId("trials").hidden = false;
  const place = h("div.panel");
  replace(byId("trials"), h("h2", { id: "trials-title" }, "Trials"), place);
  const table = new TrialTable(place, name);
  onKey("]", "Next section", () => nextSection(1));
  onKey("[", "Section before", () => nextSection(-1));
  const mark = throttled(100, markSection);
  addEventListener("scroll", mark, { passive: true });
  new ResizeObserver(mark).observe(document.body);
  await Promise.all([loadHead(), table.load()]);
  await draw(byId("results"), loadResults);
  buildFigures();
  buildPanels();
  holdAnchor();
  const reloadStages = buildStages();
  const reloadFigures = throttled(5000, () => figuresWanted && void loadFigures().catch((error) => say(error.message)));
  const reloadPanels = throttled(5000, () => panels.refresh());
  const everything = () => {
    reloadHead();
    reloadResults();
    reloadFigures();
    reloadPanels();
    reloadStages();
    void table.refresh();
  };
  follow(name, {
    sweep: (event) => {
      if (event.more) return everything();
      table.update(event.changed);
      reloadHead();
      reloadStages();
      if (event.changed.some((row) => row.state !== "waiting" && row.state !== "running")) {
        reloadResults();
        reloadFigures();
        reloadPanels();
      }
    },
    progress: (event) => {
      const slots = event.slots ?? event;
      if (event.progress) sweep.progress = event.progress;
      if (Array.isArray(slots)) showSlots((sweep.slots = slots));
      reloadPanels();
    },
    reload: everything,
  }, { since: sweep.revision });
});
