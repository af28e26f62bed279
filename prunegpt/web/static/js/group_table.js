// Groups of trials: a row each with mean and spread, which opens to its trials.

import { get, path, trialPage } from "./api.js";
import { h, replace } from "./dom.js";
import * as format from "./format.js";
import { empty, say, stateBadge } from "./shell.js";

const MOST = 500; // groups that are drawn
const MOST_OPENED = 500; // trials of an opened group

export class GroupTable {
  /** @param {TrialTable} table whose place, filter and columns it takes. */
  constructor(table) {
    this.table = table;
    this.open = new Map(); // filter of a group -> its trials
  }

  async load(generation) {
    const { sweep, by, query } = this.table;
    await this.table.loadFields();
    const known = new Map(this.table.fields.map((field) => [field.key, field]));
    const usual = this.table.fields.filter((field) => ["perplexity", "sparsity", "own_seconds"].includes(field.key) || (field.origin === "logged" && field.numeric)).map((field) => field.key);
    const keys = (this.table.chosen ?? usual).filter((key) => known.get(key)?.numeric && !by.includes(key));
    const { where, state, sort, descending } = query;
    const found = await get(path("sweeps", sweep, "groups"), { by: by.join(","), columns: keys.join(","), limit: MOST, where, state, sort, ...(sort && descending ? { descending: "true" } : {}) });
    const opened = await Promise.all([...this.open.keys()].filter((one) => found.groups.some((group) => group.where === one)).map(async (one) => [one, await this.trials(one, found)]));
    if (generation !== this.table.generation) return;
    this.open = new Map(opened);
    this.found = found;
    this.draw();
  }

  async trials(filter, found = this.found) {
    const { where, state } = this.table.query;
    const columns = found.columns.map((column) => column.key).join(",");
    return (await get(path("sweeps", this.table.sweep, "trials"), { where: filter, q: where, state, columns, limit: MOST_OPENED })).trials;
  }

  async toggle(group) {
    if (this.open.has(group.where)) this.open.delete(group.where);
    else {
      try {
        this.open.set(group.where, await this.trials(group.where));
      } catch (error) {
        return void say(error.message);
      }
    }
    this.draw();
    [...this.table.scroller.querySelectorAll("button[aria-expanded]")].find((button) => button.dataset.where === group.where)?.focus();
  }

  draw() {
    const { by, columns, groups, total } = this.found;
    const { sort, descending } = this.table.query;
    this.table.count.textContent = total > groups.length ? `${groups.length} of ${format.plural(total, "group")}` : format.plural(total, "group");
    if (!groups.length) return void replace(this.table.scroller, empty("No trial is like that", "Search for something else, or show all states."));
    const head = (column, label = column.label) => {
      const order = sort === column.key ? (descending ? "descending" : "ascending") : "none";
      return h("th", { scope: "col", "aria-sort": order, class: column.numeric ? "number" : "" }, h("button", { type: "button", on: { click: () => this.table.sort({ sort: column.key }) } }, h("span.label", { title: column.about }, label)));
    };
    const heads = [...by.map((column) => head(column)), head({ key: "count", about: "trials of the group", numeric: true }, "Trials"), ...columns.map((column) => head(column))];
    const rows = groups.flatMap((group) => [this.row(group), ...(this.open.get(group.where) ?? []).map((trial) => this.trial(trial))]);
    replace(this.table.scroller, h("table.groups", { "aria-label": `Groups of trials of ${this.table.sweep}` }, h("thead", {}, h("tr", {}, heads)), h("tbody", {}, rows)));
  }

  row(group) {
    const { by, columns } = this.found;
    const open = this.open.has(group.where);
    const values = by.map((column, place) => {
      const text = format.written(column, group.values[place]);
      if (place) return h("td", { class: column.numeric ? "number" : "" }, text);
      return h("th.first", { scope: "row" }, h("button.quiet.small", { type: "button", "aria-expanded": String(open), data: { where: group.where }, on: { click: () => void this.toggle(group) } }, open ? "▾ " : "▸ ", text));
    });
    const states = Object.entries(group.states).map(([state, count]) => `${count} ${state}`).join(", ");
    return h("tr.group", { data: { group: group.where } }, values, h("td.number", { title: states }, group.count.toLocaleString("en")), columns.map((column) => this.figure(column, group.figures[column.key])));
  }

  figure(column, { count, mean, deviation, low, high, why }) {
    if (why) return h("td.number.muted", { title: why }, "not comparable");
    if (mean === null) return h("td.number", {}, format.NONE);
    const show = (value) => format.written(column, value);
    const range = `${format.plural(count, "trial")}, ${show(low)} to ${show(high)}`;
    return h("td.number", { title: range }, show(mean), deviation !== null && h("span.muted", {}, ` ± ${show(deviation)}`), deviation !== null && h("small.range.muted", {}, `${show(low)} – ${show(high)}`));
  }

  trial(row) {
    const { by, columns } = this.found;
    return h(
      "tr.member",
      { data: { trial: row.name } },
      h("th.first", { scope: "row", colspan: by.length }, h("a", { href: trialPage(this.table.sweep, row.name) }, row.title)),
      h("td", {}, stateBadge(row.state)),
      columns.map((column) => h("td.number", {}, format.written(column, column.swept ? row.swept[column.name] : (row.values[column.key] ?? row[column.key])))),
    );
  }
}
