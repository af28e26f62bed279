// Panels of a sweep: any metric over any other, or a point per trial; kept in the address, saved for all on the server.

import { address, get, path, post } from "./api.js";
import { keep, keptAll } from "./address.js";
import { chooser, curveControls, toggle } from "./controls.js";
import { h, replace } from "./dom.js";
import { figurePanel, plot, unplot, whenNear } from "./plot.js";
import { draw, empty, problem, say, segmented } from "./shell.js";

const MOST = 24;
const NEW = { kind: "curves", x: "step", y: "", color: "", x_log: false, y_log: false, smoothing: 0, where: "" };
const KINDS = [["curves", "Curves"], ["scatter", "Points"]];

/** A panel as the address keeps it: what differs from a new one. */
const written = (panel) => new URLSearchParams(Object.entries(panel).filter(([key, value]) => value !== NEW[key]).map(([key, value]) => [key, String(value)])).toString();

const titleOf = (panel) => (panel.y ? `${panel.y} over ${panel.x}` : "New panel");

function read(text) {
  const given = Object.fromEntries(new URLSearchParams(text));
  const panel = { ...NEW };
  for (const key of Object.keys(NEW)) if (key in given) panel[key] = typeof NEW[key] === "boolean" ? given[key] === "true" : typeof NEW[key] === "number" ? Number(given[key]) || 0 : given[key].slice(0, 300);
  return { ...panel, kind: panel.kind === "scatter" ? "scatter" : "curves", smoothing: Math.min(1, Math.max(0, panel.smoothing)) };
}

export class Panels {
  constructor(element, sweep) {
    this.sweep = sweep;
    this.grid = h("div.grid");
    this.saveButton = h("button.small", { type: "button", disabled: true, on: { click: () => void this.save() } }, "Save the panels");
    this.addButton = h("button.small", { type: "button", disabled: true, on: { click: () => this.add() } }, "Add a panel"); // until it is known what panels may show
    this.status = h("span.small.muted", { role: "status" });
    this.shown = []; // {panel, made, near}
    replace(element, h("div.section-head", {}, h("h2", { id: "panels-title" }, "Panels"), h("span.row", {}, this.status, this.addButton, this.saveButton)), this.grid);
  }

  async load() {
    const { panels, metrics, fields } = await get(path("sweeps", this.sweep, "panels"));
    this.metrics = metrics;
    this.fields = fields;
    this.saved = panels.map(written);
    const linked = keptAll("panel").slice(0, MOST);
    this.panels = (linked.length ? linked : this.saved).map(read);
    this.addButton.disabled = false;
    this.build();
  }

  /** Draws those again that are in view or were. */
  refresh() {
    for (const one of this.shown) if (one.near) void this.draw(one);
  }

  build() {
    this.shown = this.panels.map((panel) => this.made(panel));
    replace(this.grid, this.shown.length ? this.shown.map((one) => one.made.panel) : h("div.panel", {}, empty("No panels yet", "Add one: any metric over steps, tokens, time or another metric, or a point per trial.")));
    for (const one of this.shown) whenNear(one.made.panel, () => ((one.near = true), void this.draw(one)));
    this.note();
  }

  note() {
    const now = this.panels.map(written);
    const same = now.length === this.saved.length && now.every((text, place) => text === this.saved[place]);
    keep({ panel: same ? [] : now });
    this.saveButton.disabled = same;
    this.status.textContent = same ? (now.length ? "Saved for this root." : "") : "Kept in the address alone until they are saved.";
  }

  add() {
    if (this.panels.length >= MOST) return say(`A sweep has at most ${MOST} panels. Remove one first.`);
    const usual = ["loss", "train/loss", "perplexity", "eval_loss"].find((name) => this.metrics.includes(name)) ?? this.metrics[0] ?? "";
    this.panels.push(this.metrics.length ? { ...NEW, y: usual } : { ...NEW, kind: "scatter", x: "sparsity", y: "perplexity" });
    this.build();
    this.shown.at(-1).made.panel.querySelector("button, input").focus();
  }

  async save() {
    try {
      await post(path("sweeps", this.sweep, "panels", "save"), { panels: this.panels });
      this.saved = this.panels.map(written);
      this.note();
    } catch (error) {
      say(error.message);
    }
  }

  made(panel) {
    const one = { panel, near: false };
    const remove = h("button.quiet.small", { type: "button", "aria-label": "Remove this panel", on: { click: () => ((this.panels = this.panels.filter((other) => other !== panel)), this.build()) } }, "Remove");
    one.files = h("span.links");
    one.made = figurePanel(titleOf(panel), { links: [one.files, remove] });
    one.controls = h("div.choices.stack");
    one.caption = h("p.small.muted.caption", { hidden: true });
    one.made.plot.before(one.controls);
    one.made.panel.append(one.caption);
    this.control(one);
    return one;
  }

  control(one) {
    const { panel } = one;
    const set = (changes) => {
      Object.assign(panel, changes);
      if ("kind" in changes) this.control(one);
      this.note();
      void this.draw(one);
    };
    const numeric = this.fields.filter((field) => field.numeric).map(({ key, label }) => [key, label]);
    const every = this.fields.map(({ key, label }) => [key, label]);
    const metrics = this.metrics.map((name) => [name, name]);
    const kind = segmented("Kind of panel", KINDS, panel.kind, (chosen) => set(chosen === "scatter" ? { kind: chosen, x: "sparsity", y: "perplexity" } : { kind: chosen, x: "step", y: this.metrics[0] ?? "" }));
    const filter = chooser("Only trials", panel.where, [], (where) => set({ where }), { placeholder: "a filter, such as sparsity > 0.5" });
    if (panel.kind === "curves") {
      const state = { axis: panel.x, smoothing: panel.smoothing, logx: panel.x_log, logy: panel.y_log };
      const controls = curveControls(state, this.metrics, () => set({ x: state.axis, smoothing: state.smoothing, x_log: state.logx, y_log: state.logy }), panel.y || "this panel");
      replace(one.controls, h("div.row", {}, kind, chooser("Metric", panel.y, metrics, (y) => set({ y }))), controls, filter);
    } else {
      const logs = [toggle("log x", panel.x_log, (on) => set({ x_log: on }), "Logarithmic axis across"), toggle("log y", panel.y_log, (on) => set({ y_log: on }), "Logarithmic axis upwards")];
      replace(one.controls, h("div.row", {}, kind, chooser("Across", panel.x, numeric, (x) => set({ x })), chooser("Up", panel.y, numeric, (y) => set({ y })), chooser("Colour", panel.color, every, (color) => set({ color })), logs), filter);
    }
  }

  async draw(one) {
    const { panel, made } = one;
    const title = titleOf(panel);
    made.panel.querySelector("h3").textContent = title;
    replace(one.files, ["png", "svg", "pdf"].map((suffix) => h("a.button.quiet.small", { href: address(path("sweeps", this.sweep, `panel.${suffix}`), panel), download: "", "aria-label": `${title} as ${suffix.toUpperCase()}` }, suffix.toUpperCase())));
    const asked = (one.asked = Symbol(title));
    try {
      const figure = await get(path("sweeps", this.sweep, "panel"), panel);
      if (asked !== one.asked) return; // something else was chosen meanwhile
      one.caption.textContent = figure.caption;
      one.caption.hidden = !figure.caption;
      await draw(made.plot, () => plot(made.plot, figure, title));
    } catch (error) {
      if (asked === one.asked) unplot(made.plot, problem(error));
    }
  }
}
