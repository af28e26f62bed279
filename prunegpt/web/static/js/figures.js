// The figures of a sweep, as its own page and the page of tables show them.

import { address, get, path } from "./api.js";
import { h } from "./dom.js";
import { figurePanel, plot, saveButtons } from "./plot.js";

const WIDE = new Set(["parallel"]);

/**
 * The figures of a sweep, in the order they are shown; `missing` explains why there is nothing to draw, or is null, and `files`
 * whether the server draws it as PNG and SVG too: the others are saved from the page.
 */
export async function listFigures(sweep) {
  const { figures } = await get(path("sweeps", sweep, "figures"));
  return figures.map((figure) => ({ ...figure, wide: WIDE.has(figure.name) }));
}

/** What is drawn of a figure, as Plotly takes it. */
export const fetchFigure = (sweep, figure) => get(path("sweeps", sweep, "figures", figure.name));

export const fileOf = (sweep, figure, suffix) => address(path("sweeps", sweep, "figures", `${figure.name}.${suffix}`));

/** Links to the files of a figure, or buttons that save what is drawn at `place()`. */
export function downloads(sweep, figure, place) {
  const name = `${sweep}-${figure.name}`;
  if (!figure.files) return saveButtons(place, name);
  return ["png", "svg", "pdf"].map((suffix) =>
    h("a.button.quiet.small", { href: fileOf(sweep, figure, suffix), download: `${name}.${suffix}`, "aria-label": `${figure.title} as ${suffix.toUpperCase()}` }, suffix.toUpperCase()),
  );
}

/** A panel that shows a figure: {panel, plot, show(made)}. */
export function livePanel(sweep, figure) {
  const made = figurePanel(figure.title, { links: downloads(sweep, figure, () => made.plot), classes: figure.wide ? "wide" : "" });
  const caption = h("p.small.muted.caption", { hidden: true });
  made.panel.append(caption);
  const show = (drawn) => {
    caption.textContent = drawn.caption ?? "";
    caption.hidden = !drawn.caption;
    return plot(made.plot, drawn, figure.title);
  };
  return { ...made, show };
}
