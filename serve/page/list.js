// The rows of all images, or of those that a person wants to see; a chunk more whenever the end comes into view.

import { find, make } from "./dom.js";
import { row } from "./rows.js";
import { count } from "./words.js";

const CHUNK = 60;
const [ALL, FAILED, UNSURE, SAID, LABEL] = ["all", "failed", "unsure", "said", "label:"];

const matches = {
  [ALL]: () => true,
  [FAILED]: (item) => item.state === "failed",
  [UNSURE]: (item) => item.state === "done" && !item.confident,
  [SAID]: (item) => item.correction !== undefined,
};

export class List {
  #items = [];
  #wanted = [];
  #drawn = 0;
  #labels = new Map();
  #counts = { [FAILED]: 0, [UNSURE]: 0, [SAID]: 0 };
  #select = find("show");
  #rows = find("rows");
  #more = find("more");
  #corrections;

  constructor(corrections) {
    this.#corrections = corrections;
    this.#select.onchange = () => this.#restart();
    this.#more.onclick = () => {
      const next = this.#drawn;
      this.#draw(CHUNK);
      this.#rows.children[next]?.querySelector("button, summary")?.focus(); // the keyboard goes on where it was
    };
    new IntersectionObserver((seen) => seen.at(-1).isIntersecting && this.#draw(CHUNK), { rootMargin: "600px" }).observe(this.#more);
    this.#choices();
  }

  get items() {
    return this.#items;
  }

  get failed() {
    return this.#counts[FAILED];
  }

  add(items) {
    for (const item of items) this.#items.push(item);
    if (this.#select.value === ALL) {
      for (const item of items) this.#wanted.push(item);
      if (this.#drawn < CHUNK) this.#draw(CHUNK - this.#drawn);
      this.#end();
    }
    this.#choices();
  }

  /** An item has its answer, its failure, or another correction. */
  changed(item, corrected = false) {
    if (corrected) this.#counts[SAID] = this.#items.filter(matches[SAID]).length;
    else if (item.state === "failed") this.#counts[FAILED] += 1;
    else {
      if (!item.confident) this.#counts[UNSURE] += 1;
      this.#labels.set(item.label, (this.#labels.get(item.label) ?? 0) + 1);
    }
    if (!corrected) item.draw?.();
    const fits = this.#select.value !== ALL && this.#matches(item);
    if (fits && !(corrected && this.#wanted.includes(item))) {
      this.#wanted.push(item);
      if (this.#drawn < CHUNK) this.#draw(1);
      this.#end();
    }
    this.#soon();
  }

  clear() {
    this.#wipe();
    this.#items = [];
    this.#wanted = [];
    this.#labels.clear();
    this.#counts = { [FAILED]: 0, [UNSURE]: 0, [SAID]: 0 };
    this.#select.value = ALL;
    this.#choices();
    this.#end();
  }

  #matches(item) {
    const wish = this.#select.value;
    if (wish.startsWith(LABEL)) return item.state === "done" && item.label === wish.slice(LABEL.length);
    return matches[wish](item);
  }

  #restart() {
    this.#wipe();
    this.#wanted = this.#items.filter((item) => this.#matches(item));
    this.#draw(CHUNK);
    this.#end();
  }

  #wipe() {
    for (const item of this.#wanted.slice(0, this.#drawn)) item.drop?.();
    this.#drawn = 0;
  }

  #draw(number) {
    const next = this.#wanted.slice(this.#drawn, this.#drawn + number);
    this.#rows.append(...next.map((item) => row(item, this.#corrections)));
    this.#drawn += next.length;
    this.#end();
  }

  #end() {
    const left = this.#wanted.length - this.#drawn;
    this.#more.hidden = left <= 0;
    this.#more.textContent = `Show more (${count(left)} left)`;
  }

  #timer = 0;

  /** The choices with their numbers, a few times a second at most. */
  #soon() {
    this.#timer ||= setTimeout(() => {
      this.#timer = 0;
      this.#choices();
    }, 300);
  }

  /** In place: a menu that is open while answers come in must not close or jump. */
  #choices() {
    const numbers = [
      [ALL, "everything", this.#items.length],
      [UNSURE, "where the model is not sure", this.#counts[UNSURE]],
      [FAILED, "without an answer", this.#counts[FAILED]],
      [SAID, "what you corrected", this.#counts[SAID]],
      ...[...this.#labels].sort(([one], [other]) => one.localeCompare(other)).map(([name, n]) => [LABEL + name, name, n]),
    ];
    const there = new Map(Array.from(this.#select.options, (option) => [option.value, option]));
    numbers.forEach(([value, words, number], place) => {
      const option = there.get(value) ?? make("option", { value });
      if (this.#select.options[place] !== option) this.#select.add(option, place);
      option.hidden = option.disabled = value !== ALL && !number;
      option.textContent = `${words} (${count(number)})`;
    });
    for (const option of [...this.#select.options].slice(numbers.length)) option.remove();
  }
}
