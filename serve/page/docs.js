// /docs: the OpenAPI document of this endpoint in a form for people. Nothing is loaded from elsewhere.

import { find, make, say } from "./dom.js";

const KEY = "$EAGLERAY_KEY";

async function show() {
  try {
    const response = await fetch("openapi.json", { cache: "no-cache" });
    if (!response.ok) throw new Error(`the status is ${response.status}`);
    const api = await response.json();
    find("routes").replaceWith(...page(api));
    say(find("state"), "");
    document.getElementById(decodeURIComponent(location.hash.slice(1)))?.scrollIntoView();
  } catch (error) {
    say(find("state"), `The description could not be read (${error.message}). Reload the page.`);
  }
}

function page(api) {
  const routes = Object.entries(api.paths).flatMap(([path, methods]) =>
    Object.entries(methods).filter(([, route]) => route.responses).map(([method, route]) => ({ method: method.toUpperCase(), path, route })));
  const links = routes.map(({ method, path, route }) =>
    make("li", {}, make("a", { href: `#${anchor(method, path)}` }, make("code", {}, `${method} ${path}`)), ` ${route.summary ?? ""}`));
  return [
    make("section", {}, text(api.info.description), make("p", {}, "In the examples ", make("code", {}, KEY), " is your key. Programs read the same description from ", make("a", { href: "openapi.json" }, "openapi.json"), ".")),
    make("nav", { "aria-label": "Routes", className: "list" }, make("ul", {}, ...links)),
    ...routes.map(({ method, path, route }) => section(api, method, path, route)),
  ];
}

const anchor = (method, path) => `${method}-${path}`.toLowerCase().replace(/[^a-z0-9]+/g, "-");

function section(api, method, path, route) {
  const id = anchor(method, path);
  const title = make("h2", { id: `${id}-title` }, make("span", { className: "method" }, method), make("span", { className: "path" }, path), route.summary ?? "");
  const parts = [title, text(route.description)];
  const parameters = route.parameters ?? [];
  if (parameters.length) {
    parts.push(make("h3", {}, "Parameters"), make("ul", { className: "fields" }, ...parameters.map((one) => field(api, one.name, { ...one.schema, description: one.description }, one.required, []))));
  }
  parts.push(...bodies(api, route.requestBody));
  parts.push(make("h3", {}, "Example"), ...examples(api, method, path, route).map((command) => make("pre", {}, make("code", {}, command))));
  parts.push(make("h3", {}, "Answers"), answers(api, route.responses));
  return make("section", { id, "aria-labelledby": `${id}-title` }, ...parts);
}

function bodies(api, body) {
  if (!body) return [];
  const kinds = Object.entries(body.content ?? {}).map(([kind, { schema }]) => make("li", {}, make("code", {}, kind), ...structure(api, schema, [])));
  return [make("h3", {}, "Body"), ...(body.description ? [text(body.description)] : []), make("ul", { className: "fields" }, ...kinds)];
}

function answers(api, responses) {
  const told = new Set(["ErrorAnswer"]); // the one form of errors, said at the top; others are shown once for each route
  const rows = Object.entries(responses).map(([status, response]) => {
    const schema = Object.values(response.content ?? {})[0]?.schema;
    const form = resolved(api, schema)?.title ?? JSON.stringify(schema ?? null);
    const known = told.has(form);
    if (status[0] !== "2") told.add(form);
    const words = response.description === "Successful Response" ? "The answer:" : response.description;
    return make("tr", {}, make("th", { scope: "row" }, status), make("td", {}, text(words), ...(known ? [] : structure(api, schema, []))));
  });
  return make("div", { className: "scroll" }, make("table", {}, make("tbody", {}, ...rows)));
}

/** What a schema holds, as a list; `above` are the names of those around it, since one may hold itself. */
function structure(api, schema, above) {
  const name = schema?.$ref;
  const whole = resolved(api, schema);
  if (!whole || above.includes(name) || above.length > 6) return [];
  const inside = [...above, name].filter(Boolean);
  if (whole.properties) {
    const fields = Object.entries(whole.properties).map(([key, value]) => field(api, key, value, whole.required?.includes(key), inside));
    return [make("ul", { className: "fields" }, ...fields)];
  }
  if (whole.items) return structure(api, whole.items, inside);
  const choices = (whole.anyOf ?? whole.oneOf ?? []).map((choice) => [kind(api, choice), structure(api, choice, inside)]);
  if (!choices.some(([, list]) => list.length)) return []; // `kind` has said it
  return choices.flatMap(([name, list], place) => [make("p", { className: "hint" }, `${place ? "or " : ""}${name}`), ...list]);
}

function field(api, name, schema, required, above) {
  const described = schema.description ?? resolved(api, schema)?.description;
  return make("li", {}, make("code", {}, name), make("span", { className: "hint" }, ` ${kind(api, schema)}${required === false ? ", optional" : ""}`), ...(described ? [" – ", ...inline(described)] : []), ...structure(api, schema, above));
}

function kind(api, schema) {
  const whole = resolved(api, schema) ?? {};
  if (whole.anyOf ?? whole.oneOf) return (whole.anyOf ?? whole.oneOf).map((one) => kind(api, one)).join(" or ");
  if (whole.type === "array") return `list of ${kind(api, whole.items ?? {})}`;
  if (whole.format === "binary") return "bytes";
  if (whole.type === "object" && whole.additionalProperties?.type) return `object of ${whole.additionalProperties.type}`;
  return whole.enum ? whole.enum.map((value) => JSON.stringify(value)).join(" or ") : String(whole.type ?? "anything");
}

function resolved(api, schema) {
  if (!schema?.$ref) return schema;
  return schema.$ref.slice(2).split("/").reduce((value, key) => value?.[key], api);
}

/** A curl command for each way to send a body that we know how to write. */
function examples(api, method, path, route) {
  const header = (route.security ?? api.security)?.length ? ` -H "Authorization: Bearer ${KEY}"` : "";
  const start = `curl --fail${method === "GET" || method === "POST" ? "" : ` -X ${method}`}${header}`;
  const end = ` ${location.origin}${location.pathname.replace(/docs$/, "").replace(/\/$/, "")}${path.replaceAll("{version}", "1").replace(/\{(\w+)\}/g, (_, name) => name.toUpperCase())}`;
  const content = route.requestBody?.content;
  if (!content) return [`${start}${method === "POST" ? " -X POST" : ""}${end}`];
  return Object.entries(content).flatMap(([kind, body]) => {
    const data = argument(api, kind, body);
    return data ? [`${start}${data}${end}`] : [];
  });
}

function argument(api, kind, body) {
  if (kind === "multipart/form-data") {
    const schema = resolved(api, body.schema);
    const wanted = Object.keys(schema?.properties ?? {}).filter((name) => schema.required?.includes(name));
    return wanted.map((name) => (/image|file/.test(name) ? ` -F ${name}=@photo.jpg` : ` -F ${name}=…`)).join("");
  }
  if (kind === "application/json" || kind.endsWith("+json")) {
    const example = body.example ?? Object.values(body.examples ?? {})[0]?.value ?? resolved(api, body.schema)?.example;
    return ` -H "Content-Type: ${kind}" -d ${example === undefined ? "@request.json" : `'${JSON.stringify(example).replaceAll("'", "'\\''")}'`}`;
  }
  if (kind === "image/*") return " --data-binary @photo.jpg";
  return kind.startsWith("image/") ? ` -H "Content-Type: ${kind}" --data-binary @photo.${kind.slice(6).replace("jpeg", "jpg")}` : "";
}

/** The little of Markdown that our descriptions use: paragraphs, lists, `code`, *stress*. */
function text(source) {
  const blocks = (source ?? "").trim().split(/\n\s*\n/).filter(Boolean);
  if (!blocks.length) return null;
  return make("div", { className: "text" }, ...blocks.map((block) => {
    const lines = block.split("\n");
    if (!lines.every((line) => /^\s*[-*] |^\s+\S/.test(line))) return make("p", {}, ...inline(lines.join(" ")));
    const points = block.split(/^\s*[-*] /m).filter((point) => point.trim());
    return make("ul", { className: "fields" }, ...points.map((point) => make("li", {}, ...inline(point.replaceAll("\n", " ")))));
  }));
}

function inline(source) {
  return source.split(/(`[^`]+`|\*\*?[^*`]+\*\*?)/).map((part) => {
    if (/^`.+`$/.test(part)) return make("code", {}, part.slice(1, -1));
    return /^\*.+\*$/.test(part) ? make("em", {}, part.replace(/^\*+|\*+$/g, "")) : part;
  });
}

show();
