"use strict";

import { showEvidence, showSteps } from "./page-evidence.js";
import { resized } from "./page-resize.js";

const $ = (id) => document.getElementById(id);
let model = null;      // what /page.json says
let items = [];        // what was sent: { blob, name, url, answer, error, resized }, the answers' order
let steps = null;      // where the time of the latest request went: { header, milliseconds, images }
let attempt = 0;       // answers to older choices are dropped
let key = null;        // as long as the page is open, nowhere else

const headers = () => (key ? { Authorization: `Bearer ${key}` } : {});

// The same model as the page: the one that its address names, else the server's first.
function of(path) {
  const name = new URLSearchParams(location.search).get("model");
  return name === null ? path : `${path}?model=${encodeURIComponent(name)}`;
}

async function start() {
  const response = await fetch(of("page.json"), { headers: headers() });
  const description = await response.json();
  $("entry").hidden = response.status !== 401;
  if (response.status === 401) return askForKey(key ? description.error : null);
  if (!response.ok) throw new Error(description.error);
  complain(null);
  model = description;
  const { width, height, channels } = model.input;
  $("model").textContent = `Model ${model.model}: ${model.classes.length} classes`;
  for (const name of model.models.filter((other) => other !== model.model)) {
    const link = document.createElement("a");
    link.href = `?model=${encodeURIComponent(name)}`;
    link.textContent = name;
    $("model").append(" · ", link);
  }
  const size = model.resize ? `resized to ${width} × ${height} pixels` : `${width} × ${height} pixels`;
  $("size").textContent = `PNG, JPEG, WebP or BMP, ${size}, ${channels === 1 ? "grey" : "colour"}`;
  $("resize").textContent = `Crop and resize to ${width} × ${height} here and try again`;
  if (channels !== 1 && channels !== 3) {
    $("size").textContent = `No image file has ${channels} channels: send arrays of ${width} × ${height} pixels instead`;
  }
}

function askForKey(problem) {
  complain(problem);
  $("model").textContent = "";
  $("key").focus();
}

function useKey(event) {
  event.preventDefault();
  key = $("key").value.trim();
  $("key").value = "";
  begin();
}

function choose(files) {
  const chosen = [...files].map((file) => ({ blob: file, name: file.name || "pasted image" }));
  $("file").value = "";  // so that the same files can be chosen again
  if (!chosen.length || !model) return;
  for (const item of items) URL.revokeObjectURL(item.url);
  for (const item of chosen) item.url = URL.createObjectURL(item.blob);
  items = chosen;
  classify(items);
}

// Ask about items, all of them in one request; what it says of each is written into it.
async function classify(asked) {
  const mine = ++attempt;
  complain(null);
  $("status").textContent = asked.length > 1 ? `${asked.length} images are sent…` : "The image is sent…";
  $("results").setAttribute("aria-busy", "true");
  const form = new FormData();
  for (const item of asked) form.append("images", item.blob, item.name);
  const began = performance.now();
  try {
    const response = await fetch(of("classify"), { method: "POST", headers: headers(), body: form });
    const answer = await response.json();
    if (mine !== attempt) return;
    if (response.ok) {
      const milliseconds = performance.now() - began;
      steps = { header: response.headers.get("Server-Timing"), milliseconds, images: asked.length };
      asked.forEach((item, i) => {
        item.error = answer.images[i].error;
        item.answer = item.error ? null : answer.images[i];
      });
      show(asked);
    } else {
      for (const item of asked) [item.answer, item.error] = [null, answer.error];
      $("results").hidden = true;
      complain(answer.error, response.status === 400 && asked);  // the browser may read what we do not
    }
  } catch (error) {
    if (mine === attempt) complain(`the server does not answer: ${error.message}`);
  } finally {
    if (mine === attempt) {
      $("results").removeAttribute("aria-busy");
      if ($("status").textContent.endsWith("…")) $("status").textContent = "";
    }
  }
}

// Say what is wrong; `again` are the items that may be tried again once the browser has resized them.
function complain(message, again) {
  $("problem").hidden = !message;
  $("problem").textContent = message || "";
  const left = (again || []).filter((item) => !item.resized);
  $("resize").hidden = !left.length;
  $("resize").onclick = () => tryResized(left);
}

async function tryResized(again) {
  try {
    for (const item of again) {
      item.blob = await resized(item.blob, model.input);
      item.resized = true;
      URL.revokeObjectURL(item.url);
      item.url = URL.createObjectURL(item.blob);
    }
    await classify(again);
  } catch (error) {
    complain(`the browser cannot resize this image: ${error.message}`);
  }
}

const verdictOf = (answer) => (answer.adversarial ? "adversarial" : answer.abstained ? "undecided" : "clean");
const labelOf = (answer) => (answer.abstained ? "no answer" : answer.class);
const said = ({ answer }) => (answer ? `${labelOf(answer)}, ${verdictOf(answer)}` : "not read");

// Show all items, and the first of those that were asked about.
function show(asked) {
  const counts = ["clean", "adversarial", "undecided"].map((word) =>
    [items.filter((item) => item.answer && verdictOf(item.answer) === word).length, word]);
  const unread = items.filter((item) => item.error);
  if (unread.length) counts.push([unread.length, "not read"]);
  const summary = counts.filter(([count]) => count).map(([count, word]) => `${count} ${word}`).join(", ");
  $("status").textContent = (items.length === 1 ? `${items[0].name}: ${said(items[0])}` : `${items.length} images: ${summary}`) +
    `, answered in ${steps.milliseconds.toFixed(0)} ms`;
  complain(unread.length ? `${unread[0].name} was not read: ${unread[0].error}` : null, unread);
  $("tabs").replaceChildren(...items.map((item, i) => {
    const tab = document.createElement("button");
    Object.assign(tab, { type: "button", id: `tab-${i}`, className: item.answer ? verdictOf(item.answer) : "" });
    tab.setAttribute("role", "tab");
    tab.setAttribute("aria-controls", "panel");
    const picture = document.createElement("img");
    Object.assign(picture, { src: item.url, alt: "" });
    const name = document.createElement("span");
    name.textContent = item.name;
    const verdict = document.createElement("span");
    verdict.textContent = said(item);
    tab.append(picture, name, verdict);
    tab.addEventListener("click", () => select(i));
    return tab;
  }));
  $("tabs").hidden = items.length === 1;
  $("results").hidden = false;
  select(items.indexOf(asked[0]));
}

function select(index) {
  [...$("tabs").children].forEach((tab, i) => {
    tab.setAttribute("aria-selected", String(i === index));
    tab.tabIndex = i === index ? 0 : -1;
  });
  $("panel").setAttribute("aria-labelledby", items.length > 1 ? `tab-${index}` : "verdict");
  const { answer, error, name, url, resized: cropped } = items[index];
  $("verdict").textContent = answer ? `${labelOf(answer)} – ${verdictOf(answer)}` : "not read";
  $("verdict").className = answer ? verdictOf(answer) : "";
  $("summary").textContent = `${name}${cropped ? ", resized here" : ""}${answer ? "" : `: ${error}`}`;
  const evidence = answer && answer.evidence;
  $("original").src = evidence ? evidence.image : url;  // next to the purified image: what the model was given
  for (const part of document.querySelectorAll(".of-evidence")) part.hidden = !evidence;
  $("hidden").hidden = !answer || Boolean(evidence);
  if (!evidence) return;
  showEvidence(answer, model);
  showSteps(steps);
}

// Tabs by keyboard, as the ARIA Authoring Practices have it: arrows, Home and End move focus and choice.
function moveTab(event) {
  const last = items.length - 1;
  const at = [...$("tabs").children].findIndex((tab) => tab.getAttribute("aria-selected") === "true");
  const to = {
    ArrowRight: at === last ? 0 : at + 1, ArrowDown: at === last ? 0 : at + 1,
    ArrowLeft: at === 0 ? last : at - 1, ArrowUp: at === 0 ? last : at - 1, Home: 0, End: last,
  }[event.key];
  if (to === undefined) return;
  event.preventDefault();
  select(to);
  $(`tab-${to}`).focus();
}

const begin = () => start().catch((error) => complain(`the model's description cannot be loaded: ${error.message}`));

$("file").addEventListener("change", () => choose($("file").files));
$("tabs").addEventListener("keydown", moveTab);
$("entry").addEventListener("submit", useKey);
document.addEventListener("paste", (event) => choose(event.clipboardData.files));
document.addEventListener("dragover", (event) => { event.preventDefault(); document.body.classList.add("dragging"); });
document.addEventListener("dragleave", () => document.body.classList.remove("dragging"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dragging");
  choose(event.dataTransfer.files);
});
begin();
