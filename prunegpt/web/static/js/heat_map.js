// Sparsity by layer: over time where it was recorded, else by block and tensor as it was counted at the end.

import { escapeTemplate } from "./curves.js";

const BLOCK = /(?:^|\.)(\d+)\.(.+)$/;
// Cividis: even in lightness, and alike for all kinds of colour vision.
const SCALE = "Cividis";
const LEAST_RANGE = 5; // percentage points
const MOST_NUMBERS = 24; // columns up to which the cells say their number

/** A figure of `/layers`, or null where nothing was pruned. */
export function heatMap({ tensors, steps, values }) {
  if (!tensors.length) return null;
  return steps.length > 1 ? overTime(tensors, steps, values) : byBlock(tensors, values.map((row) => row[0]));
}

function overTime(tensors, steps, values) {
  const names = tensors.map(short);
  return {
    rows: tensors.length,
    data: [{ ...common("step %{x}, %{y}<br>%{z:.1f}%", values.map((row) => row.map(toPercent))), x: steps, y: names }],
    layout: { xaxis: { title: { text: "optimizer step" } }, yaxis: { autorange: "reversed", type: "category", nticks: 40 }, uirevision: "layers" },
  };
}

function byBlock(tensors, values) {
  const parts = tensors.map((name) => BLOCK.exec(name)?.slice(1) ?? ["other", name]);
  const blocks = [...new Set(parts.map(([block]) => block))];
  const kinds = [...new Set(parts.map(([, kind]) => kind))];
  const table = kinds.map(() => blocks.map(() => null));
  parts.forEach(([block, kind], index) => (table[kinds.indexOf(kind)][blocks.indexOf(block)] = toPercent(values[index])));
  return {
    rows: kinds.length,
    data: [{ ...common("layer %{x}, %{y}<br>%{z:.2f}%", table), x: blocks, y: kinds.map(short) }],
    layout: { xaxis: { title: { text: "decoder layer" }, type: "category" }, yaxis: { autorange: "reversed", type: "category" }, uirevision: "layers" },
  };
}

/** Percent from lowest to highest, but five points at least: what is alike shall look alike. */
function bounds(values) {
  const all = values.flat().filter((value) => value !== null && value !== undefined);
  const low = all.reduce((one, other) => Math.min(one, other), 100);
  const high = all.reduce((one, other) => Math.max(one, other), 0);
  const zmax = Math.min(100, Math.max(high, low + LEAST_RANGE));
  return { zmin: Math.max(0, Math.min(low, zmax - LEAST_RANGE)), zmax };
}

function common(template, values) {
  return {
    type: "heatmap",
    z: values,
    ...bounds(values),
    colorscale: SCALE,
    xgap: 1,
    ygap: 1,
    hoverongaps: false,
    ...(values[0].length <= MOST_NUMBERS ? { texttemplate: "%{z:.1f}" } : {}),
    colorbar: { title: { text: "%", side: "top" }, thickness: 12, outlinewidth: 0, len: 0.95 },
    hovertemplate: template + "<extra></extra>",
  };
}

const toPercent = (share) => (share === null || share === undefined ? null : 100 * share);
const short = (name) => escapeTemplate(name.replace(/\.weight$/, "").replace(/^(transformer|model)\.(h|layers|decoder\.layers)\./, ""));
