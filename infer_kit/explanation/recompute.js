"use strict";
// The choice of a token under other weights. The same as recomputed.py, line for line where it can
// be; the tests compare the two at every position of the slider. null stands for -Infinity.

const ROUNDING = 2e-5;
const DOUBTS = {
  tie: "tokens are equal up to rounding",
  outside: "a token outside the stored ones might win",
  cut: "a token is at the edge of the cut-off up to rounding, or the edge is not known",
  none: "no stored token is left",
};

const finite = (value) => (value === null ? -Infinity : value);

function logSum(values) {
  const top = Math.max(-Infinity, ...values);
  if (!Number.isFinite(top)) return top;
  return top + Math.log(values.reduce((sum, v) => sum + Math.exp(v - top), 0));
}

function weightsOf(controls, settings) {
  const w = controls.base.slice();
  controls.sliders.forEach((slider, j) => {
    for (let k = 0; k < w.length; k++) w[k] += settings[j] * slider.direction[k];
  });
  if (controls.normalize) {
    const total = w.reduce((a, b) => a + b, 0);
    if (Math.abs(total) < 1e-12) return null;
    for (let k = 0; k < w.length; k++) w[k] /= total;
  }
  return w.some((v) => v !== 0) ? w : null;
}

function score(pool, row, w) {
  if (pool === "mixture") {
    return logSum(row.flatMap((v, k) => (w[k] !== 0 ? [v + Math.log(w[k])] : [])));
  }
  let sum = 0;
  for (let k = 0; k < w.length; k++) {
    if (w[k] === 0) continue;
    if (row[k] === -Infinity) return -Infinity;
    sum += row[k] * w[k];
  }
  return sum;
}

const linear = (floors, w) => floors.reduce((sum, f, k) => (w[k] !== 0 ? sum + f * w[k] : sum), 0);
const excluded = (floors, w) => floors.some((f, k) => w[k] !== 0 && f === -Infinity);

function sharesOf(data, w) {
  const shares = w.map(() => 0);
  if (data.experts.length === 1) {
    shares[data.experts[0]] = 1;
    return shares;
  }
  const total = data.experts.reduce((sum, k) => sum + w[k], 0);
  for (const k of data.experts) shares[k] = total ? w[k] / total : 1 / data.experts.length;
  return shares;
}

function cutOff(data, token, w) {
  const every = token.logprobs.map(() => true);
  const no = token.logprobs.map(() => false);
  if (!data.experts.length || !data.plausibility) {
    return { kept: every, open: no, othersOut: false, known: true };
  }
  const shares = sharesOf(data, w);
  const expert = token.logprobs.map((row) => score("product", row, shares));
  let others = shares.every((s) => s >= 0) ? linear(token.floors, shares) : Infinity;
  if (excluded(token.floors, shares)) others = -Infinity;
  const peak = Math.max(...expert);
  const threshold = peak + Math.log(data.plausibility);
  const open = expert.map((e) => Math.abs(e - threshold) <= ROUNDING);
  open[expert.indexOf(peak)] = false;
  const known = others <= peak;
  const othersOut = known && others < threshold - ROUNDING;
  return { kept: expert.map((e) => e >= threshold), open, othersOut, known };
}

function combined(data, token, rest, t, floor) {
  if (data.pool === "product") return (t ? t * floor : 0) + linear(token.floors, rest);
  const parts = token.floors.flatMap((f, k) => (rest[k] > 0 ? [f + Math.log(rest[k])] : []));
  return logSum(t ? [...parts, floor + Math.log(t)] : parts);
}

function bound(data, token, w) {
  if (data.pool === "product" && excluded(token.floors, w)) return -Infinity;
  const before = token.weights;
  const own = score(data.pool, token.logprobs[token.anchor], before);
  const floor = own - token.anchorLogPi + token.pooledFloor;
  const known = data.experts.length < 2 && before.every((b, k) => b === 0 || w[k] !== 0);
  if (known && floor === -Infinity) return -Infinity;
  let low = 0;
  let high = 0;
  if (known) {
    high = Infinity;
    before.forEach((b, k) => {
      if (b < 0) low = Math.max(low, w[k] / b);
      if (b > 0) high = Math.min(high, w[k] / b);
    });
    if (high === Infinity) high = low;
  }
  let found = Infinity;
  for (const t of [low, high]) {
    const rest = w.map((v, k) => v - t * before[k]);
    const wrong = rest.some((r, k) => r < -1e-9 * Math.abs(w[k]));
    if (t < 0 || low > high * (1 + 1e-9) || wrong) continue;
    const clean = rest.map((r, k) => (Math.abs(r) <= 1e-9 * Math.abs(w[k]) ? 0 : r));
    found = Math.min(found, combined(data, token, clean, t, floor));
  }
  return found;
}

// What the pool chooses at one token: place (-1: nothing is left), scores, logPi, exact, doubt.
// logPi is NaN where nothing bounds it.
function choose(data, token, weights) {
  const asItWas = token.weights.every(
    (b, k) => Math.abs(weights[k] - b) <= 1e-9 + 1e-6 * Math.abs(b),
  );
  const w = asItWas ? token.weights : weights;
  const slack = ROUNDING * Math.max(1, w.reduce((sum, v) => sum + Math.abs(v), 0));
  const raw = token.logprobs.map((row) => score(data.pool, row, w));
  const cut = cutOff(data, token, w);
  const scores = raw.map((s, c) => (cut.kept[c] ? s : -Infinity));
  const best = Math.max(...scores);
  if (best === -Infinity) {
    return { place: -1, scores, logPi: scores, exact: true, doubt: DOUBTS.none, asItWas, w };
  }
  const near = scores.flatMap((s, c) => (s >= best - slack ? [c] : []));
  const place = near.includes(token.chosen) ? token.chosen : scores.indexOf(best);
  const others = cut.othersOut ? -Infinity : bound(data, token, w);
  let doubt = near.length > 1 ? DOUBTS.tie : "";
  if (!cut.known || cut.open.some((o, c) => o && raw[c] >= best - slack)) doubt = DOUBTS.cut;
  else if (others >= best - slack) doubt = DOUBTS.outside;
  let exact = cut.known;
  let shift = logSum(scores);
  let unsure = cut.open;
  if (asItWas && Number.isFinite(scores[token.anchor])) {
    shift = scores[token.anchor] - token.anchorLogPi;
    unsure = cut.open.map((o, c) => o && c !== token.anchor);
  } else if (!cut.known || cut.open.includes(true)) {
    exact = false;
    shift = NaN;
  } else if (others > -Infinity) {
    exact = data.pool === "mixture" && !data.experts.length;
    shift = exact ? 0 : shift;
  }
  const logPi = scores.map((s, c) => (unsure[c] ? NaN : s - shift));
  return { place, scores, logPi, exact, doubt, asItWas, w };
}

// What each stream adds to the margin of `place` over the best other token; they sum to it.
function partsOver(data, token, choice, place) {
  const order = choice.scores.map((s, c) => c).filter((c) => c !== place);
  if (!order.length) return { other: -1, parts: [] };
  const other = order.reduce((a, b) => (choice.scores[b] > choice.scores[a] ? b : a));
  const [a, b] = [token.logprobs[place], token.logprobs[other]];
  const parts = choice.w.map((w, k) => {
    if (w === 0 || a[k] === b[k]) return 0; // two of -Infinity have no difference
    return data.pool === "mixture" ? w * (Math.exp(a[k]) - Math.exp(b[k])) : w * (a[k] - b[k]);
  });
  return { other, parts };
}

// The stream that moved a token: -1 where all with positive weight wanted it anyway.
function movedBy(data, token, choice, place) {
  const agree = choice.w.every((w, k) => w <= 0 || token.top[k] === place);
  if (agree) return -1;
  const { parts } = partsOver(data, token, choice, place);
  return parts.length ? parts.indexOf(Math.max(...parts)) : -1;
}
