// Elements without markup: whatever a file or a class is called, it is text.

/** <tag> with properties ({className, hidden, onclick, …; "aria-…" as attributes}) and children: elements or texts. */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.includes("-") || name === "for" || name === "colspan") element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

export const find = (id) => document.getElementById(id);

/** Shows a text in an element, and hides the element where there is none. */
export function say(element, text) {
  element.textContent = text;
  element.hidden = !text;
}
