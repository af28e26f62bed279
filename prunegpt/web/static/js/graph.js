// The stage graph: who computes what once, and who takes it from there. Depth runs to the right.

import { h, replace, svg } from "./dom.js";
import * as format from "./format.js";
import { stateBadge } from "./shell.js";
import { trialPage } from "./api.js";

const [WIDTH, HEIGHT, BETWEEN, APART] = [224, 50, 72, 12];
const LANE = 6; // height of what an edge takes of a column that it passes
const FOLDED_FROM = 9; // leaves of one parent, kind and state that become one box

/**
 * Draws the graph.
 *
 * @param {HTMLElement} element where it goes.
 * @param {HTMLElement} detail where the chosen stage is described.
 * @param {{nodes: Array, edges: Array}} graph as the API gives it.
 */
export function drawGraph(element, detail, graph, sweep) {
  const { nodes, edges } = folded(graph);
  const { layers, routes } = layered(nodes, edges);
  const place = new Map();
  layers.forEach((layer, depth) => {
    let y = 0;
    for (const node of layer) {
      const height = node.lane ? LANE : HEIGHT;
      place.set(node.key, { x: depth * (WIDTH + BETWEEN), y, height });
      y += height + APART;
    }
  });
  centred(layers, routes, place);
  const bottom = Math.max(0, ...[...place.values()].map(({ y, height }) => y + height));
  const right = layers.length * (WIDTH + BETWEEN) - BETWEEN;
  const lines = routes.map(({ edge, through }) => line(edge, through.map((key) => place.get(key))));
  const boxes = nodes.map((node) => box(node, place.get(node.key)));
  const picture = svg("svg", { width: right + 4, height: bottom + 4, viewBox: `-2 -2 ${right + 4} ${bottom + 4}`, role: "group", "aria-label": `Stage graph, ${format.plural(nodes.length, "box", "boxes")}` }, lines, boxes);
  const kept = [element.scrollLeft, element.scrollTop];
  const chosen = element.dataset.chosen;
  replace(element, picture);
  [element.scrollLeft, element.scrollTop] = kept;

  const choose = (node) => {
    element.dataset.chosen = node.key;
    for (const one of boxes) one.classList.toggle("on", one.dataset.key === node.key);
    for (const one of lines) one.classList.toggle("on", one.dataset.from === node.key || one.dataset.to === node.key);
    detail.hidden = false;
    replace(detail, about(node, sweep));
  };
  nodes.forEach((node, index) => {
    boxes[index].addEventListener("click", () => choose(node));
    boxes[index].addEventListener("keydown", (event) => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      event.stopPropagation();
      choose(node);
    });
  });
  const again = nodes.find((node) => node.key === chosen);
  if (again) choose(again);
}

function box(node, { x, y }) {
  const states = { published: "published", running: "running", waiting: "waiting", failed: "failed", diverged: "diverged", stopped: "stopped" };
  const many = node.folded ? `${node.folded} × ` : "";
  const shared = node.shared > 1 ? `shared by ${node.shared}` : node.trials.length === 1 ? node.trials[0].split("/").at(-1) : "";
  const took = node.cached ? "◈ cached" : node.seconds ? format.duration(node.seconds) : "";
  const value = node.perplexity !== null && node.perplexity !== undefined ? format.perplexity(node.perplexity) : node.state === "published" ? "" : node.state;
  const label = `${many}${node.kind}, ${node.state}${node.cached ? ", cached" : ""}${node.shared > 1 ? `, shared by ${node.shared} trials` : ""}${value ? `, ${value}` : ""}`;
  return svg(
    "g.node",
    { class: states[node.state] ?? "waiting", transform: `translate(${x} ${y})`, tabindex: 0, role: "button", "aria-label": label, data: { key: node.key } },
    svg("title", {}, label),
    svg("rect.box", { width: WIDTH, height: HEIGHT }),
    svg("rect.mark", { width: 4, height: HEIGHT - 12, x: 6, y: 6, rx: 2 }),
    svg("text", { x: 18, y: 20 }, clipped(many + (node.folded ? node.kind : (node.label ?? node.kind)), value ? 28 - value.length : 32)),
    svg("text", { x: WIDTH - 10, y: 20, "text-anchor": "end" }, value),
    svg("text.faint", { x: 18, y: 38 }, clipped(shared || (node.folded ? "" : format.key(node.key)), took ? 31 - took.length : 34)),
    svg("text.faint", { x: WIDTH - 10, y: 38, "text-anchor": "end" }, took),
  );
}

const clipped = (text, most) => (text.length > most ? text.slice(0, most - 1) + "…" : text);

/** An edge through its lanes: level where it passes a column, bent between columns alone. */
function line(edge, places) {
  const middle = ({ y, height }) => y + height / 2;
  let d = `M${places[0].x + WIDTH} ${middle(places[0])}`;
  places.slice(1).forEach((to, index) => {
    const from = places[index];
    const [x1, y1, x2, y2] = [from.x + WIDTH, middle(from), to.x, middle(to)];
    const bend = Math.max(30, (x2 - x1) / 2);
    d += `C${x1 + bend} ${y1} ${x2 - bend} ${y2} ${x2} ${y2}`;
    if (index < places.length - 2) d += `H${x2 + WIDTH}`;
  });
  return svg("path.edge", { class: edge.kind, d, data: { from: edge.from, to: edge.to } });
}

function about(node, sweep) {
  const [most, names] = [60, node.trials.map((name) => name.replace(`${sweep}/`, ""))];
  return h(
    "div.stack",
    {},
    h("div.row", {}, h("h3", {}, node.folded ? format.plural(node.folded, `${node.kind} stage`) : node.kind), stateBadge(node.state), !node.folded && h("span.mono.muted", { title: node.key }, format.key(node.key)), work(node)),
    h("div.row.small", {}, names.slice(0, most).map((name) => h("a", { href: trialPage(sweep, name) }, name)), names.length > most && h("span.muted", {}, `and ${names.length - most} more`)),
  );
}

/** How a stage came to be there, and for how many. */
function work(node) {
  const used = node.shared > 1 ? `used by ${format.plural(node.shared, "trial")}` : "";
  const took = node.seconds ? ` in ${format.duration(node.seconds)}` : "";
  if (node.cached) return [h("span.muted", {}, "found computed, by another sweep or an earlier run"), h("span.muted", {}, used)];
  return [took && h("span.muted", {}, `computed${took}`), used && h("span.muted", {}, node.state === "published" ? `computed once, ${used}` : used)];
}

/** Many leaves that differ in nothing one could see become one box, so that a search of thousands stays a picture. */
function folded({ nodes, edges }) {
  const parents = new Map();
  const busy = new Set();
  for (const edge of edges) {
    busy.add(edge.from);
    parents.set(edge.to, [...(parents.get(edge.to) ?? []), edge.from]);
  }
  const bundles = new Map();
  for (const node of nodes) {
    if (busy.has(node.key)) continue;
    const name = [...(parents.get(node.key) ?? []).toSorted(), node.kind, node.state].join("|");
    bundles.set(name, [...(bundles.get(name) ?? []), node]);
  }
  const gone = new Map();
  const made = [];
  for (const [name, bundle] of bundles) {
    if (bundle.length < FOLDED_FROM) continue;
    const key = `bundle:${name}`;
    for (const node of bundle) gone.set(node.key, key);
    made.push({ key, kind: bundle[0].kind, state: bundle[0].state, shared: 0, trials: bundle.flatMap((node) => node.trials), folded: bundle.length, seconds: bundle.reduce((sum, node) => sum + (node.seconds ?? 0), 0), perplexity: null });
  }
  const seen = new Set();
  const moved = edges
    .map((edge) => ({ ...edge, to: gone.get(edge.to) ?? edge.to }))
    .filter((edge) => {
      const name = `${edge.from}|${edge.to}|${edge.kind}`;
      return !seen.has(name) && seen.add(name);
    });
  return { nodes: [...nodes.filter((node) => !gone.has(node.key)), ...made], edges: moved };
}

/**
 * Layers by longest way from a root, each in the order that crosses least (a few rounds of barycentres).
 *
 * An edge to a later layer than the next has a lane in each that it passes, which edges of one kind from one stage share;
 * `routes` says what each edge goes through, its ends included.
 */
function layered(nodes, edges) {
  const known = new Map(nodes.map((node) => [node.key, node]));
  const into = new Map(nodes.map((node) => [node.key, []]));
  const out = new Map(nodes.map((node) => [node.key, []]));
  for (const edge of edges) {
    if (!known.has(edge.from) || !known.has(edge.to)) continue;
    into.get(edge.to).push(edge.from);
    out.get(edge.from).push(edge.to);
  }
  const depth = new Map();
  const waiting = new Map(nodes.map((node) => [node.key, into.get(node.key).length]));
  const ready = nodes.filter((node) => waiting.get(node.key) === 0).map((node) => node.key);
  for (const key of ready) depth.set(key, 0);
  while (ready.length) {
    const key = ready.shift();
    for (const next of out.get(key)) {
      depth.set(next, Math.max(depth.get(next) ?? 0, depth.get(key) + 1));
      waiting.set(next, waiting.get(next) - 1);
      if (waiting.get(next) === 0) ready.push(next);
    }
  }
  const layers = [];
  for (const node of nodes) (layers[depth.get(node.key) ?? 0] ??= []).push(node);
  const dense = [...layers].map((layer) => layer ?? []);
  const routes = laned(edges.filter((edge) => known.has(edge.from) && known.has(edge.to)), depth, dense);
  for (const layer of dense) for (const node of layer) [into, out].forEach((near) => near.set(node.key, []));
  for (const { through } of routes) {
    through.slice(1).forEach((key, index) => {
      into.get(key).push(through[index]);
      out.get(through[index]).push(key);
    });
  }
  for (let round = 0; round < 4; round++) {
    const forwards = round % 2 === 0;
    for (const layer of forwards ? dense : dense.toReversed()) {
      const index = new Map(dense.flatMap((one) => one.map((node, place) => [node.key, place / Math.max(1, one.length)])));
      const mean = (node) => {
        const near = (forwards ? into : out).get(node.key);
        return near.length ? near.reduce((sum, key) => sum + index.get(key), 0) / near.length : index.get(node.key);
      };
      const at = new Map(layer.map((node) => [node.key, mean(node)]));
      layer.sort((one, other) => at.get(one.key) - at.get(other.key));
    }
  }
  return { layers: dense, routes };
}

/** Adds the lanes to the layers, and gives the way of each edge. */
function laned(edges, depth, layers) {
  const lanes = new Set();
  return edges.map((edge) => {
    const [first, last] = [(depth.get(edge.from) ?? 0) + 1, depth.get(edge.to) ?? 0];
    const through = [edge.from];
    for (let layer = first; layer < last; layer++) {
      const key = `lane:${layer}|${edge.kind}|${edge.from}`;
      if (!lanes.has(key)) layers[layer].push({ key, lane: true });
      lanes.add(key);
      through.push(key);
    }
    return { edge, through: [...through, edge.to] };
  });
}

/** Moves each box towards the middle of those it comes from, without disturbing the order. */
function centred(layers, routes, place) {
  const before = new Map();
  for (const { through } of routes) through.slice(1).forEach((key, index) => before.set(key, (before.get(key) ?? new Set()).add(through[index])));
  for (const layer of layers.slice(1)) {
    let free = -Infinity;
    let error = 0;
    for (const node of layer) {
      const at = place.get(node.key);
      const from = [...(before.get(node.key) ?? [])].map((key) => place.get(key).y + place.get(key).height / 2);
      const wanted = from.length ? from.reduce((sum, y) => sum + y, 0) / from.length - at.height / 2 : at.y;
      at.y = Math.max(free, wanted);
      error += at.y - wanted;
      free = at.y + at.height + APART;
    }
    const shift = Math.min(error / layer.length, place.get(layer[0].key).y);
    for (const node of layer) place.get(node.key).y -= shift;
  }
}
