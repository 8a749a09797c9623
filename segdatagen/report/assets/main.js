// The address decides what is seen; buttons, controls and keys change the address.

const THEMES = { light: "dark", dark: "light" };
let now; // the address that is shown
let leftAt = 0; // where the contact sheet was scrolled to when it was left
let returning = -1; // the sample whose page was left for the sheet

function start() {
  fillFilter(one("#filter"));
  fillColours();
  const form = one("#filter");
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", () => replace(address("samples", wordsOf(form, now.words))));
  form.addEventListener("reset", (event) => {
    event.preventDefault();
    replace(address("samples", new URLSearchParams(now.words.has("mode") ? { mode: now.mode } : {})));
  });
  for (const button of all("[data-mode][aria-pressed]")) button.addEventListener("click", () => setMode(button.dataset.mode));
  for (const slider of all(".opacity input")) slider.addEventListener("input", () => setOpacity(slider.value));
  one("#size").addEventListener("input", () => {
    arrange();
    reveal(sheet.focus);
    fill();
  });
  one("#copy").addEventListener("click", copyCommand);
  one(".skip").addEventListener("click", (event) => {
    event.preventDefault(); // the address after # is that of a view
    one("#main").focus();
  });
  one("#help").addEventListener("click", () => one("#keys").showModal());
  one("#sample .pictures").addEventListener("pointermove", readPixel);
  one("#sample .pictures").addEventListener("pointerleave", () => { one("#pixel").textContent = ""; });
  new ResizeObserver(() => requestAnimationFrame(arrange)).observe(one("#sheet"));
  window.addEventListener("scroll", () => requestAnimationFrame(fill), { passive: true });
  window.addEventListener("hashchange", show);
  document.addEventListener("keydown", onKey);
  setOpacity(55);
  if (window.innerWidth < 640) one("#size").value = 96; // three beside each other on a telephone
  show();
}

/** Change the address without a step in the history: typing a filter is not a journey. */
function replace(hash) {
  history.replaceState(null, "", hash);
  show();
}

/** Bring the page up to what the address says. */
function show() {
  const before = now;
  now = readAddress(location.hash);
  if (before?.view === "samples" && now.view !== "samples") leftAt = window.scrollY;
  for (const view of all(".view")) view.hidden = view.id !== now.view;
  for (const link of all("nav a")) {
    const current = link.dataset.view === now.view || (now.view === "sample" && link.dataset.view === "samples");
    if (current) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  for (const button of all("[data-mode][aria-pressed]")) button.setAttribute("aria-pressed", String(button.dataset.mode === now.mode));
  for (const view of ["#samples", "#sample"]) one(view).dataset.mode = now.mode;
  document.title = `${{ overview: "Overview", samples: "Samples", sample: `Sample ${now.id}` }[now.view]} · ${report.title}`;
  if (now.view === "samples") showSamples(before);
  else if (now.view === "sample") showOne(before);
  else if (before && before.view !== now.view) window.scrollTo(0, 0);
}

function showSamples(before) {
  const form = one("#filter");
  showWords(form, now.words);
  const list = chosen(now.words);
  const total = report.columns.id.length;
  one("#shown").textContent = `${number(list.length)} of ${number(total)} samples`;
  const unknown = now.words.get("unknown");
  one("#unknown").hidden = !unknown;
  one("#unknown").textContent = `There is no sample ${unknown} in this report. Shown is what has ${unknown} in its texts.`;
  one("#nothing").hidden = list.length > 0;
  one("#nothing").textContent = total ? "No sample passes this filter." : "There are no samples yet.";
  one("#clear").disabled = ![...now.words.keys()].some((name) => name !== "mode");
  const back = before?.view === "sample" ? list.indexOf(returning) : -1;
  showSheet(list, now.words);
  if (back >= 0) {
    window.scrollTo(0, leftAt);
    focusOn(back, true);
  } else if (before && before.view !== "samples") {
    window.scrollTo(0, 0);
  }
}

function showOne(before) {
  const index = report.columns.id.indexOf(now.id);
  if (index < 0) {
    replace(address("samples", now.words, { find: now.id, unknown: now.id }));
    return;
  }
  returning = index;
  showSteps(index, chosen(now.words), now.words);
  if (before?.view === "sample" && before.id === now.id) return;
  showSample(index);
  if (before?.view !== "sample") {
    window.scrollTo(0, 0);
    one("#sample h1").focus({ preventScroll: true });
  }
}

function setMode(mode) {
  const view = now.view === "sample" ? `sample/${now.id}` : "samples";
  if (now.view !== "overview") replace(address(view, now.words, { mode: mode === "image" ? null : mode }));
}

function setOpacity(percent) {
  document.documentElement.style.setProperty("--opacity", percent / 100);
  for (const slider of all(".opacity input")) slider.value = percent;
}

/** The legend: which colour is which class; choosing one filters by it. */
function fillColours() {
  const shown = new Set(report.columns.classes.flat());
  const items = report.classes.flatMap(([name, colour], channel) => {
    if (!shown.has(channel)) return [];
    const swatch = element("span", { class: "swatch", "aria-hidden": "true" });
    swatch.style.background = colour;
    const button = element("button", { type: "button" }, swatch, element("span", { text: name }));
    button.addEventListener("click", () => replace(address("samples", now.words, { class: name })));
    return [element("li", {}, button)];
  });
  one("#colours ul").replaceChildren(...items);
  one("#colours").hidden = items.length === 0;
}

/** Light or dark as it was chosen before; a page from a disk may have no storage. */
function storedTheme() {
  try {
    return localStorage.getItem("segdatagen-theme");
  } catch (error) {
    if (error.name === "SecurityError") return null;
    throw error;
  }
}

function otherTheme() {
  const root = document.documentElement;
  const theme = root.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
  root.dataset.theme = THEMES[theme];
  try {
    localStorage.setItem("segdatagen-theme", THEMES[theme]);
  } catch (error) {
    if (error.name !== "SecurityError") throw error; // then the choice lasts as long as the page
  }
}

async function copyCommand() {
  const command = one("#command");
  if (navigator.clipboard) {
    await navigator.clipboard.writeText(command.textContent);
  } else {
    getSelection().selectAllChildren(command); // a page that came by plain HTTP has no clipboard
    document.execCommand("copy");
  }
  one("#copy").textContent = "Copied";
  setTimeout(() => { one("#copy").textContent = "Copy"; }, 1500);
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || one("#keys").open) return;
  const typing = event.target.matches("input, select, textarea");
  if (typing && event.key === "Escape" && now.view === "samples") {
    event.target.blur();
    focusOn(sheet.focus, true);
  }
  if (typing) return;
  const done = keyOf(event);
  if (done) event.preventDefault();
}

/** Do what a key says; returns whether it says anything here. */
function keyOf(event) {
  const { key } = event;
  if (key === "?") one("#keys").showModal();
  else if (key === "t") otherTheme();
  else if (key === "/") focusFilter();
  else if (["1", "2", "3"].includes(key)) setMode(MODES[key - 1]);
  else if (now.view === "sample") return keyOfSample(key);
  else if (now.view === "samples") return keyOfSheet(key, event.target);
  else return false;
  return true;
}

function keyOfSample(key) {
  if (key === "Escape") location.hash = one("#back").hash;
  else if (key === "ArrowLeft" || key === "ArrowRight") {
    const link = one(key === "ArrowLeft" ? "#previous" : "#next");
    if (link.hasAttribute("href")) {
      location.hash = link.hash;
      show(); // at once: a second key may come before the event of the first
    }
  } else return false;
  return true;
}

function keyOfSheet(key, target) {
  if (key === "Escape") {
    location.hash = "#/overview";
    return true;
  }
  const place = moved(key);
  if (place === undefined) return false;
  if (one("#sheet").contains(target)) focusOn(place, true);
  else if (key.startsWith("Arrow") && (target === document.body || target === one("#main"))) focusOn(sheet.focus, true);
  else return false;
  return true;
}

function focusFilter() {
  if (now.view !== "samples") location.hash = address("samples", now.words);
  // The view changes when the address has arrived, a task later.
  setTimeout(() => one('[name="find"]').select());
}

one("#theme").addEventListener("click", otherTheme);
if (storedTheme() in THEMES) document.documentElement.dataset.theme = storedTheme();
