// The page at /: a key, images in, answers out. What it knows, it keeps in this tab's memory.

import { Endpoint } from "./api.js";
import { chosen, dropped } from "./choosing.js";
import { find, say } from "./dom.js";
import { List } from "./list.js";
import { atLength, inShort } from "./model.js";
import { Sender } from "./sending.js";
import { count, many, table } from "./words.js";

const SPOKEN_EVERY_MS = 5000; // a screen reader that is told each answer never comes to an end

const endpoint = new Endpoint();
const corrections = { on: false, labels: new Set(), save: saveCorrection };
const list = new List(corrections);
const sender = new Sender(endpoint, { answered, pause: (words) => say(find("pause"), words), ended });
let open = false; // the endpoint answers us
let asked = false; // for the key
let done = 0;
let passed = 0; // files in folders that are no images

// --- the key -----------------------------------------------------------------------------------------------------------

async function connect() {
  try {
    const limits = await endpoint.get("limits");
    const model = await endpoint.get("model");
    sender.limits = limits;
    corrections.on = limits.corrections;
    corrections.labels = new Set([...model.classes, ...corrections.labels]);
    find("group-tool").hidden = !corrections.on;
    find("model-line").textContent = inShort(model);
    find("model-text").replaceChildren(...atLength(model));
    find("model").hidden = false;
    welcome();
  } catch (error) {
    if ([401, 403].includes(error.status)) return askForKey(error.status === 401 && !asked ? "" : error.message);
    const wait = error.after ?? 5;
    say(find("state"), `${error.message} This page asks again in ${wait} s.`);
    setTimeout(connect, wait * 1000);
  }
}

function welcome() {
  open = true;
  for (const id of ["state", "trouble", "key-error"]) say(find(id), "");
  if (asked) find("files").focus();
  asked = false;
  find("access").hidden = true;
  find("key").value = "";
  run();
}

function askForKey(words) {
  open = false;
  asked = true;
  say(find("state"), "");
  find("access").hidden = false;
  say(find("key-error"), words);
  find("key").setAttribute("aria-invalid", String(Boolean(words)));
  find("key").focus();
}

find("key-form").onsubmit = async (event) => {
  event.preventDefault();
  find("key-use").disabled = true;
  try {
    endpoint.key = find("key").value;
    await connect();
  } catch (error) {
    askForKey(error.message);
  }
  find("key-use").disabled = false;
};

// --- images in -------------------------------------------------------------------------------------------------------

async function take(pieces) {
  let more = 0;
  for await (const { found, passed: others } of pieces) {
    passed += others;
    more += found.length;
    const items = found.map(({ file, name }) => ({ file, name, state: "waiting" }));
    find("results").hidden = false;
    list.add(items);
    sender.add(items);
    progress();
    run();
  }
  speak(`${many(more, "image")} added`);
  if (asked) say(find("key-error"), "The images wait for the key.");
}

for (const [id, inFolder] of [["files", false], ["folder", true]]) {
  const input = find(id);
  input.onchange = () => {
    take(chosen(input.files, inFolder));
    input.value = ""; // so that the same choice can be made again
  };
}
find("folder-choice").hidden = !("webkitdirectory" in HTMLInputElement.prototype);

// The whole page takes drops: what falls beside the box would otherwise replace the page, and all that is on it.
let depth = 0;
const over = (change) => {
  depth = Math.max(0, change ? depth + change : 0);
  find("drop").classList.toggle("over", depth > 0);
};
addEventListener("dragenter", () => over(1));
addEventListener("dragleave", () => over(-1));
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", (event) => {
  event.preventDefault();
  over(0);
  take(dropped(event.dataTransfer));
});

// --- under way ---------------------------------------------------------------------------------------------------------

function run() {
  if (open && sender.left) {
    say(find("trouble"), "");
    sender.start();
  }
  buttons();
}

function answered(item) {
  done += 1;
  list.changed(item);
  progress();
}

function ended(reason, status) {
  if ([401, 403].includes(status)) askForKey(reason);
  else if (reason && sender.left) say(find("trouble"), reason);
  else if (!reason) run(); // what came in while the last ones were leaving
  buttons();
  progress();
  if (list.items.length) speak(summary(), true);
}

let drawn = 0;

/** At most once a frame: answers of large folders come in faster than anybody looks. */
function progress() {
  drawn ||= requestAnimationFrame(() => {
    drawn = 0;
    const all = list.items.length;
    Object.assign(find("bar"), { max: Math.max(1, all), value: done });
    find("count").textContent = summary();
    document.title = done < all ? `${count(done)} of ${count(all)} – eagleray` : "eagleray: what do these images show?";
    find("download").disabled = !done;
    if (done < all) speak(summary());
  });
}

function summary() {
  const parts = [`${count(done)} of ${many(list.items.length, "image")} looked at`];
  if (list.failed) parts.push(`${count(list.failed)} without an answer`);
  if (passed) parts.push(`${many(passed, "other file")} in the folders left out`);
  return `${parts.join(", ")}.`;
}

function buttons() {
  const rest = !sender.running && sender.left > 0;
  find("stop").textContent = rest ? "Go on" : "Stop";
  find("stop").disabled = !sender.running && !(rest && open);
}

let spoken = 0;

function speak(words, now = false) {
  if (!now && Date.now() - spoken < SPOKEN_EVERY_MS) return;
  spoken = Date.now();
  find("live").textContent = words;
}

find("stop").onclick = () => (sender.running ? sender.stop('Stopped. "Go on" sends the rest.') : run());
find("clear").onclick = () => {
  sender.clear();
  list.clear();
  done = passed = 0;
  for (const id of ["trouble", "pause"]) say(find(id), "");
  find("results").hidden = true;
  document.title = "eagleray: what do these images show?";
  find("files").focus();
};
addEventListener("beforeunload", (event) => {
  if (sender.running) event.preventDefault();
});

// --- out of it ---------------------------------------------------------------------------------------------------------

find("download").onclick = () => {
  const address = URL.createObjectURL(new Blob(table(list.items, corrections.on), { type: "text/csv;charset=utf-8" }));
  const link = Object.assign(document.createElement("a"), { href: address, download: "eagleray-answers.csv" });
  link.click();
  setTimeout(() => URL.revokeObjectURL(address), 60_000); // the browser may still be writing it
};

async function saveCorrection(item, label) {
  const form = new FormData();
  form.append("image", item.file, item.name.split("/").at(-1));
  const texts = { label, group: find("group").value, predicted: item.label, probability: String(item.probability), model: item.model };
  for (const [name, text] of Object.entries(texts)) form.append(name, text);
  const saved = await endpoint.post("corrections", form);
  corrections.labels.add(saved.label);
  item.correction = saved.label;
  list.changed(item, true);
}

connect();
