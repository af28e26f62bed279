// The figures of a sweep, as its own page and those of its search and its tables show them.

import { address, get, path } from "./api.js";
import { keep, kept } from "./address.js";
import { coordinates } from "./coordinates.js";
import { h } from "./dom.js";
import { figurePanel, plot, whenNear } from "./plot.js";
import { draw } from "./shell.js";

const WIDE = new Set(["parallel", "slice"]);
const FILES = ["png", "svg", "pdf"];
const CHOICES = { search: "Search", objective: "Objective", x: "Across", y: "Up" };

/** The figures of a sweep, in the order they are shown; `missing` explains why there is nothing to draw, or is null. */
export const listFigures = async (sweep) => (await get(path("sweeps", sweep, "figures"))).figures;

export const fileOf = (sweep, figure, suffix, chosen = {}) => address(path("sweeps", sweep, "figures", `${figure.name}.${suffix}`), chosen);

/** Links to the files of a figure. */
export function downloads(sweep, figure, chosen = {}) {
  return FILES.map((suffix) =>
    h("a.button.quiet.small", { href: fileOf(sweep, figure, suffix, chosen), download: `${sweep}-${figure.name}.${suffix}`, "aria-label": `${figure.title} as ${suffix.toUpperCase()}` }, suffix.toUpperCase()),
  );
}

/** The last part of a setting's path, where no other is called so: what axes are called too. */
function short(path, paths) {
  const last = (one) => one.split(".").at(-1);
  return paths.filter((one) => last(one) === last(path)).length > 1 ? path : last(path);
}

/** The panel of a figure, with what may be chosen of it, kept in the address: {panel, plot, show()}; `show` fetches and draws it. */
export function livePanel(sweep, figure) {
  const key = `figure.${figure.name}`;
  let view = kept(key); // of coordinates: what they show
  const given = new URLSearchParams(view);
  const chosen = {};
  for (const [field, values] of Object.entries(figure.choices)) if (values.slice(1).includes(given.get(field))) chosen[field] = given.get(field);
  const made = figurePanel(figure.title, { links: downloads(sweep, figure, chosen), classes: WIDE.has(figure.name) ? "wide" : "" });
  const caption = h("p.small.muted.caption", { hidden: true });
  const links = made.panel.querySelector(".links");
  const choose = Object.entries(figure.choices).filter(([, values]) => values.length > 1).map(([field, values]) => {
    const select = h("select", { on: { change: () => choice(field, select.value) } }, values.map((value) => h("option", { value, title: value, selected: value === (chosen[field] ?? values[0]) }, short(value, values))));
    return h("label.small", {}, CHOICES[field], " ", select);
  });
  if (choose.length) made.plot.before(h("div.row.choices", {}, choose));
  made.panel.append(caption);

  function choice(field, value) {
    if (value === figure.choices[field][0]) delete chosen[field];
    else chosen[field] = value;
    links.replaceChildren(...downloads(sweep, figure, chosen));
    note();
    void draw(made.plot, show);
  }

  function note() {
    const further = [...new URLSearchParams(view)].filter(([field]) => !(field in CHOICES));
    keep({ [key]: new URLSearchParams([...Object.entries(chosen), ...further]).toString() });
  }

  async function show() {
    const drawn = await get(path("sweeps", sweep, "figures", figure.name), chosen);
    caption.textContent = drawn.caption;
    caption.hidden = !drawn.caption;
    if (drawn.layout.grid && matchMedia("(max-width: 640px)").matches) drawn.layout.grid = { ...drawn.layout.grid, rows: drawn.data.length, columns: 1 };
    if (drawn.layout.grid) made.plot.style.setProperty("height", `${Math.max(22, 15 * drawn.layout.grid.rows)}rem`);
    return drawn.data[0].type === "parcoords" ? coordinates(made.plot, drawn, figure.title, view, (now) => ((view = now), note())) : plot(made.plot, drawn, figure.title);
  }

  return { ...made, show };
}

/** Shows panels as they come near, and again when it is called once more; those that are gone are left out. */
export class Gallery {
  constructor(sweep) {
    this.sweep = sweep;
    this.panels = new Map(); // name -> its panel, once there is something to draw
  }

  /** The panels of these figures, each drawn when it is near. */
  show(figures) {
    for (const figure of figures) if (!this.panels.has(figure.name)) this.panels.set(figure.name, { ...livePanel(this.sweep, figure), near: false });
    for (const name of this.panels.keys()) if (!figures.some((figure) => figure.name === name)) this.panels.delete(name);
    for (const shown of this.panels.values()) {
      const now = () => ((shown.near = true), void draw(shown.plot, shown.show));
      if (shown.near) now();
      else whenNear(shown.panel, now);
    }
    return figures.map((figure) => this.panels.get(figure.name).panel);
  }
}
