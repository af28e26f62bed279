// How far a sweep is.

import { h } from "./dom.js";
import { INTERRUPTED, stateBadge } from "./shell.js";

const ORDER = ["finished", "stopped", "diverged", "failed", "running", "waiting"];

/** A bar with a part for each state, and the rest for trials that are yet to be suggested; the numbers are in its name. */
export function progressBar(counts, total) {
  const parts = ORDER.filter((state) => counts[state]);
  const label = parts.map((state) => `${counts[state]} ${state}`).join(", ") || "nothing yet";
  const ahead = total - parts.reduce((sum, state) => sum + counts[state], 0);
  return h(
    "div.progress",
    { role: "img", "aria-label": `${label}, of ${total}` },
    parts.map((state) => h("span", { class: state, style: { "flex-grow": counts[state] } })),
    ahead > 0 && h("span", { style: { "flex-grow": ahead } }),
  );
}

/** The state of a sweep with its sign; `place` is its one in the queue, or 0. */
export function sweepBadge(sweep, place) {
  if (sweep.running_now || (sweep.logged && sweep.state === "running")) return stateBadge("running");
  if (place) return stateBadge("waiting", `place ${place} in the queue`);
  return stateBadge(...STANDING[sweep.state]);
}

const STANDING = {
  running: INTERRUPTED,
  waiting: ["waiting", "not finished"],
  failed: ["failed", "finished with failures"],
  finished: ["finished"],
  empty: ["waiting", "no trials"],
};

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
