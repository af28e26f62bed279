// The JSON API, as every page asks it.

export class ApiError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

const BASE = "/api/v1";

/** A path from its parts, each escaped: path("sweeps", name, "trials"). */
export const path = (...parts) => "/" + parts.map((part) => encodeURIComponent(part)).join("/");

/** The address of something of the API, with a query; empty values are left out, lists repeat their name. */
export function address(where, query = {}) {
  const parameters = new URLSearchParams();
  for (const [name, value] of Object.entries(query)) {
    if (Array.isArray(value)) for (const one of value) parameters.append(name, one);
    else if (value !== null && value !== undefined && value !== "") parameters.set(name, value);
  }
  const text = parameters.toString();
  return BASE + where + (text ? "?" + text : "");
}

/** Asks for JSON. Raises ApiError with the server's own words. */
export async function get(where, query = {}, { signal } = {}) {
  return answer(await request(address(where, query), { signal }));
}

/** Asks for text, such as a rendered table. */
export async function getText(where) {
  const response = await request(BASE + where);
  if (!response.ok) throw await refusal(response);
  return response.text();
}

/** Posts JSON; the header cannot be set by a page of another origin. */
export async function post(where, body) {
  return answer(
    await request(BASE + where, {
      method: "POST",
      headers: { "Content-Type": "application/json", "X-PruneGPT": "1" },
      body: JSON.stringify(body),
    }),
  );
}

async function request(url, options = {}) {
  try {
    return await fetch(url, { credentials: "same-origin", ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The server does not answer. Is `prunegpt serve` still running?", 0);
  }
}

async function answer(response) {
  if (!response.ok) throw await refusal(response);
  return response.json();
}

async function refusal(response) {
  let message = `The server answered with status ${response.status}.`;
  try {
    message = (await response.json()).error ?? message;
  } catch {
    // not JSON: the status says enough
  }
  return new ApiError(message, response.status);
}

export const sweepPage = (sweep) => path("sweeps", sweep);
export const trialPage = (sweep, trial) => path("trials", sweep, trial);
export const comparePage = (trials) => "/compare?" + new URLSearchParams(trials.map((one) => ["trial", one]));
