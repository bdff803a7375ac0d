// Numbers and answers in words, and the table to download.

/** A count with separators: 6,000. */
export const count = (number) => number.toLocaleString("en");

/** "1 image", "2 images". */
export const many = (number, what) => `${count(number)} ${what}${number === 1 ? "" : "s"}`;

/** A share 0..1 as per cent. Never 0 % or 100 %: no model is that sure. */
export function percent(share) {
  if (share >= 0.995) return "over 99\u00a0%";
  if (share < 0.005) return "under 1\u00a0%";
  return `${Math.round(share * 100)}\u00a0%`;
}

/** How probable, in words, with the number: "very likely (94 %)". */
export function likely(share) {
  const steps = [[0.99, "almost certain"], [0.9, "very likely"], [0.75, "likely"], [0.5, "more likely than not"]];
  const word = steps.find(([from]) => share >= from)?.[1] ?? "the best of its guesses";
  return `${word} (${percent(share)})`;
}

/** Bytes as MiB, as the endpoint's limits are given. */
export const mib = (bytes) => `${(bytes / 2 ** 20).toFixed(1)} MiB`;

// What a spreadsheet would run as a formula gets an apostrophe before it (OWASP, "CSV injection").
const safe = (text) => (/^[=+\-@\t\r\n]/.test(text) ? `'${text}` : text);
const cell = (text) => (/[",\r\n]|^\s|\s$/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
const line = (cells) => `${cells.map((text) => cell(safe(text))).join(",")}\r\n`;

/**
 * The table as pieces for a Blob: RFC 4180, a row for each image that has an answer or a failure. It begins with a byte
 * order mark, without which Excel takes UTF-8 for another alphabet; pandas and eagleray's own reader pass over it.
 */
export function table(items, withCorrections) {
  const extra = withCorrections ? ["correction"] : [];
  const pieces = ["\ufeff", line(["file", "label", "probability", "confident", "error", ...extra])];
  for (const item of items) {
    if (item.state !== "done" && item.state !== "failed") continue;
    const cells = item.state === "done"
      ? [item.label, item.probability.toFixed(6), item.confident === null ? "" : String(item.confident), ""]
      : ["", "", "", item.error];
    pieces.push(line([item.name, ...cells, ...(withCorrections ? [item.correction ?? ""] : [])]));
  }
  return pieces;
}
