// What the model was trained on, how good it is, and what it cannot know: GET /model in plain words.

import { make } from "./dom.js";
import { count, many, percent } from "./words.js";

const SHOWN_CLASSES = 30;

/** One line for the closed section. */
export function inShort(model) {
  const test = model.scores?.test;
  const right = typeof test?.accuracy === "number" ? `, right for ${percent(test.accuracy)} of its test images` : "";
  return `${many(model.classes.length, "class").replace("classs", "classes")}${right}`;
}

/** The section's content: a list of elements. */
export function atLength(model) {
  const test = model.scores?.test;
  const data = model.scores?.data;
  return [
    ...described(model, data),
    ...(typeof test?.accuracy === "number" ? scored(test, data) : [make("p", {}, "Nobody has written down how good it is on images that it had not seen.")]),
    ...(test?.per_class?.length ? [perClass(test.per_class)] : []),
    make("h3", {}, "What it cannot know"),
    unknowable(model, test),
    make("p", { className: "hint" }, `Model ${model.id}, made ${day(model.created)}.`),
  ];
}

function described(model, data) {
  const names = model.classes.slice(0, SHOWN_CLASSES).join(", ");
  const rest = model.classes.length - SHOWN_CLASSES;
  const told = [make("p", {}, `It tells ${model.classes.length} classes apart: ${names}${rest > 0 ? ` and ${rest} more` : ""}.`)];
  const images = data?.per_split?.train;
  if (images) {
    const groups = data.groups_per_split?.train;
    const places = groups ? ` from ${many(groups, "group")} (places, dives, cameras or single images)` : "";
    told.push(make("p", {}, `It learned from ${many(images, "image")}${places}. ${data.grouping ?? ""}`));
  } else {
    told.push(make("p", {}, "From how many images it learned, its file does not say; the report of its search does."));
  }
  if (data?.generated) told.push(make("p", {}, "Those images were drawn by a program. It knows nothing of real ones."));
  return told;
}

function scored(test, data) {
  const [low, high] = test.accuracy_interval ?? [];
  const within = typeof low === "number"
    ? ` A test of that size leaves room for chance: with 95\u00a0% confidence the true share lies between ${percent(low)} and ${percent(high)}.`
    : "";
  const of = test.n ? `${many(test.n, "image")} that it had not seen` : "images that it had not seen";
  const groups = data?.groups_per_split?.test;
  const where = groups ? `, from ${many(groups, "group")} of their own` : "";
  const told = [make("p", {}, `On ${of}${where}, it was right for ${percent(test.accuracy)} of them.${within}`)];
  if (typeof test.majority_rate === "number") {
    const name = test.majority_label ? ` (${test.majority_label})` : "";
    told.push(make("p", {}, `Always naming the commonest class${name} would have been right for ${percent(test.majority_rate)} of them.`));
  }
  return told;
}

function perClass(classes) {
  const head = ["class", "test images", "found of them", "right when named"];
  const share = (value, interval) =>
    typeof value === "number" ? `${percent(value)}${typeof interval?.[0] === "number" ? `, ${span(interval)}` : ""}` : "nothing to say";
  const rows = classes.slice(0, SHOWN_CLASSES).map((each) =>
    make("tr", {}, ...[each.label, count(each.n), share(each.recall, each.recall_interval), share(each.precision, each.precision_interval)].map((text) => make("td", {}, text))));
  const table = make("table", {}, make("thead", {}, make("tr", {}, ...head.map((text) => make("th", { scope: "col" }, text)))), make("tbody", {}, ...rows));
  return make("div", { className: "scroll", tabIndex: 0, role: "region", "aria-label": "Scores of each class" }, table,
    make("p", { className: "hint" }, "Ranges are 95\u00a0% intervals."));
}

const span = ([low, high]) => `${Math.round(low * 100)} to ${Math.round(high * 100)}\u00a0%`;

function unknowable(model, test) {
  const points = [
    `Anything else. It names one of its ${model.classes.length} classes for every image, also for one that shows none of them.`,
    "Places, seasons and cameras unlike those that it learned from. There it may be wrong more often, and just as sure.",
  ];
  if (test?.accuracy_interval) {
    points.push("How alike the test images were. The ranges take them as independent; images of one place are not, so the true ranges are wider.");
  }
  points.push(
    typeof model.thresholds?.confident === "number"
      ? `Whether this very answer is right. "The model is not sure" stands below a probability of ${percent(model.thresholds.confident)}, from which 95\u00a0% of such images were right.`
      : `When it is right. The model promises of no probability that 95\u00a0% of such images are right, so "the model is not sure" stands everywhere.`,
  );
  return make("ul", {}, ...points.map((text) => make("li", {}, text)));
}

function day(text) {
  const date = new Date(text);
  return Number.isNaN(date.getTime()) ? text : date.toLocaleDateString("en", { dateStyle: "long" });
}
