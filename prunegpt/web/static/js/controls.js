// What is chosen of curves, wherever curves are drawn: what goes across, how they are smoothed, which axes are logarithmic.

import { h } from "./dom.js";
import { AXES } from "./curves.js";

let lists = 0;

/** A field with suggestions; `changed` gets its value when it is left or chosen. */
export function chooser(label, value, options, changed, { placeholder = "" } = {}) {
  const id = `options-${++lists}`;
  const field = h("input", { type: "text", list: id, value, placeholder, autocomplete: "off", spellcheck: "false", on: { change: () => changed(field.value.trim()) } });
  return h("label.small", {}, label, " ", field, h("datalist", { id }, options.map(([key, text]) => h("option", { value: key }, text === key ? null : text))));
}

export function toggle(label, on, changed, title = label) {
  const button = h("button.quiet.small", { type: "button", "aria-pressed": String(on), "aria-label": title, on: { click: () => (button.setAttribute("aria-pressed", String((on = !on))), changed(on)) } }, label);
  return button;
}

/**
 * The controls of curves.
 *
 * @param {Object} state {axis, smoothing, logx, logy}; changed in place. Without `logy` there is no switch for it.
 * @param {Array} metrics names that may go across beside steps, tokens and time.
 * @param {Function} changed called after each change.
 */
export function curveControls(state, metrics, changed, what = "curves") {
  const metric = AXES.some(([key]) => key === state.axis) ? "" : state.axis;
  const field = chooser("or over", metric, metrics.map((name) => [name, name]), (value) => across(value || "step"), { placeholder: "a metric" });
  const buttons = h("div.segmented", { role: "group", "aria-label": `What ${what} run over` }, AXES.map(([key, text]) => h("button", { type: "button", "aria-pressed": String(key === state.axis), data: { key }, on: { click: () => across(key) } }, text)));
  const shown = h("output.small.muted", {}, said(state.smoothing));
  const range = h("input", { type: "range", min: 0, max: 0.99, step: 0.01, value: state.smoothing, "aria-label": `Smoothing of ${what}`, on: { input: () => (shown.textContent = said(range.value)), change: () => ((state.smoothing = Number(range.value)), changed()) } });

  function across(axis) {
    if (axis === state.axis) return;
    state.axis = axis;
    for (const button of buttons.children) button.setAttribute("aria-pressed", String(button.dataset.key === axis));
    if (buttons.querySelector("[aria-pressed=true]")) field.querySelector("input").value = "";
    changed();
  }

  return h("div.row.curve-controls", {}, buttons, field, h("label.small.smoothing", {}, "Smoothing ", range, shown), toggle("log x", state.logx, (on) => ((state.logx = on), changed()), `Logarithmic axis across: ${what}`), "logy" in state && toggle("log y", state.logy, (on) => ((state.logy = on), changed()), `Logarithmic axis upwards: ${what}`));
}

const said = (smoothing) => (Number(smoothing) ? Number(smoothing).toFixed(2) : "none");

/** The state of a page's controls, as its address keeps it. */
export const stateOf = (kept) => ({ axis: kept("axis", "step"), smoothing: Math.min(0.99, Math.max(0, Number(kept("smooth", "0")) || 0)), logx: kept("logx") === "1" });

/** What `keep` writes of it into the address. */
export const addressOf = ({ axis, smoothing, logx }) => ({ axis: axis === "step" ? "" : axis, smooth: smoothing ? String(smoothing) : "", logx: logx ? "1" : "" });
