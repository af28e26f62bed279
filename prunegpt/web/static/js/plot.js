// Figures: Plotly, loaded when the first one is wanted, in the colours of the page.

import { comparePage, trialPage } from "./api.js";
import { h, replace } from "./dom.js";
import { loading } from "./shell.js";

// Okabe & Ito 2008; on a dark page blue and black give way to lighter ones.
const LIGHT = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8A7A00", "#000000"];
const DARK = ["#56B4E9", "#E8803A", "#1FBF94", "#DD9CC2", "#E69F00", "#8FB8FF", "#F0E442", "#E3E7EB"];
const DASHES = ["solid", "dash", "dot", "dashdot"];
const MARKS = ["circle", "square", "diamond", "triangle-down", "triangle-up", "cross", "x", "star"];
const ON_DARK = {
  "#0072b2": "#56B4E9", "#000000": "#E3E7EB", "#d55e00": "#E8803A", "#009e73": "#1FBF94", "#cc79a7": "#DD9CC2", "#666666": "#9BA6B1", "#dddddd": "#2D343B",
};

const CONFIG = {
  displaylogo: false,
  responsive: true,
  modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d", "toImage", "sendChartToCloud"],
  doubleClickDelay: 250,
};

const MANY = 2000; // points of a trace

let library = null;
const drawn = new Set();

/** Colour, dash and mark of the n-th line; they differ together, so that none rests on colour alone. */
export function lineStyle(index) {
  const colours = isDark() ? DARK : LIGHT;
  return { color: colours[index % colours.length], dash: DASHES[Math.floor(index / colours.length) % DASHES.length], symbol: MARKS[index % MARKS.length] };
}

export function isDark() {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

function plotly() {
  library ??= new Promise((resolve, reject) => {
    const script = h("script", { src: "/static/plotly.min.js" });
    script.addEventListener("load", () => resolve(window.Plotly));
    script.addEventListener("error", () => reject(new Error("Plotly did not load from this server.")));
    document.head.append(script);
  });
  return library;
}

/** Fetches Plotly while something else is waited for. */
export const preloadPlotly = () => void plotly().catch(() => {});

function merge(base, more) {
  const all = { ...base };
  for (const [key, value] of Object.entries(more ?? {})) {
    const both = all[key] && value && typeof value === "object" && !Array.isArray(value) && typeof all[key] === "object";
    all[key] = both ? merge(all[key], value) : value;
  }
  return all;
}

function colour(name) {
  const probe = h("span", { style: { color: `var(${name})` } });
  document.body.append(probe);
  const found = getComputedStyle(probe).color;
  probe.remove();
  return found;
}

/** Ticks at 1, 2 and 5 of each decade, or decades alone where there are many. */
function logTicks(data) {
  const bounds = [Infinity, 0];
  for (const trace of data) {
    for (const y of trace.y ?? []) {
      if (y > 0 && y < bounds[0]) bounds[0] = y;
      if (y > bounds[1]) bounds[1] = y;
    }
  }
  const decades = Math.log10(bounds[1] / bounds[0]);
  const steps = decades < 0.7 ? [1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9] : decades < 4 ? [1, 2, 5] : [1];
  const tickvals = [];
  for (let power = Math.floor(Math.log10(bounds[0])) - 1; power <= Math.log10(bounds[1]) + 1; power++) for (const step of steps) tickvals.push(step * 10 ** power);
  return { tickmode: "array", tickvals, ticktext: tickvals.map((value) => (value >= 1e5 || value < 1e-3 ? value.toExponential(0).replace("e+", "e") : String(Number(value.toPrecision(3))))), dtick: null };
}

function pageLayout(given, data) {
  const [text, muted, line, strong, surface] = ["--text", "--muted", "--line", "--line-strong", "--surface"].map(colour);
  const axis = { gridcolor: line, linecolor: strong, zerolinecolor: line, tickcolor: strong, tickfont: { color: muted }, title: { font: { color: text, size: 13 }, standoff: 8 }, automargin: true, exponentformat: "e" };
  const narrow = matchMedia("(max-width: 640px)").matches;
  const layout = merge(given, {
    template: null,
    title: null,
    width: null,
    height: null,
    autosize: true,
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    colorway: isDark() ? DARK : LIGHT,
    font: { family: getComputedStyle(document.body).fontFamily, color: text, size: narrow ? 11 : 12 },
    hoverlabel: { bgcolor: surface, bordercolor: strong, font: { color: text }, align: "left", namelength: 60 },
    legend: { bgcolor: "rgba(0,0,0,0)", orientation: "h", x: 0, xanchor: "left", y: 0, yref: "container", yanchor: "bottom", maxheight: 0.25, font: { color: text }, ...(given.legend?.title ? { title: given.legend.title } : {}) },
    margin: { l: 56, r: 16, t: 14, b: 44 },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: muted, activecolor: text },
  });
  for (const name of ["xaxis", "yaxis", ...Object.keys(given).filter((key) => /^[xy]axis\d+$/.test(key))]) {
    const title = given[name]?.title;
    layout[name] = merge(merge(axis, given[name]), axis);
    if (name.startsWith("y") && given[name]?.type === "log") Object.assign(layout[name], logTicks(data));
    if (typeof title === "string") layout[name].title = { ...axis.title, text: title };
  }
  return layout;
}

/** Colours of a figure from the server, for this page. */
function recolour(any) {
  if (typeof any === "string") return ON_DARK[any.toLowerCase()] ?? any;
  if (Array.isArray(any)) return any.length && typeof any[0] === "number" ? any : any.map(recolour);
  if (any && typeof any === "object") return Object.fromEntries(Object.entries(any).map(([key, value]) => [key, key === "x" || key === "y" || key === "text" ? value : recolour(value)]));
  return any;
}

/** Thousands of points or lines: small and see-through, without bars that nobody could tell apart. */
function quick(trace) {
  if (trace.type !== "scatter" || (trace.x?.length ?? 0) < MANY || trace.mode === undefined) return trace;
  if (trace.mode === "lines" && trace.x.every((x, place) => place === 0 || x === null || x >= trace.x[place - 1])) return trace; // one long curve
  return { ...trace, error_y: undefined, opacity: 0.45, marker: { ...trace.marker, size: 4 }, line: { ...trace.line, width: 0.75 } };
}

/**
 * Draws a figure into an element, or redraws it with other data; zoom is kept while `layout.uirevision` stays.
 *
 * @param {Object} figure Plotly's {data, layout}, or a function that gives one in the current colours.
 * @param {string} label what it shows, for those who do not see it.
 */
export async function plot(element, figure, label) {
  const Plotly = await plotly();
  const made = typeof figure === "function" ? figure() : figure;
  const data = (isDark() ? recolour(made.data) : made.data).map(quick);
  const layout = pageLayout(isDark() ? recolour(made.layout ?? {}) : (made.layout ?? {}), data);
  if (!element.classList.contains("js-plotly-plot")) replace(element);
  element.setAttribute("role", "group");
  element.setAttribute("aria-label", label);
  const first = !element.classList.contains("js-plotly-plot");
  await Plotly.react(element, data, layout, CONFIG);
  if (first) element.on("plotly_click", ({ points, event }) => followLead(leadOf(points[0]), event));
  for (const picture of element.querySelectorAll("svg.main-svg")) picture.setAttribute("aria-hidden", "true");
  for (const button of element.querySelectorAll(".modebar-btn")) {
    button.setAttribute("aria-label", button.dataset.title ?? "");
    button.setAttribute("role", "button");
  }
  element.redraw = () => plot(element, figure, label);
  drawn.add(element);
  sizes.observe(element);
}

/** The addresses of the trials that a point of a figure shows; none where it shows none. */
const leadOf = ({ customdata, data }) => (Array.isArray(customdata) ? customdata : (data.meta?.trials ?? []));

const MOST_COMPARED = 8;

/** Opens the trial of an address SWEEP/TRIAL, or compares several; in a tab of its own with Ctrl or a middle click. */
export function followLead(trials, event = {}) {
  if (!trials?.length) return;
  const [sweep, ...rest] = trials[0].split("/");
  const page = trials.length > 1 ? comparePage(trials.slice(0, MOST_COMPARED)) : trialPage(sweep, rest.join("/"));
  if (event.ctrlKey || event.metaKey || event.button === 1) window.open(page, "_blank", "noopener");
  else location.assign(page);
}

/** A text of a figure without Plotly's escapes. */
export const plainText = (text) => text.replaceAll("&lt;", "<").replaceAll("&gt;", ">").replaceAll("&amp;", "&");

/** Clears a figure. */
export function unplot(element, ...instead) {
  if (element.classList.contains("js-plotly-plot")) window.Plotly.purge(element);
  drawn.delete(element);
  sizes.unobserve(element);
  element.className = "plot";
  replace(element, instead);
}

/** Saves a drawn figure as a file. */
export async function saveFigure(element, name, format) {
  const Plotly = await plotly();
  await Plotly.downloadImage(element, { format, filename: name, width: 960, height: 600, scale: format === "png" ? 2 : 1 });
}

/** A panel with a figure in it: {panel, plot}. */
export function figurePanel(title, { links = [], classes = "" } = {}) {
  const place = h("div.plot", {}, loading());
  const panel = h("div.panel.figure", { class: classes }, h("header", {}, h("h3", {}, title), h("div.links", {}, links)), place);
  return { panel, plot: place };
}

/** Buttons that save what is drawn. */
export function saveButtons(place, name) {
  return ["png", "svg"].map((format) =>
    h("button.quiet.small", { type: "button", "aria-label": `Save ${name} as ${format.toUpperCase()}`, on: { click: () => saveFigure(place(), name, format) } }, format.toUpperCase()),
  );
}

/** Figures follow the width of their place, which other panels may change. */
const sizes = new ResizeObserver((entries) => {
  for (const { target } of entries) {
    const { width, height } = target._fullLayout ?? {};
    const [wide, tall] = [target.clientWidth, target.clientHeight];
    if (drawn.has(target) && wide && (Math.abs(wide - inner(target) - width) > 1 || Math.abs(tall - inner(target) - height) > 1)) window.Plotly.Plots.resize(target);
  }
});
const inner = (element) => 2 * parseFloat(getComputedStyle(element).paddingLeft);

const redrawAll = () => {
  for (const element of drawn) {
    if (element.isConnected) void element.redraw();
    else drawn.delete(element);
  }
};
window.addEventListener("themechange", redrawAll);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redrawAll);

/** Runs once, when an element comes near the view; with `tab` also when the keyboard begins to walk the page, which would pass over controls that are not there yet. */
export function whenNear(element, run, { tab = false } = {}) {
  const now = () => {
    watcher.disconnect();
    document.removeEventListener("keydown", walked);
    run();
  };
  const walked = (event) => void (event.key === "Tab" && now());
  const watcher = new IntersectionObserver((entries) => void (entries.some((entry) => entry.isIntersecting) && now()), { rootMargin: "120px" });
  watcher.observe(element);
  if (tab) document.addEventListener("keydown", walked);
}
