"use strict";

// The evidence for a verdict: pictures, the scale with the test's boundaries, numbers, votes, and where the time went.

const MOST_CLASSES = 10;
const SCALE = { width: 400, margin: 8 };  // of the view box
const $ = (id) => document.getElementById(id);
const percent = (value) => `${(100 * value).toFixed(value > 0 && value < 0.1 ? 1 : 0)} %`;

export function showEvidence(answer, model) {
  const { evidence } = answer;
  $("purified").src = evidence.purified;
  const { purify } = model.evidence;  // what is suspicious and purified has left an error
  const untouched = purify === "off" || (purify === "suspicious" && evidence.reconstruction_error === 0);
  $("purified-caption").textContent = untouched ? "not purified" : "purified";
  showDifference(evidence.image, evidence.purified);
  showScale(evidence, model.evidence);
  const corrected = answer.adversarial && !answer.abstained && evidence.base_label !== answer.label;
  const numbers = [
    ["answered by", answer.abstained ? "nobody" : model.evidence[answer.adversarial ? "answers_flagged" : "answers"]],
    ["classifier alone", evidence.base_class + (corrected ? " (corrected)" : "")],
    ["label change rate", `${percent(evidence.label_change_rate)} of the members asked disagree (expected: clean ` +
      `${percent(model.evidence.clean_rate)}, adversarial ${percent(model.evidence.adversarial_rate)})`],
    ["members asked", `${evidence.members_used} of ${model.evidence.members} (${model.evidence.jurors} may vote)`],
    ["reconstruction error", evidence.reconstruction_error.toPrecision(3)],
  ];
  $("numbers").replaceChildren(...numbers.flatMap(([term, text]) => [element("dt", term), element("dd", text)]));

  const order = model.classes.map((_, i) => i)
    .sort((a, b) => evidence.votes[b] - evidence.votes[a] || evidence.probabilities[b] - evidence.probabilities[a])
    .slice(0, MOST_CLASSES);
  $("votes").replaceChildren(...order.map((i) => {
    const row = named(model.classes[i]);
    if (i === answer.label && !answer.abstained) row.className = "label";
    row.append(bar(evidence.probabilities[i], 1, percent(evidence.probabilities[i])),
      bar(evidence.votes[i], model.evidence.jury_weight || 1, String(Number(evidence.votes[i].toFixed(2)))));
    return row;
  }));
}

// Purified minus sent, around grey, as large as the largest change of the image allows.
let latest = 0;

async function showDifference(before, after) {
  const mine = ++latest;
  const [sent, purified] = await Promise.all([before, after].map(pixels));
  if (mine !== latest) return;
  const canvas = $("difference");
  [canvas.width, canvas.height] = [sent.width, sent.height];
  const changes = sent.data.map(() => 0);
  let largest = 0;
  const signed = new Int16Array(changes.length);
  for (let i = 0; i < signed.length; i++) {
    if (i % 4 === 3) continue;
    signed[i] = purified.data[i] - sent.data[i];
    largest = Math.max(largest, Math.abs(signed[i]));
  }
  for (let i = 0; i < signed.length; i++) {
    changes[i] = i % 4 === 3 ? 255 : Math.round(127.5 + (largest ? (127.5 * signed[i]) / largest : 0));
  }
  canvas.getContext("2d").putImageData(new ImageData(changes, sent.width, sent.height), 0, 0);
  $("difference-caption").textContent =
    largest ? `purified minus sent, at most ${percent(largest / 255)}` : "purified minus sent: nothing changed";
}

async function pixels(url) {
  const image = new Image();
  image.src = url;
  await image.decode();
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(image, 0, 0);
  return context.getImageData(0, 0, canvas.width, canvas.height);
}

// The evidence on a line with the boundaries at which the test stops after as many members; where one is missing, the
// test cannot stop there.
function showScale(evidence, test) {
  const value = evidence.log_likelihood_ratio;
  const last = evidence.members_used - 1;
  const [lower, upper] = [test.lower[last], test.upper[last]];
  const ends = [0, value, lower, upper].filter((end) => end != null);
  const spread = Math.max(...ends) - Math.min(...ends) || 1;
  const [from, to] = [Math.min(...ends) - 0.15 * spread, Math.max(...ends) + 0.15 * spread];
  const at = (nats) => SCALE.margin + ((nats - from) / (to - from)) * (SCALE.width - 2 * SCALE.margin);
  const said = [`evidence ${value.toFixed(2)} nats`];
  if (upper != null) said.push(`adversarial from ${upper.toFixed(2)}`);
  if (lower != null) said.push(`clean up to ${lower.toFixed(2)}`);
  $("scale-caption").textContent = said.join(", ");
  const picture = $("picture");
  picture.replaceChildren();
  const band = (start, end, kind) => drawn("rect", { x: start, y: 24, width: Math.max(0, end - start), height: 12, class: kind });
  picture.append(band(at(from), at(to), "between"));
  if (lower != null) picture.append(band(at(from), at(lower), "clean"));
  if (upper != null) picture.append(band(at(upper), at(to), "adversarial"));
  for (const [limit, word] of [[lower, "clean"], [upper, "adversarial"]]) {
    if (limit == null) continue;
    const side = word === "clean" ? "end" : "start";
    picture.append(drawn("line", { x1: at(limit), x2: at(limit), y1: 18, y2: 42, class: "limit" }));
    const label = drawn("text", { x: at(limit) + (side === "end" ? -4 : 4), y: 56, "text-anchor": side });
    label.textContent = word;
    picture.append(label);
  }
  picture.append(drawn("path", { d: `M${at(value)} 24 l-7 -14 h14 z`, class: "value" }));
}

// Rows of the header Server-Timing; stages are parts of the batch, what is left is the network's and the browser's.
export function showSteps({ header, milliseconds, images }) {
  const found = (header || "").split(", ").map((part) => part.split(";dur=")).map(([name, ms]) => [name, Number(ms)]);
  $("latency").hidden = !header;
  if (!header) return;
  const outer = ["decode", "queue", "batch"];
  const inside = found.filter(([name]) => outer.includes(name)).reduce((sum, [, ms]) => sum + ms, 0);
  $("latency-caption").textContent =
    `Where the time went${images > 1 ? ` of all ${images} images together` : ""}, of ${milliseconds.toFixed(1)} ms`;
  const rows = [...found, ["network and browser", Math.max(0, milliseconds - inside)]];
  $("steps").replaceChildren(...rows.map(([name, ms]) => {
    const row = named(name.replaceAll("+", ", ").replaceAll("_", " "));
    if (!outer.includes(name) && name !== "network and browser") row.className = "stage";
    row.append(bar(ms, milliseconds, `${ms.toFixed(2)} ms`));
    return row;
  }));
}

function element(tag, text) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  return made;
}

function named(text) {
  const row = element("tr");
  const name = element("th", text);
  name.scope = "row";
  row.append(name);
  return row;
}

function drawn(tag, attributes) {
  const made = document.createElementNS($("picture").namespaceURI, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

function bar(value, most, text) {
  const cell = element("td");
  const progress = element("progress");
  progress.max = most;
  progress.value = value;
  progress.setAttribute("aria-hidden", "true");
  cell.append(progress, text);
  return cell;
}
