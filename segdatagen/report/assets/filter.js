// Which samples are shown and in which order: the address of a view holds all of it, so a view can be shared.

const FIRST_SORTS = [["", "source"], ["id", "id"], ["seconds", "seconds"]];
const MODES = ["image", "mask", "overlay"];

/** A view from the part of the address after #, for example `/samples?class=bicycle&status=ok`. */
function readAddress(hash) {
  const [path, query = ""] = hash.replace(/^#\/?/, "").split("?");
  const [view, id] = path.split("/");
  const words = new URLSearchParams(query);
  const known = ["overview", "samples", "sample"].includes(view) ? view : "overview";
  return { view: known, id: id ?? "", words, mode: MODES.includes(words.get("mode")) ? words.get("mode") : "image" };
}

/** The address of a view with the same filter, order and mode, but for the changes; "" and null take words away. */
function address(view, words, changes = {}) {
  const kept = new URLSearchParams(words);
  for (const [name, value] of Object.entries(changes)) {
    if (value === "" || value === null) kept.delete(name);
    else kept.set(name, value);
  }
  const query = kept.toString();
  return `#/${view}${query ? `?${query}` : ""}`;
}

/** Indices of the samples that pass the filter of an address, in its order. */
function chosen(words) {
  const { columns, statuses, methods, classes, reasons } = report;
  const tests = [];
  const find = (words.get("find") ?? "").trim().toLowerCase();
  if (find) tests.push((i) => searchable(i).includes(find));
  if (words.has("class")) {
    const channel = classes.findIndex(([name]) => name === words.get("class"));
    tests.push((i) => columns.classes[i].includes(channel));
  }
  if (words.has("method")) {
    const method = methods.indexOf(words.get("method"));
    tests.push((i) => columns.method[i] === method);
  }
  if (words.has("status")) {
    const wanted = new Set(words.get("status").split(",").map((name) => statuses.indexOf(name)));
    tests.push((i) => wanted.has(columns.status[i]));
  }
  if (words.has("reason")) {
    const wanted = new Set(reasons.flatMap(([text], place) => (text === words.get("reason") ? [place] : [])));
    tests.push((i) => wanted.has(columns.reason[i]));
  }
  for (const [name, values] of report.scores) {
    for (const [bound, holds] of [["from", (value, limit) => value >= limit], ["to", (value, limit) => value <= limit]]) {
      const limit = parseFloat(words.get(`${name}.${bound}`));
      if (!Number.isNaN(limit)) tests.push((i) => values[i] !== null && holds(values[i], limit));
    }
  }
  const found = [];
  for (let i = 0; i < columns.id.length; i += 1) if (tests.every((test) => test(i))) found.push(i);
  return inOrder(found, words);
}

/** Sorted by the column of an address; what has no value comes last, whichever way. */
function inOrder(found, words) {
  const { columns, scores } = report;
  const name = words.get("sort") ?? "";
  const sign = words.has("descending") ? -1 : 1;
  const sortable = new Map([["id", columns.id.map(BigInt)], ["seconds", columns.seconds], ...scores]);
  const values = sortable.get(name);
  if (!values) return sign < 0 ? found.reverse() : found;
  return found.sort((a, b) => {
    if (values[a] === null || values[b] === null) return (values[a] === null) - (values[b] === null) || a - b;
    return values[a] < values[b] ? -sign : values[a] > values[b] ? sign : a - b;
  });
}

const texts = new Map();

function searchable(i) {
  if (!texts.has(i)) {
    const { columns, sources } = report;
    const found = [columns.id[i], sources.ids[columns.source[i]], columns.why[i], columns.caption[i], columns.prompt[i]];
    texts.set(i, found.filter((text) => text !== null).join("\n").toLowerCase());
  }
  return texts.get(i);
}

/** Fill the controls with what this report has; those without a choice are not shown. */
function fillFilter(form) {
  const { columns, classes, methods, statuses, reasons, scores } = report;
  const tally = (lists) => lists.flat().reduce((counts, value) => counts.set(value, (counts.get(value) ?? 0) + 1), new Map());
  const add = (name, values, counts) => {
    values.forEach(([value, text], place) => {
      if (counts.get(place)) form.elements[name].append(element("option", { value, text: `${text} (${number(counts.get(place))})` }));
    });
  };
  add("class", classes.map(([name]) => [name, name]), tally(columns.classes));
  add("method", methods.map((name) => [name, name]), tally(columns.method));
  const byText = new Map();
  const byReason = tally(columns.reason);
  reasons.forEach(([text], place) => byText.set(text, (byText.get(text) ?? 0) + (byReason.get(place) ?? 0)));
  add("reason", [...byText.keys()].map((text) => [text, text.length > 90 ? `${text.slice(0, 88)}…` : text]), new Map([...byText.values()].entries()));
  one(".reasons", form).hidden = reasons.length === 0;
  const byStatus = tally(columns.status);
  for (const box of form.elements.status) {
    one(".count", box.parentElement).textContent = number(byStatus.get(statuses.indexOf(box.value)) ?? 0);
  }
  for (const [name, values] of scores) one("#scores").append(scoreRange(name, values));
  one("#scores").hidden = scores.length === 0;
  const sorts = [...FIRST_SORTS, ...scores.map(([name]) => [name, spoken(name)])];
  form.elements.sort.append(...sorts.map(([value, text]) => element("option", { value, text })));
}

/** The name of a column as people read it. */
function spoken(name) {
  return name.replaceAll("_", " ");
}

function scoreRange(name, values) {
  const known = values.filter((value) => value !== null);
  const least = known.reduce((a, b) => Math.min(a, b), Infinity);
  const most = known.reduce((a, b) => Math.max(a, b), -Infinity);
  const field = (bound, placeholder) =>
    element("input", {
      type: "number", step: "any", name: `${name}.${bound}`, placeholder, "aria-label": `${spoken(name)} ${bound}`, inputmode: "decimal",
    });
  const fields = element("fieldset", {}, element("legend", { text: spoken(name) }));
  fields.append(field("from", String(Number(least.toPrecision(3)))), " to ", field("to", String(Number(most.toPrecision(3)))));
  return fields;
}

/** The words of an address that the controls say; what is not a control (the mode) stays. */
function wordsOf(form, before) {
  const words = new URLSearchParams();
  for (const [name, value] of new FormData(form)) {
    if (value === "") continue;
    words.set(name, name === "status" && words.has(name) ? `${words.get(name)},${value}` : value);
  }
  if (before.has("mode")) words.set("mode", before.get("mode"));
  return words;
}

/** Set the controls to what an address says; one that says it already keeps its cursor. */
function showWords(form, words) {
  for (const control of form.elements) {
    const value = words.get(control.name) ?? "";
    if (control.localName === "select") choose(control, value);
    else if (control.type === "checkbox") control.checked = value.split(",").includes(control.value);
    else if (control.name && control.value !== value) control.value = value;
  }
}

/** Choose a value, which becomes a choice where no sample has it; an order that there is not is the first one. */
function choose(control, value) {
  if (![...control.options].some((option) => option.value === value)) {
    if (control.name === "sort") value = "";
    else control.append(element("option", { value, text: `${value} (0)` }));
  }
  control.value = value;
}
