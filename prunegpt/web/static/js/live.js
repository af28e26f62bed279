// Server-sent events: one stream a page, reopened when it breaks, closed while nobody looks.

import { address } from "./api.js";
import { byId, throttled } from "./dom.js";

const HIDDEN_FOR = 30_000; // milliseconds after which a hidden tab gives its connection back
const WORDS = { live: "Live", reconnecting: "Reconnecting …", paused: "Paused" };

/**
 * Follows what changes.
 *
 * @param {string|null} sweep its name, or null for all.
 * @param {Object} handlers `sweep`, `points` and `progress` take the data of those events; `reload` is called when
 *   something may have been missed.
 * @param {string|null} trial only the points of this one.
 * @param {string|null} since the revision of what the page shows; without it, the page is loaded again when the stream is open.
 */
export function follow(sweep, handlers, { trial = null, since = null } = {}) {
  const url = address("/events", { sweep, trial, since });
  const reload = throttled(1000, () => handlers.reload?.());
  let source = null;
  let interrupted = since === null;
  let hiding = null;
  let retry = null;
  let patience = 1000;

  function open() {
    clearTimeout(retry);
    source = new EventSource(url);
    source.addEventListener("open", () => {
      badge("live");
      patience = 1000;
      if (interrupted) reload();
      interrupted = false;
    });
    source.addEventListener("error", () => {
      badge("reconnecting");
      if (source.readyState !== EventSource.CLOSED) return; // the browser tries again, and sends the last event id
      interrupted = true;
      retry = setTimeout(open, patience);
      patience = Math.min(2 * patience, 30_000);
    });
    for (const name of ["sweep", "points", "progress"]) {
      source.addEventListener(name, (event) => handlers[name]?.(JSON.parse(event.data)));
    }
    source.addEventListener("reload", reload);
  }

  function close() {
    source.close();
    clearTimeout(retry);
    interrupted = true;
    badge("paused");
  }

  document.addEventListener("visibilitychange", () => {
    clearTimeout(hiding);
    if (document.hidden) hiding = setTimeout(close, HIDDEN_FOR);
    else if (source.readyState === EventSource.CLOSED) open();
  });
  window.addEventListener("pagehide", () => source.close());
  window.addEventListener("pageshow", (event) => {
    if (event.persisted) {
      interrupted = true;
      open();
    }
  });
  badge("reconnecting", "Connecting …");
  open();
}

function badge(state, text = WORDS[state]) {
  const element = byId("live");
  element.hidden = false;
  if (element.dataset.state === state && element.textContent === text) return;
  element.dataset.state = state;
  element.textContent = text;
}
