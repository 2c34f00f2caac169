// The page of `nlf serve`. Texts of models are hostile: they reach the page by textContent alone.

const DRAWS = 25; // completions under each tag in the plot
const PAUSE = 250; // ms after the last turn of a dial until the completion is written again
const ORDER = ["base", "tagged", "plain", "distilled"]; // of the columns
const STEPS = 4; // shades on each side of the middle
const GUIDANCE = 4; // the end of the slider; a request may ask for more
const SVG = "http://www.w3.org/2000/svg";

const by = (id) => document.getElementById(id);
const length = (text) => [...text].length; // in code points, as the server counts
const shown = (value) => value?.toFixed(2) ?? "unknown";
const scored = (value) => (value === null ? "not scored" : `score ${value.toFixed(2)}`);

/** An element with its attributes and its children, which are elements or texts. */
function make(name, attributes = {}, ...children) {
  const made = ["svg", "g", "line", "circle", "rect", "text"].includes(name)
    ? document.createElementNS(SVG, name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

const page = { models: [], columns: [], dials: [], scorer: null, key: "", found: null, runs: new Set(), wrote: false };

// ---- the server ---------------------------------------------------------------------------------------------------

async function ask(path, body, signal) {
  const headers = page.key ? { Authorization: `Bearer ${page.key}` } : {};
  if (body) headers["Content-Type"] = "application/json";
  const answer = await fetch(path, { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body), signal });
  if (answer.ok) return answer;
  if (answer.status === 401) askForKey();
  const told = await answer.json().catch(() => ({}));
  throw new Error(told.error?.message ?? `the server answered with status ${answer.status}`);
}

const json = async (...request) => (await ask(...request)).json();

/** The events of a stream. */
async function* events(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) throw new Error("the server ended the stream");
      const parts = (rest + value).split("\n\n");
      rest = parts.pop();
      for (const part of parts) {
        const data = part.slice("data: ".length);
        if (data === "[DONE]") return;
        const event = JSON.parse(data);
        if (event.error) throw new Error(event.error.message);
        yield event;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

function askForKey() {
  by("key-form").hidden = false;
  by("key").focus();
}

// ---- what is asked ------------------------------------------------------------------------------------------------

const tagged = () => page.models.find((model) => model.tags.length) ?? page.models[0];
const chosenTags = () => page.dials.map((dial) => dial.tags[dial.input.valueAsNumber]);

const conversation = (model) => {
  const prompt = by("prompt").value;
  return model.conversational ? { messages: [{ role: "user", content: prompt }] } : { prompt };
};
const pathOf = (model) => (model.conversational ? "/v1/chat/completions" : "/v1/completions");

/** The body of a request for completions by a model. */
function request(model, tags = chosenTags()) {
  const body = { model: model.id, ...conversation(model), max_tokens: by("length").valueAsNumber, seed: by("seed").valueAsNumber };
  if (by("temperature").valueAsNumber !== 1) body.temperature = by("temperature").valueAsNumber;
  if (!model.tags.length) return body;
  body.tag = tags.length === 1 ? tags[0] : tags;
  const guidance = by("guidance").valueAsNumber;
  if (guidance) body.guidance_scale = guidance;
  return body;
}

/** How a model is asked, in words. */
function condition(model) {
  if (!model.tags.length) return "no tag";
  const guidance = by("guidance").valueAsNumber;
  return chosenTags().join(", ") + (guidance ? `, guidance ${guidance}` : "");
}

// ---- a column: a completion of a model, and its scores ------------------------------------------------------------

class Column {
  constructor(model) {
    this.model = model;
    this.score = make("span");
    this.condition = make("p", { class: "note" });
    this.text = make("p", { class: "text", dir: "auto" });
    this.details = make("p", { class: "note" });
    this.element = make("article", { "aria-label": model.id }, make("h3", {}, model.id, this.score), this.condition, this.text, this.details);
    this.element.classList.toggle("dialed", model.tags.length > 0);
    this.pieces = []; // { span, end, rated }
  }

  stop() {
    this.stopper?.abort();
  }

  async write() {
    this.stop();
    const stopper = (this.stopper = new AbortController());
    this.asked = request(this.model);
    this.begin();
    page.runs.add(this);
    try {
      const chat = this.model.conversational;
      const body = { ...this.asked, stream: true, logprobs: chat ? true : 0 };
      for await (const event of events(await ask(pathOf(this.model), body, stopper.signal))) {
        for (const choice of event.choices) this.add(chat ? choice.delta.content : choice.text, choice.logprobs);
        if (page.scorer?.beginnings) this.rate(stopper).catch(() => {}); // the last call tells an error
      }
      await page.found;
      if (page.scorer) await this.finish(stopper);
    } catch (error) {
      if (this.stopper !== stopper) return; // the column is being written again
      this.end = stopper.signal.aborted ? "stopped" : "failed";
      if (this.end === "failed") fail(`${this.model.id}: ${error.message}`);
    } finally {
      if (this.stopper === stopper) page.runs.delete(this);
    }
  }

  begin() {
    this.pieces = [];
    this.end = "done";
    this.value = undefined;
    this.condition.textContent = condition(this.model);
    this.score.textContent = this.details.textContent = "";
    this.text.replaceChildren(make("span", { class: "given" }, "…"));
  }

  /** Show a piece of the completion, token by token where the tokens are known. */
  add(text, logprobs) {
    if (!text) return;
    if (!this.pieces.length) this.text.replaceChildren();
    for (const token of tokensOf(text, logprobs)) {
      const span = make("span", {}, token);
      this.text.append(span);
      this.pieces.push({ span, end: (this.pieces.at(-1)?.end ?? 0) + length(token), rated: false });
    }
  }

  /** Colour the tokens that have no colour yet. One request at a time is under way; `last` waits for it. */
  async rate(stopper, last = false) {
    if (this.rating && !last) return;
    await this.rating?.catch(() => {});
    this.rating = this.rateNow(stopper, last).finally(() => (this.rating = null));
    return this.rating;
  }

  async rateNow(stopper, last) {
    const open = this.pieces.filter((piece) => !piece.rated);
    if ((!open.length && !last) || stopper.signal.aborted) return;
    const whole = this.pieces.map((piece) => piece.span.textContent).join("");
    const ends = page.scorer.beginnings ? { ends: [open.map((piece) => piece.end)] } : {};
    const body = { ...this.sent(), completions: [whole], ...ends };
    const found = await json("/nlf/score", body, stopper.signal);
    if (stopper.signal.aborted) return;
    found.beginnings[0].forEach((value, i) => this.colour(open[i], value));
    return found;
  }

  /** The prompt that the completion continues, which may no longer be the one in the form. */
  sent() {
    const { prompt, messages } = this.asked;
    return messages ? { messages } : { prompt };
  }

  colour(piece, value) {
    piece.rated = true;
    if (value === null) return;
    const { low, high } = page.scorer;
    const place = Math.max(-1, Math.min(1, (2 * (value - low)) / (high - low) - 1));
    const step = Math.round(place * STEPS);
    if (step) piece.span.className = step > 0 ? `up${step}` : `down${-step}`;
    piece.span.title = `score so far: ${shown(value)}`;
  }

  async finish(stopper) {
    const found = await this.rate(stopper, true);
    if (!found) return;
    this.value = found.rewards[0];
    this.score.textContent = scored(this.value);
    const known = Object.entries(found.attributes).filter(([, values]) => values[0] !== null);
    this.details.textContent = known.map(([name, values]) => `${name.replaceAll("_", " ")} ${shown(values[0])}`).join(", ");
  }
}

/** The texts of the tokens of a piece; its words where the tokens are unknown or do not make up the text. */
function tokensOf(text, logprobs) {
  const told = logprobs?.tokens ?? logprobs?.content?.map((each) => each.token) ?? [];
  const found = [];
  let rest = text;
  for (const token of told) {
    if (!token || !rest.startsWith(token)) break;
    found.push(token);
    rest = rest.slice(token.length);
  }
  return rest ? text.match(/\s*\S+|\s+$/g) ?? [text] : found;
}

// ---- writing ------------------------------------------------------------------------------------------------------

/** Write the completions of some columns. */
async function write(columns = page.columns) {
  if (!columns.length || !by("form").reportValidity()) return;
  fail("");
  page.wrote = true;
  remember();
  const writing = columns.map((column) => column.write());
  by("stop").disabled = false;
  tell("Writing…");
  await Promise.all(writing);
  if (page.runs.size) return; // a newer call tells the end
  by("stop").disabled = true;
  const ends = columns.map(({ model, value, end }) => `${model.id}: ${value === undefined ? end : scored(value)}`);
  tell(`Finished. ${ends.join("; ")}.`);
}

function stop() {
  page.columns.forEach((column) => column.stop());
  page.drawing?.abort();
}

const tell = (text) => (by("status").textContent = text);
const fail = (text) => (by("error").textContent = text);

// ---- scores under each tag ----------------------------------------------------------------------------------------

/** Draw completions under each tag of each dial, the other dials left where they are, and plot their scores. */
async function draw() {
  if (!by("form").reportValidity()) return;
  fail("");
  const drawing = (page.drawing = new AbortController());
  by("draw").disabled = true;
  by("stop").disabled = false;
  by("plots").replaceChildren();
  try {
    const base = page.models.find((model) => model.id === "base");
    const first = base ? [{ name: "base", class: "base", values: await drawn(base, chosenTags(), drawing) }] : [];
    for (const [i, dial] of page.dials.entries()) {
      const rows = [...first];
      const figure = make("figure");
      by("plots").append(figure);
      for (const tag of dial.tags) {
        tell(`Drawing ${DRAWS} completions under ${tag}…`);
        rows.push({ name: tag, class: "tag", values: await drawn(tagged(), chosenTags().with(i, tag), drawing) });
        plot(figure, dial.name, rows);
      }
    }
    tell("The plot is complete.");
  } catch (error) {
    if (!drawing.signal.aborted) fail(error.message);
    tell("");
  } finally {
    by("draw").disabled = false;
    by("stop").disabled = page.runs.size === 0;
  }
}

/** The scores of completions under tags, from low to high. */
async function drawn(model, tags, drawing) {
  const body = { ...request(model, tags), n: DRAWS };
  const { choices } = await json(pathOf(model), body, drawing.signal);
  const completions = choices.map((choice) => choice.text ?? choice.message.content);
  const { rewards } = await json("/nlf/score", { ...conversation(model), completions }, drawing.signal);
  return rewards.filter((value) => value !== null).sort((a, b) => a - b);
}

const median = (sorted) => (sorted.length ? (sorted[(sorted.length - 1) >> 1] + sorted[sorted.length >> 1]) / 2 : null);

/** A row of dots for each tag, on one axis. Places are in per cent, so the plot fits every width. */
function plot(figure, name, rows) {
  const all = rows.flatMap((row) => row.values);
  const low = Math.min(page.scorer.low, ...all), high = Math.max(page.scorer.high, ...all);
  const x = (value) => `${((100 * (value - low)) / (high - low)).toFixed(2)}%`;
  const height = 46;
  const svg = make("svg", { height: rows.length * height + 24, role: "img", "aria-label": `Scores of ${DRAWS} completions under each tag of ${name}; the table below has the numbers` });
  rows.forEach((row, i) => {
    const top = i * height, middle = top + 30;
    const group = make("g", { class: row.class }, make("text", { x: 0, y: top + 13 }, row.name));
    group.append(make("text", { x: "100%", y: top + 13, class: "end" }, median(row.values)?.toFixed(2) ?? "none scored"));
    group.append(make("line", { x1: 0, x2: "100%", y1: middle, y2: middle, class: "axis" }));
    row.values.forEach((value, k) => group.append(make("circle", { cx: x(value), cy: middle + ((k * 3) % 7) - 3, r: 4 })));
    if (row.values.length) group.append(make("rect", { x: x(median(row.values)), y: middle - 9, width: 3, height: 18, class: "median" }));
    svg.append(group);
  });
  const bottom = rows.length * height + 14;
  svg.append(make("text", { x: 0, y: bottom }, low.toFixed(2)), make("text", { x: "100%", y: bottom, class: "end" }, high.toFixed(2)));
  const open = figure.querySelector("details")?.open ?? false;
  figure.replaceChildren(make("figcaption", {}, name), make("div", { class: "frame" }, svg), tableOf(rows, open));
}

function tableOf(rows, open) {
  const line = (row) => [row.values.length, ...[row.values[0], median(row.values), row.values.at(-1)].map((value) => value?.toFixed(3) ?? "")];
  const head = ["", "scored", "lowest", "median", "highest"].map((text) => (text ? make("th", { scope: "col" }, text) : make("td")));
  const body = rows.map((row) => make("tr", {}, make("th", { scope: "row" }, row.name), ...line(row).map((each) => make("td", {}, `${each}`))));
  const table = make("table", {}, make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...body));
  return make("details", open ? { open: "" } : {}, make("summary", {}, "As a table"), table);
}

// ---- the same from a program --------------------------------------------------------------------------------------

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`; // for a shell

function curl(model, body) {
  const key = page.key ? " -H \"Authorization: Bearer $NLF_API_KEY\"" : "";
  return `curl ${location.origin}${pathOf(model)} -H 'Content-Type: application/json'${key} \\\n  -d ${quoted(JSON.stringify(body))}`;
}

function python(model, body) {
  const { tag, guidance_scale, ...standard } = body;
  const own = Object.fromEntries(Object.entries({ tag, guidance_scale }).filter(([, value]) => value !== undefined));
  const values = Object.entries(standard).map(([name, value]) => `${name}=${JSON.stringify(value)}`);
  if (Object.keys(own).length) values.push(`extra_body=${JSON.stringify(own)}`);
  const key = page.key ? "os.environ[\"NLF_API_KEY\"]" : "\"none\"";
  const [kind, text] = model.conversational ? ["chat.completions", "message.content"] : ["completions", "text"];
  return `${page.key ? "import os\n\n" : ""}from openai import OpenAI\n\nclient = OpenAI(base_url=${JSON.stringify(`${location.origin}/v1`)}, api_key=${key})\n`
    + `answer = client.${kind}.create(${values.join(", ")})\nprint(answer.choices[0].${text})`;
}

async function copy(text, what) {
  try {
    await navigator.clipboard.writeText(text);
    tell(`Copied ${what}.`);
  } catch {
    tell(`This browser does not let the page copy; select ${what} by hand.`);
  }
}

// ---- the state, which the link holds ------------------------------------------------------------------------------

/** Write the state into the address, and show the requests of a program. */
function remember() {
  const state = new URLSearchParams({ prompt: by("prompt").value });
  chosenTags().forEach((tag) => state.append("tag", tag));
  for (const id of ["guidance", "length", "temperature", "seed"]) if (by(id)) state.set(id, by(id).value);
  history.replaceState(null, "", `#${state}`);
  const model = tagged(), body = request(model);
  by("curl").textContent = curl(model, body);
  by("python").textContent = python(model, body);
}

/** Take the state from the address; false if there is none. */
function restore() {
  const state = new URLSearchParams(location.hash.slice(1));
  if (!state.has("prompt")) return false;
  by("prompt").value = state.get("prompt");
  state.getAll("tag").forEach((tag, i) => {
    const place = page.dials[i]?.tags.indexOf(tag) ?? -1;
    if (place >= 0) page.dials[i].input.value = place;
  });
  for (const id of ["guidance", "length", "temperature", "seed"]) if (by(id) && state.get(id)) by(id).value = state.get(id);
  showDials();
  return true;
}

// ---- the dials ----------------------------------------------------------------------------------------------------

function slider(id, name, ends, attributes) {
  const input = make("input", { type: "range", id, ...attributes });
  const output = make("output", { for: id });
  const marks = ends.map((end) => make("small", { "aria-hidden": "true" }, end));
  by("dials").append(make("div", { class: "dial" }, make("label", { for: id }, name), output, input, ...marks));
  input.addEventListener("input", turned);
  return { input, output };
}

function buildDials() {
  const model = tagged();
  by("dials").replaceChildren();
  const schemes = Object.entries(model.attributes).length ? Object.entries(model.attributes) : [["Tag", model.tags]];
  page.dials = model.tags.length ? schemes.map(([name, tags], i) => {
    const attributes = { min: 0, max: tags.length - 1, step: 1, value: 0 };
    return { name, tags, ...slider(`tag${i}`, name, [tags[0], tags.at(-1)], attributes) };
  }) : [];
  const worst = page.dials.map((dial) => dial.tags.at(-1)).join(", ");
  if (worst) page.guidance = slider("guidance", `Guidance away from ${worst}`, ["off", "strong"], { min: 0, max: GUIDANCE, step: 0.25, value: 0 });
  showDials();
}

function showDials() {
  for (const { input, output, tags } of page.dials) {
    output.textContent = tags[input.valueAsNumber];
    input.setAttribute("aria-valuetext", output.textContent);
  }
  if (!page.guidance) return;
  const value = page.guidance.input.valueAsNumber;
  page.guidance.output.textContent = value ? `${value}` : "off";
  page.guidance.input.setAttribute("aria-valuetext", page.guidance.output.textContent);
}

/** A dial was turned: the models that it changes write again, if anything is written yet. */
function turned() {
  showDials();
  remember();
  clearTimeout(page.pause);
  if (page.wrote) page.pause = setTimeout(() => write(page.columns.filter((column) => column.model.tags.length)), PAUSE);
}

// ---- the start ----------------------------------------------------------------------------------------------------

async function start() {
  const settings = await json("/nlf/settings");
  by("key-form").hidden = true;
  by("form").hidden = by("results").hidden = false;
  page.models = settings.models;
  by("length").max = settings.max_tokens;
  by("length").value = Math.min(settings.max_completion_length, settings.max_tokens);
  by("about").textContent = `${tagged().root}: ${page.models.map((model) => model.id).join(", ")}`;
  buildDials();
  const place = (model) => (ORDER.indexOf(model.id) + ORDER.length + 1) % (ORDER.length + 1); // other names come first
  page.columns = [...page.models].sort((a, b) => place(a) - place(b)).map((model) => new Column(model));
  by("columns").replaceChildren(...page.columns.map((column) => column.element));
  page.columns.forEach((column) => (column.condition.textContent = condition(column.model)));
  const restored = restore();
  remember();
  page.found = findScorer().catch((error) => fail(error.message));
  if (restored) await write();
}

async function findScorer() {
  const found = await json("/nlf/score");
  if (!found.scorers.length) return;
  page.scorer = found;
  by("about").textContent += `; scored by ${found.scorers.join(" + ")}`;
  by("legend").hidden = !found.beginnings;
  by("distribution").hidden = !page.dials.length;
}

function listen() {
  by("form").addEventListener("submit", (event) => { event.preventDefault(); write(); });
  by("form").addEventListener("change", () => page.models.length && remember());
  by("another").addEventListener("click", () => { by("seed").value = by("seed").valueAsNumber + 1; write(); });
  by("stop").addEventListener("click", stop);
  by("draw").addEventListener("click", draw);
  by("draw").textContent = `Draw ${DRAWS}`;
  by("link").addEventListener("click", () => { remember(); copy(location.href, "the link in the address bar"); });
  for (const button of document.querySelectorAll("[data-copies]")) {
    button.addEventListener("click", () => copy(by(button.dataset.copies).textContent, `the ${button.dataset.copies} request`));
  }
  for (const button of document.querySelectorAll("#examples button")) {
    button.addEventListener("click", () => { by("prompt").value = button.textContent; write(); });
  }
  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) by("form").requestSubmit();
    if (event.key === "Escape") stop();
  });
  window.addEventListener("hashchange", () => { if (restore()) write(); });
  by("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    page.key = by("key").value;
    fail("");
    start().catch((error) => fail(error.message));
  });
}

listen();
start().catch((error) => { by("about").textContent = ""; fail(error.message); });
