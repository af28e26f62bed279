// Result tables and figures to take away.

import { address, get, getText, path, sweepPage } from "../api.js";
import { byId, h, insertServerHtml, replace, throttled } from "../dom.js";
import { downloads, fileOf, listFigures } from "../figures.js";
import { follow } from "../live.js";
import { copyButton, draw, empty, loading, onKey, problem } from "../shell.js";

const name = document.body.dataset.sweep;
const here = (...more) => path("sweeps", name, ...more);
const FORMATS = [["md", "Markdown"], ["tex", "LaTeX"], ["csv", "CSV"], ["json", "JSON"], ["html", "HTML"]];
byId("head").querySelector(".titles").prepend(h("nav.crumbs", { "aria-label": "Where this is" }, h("a", { href: sweepPage(name) }, name)));
const tablesPlace = h("section", {}, loading("Loading tables …"));
const figuresPlace = h("section", {}, loading("Drawing figures …"));
replace(byId("content"), tablesPlace, figuresPlace);

async function loadTables() {
  const { tables } = await get(here("tables"));
  const all = tables.length > 1 && h("span.row.small", {}, "All of them:", FORMATS.map(([suffix, label]) => h("a", { href: address(here("tables", `all.${suffix}`)), download: "" }, label)));
  replace(
    tablesPlace,
    h("div.section-head", {}, h("h2", {}, "Tables"), all),
    tables.length ? h("div.stack", {}, tables.map(panel)) : h("div.panel", {}, empty("No tables yet", "They appear here as soon as the sweep has trials.")),
  );
  for (const title of tablesPlace.querySelectorAll(".report h2")) title.remove();
}

function panel(table) {
  const file = (suffix) => here("tables", `${table.name}.${suffix}`);
  const buttons = FORMATS.slice(0, 4).map(([suffix, label]) => copyButton(label, () => getText(file(suffix)), { "data-what": `${table.title} as ${label}`, "aria-label": `Copy ${table.title} as ${label}` }));
  const links = FORMATS.map(([suffix, label]) => h("a.button.small", { href: address(file(suffix)), download: `${name}-${table.name}.${suffix}`, "aria-label": `Download ${table.title} as ${label}` }, label));
  return h(
    "article.panel",
    {},
    h("header", {}, h("h3", {}, table.title)),
    insertServerHtml(h("div.body.report"), table.html),
    h("div.toolbar.takeaway", {}, h("span.row", {}, h("span.muted.small", {}, "Copy"), buttons), h("span.row", {}, h("span.muted.small", {}, "Download"), links)),
  );
}

async function loadFigures() {
  const shown = (await listFigures(name)).filter((figure) => figure.missing === null);
  replace(
    figuresPlace,
    h("h2", {}, "Figures"),
    shown.length ? h("div.stills", {}, shown.map(still)) : h("div.panel", {}, empty("No figures yet", "They appear once trials have been measured.")),
  );
}

/** A figure as the server draws it for papers, which takes it a moment. */
function still(figure) {
  const wait = loading("Drawing …");
  const picture = h("img", { src: `${fileOf(name, figure, "svg")}#${Date.now()}`, alt: figure.title, loading: "lazy" });
  picture.addEventListener("load", () => wait.remove());
  picture.addEventListener("error", () => wait.replaceWith(problem(new Error("The figure could not be drawn."), () => figurePanel.replaceWith(still(figure)))));
  const figurePanel = h("figure.panel", {}, h("header", {}, h("h3", {}, figure.title), h("span.row", {}, downloads(name, figure))), wait, picture);
  return figurePanel;
}

onKey("u", "Up to the sweep", () => location.assign(sweepPage(name)));
onKey("Escape", "Close a menu", () => {});
const again = throttled(3000, () => {
  void draw(tablesPlace, loadTables);
  void draw(figuresPlace, loadFigures);
});
const since = await get(here()).then((sweep) => sweep.revision, () => null);
await Promise.all([draw(tablesPlace, loadTables), draw(figuresPlace, loadFigures)]);
const ended = (row) => row.state !== "waiting" && row.state !== "running";
follow(name, { sweep: (event) => (event.more || event.changed.some(ended)) && again(), reload: again }, { since });
