// The section that the address names stays in view while what is above it loads.

import { byId } from "./dom.js";

const HELD_FOR = 10_000; // milliseconds, unless the reader scrolls before
const READERS = ["wheel", "touchstart", "pointerdown", "keydown"];

/** Scrolls to the section of the address, now and whenever the page grows, until the reader moves. */
export function holdAnchor() {
  const go = () => byId(decodeURIComponent(location.hash.slice(1)))?.scrollIntoView();
  let release = null;
  const hold = () => {
    release?.();
    if (!location.hash) return;
    const grown = new ResizeObserver(go);
    const timer = setTimeout(() => release?.(), HELD_FOR);
    release = () => {
      grown.disconnect();
      clearTimeout(timer);
      for (const name of READERS) removeEventListener(name, release);
      release = null;
    };
    for (const name of READERS) addEventListener(name, release, { passive: true });
    grown.observe(document.body);
  };
  addEventListener("hashchange", hold);
  hold();
}
