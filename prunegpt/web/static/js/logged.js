// What a W&B run says of itself: where it is, its summary, its plots, images, pages and tables, its files and artifacts.

import { get, path } from "./api.js";
import { h, replace } from "./dom.js";
import * as format from "./format.js";
import { figurePanel, plot, unplot, whenNear } from "./plot.js";

const MOST_ROWS = 100; // of a table
const MOST_IMAGES = 60;
const MOST_PAGES = 20;
const IMAGE = /^image\/(png|jpeg|gif|webp|bmp)$/;

/** Draws all of it into an element. */
export async function showLogged(element, sweep, trial) {
  const run = await get(path("trials", sweep, trial, "logged"));
  const address = (name) => "/api/v1" + path("trials", sweep, trial, "file") + "?" + new URLSearchParams({ name });
  const about = [["Entity", run.entity], ["Project", run.project], ["Run", run.id], ["Name", run.name === run.id ? "" : run.name], ["Group", run.group], ["Job type", run.job_type], ["Tags", run.tags.join(", ")], ["Sweep", run.sweep], ["Notes", run.notes], ["Host", run.host], ["Program", run.program]].filter(([, value]) => value);
  const images = run.files.filter((file) => IMAGE.test(file.media)).slice(-MOST_IMAGES);
  const pages = run.files.filter((file) => file.media === "text/html").slice(-MOST_PAGES);
  const drawn = run.plots.filter((one) => DRAWN[one.kind]);
  const tables = run.files.filter(({ name }) => name.endsWith(".table.json") && !drawn.some((one) => one.file === name));
  replace(
    element,
    section("Run", table(["Field", "Value"], about)),
    run.summary.length > 0 && section("Summary", table(["Metric", "Last value"], run.summary.map(({ name, value }) => [name, format.value(value)]))),
    drawn.length > 0 && h("section", {}, h("h2", {}, "Plots"), h("div.grid", {}, drawn.map((one) => plotPanel(one, address(one.file))))),
    images.length > 0 && section("Images", h("div.body.images", {}, images.map((file) => h("figure", {}, h("img", { src: address(file.name), alt: file.name, loading: "lazy" }), h("figcaption.small.muted", {}, last(file.name)))))),
    pages.map((file) => section(`Page ${last(file.name)}`, h("iframe.page", { src: address(file.name), sandbox: "allow-scripts", title: file.name, loading: "lazy" }))),
    tables.map((file) => {
      const place = h("div.body", {}, h("button.small", { type: "button", on: { click: () => void showTable(place, address(file.name)) } }, "Show"));
      return section(`Table ${last(file.name)}`, place);
    }),
    run.files.length > 0 && section("Files", table(["File", "Size"], run.files.map((file) => [h("a", { href: address(file.name), download: "" }, file.name), bytes(file)]))),
    run.artifacts.length > 0 && section("Artifacts", table(["Artifact", "Type", "This run", "Aliases", "Size", "Files"], run.artifacts.map((one) => [one.name, one.type, one.used ? "used it" : "logged it", one.aliases.join(", "), bytes(one), contents(one)]))),
  );
}

const last = (name) => name.split("/").at(-1);
const bytes = ({ size }) => format.bytes(size);

/** The files of an artifact: those that are here as links, others as their references. */
function contents({ files }) {
  const shown = ({ name, address }) => (address.startsWith("/artifacts/") ? h("a", { href: address, download: last(name) }, name) : `${name}: ${address}`);
  return h("details", {}, h("summary", {}, String(files.length)), h("ul", {}, files.map((file) => h("li", {}, shown(file), ` (${bytes(file)})`))));
}

const section = (title, content) => h("section", {}, h("h2", {}, title), h("div.panel", {}, content));

const table = (heads, rows) =>
  h("div.scroll", {}, h("table", {}, h("thead", {}, h("tr", {}, heads.map((text) => h("th", { scope: "col" }, text)))), h("tbody", {}, rows.map(([first, ...others]) => h("tr", {}, h("th.mono", { scope: "row" }, first), others.map((value) => h("td", {}, value)))))));

/** Rows of a table by the names of its columns, in groups by one of them. */
function grouped(rows, by) {
  const found = new Map();
  for (const row of rows) found.set(row[by], [...(found.get(row[by]) ?? []), row]);
  return found;
}

const values = (rows, column) => rows.map((row) => row[column]);
const lines = (rows, x, y, by) => [...grouped(rows, by)].map(([name, own]) => ({ type: "scatter", mode: "lines", name: String(name ?? ""), showlegend: Boolean(by), x: values(own, x), y: values(own, y) }));

// The plots of `wandb.plot`: rows and the columns that they name -> Plotly's traces.
const DRAWN = {
  "wandb/line/v0": (rows, { x, y, stroke }) => lines(rows, x, y, stroke),
  "wandb/lineseries/v0": (rows, { step, lineVal, lineKey }) => lines(rows, step, lineVal, lineKey),
  "wandb/area-under-curve/v0": (rows, fields) => lines(rows, fields.x, fields.y, fields.class),
  "wandb/scatter/v0": (rows, { x, y }) => [{ type: "scatter", mode: "markers", x: values(rows, x), y: values(rows, y) }],
  "wandb/bar/v0": (rows, { label, value }) => [{ type: "bar", x: values(rows, label), y: values(rows, value) }],
  "wandb/histogram/v0": (rows, { value }) => [{ type: "histogram", x: values(rows, value) }],
  "wandb/confusion_matrix/v1": (rows, { Actual, Predicted, nPredictions }) => [{ type: "heatmap", x: values(rows, Predicted), y: values(rows, Actual), z: values(rows, nPredictions), colorscale: "Blues", reversescale: true }],
};

function plotPanel({ name, kind, fields, labels }, address) {
  const { panel, plot: place } = figurePanel(labels.title || name);
  whenNear(panel, async () => {
    const { columns, data } = (await fetchTable(address)) ?? {};
    if (!columns) return void unplot(place, "The plot's table cannot be read.");
    const rows = data.map((row) => Object.fromEntries(columns.map((column, index) => [column, row[index]])));
    const [x, y] = kind.includes("confusion") ? [fields.Predicted, fields.Actual] : [labels["x-axis-title"] ?? labels.xname ?? fields.x ?? fields.label ?? fields.value, labels["y-axis-title"] ?? fields.y ?? ""];
    await plot(place, () => ({ data: DRAWN[kind](rows, fields), layout: { xaxis: { title: x }, yaxis: { title: y } } }), labels.title || name);
  });
  return panel;
}

async function fetchTable(address) {
  const answer = await fetch(address);
  return answer.ok ? answer.json() : null;
}

async function showTable(place, address) {
  const found = await fetchTable(address);
  if (!found) return void replace(place, h("p", {}, "The table cannot be read."));
  const { columns, data } = found;
  const text = (value) => (value !== null && typeof value === "object" ? (value.path ?? JSON.stringify(value)) : format.value(value));
  replace(place, table(columns.map(String), data.slice(0, MOST_ROWS).map((row) => row.map(text))), data.length > MOST_ROWS && h("p.small.muted", {}, `The first ${MOST_ROWS} of ${data.length.toLocaleString("en")} rows.`));
}
