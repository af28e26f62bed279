// Parallel coordinates: a line per trial, brushed and reordered by pointer and by keyboard. Plotly's own need `eval`.

import { h, replace } from "./dom.js";
import { followLead, isDark, plainText } from "./plot.js";

// Cividis from best to worst: even for the colour-blind; on a dark page turned round.
const LIGHT = ["#00224e", "#35456c", "#666970", "#948e77", "#c8b866", "#e8d23a"];
const DARK = ["#FEE838", "#D8C75C", "#B0A77A", "#8C8C8C", "#6F7C9B", "#5A6C9E"];
const [TOP, BOTTOM, SIDE] = [44, 14, 44]; // pixels around the axes
const STEP = { ArrowUp: 0.02, ArrowRight: 0.02, ArrowDown: -0.02, ArrowLeft: -0.02, PageUp: 0.1, PageDown: -0.1 };
const NEAR = 8; // pixels from a line that count as on it
const MOST_LINKS = 12;
const WAIT = 200; // milliseconds without a change after which `changed` is called

/**
 * Draws a figure of `parcoords` into an element; what is brushed and how axes are ordered stays when it is drawn again.
 *
 * @param {string} start what `changed` got the last time: the view to begin with.
 * @param {Function} changed called with the view as text, whenever that is another; empty where nothing is brushed or moved.
 */
export function coordinates(element, figure, label, start, changed) {
  if (!element.coordinates) element.coordinates = new Coordinates(element, start, changed);
  element.coordinates.show(figure.data[0], label);
}

class Coordinates {
  constructor(element, start, changed) {
    this.element = element;
    this.changed = changed;
    const view = new URLSearchParams(start);
    this.order = view.getAll("order"); // labels
    this.brushes = new Map(); // label of an axis -> [low, high] in its units; null at an end that is open
    for (const [label, low, high] of view.getAll("brush").map((text) => text.split("\t"))) this.brushes.set(label, [endOf(low), endOf(high)]);
    this.canvas = h("canvas", { "aria-hidden": "true" });
    this.axes = h("div.axes");
    this.built = new Map(); // label -> the elements of its axis, the same ones as long as it is there: a redraw takes them from no pointer
    this.tip = h("div.tip", { hidden: true });
    this.count = h("span", { role: "status" });
    this.links = h("span.row");
    this.clear = h("button.small.quiet", { type: "button", on: { click: () => (this.brushes.clear(), this.change()) } }, "Clear the brushes");
    this.field = h("div.field", {}, this.canvas, this.axes, this.tip);
    this.field.addEventListener("pointermove", (event) => this.point(event));
    this.field.addEventListener("pointerleave", () => this.highlight(null));
    this.canvas.addEventListener("click", (event) => this.hovered !== null && followLead(this.trace.customdata[this.hovered], event));
    new ResizeObserver(() => this.layOut()).observe(element);
    window.addEventListener("themechange", () => this.layOut());
  }

  show(trace, label) {
    this.trace = trace;
    this.dimensions = new Map(trace.dimensions.map((one) => [plainText(one.label), one]));
    const kept = this.order.filter((name) => this.dimensions.has(name));
    this.order = [...kept, ...[...this.dimensions.keys()].filter((name) => !kept.includes(name))];
    for (const name of this.brushes.keys()) if (!this.dimensions.has(name)) this.brushes.delete(name);
    this.hovered = null;
    this.element.classList.add("coordinates");
    this.element.setAttribute("role", "group");
    this.element.setAttribute("aria-label", label);
    replace(this.element, this.field, h("div.row.small.shown", {}, this.count, this.links, this.clear));
    this.layOut();
  }

  /** Draws it again after a change of what is brushed or of the order, and calls `changed`. */
  change() {
    this.layOut();
    const view = new URLSearchParams();
    if (this.order.some((name, place) => name !== [...this.dimensions.keys()][place])) for (const name of this.order) view.append("order", name);
    for (const [name, ends] of this.brushes) view.append("brush", [name, ...ends.map((end) => end ?? "")].join("\t"));
    clearTimeout(this.telling);
    this.telling = setTimeout(() => this.changed(view.toString()), WAIT); // browsers refuse an address that changes too often
  }

  /** What is brushed of an axis, as shares of its height; all of it where nothing is. */
  brushed(name) {
    const [low, high] = this.brushes.get(name) ?? [null, null];
    const dimension = this.dimensions.get(name);
    return [low === null ? 0 : shareOf(dimension, low), high === null ? 1 : shareOf(dimension, high)];
  }

  /** Where an axis is, in pixels. */
  x(place) {
    return SIDE + (place * (this.width - 2 * SIDE)) / Math.max(1, this.order.length - 1);
  }

  y(share) {
    return TOP + (1 - share) * (this.height - TOP - BOTTOM);
  }

  layOut() {
    if (!this.trace || !this.field.clientWidth) return;
    [this.width, this.height] = [this.field.clientWidth, this.field.clientHeight];
    for (const name of this.built.keys()) if (!this.dimensions.has(name)) this.built.delete(name);
    replace(this.axes, this.order.map((name, place) => this.axis(name, place)));
    this.lines = this.trace.customdata.map((_, trial) => this.order.map((name) => share(this.dimensions.get(name), trial)));
    this.draw();
  }

  /** The element of an axis, drawn as things are. */
  axis(name, place) {
    if (!this.built.has(name)) this.built.set(name, this.build(name));
    const { axis, head, brush, ticks, ends } = this.built.get(name);
    const dimension = this.dimensions.get(name);
    const [low, high] = this.brushed(name);
    axis.style.left = `${this.x(place)}px`;
    head.setAttribute("aria-label", `${name}, axis ${place + 1} of ${this.order.length}: move with the arrow keys`);
    Object.assign(brush.style, { top: `${this.y(high)}px`, height: `${this.y(low) - this.y(high)}px` });
    brush.hidden = !this.brushes.has(name);
    replace(ticks, ticksOf(dimension).map(([at, text]) => h("span.tick", { style: { top: `${this.y(at)}px` } }, text)));
    for (const [handle, at] of [[ends.least, low], [ends.most, high]]) {
      handle.style.top = `${this.y(at)}px`;
      handle.setAttribute("aria-valuenow", Math.round(100 * at));
      handle.setAttribute("aria-valuetext", said(dimension, at));
    }
    return axis;
  }

  build(name) {
    const head = h("button.head", { type: "button", title: `${name}: drag, or use the arrow keys, to move this axis`, on: { keydown: (event) => this.moveByKey(event, name), pointerdown: (event) => this.drag(event, name) } }, name);
    const handle = (end, which) => h("div.handle", { class: end, role: "slider", tabindex: 0, "aria-orientation": "vertical", "aria-label": `${which} ${name} shown`, "aria-valuemin": 0, "aria-valuemax": 100, on: { keydown: (event) => this.brushByKey(event, name, end), pointerdown: (event) => this.brush(event, name, end) } });
    const ends = { least: handle("least", "Lowest"), most: handle("most", "Highest") };
    const [brush, ticks] = [h("div.brush"), h("div.ticks")];
    const line = h("div.line", { style: { top: `${TOP}px`, bottom: `${BOTTOM}px` }, on: { pointerdown: (event) => this.brush(event, name, null) } });
    return { axis: h("div.axis", {}, line, brush, ticks, head, ends.least, ends.most), head, brush, ticks, ends };
  }

  // Order

  move(name, by) {
    const from = this.order.indexOf(name);
    const to = Math.max(0, Math.min(this.order.length - 1, from + by));
    if (to === from) return;
    this.order.splice(to, 0, ...this.order.splice(from, 1));
    this.change();
  }

  moveByKey(event, name) {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!by) return;
    event.preventDefault();
    event.stopPropagation();
    this.move(name, by);
  }

  drag(event, name) {
    const left = this.field.getBoundingClientRect().left;
    this.track(event, (moved) => {
      const gap = this.x(1) - this.x(0) || 1;
      this.move(name, Math.round((moved.clientX - left - this.x(this.order.indexOf(name))) / gap));
    });
  }

  // Brushes

  set(name, low, high) {
    const [from, to] = [Math.max(0, Math.min(low, high)), Math.min(1, Math.max(low, high))];
    const [least, most] = this.dimensions.get(name).range;
    const value = (at) => least + at * (most - least);
    if (from <= 0 && to >= 1) this.brushes.delete(name);
    else this.brushes.set(name, [from <= 0 ? null : value(from), to >= 1 ? null : value(to)]);
    this.change();
  }

  brush(event, name, end) {
    const top = this.field.getBoundingClientRect().top;
    const at = (moved) => 1 - (moved.clientY - top - TOP) / (this.height - TOP - BOTTOM);
    const [low, high] = this.brushed(name);
    const other = end === "least" ? high : end === "most" ? low : at(event);
    this.track(event, (moved) => this.set(name, at(moved), other));
    if (end === null) this.brushes.delete(name), this.change(); // a click on an axis clears it
  }

  brushByKey(event, name, end) {
    const [low, high] = this.brushed(name);
    const moved = event.key in STEP ? STEP[event.key] : event.key === "Home" ? -2 : event.key === "End" ? 2 : null;
    if (moved === null) return;
    event.preventDefault();
    event.stopPropagation();
    if (end === "least") this.set(name, Math.min(low + moved, high), high);
    else this.set(name, low, Math.max(high + moved, low));
  }

  track(event, run) {
    event.preventDefault();
    event.currentTarget.focus?.();
    const stop = new AbortController();
    addEventListener("pointermove", run, { signal: stop.signal });
    for (const ending of ["pointerup", "pointercancel"]) addEventListener(ending, () => stop.abort(), { signal: stop.signal });
  }

  // Lines

  /** Whether a line goes through all that is brushed, given as [place of the axis, low, high]. */
  isShown(line, brushes) {
    return brushes.every(([place, low, high]) => line[place] !== null && line[place] >= low - 1e-6 && line[place] <= high + 1e-6);
  }

  draw() {
    const scale = devicePixelRatio || 1;
    Object.assign(this.canvas, { width: this.width * scale, height: this.height * scale });
    const context = this.canvas.getContext("2d");
    context.scale(scale, scale);
    const brushes = [...this.brushes.keys()].map((name) => [this.order.indexOf(name), ...this.brushed(name)]);
    this.shown = this.lines.flatMap((line, trial) => (this.isShown(line, brushes) ? [trial] : []));
    const few = new Set(this.shown);
    context.lineWidth = 1;
    if (this.brushes.size) {
      context.strokeStyle = isDark() ? "#2D343B" : "#dddddd";
      this.lines.forEach((line, trial) => few.has(trial) || this.stroke(context, line));
    }
    context.globalAlpha = this.shown.length > 500 ? 0.35 : 0.8;
    const { color, cmin, cmax, reversescale } = this.trace.line;
    const shades = isDark() ? DARK : LIGHT;
    const worst = (trial) => (reversescale ? cmax - color[trial] : color[trial] - cmin) / (cmax - cmin || 1);
    for (const trial of this.shown.toSorted((one, other) => worst(other) - worst(one))) {
      context.strokeStyle = shades[Math.min(shades.length - 1, Math.floor(worst(trial) * shades.length))];
      this.stroke(context, this.lines[trial]);
    }
    if (this.hovered !== null) {
      Object.assign(context, { globalAlpha: 1, lineWidth: 3, strokeStyle: isDark() ? "#ffffff" : "#000000" });
      this.stroke(context, this.lines[this.hovered]);
    }
    this.list();
  }

  stroke(context, line) {
    context.beginPath();
    let begun = false;
    line.forEach((at, place) => {
      if (at === null) return;
      if (begun) context.lineTo(this.x(place), this.y(at));
      else context.moveTo(this.x(place), this.y(at));
      begun = true;
    });
    context.stroke();
  }

  list() {
    const all = this.lines.length;
    const text = `${this.shown.length.toLocaleString("en")} of ${all.toLocaleString("en")} trials`;
    if (this.count.textContent !== text) this.count.textContent = text;
    this.clear.hidden = this.brushes.size === 0;
    const listed = this.brushes.size ? this.shown.slice(0, MOST_LINKS) : [];
    const links = listed.map((trial) => h("a", { href: hrefOf(this.trace.customdata[trial][0]) }, nameOf(this.trace.customdata[trial][0])));
    const more = listed.length < this.shown.length && listed.length > 0 && h("span.muted", {}, `and ${(this.shown.length - listed.length).toLocaleString("en")} more`);
    const fresh = h("span.row", {}, links, more);
    if (!this.links.isEqualNode(fresh)) replace(this.links, ...fresh.childNodes); // a link that is pressed stays
  }

  // Pointing

  point(event) {
    if (event.buttons || !this.lines) return;
    const box = this.field.getBoundingClientRect();
    const [x, y] = [event.clientX - box.left, event.clientY - box.top];
    let [nearest, least] = [null, NEAR];
    for (const trial of this.shown) {
      const away = Math.abs(this.heightAt(this.lines[trial], x) - y);
      if (away < least) [nearest, least] = [trial, away];
    }
    this.highlight(nearest, x, y);
  }

  /** The height of a line at some x, in pixels; NaN outside it. */
  heightAt(line, x) {
    const there = line.flatMap((at, place) => (at === null ? [] : [[this.x(place), this.y(at)]]));
    const next = there.findIndex(([right]) => right >= x);
    if (next < 1) return next === 0 && Math.abs(there[0][0] - x) < NEAR ? there[0][1] : NaN;
    const [[left, from], [right, to]] = [there[next - 1], there[next]];
    return from + ((to - from) * (x - left)) / (right - left);
  }

  highlight(trial, x = 0, y = 0) {
    this.tip.hidden = trial === null;
    this.canvas.style.setProperty("cursor", trial === null ? "default" : "pointer");
    if (trial !== null) {
      replace(this.tip, this.trace.hovertext[trial].split("<br>").map((line) => h("div", {}, plainText(line))));
      this.tip.style.setProperty("left", `${Math.min(x + 12, this.width - this.tip.offsetWidth - 4)}px`);
      this.tip.style.setProperty("top", `${Math.max(4, Math.min(y + 12, this.height - this.tip.offsetHeight - 4))}px`);
    }
    if (trial === this.hovered) return;
    this.hovered = trial;
    this.draw();
  }
}

/** The place of a trial on an axis, from 0 to 1; null where it has no value. */
function share(dimension, trial) {
  const value = dimension.values[trial];
  return value === null ? null : shareOf(dimension, value);
}

const shareOf = ({ range: [low, high] }, value) => (high === low ? 0.5 : (value - low) / (high - low));
const endOf = (text) => (text && Number.isFinite(Number(text)) ? Number(text) : null);

function ticksOf({ range: [low, high], tickvals, ticktext }) {
  const at = (value) => (high === low ? 0.5 : (value - low) / (high - low));
  if (tickvals) return tickvals.map((value, index) => [at(value), plainText(ticktext[index])]);
  return high === low ? [[0.5, round(low)]] : [[0, round(low)], [0.5, round((low + high) / 2)], [1, round(high)]];
}

function said({ range: [low, high], log, tickvals, ticktext }, at) {
  const value = low + at * (high - low);
  if (tickvals && !log) {
    const nearest = tickvals.reduce((best, one, index) => (Math.abs(one - value) < Math.abs(tickvals[best] - value) ? index : best), 0);
    return plainText(ticktext[nearest]);
  }
  return round(log ? 10 ** value : value);
}

const round = (value) => String(Number(value.toPrecision(3)));
const nameOf = (address) => address.slice(address.indexOf("/") + 1);
const hrefOf = (address) => `/trials/${encodeURIComponent(address.slice(0, address.indexOf("/")))}/${encodeURIComponent(nameOf(address))}`;
