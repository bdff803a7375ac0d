// The endpoint as this page sees it. The key lives in one private field and goes into one header, nowhere else.

/** The endpoint said no: status, its code and its message for people. `after` is Retry-After in seconds, if given. */
export class Refused extends Error {
  constructor(status, code, message, after) {
    super(message);
    Object.assign(this, { status, code, after });
  }
  /** Whether the same request may be answered later. */
  get passing() {
    return [408, 425, 429, 500, 502, 503, 504].includes(this.status) && this.code !== "corrections_unwritable";
  }
}

/** No answer came at all. */
export class Unreachable extends Error {}

// What the proxy in front answers in plain text, and what is better said here than by a program's message.
const WORDS = {
  401: "This endpoint asks for a key.",
  403: "The endpoint does not know this key. Copy it again, from its first to its last character.",
  408: "The images did not arrive in time: the connection is slow.",
  413: "This is larger than the endpoint takes in one request.",
  429: "The endpoint is too busy.",
  500: "The endpoint failed on this request.",
  502: "The endpoint cannot be reached by the server in front of it.",
  503: "The endpoint is not ready.",
  504: "The endpoint took too long.",
};
const PATIENCE_S = 180;

export class Endpoint {
  #key = "";

  /** Throws an Error in words for what cannot be a key. */
  set key(text) {
    const key = text.trim();
    if (!/^[\x21-\x7e]+$/.test(key)) {
      throw new Error("A key has only letters, digits and signs, without spaces. Copy it again.");
    }
    this.#key = key;
  }

  get(path) {
    return this.#ask(path, {});
  }

  post(path, form, { id = requestId(), signal } = {}) {
    return this.#ask(path, { method: "POST", body: form, headers: { "x-request-id": id }, signal });
  }

  async #ask(path, { headers = {}, signal, ...options }) {
    const ending = new AbortController();
    const end = () => ending.abort();
    const timer = setTimeout(end, PATIENCE_S * 1000);
    signal?.addEventListener("abort", end);
    if (signal?.aborted) end();
    try {
      const sent = this.#key ? { ...headers, authorization: `Bearer ${this.#key}` } : headers;
      const response = await fetch(path, {
        ...options, headers: sent, signal: ending.signal, cache: "no-store", redirect: "error",
      });
      const text = await response.text();
      if (!response.ok) throw refusal(response, text);
      return JSON.parse(text);
    } catch (error) {
      if (error instanceof Refused || signal?.aborted) throw error;
      if (error instanceof SyntaxError) throw new Refused(502, "no_json", "The answer is not this endpoint's. Reload the page.");
      throw new Unreachable("The endpoint cannot be reached. Is this device online, and does the endpoint still run?");
    } finally {
      clearTimeout(timer);
      signal?.removeEventListener("abort", end);
    }
  }
}

/** 32 hex digits. (crypto.randomUUID is missing on pages that come over plain HTTP from another machine.) */
export function requestId() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

function refusal(response, text) {
  let said = {};
  try {
    said = JSON.parse(text).error ?? {};
  } catch { /* the proxy's plain text */ }
  const { status } = response;
  const own = typeof said.message === "string" ? said.message : undefined;
  const words = [401, 403].includes(status) ? WORDS[status] ?? own : own ?? WORDS[status];
  const after = Number.parseInt(response.headers.get("retry-after") ?? "", 10);
  return new Refused(status, String(said.code ?? ""), words ?? `The endpoint answered with the status ${status}.`, after > 0 ? after : undefined);
}
