// One image, one row. A row exists only once somebody has scrolled to it.

import { make, say } from "./dom.js";
import { likely, percent } from "./words.js";

const SHOWN_CLASSES = 12;

/** Thumbnails only where somebody looks: an image that leaves the view gives its memory back. */
const watcher = new IntersectionObserver(
  (changes) => {
    for (const { target, isIntersecting } of changes) (isIntersecting ? target.draw : target.wipe)();
  },
  { rootMargin: "400px" },
);

function thumbnail(item) {
  const frame = make("div", { className: "thumb" });
  let address = "";
  frame.wipe = () => {
    frame.firstElementChild?.removeAttribute("src"); // first: what is still loading would miss its address
    frame.replaceChildren();
    if (address) URL.revokeObjectURL(address);
    address = "";
  };
  frame.draw = () => {
    if (address) return;
    address = URL.createObjectURL(item.file);
    const image = make("img", { alt: "", decoding: "async", src: address });
    image.onerror = () => frame.replaceChildren("no preview");
    frame.replaceChildren(image);
  };
  watcher.observe(frame);
  return frame;
}

/** The row of an item; `item.draw()` brings it up to date, `item.drop()` takes it and its thumbnail away. */
export function row(item, corrections) {
  const thumb = thumbnail(item);
  const body = make("div", { className: "body" });
  const side = make("div", { className: "wrong" });
  const element = make("li", { className: "row" }, thumb, body, side);
  item.draw = () => {
    element.classList.toggle("unsure", item.state === "done" && !item.confident);
    body.replaceChildren(make("p", { className: "file-name", title: item.name }, item.name), ...answer(item));
    side.replaceChildren();
    if (item.state === "done" && corrections.on) correction(item, body, side, corrections);
  };
  item.drop = () => {
    watcher.unobserve(thumb);
    thumb.wipe();
    element.remove();
    item.draw = item.drop = null;
  };
  item.draw();
  return element;
}

function answer(item) {
  if (item.state === "failed") {
    const words = item.error.replace(/^[a-z0-9_]+: /, ""); // the code is for programs; the CSV has it
    return [make("p", { className: "failed" }, `No answer: ${words}`)];
  }
  if (item.state !== "done") return [make("p", { className: "waiting" }, "Not yet looked at")];
  const words = item.confident ? likely(item.probability) : `${likely(item.probability)}, but the model is not sure`;
  return [make("p", { className: "label" }, item.label), make("p", { className: "words" }, words), others(item)];
}

function others(item) {
  const details = make("details", {}, make("summary", {}, "All classes"));
  details.addEventListener("toggle", () => {
    if (!details.open || details.children.length > 1) return;
    const order = [...item.classes.keys()].sort((one, other) => item.values[other] - item.values[one]);
    const list = make("dl", { className: "others" });
    for (const place of order.slice(0, SHOWN_CLASSES)) {
      const filled = make("i");
      filled.style.width = `${100 * item.values[place]}%`;
      const bar = make("dd", { className: "bar", "aria-hidden": "true" }, filled);
      list.append(make("dt", {}, item.classes[place]), bar, make("dd", {}, percent(item.values[place])));
    }
    details.append(list);
    const rest = order.slice(SHOWN_CLASSES);
    if (rest.length) {
      const sum = rest.reduce((total, place) => total + item.values[place], 0);
      details.append(make("p", { className: "hint" }, `${rest.length} others have ${percent(sum)} together.`));
    }
  });
  return details;
}

/** "Wrong?" and what follows from it. `corrections`: {on, labels: Set, save(item, label)}. */
function correction(item, body, side, corrections) {
  const said = make("p", { className: "said", role: "status" });
  const open = make("button", { type: "button", "aria-expanded": "false" });
  const tell = () => {
    say(said, item.correction === undefined ? "" : `Saved: you said ${item.correction}`);
    open.textContent = item.correction === undefined ? "Wrong?" : "Change";
    open.setAttribute("aria-label", `${open.textContent} ${item.name}`);
  };
  let form = null;
  const close = () => {
    form?.remove();
    form = null;
    open.setAttribute("aria-expanded", "false");
    open.focus();
  };
  open.onclick = () => {
    if (form) return close();
    form = correctionForm(item, corrections, close, tell);
    body.append(form);
    open.setAttribute("aria-expanded", "true");
    form.querySelector("select").focus();
  };
  tell();
  body.append(said);
  side.append(open);
}

const OTHER = "\0other"; // no class is called so

function correctionForm(item, corrections, close, tell) {
  const labels = [...corrections.labels].filter((label) => label !== item.label);
  const choice = make("select", {}, ...labels.map((label) => make("option", { value: label }, label)));
  choice.append(make("option", { value: OTHER }, "something else …"));
  const name = make("input", { type: "text", maxLength: 100, autocomplete: "off" });
  const field = (text, input) => make("label", { className: "field" }, text, input);
  const named = field("Its name", name);
  const problem = make("p", { className: "alarm", role: "alert", hidden: true });
  const save = make("button", { className: "main" }, "Save");
  const cancel = make("button", { type: "button", onclick: close }, "Cancel");
  const form = make("form", { className: "correct" }, field("It is", choice), named, save, cancel, problem);
  const other = () => {
    named.hidden = choice.value !== OTHER;
    name.required = !named.hidden;
  };
  choice.onchange = other; // the focus stays: who walks through the choices with the arrow keys only passes by
  form.addEventListener("keydown", (event) => {
    if (event.key === "Escape") close();
  });
  form.onsubmit = async (event) => {
    event.preventDefault();
    save.disabled = true;
    say(problem, "");
    try {
      await corrections.save(item, named.hidden ? choice.value : name.value.trim());
      close();
      tell();
    } catch (error) {
      say(problem, `Not saved: ${error.message}`);
      save.disabled = false;
    }
  };
  other();
  return form;
}
