// The live page: steers the server, folds what it says into the store, draws once a frame.

import { Board } from "dynatok/board.js";
import { everyFrame, write } from "dynatok/dom.js";
import { readLink, writeLink } from "dynatok/link.js";
import { Prompt } from "dynatok/prompt.js";
import { Connection } from "dynatok/socket.js";
import { Store } from "dynatok/store.js";
import { visible } from "dynatok/text.js";

const $ = (id) => document.getElementById(id);
const store = new Store();
const asked = new Map(); // edit key -> when it was asked for, on this page
const seen = new Map(); // edit key -> milliseconds until its first token was on the screen
let status = { state: "connecting", message: "connecting" };
let connected = false;
let refusal = ""; // why the server lets this page not in
let welcomed = false;
let keys = 0;
let link = readLink();
let following = true;

const prompt = new Prompt($("prompt"), (slots) => {
  saveLink();
  if (store.session && !store.ended) edit(slots, "edit");
});
const board = new Board($("board"), store, { seen, onReturn: (slots) => edit(slots, "set") });
const draw = everyFrame(drawAll);
const connection = new Connection(
  () => [store.session?.session ?? "", store.seq],
  receive,
  (open, why) => {
    connected = open;
    refusal = why;
    draw();
  },
);

function receive(message) {
  if (message.type === "welcome") welcome(message);
  else if (message.type === "status") status = message;
  else if (message.type === "refused") notice(message.message);
  else {
    for (const event of message.events) {
      store.apply(event);
      if (event.type === "session") follow(event);
      if (event.type === "edit" && following) prompt.show(store.slots);
    }
  }
  draw();
}

function welcome({ defaults, requirements, choices }) {
  prompt.requirements = requirements;
  prompt.choices = choices;
  if (welcomed) return;
  welcomed = true;
  load({ ...defaults, ...link });
}

// The fields show what the session writes, unless this page was opened with another prompt.
function follow(session) {
  following = link === null || link.template === session.template;
  link = null;
  if (following) load(session);
}

function load(settings) {
  prompt.load(settings.template, settings.slots);
  $("temperature").value = settings.temperature;
  $("seed").value = settings.seed;
  $("max-tokens").value = settings.max_tokens;
  $("placement").value = settings.placement;
  const refresh = settings.lanes.find((lane) => lane.startsWith("refresh:"));
  if (refresh) showRefresh(refresh);
  for (const box of document.querySelectorAll("[name=lane]")) box.checked = settings.lanes.includes(box.value);
}

function showRefresh(lane) {
  const last = lane.slice("refresh:".length);
  $("refresh").value = lane;
  write($("refresh-tokens"), visible(last));
  $("refresh-last").value = Number.parseInt(last, 10);
}

function settings() {
  return {
    template: prompt.template.value,
    slots: prompt.current(),
    lanes: [...document.querySelectorAll("[name=lane]:checked")].map((box) => box.value),
    placement: $("placement").value,
    temperature: Number($("temperature").value),
    seed: Number($("seed").value),
    max_tokens: Number($("max-tokens").value),
  };
}

function saveLink() {
  if (welcomed) writeLink(settings());
}

function edit(slots, kind) {
  const key = `${kind}-${Date.now().toString(36)}-${keys++}`;
  asked.set(key, performance.now());
  if (!connection.send({ type: "edit", slots, key })) notice("Not connected: the edit was not sent.");
}

function start() {
  const wanted = settings();
  if (!wanted.lanes.length) return notice("Choose at least one lane.");
  notice("");
  saveLink();
  connection.send({ type: "start", ...wanted });
}

const HINT = $("notice").textContent;

function notice(text) {
  write($("notice"), visible(text) || HINT);
  $("notice").classList.toggle("said", Boolean(text));
}

function drawAll() {
  if (board.draw()) draw();
  const running = store.session !== null && !store.ended;
  const ready = connected && status.state === "ready";
  write($("engine"), connected ? visible(status.message) : visible(refusal) || "connection lost; reconnecting");
  $("engine").dataset.state = connected ? status.state : "dead";
  write($("model"), status.model ? `model ${visible(status.model)}` : "");
  write($("weights"), status.version >= 0 ? `· weights ${status.version}` : "");
  $("start").disabled = !ready;
  $("pause").disabled = !running || !connected;
  write($("pause"), store.paused && running ? "Resume" : "Pause");
  $("undo").disabled = !running || !store.undo.length || !connected;
  $("stop").disabled = !running || !connected;
  $("speed").disabled = !status.paced;
  showSpeed();
  const keep = store.lanes.filter((lane) => !["exact", "none"].includes(lane.reuse));
  const measuring = store.lanes.some((lane) => lane.measuring);
  $("measure").hidden = !status.measures;
  $("measure").disabled = running || !store.edits.length || !keep.length || measuring || keep.every((lane) => lane.stale);
  write($("measure"), measuring ? "Measuring…" : "Stale share");
  $("send").hidden = !status.sends;
  const sending = store.lanes[0]?.sending ?? "";
  write($("send"), { sending: "Sending…", sent: "Sent" }[sending] ?? "Send to learner");
  $("send").title = sending === "sending" ? "It is sent as soon as the learner has room" : "";
  $("send").disabled = running || !store.session || sending !== "";
  offer($("save-html"), store.session !== null);
  offer($("save-trajectory"), store.session !== null && !running);
  write($("announce"), announcement(running));
  requestAnimationFrame(noteSeen);
}

function showSpeed() {
  const { speed } = status;
  if (speed === undefined || document.activeElement === $("speed")) return;
  if (![...$("speed").options].some((option) => Number(option.value) === speed)) {
    $("speed").append(new Option(`${speed} tokens/s`, speed));
  }
  $("speed").value = speed;
}

// A link without an address cannot be followed, by no pointer and by no key.
function offer(link, on) {
  link.setAttribute("aria-disabled", !on);
  if (on) link.setAttribute("href", link.dataset.href);
  else link.removeAttribute("href");
}

// The frame that shows the first token under an edit is on the screen when the next one begins.
function noteSeen() {
  for (const edit of store.edits) {
    if (asked.has(edit.key) && edit.effects.some(Boolean)) {
      seen.set(edit.key, performance.now() - asked.get(edit.key));
      asked.delete(edit.key);
      draw();
    }
  }
}

function announcement(running) {
  if (!connected) return "Connection lost";
  if (status.state !== "ready") return status.message;
  if (!store.session) return "Ready";
  if (running) return store.paused ? "Paused" : "Writing";
  return "Finished";
}

$("start").addEventListener("click", start);
$("pause").addEventListener("click", () => connection.send({ type: "pause", paused: !store.paused }));
$("stop").addEventListener("click", () => connection.send({ type: "stop" }));
$("undo").addEventListener("click", () => store.undo.length && edit(store.undo.at(-1), "undo"));
$("measure").addEventListener("click", () => connection.send({ type: "measure" }));
$("send").addEventListener("click", () => connection.send({ type: "send", lane: 0 }));
$("speed").addEventListener("change", () =>
  connection.send({ type: "speed", tokens_per_second: Number($("speed").value) }),
);
$("share").addEventListener("click", async () => {
  saveLink();
  await navigator.clipboard?.writeText(location.href).catch(() => {});
  notice("The address holds prompt, slots and settings; it is on the clipboard.");
});
$("settings").addEventListener("change", saveLink);
$("refresh-last").addEventListener("input", (event) => {
  showRefresh(`refresh:${event.target.value}`);
  $("refresh").checked = true;
});
prompt.template.addEventListener("change", saveLink);
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !$("start").disabled) start();
});
