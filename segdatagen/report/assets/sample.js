// The page of one sample: its pictures, its classes, its source, and what is needed to make it again.

let shownSample = -1; // index, so that what arrives late does not land on another page

/** Where back, previous and next lead; `list` is the order in which they go. */
function showSteps(index, list, words) {
  const place = list.indexOf(index);
  say("position", place < 0 ? "not among those that the filter lets through" : `${number(place + 1)} of ${number(list.length)}`);
  one("#back").href = address("samples", words);
  step("#previous", place > 0 ? list[place - 1] : -1, words);
  step("#next", place >= 0 && place < list.length - 1 ? list[place + 1] : -1, words);
}

/** Show a sample. */
function showSample(index) {
  shownSample = index;
  const { columns, statuses, methods, sources } = report;
  const root = one("#sample");
  const status = statuses[columns.status[index]];
  say("id", columns.id[index]);
  say("status", status);
  one('[data-fact="status"]').className = `badge ${status}`;
  say("attempt", columns.attempt[index]);
  say("problem", "");
  showCommand(index, status);
  fillPairs("#recipe", report.recipes.find(([name]) => name === methods[columns.method[index]])?.[1] ?? []);
  fillPairs("#attempt", report.attempts.find(([n]) => n === columns.attempt[index])?.[1] ?? [["attempt", "not recorded"]]);
  fillPairs("#facts", factsOf(index, {}));
  one("#pixel").textContent = "";
  for (const stage of all(".stage", root)) stage.replaceChildren();
  for (const caption of all("figcaption", root)) caption.textContent = "";
  one("#sample-classes").replaceChildren();
  showOrigin(index, sources.ids[columns.source[index]]);
  showMade(index);
}

function say(name, text) {
  const root = one(`[data-fact="${name}"]`);
  root.textContent = text;
  if (name === "problem") root.hidden = !text;
}

function step(selector, index, words) {
  const link = one(selector);
  if (index < 0) link.removeAttribute("href");
  else link.href = address(`sample/${report.columns.id[index]}`, words);
  link.setAttribute("aria-disabled", String(index < 0));
}

function showCommand(index, status) {
  const failed = status === "failed";
  one("#command").textContent = failed ? "segdatagen run JOB.yaml --retry-failed" : `${report.regenerate} ${report.columns.id[index]} --out again`;
  one("#copy").hidden = failed;
  one("#command-note").textContent = failed
    ? "It failed, so there is nothing to compare with. With the job file of the run this makes all failed samples again, with the same ids and seeds."
    : "Makes it again with the batch shape that its row recorded, and compares. Relative paths start where the run was started.";
}

function fillPairs(selector, rows) {
  one(selector).replaceChildren(
    ...rows.map(([name, value]) => element("div", {}, element("dt", { text: name }), element("dd", { text: value }))),
  );
}

function factsOf(index, page) {
  const { columns, methods, sources, scores } = report;
  const size = columns.width[index] ? `${columns.width[index]} × ${columns.height[index]}` : null;
  const rows = [
    ["reason", columns.why[index]],
    ["sample id", columns.id[index]],
    ["source", sources.ids[columns.source[index]]],
    ["method", methods[columns.method[index]]],
    ["variant", columns.variant[index]],
    ["seed", page.seed],
    ["round", columns.round[index]],
    ["attempt", columns.attempt[index]],
    ["microbatch", page.microbatch],
    ["asked for by class", page.target],
    ["size", size],
    ["seconds", columns.seconds[index] === null ? null : number(columns.seconds[index])],
    ...scores.map(([name, values]) => [spoken(name), values[index] === null ? null : number(values[index], 6)]),
    ["caption", columns.caption[index]],
    ["prompt", columns.prompt[index]],
    ["image hash", page.image_hash],
    ["mask hash", page.mask_hash],
  ];
  return rows.filter(([, value]) => value !== null && value !== undefined);
}

async function showMade(index) {
  const { columns, pages } = report;
  const [file, place] = columns.page[index];
  try {
    const [items, small] = await Promise.all([load(pages[file]), thumbnailOf(index)]);
    if (shownSample !== index) return;
    const page = items[place];
    fillPairs("#facts", factsOf(index, page));
    if (page.problem) say("problem", page.problem);
    const figure = one("#made");
    const size = { width: columns.width[index], height: columns.height[index] };
    fillStage(figure, page.image ?? small[0], page.mask ?? small[1], size, "the generated image");
    one("figcaption", figure).textContent = "Generated";
    if (!one("img", figure)) one(".stage", figure).append(element("p", { class: "why", text: columns.why[index] ?? "no picture" }));
    showClasses(page, columns.classes[index]);
  } catch (error) {
    if (shownSample === index) say("problem", error.message);
  }
}

async function showOrigin(index, id) {
  const { columns, sources } = report;
  const at = sources.places[columns.source[index]];
  const figure = one("#origin");
  const caption = one("figcaption", figure);
  if (!at) {
    caption.textContent = `Source ${id}: no picture${sources.problem ? `, ${sources.problem}` : ""}`;
    return;
  }
  try {
    const source = (await load(sources.files[at[0]]))[at[1]];
    if (shownSample !== index) return;
    fillStage(figure, source.image, source.mask, source, "the source");
    const without = source.image || source.problem ? "" : ", a mask without an image";
    const size = source.width ? `${source.width} × ${source.height}${without}` : "a caption without a mask";
    caption.textContent = `Source ${id}, ${size}${source.problem ? `: ${source.problem}` : ""}`;
  } catch (error) {
    if (shownSample === index) caption.textContent = error.message;
  }
}

/** Layers of a picture, and a canvas above them that shows one class alone. */
function fillStage(figure, image, mask, { width, height }, words) {
  const stage = one(".stage", figure);
  stage.style.setProperty("--ratio", width && height ? width / height : 1);
  stage.classList.toggle("enlarged", Math.max(width ?? 0, height ?? 0) < 400);
  stage.replaceChildren(...layered(image, mask, words), element("canvas", { class: "lens", hidden: true }));
}

/** How many segments a class has, and how many of them are crowds; nothing where a mask is semantic. */
function segmentsOf(segments, channel) {
  const [, count, crowds] = segments.find(([of]) => of === channel) ?? [channel, 0, 0];
  const crowded = crowds ? ` (${number(crowds)} of them ${crowds === 1 ? "a crowd" : "crowds"})` : "";
  return count ? `, ${number(count)} ${count === 1 ? "segment" : "segments"}${crowded}` : "";
}

/** Classes of the mask with their pixels, segments and scores, most first; pressing one dims all others. */
function showClasses({ pixels, scores, segments }, counted) {
  const total = pixels.reduce((sum, [, count]) => sum + count, 0);
  const rows = [...pixels].sort((a, b) => b[1] - a[1]).map(([channel, count]) => {
    const [name, colour, id] = channel < 0 ? ["an id that the label set does not know", "transparent", ""] : report.classes[channel];
    const few = counted.includes(channel) ? "" : `, fewer than ${report.minPixels}: does not count`;
    const swatch = element("span", { class: "swatch", "aria-hidden": "true" });
    swatch.style.background = colour;
    const share = element("span", { class: "share", "aria-hidden": "true" });
    share.style.setProperty("--share", `${(100 * count) / total}%`);
    const own = scores.filter(([of]) => of === channel).map(([, score, value]) => `, ${spoken(score)} ${number(value, 3)}`);
    const figures = `${number(count)} px, ${number((100 * count) / total, 1)}%${few}${segmentsOf(segments, channel)}${own.join("")}`;
    const button = element(
      "button",
      { type: "button", "aria-pressed": "false", title: `Show ${name} alone (id ${id})` },
      swatch, element("span", { class: "name", text: name }), element("span", { class: "figures", text: figures }), share,
    );
    button.addEventListener("click", () => {
      const pressed = button.getAttribute("aria-pressed") !== "true";
      for (const other of all("#sample-classes button")) other.setAttribute("aria-pressed", "false");
      button.setAttribute("aria-pressed", String(pressed));
      for (const stage of all("#sample .stage")) lens(stage, pressed ? colour : null);
    });
    return element("li", {}, button);
  });
  one("#sample-classes").replaceChildren(...rows);
}

/** Pixels of the painted mask of a stage; null before it is there. Colours are exact: masks are PNG. */
function pixelsOf(stage) {
  const mask = one(".mask", stage);
  if (!mask || !mask.naturalWidth) return null;
  const canvas = element("canvas", { width: mask.naturalWidth, height: mask.naturalHeight });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(mask, 0, 0);
  return context.getImageData(0, 0, canvas.width, canvas.height);
}

const hex = (data, at) => `#${[0, 1, 2].map((i) => data[at + i].toString(16).padStart(2, "0")).join("")}`;

/** Dim what is not of a colour; null shows everything. */
function lens(stage, colour) {
  const canvas = one(".lens", stage);
  const pixels = colour && pixelsOf(stage);
  if (!canvas) return;
  canvas.hidden = !pixels;
  if (!pixels) return;
  const { data } = pixels;
  const [red, green, blue] = [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
  for (let at = 0; at < data.length; at += 4) {
    const same = data[at] === red && data[at + 1] === green && data[at + 2] === blue;
    data.set(same ? [0, 0, 0, 0] : [10, 12, 16, 200], at);
  }
  canvas.width = pixels.width;
  canvas.height = pixels.height;
  canvas.getContext("2d").putImageData(pixels, 0, 0);
}

/** Say which class is below the pointer. */
function readPixel(event) {
  const stage = event.target.closest(".stage");
  const output = one("#pixel");
  const pixels = stage && pixelsOf(stage);
  if (!pixels) {
    output.textContent = "";
    return;
  }
  const box = stage.getBoundingClientRect();
  const x = Math.min(pixels.width - 1, Math.max(0, Math.floor(((event.clientX - box.left) / box.width) * pixels.width)));
  const y = Math.min(pixels.height - 1, Math.max(0, Math.floor(((event.clientY - box.top) / box.height) * pixels.height)));
  const colour = hex(pixels.data, 4 * (y * pixels.width + x));
  const found = [...report.classes, ...report.unclassed].find(([, known]) => known === colour);
  output.textContent = `${x}, ${y}: ${found ? found[0] : colour}`;
}
