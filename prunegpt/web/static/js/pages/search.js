// What a search came to: its history, what the objectives depend on, the values that were tried.

import { get, path, sweepPage } from "../api.js";
import { byId, h, replace, throttled } from "../dom.js";
import { Gallery, listFigures } from "../figures.js";
import * as format from "../format.js";
import { follow } from "../live.js";
import { preloadPlotly } from "../plot.js";
import { copyButton, draw, empty, onKey } from "../shell.js";

const name = document.body.dataset.sweep;
const gallery = new Gallery(name);
const about = h("div");
const grid = h("div.grid");
const none = h("div.small.muted");
byId("head").querySelector(".titles").prepend(h("nav.crumbs", { "aria-label": "Where this is" }, h("a", { href: sweepPage(name) }, name)));
replace(byId("content"), about, h("section", {}, h("h2.visually-hidden", {}, "Figures"), grid, none));

function showSearches(sweep) {
  const facts = sweep.searches.map((search) => h("div", {}, h("dt", {}, search.name), h("dd", {}, format.plural(search.trials, "trial"), h("small", {}, `${search.sampler}, for ${search.objectives.join(" and ")}`))));
  const study = sweep.optuna && h("p.small.muted", {}, "Another viewer, such as optuna-dashboard, opens the study that this command writes: ", copyButton("Copy the command", sweep.optuna, { title: sweep.optuna, "data-what": "Command" }));
  replace(about, facts.length > 0 && h("div.panel", {}, h("div.body.stack", {}, h("dl.facts", {}, facts), study)));
}

async function load() {
  const [sweep, listed] = await Promise.all([get(path("sweeps", name)), listFigures(name)]);
  showSearches(sweep);
  const own = listed.filter((figure) => figure.takes_search);
  const panels = gallery.show(own.filter((figure) => figure.missing === null));
  if (!panels.length) replace(grid, h("div.panel", {}, empty("Nothing to draw yet", own[0]?.missing ?? "No trial has searched values.")));
  else replace(grid, panels);
  const missing = own.filter((figure) => figure.missing !== null);
  replace(none, missing.length > 0 && panels.length > 0 && h("details", {}, h("summary", {}, `${format.plural(missing.length, "figure")} without data`), h("ul", {}, missing.map((figure) => h("li", {}, `${figure.title}: ${figure.missing}`)))));
  return sweep;
}

preloadPlotly();
onKey("u", "Up to the sweep", () => location.assign(sweepPage(name)));
onKey("Escape", "Close a menu", () => {});
await draw(grid, async () => {
  const sweep = await load();
  const again = throttled(3000, () => void draw(grid, load));
  follow(name, { sweep: again, reload: again }, { since: sweep.revision });
});
