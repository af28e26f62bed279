// All sweeps.

import { get, path, post, sweepPage } from "../api.js";
import { byId, h, replace, throttled } from "../dom.js";
import * as format from "../format.js";
import { follow } from "../live.js";
import { progressBar, sweepBadge } from "../progress.js";
import { LEAVE, confirm, draw, empty, onKey, say } from "../shell.js";

let sweeps = [];
let root = { coordinator: null, queue: [] };
let current = -1;
let words = "";

const search = h("input", { type: "search", placeholder: "Search sweeps  ( / )", "aria-label": "Search sweeps", "aria-keyshortcuts": "/" });
search.addEventListener("input", () => {
  words = search.value.trim().toLowerCase();
  current = -1;
  show();
});
document.querySelector(".page-head").append(h("div.actions", {}, search));

async function load() {
  root = await get("/sweeps");
  sweeps = root.sweeps;
  sweeps.sort((one, other) => Number(other.running_now) - Number(one.running_now) || other.updated - one.updated);
  show();
}

function listed() {
  return sweeps.filter((sweep) => `${sweep.name} ${sweep.title}`.toLowerCase().includes(words));
}

function show() {
  search.parentElement.hidden = sweeps.length < 2;
  if (!sweeps.length && !root.queue.length) {
    const path = document.querySelector("header .root").textContent;
    const quoted = /^[\w@%+=:,./-]+$/.test(path) ? path : `'${path.replaceAll("'", "'\\''")}'`;
    return void replace(byId("content"), h("div.panel", {}, empty("No sweeps yet", "A sweep is a YAML file of trials. Run one in this results directory and it appears here by itself. To see one in a few minutes, or to write a spec of your own:", `prunegpt quickstart --root ${quoted}\nprunegpt init`)));
  }
  const found = listed();
  const focused = document.activeElement?.dataset?.sweep;
  const cards = found.map((sweep, place) => card(sweep, place === current));
  replace(byId("content"), h("div.stack", {}, root.queue.length > 0 && queue(), h("div.panel.sweep-cards", {}, found.length ? cards : empty("No sweep is called like that", "Search for another name or title."))));
  if (focused) byId("content").querySelector(`[data-sweep="${CSS.escape(focused)}"]`)?.focus();
}

function queue() {
  const runs = root.coordinator && (root.coordinator.sweep || `process ${root.coordinator.pid}`);
  const known = new Set(sweeps.map((sweep) => sweep.name));
  const called = (name) => (known.has(name) ? h("a.mono", { href: sweepPage(name), data: { queued: name } }, name) : h("span.mono", {}, name));
  const places = root.queue.map((one) =>
    h("li", {}, h("div.row", {}, called(one.sweep), h("span.small.muted", {}, `priority ${one.priority}, process ${one.pid} on ${one.host}, since ${format.time(one.since)}`), h("button.small", { type: "button", "aria-label": `Take ${one.sweep} out of the queue`, on: { click: () => void leave(one.sweep) } }, "Leave the queue"))),
  );
  return h("section.panel", { "aria-labelledby": "queue-title" }, h("div.body.stack", {}, h("h2", { id: "queue-title" }, "Queue"), h("p.muted", {}, runs ? `${runs} runs; these wait for their turn:` : "These wait for their turn:"), h("ol.queue", {}, places)));
}

async function leave(sweep) {
  if (!(await confirm(LEAVE))) return;
  try {
    say((await post(path("sweeps", sweep, "actions"), { action: "stop" })).message);
  } catch (error) {
    say(error.message);
  }
  reload();
}

function card(sweep, isCurrent) {
  const place = root.queue.findIndex((one) => one.sweep === sweep.name) + 1;
  return h(
    "article.sweep-card",
    { "aria-current": isCurrent ? "true" : null },
    h(
      "div",
      {},
      h("h2", {}, h("a", { href: sweepPage(sweep.name), data: { sweep: sweep.name } }, sweep.title || sweep.name)),
      h("div.row.small.muted", {}, h("span.mono", {}, sweep.name), h("span", { title: format.time(sweep.updated) }, format.ago(sweep.updated))),
    ),
    h("div", {}, progressBar(sweep, sweep.total), h("div.legend.small", {}, progressWords(sweep))),
    h("div", {}, sweep.best && [h("div.best", {}, format.perplexity(sweep.best.perplexity)), h("div.small.muted", {}, `perplexity of ${sweep.best.trial.replace(`${sweep.name}/`, "")}`)]),
    h("div", {}, sweepBadge(sweep, place)),
  );
}

function progressWords(sweep) {
  const ended = sweep.trials - sweep.running - sweep.waiting;
  const parts = [`${ended} of ${format.plural(sweep.total, "trial")}`];
  for (const state of ["running", "failed", "diverged", "stopped"]) if (sweep[state]) parts.push(`${sweep[state]} ${state}`);
  return parts.map((part) => h("span", {}, part));
}

function move(by) {
  const found = listed();
  if (!found.length) return;
  current = Math.max(0, Math.min(found.length - 1, current + by));
  show();
  const card = document.querySelector('[aria-current="true"].sweep-card');
  card?.scrollIntoView({ block: "nearest" });
  card?.querySelector("a").focus({ preventScroll: true });
}

onKey("/", "Search sweeps", () => search.focus());
onKey("j", "Next sweep", () => move(1));
onKey("k", "Sweep before", () => move(-1));
onKey("Enter", "Open the sweep", () => listed()[current] && location.assign(sweepPage(listed()[current].name)));
onKey("Escape", "Leave a field, close a menu", () => {});

const reload = throttled(1500, () => void draw(byId("content"), load));
await draw(byId("content"), load);
follow(null, { sweep: reload, progress: reload, reload });
