// Curves of trials over steps, tokens or time.

import { get, path } from "./api.js";
import { lineStyle } from "./plot.js";

export const AXES = [["step", "Steps"], ["tokens", "Tokens"], ["time", "Time"]];
const AXIS_TITLES = { step: "optimizer step", tokens: "tokens trained on", time: "minutes" };

const SYSTEM = /^(system|gpu|cpu|memory)([/_.]|$)/;
const GROUPS = [
  { key: "perplexity", title: "Perplexity", y: "perplexity", log: "wide", test: (name) => /(^|_)perplexity$/.test(name) },
  { key: "loss", title: "Loss terms", y: "nats per token", test: (name) => /^(loss|ce|kd|hidden|attention|teacher_ce|eval_loss)$/.test(name) || /(^|_)(loss|kd|ce)(\/|$)/.test(name) },
  { key: "sparsity", title: "Sparsity, target and achieved", y: "percent", scale: 100, test: (name) => /^sparsity(_|$)/.test(name) || name === "target_sparsity" },
  { key: "learning_rate", title: "Learning rate", y: "learning rate", test: (name) => name === "learning_rate" },
  { key: "gradient", title: "Gradient norm", y: "norm", test: (name) => name === "grad_norm" },
  { key: "busy", title: "Processor and GPU in use", y: "percent", test: (name) => /^system\/.*_percent$/.test(name) },
  { key: "memory", title: "Memory in use", y: "MiB", test: (name) => /^system\/.*_mib$/.test(name) },
  { key: "system", title: "System use", y: "", test: (name) => SYSTEM.test(name) },
  { key: "layers", title: "Layers pruned", y: "layers", test: (name) => name === "layers_pruned" },
];
const LOGGED_SYSTEM = /^system\./; // what a W&B client measures of its machine
const UNSHOWN = new Set(["total_steps", "calibrated"]);

/** The figures that these curve names make: [{key, title, names, ...}], in a fixed order. */
export function groups(names) {
  const left = new Set([...names].filter((name) => !UNSHOWN.has(name) && !name.startsWith("sparsity/")));
  const found = [];
  for (const group of GROUPS) {
    const mine = [...left].filter(group.test);
    for (const name of mine) left.delete(name);
    if (mine.length) found.push({ ...group, names: mine });
  }
  return [...found, ...[...left].sort().map(single)];
}

/** The figures of a run that a W&B client has logged: one per metric, by its own name; `machine` is true of those of the machine, the last. */
export function loggedGroups(names) {
  const own = [...names].filter((name) => !LOGGED_SYSTEM.test(name)).sort();
  const system = [...names].filter((name) => LOGGED_SYSTEM.test(name)).sort();
  return [...own.map(single), ...system.map((name) => ({ ...single(name), machine: true }))];
}

const single = (name) => ({ key: name, title: name, y: "", names: [name] });

/** Whether curves go anywhere: what was measured once, as after one-shot pruning, makes no line. */
export const hasLength = (curves) => new Set(curves.flatMap((curve) => [curve.x[0], curve.x.at(-1)].map((x) => x + (curve.offset ?? 0)))).size > 1;

/** Curves of one trial, down-sampled by the server. */
export async function fetchCurves(sweep, trial, names, { axis, smoothing = 0 }, { points = 1000, signal } = {}) {
  const exact = names.map((name) => name.replaceAll(/[[*?]/g, "[$&]")); // the server takes globs
  return (await get(path("trials", sweep, trial, "curves"), { name: exact, axis, smoothing, points }, { signal })).curves;
}

/**
 * The figure of a group.
 *
 * @param {Object} group one of `groups`.
 * @param {Array} lines [{label, curve}] in the order of their colours; curves of one label are one line, stage after stage.
 */
export function curveFigure(group, lines, { axis, smoothing, logx }) {
  const labels = [...new Set(lines.map((line) => line.label))];
  lines = labels.flatMap((label) => joined(lines.filter((line) => line.label === label)));
  const scale = group.scale ?? 1;
  const over = axis === "time" ? 1 / 60 : 1;
  const seen = new Set();
  const data = lines.flatMap(({ label, curve }) => {
    const style = lineStyle(labels.indexOf(label));
    const first = !seen.has(label);
    seen.add(label);
    const target = /target/.test(curve.name);
    const x = curve.x.map((x) => (x + (curve.offset ?? 0)) * over);
    const scaled = (values) => values.map((y) => (y === null ? null : y * scale));
    const smooth = smoothing && curve.smooth && curve.x.length > 1;
    const drawn = {
      type: "scatter",
      mode: curve.x.length < 40 ? "lines+markers" : "lines",
      name: label,
      legendgroup: label,
      showlegend: first && labels.length > 1,
      cliponaxis: false,
      x,
      y: scaled(smooth ? curve.smooth : curve.y),
      line: { color: style.color, dash: target ? "dash" : curve.joined ? "dot" : style.dash, width: curve.joined ? 1.25 : 1.75, shape: /^sparsity/.test(curve.name) ? "hv" : "linear" },
      marker: { color: style.color, symbol: style.symbol, size: curve.x.length === 1 || curve.joined ? 9 : 5 },
      hovertemplate: `%{y:.5~g}<extra>${escapeTemplate(label)}${curve.joined ? "" : `, stage ${curve.stage}`}</extra>`,
    };
    if (!smooth) return [drawn];
    const raw = { ...drawn, y: scaled(curve.y), mode: "lines", opacity: 0.25, showlegend: false, hoverinfo: "skip", hovertemplate: null, line: { ...drawn.line, width: 1 } };
    return [raw, { ...drawn, mode: "lines" }];
  });
  const values = data.flatMap((trace) => trace.y).filter((value) => value !== null && value > 0);
  const wide = group.log === "wide" && values.length > 0 && Math.max(...bounds(values)) / Math.min(...bounds(values)) >= 4;
  return {
    data,
    layout: {
      uirevision: `${group.key}-${axis}-${logx}`,
      hovermode: "x unified",
      showlegend: labels.length > 1,
      xaxis: { title: { text: AXIS_TITLES[axis] ?? axis }, ...(logx ? { type: "log" } : axis in AXIS_TITLES ? { rangemode: "tozero" } : {}) },
      yaxis: { title: { text: group.y }, type: wide ? "log" : "linear", ...(group.scale ? { rangemode: "tozero" } : {}) },
    },
  };
}

/** What every stage measured only once becomes one line from stage to stage: single dots would not show where it went. */
function joined(lines) {
  const measured = lines.filter(({ curve }) => curve.x.length > 0);
  if (measured.length < 2 || measured.some(({ curve }) => curve.x.length > 1)) return lines;
  const [x, y] = [measured.map(({ curve }) => curve.x[0] + (curve.offset ?? 0)), measured.map(({ curve }) => curve.y[0])];
  return [{ label: measured[0].label, curve: { ...measured[0].curve, x, y, offset: 0, joined: true } }];
}

function bounds(values) {
  let [low, high] = [Infinity, -Infinity];
  for (const value of values) {
    if (value < low) low = value;
    if (value > high) high = value;
  }
  return [low, high];
}

// Plotly reads a little markup in labels; a name must stay a name.
export const escapeTemplate = (text) => String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll("%{", "%\u200b{");
