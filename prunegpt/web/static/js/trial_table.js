// The table of trials: only the rows in view are in the page, the rest is fetched as it is scrolled to.

import { address, comparePage, get, path, trialPage } from "./api.js";
import { keep, kept } from "./address.js";
import { byId, h, replace, throttled } from "./dom.js";
import * as format from "./format.js";
import { GroupTable } from "./group_table.js";
import { draw, empty, loading, onKey, say, stateBadge } from "./shell.js";

const PAGE = 100; // rows a request
const AROUND = 8; // rows drawn above and below the view
const MOST_COMPARED = 8;
const STATES = ["finished", "running", "waiting", "failed", "diverged", "stopped"];
const FIRST = ["name", "state"];
const AFTER_SWEPT = ["perplexity", "interval", "sparsity", "tokens", "own_seconds"]; // shown unless others are chosen
const MOST_SWEPT = 8;
const MOST_LOGGED = 24;
const INTERVAL = { key: "interval", label: "95% interval", about: "of the perplexity", numeric: true, sort: "perplexity_low" };
const ORIGINS = [["swept", "Swept"], ["trial", "Measured and recorded"], ["logged", "Logged"], ["curve", "Curves"], ["config", "Configuration"]];

export class TrialTable {
  /**
   * @param {HTMLElement} element where it goes.
   * @param {string} sweep its name.
   */
  constructor(element, sweep) {
    this.element = element;
    this.sweep = sweep;
    this.rows = new Map(); // position -> row
    this.asked = new Set(); // pages that are on their way
    this.total = 0;
    this.known = 0; // trials of the sweep, whatever the filter
    this.columns = [];
    this.widths = new Map();
    this.current = -1;
    this.selected = new Set(JSON.parse(sessionStorage.getItem(this.storage("selected")) ?? "[]"));
    this.query = { where: kept("where") || kept("q"), state: kept("state"), sort: kept("sort"), descending: kept("descending") === "true" };
    this.by = kept("by") ? kept("by").split(",") : [];
    this.chosen = kept("columns") ? kept("columns").split(",") : null;
    this.generation = 0;
    this.later = throttled(2000, () => void this.refresh());
    this.frame = null;
    this.build();
    this.bindKeys();
  }

  storage = (what) => `prunegpt-${what}-${this.sweep}`;

  build() {
    this.search = h("input", {
      type: "search", id: "search", placeholder: "Search or filter  ( / )", "aria-label": "Search or filter trials", value: this.query.where, autocomplete: "off", spellcheck: "false", "aria-keyshortcuts": "/", "aria-describedby": "search-hint",
    });
    const search = throttled(150, () => this.ask({ where: this.search.value.trim() }));
    this.search.addEventListener("input", search);
    this.search.addEventListener("keydown", (event) => {
      if (event.key === "Enter") this.scroller.focus();
    });
    this.hint = h("p.search-hint.small", { id: "search-hint", role: "status", hidden: true });
    const filterHelp = h("details.menu", {}, h("summary.button.small.quiet", { "aria-label": "How to filter" }, "?"), h("div.filter-help", {}, help()));
    this.states = h(
      "div.chips",
      { role: "group", "aria-label": "Show trials by state" },
      ["", ...STATES].map((state) =>
        h("button", { type: "button", data: { state }, "aria-pressed": "false", on: { click: () => this.ask({ state }) } }, state ? stateBadge(state) : "All"),
      ),
    );
    this.count = h("span.count", { role: "status" });
    this.menu = h("div.columns-menu");
    this.grouping = h("div.columns-menu");
    const opening = (menu, show) => menu.addEventListener("toggle", () => menu.open && void this.loadFields().then(show, (error) => say(error.message)));
    const chooser = h("details.menu", {}, h("summary.button.small", {}, "Columns"), this.menu);
    const grouper = h("details.menu", {}, h("summary.button.small", {}, "Group"), this.grouping);
    opening(chooser, () => this.showMenu());
    opening(grouper, () => this.showGrouping());
    this.downloads = h("span.row");
    this.table = h("table", { "aria-label": `Trials of ${this.sweep}` });
    this.scroller = h("div.trials", { tabindex: "0", role: "region", "aria-label": "Trials, scrollable" }, loading());
    this.scroller.addEventListener("scroll", () => this.schedule(), { passive: true });
    new ResizeObserver(() => this.schedule()).observe(this.scroller);
    this.bar = h("div.compare-bar", { hidden: true });
    replace(this.element, h("div.toolbar", {}, h("span.row.searching", {}, this.search, filterHelp), this.states, grouper, chooser, this.downloads, this.count, this.hint), this.scroller, this.bar);
    this.showStates();
    this.showDownloads();
    this.showBar();
  }

  showDownloads() {
    const { where, state } = this.query;
    replace(this.downloads, ["csv", "json"].map((suffix) => h("a.button.small.quiet", { href: address(path("sweeps", this.sweep, `trials.${suffix}`), { where, state }), download: "" }, suffix.toUpperCase())));
  }

  bindKeys() {
    onKey("/", "Search trials", () => {
      this.element.scrollIntoView({ block: "start" });
      this.search.focus();
      this.search.select();
    });
    onKey("j", "Next trial", () => this.move(1));
    onKey("k", "Trial before", () => this.move(-1));
    onKey("Enter", "Open the trial", () => this.open(this.current));
    onKey("x", "Select the trial for comparing", () => this.rows.has(this.current) && !this.by.length && this.toggle(this.rows.get(this.current)));
    onKey("c", "Compare the selected trials", () => this.compare());
    onKey("Escape", "Leave a field, close a menu, clear the selection", () => {
      this.selected.clear();
      this.changedSelection();
    });
  }

  /** The first rows. */
  async load() {
    await draw(this.scroller, () => this.loadRows());
  }

  async loadRows() {
    try {
      if (this.by.length) return await this.drawGroups();
      await this.fetch(0, this.generation);
    } catch (error) {
      if (error.status !== 400) throw error;
      this.chosen = null; // columns of an address that are none here
      this.by = [];
      this.showHint(error.message);
      this.asked.clear();
      this.query = { ...this.query, where: "", sort: "" };
      await this.fetch(0, this.generation);
    }
    this.draw();
  }

  /** Filters, sorts or groups. */
  ask(changes) {
    Object.assign(this.query, changes);
    const { where, state, sort, descending } = this.query;
    keep({ where, q: "", state, sort, by: this.by.join(","), descending: descending && sort ? "true" : "" });
    this.showStates();
    this.showDownloads();
    this.current = -1;
    this.scroller.scrollTop = 0;
    void this.refresh({ reload: true });
  }

  /** Fetches what is in view again. */
  async refresh({ reload = false } = {}) {
    const generation = ++this.generation;
    this.asked.clear();
    const [from, to] = reload ? [0, 0] : this.range();
    const pages = new Set([Math.floor(from / PAGE), Math.floor(Math.max(from, to - 1) / PAGE)]);
    const before = this.rows;
    try {
      if (this.by.length) {
        await this.drawGroups(generation);
      } else {
        this.rows = new Map();
        for (const page of pages) await this.fetch(page, generation);
        if (generation === this.generation) this.draw();
      }
      if (generation === this.generation) this.showHint("");
    } catch (error) {
      if (generation !== this.generation) return;
      this.rows = before;
      if (error.status === 400) this.showHint(error.message);
      else say(error.message);
    }
  }

  /** What is wrong with the filter, under it; the rows of the last one that was understood stay. */
  showHint(text) {
    this.hint.hidden = !text;
    this.hint.textContent = text;
    text ? this.search.setAttribute("aria-invalid", "true") : this.search.removeAttribute("aria-invalid");
  }

  /** Chosen columns that rows do not have anyway. */
  more() {
    const usual = new Set(this.columns.filter((column) => !column.asked).map((column) => column.key));
    return (this.chosen ?? []).filter((key) => key !== "interval" && (usual.size ? !usual.has(key) : /^config\./.test(key) || !/\./.test(key))).join(",");
  }

  async fetch(page, generation) {
    if (this.asked.has(page)) return;
    this.asked.add(page);
    const { where, state, sort, descending } = this.query;
    const found = await get(path("sweeps", this.sweep, "trials"), {
      offset: page * PAGE, limit: PAGE, where, state, sort, columns: this.more(), ...(sort && descending ? { descending: "true" } : {}),
    });
    if (generation !== this.generation) return;
    this.total = found.total;
    if (!where && !state) this.known = found.total;
    this.setColumns(found.columns);
    found.trials.forEach((row, index) => this.rows.set(page * PAGE + index, row));
    this.measure(found.trials);
  }

  async drawGroups(generation = this.generation) {
    this.groups ??= new GroupTable(this);
    await this.groups.load(generation);
  }

  async loadFields() {
    this.fields ??= (await get(path("sweeps", this.sweep, "fields"))).fields;
  }

  /** Puts changed rows in place; asks again where the order may be another. */
  update(changed) {
    const places = new Map([...this.rows].map(([place, row]) => [row.id, place]));
    let unknown = false;
    for (const row of changed) {
      if (!places.has(row.id)) unknown = true;
      else this.rows.set(places.get(row.id), { ...row, values: { ...this.rows.get(places.get(row.id)).values, ...row.values }, fresh: true });
    }
    if (changed.length && !this.by.length) this.draw();
    if (unknown || this.by.length || this.query.sort || this.query.state || this.query.where) this.later();
  }

  // Columns

  setColumns(given) {
    const keys_given = given.map((column) => column.key + column.style + column.decimals).join();
    if (keys_given === this.given) return;
    this.given = keys_given;
    const asked = new Set(this.more().split(","));
    const by = new Map(given.map((column) => [column.key, { ...column, asked: asked.has(column.key), sort: column.key }]));
    if (by.has("perplexity")) by.set("interval", INTERVAL);
    const swept = given.filter((column) => column.swept).map((column) => column.key).slice(0, MOST_SWEPT);
    const logged = given.filter((column) => ["logged", "config"].includes(column.origin) && !asked.has(column.key)).map((column) => column.key); // of W&B runs
    this.usual = [...FIRST, ...swept, ...(logged.length ? ["tags", "note", ...logged.slice(0, MOST_LOGGED)] : AFTER_SWEPT)].filter((key) => by.has(key));
    const keys = [...this.usual, ...by.keys()];
    this.columns = [...new Set(keys)].map((key) => by.get(key));
    this.widths.clear();
    this.measure([...this.rows.values()]);
  }

  shown() {
    const keys = new Set(this.chosen ?? this.usual);
    return this.columns.filter((column) => keys.has(column.key) || column.key === "name");
  }

  showMenu() {
    const shown = new Set(this.shown().map((column) => column.key));
    const box = (field) => h("label.check", { title: field.about }, h("input", { type: "checkbox", checked: shown.has(field.key), disabled: field.key === "name", on: { change: (event) => this.choose(field.key, event.target.checked) } }), field.label, field.origin === "config" && h("small.muted", {}, field.name));
    const find = h("input", { type: "search", placeholder: "Find a column", "aria-label": "Find a column" });
    const list = h("div.columns-menu");
    const draw = () => {
      const words = find.value.trim().toLowerCase();
      const fields = [...this.fields.filter((field) => !/^perplexity_(low|high)$/.test(field.key)), ...(this.fields.some((field) => field.key === "perplexity") ? [{ ...INTERVAL, origin: "trial", name: "interval" }] : [])].filter((field) => !words || `${field.label} ${field.name}`.toLowerCase().includes(words));
      const differing = (one) => -Number(one.differs ?? false);
      replace(list, ORIGINS.map(([origin, title]) => {
        const some = fields.filter((field) => field.origin === origin);
        if (origin === "config") some.sort((one, other) => differing(one) - differing(other));
        return some.length > 0 && [h("h3", {}, title), some.map(box)];
      }));
    };
    find.addEventListener("input", draw);
    draw();
    replace(this.menu, h("div.row", {}, find, h("button.small.quiet", { type: "button", on: { click: () => (this.choose(null), this.showMenu()) } }, "As usual")), list);
  }

  showGrouping() {
    const box = (field) => h("label.check", { title: field.about }, h("input", { type: "checkbox", checked: this.by.includes(field.key), on: { change: (event) => this.groupBy(field.key, event.target.checked) } }), field.label, field.origin === "config" && h("small.muted", {}, field.name));
    const fields = this.fields.filter((field) => field.differs && (!field.numeric || ["swept", "config"].includes(field.origin) || field.key === "seed" || field.key === "layer") && !["name", "error", "note"].includes(field.key));
    replace(this.grouping, h("div.row", {}, h("span.muted", {}, "One row per group"), h("button.small.quiet", { type: "button", on: { click: () => (this.groupBy(null), this.showGrouping()) } }, "None")), ORIGINS.map(([origin, title]) => {
      const some = fields.filter((field) => field.origin === origin);
      return some.length > 0 && [h("h3", {}, title), some.map(box)];
    }));
  }

  groupBy(key, on) {
    this.by = key === null ? [] : on ? [...this.by, key] : this.by.filter((one) => one !== key);
    this.ask({ sort: "", descending: false });
  }

  choose(key, on) {
    if (key === null) this.chosen = null;
    else {
      const keys = this.chosen ?? this.usual;
      this.chosen = on ? [...keys, key] : keys.filter((one) => one !== key);
    }
    keep({ columns: this.chosen?.join(",") ?? "" });
    if (this.by.length || (on && !this.columns.some((column) => column.key === key))) void this.refresh();
    else this.draw();
  }

  text(row, column) {
    if (column.key === "interval") return format.interval(row.low, row.high);
    const value = column.swept ? row.swept?.[column.name] : (row.values?.[column.key] ?? row[column.key]);
    if (column.key === "perplexity" && value === null && row.state === "diverged") return "not finite";
    return format.written(column, value);
  }

  /** Column widths from the longest text so far, so that they stay still while scrolling. */
  measure(rows) {
    for (const column of this.columns) {
      let longest = Math.max(this.widths.get(column.key) ?? 0, column.label.length + 2);
      for (const row of rows) longest = Math.max(longest, (column.key === "name" ? row.title : this.text(row, column)).length + (column.key === "state" ? 3 : 0));
      this.widths.set(column.key, longest);
    }
  }

  /** In ch. */
  width(column) {
    const extra = column.key === "name" ? 7 : 3;
    const most = column.key === "name" ? (matchMedia("(max-width: 640px)").matches ? 17 : 46) : 34;
    return Math.min(most, Math.max(7, this.widths.get(column.key) ?? 8)) * 0.97 + extra;
  }

  // Drawing

  schedule() {
    this.frame ??= requestAnimationFrame(() => {
      this.frame = null;
      if (this.table.isConnected) this.drawRows();
    });
  }

  range() {
    const height = this.rowHeight ?? 31;
    const top = Math.max(0, Math.floor(this.scroller.scrollTop / height) - AROUND);
    return [top, Math.min(this.total, top + Math.ceil(innerHeight / height) + 2 * AROUND + 1)];
  }

  draw() {
    this.showCount();
    if (!this.total) {
      const filtered = this.query.where || this.query.state;
      const text = filtered ? "Search for something else, or show all states." : "They appear here as soon as the sweep has some.";
      return void replace(this.scroller, empty(filtered ? "No trial is like that" : "No trials yet", text));
    }
    const columns = this.shown();
    const { sort, descending } = this.query;
    const head = columns.map((column) => {
      const order = sort === column.sort ? (descending ? "descending" : "ascending") : "none";
      const name = h("span.label", { title: column.about }, column.label);
      const button = h("button", { type: "button", on: { click: () => this.sort(column) } }, name);
      return h("th", { scope: "col", "aria-sort": order, class: this.classes(column) }, button);
    });
    this.body = h("tbody");
    replace(
      this.table,
      h("colgroup", {}, columns.map((column) => h("col", { style: { width: `${this.width(column)}ch` } }))),
      h("thead", {}, h("tr", {}, head)),
      this.body,
    );
    this.table.style.setProperty("width", `${columns.reduce((sum, column) => sum + this.width(column), 0)}ch`); // without one, columns would be as wide as what they hold
    this.table.setAttribute("aria-rowcount", this.total + 1);
    const focused = document.activeElement;
    const sorted = focused?.closest?.(".trials thead") ? sort : null;
    if (this.table.parentNode !== this.scroller) replace(this.scroller, this.table);
    if (sorted) this.table.querySelector("thead [aria-sort=ascending] button, thead [aria-sort=descending] button")?.focus();
    this.drawRows();
  }

  classes(column) {
    return [column.numeric && "number", column.swept && "swept", column.key === "name" && "first"].filter(Boolean).join(" ");
  }

  drawRows() {
    const columns = this.shown();
    const [from, to] = this.range();
    const height = this.rowHeight ?? 31;
    const space = (rows) => rows > 0 && h("tr.space", { "aria-hidden": "true" }, h("td", { colspan: columns.length, style: { height: `${rows * height}px` } }));
    const rows = [];
    const missing = new Set();
    const focused = this.body.contains(document.activeElement) ? document.activeElement.closest("tr")?.dataset.place : null;
    const what = document.activeElement?.tagName;
    for (let place = from; place < to; place++) {
      const row = this.rows.get(place);
      if (!row) missing.add(Math.floor(place / PAGE));
      rows.push(row ? this.row(row, place, columns) : h("tr", {}, h("td", { colspan: columns.length }, h("div.skeleton"))));
    }
    replace(this.body, space(from), rows, space(this.total - to));
    if (focused) this.body.querySelector(`tr[data-place="${focused}"] ${what}`)?.focus();
    const first = rows.find((row) => row.cells.length > 1);
    if (first) {
      const real = first.getBoundingClientRect().height;
      if (real && Math.abs(real - height) > 0.2) {
        this.rowHeight = real;
        this.schedule();
      }
    }
    for (const page of missing) {
      if (this.asked.has(page)) continue;
      this.fetch(page, this.generation).then(
        () => this.schedule(),
        (error) => say(error.message),
      );
    }
  }

  row(row, place, columns) {
    const cells = columns.map((column) => {
      if (column.key === "name") return this.nameCell(row, place);
      if (column.key === "state") return h("td", { title: row.error || row.reason || null }, this.stateCell(row));
      const text = this.text(row, column);
      return h("td", { class: this.classes(column), title: text.length > 24 ? text : null }, text);
    });
    const selected = this.selected.has(this.reference(row));
    const made = h("tr", { data: { place, trial: row.name }, "aria-rowindex": place + 2, "aria-selected": String(selected), class: [place === this.current && "current", row.fresh && "fresh"].filter(Boolean).join(" ") }, cells);
    delete row.fresh;
    return made;
  }

  nameCell(row, place) {
    const box = h("input", { type: "checkbox", checked: this.selected.has(this.reference(row)), "aria-label": `Select ${row.title}`, on: { change: () => this.toggle(row) } });
    const link = h("a", { href: trialPage(this.sweep, row.name), title: row.title === row.name ? row.name : `${row.title}: ${row.name}`, on: { click: () => this.remember(place) } }, row.title);
    return h("th.first", { scope: "row" }, h("label", {}, box), link);
  }

  stateCell(row) {
    if (row.asked) return [stateBadge("stopping", row.asked === "retry" ? "requeueing …" : "stopping …")];
    return [stateBadge(row.state, row.early_stopped ? "stopped early" : row.state)];
  }

  showCount() {
    const filtered = this.query.where || this.query.state;
    this.count.textContent = filtered && this.known ? `${this.total.toLocaleString("en")} of ${format.plural(this.known, "trial")}` : format.plural(this.total, "trial");
  }

  showStates() {
    for (const button of this.states.children) button.setAttribute("aria-pressed", String(button.dataset.state === this.query.state));
  }

  // Sorting, selecting, moving

  sort(column) {
    const { sort, descending } = this.query;
    if (sort !== column.sort) this.ask({ sort: column.sort, descending: false });
    else if (!descending) this.ask({ descending: true });
    else this.ask({ sort: "", descending: false });
  }

  reference = (row) => `${this.sweep}/${row.name}`;

  toggle(row) {
    const name = this.reference(row);
    if (this.selected.has(name)) this.selected.delete(name);
    else if (this.selected.size >= MOST_COMPARED) say(`At most ${MOST_COMPARED} trials can be compared.`);
    else this.selected.add(name);
    this.changedSelection();
  }

  changedSelection() {
    sessionStorage.setItem(this.storage("selected"), JSON.stringify([...this.selected]));
    this.showBar();
    if (this.body) this.drawRows();
  }

  showBar() {
    this.bar.hidden = this.selected.size === 0;
    const names = [...this.selected].map((name) => name.slice(this.sweep.length + 1)).join(", ");
    replace(
      this.bar,
      h("button.primary", { type: "button", disabled: this.selected.size < 2, on: { click: () => this.compare() } }, `Compare ${this.selected.size}`),
      h("span.muted.small", {}, this.selected.size < 2 ? `${names}. Select another one.` : names),
      h("button.quiet.small", { type: "button", on: { click: () => (this.selected.clear(), this.changedSelection()) } }, "Clear"),
    );
  }

  compare() {
    if (this.selected.size < 2) return say("Select two to eight trials first: x, or the boxes.");
    location.assign(comparePage([...this.selected]));
  }

  move(by) {
    if (!this.total || this.by.length) return; // groups are opened by their buttons
    this.current = Math.max(0, Math.min(this.total - 1, this.current + by));
    const height = this.rowHeight ?? 31;
    const head = this.table.tHead?.offsetHeight ?? 0;
    const top = this.current * height;
    const box = this.scroller;
    if (top < box.scrollTop) box.scrollTop = top;
    else if (top + height + head > box.scrollTop + box.clientHeight) box.scrollTop = top + height + head - box.clientHeight;
    this.drawRows();
    this.body.querySelector("tr.current")?.scrollIntoView({ block: "nearest" });
  }

  open(place) {
    const row = this.rows.get(place);
    if (!row || this.by.length) return;
    this.remember(place);
    location.assign(trialPage(this.sweep, row.name));
  }

  /** Where the trial's page finds its neighbours. */
  remember(place) {
    sessionStorage.setItem(this.storage("place"), JSON.stringify({ place, name: this.rows.get(place)?.name, ...this.query }));
  }
}

/** How filters are written, beside the search box. */
function help() {
  const examples = [["wanda", "in names, labels, tags, notes"], ['perplexity < 40 and method == "wanda"', "compared"], ["0.5 <= sparsity < 0.9", "between"], ['"baseline" in tags', "in a list or text"], ["seed in [1, 2] or not early_stopped", "either"], ["perplexity is None", "not measured"]];
  return [h("h3", {}, "Filters"), h("dl", {}, examples.map(([code, text]) => [h("dt", {}, h("code", {}, code)), h("dd.muted", {}, text)])), h("p.small", {}, "Fields are those under Columns, by path or the end of it; the same filters work in prunegpt sweep status --where.")];
}

/** The trial next to one, in the order the table had when it was left; null at the ends. */
export async function neighbour(sweep, trial, by) {
  const storage = `prunegpt-place-${sweep}`;
  let at = JSON.parse(sessionStorage.getItem(storage) ?? "null");
  if (at?.name !== trial) {
    const all = (await get(path("sweeps", sweep, "trials"), { limit: 500 })).trials;
    const place = all.findIndex((row) => row.name === trial);
    if (place < 0) return null;
    at = { place, name: trial };
  }
  const place = at.place + by;
  if (place < 0) return null;
  const { where, state, sort, descending } = at;
  const found = await get(path("sweeps", sweep, "trials"), { offset: place, limit: 1, where, state, sort, ...(sort && descending ? { descending: "true" } : {}) });
  const row = found.trials[0];
  if (!row) return null;
  sessionStorage.setItem(storage, JSON.stringify({ ...at, place, name: row.name }));
  return row.name;
}
