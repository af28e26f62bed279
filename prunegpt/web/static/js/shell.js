// What every page has: theme, keyboard, messages, dialogs, empty and error states.

import { byId, h, replace } from "./dom.js";

// Theme: follows the system until one is chosen.

const THEMES = ["auto", "light", "dark"];
const SIGNS = { auto: "◐ Auto", light: "☀ Light", dark: "☾ Dark" };

function theme() {
  return document.documentElement.dataset.theme ?? "auto";
}

function showTheme() {
  const button = byId("theme");
  button.textContent = SIGNS[theme()];
  button.setAttribute("aria-label", `Theme: ${theme()}. Change`);
  button.title = "Light, dark, or as the system has it (t)";
}

function nextTheme() {
  const next = THEMES[(THEMES.indexOf(theme()) + 1) % THEMES.length];
  if (next === "auto") {
    delete document.documentElement.dataset.theme;
    localStorage.removeItem("prunegpt-theme");
  } else {
    document.documentElement.dataset.theme = next;
    localStorage.setItem("prunegpt-theme", next);
  }
  showTheme();
  window.dispatchEvent(new Event("themechange"));
}

// Keyboard

const keys = new Map();

/** Binds a key outside text fields; it shows in the help. */
export function onKey(key, does, run) {
  keys.set(key, { does, run });
}

const typing = (target) => target.closest("input:not([type=checkbox]), textarea, select, [contenteditable]") !== null;

function pressed(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (document.querySelector("dialog[open]")) return;
  if (event.key === "Escape" && document.querySelector("details.menu[open]")) {
    event.target.closest("details.menu")?.querySelector("summary").focus(); // not lost with what it closes
    closeMenus();
    return;
  }
  if (typing(event.target)) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  const bound = keys.get(event.key);
  if (!bound || (event.key === "Enter" && event.target.closest("a, button, summary"))) return;
  event.preventDefault();
  bound.run();
}

function closeMenus(except = null) {
  for (const menu of document.querySelectorAll("details.menu[open]")) if (menu !== except) menu.open = false;
}

function help() {
  const names = { Escape: "Esc", Enter: "↵" };
  const list = [...keys].map(([key, { does }]) => [h("dt", {}, h("kbd", {}, names[key] ?? key)), h("dd", {}, does)]);
  show(
    h(
      "div",
      {},
      h("h2", { id: "dialog-title" }, "Keyboard"),
      h("dl.keys", {}, list),
      h("footer", {}, h("button", { value: "close", type: "submit" }, "Close")),
    ),
  );
}

// Dialogs

/** Shows a modal dialog; resolves to the value of the button that closed it, "" on Esc. */
function show(content) {
  return new Promise((resolve) => {
    const form = h("form", { method: "dialog" }, content);
    const dialog = h("dialog", { "aria-labelledby": "dialog-title" }, h("div", {}, form));
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(dialog.returnValue);
    });
    dialog.addEventListener("click", (event) => {
      if (event.target === dialog) dialog.close("");
    });
    document.body.append(dialog);
    dialog.showModal();
  });
}

/** Asks before something is done; the safe answer has the focus. */
export async function confirm({ title, text, action, danger = false }) {
  const content = h(
    "div",
    {},
    h("h2", { id: "dialog-title" }, title),
    h("p", {}, text),
    h(
      "footer",
      {},
      h("button", { value: "", type: "submit", autofocus: true }, "Cancel"),
      h("button.primary", { value: "yes", type: "submit", class: danger ? "danger" : "" }, action),
    ),
  );
  return (await show(content)) === "yes";
}

/** What is asked before a sweep leaves the queue. */
export const LEAVE = { title: "Take this sweep out of the queue?", text: "It does not run when its turn would come; nothing is lost, and it can be run again.", action: "Leave the queue", danger: true };

// Messages and states

/** Says something for some seconds. */
export function say(text) {
  const message = h("div", {}, text);
  byId("messages").append(message);
  setTimeout(() => message.remove(), 6000);
}

/** An element that explains why something is missing, with a hint. */
export function problem(error, retry = null) {
  return h(
    "div.problem",
    { role: "alert" },
    h("p", {}, error.message ?? String(error)),
    retry && h("div.row", {}, h("button", { type: "button", on: { click: retry } }, "Try again")),
  );
}

export function empty(title, text, command = null) {
  return h("div.empty", {}, h("h3", {}, title), h("p", {}, text), command && h("pre", {}, command));
}

export const loading = (what = "Loading …") => h("div.loading", { role: "status" }, what);

/** Runs an async function that draws into an element, and shows there what goes wrong, with a way to try again. */
export async function draw(element, run) {
  try {
    await run();
  } catch (error) {
    if (error.name === "AbortError") return;
    if (error.status === 401) return void location.assign("/login?next=" + encodeURIComponent(location.pathname + location.search));
    element.hidden = false;
    replace(element, problem(error, () => void (replace(element, loading()), draw(element, run))));
  }
}

/** A button that copies text and confirms it. */
export function copyButton(label, text, properties = {}) {
  const button = h("button.small", { type: "button", ...properties }, label);
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(typeof text === "function" ? await text() : text);
      say(`${properties["data-what"] ?? "Text"} copied`);
    } catch (error) {
      say(`Not copied: ${error.message}`);
    }
  });
  return button;
}

/** A state with its sign. */
export const stateBadge = (state, text = state) => h("span.state", { class: state }, text);

/** The badge of what counts as running, and nobody runs. */
export const INTERRUPTED = ["stopped", "interrupted: nothing runs it"];

/** A row of buttons of which one is pressed. */
export function segmented(label, choices, chosen, change) {
  const group = h("div.segmented", { role: "group", "aria-label": label });
  for (const [key, text] of choices) {
    const button = h("button", { type: "button", "aria-pressed": String(key === chosen), data: { key } }, text);
    button.addEventListener("click", () => {
      for (const one of group.children) one.setAttribute("aria-pressed", String(one === button));
      change(key);
    });
    group.append(button);
  }
  return group;
}

showTheme();
byId("theme").addEventListener("click", nextTheme);
byId("help").addEventListener("click", help);
document.addEventListener("keydown", pressed);
document.addEventListener("click", (event) => closeMenus(event.target.closest("details.menu")));
onKey("?", "This list", help);
onKey("t", "Next theme", nextTheme);
