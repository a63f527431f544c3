"use strict";

// The explorer: shows what was computed beforehand and lies in the page as JSON, see page.py.
// What is chosen is one object, `state`; every control changes it and calls `show`, which draws all of it anew.

const part = (id) => document.getElementById(id);
const percent = (share) => `${Math.round(100 * share)}%`;
const sum = (numbers) => numbers.reduce((total, number) => total + number, 0);
const LETTERS = "ABCDEFGHI";
const ATTACKS = { all: "all frames", one: "one frame, 8 × ε", box: "one frame, anything" };
const TITLES = {
  "standard": "baseline",
  "adversarial-simple": "adversarial training, simplest",
  "adversarial": "adversarial training",
  "trades": "TRADES",
  "a-art": "A-ART",
  "adversarial-simple-uniform": "uniform attention",
  "adversarial-uniform": "uniform attention",
};
const HEIGHTS = [0.1, 0.25, 0.5, 0.75, 1]; // what the full height of the bars may stand for

let data; // {factors, frame, videos}
let state; // {film, model: their numbers, eps: number of the factor, attack, frame, layer, head, steady}
let timer; // while ε plays

// ------------------------------------------------------------ reading the data

/** The bytes of a model's states, decoded when they are first needed. */
function bytesOf(model) {
  model.bytes ??= Uint8Array.from(atob(model.states), (letter) => letter.charCodeAt(0));
  return model.bytes;
}

/** Which of the stored states: clean, all frames by ε, each frame by ε, each frame anything. */
function place(frames, attack, eps, frame) {
  const sizes = data.factors.length - 1;
  if (attack === "box") return 1 + sizes + frames * sizes + frame;
  if (eps === 0) return 0;
  return attack === "all" ? eps : sizes + frame * sizes + eps;
}

/** One stored state as numbers: a byte is 255 times the root of a share or probability. */
function read(film, model, index) {
  const frames = film.pictures.length, labels = film.names.length;
  const shares = (model.layers * model.heads + 1) * frames;
  const length = shares + 2 * labels, bytes = bytesOf(model);
  const numbers = Array.from(bytes.subarray(index * length, (index + 1) * length), (byte) => (byte / 255) ** 2);
  const scores = numbers.slice(shares, shares + labels), steady = numbers.slice(shares + labels);
  return { shares: numbers.slice(0, shares), scores, steady };
}

/** How [CLS] weighs the frames: in a layer and a head (or the mean of its heads), or by rollout through all layers. */
function attention(film, model, shares, { layer, head }) {
  const frames = film.pictures.length;
  const row = (index) => shares.slice(index * frames, (index + 1) * frames);
  if (layer === "rollout") return row(model.layers * model.heads);
  const first = (layer - 1) * model.heads;
  if (head !== "mean") return row(first + head - 1);
  const rows = Array.from({ length: model.heads }, (_, index) => row(first + index));
  return rows[0].map((_, frame) => sum(rows.map((shares) => shares[frame])) / model.heads);
}

/** What is on display: {film, model, clean, attacked, before, after}, attention [T] and probabilities [C]. */
function current() {
  const film = data.videos[state.film], model = film.models[state.model];
  const index = place(film.pictures.length, state.attack, state.eps, state.frame);
  const [first, now] = [0, index].map((which) => read(film, model, which));
  const clean = attention(film, model, first.shares, state);
  const attacked = state.steady ? clean : attention(film, model, now.shares, state);
  return { film, model, index, clean, attacked, before: first.scores, after: state.steady ? now.steady : now.scores };
}

// ------------------------------------------------------------ the address keeps the state

const filmNumber = (id) => data.videos.findIndex((film) => film.id === id);
const whole = (text, least, most) => (/^\d+$/.test(text) && +text >= least && +text <= most ? +text : undefined);

/** The state that the address asks for; what it does not say, or says wrongly, is as at the start. */
function fromAddress() {
  const asked = new URLSearchParams(location.hash.slice(1));
  const film = Math.max(0, filmNumber(asked.get("film"))), about = data.videos[film];
  const model = Math.max(0, about.models.findIndex((known) => known.name === asked.get("model")));
  const { layers, heads } = about.models[model], last = about.pictures.length - 1;
  const fresh = !location.hash.slice(1);
  const frame = whole(asked.get("frame"), 0, last) ?? (fresh ? data.frame : undefined);
  const eps = data.factors.indexOf(Number(asked.get("eps") ?? 1));
  return {
    film, model,
    eps: eps < 0 ? data.factors.indexOf(1) : eps,
    attack: frame === undefined ? "all" : asked.get("attack") === "box" ? "box" : "one",
    frame: frame ?? null,
    layer: asked.get("layer") === "rollout" ? "rollout" : whole(asked.get("layer"), 1, layers) ?? layers,
    head: whole(asked.get("head"), 1, heads) ?? "mean",
    steady: asked.get("steady") === "1",
  };
}

function toAddress({ film, model }) {
  const kept = { film: film.id, model: model.name, eps: data.factors[state.eps] };
  if (state.attack !== "all") kept.frame = state.frame;
  if (state.attack === "box") kept.attack = "box";
  if (state.layer !== model.layers) kept.layer = state.layer;
  if (state.head !== "mean") kept.head = state.head;
  if (state.steady) kept.steady = 1;
  const address = `#${new URLSearchParams(kept)}`;
  if (address !== location.hash) history.replaceState(null, "", address);
}

// ------------------------------------------------------------ drawing

/** A new element with properties, attributes (names with a dash) and children. */
function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.includes("-") || name === "scope") element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children);
  return element;
}

/** The labels that a frame shows, by their letters. */
function lettersAt(film, frame) {
  return film.evidence.flatMap((frames, label) => (frames.includes(frame) ? [LETTERS[label]] : []));
}

function makeFrame(film, picture, frame) {
  const marks = film.evidence.map((frames, label) =>
    frames.includes(frame) ? make("b", { className: "shown", textContent: LETTERS[label] }) : make("b"));
  return make("button", { type: "button", className: "frame", onclick: () => attackFrame(frame) },
    make("span", { className: "bars" }, make("i", { className: "clean" }), make("i", { className: "attacked" })),
    make("img", { alt: "", src: `data:image/jpeg;base64,${picture}` }),
    make("span", { className: "marks" }, ...marks),
    make("span", { className: "number", textContent: frame }));
}

function makeLabel(film, name, label) {
  const tag = label < film.evidence.length ? [make("span", { className: "tag", textContent: LETTERS[label] })] : [];
  const meter = (kind) => make("div", { className: "meter" }, make("i", { className: kind }), make("span"));
  return make("tr", {}, make("th", { scope: "row" }, ...tag, name), make("td", {}, meter("clean"), meter("attacked")));
}

/** Frames and labels of a film, made anew when another film is chosen. */
function makeFilm(film) {
  if (part("strip").dataset.film === film.id) return;
  part("strip").dataset.film = film.id;
  part("strip").replaceChildren(...film.pictures.map((picture, frame) => makeFrame(film, picture, frame)));
  part("labels").replaceChildren(...film.names.map((name, label) => makeLabel(film, name, label)));
  makeChoices("model", Object.fromEntries(film.models.map((model, number) => [number, titleOf(model)])), Number);
  arrange();
}

/** As few rows of frames as fit, all about equally long. */
function arrange() {
  const frames = data.videos[state.film].pictures.length, width = part("strip").clientWidth;
  const least = width < 600 ? 44 : 35; // pixels of a frame: fingers want more than a mouse
  const rows = Math.max(1, Math.ceil((frames * least) / Math.max(width, least)));
  const columns = Math.ceil(frames / rows);
  part("strip").style.setProperty("--columns", columns);
  part("strip").classList.toggle("narrow", width / columns < 72);
}

const setBar = (bar, share) => bar.style.setProperty("--share", Math.min(1, share).toFixed(4));

function showStrip({ film, clean, attacked }) {
  const top = HEIGHTS.find((height) => height >= Math.max(...clean, ...attacked) - 0.004);
  part("scale").textContent = `full height: ${percent(top)} of the attention`;
  [...part("strip").children].forEach((button, frame) => {
    const [left, right] = button.querySelectorAll(".bars i");
    const letters = lettersAt(film, frame);
    const chosen = state.attack !== "all" && state.frame === frame;
    setBar(left, clean[frame] / top);
    setBar(right, attacked[frame] / top);
    button.setAttribute("aria-pressed", chosen);
    button.setAttribute("aria-label", `frame ${frame}${letters.length ? `, shows ${letters.join(" and ")}` : ""}; ` +
      `attention ${percent(clean[frame])} clean, ${percent(attacked[frame])} attacked; attack this frame alone`);
    button.title = `frame ${frame}: ${percent(clean[frame])} → ${percent(attacked[frame])}`;
  });
}

function showLabels({ before, after }) {
  [...part("labels").children].forEach((row, label) => {
    row.querySelectorAll(".meter").forEach((meter, side) => {
      const score = [before, after][side][label];
      setBar(meter.firstChild, score);
      meter.lastChild.textContent = percent(score);
      meter.lastChild.title = ["clean", "attacked"][side];
    });
  });
}

function showControls({ model }) {
  const values = { film: state.film, eps: state.eps, layer: state.layer, head: state.head };
  for (const [name, value] of Object.entries(values)) part(name).value = value;
  for (const name of ["model", "attack"]) {
    for (const input of part(name).querySelectorAll("input")) input.checked = input.value === String(state[name]);
  }
  const factor = data.factors[state.eps], levels = (factor * model.levels).toFixed(1), box = state.attack === "box";
  part("size").textContent = box ? "plays no part" : `${factor} × calibrated (${levels} levels of 255)`;
  part("eps").setAttribute("aria-valuetext", part("size").textContent);
  part("eps").disabled = part("play").disabled = box;
  part("head").disabled = state.layer === "rollout" || state.steady;
  part("layer").disabled = state.steady;
  part("steady").checked = state.steady;
  part("play").textContent = timer ? "■ stop" : "▶ play";
}

const titleOf = (model) => TITLES[model.name] ?? model.name;
const capital = (text) => text[0].toUpperCase() + text.slice(1);

/** What the picture says, in words. */
function told({ film, model, index, clean, attacked, before, after }) {
  const aim = { all: "all frames", one: `frame ${state.frame}`, box: `frame ${state.frame} (may be anything)` };
  const name = capital(titleOf(model));
  if (index === 0) return `${name}, nothing attacked: the likeliest label is ${likeliest(film, before)}.`;
  const size = state.attack === "box" ? "" : ` at ${data.factors[state.eps]} × ε`;
  const moved = sum(clean.map((share, frame) => Math.abs(share - attacked[frame]))) / 2;
  const drawn = state.attack === "all" ? "" :
    `; frame ${state.frame} drew ${percent(clean[state.frame])} of it before and ${percent(attacked[state.frame])} now`;
  const went = state.steady ? "attention is held steady" : `${percent(moved)} of the attention moved${drawn}`;
  const fates = film.evidence.map((_, label) =>
    `${film.names[label]} went from ${percent(before[label])} to ${percent(after[label])}`);
  return `${name}, attacked on ${aim[state.attack]}${size}: ${went}. ` +
    `${fates.join(", ")}; the likeliest label is now ${likeliest(film, after)}.`;
}

function likeliest(film, scores) {
  const best = scores.indexOf(Math.max(...scores));
  return `${film.names[best]} (${percent(scores[best])}, ${best < film.evidence.length ? "true" : "false"})`;
}

/** Attention on the labels that are seen in less than half of the film; nothing where there is none. */
function toldOfEvidence({ film, clean, attacked }) {
  const frames = film.pictures.length, brief = film.evidence.filter((shown) => shown.length < frames / 2);
  const showing = [...new Set(brief.flat())];
  if (!showing.length) return "";
  const share = (shares) => percent(sum(showing.map((frame) => shares[frame])) / sum(shares));
  const what = brief.length < film.evidence.length ? "a brief label" : "a label";
  return `Frames that show ${what} (${showing.length} of ${frames}) get ${share(clean)} of the attention clean, ` +
    `${share(attacked)} attacked; by chance it would be ${percent(showing.length / frames)}.`;
}

function setText(id, text) {
  if (part(id).textContent !== text) part(id).textContent = text; // else it would be read aloud again
}

function show() {
  const now = current();
  makeFilm(now.film);
  showStrip(now);
  showLabels(now);
  showControls(now);
  setText("said", told(now));
  setText("evidence", toldOfEvidence(now));
  toAddress(now);
}

// ------------------------------------------------------------ what a reader does

function change(changes) {
  Object.assign(state, changes);
  show();
}

/** A click on a frame attacks it alone; another one lets it go. */
function attackFrame(frame) {
  if (state.attack !== "all" && state.frame === frame) change({ attack: "all", frame: null });
  else change({ attack: state.attack === "box" ? "box" : "one", frame, eps: state.eps || data.factors.indexOf(1) });
}

function chooseAttack(attack) {
  const { clean } = current();
  const frame = state.frame ?? clean.indexOf(Math.max(...clean)); // the one most looked at
  change({ attack, frame: attack === "all" ? null : frame });
}

/** Another film: the model stays, a frame that it does not have is let go. */
function chooseFilm(film) {
  const there = state.frame < data.videos[film].pictures.length;
  change({ film, ...(there ? {} : { attack: "all", frame: null }) });
}

function stop() {
  clearInterval(timer);
  timer = undefined;
}

/** ε from 0 to the largest, a step at a time. */
function play() {
  if (timer) {
    stop();
    show();
    return;
  }
  timer = setInterval(() => {
    if (state.eps === data.factors.length - 1) stop();
    change(timer ? { eps: state.eps + 1 } : {});
  }, 500);
  change({ eps: 0 });
}

/** Radio buttons of a group: {value: text}. */
function makeChoices(name, choices, convert = String) {
  const choose = name === "attack" ? chooseAttack : (value) => change({ [name]: value });
  part(name).replaceChildren(...Object.entries(choices).map(([value, text]) =>
    make("label", {},
      make("input", { type: "radio", name, value, onchange: () => choose(convert(value)) }),
      make("span", { textContent: text }))));
}

function makeMenu(name, choices, choose) {
  part(name).replaceChildren(...choices.map(([value, text]) => new Option(text, value)));
  part(name).onchange = () => choose(part(name).value);
}

function makeControls() {
  const titles = data.videos.map((film, number) =>
    [number, `${film.about}: ${film.names.slice(0, film.evidence.length).join(", ")}`]);
  const { layers, heads } = data.videos[0].models[0];
  const numbered = (what, count) => Array.from({ length: count }, (_, index) => [index + 1, `${what} ${index + 1}`]);
  const wordOrNumber = (value) => (isNaN(value) ? value : Number(value));
  makeMenu("film", titles, (value) => chooseFilm(Number(value)));
  makeMenu("layer", [...numbered("layer", layers), ["rollout", "all layers (rollout)"]],
    (value) => change({ layer: wordOrNumber(value) }));
  makeMenu("head", [["mean", "all heads (mean)"], ...numbered("head", heads)],
    (value) => change({ head: wordOrNumber(value) }));
  makeChoices("attack", ATTACKS);
  part("eps").max = data.factors.length - 1;
  part("eps").oninput = () => { stop(); change({ eps: Number(part("eps").value) }); };
  part("play").onclick = play;
  part("steady").onchange = () => change({ steady: part("steady").checked });
  part("strip").onkeydown = moveFocus;
}

/** Arrow keys go from frame to frame. */
function moveFocus(event) {
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  const next = step && [...part("strip").children].indexOf(document.activeElement) + step;
  if (step && part("strip").children[next]) {
    part("strip").children[next].focus();
    event.preventDefault();
  }
}

function begin() {
  data = JSON.parse(part("data").textContent);
  state = fromAddress();
  makeControls();
  part("explorer").hidden = false;
  show();
  part("static").hidden = true;
  part("reading").open = innerWidth >= 700 || /layer|head|steady/.test(location.hash);
  addEventListener("hashchange", () => { stop(); state = fromAddress(); show(); });
  addEventListener("resize", arrange);
}

try {
  begin();
} catch (error) {
  part("explorer").hidden = true;
  part("static").hidden = false;
  part("trouble").textContent = `The data of this page cannot be read (${error.message}); here is one picture of it.`;
}
