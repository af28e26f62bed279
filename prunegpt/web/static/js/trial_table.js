// The table of trials: only the rows in view are in the page, the rest is fetched as it is scrolled to.

import { comparePage, get, path, trialPage } from "./api.js";
import { keep, kept } from "./address.js";
import { byId, h, replace, throttled } from "./dom.js";
import * as format from "./format.js";
import { draw, empty, loading, onKey, say, stateBadge } from "./shell.js";

const PAGE = 100; // rows a request
const AROUND = 8; // rows drawn above and below the view
const MOST_COMPARED = 8;
const STATES = ["finished", "running", "waiting", "failed", "diverged", "stopped"];
const FIRST = ["name", "state"];
const AFTER_SWEPT = ["perplexity", "sparsity", "tokens", "seconds"]; // shown unless others are chosen
const MOST_SWEPT = 8;
const MOST_LOGGED = 24;
const isLogged = (key) => /^(config|logged)\./.test(key);
const HIDDEN = new Set(["low", "high", "id"]); // shown inside others
const COLUMNS = {
  name: ["Trial", false],
  state: ["State", false],
  label: ["Model", false],
  group: ["Group", false],
  seed: ["Seed", true],
  perplexity: ["Perplexity", true],
  loss: ["Loss", true],
  sparsity: ["Sparsity", true],
  sparsity_all: ["Sparsity, all weights", true],
  coverage: ["Coverage", true],
  target: ["Target", true],
  tokens: ["Tokens", true],
  seconds: ["Time", true],
  started: ["Started", true],
  ended: ["Ended", true],
  reason: ["Reason", false],
};
const SHOW = {
  perplexity: (row) => (row.perplexity === null && row.state === "diverged" ? "not finite" : format.perplexity(row.perplexity)),
  loss: (row) => format.number(row.loss),
  sparsity: (row) => format.percent(row.sparsity),
  sparsity_all: (row) => format.percent(row.sparsity_all),
  coverage: (row) => format.percent(row.coverage),
  target: (row) => format.percent(row.target),
  tokens: (row) => format.count(row.tokens || null),
  seconds: (row) => format.duration(row.seconds || null),
  started: (row) => format.time(row.started),
  ended: (row) => format.time(row.ended),
};

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
    this.query = { q: kept("q"), state: kept("state"), sort: kept("sort"), descending: kept("descending") === "true" };
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
      type: "search", id: "search", placeholder: "Search trials  ( / )", "aria-label": "Search trials", value: this.query.q, autocomplete: "off", spellcheck: "false", "aria-keyshortcuts": "/",
    });
    const search = throttled(150, () => this.ask({ q: this.search.value.trim() }));
    this.search.addEventListener("input", search);
    this.search.addEventListener("keydown", (event) => {
      if (event.key === "Enter") this.scroller.focus();
    });
    this.states = h(
      "div.chips",
      { role: "group", "aria-label": "Show trials by state" },
      ["", ...STATES].map((state) =>
        h("button", { type: "button", data: { state }, "aria-pressed": "false", on: { click: () => this.ask({ state }) } }, state ? stateBadge(state) : "All"),
      ),
    );
    this.count = h("span.count", { role: "status" });
    this.menu = h("div.columns-menu");
    const chooser = h("details.menu", {}, h("summary.button.small", {}, "Columns"), this.menu);
    this.downloads = h("span.row", {}, ["csv", "json"].map((suffix) => h("a.button.small.quiet", { href: "/api/v1" + path("sweeps", this.sweep, `trials.${suffix}`), download: "" }, suffix.toUpperCase())));
    this.table = h("table", { "aria-label": `Trials of ${this.sweep}` });
    this.scroller = h("div.trials", { tabindex: "0", role: "region", "aria-label": "Trials, scrollable" }, loading());
    this.scroller.addEventListener("scroll", () => this.schedule(), { passive: true });
    new ResizeObserver(() => this.schedule()).observe(this.scroller);
    this.bar = h("div.compare-bar", { hidden: true });
    replace(this.element, h("div.toolbar", {}, this.search, this.states, chooser, this.downloads, this.count), this.scroller, this.bar);
    this.showStates();
    this.showBar();
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
    onKey("x", "Select the trial for comparing", () => this.rows.has(this.current) && this.toggle(this.rows.get(this.current)));
    onKey("c", "Compare the selected trials", () => this.compare());
    onKey("Escape", "Leave a field, close a menu, clear the selection", () => {
      this.selected.clear();
      this.changedSelection();
    });
  }

  /** The first rows. */
  async load() {
    await draw(this.scroller, async () => {
      await this.fetch(0, this.generation);
      this.draw();
    });
  }

  /** Filters or sorts. */
  ask(changes) {
    Object.assign(this.query, changes);
    const { q, state, sort, descending } = this.query;
    keep({ q, state, sort, descending: descending && sort ? "true" : "" });
    this.showStates();
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
      this.rows = new Map();
      for (const page of pages) await this.fetch(page, generation);
      if (generation === this.generation) this.draw();
    } catch (error) {
      if (generation !== this.generation) return;
      this.rows = before;
      say(error.message);
    }
  }

  async fetch(page, generation) {
    if (this.asked.has(page)) return;
    this.asked.add(page);
    const { q, state, sort, descending } = this.query;
    const found = await get(path("sweeps", this.sweep, "trials"), {
      offset: page * PAGE, limit: PAGE, q, state, sort, ...(sort && descending ? { descending: "true" } : {}),
    });
    if (generation !== this.generation) return;
    this.total = found.total;
    if (!q && !state) this.known = found.total;
    this.setColumns(found.columns);
    found.trials.forEach((row, index) => this.rows.set(page * PAGE + index, row));
    this.measure(found.trials);
  }

  /** Puts changed rows in place; asks again where the order may be another. */
  update(changed) {
    const places = new Map([...this.rows].map(([place, row]) => [row.id, place]));
    let unknown = false;
    for (const row of changed) {
      if (!places.has(row.id)) unknown = true;
      else this.rows.set(places.get(row.id), { ...row, fresh: true });
    }
    if (changed.length) this.draw();
    if (unknown || this.query.sort || this.query.state || this.query.q) this.later();
  }

  // Columns

  setColumns(given) {
    const keys_given = given.map((column) => column.key).join();
    if (keys_given === this.given) return;
    this.given = keys_given;
    const known = new Map(given.map((column) => [column.key, column]));
    const swept = given.filter((column) => column.swept);
    const logged = given.filter((column) => isLogged(column.key)).map((column) => column.key); // of W&B runs
    const fixed = Object.entries(COLUMNS).map(([key, [label, numeric]]) => ({ swept: false, numeric, ...known.get(key), label, key, sortable: known.has(key) }));
    const rest = given.filter((column) => !column.swept && !(column.key in COLUMNS) && !HIDDEN.has(column.key)).map((column) => ({ ...column, sortable: true }));
    const interval = { key: "interval", label: "95% interval", swept: false, numeric: true, sortable: false };
    const by = new Map([...fixed, ...rest, interval].map((column) => [column.key, column]));
    const keys = [...FIRST, ...swept.map((column) => column.key), ...logged, "perplexity", "interval"];
    for (const column of swept) by.set(column.key, { ...column, sortable: true, path: column.key.replace(/^swept\./, "") });
    for (const key of by.keys()) if (!keys.includes(key)) keys.push(key);
    this.columns = keys.map((key) => by.get(key));
    this.usual = [...FIRST, ...swept.slice(0, MOST_SWEPT).map((column) => column.key), ...AFTER_SWEPT];
    this.usual.splice(this.usual.indexOf("perplexity") + 1, 0, "interval");
    if (logged.length) this.usual = [...FIRST, ...swept.slice(0, MOST_SWEPT).map((column) => column.key), ...logged.slice(0, MOST_LOGGED)];
    this.showMenu();
  }

  shown() {
    const keys = new Set(this.chosen ?? this.usual);
    return this.columns.filter((column) => keys.has(column.key) || column.key === "name");
  }

  showMenu() {
    const shown = new Set(this.shown().map((column) => column.key));
    const box = (column) =>
      h("label.check", {}, h("input", { type: "checkbox", checked: shown.has(column.key), disabled: column.key === "name", on: { change: (event) => this.choose(column.key, event.target.checked) } }), column.label);
    const swept = this.columns.filter((column) => column.swept);
    replace(
      this.menu,
      swept.length > 0 && [h("h3", {}, "Swept"), swept.map(box)],
      h("h3", {}, swept.length ? "Measured and recorded" : "Columns"),
      this.columns.filter((column) => !column.swept).map(box),
      h("button.small.quiet", { type: "button", on: { click: () => this.choose(null) } }, "As usual"),
    );
  }

  choose(key, on) {
    if (key === null) this.chosen = null;
    else {
      const keys = this.shown().map((column) => column.key);
      this.chosen = on ? [...keys, key] : keys.filter((one) => one !== key);
    }
    keep({ columns: this.chosen?.join(",") ?? "" });
    this.showMenu();
    this.draw();
  }

  text(row, column) {
    if (column.swept) return format.value(row.swept?.[column.path]);
    if (isLogged(column.key)) return format.value(row.logged?.[column.key]);
    if (column.key === "interval") return format.interval(row.low, row.high);
    return SHOW[column.key]?.(row) ?? format.value(row[column.key] === "" ? null : row[column.key]);
  }

  /** Column widths from the longest text so far, so that they stay still while scrolling. */
  measure(rows) {
    for (const column of this.columns) {
      let longest = Math.max(this.widths.get(column.key) ?? 0, column.label.length + 2);
      for (const row of rows) longest = Math.max(longest, this.text(row, column).length + (column.key === "state" ? 3 : 0));
      this.widths.set(column.key, longest);
    }
  }

  width(column) {
    const extra = column.key === "name" ? 5 : 3;
    const most = column.key === "name" ? (matchMedia("(max-width: 640px)").matches ? 22 : 46) : 34;
    return `${Math.min(most, Math.max(7, this.widths.get(column.key) ?? 8)) * 0.97 + extra}ch`;
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
      const filtered = this.query.q || this.query.state;
      const text = filtered ? "Search for something else, or show all states." : "They appear here as soon as the sweep has some.";
      return void replace(this.scroller, empty(filtered ? "No trial is like that" : "No trials yet", text));
    }
    const columns = this.shown();
    const { sort, descending } = this.query;
    const head = columns.map((column) => {
      const order = sort === column.key ? (descending ? "descending" : "ascending") : column.sortable ? "none" : null;
      const name = h("span.label", { title: column.path ?? null }, column.label);
      const button = column.sortable
        ? h("button", { type: "button", on: { click: () => this.sort(column) } }, name)
        : h("button", { type: "button", disabled: true }, name);
      return h("th", { scope: "col", "aria-sort": order, class: this.classes(column) }, button);
    });
    this.body = h("tbody");
    replace(
      this.table,
      h("colgroup", {}, columns.map((column) => h("col", { style: { width: this.width(column) } }))),
      h("thead", {}, h("tr", {}, head)),
      this.body,
    );
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
    const box = h("input", { type: "checkbox", checked: this.selected.has(this.reference(row)), "aria-label": `Select ${row.name}`, on: { change: () => this.toggle(row) } });
    const link = h("a", { href: trialPage(this.sweep, row.name), title: row.name, on: { click: () => this.remember(place) } }, row.name);
    return h("th.first", { scope: "row" }, h("label", {}, box), link);
  }

  stateCell(row) {
    return [stateBadge(row.state, row.early_stopped ? "stopped early" : row.state)];
  }

  showCount() {
    const filtered = this.query.q || this.query.state;
    this.count.textContent = filtered && this.known ? `${this.total.toLocaleString("en")} of ${format.plural(this.known, "trial")}` : format.plural(this.total, "trial");
  }

  showStates() {
    for (const button of this.states.children) button.setAttribute("aria-pressed", String(button.dataset.state === this.query.state));
  }

  // Sorting, selecting, moving

  sort(column) {
    const { sort, descending } = this.query;
    if (sort !== column.key) this.ask({ sort: column.key, descending: false });
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
    if (!this.total) return;
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
    if (!row) return;
    this.remember(place);
    location.assign(trialPage(this.sweep, row.name));
  }

  /** Where the trial's page finds its neighbours. */
  remember(place) {
    sessionStorage.setItem(this.storage("place"), JSON.stringify({ place, name: this.rows.get(place)?.name, ...this.query }));
  }
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
  const { q, state, sort, descending } = at;
  const found = await get(path("sweeps", sweep, "trials"), { offset: place, limit: 1, q, state, sort, ...(sort && descending ? { descending: "true" } : {}) });
  const row = found.trials[0];
  if (!row) return null;
  sessionStorage.setItem(storage, JSON.stringify({ ...at, place, name: row.name }));
  return row.name;
}
