// Data arrive as scripts that call `segdatagen`: a page that was opened from a disk may not fetch.

const MAX_FILES = 64; // kept in memory; of a megabyte each, or the thumbnails of 64 samples

/** @type {Map<string, Promise<any[]>>} Files by name, the one that was wanted last at the end. */
const files = new Map();
/** @type {Map<string, any[]>} Contents that arrived, until whoever asked takes them. */
const arrived = new Map();

/** Everything that the page begins with: see `Page.data` in page.py. */
let report;

window.segdatagen = {
  begin(data) {
    report = data;
    start();
  },
  arrive(items) {
    arrived.set(decodeURIComponent(document.currentScript.src.split("/").pop()), items);
  },
};

/** The items of a data file; loaded once, and again after it had to make room. */
function load(name) {
  let file = files.get(name);
  if (file) {
    files.delete(name);
  } else {
    file = new Promise((resolve, reject) => {
      const script = document.createElement("script");
      script.src = name;
      script.onload = () => {
        resolve(arrived.get(name));
        arrived.delete(name);
        script.remove();
      };
      script.onerror = () => {
        files.delete(name);
        script.remove();
        reject(new Error(`${name} cannot be read. If the report was written again meanwhile, reload the page.`));
      };
      document.head.append(script);
    });
  }
  files.set(name, file);
  if (files.size > MAX_FILES) files.delete(files.keys().next().value);
  return file;
}

/** An element with properties (`class`, `text` and attributes) and children. Text never becomes markup. */
function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "text") made.textContent = value;
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children);
  return made;
}

const one = (selector, root = document) => root.querySelector(selector);
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const number = (value, digits = 3) =>
  value.toLocaleString("en", { maximumFractionDigits: digits, useGrouping: true });

/** A picture of two layers; the mode that an ancestor has decides which is seen. */
function layered(image, mask, words) {
  const made = [];
  if (image) made.push(element("img", { class: "image", src: image, alt: words, decoding: "async", draggable: "false" }));
  if (mask) {
    made.push(element("img", { class: "mask", src: mask, alt: image ? "" : words, decoding: "async", draggable: "false" }));
  }
  return made;
}
