// What a W&B run says of itself: where it is, its summary, its images and tables, its files.

import { get, path } from "./api.js";
import { h, replace } from "./dom.js";
import * as format from "./format.js";

const MOST_ROWS = 100; // of a table
const MOST_IMAGES = 60;
const IMAGE = /^image\/(png|jpeg|gif|webp|bmp)$/;

/** Draws all of it into an element. */
export async function showLogged(element, sweep, trial) {
  const run = await get(path("trials", sweep, trial, "logged"));
  const address = (name) => "/api/v1" + path("trials", sweep, trial, "file") + "?" + new URLSearchParams({ name });
  const about = [["Entity", run.entity], ["Project", run.project], ["Run", run.id], ["Name", run.name === run.id ? "" : run.name], ["Group", run.group], ["Job type", run.job_type], ["Tags", run.tags.join(", ")], ["Sweep", run.sweep], ["Notes", run.notes], ["Host", run.host], ["Program", run.program]].filter(([, value]) => value);
  const images = run.files.filter((file) => IMAGE.test(file.media)).slice(-MOST_IMAGES);
  const tables = run.files.filter((file) => file.name.endsWith(".table.json"));
  replace(
    element,
    section("Run", table(["Field", "Value"], about)),
    run.summary.length > 0 && section("Summary", table(["Metric", "Last value"], run.summary.map(({ name, value }) => [name, format.value(value)]))),
    images.length > 0 && section("Images", h("div.body.images", {}, images.map((file) => h("figure", {}, h("img", { src: address(file.name), alt: file.name, loading: "lazy" }), h("figcaption.small.muted", {}, file.name.split("/").at(-1)))))),
    tables.map((file) => {
      const place = h("div.body", {}, h("button.small", { type: "button", on: { click: () => void showTable(place, address(file.name)) } }, "Show"));
      return section(`Table ${file.name.split("/").at(-1)}`, place);
    }),
    run.files.length > 0 && section("Files", table(["File", "Bytes"], run.files.map((file) => [h("a", { href: address(file.name), download: "" }, file.name), file.size.toLocaleString("en")]))),
  );
}

const section = (title, content) => h("section", {}, h("h2", {}, title), h("div.panel", {}, content));

const table = (heads, rows) =>
  h("div.scroll", {}, h("table", {}, h("thead", {}, h("tr", {}, heads.map((text) => h("th", { scope: "col" }, text)))), h("tbody", {}, rows.map(([first, ...others]) => h("tr", {}, h("th.mono", { scope: "row" }, first), others.map((value) => h("td", {}, value)))))));

async function showTable(place, address) {
  const answer = await fetch(address);
  if (!answer.ok) return void replace(place, h("p", {}, "The table cannot be read."));
  const { columns, data } = await answer.json();
  const text = (value) => (value !== null && typeof value === "object" ? (value.path ?? JSON.stringify(value)) : format.value(value));
  replace(place, table(columns.map(String), data.slice(0, MOST_ROWS).map((row) => row.map(text))), data.length > MOST_ROWS && h("p.small.muted", {}, `The first ${MOST_ROWS} of ${data.length.toLocaleString("en")} rows.`));
}
