// Elements. Whatever is inserted is text, except through `insertServerHtml`.

/**
 * Makes an element.
 *
 * @param {string} tag may carry classes: "div.panel.wide".
 * @param {Object} properties attributes; `on` holds listeners, `style` CSS properties, `data` data attributes; null and false leave one out.
 * @param {...(Node|string|number|null|Array)} children nodes, or values that become text.
 */
export function h(tag, properties = {}, ...children) {
  const [name, ...classes] = tag.split(".");
  return fill(document.createElement(name), classes, properties, children);
}

const SVG = "http://www.w3.org/2000/svg";

/** Makes an SVG element; as `h`. */
export function svg(tag, properties = {}, ...children) {
  const [name, ...classes] = tag.split(".");
  return fill(document.createElementNS(SVG, name), classes, properties, children);
}

function fill(element, classes, properties, children) {
  element.classList.add(...classes);
  if (classes.includes("scroll")) element.tabIndex = 0; // who has no pointer scrolls it with the arrow keys
  for (const [key, value] of Object.entries(properties ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (key === "on") for (const [event, listener] of Object.entries(value)) element.addEventListener(event, listener);
    else if (key === "style") for (const [name, one] of Object.entries(value)) element.style.setProperty(name, one);
    else if (key === "data") Object.assign(element.dataset, value);
    else if (key === "class") element.classList.add(...String(value).split(/\s+/).filter(Boolean));
    else element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...contentOf(children));
  return element;
}

const contentOf = (children) => children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false);

/** Puts new content into an element. What is there already is left alone, and what stays in it keeps the focus. */
export function replace(element, ...children) {
  const content = contentOf(children);
  if (content.length === element.childNodes.length && content.every((child, place) => child === element.childNodes[place])) return element;
  const focused = document.activeElement;
  element.replaceChildren(...content);
  if (focused !== document.activeElement && element.contains(focused)) focused.focus({ preventScroll: true });
  return element;
}

/**
 * The only way HTML reaches the page: result tables, which the server renders with every value escaped, and notes, which
 * it sanitises.
 */
export function insertServerHtml(element, html) {
  element.innerHTML = html;
  return element;
}

export const byId = (id) => document.getElementById(id);

/** A function that runs at most once in `milliseconds`, the last call never lost. */
export function throttled(milliseconds, run) {
  let timer = null;
  let last = -Infinity;
  return () => {
    if (timer !== null) return;
    timer = setTimeout(
      () => {
        timer = null;
        last = performance.now();
        run();
      },
      Math.max(0, last + milliseconds - performance.now()),
    );
  };
}
