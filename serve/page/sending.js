// Images to the endpoint: small batches, two at a time, tried again while the endpoint is busy, never one lost.

import { Refused, requestId, Unreachable } from "./api.js";
import { mib } from "./words.js";

const AT_ONCE = 2;
const MOST_FILES = 16;
const MOST_TRIES = 8;
// A batch should take seconds: long ones show no progress, and a slow connection must keep the endpoint's time limit.
const [LEAST_BYTES, FIRST_BYTES, MOST_BYTES] = [2 ** 18, 2 ** 20, 2 ** 24];
const [QUICK_S, SLOW_S] = [1.5, 6];
const FRAME_BYTES = 4096; // around each image in a multipart body, with a generous file name

/**
 * Sends items ({file, name, state}) and writes into them: state "waiting" -> "sent" -> "done" (label, probability,
 * confident, values, classes, model) or "failed" (error). Tells `told` of each: answered(item), pause(words or ""),
 * ended(words or "", status) when no more is under way: why it stopped, if it did, and the HTTP status behind that.
 */
export class Sender {
  #endpoint;
  #told;
  #queue = [];
  #bytes = FIRST_BYTES;
  #stop = null;
  #workers = 0;
  #reason = "";
  #status = 0;
  limits = { max_body_bytes: 2 ** 25, max_files: MOST_FILES };

  constructor(endpoint, told) {
    this.#endpoint = endpoint;
    this.#told = told;
  }

  get running() {
    return this.#workers > 0;
  }

  get left() {
    return this.#queue.length;
  }

  add(items) {
    for (const item of items) this.#queue.push(item); // push(...items) overflows the stack with a large folder
  }

  start() {
    if (this.#stop?.signal.aborted && this.running) return; // the last workers are still leaving
    if (!this.running) {
      this.#stop = new AbortController();
      this.#reason = "";
      this.#status = 0;
    }
    while (this.#workers < AT_ONCE && this.#workers < this.#queue.length) {
      this.#workers += 1;
      this.#work(this.#stop.signal);
    }
  }

  /** What is under way goes back into the queue. */
  stop(reason = "", status = 0) {
    this.#reason ||= reason;
    this.#status ||= status;
    this.#stop?.abort();
  }

  clear() {
    this.stop();
    this.#queue = [];
  }

  async #work(signal) {
    const queue = this.#queue; // after `clear` there is another, which must not get back what the old one gave
    try {
      while (!signal.aborted) {
        const batch = this.#take();
        if (!batch.length) break;
        const left = await this.#send(batch, signal);
        if (left.length) {
          for (const item of left) item.state = "waiting";
          queue.unshift(...left);
        }
      }
    } catch (error) {
      this.stop(`The page failed: ${error.message}. Reload it.`);
      throw error;
    } finally {
      this.#workers -= 1;
      if (!this.running) {
        this.#told.pause("");
        this.#told.ended(this.#reason, this.#status);
      }
    }
  }

  #take() {
    const batch = [];
    let bytes = 0;
    const most = Math.min(this.#bytes, this.limits.max_body_bytes);
    while (this.#queue.length && batch.length < Math.min(MOST_FILES, this.limits.max_files)) {
      const item = this.#queue[0];
      const size = item.file.size + FRAME_BYTES;
      if (size > this.limits.max_body_bytes) {
        this.#queue.shift();
        const limit = mib(this.limits.max_body_bytes);
        this.#fail(item, `too_large: ${mib(item.file.size)}, and this endpoint takes ${limit} in a request: save it smaller`);
        continue;
      }
      if (batch.length && bytes + size > most) break;
      bytes += size;
      item.state = "sent";
      batch.push(this.#queue.shift());
    }
    return batch;
  }

  /** Returns the items that have no answer yet: a request that ends badly gives them back. */
  async #send(batch, signal) {
    const id = requestId(); // the same for each try: an answer that was given and lost is not another request
    for (let tries = 1; ; tries += 1) {
      try {
        const begun = performance.now();
        this.#answer(batch, await this.#endpoint.post("predict", formOf(batch), { id, signal }));
        this.#adapt((performance.now() - begun) / 1000);
        return [];
      } catch (error) {
        if (signal.aborted) return batch;
        if (error instanceof Unreachable) {
          const readable = await this.#readable(batch);
          if (readable.length < batch.length) return readable;
        } else if (!(error instanceof Refused)) {
          throw error;
        }
        if ([401, 403].includes(error.status)) {
          this.stop(error.message, error.status);
          return batch;
        }
        const large = error.code === "body_timeout" || (error.status === 500 && tries >= 3);
        if (error instanceof Refused && (!error.passing || large)) return this.#apart(batch, error, signal);
        if (tries >= MOST_TRIES) {
          this.stop(`${error.message} It was asked ${tries} times. Nothing is lost: "Go on" sends the rest.`);
          return batch;
        }
        const wait = Math.min(error.after ?? 2 ** (tries - 1) * (0.5 + Math.random()), 60);
        this.#told.pause(`${error.message} Trying again in ${Math.max(1, Math.round(wait))} s.`);
        if (!(await pause(wait, signal))) return batch;
        this.#told.pause("");
      }
    }
  }

  /** A batch that was refused goes image by image: that finds out whose fault it is. */
  async #apart(batch, error, signal) {
    if (batch.length === 1) {
      this.#fail(batch[0], `${error.code || error.status}: ${error.message}`);
      return [];
    }
    this.#bytes = Math.max(LEAST_BYTES, this.#bytes / 2);
    const left = [];
    for (const item of batch) left.push(...(await this.#send([item], signal)));
    return left;
  }

  #answer(batch, answer) {
    const entries = answer.predictions;
    if (entries?.length !== batch.length) throw new Refused(502, "wrong_answer", "The answer does not fit the question.");
    batch.forEach((item, place) => {
      const entry = entries[place];
      if (entry.error) {
        this.#fail(item, `${entry.error.code}: ${entry.error.message}`);
        return;
      }
      const classes = Object.keys(entry.probabilities);
      // Numbers alone: six thousand objects of hundreds of classes would be hundreds of megabytes.
      const values = Float32Array.from(Object.values(entry.probabilities));
      Object.assign(item, {
        state: "done", label: entry.label, probability: entry.probability, confident: entry.confident,
        classes: this.#shared(classes), values, model: answer.model,
      });
      this.#told.answered(item);
    });
  }

  #classes = [];

  /** One list for all items with the same classes. */
  #shared(classes) {
    const same = classes.length === this.#classes.length && classes.every((name, n) => name === this.#classes[n]);
    if (!same) this.#classes = classes;
    return this.#classes;
  }

  #fail(item, error) {
    Object.assign(item, { state: "failed", error });
    this.#told.answered(item);
  }

  #adapt(seconds) {
    if (seconds < QUICK_S) this.#bytes = Math.min(MOST_BYTES, Math.max(this.#bytes, LEAST_BYTES) * 2);
    if (seconds > SLOW_S) this.#bytes = Math.max(LEAST_BYTES, this.#bytes / 2);
  }

  /** A file that was moved or changed since it was chosen ends the request as a dead network does. */
  async #readable(batch) {
    const readable = [];
    for (const item of batch) {
      try {
        await item.file.slice(0, 1).arrayBuffer();
        readable.push(item);
      } catch {
        this.#fail(item, "unreadable: the file was moved, changed or deleted since it was chosen: choose it again");
      }
    }
    return readable;
  }
}

function formOf(batch) {
  const form = new FormData();
  batch.forEach((item, place) => form.append("image", item.file, `${place}`)); // the order says which is which
  return form;
}

/** Whether the time passed, and was not cut short by the signal. */
function pause(seconds, signal) {
  return new Promise((resolve) => {
    const end = (passed) => {
      clearTimeout(timer);
      signal.removeEventListener("abort", cut);
      resolve(passed);
    };
    const cut = () => end(false);
    const timer = setTimeout(() => end(true), seconds * 1000);
    signal.addEventListener("abort", cut);
  });
}
