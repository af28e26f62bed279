// What the address bar keeps of a page: filter, sort, columns, what figures show.

let written = location.search;

/** The value of a query parameter, or the fallback. */
export const kept = (name, fallback = "") => new URLSearchParams(location.search).get(name) ?? fallback;
export const keptAll = (name) => new URLSearchParams(location.search).getAll(name);

/** Writes query parameters into the address without a new page; empty ones go. */
export function keep(changes) {
  const parameters = new URLSearchParams(location.search);
  for (const [name, value] of Object.entries(changes)) {
    parameters.delete(name);
    if (Array.isArray(value)) for (const one of value) parameters.append(name, one);
    else if (value !== "" && value !== null && value !== undefined) parameters.set(name, value);
  }
  const text = parameters.toString();
  history.replaceState(history.state, "", location.pathname + (text ? "?" + text : "") + location.hash);
  written = location.search;
}

// Back and forward between sections of a page may change what else the address says: the page is made from it.
addEventListener("popstate", () => location.search !== written && location.reload());
