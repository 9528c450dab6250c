"use strict";
// What the page shows, from what recompute.js finds. Texts enter as text alone, never as markup.

const data = JSON.parse(document.getElementById("data").textContent);
for (const token of data.tokens) {
  token.logprobs = token.logprobs.map((row) => row.map(finite));
  token.floors = token.floors.map(finite);
  token.pooledFloor = finite(token.pooledFloor);
  token.top = data.streams.map((_, k) =>
    token.logprobs.reduce((best, row, c) => (row[k] > token.logprobs[best][k] ? c : best), 0),
  );
}

const controls = data.controls;
const byId = (id) => document.getElementById(id);
const strip = byId("tokens");
let settings = null; // values of the sliders; null: the weights in force
let pinned = 0; // the token whose details stay
let hovered = null;
let choices = []; // of each token, or null where the weights cannot be

function make(tag, attributes, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name === "colour") element.style.setProperty("--c", value);
    else if (value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

const colour = (k) => (k < 0 ? "var(--agree)" : `var(--s${k % 6})`);
const number = (value, digits = 3) =>
  value.toPrecision(digits).replace("-", "−").replace("Infinity", "∞");
const plain = (value) => String(Number(value.toPrecision(4))).replace("-", "−");
const percent = (p) => (p >= 0.0005 ? `${(100 * p).toFixed(1)} %` : p > 0 ? "< 0.1 %" : "0 %");

// A token's text with what cannot be seen made visible.
function visible(text) {
  if (text === "") return "∅";
  return text
    .replace(/^ +| +$/g, (run) => "␣".repeat(run.length))
    .replace(/\r\n|\n|\r/g, "⏎")
    .replace(/\t/g, "⇥")
    .replace(/[\u0000-\u001f\u007f-\u009f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]/g, (c) => {
      return `\\u${c.charCodeAt(0).toString(16).padStart(4, "0")}`;
    });
}

// The place of the token that is shown: the one that was written where nothing was moved.
function shownPlace(t) {
  const choice = choices[t];
  if (!choice || choice.asItWas || choice.place < 0) return data.tokens[t].chosen;
  return choice.place;
}

function recompute() {
  const moved = settings && weightsOf(controls, settings);
  choices = data.tokens.map((token) => {
    const w = settings ? moved : token.weights;
    return w && choose(data, token, w);
  });
}

function drawStrip() {
  strip.replaceChildren();
  data.tokens.forEach((token, t) => {
    const choice = choices[t];
    const place = shownPlace(t);
    const changed = place !== token.chosen;
    const lead = choice ? movedBy(data, token, choice, place) : -1;
    const caption = !choice ? "" : lead < 0 ? "agree" : data.streams[lead];
    const text = visible(token.texts[place]);
    const word = make("span", { class: "word" });
    if (changed) {
      word.append(make("del", {}, visible(token.texts[token.chosen])), " ", make("ins", {}, text));
    } else {
      word.append(text);
    }
    const notes = [];
    if (choice && choice.doubt) notes.push("?");
    if (choice && choice.asItWas && choice.place !== token.chosen) notes.push("†");
    if (notes.length) word.append(make("sup", {}, notes.join("")));
    const said = [`token ${t + 1}: ${text}`];
    if (changed) said.push(`in place of ${visible(token.texts[token.chosen])}`);
    if (choice) said.push(lead < 0 ? "all streams agree" : `moved by ${caption}`);
    if (choice) said.push(choice.doubt ? "not certain" : "certain");
    const button = make(
      "button",
      {
        type: "button",
        class: `token${changed ? " changed" : ""}${choice && choice.doubt ? " doubtful" : ""}`,
        "data-t": t,
        "data-shown": token.ids[place],
        "data-doubt": choice ? choice.doubt : undefined, // none and not empty: no choice
        "aria-label": said.join(", "),
        "aria-pressed": String(t === pinned),
        tabindex: t === pinned ? "0" : "-1",
        colour: colour(lead),
      },
      word,
      make("span", { class: "by", "aria-hidden": "true" }, caption),
    );
    button.addEventListener("pointerenter", () => look(t));
    button.addEventListener("pointerleave", () => look(null));
    button.addEventListener("focus", () => pin(t));
    button.addEventListener("click", () => pin(t));
    strip.append(button);
  });
}

function pin(t) {
  if (pinned !== t) {
    pinned = t;
    strip.querySelectorAll("button").forEach((button, place) => {
      button.setAttribute("aria-pressed", String(place === t));
      button.tabIndex = place === t ? 0 : -1;
    });
  }
  hovered = null;
  drawDetails();
}

function look(t) {
  hovered = t;
  drawDetails();
}

strip.addEventListener("keydown", (event) => {
  const last = data.tokens.length - 1;
  const next = { ArrowRight: pinned + 1, ArrowLeft: pinned - 1, Home: 0, End: last }[event.key];
  if (next === undefined) return;
  event.preventDefault();
  strip.children[Math.min(Math.max(next, 0), last)].focus();
});

function drawDetails() {
  const t = hovered === null ? pinned : hovered;
  const panel = byId("details");
  panel.replaceChildren();
  if (!data.tokens.length) return;
  const token = data.tokens[t];
  const choice = choices[t];
  const place = shownPlace(t);
  const title = make("h3", {}, `Token ${t + 1} of ${data.tokens.length}: `);
  title.append(make("span", { class: "quoted" }, visible(token.texts[place])));
  panel.append(title);
  if (!choice) {
    panel.append(make("p", {}, "At these weights there is no choice: they are all 0, or sum to 0."));
    return;
  }
  panel.append(make("p", { class: choice.doubt ? "doubt" : "sure" }, verdict(token, choice)));
  if (choice.asItWas && choice.place >= 0 && choice.place !== token.chosen) {
    const best = visible(token.texts[choice.place]);
    panel.append(
      make("p", { class: "doubt" }, `† The pool's best token is ${best}: this one was sampled or ` +
        "changed by a processor (a penalty, say), which acts after the pool."),
    );
  }
  panel.append(drawParts(token, choice, place), drawTable(token, choice, place));
}

function verdict(token, choice) {
  const weights = data.streams.map((name, k) => `${name} ${plain(choice.w[k])}`).join("; ");
  const which = choice.asItWas ? "Weights in force" : "Weights";
  const sure = choice.doubt
    ? `not certain: ${choice.doubt}.`
    : "certain: no token of the whole vocabulary is better.";
  return `${which}: ${weights}. The pool's choice is ${sure}`;
}

function drawParts(token, choice, place) {
  const { other, parts } = partsOver(data, token, choice, place);
  const box = make("div", { class: "parts" });
  if (other < 0) return box;
  const unit = data.pool === "mixture" ? "" : " nats";
  const largest = Math.max(1e-9, ...parts.map((p) => (Number.isFinite(p) ? Math.abs(p) : 0)));
  const total = choice.scores[place] - choice.scores[other];
  const rival = visible(token.texts[other]);
  const cut = choice.scores[other] === -Infinity;
  const sum = data.pool === "mixture" ? parts.reduce((a, b) => a + b, 0) : total;
  const heading = make("h4", {}, "Margin over ");
  heading.append(make("span", { class: "quoted" }, rival));
  heading.append(cut ? " (which is excluded)" : `: ${signed(sum)}${unit}`);
  box.append(heading);
  data.streams.forEach((name, k) => {
    const width = Number.isFinite(parts[k]) ? (50 * Math.abs(parts[k])) / largest : 50;
    const bar = make("span", { class: `bar ${parts[k] < 0 ? "minus" : "plus"}` });
    bar.style.width = `${width}%`;
    box.append(
      make("div", { class: "part", colour: colour(k) }, make("span", { class: "name" }, name),
        make("span", { class: "track", "aria-hidden": "true" }, bar),
        make("span", { class: "figure" }, `${signed(parts[k])}`)),
    );
  });
  return box;
}

const signed = (value) => (value >= 0 ? "+" : "") + number(value);

function drawTable(token, choice, place) {
  const order = choice.scores.map((_, c) => c).sort(
    (a, b) => choice.scores[b] - choice.scores[a] || a - b,
  );
  const unknown = choice.logPi.every(Number.isNaN);
  const pi = choice.exact || unknown ? "π" : "π ≤";
  const head = make("tr", {}, make("th", { scope: "col" }, "token"), make("th", { scope: "col" }, pi));
  data.streams.forEach((name, k) => {
    head.append(make("th", { scope: "col", colour: colour(k), class: "stream" }, name,
      make("small", {}, "log p (p)")));
  });
  const body = make("tbody", {});
  for (const c of order) {
    const out = choice.scores[c] === -Infinity;
    const marks = [];
    if (c === place) marks.push("shown");
    if (c === token.chosen && c !== place) marks.push("written");
    if (out) marks.push("excluded");
    const row = make("tr", { class: marks.join(" "), "data-id": token.ids[c] });
    row.append(make("th", { scope: "row" }, make("span", { class: "quoted" }, visible(token.texts[c])),
      ...(marks.length ? [make("small", {}, marks.join(", "))] : [])));
    const share = Number.isNaN(choice.logPi[c]) ? "–" : percent(Math.exp(choice.logPi[c]));
    row.append(make("td", {}, share));
    data.streams.forEach((_, k) => {
      const value = token.logprobs[c][k];
      const best = token.top[k] === c;
      row.append(make("td", { class: best ? "top" : undefined, colour: colour(k) },
        number(value), make("small", {}, `(${percent(Math.exp(value))})`)));
    });
    body.append(row);
  }
  let note = "π: the pooled probability.";
  if (unknown) note = "π is not known: the cut-off may exclude tokens that are counted here.";
  else if (!choice.exact) note = "π ≤: upper bounds of the pooled probability.";
  return make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "candidates" },
    make("table", {}, make("thead", {}, head), body), make("p", { class: "fine" },
      `${note} Coloured: a stream's own best token.`));
}

function drawSummary() {
  const summary = byId("summary");
  const count = data.tokens.length;
  const differ = data.tokens.filter((token, t) => shownPlace(t) !== token.chosen).length;
  const certain = choices.filter((choice) => choice && !choice.doubt).length;
  const parts = [];
  if (choices.some((choice) => !choice)) {
    parts.push("At these weights there is no choice: they are all 0, or sum to 0.");
  } else if (settings === null) {
    parts.push(`The answer as it was written, at the weights in force. ${certain} of ${count} ` +
      "choices are certain.");
  } else {
    parts.push(`${differ} of ${count} tokens would be chosen otherwise; ${certain} of ${count} ` +
      "choices are certain.");
  }
  if (differ) {
    parts.push("Each token is shown given the original tokens before it: a real answer at this " +
      "weight would go its own way after the first token that differs.");
  }
  if (choices.some((c, t) => c && c.asItWas && c.place >= 0 && c.place !== data.tokens[t].chosen)) {
    parts.push("†: not the pool's best token: sampled or changed by a processor.");
  }
  summary.textContent = parts.join(" ");
}

function drawSliders() {
  controls.sliders.forEach((slider, j) => {
    const input = byId(`slider-${j}`);
    const value = slider.stops[Number(input.value)];
    const low = Math.min(...slider.values);
    const high = Math.max(...slider.values);
    const own = low === high ? plain(low) : `${plain(low)} … ${plain(high)}, by token`;
    const said = settings ? plain(value) : `${own} (in force)`;
    byId(`value-${j}`).textContent = said;
    input.setAttribute("aria-valuetext", said);
    input.style.setProperty("--at", `${(100 * input.value) / input.max}%`);
  });
  if (byId("reset")) byId("reset").disabled = settings === null;
}

function drawAll() {
  recompute();
  drawStrip();
  drawSliders();
  drawSummary();
  drawDetails();
}

function moved() {
  settings = controls.sliders.map((slider, j) => slider.stops[Number(byId(`slider-${j}`).value)]);
  hovered = null;
  drawAll();
}

function buildControls() {
  const box = byId("controls");
  controls.sliders.forEach((slider, j) => {
    const last = slider.stops.length - 1;
    const input = make("input", { type: "range", id: `slider-${j}`, min: 0, max: last, step: 1 });
    input.value = slider.start;
    input.addEventListener("input", moved);
    const marks = make("div", { class: "marks", "aria-hidden": "true" });
    const places = new Map([[0, plain(slider.stops[0])], [last, plain(slider.stops[last])]]);
    const zero = slider.stops.indexOf(0);
    if (zero >= 0) places.set(zero, "0");
    const neutral = slider.neutral === null ? -1 : slider.stops.indexOf(slider.neutral);
    if (neutral >= 0) places.set(neutral, `${plain(slider.neutral)}, neutral`);
    const mark = (place, label, row) => {
      const end = place === 0 ? "first" : place === last ? "last" : "";
      const span = make("span", { class: `${end} ${row}` }, label);
      span.style.left = `${(100 * place) / last}%`;
      marks.append(span);
    };
    for (const [place, label] of places) mark(place, label, "");
    if (slider.fixed) {
      marks.classList.add("two");
      mark(slider.start, `▲ ${plain(slider.stops[slider.start])}, in force`, "below");
    }
    const name = controls.sliders.length > 1 ? `weight of ${slider.name}` : slider.name;
    const own = data.streams.indexOf(slider.name);
    box.append(
      make("div", { class: "slider", colour: own < 0 ? "var(--accent)" : colour(own) },
        make("label", { for: `slider-${j}` }, `${name} = `, make("output", { id: `value-${j}` })),
        input, marks),
    );
  });
  if (controls.sliders.length) {
    const reset = make("button", { type: "button", id: "reset", class: "plain" }, "Weights in force");
    reset.addEventListener("click", () => {
      settings = null;
      controls.sliders.forEach((slider, j) => { byId(`slider-${j}`).value = slider.start; });
      drawAll();
    });
    box.after(reset);
  }
  const legend = byId("legend");
  data.streams.forEach((name, k) => {
    legend.append(make("li", { colour: colour(k) }, `moved by ${name}`));
  });
  legend.append(make("li", { colour: colour(-1) },
    "agree: every stream with a positive weight wants this token"));
  legend.append(make("li", { class: "doubtful" }, "? dotted: not certain"));
}

buildControls();
drawAll();
