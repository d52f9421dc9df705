"use strict";

const MOST_CLASSES = 10;
const $ = (id) => document.getElementById(id);
const percent = (value) => `${(100 * value).toFixed(value > 0 && value < 0.1 ? 1 : 0)} %`;
let model = null;      // what /page.json says
let chosen = null;     // the file last chosen
let shown = null;      // object URL of the image shown
let attempt = 0;       // answers to older choices are dropped
let key = null;        // as long as the page is open, nowhere else

const headers = (more) => (key ? { ...more, Authorization: `Bearer ${key}` } : { ...more });

async function start() {
  const response = await fetch("page.json", { headers: headers() });
  const description = await response.json();
  $("entry").hidden = response.status !== 401;
  if (response.status === 401) return askForKey(key ? description.error : null);
  if (!response.ok) throw new Error(description.error);
  complain(null);
  model = description;
  const { width, height, channels } = model.input;
  $("model").textContent = `Model ${model.model}: ${model.classes.length} classes`;
  const size = model.resize ? `resized to ${width} × ${height} pixels` : `${width} × ${height} pixels`;
  $("size").textContent = `PNG, JPEG, WebP or BMP, ${size}, ${channels === 1 ? "grey" : "colour"}`;
  $("resize").textContent = `Crop and resize to ${width} × ${height} here and try again`;
  if (channels !== 1 && channels !== 3) {
    $("size").textContent = `No image file has ${channels} channels: send arrays of ${width} × ${height} pixels instead`;
  }

  $("file").addEventListener("change", () => choose($("file").files[0]));
  $("resize").addEventListener("click", tryResized);
  document.addEventListener("paste", (event) => choose(event.clipboardData.files[0]));
  document.addEventListener("dragover", (event) => { event.preventDefault(); document.body.classList.add("dragging"); });
  document.addEventListener("dragleave", () => document.body.classList.remove("dragging"));
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    document.body.classList.remove("dragging");
    choose(event.dataTransfer.files[0]);
  });
}

function askForKey(problem) {
  complain(problem, false);
  $("model").textContent = "";
  $("entry").onsubmit = (event) => {
    event.preventDefault();
    key = $("key").value.trim();
    $("key").value = "";
    begin();
  };
}

function choose(file) {
  $("file").value = "";  // so that the same file can be chosen again
  if (!file || !model) return;
  chosen = file;
  classify(file, file.name);
}

async function tryResized() {
  try {
    await classify(await resized(chosen), `${chosen.name}, resized`);
  } catch (error) {
    complain(`the browser cannot resize this image: ${error.message}`, false);
  }
}

async function classify(blob, name) {
  const mine = ++attempt;
  complain(null);
  $("result").setAttribute("aria-busy", "true");
  const began = performance.now();
  try {
    const response = await fetch("classify", {
      method: "POST", headers: headers({ "Content-Type": "application/octet-stream" }), body: blob,
    });
    const answer = await response.json();
    if (mine !== attempt) return;
    if (response.ok) show(answer.images[0], blob, name, performance.now() - began);
    else complain(answer.error, response.status === 400 && blob === chosen);  // the browser may read what we do not
  } catch (error) {
    if (mine === attempt) complain(`the server does not answer: ${error.message}`, false);
  } finally {
    $("result").removeAttribute("aria-busy");
  }
}

function complain(message, offerResize) {
  $("problem").hidden = !message;
  $("message").textContent = message || "";
  $("resize").hidden = !offerResize;
  if (message) $("result").hidden = true;
}

function show(answer, blob, name, milliseconds) {
  const verdict = answer.adversarial ? "adversarial" : answer.abstained ? "undecided" : "clean";
  const label = answer.abstained ? "no answer" : answer.class;
  $("verdict").textContent = `${label} – ${verdict}`;
  $("verdict").className = verdict;
  $("summary").textContent = `${name}: ${answer.abstained ? label : `label ${label}`}, ${verdict}, ` +
    `answered in ${milliseconds.toFixed(0)} ms`;
  const evidence = answer.evidence;
  if (shown) URL.revokeObjectURL(shown);
  shown = evidence ? null : URL.createObjectURL(blob);
  $("original").src = evidence ? evidence.image : shown;  // beside the purified image: what the model was given
  $("evidence").hidden = $("purified-figure").hidden = !evidence;
  $("hidden").hidden = Boolean(evidence);
  if (evidence) showEvidence(answer, evidence);
  $("result").hidden = false;
}

function showEvidence(answer, evidence) {
  $("purified").src = evidence.purified;
  const { purify } = model.evidence;  // what is suspicious and purified has left an error
  const untouched = purify === "off" || (purify === "suspicious" && evidence.reconstruction_error === 0);
  $("purified-caption").textContent = untouched ? "not purified" : "purified";
  const corrected = answer.adversarial && !answer.abstained && evidence.base_label !== answer.label;
  const last = evidence.members_used - 1;
  const bound = (values, sign) => (values[last] == null ? null : `${sign} ${values[last].toFixed(2)}`);
  const limits = [
    ["adversarial", bound(model.evidence.upper, "≥")], ["clean", bound(model.evidence.lower, "≤")],
  ].filter(([, limit]) => limit).map(([word, limit]) => `${word} ${limit}`).join(", ");
  const numbers = [
    ["answered by", answer.abstained ? "nobody" : model.evidence[answer.adversarial ? "answers_flagged" : "answers"]],
    ["classifier alone", evidence.base_class + (corrected ? " (corrected)" : "")],
    ["label change rate", `${percent(evidence.label_change_rate)} of the members asked disagree (expected: clean ` +
      `${percent(model.evidence.clean_rate)}, adversarial ${percent(model.evidence.adversarial_rate)})`],
    ["evidence", `${evidence.log_likelihood_ratio.toFixed(2)} nats` + (limits ? ` (${limits})` : "")],
    ["members asked", `${evidence.members_used} of ${model.evidence.members} (${model.evidence.jurors} may vote)`],
    ["reconstruction error", evidence.reconstruction_error.toPrecision(3)],
  ];
  $("numbers").replaceChildren(...numbers.flatMap(([term, text]) => [element("dt", term), element("dd", text)]));

  const order = model.classes.map((_, i) => i)
    .sort((a, b) => evidence.votes[b] - evidence.votes[a] || evidence.probabilities[b] - evidence.probabilities[a])
    .slice(0, MOST_CLASSES);
  $("votes").replaceChildren(...order.map((i) => {
    const row = element("tr");
    const name = element("th", model.classes[i]);
    name.scope = "row";
    if (i === answer.label && !answer.abstained) row.className = "label";
    row.append(name, bar(evidence.probabilities[i], 1, percent(evidence.probabilities[i])),
      bar(evidence.votes[i], model.evidence.jury_weight || 1, String(Number(evidence.votes[i].toFixed(2)))));
    return row;
  }));
}

function element(tag, text) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
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

// Centre crop and resize to what the model takes, as the browser shows the image: turned by EXIF, sRGB, transparent
// pixels on white, the first frame; grey as ITU-R 601 says. The result is a PNG of exactly that format.
async function resized(file) {
  const { width, height, channels } = model.input;
  const bitmap = await createImageBitmap(file, { imageOrientation: "from-image" });
  const scale = Math.min(bitmap.width / width, bitmap.height / height);
  const [w, h] = [width * scale, height * scale];
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [width, height];
  const context = canvas.getContext("2d", { alpha: false });
  context.imageSmoothingQuality = "high";
  context.fillStyle = "#fff";
  context.fillRect(0, 0, width, height);
  context.drawImage(bitmap, (bitmap.width - w) / 2, (bitmap.height - h) / 2, w, h, 0, 0, width, height);
  const rgba = context.getImageData(0, 0, width, height).data;
  const rows = new Uint8Array(height * (1 + width * channels));  // each row begins with its filter, 0
  let to = 0;
  for (let i = 0; i < rgba.length; i += 4) {
    if (i % (4 * width) === 0) to++;
    if (channels === 1) rows[to++] = Math.round(0.299 * rgba[i] + 0.587 * rgba[i + 1] + 0.114 * rgba[i + 2]);
    else for (let c = 0; c < 3; c++) rows[to++] = rgba[i + c];
  }
  return png(width, height, channels, rows);
}

async function png(width, height, channels, rows) {
  const header = new Uint8Array(13);
  const view = new DataView(header.buffer);
  view.setUint32(0, width);
  view.setUint32(4, height);
  header.set([8, channels === 1 ? 0 : 2, 0, 0, 0], 8);
  const packed = new Blob([rows]).stream().pipeThrough(new CompressionStream("deflate"));
  const data = new Uint8Array(await new Response(packed).arrayBuffer());
  const signature = new Uint8Array([137, 80, 78, 71, 13, 10, 26, 10]);
  const parts = [signature, chunk("IHDR", header), chunk("IDAT", data), chunk("IEND", new Uint8Array())];
  return new Blob(parts, { type: "image/png" });
}

function chunk(name, data) {
  const bytes = new Uint8Array(12 + data.length);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, data.length);
  bytes.set([...name].map((letter) => letter.charCodeAt(0)), 4);
  bytes.set(data, 8);
  view.setUint32(8 + data.length, crc32(bytes.subarray(4, 8 + data.length)));
  return bytes;
}

function crc32(bytes) {
  let crc = 0xffffffff;
  for (const byte of bytes) {
    crc ^= byte;
    for (let bit = 0; bit < 8; bit++) crc = (crc >>> 1) ^ (crc & 1 ? 0xedb88320 : 0);
  }
  return ~crc >>> 0;
}

const begin = () => start().catch((error) => complain(`the model's description cannot be loaded: ${error.message}`, false));

begin();
