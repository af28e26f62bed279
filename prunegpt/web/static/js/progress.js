// How far a sweep is.

import { h } from "./dom.js";

const ORDER = ["finished", "stopped", "diverged", "failed", "running", "waiting"];

/** A bar with a part for each state; the numbers are in its name. */
export function progressBar(counts, total) {
  const parts = ORDER.filter((state) => counts[state]);
  const label = parts.map((state) => `${counts[state]} ${state}`).join(", ") || "nothing yet";
  return h(
    "div.progress",
    { role: "img", "aria-label": `${label}, of ${total}` },
    parts.map((state) => h("span", { class: state, style: { "flex-grow": counts[state] } })),
  );
}

/** A thin bar for one share of 0 to 1. */
export function shareBar(share, label) {
  const done = Math.max(0, Math.min(1, share || 0));
  return h(
    "div.progress.thin",
    { role: "progressbar", "aria-label": label, "aria-valuemin": 0, "aria-valuemax": 100, "aria-valuenow": Math.round(100 * done) },
    h("span.running", { style: { "flex-grow": done } }),
    h("span", { style: { "flex-grow": 1 - done } }),
  );
}
