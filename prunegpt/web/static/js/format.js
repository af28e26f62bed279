// Numbers, times and values as people read them.

export const NONE = "–";

/** Whether a setting is empty: unset, or a list or mapping of nothing. */
export const isEmpty = (value) => value === null || value === undefined || (typeof value === "object" && Object.keys(value).length === 0);
const missing = (value) => value === null || value === undefined || Number.isNaN(value);

/** A perplexity: two decimals while they mean something, four digits above; `size` is the largest value next to it. */
export function perplexity(value, size = value) {
  if (missing(value)) return NONE;
  if (size < 1000) return value.toFixed(2);
  if (size < 1e6) return Math.round(value).toLocaleString("en");
  return value.toExponential(2).replace("e+", "e");
}

export const interval = (low, high) => (missing(low) || missing(high) ? "" : `${perplexity(low, high)} – ${perplexity(high)}`);

/** A share of 0 to 1 as percent: one decimal, two where one would hide them; 0 and 100 mean exactly that. */
export function percent(share) {
  if (missing(share)) return NONE;
  const value = Number((100 * share).toFixed(10));
  if (value % 100 === 0) return `${value}%`;
  for (let digits = 2; digits <= 10; digits++) {
    const shown = Number(value.toFixed(digits));
    if (shown % 100 !== 0) return `${Number.isInteger(Number(value.toFixed(1))) && !Number.isInteger(shown) ? value.toFixed(digits) : value.toFixed(1)}%`;
  }
  return `${value}%`;
}

/** A number of four digits that mean something. */
export function number(value) {
  if (missing(value)) return NONE;
  if (typeof value !== "number") return String(value);
  if (Number.isInteger(value) && Math.abs(value) < 1e6) return String(value);
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e6)) return value.toExponential(2).replace("e+", "e");
  return String(Number(value.toPrecision(4)));
}

/** A difference, its sign always there. */
export const signed = (value) => (missing(value) ? NONE : value < 0 ? `−${number(-value)}` : `+${number(value)}`);

/** A count: 980, 12.4 k, 1.29 M. */
export function count(value) {
  if (missing(value)) return NONE;
  for (const [size, unit] of [[1e12, " T"], [1e9, " G"], [1e6, " M"], [1e3, " k"]]) {
    if (value >= size) return Number((value / size).toPrecision(3)) + unit;
  }
  return String(value);
}

/** A size: 980 B, 12.4 kB, 1.29 MB. */
export const bytes = (value) => (value < 1e3 ? `${value} B` : `${count(value)}B`);

/** Seconds as 0.8 s, 42 s, 3 min 20 s, 2 h 05 min, 3 d 4 h. */
export function duration(seconds) {
  if (missing(seconds)) return NONE;
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  const whole = Math.round(seconds);
  if (whole < 60) return `${whole} s`;
  const two = (value) => String(value).padStart(2, "0");
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${two(whole % 60)} s`;
  const minutes = Math.round(whole / 60);
  if (minutes < 1440) return `${Math.floor(minutes / 60)} h ${two(minutes % 60)} min`;
  return `${Math.floor(minutes / 1440)} d ${Math.round((minutes % 1440) / 60)} h`;
}

/** Seconds since the epoch as date and time of day. */
export function time(seconds) {
  if (missing(seconds)) return NONE;
  const at = new Date(1000 * seconds);
  const clock = at.toLocaleTimeString("en-GB", { hour: "2-digit", minute: "2-digit" });
  if (at.toDateString() === new Date().toDateString()) return `today ${clock}`;
  const day = at.toLocaleDateString("en-GB", { day: "numeric", month: "short", year: "numeric" });
  return `${day} ${clock}`;
}

/** How long ago. */
export function ago(seconds) {
  if (missing(seconds)) return NONE;
  const past = Date.now() / 1000 - seconds;
  if (past < 45) return "just now";
  if (past < 3600) return `${Math.max(1, Math.round(past / 60))} min ago`;
  if (past < 86400) return `${Math.round(past / 3600)} h ago`;
  return time(seconds);
}

/** A probability as tables print it. */
export const probability = (value) => (missing(value) ? NONE : value < 0.001 ? "< 0.001" : value.toFixed(3));

/** Any value of a configuration. */
export function value(any) {
  if (missing(any)) return NONE;
  if (typeof any === "number") return number(any);
  if (typeof any === "boolean") return any ? "yes" : "no";
  if (Array.isArray(any)) return any.length ? any.map((one) => (typeof one === "object" && one ? JSON.stringify(one) : String(one))).join(", ") : "none";
  if (typeof any === "object") return JSON.stringify(any);
  return String(any);
}

/** A value of a column of trials, all its numbers in one notation: that of the server's `report/format.py`. */
export function written({ kind, style, decimals }, given) {
  if (missing(given) || given === "" || (Array.isArray(given) && !given.length)) return NONE;
  if (typeof given !== "number" || kind === "text" || kind === "list") return value(given);
  if (kind === "time") return time(given);
  if (kind === "percent") return `${(100 * given).toFixed(decimals)}%`;
  if (style === "clock") {
    const whole = Math.round(given);
    const [hours, minutes, seconds] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60].map((part) => String(part));
    return Number(hours) ? `${hours}:${minutes.padStart(2, "0")}:${seconds.padStart(2, "0")}` : `${minutes}:${seconds.padStart(2, "0")}`;
  }
  if (style === "exponent" || (kind === "loss" && Math.abs(given) >= 1e6)) return given.toExponential(decimals).replace("e+", "e");
  const text = kind === "count" || kind === "loss" ? given.toLocaleString("en", { minimumFractionDigits: decimals, maximumFractionDigits: decimals }) : given.toFixed(decimals);
  return kind === "seconds" ? `${text} s` : text;
}

/** "3 trials", "1 trial". */
export const plural = (many, one, more = one + "s") => `${many.toLocaleString("en")} ${many === 1 ? one : more}`;

/** A stage key, short. */
export const key = (text) => text.slice(0, 8);
