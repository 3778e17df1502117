// The playground's page. What a model wrote, and what a person typed, goes into the document as text and never as markup.
"use strict";

const $ = (id) => document.getElementById(id);
const token = new URLSearchParams(location.search).get("token");
const PACES = [20, 50, 100, 200, 500, null]; // characters a second; null: as fast as they come
const LEVELS = [1, 2, 4, 6, 9]; // bits
// What would be obeyed and not seen: control characters, bidirectional marks, half characters. Joiners are a part of letters and emoji.
const HIDDEN = /[\p{Cc}\p{Cf}\p{Cs}\p{Co}\p{Cn}\p{Zl}\p{Zp}]/u;
const STAYS = /[\n\t\u200c\u200d\u{e0020}-\u{e007f}]/u;
const MARK = /\p{M}/u; // belongs to the letter before it
const SPOKEN = 2500; // milliseconds of a text that a screen reader is told together

let models = [];
let running = null; // the AbortController of what is being asked
let copied = ""; // what the copy button copies
let address = null; // of the file that is shown

// ---- text

function escaped(character) {
  return `\\u{${character.codePointAt(0).toString(16).padStart(4, "0")}}`;
}

/** Put text behind what a node holds, with what hides in it written out. */
function say(node, text) {
  let plain = "";
  for (const character of text) {
    if (!HIDDEN.test(character) || STAYS.test(character)) {
      plain += character;
      continue;
    }
    node.append(plain, made("span", "escape", escaped(character)));
    plain = "";
  }
  node.append(plain);
  return node;
}

function made(tag, name, text) {
  const node = document.createElement(tag);
  if (name) node.className = name;
  if (text !== undefined) node.textContent = text;
  return node;
}

function shownSpace(character) {
  return { "\n": "line end", " ": "space", "\t": "tab", "\u3000": "wide space" }[character] ?? character;
}

function level(bits) {
  return LEVELS.filter((least) => bits >= least).length;
}

/** Characters coloured by what each cost the model. */
function colour(node, text, bits) {
  const drawn = document.createDocumentFragment();
  const characters = Array.from(text);
  let last = null;
  characters.forEach((character, at) => {
    if (last && MARK.test(character)) {
      last.append(character);
      return;
    }
    const cost = bits[at];
    const span = made("span", cost === null || cost === undefined ? "" : `s${level(cost)}`);
    if (cost !== null && cost !== undefined) span.title = `${cost.toFixed(2)} bits`;
    last = say(span, character);
    drawn.append(span);
  });
  node.append(drawn);
}

function share(probability) {
  return probability >= 0.0005 ? `${(100 * probability).toFixed(1)} %` : probability.toExponential(0);
}

// ---- asking

function headers(more) {
  return token === null ? more : { ...more, Authorization: `Bearer ${token}` };
}

async function ask(path, options) {
  const answer = await fetch(path, { ...options, headers: headers(options.headers ?? {}), credentials: "omit", cache: "no-store" });
  if (answer.ok) return answer;
  let told = `the server answered ${answer.status}`;
  try {
    told = (await answer.json()).error ?? told;
  } catch {
    // not our server's words: the number is all there is
  }
  throw new Error(told);
}

function post(path, asked, signal) {
  const body = JSON.stringify(asked);
  return ask(path, { method: "POST", headers: { "Content-Type": "application/json" }, body, signal });
}

/** Server-sent events of an answer, as [name, value]. */
async function* events(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    held += value;
    let end;
    while ((end = held.indexOf("\n\n")) >= 0) {
      const lines = held.slice(0, end).split("\n");
      held = held.slice(end + 2);
      const name = lines.find((line) => line.startsWith("event: "))?.slice(7);
      const data = lines.filter((line) => line.startsWith("data: ")).map((line) => line.slice(6)).join("\n");
      yield [name, JSON.parse(data)];
    }
  }
}

// ---- what is shown

function clear() {
  for (const id of ["output", "warnings", "error", "status", "spoken"]) $(id).replaceChildren();
  for (const id of ["again", "legend"]) $(id).hidden = true;
  $("copy").disabled = true;
  copied = "";
  if (address) URL.revokeObjectURL(address);
  address = null;
}

function warn(warnings) {
  for (const warning of warnings ?? []) say($("warnings").appendChild(made("p")), warning);
}

function ready(text) {
  copied = text;
  $("copy").disabled = text === "";
}

/** What a screen reader is told: some of the text at a time, where it can be broken. */
class Spoken {
  constructor() {
    this.waiting = "";
    this.last = performance.now();
  }
  add(text, done = false) {
    this.waiting += text;
    if (!done && (performance.now() - this.last < SPOKEN || !/\s|\p{P}/u.test(this.waiting))) return;
    const end = done ? this.waiting.length : Math.max(...[" ", "\n", "。", "，"].map((mark) => this.waiting.lastIndexOf(mark))) + 1;
    const said = end > 0 ? this.waiting.slice(0, end) : this.waiting;
    if (said) say($("spoken").appendChild(made("p")), said);
    while ($("spoken").childElementCount > 20) $("spoken").firstElementChild.remove();
    this.waiting = this.waiting.slice(said.length);
    this.last = performance.now();
  }
}

/** Run one thing at a time, until it is done, stopped, or wrong. */
async function run(work) {
  running?.abort();
  const own = new AbortController();
  running = own;
  clear();
  busy(true);
  if ($("result").getBoundingClientRect().top > innerHeight - 100) $("result").scrollIntoView(); // on a phone it is below the form
  try {
    await work(own.signal);
  } catch (error) {
    if (running !== own) return; // something else has begun, and the page is its
    if (own.signal.aborted) say($("status"), "Stopped.");
    else say($("error"), error.message);
  } finally {
    if (running === own) {
      running = null;
      busy(false);
    }
  }
}

function busy(is) {
  $("output").classList.toggle("busy", is);
  $("result").setAttribute("aria-busy", is);
  for (const button of document.querySelectorAll("button.stop")) button.disabled = !is;
}

// ---- the tasks

function number(id) {
  return $(id).value === "" ? undefined : Number($(id).value);
}

function sampleAsked() {
  const asked = { model: $("model").value, prime: $("prime").value, stream: true, temperature: number("temperature") };
  if (number("top-p") < 1) asked.top_p = number("top-p");
  if (number("top-k") > 0) asked.top_k = number("top-k");
  if ($("seed").value.trim()) asked.seed = Number($("seed").value.trim());
  const pace = PACES[number("pace")];
  if (pace !== null) asked.pace = pace;
  const verse = {
    form: $("form").value.trim() || undefined,
    acrostic: $("acrostic").value || undefined,
    acrostic_at: $("acrostic").value && $("acrostic-at").value === "end" ? "end" : undefined,
    lines: number("lines"),
    max_line: number("max-line"),
    rhyme: $("rhyme").checked || undefined,
    tone: $("tone").checked || undefined,
  };
  if (!(verse.form || verse.lines || verse.acrostic)) asked.length = number("length"); // else the verse knows its end
  return Object.assign(asked, verse);
}

const ENDS = { length: "as long as was asked for", end: "at its end", time: "at the time limit" };

async function write(signal) {
  const output = $("output");
  const spoken = new Spoken();
  const answer = await post("/v1/sample", sampleAsked(), signal);
  let text = "";
  $("legend").hidden = false;
  try {
    for await (const [name, told] of events(answer)) {
      if (name === "start") {
        warn(told.warnings);
        text = told.prime;
        say(output.appendChild(made("b")), told.prime);
        say($("seed-used"), String(told.seed));
      } else if (name === "piece") {
        text += told.text;
        colour(output, told.text, told.bits);
        spoken.add(told.text);
      } else if (name === "end") {
        const rate = Math.round(told.chars / Math.max(told.seconds, 0.001));
        say($("status"), `${told.chars} characters, ${ENDS[told.reason]}; ${rate.toLocaleString("en")} a second.`);
        if (told.command !== null) {
          say($("command"), told.command);
          $("command").dataset.raw = told.command;
          $("again").hidden = false;
        }
      } else if (name === "error") {
        throw new Error(told.error);
      }
    }
  } finally {
    spoken.add("", true);
    ready(text);
  }
}

async function fill(signal) {
  const told = await (await post("/v1/fill", { model: $("model").value, text: $("fill-text").value, top: number("top") }, signal)).json();
  warn(told.warnings);
  const places = new Set(told.blanks.map((blank) => blank.at));
  const list = $("output").appendChild(made("ol"));
  for (const filling of told.fillings) {
    const item = list.appendChild(made("li"));
    Array.from(filling.text).forEach((c, at) => {
      const node = places.has(at) ? item.appendChild(made("span", "filled")) : item;
      say(node, c);
    });
    item.append(made("span", "share", share(filling.probability)));
  }
  const rows = told.blanks.map((blank, at) => {
    const choices = blank.choices.map(({ char, probability }) => say(made("span"), `${shownSpace(char)} ${share(probability)}`));
    return [`blank ${at + 1}`, choices];
  });
  table(["alone", "would most likely be"], rows);
  ready(told.fillings[0]?.text ?? "");
  say($("spoken").appendChild(made("p")), told.fillings.map((one) => `${one.text}, ${share(one.probability)}`).join("; "));
}

function table(titles, rows) {
  const whole = $("output").appendChild(made("table"));
  const head = whole.appendChild(made("thead")).appendChild(made("tr"));
  for (const title of titles) {
    const cell = head.appendChild(made("th", "", title));
    cell.scope = "col";
  }
  const body = whole.appendChild(made("tbody"));
  for (const row of rows) {
    const line = body.appendChild(made("tr"));
    for (const cell of row) {
      const at = line.appendChild(made("td"));
      if (typeof cell !== "string") at.append(...[cell].flat());
      else say(at, cell);
    }
  }
}

async function classify(signal) {
  const told = await (await post("/v1/classify", { model: $("model").value, text: $("classify-text").value }, signal)).json();
  warn(told.warnings);
  const rows = told.labels.map(({ label, probability }) => {
    const meter = made("meter");
    meter.value = probability;
    meter.setAttribute("aria-label", `probability of ${label}`);
    return [label, meter, share(probability)];
  });
  table(["label", "probability", "in %"], rows);
  ready(told.label);
  say($("spoken").appendChild(made("p")), `${told.label}, ${share(told.labels[0].probability)}`);
}

async function tag(signal) {
  const told = await (await post("/v1/tag", { model: $("model").value, text: $("tag-text").value }, signal)).json();
  warn(told.warnings);
  if (told.marked !== null) {
    say($("output"), told.marked);
    ready(told.marked);
    say($("spoken").appendChild(made("p")), told.marked);
    return;
  }
  let copy = "";
  for (const { text, labels } of told.lines) {
    const line = $("output").appendChild(made("div"));
    const characters = Array.from(text);
    for (let at = 0; at < characters.length; ) {
      let end = at + 1;
      while (end < characters.length && sameSpan(labels[at], labels[end])) end += 1;
      const part = characters.slice(at, end).join("");
      if (labels[at] === "O") say(line, part);
      else {
        say(line.appendChild(made("span", "span")), part);
        say(line.appendChild(made("span", "label")), labels[at].replace(/^[BIMES]-/, ""));
      }
      at = end;
    }
    copy += characters.map((c, at) => `${c}\t${labels[at]}\n`).join("") + "\n";
  }
  ready(copy);
  say($("spoken").appendChild(made("p")), $("output").innerText);
}

/** Whether a character belongs to the span that began with another's label. */
function sameSpan(first, next) {
  if (first === "O" || next === "O") return first === next;
  const begins = /^[BS]-/.test(next);
  return !begins && first.replace(/^[BIMES]-/, "") === next.replace(/^[BIMES]-/, "");
}

function chosen(id) {
  const file = $(id).files[0];
  if (!file) throw new Error("no file yet: drop one, or choose one");
  return file;
}

function show(tag, file, name) {
  address = URL.createObjectURL(file);
  const node = made(tag);
  node.src = address;
  if (tag === "img") node.alt = name;
  else {
    node.controls = true;
    node.setAttribute("aria-label", name);
  }
  $("output").append(node);
}

async function sendFile(path, file, query, signal) {
  const kind = file.type || "application/octet-stream";
  const address = `${path}?${new URLSearchParams({ model: $("model").value, ...query })}`;
  return (await ask(address, { method: "POST", headers: { "Content-Type": kind }, body: file, signal })).json();
}

async function caption(signal) {
  const file = chosen("picture");
  show("img", file, "the picture that is told of");
  const told = await sendFile("/v1/caption", file, { beam: number("caption-beam"), num: number("num") }, signal);
  const list = $("output").appendChild(made("ol"));
  for (const one of told.captions) {
    const item = list.appendChild(made("li"));
    colour(item, one.text, one.bits);
    item.append(one.finished ? "" : "…", made("span", "share", share(one.confidence)));
  }
  $("legend").hidden = false;
  say($("status"), `${told.width} × ${told.height} pixels, ${told.seconds.toFixed(2)} seconds.`);
  ready(told.captions[0]?.text ?? "");
  say($("spoken").appendChild(made("p")), told.captions.map((one) => one.text).join("; "));
}

async function transcribe(signal) {
  const file = chosen("recording");
  show("audio", file, "the recording that is written down");
  const told = await sendFile("/v1/transcribe", file, { beam: number("transcribe-beam") }, signal);
  for (const piece of told.pieces) {
    const line = $("output").appendChild(made("div"));
    if (told.pieces.length > 1) line.append(made("span", "share", `${piece.start.toFixed(1)} s `));
    colour(line, piece.text, piece.bits);
  }
  $("legend").hidden = false;
  say($("status"), `${told.seconds.toFixed(1)} seconds of sound; ${share(told.confidence)} sure of its characters.`);
  ready(told.text);
  say($("spoken").appendChild(made("p")), told.text);
}

const TASKS = {
  lm: [write, "writes on from a prime"],
  fill: [fill, "finds what is missing"],
  classify: [classify, "tells what kind of text it reads"],
  tag: [tag, "labels each character"],
  caption: [caption, "tells what is in a picture"],
  transcribe: [transcribe, "writes down what is said"],
};

// ---- the controls

const VALUES = {
  temperature: (v) => (v === 0 ? "0 (greedy)" : v.toFixed(2)),
  "top-p": (v) => (v >= 1 ? "off" : v.toFixed(2)),
  "top-k": (v) => (v === 0 ? "off" : String(v)),
  pace: (v) => (PACES[v] === null ? "fastest" : `${PACES[v]}/s`),
};

function tellValue(slider) {
  const told = (VALUES[slider.id] ?? String)(Number(slider.value));
  $(`${slider.id}-value`).textContent = told;
  slider.setAttribute("aria-valuetext", told);
}

function choose() {
  running?.abort();
  const model = models.find((one) => one.name === $("model").value);
  for (const task of Object.keys(TASKS)) $(`form-${task}`).hidden = task !== model?.task;
  $("about").replaceChildren();
  if (!model) return;
  say($("about"), `${TASKS[model.task][1]}${model.characters ? `; knows ${model.characters.toLocaleString("en")} characters` : ""}`);
  if (model.task === "lm") {
    $("top-k").max = Math.min(100, model.characters);
    tellValue($("top-k"));
  }
  clear();
}

async function copy(text, button) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Without TLS a browser has no clipboard for a page of another machine; an old way is left.
    const area = document.body.appendChild(made("textarea"));
    area.value = text;
    area.select();
    document.execCommand("copy");
    area.remove();
    button.focus();
  }
  const before = button.textContent;
  button.textContent = "Copied";
  setTimeout(() => (button.textContent = before), 1200);
}

function prepare() {
  for (const slider of document.querySelectorAll("input[type=range]")) {
    slider.addEventListener("input", () => tellValue(slider));
    tellValue(slider);
  }
  for (const [task, [work]] of Object.entries(TASKS)) {
    $(`form-${task}`).addEventListener("submit", (event) => {
      event.preventDefault();
      run(work);
    });
  }
  for (const button of document.querySelectorAll("button.stop")) button.addEventListener("click", () => running?.abort());
  $("copy").addEventListener("click", () => copy(copied, $("copy")));
  $("copy-command").addEventListener("click", () => copy($("command").dataset.raw, $("copy-command")));
  $("model").addEventListener("change", choose);
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") running?.abort();
    const form = document.querySelector("form:not([hidden])");
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form?.requestSubmit();
  });
  for (const [id, task] of [["picture", "caption"], ["recording", "transcribe"]]) {
    const input = $(id);
    const drop = input.closest(".drop");
    input.addEventListener("change", () => input.files.length && $(`form-${task}`).requestSubmit());
    drop.addEventListener("dragover", (event) => {
      event.preventDefault();
      drop.classList.add("over");
    });
    drop.addEventListener("dragleave", () => drop.classList.remove("over"));
    drop.addEventListener("drop", (event) => {
      event.preventDefault();
      drop.classList.remove("over");
      if (!event.dataTransfer.files.length) return;
      input.files = event.dataTransfer.files;
      $(`form-${task}`).requestSubmit();
    });
  }
  for (const name of ["dragover", "drop"]) window.addEventListener(name, (event) => event.preventDefault()); // a miss does not leave the page
}

async function begin() {
  prepare();
  try {
    models = (await (await ask("/v1/models", {})).json()).models;
  } catch (error) {
    say($("error"), error.message);
    return;
  }
  for (const model of models) {
    const option = made("option");
    option.value = model.name;
    say(option, `${model.name} (${model.task})`);
    option.textContent = option.textContent; // an option has no markup
    $("model").append(option);
  }
  choose();
}

begin();
