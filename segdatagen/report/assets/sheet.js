// The contact sheet: only what is on the screen, and a little around it, is in the document.

const GAP = 10; // pixels between pictures, as in the style sheet
const CAPTION = 22; // pixels below a picture
const AROUND = 400; // pixels above and below the screen that are ready

const sheet = {
  list: [], // indices of samples, in order
  words: new URLSearchParams(),
  focus: 0, // place in the list of the sample that the keys move from
  columns: 1,
  cells: new Map(), // place -> element
};

/** Show these samples; `words` are those of the address, for the links to their pages. */
function showSheet(list, words) {
  const same = list.length === sheet.list.length && list.every((index, place) => index === sheet.list[place]);
  if (!same || words.get("sort") !== sheet.words.get("sort")) dropCells(() => true);
  if (!same) sheet.focus = 0;
  sheet.list = list;
  sheet.words = words;
  for (const [place, cell] of sheet.cells) one("a", cell).href = address(`sample/${report.columns.id[list[place]]}`, words);
  arrange();
}

/** Compute columns and rows from the width, and bring the cells up to date. */
function arrange() {
  const root = one("#sheet");
  const width = root.clientWidth;
  if (!width) return;
  const wanted = Number(one("#size").value);
  sheet.columns = Math.max(1, Math.floor((width + GAP) / (wanted + GAP)));
  sheet.tile = Math.floor((width + GAP) / sheet.columns) - GAP;
  sheet.across = sheet.columns > 1 ? (width - sheet.tile) / (sheet.columns - 1) : 0;
  sheet.step = sheet.tile + CAPTION + GAP;
  const rows = Math.ceil(sheet.list.length / sheet.columns);
  root.style.height = `${Math.max(0, rows * sheet.step - GAP)}px`;
  root.style.setProperty("--tile", `${sheet.tile}px`);
  fill();
}

/** Put the cells of the rows around the screen into the document, and take the others out. */
function fill() {
  const root = one("#sheet");
  if (!root.clientWidth || !sheet.step) return;
  const top = root.getBoundingClientRect().top;
  const first = Math.max(0, Math.floor((-top - AROUND) / sheet.step)) * sheet.columns;
  const last = Math.min(sheet.list.length, Math.ceil((window.innerHeight - top + AROUND) / sheet.step) * sheet.columns);
  dropCells((place, cell) => (place < first || place >= last) && !cell.contains(document.activeElement));
  for (const [place, cell] of sheet.cells) position(cell, place);
  for (let place = first; place < last; place += 1) {
    if (!sheet.cells.has(place)) addCell(root, place);
  }
  for (const [place, cell] of sheet.cells) one("a", cell).tabIndex = place === sheet.focus ? 0 : -1;
}

function dropCells(test) {
  for (const [place, cell] of sheet.cells) {
    if (test(place, cell)) {
      cell.remove();
      sheet.cells.delete(place);
    }
  }
}

function position(cell, place) {
  const column = place % sheet.columns;
  const row = (place - column) / sheet.columns;
  cell.style.transform = `translate(${Math.round(column * sheet.across)}px, ${row * sheet.step}px)`;
}

function addCell(root, place) {
  const index = sheet.list[place];
  const { columns, statuses, sources } = report;
  const status = statuses[columns.status[index]];
  const source = sources.ids[columns.source[index]];
  const frame = element("span", { class: "frame" });
  const badge = status === "ok" ? [] : [element("span", { class: `badge ${status}`, text: status })];
  const caption = element("span", { class: "caption", text: captionOf(index, source) });
  const link = element(
    "a",
    { href: address(`sample/${columns.id[index]}`, sheet.words), title: titleOf(index, source, status), draggable: "false" },
    frame, ...badge, caption,
  );
  const cell = element("li", { class: `cell ${status}`, "aria-setsize": sheet.list.length, "aria-posinset": place + 1 }, link);
  link.addEventListener("focus", () => focusOn(place, false));
  position(cell, place);
  sheet.cells.set(place, cell);
  const after = [...sheet.cells.keys()].filter((other) => other > place);
  root.insertBefore(cell, after.length ? sheet.cells.get(Math.min(...after)) : null);
  paint(frame, index, source);
}

/** What stands below a picture: the value that the sheet is sorted by, or the source. */
function captionOf(index, source) {
  const name = sheet.words.get("sort");
  const values = name === "seconds" ? report.columns.seconds : report.scores.find(([score]) => score === name)?.[1];
  if (name === "id") return report.columns.id[index];
  const { columns, methods } = report;
  const variant = columns.variant[index];
  if (!values && methods.length > 1) return `${methods[columns.method[index]]} ${variant} · ${source}`;
  if (!values) return `${source} · ${variant}`;
  return values[index] === null ? "no value" : `${number(values[index])}${name === "seconds" ? " s" : ""}`;
}

function titleOf(index, source, status) {
  const { columns, classes, methods } = report;
  const why = columns.why[index] ? `: ${columns.why[index]}` : "";
  const shown = columns.classes[index].map((channel) => classes[channel][0]).join(", ");
  return `${source}, variant ${columns.variant[index]}, ${methods[columns.method[index]]}\n${status}${why}${shown ? `\n${shown}` : ""}`;
}

function paint(frame, index, source) {
  thumbnailOf(index).then(([image, mask]) => {
    if (image || mask) frame.append(...layered(image, mask, source));
    else frame.append(element("span", { class: "why", text: report.columns.why[index] ?? "no picture" }));
  }, (error) => frame.append(element("span", { class: "why", text: error.message })));
}

/** The small image and the small mask of a sample. */
async function thumbnailOf(index) {
  const items = await load(report.thumbnails[Math.floor(index / report.thumbnailsPerFile)]);
  return items[index % report.thumbnailsPerFile];
}

/** Make a place of the list the one that the keys move from; `move` brings it onto the screen and focuses it. */
function focusOn(place, move) {
  const before = sheet.cells.get(sheet.focus);
  if (before) one("a", before).tabIndex = -1;
  sheet.focus = place;
  if (move) {
    reveal(place);
    fill();
  }
  const cell = sheet.cells.get(place);
  if (!cell) return;
  one("a", cell).tabIndex = 0;
  if (move) one("a", cell).focus({ preventScroll: true });
}

/** Scroll as little as brings a place onto the screen, below what sticks to its top. */
function reveal(place) {
  const top = one("#sheet").getBoundingClientRect().top + Math.floor(place / sheet.columns) * sheet.step;
  const covered = Math.max(0, one("#samples .sheetbar").getBoundingClientRect().bottom) + GAP;
  if (top < covered) window.scrollBy(0, top - covered);
  else if (top + sheet.step > window.innerHeight) window.scrollBy(0, top + sheet.step - window.innerHeight);
}

/** Where a key leads from the focused place; undefined for keys that do not move. */
function moved(key) {
  const last = sheet.list.length - 1;
  const rows = Math.max(1, Math.floor(window.innerHeight / sheet.step) - 1) * sheet.columns;
  const target = {
    ArrowLeft: sheet.focus - 1,
    ArrowRight: sheet.focus + 1,
    ArrowUp: sheet.focus - sheet.columns,
    ArrowDown: sheet.focus + sheet.columns,
    PageUp: sheet.focus - rows,
    PageDown: sheet.focus + rows,
    Home: 0,
    End: last,
  }[key];
  if (target === undefined || last < 0) return undefined;
  if (key === "ArrowUp" && target < 0) return sheet.focus;
  if (key === "ArrowDown" && target > last) {
    return Math.floor(last / sheet.columns) > Math.floor(sheet.focus / sheet.columns) ? last : sheet.focus;
  }
  return Math.max(0, Math.min(last, target));
}
