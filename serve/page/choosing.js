// From what a person drops or chooses to a list of {file, name}: folders with all that is in them, in order.

const IMAGES = /\.(jpe?g|jpe|jfif|mpo|a?png|gif|webp|tiff?|bmp|p[pgn]m|avif|hei[cf])$/i;
const AT_ONCE = 500;

/** Whether it is called like an image. (Images of phones in HEIC are sent too: the endpoint says what to do.) */
const looksLikeImage = ({ name, type }) => !name.startsWith(".") && (IMAGES.test(name) || type.startsWith("image/"));

/** Pieces {found: [{file, name}], passed: n} of what an <input type=file> holds. */
export async function* chosen(files, inFolder) {
  const all = Array.from(files, (file) => ({ file, name: file.webkitRelativePath || file.name }));
  if (inFolder) all.sort((one, other) => compare(one.name, other.name));
  for (let start = 0; start < all.length; start += AT_ONCE) {
    yield sorted(all.slice(start, start + AT_ONCE), inFolder);
    await breath();
  }
}

/** The same of a drop. Call it at once: the browser forgets what was dropped when the event is over. */
export function dropped(transfer) {
  const items = Array.from(transfer.items).filter((item) => item.kind === "file");
  const entries = items.map((item) => item.webkitGetAsEntry?.() ?? item.getAsFile()).filter(Boolean);
  return walked(entries);
}

async function* walked(entries) {
  let piece = [];
  for (const entry of entries) {
    if (entry instanceof File) {
      piece.push({ file: entry, name: entry.name });
      continue;
    }
    for await (const found of filesOf(entry)) {
      piece.push(found);
      if (piece.length >= AT_ONCE) {
        yield sorted(piece, true);
        piece = [];
        await breath();
      }
    }
  }
  // Images that were dropped by themselves are meant, whatever they are called.
  yield sorted(piece, entries.some((entry) => entry.isDirectory));
}

async function* filesOf(entry) {
  if (entry.isFile) {
    const file = await new Promise((resolve) => entry.file(resolve, () => resolve(null)));
    if (file) yield { file, name: entry.fullPath.replace(/^\//, "") };
    return;
  }
  const inside = [];
  const reader = entry.createReader();
  for (;;) { // a reader gives about a hundred at a time, and an empty list at the end
    const some = await new Promise((resolve) => reader.readEntries(resolve, () => resolve([])));
    if (!some.length) break;
    inside.push(...some);
  }
  inside.sort((one, other) => compare(one.name, other.name));
  for (const each of inside) if (!each.name.startsWith(".")) yield* filesOf(each);
}

function sorted(piece, inFolder) {
  const found = inFolder ? piece.filter(({ file }) => looksLikeImage(file)) : piece;
  return { found, passed: piece.length - found.length };
}

const compare = new Intl.Collator("en", { numeric: true }).compare;
const breath = () => new Promise((resolve) => setTimeout(resolve));
