// An exported page: the events that it carries, shown by the modules of the live one.

import { Board } from "dynatok/board.js";
import { el } from "dynatok/dom.js";
import { Store } from "dynatok/store.js";
import { visible } from "dynatok/text.js";

const { recordings, notes } = JSON.parse(document.getElementById("recordings").textContent);
const root = document.getElementById("board");
const facts = document.getElementById("facts");
const choice = document.getElementById("choice");

for (const note of notes) document.getElementById("notes").append(el("li", {}, visible(note)));
for (const [index, { title }] of recordings.entries()) {
  choice.append(el("option", { value: index }, visible(title)));
}
document.getElementById("choose").hidden = recordings.length < 2;
choice.addEventListener("change", () => show(Number(choice.value)));
if (recordings.length) show(0);

function show(index) {
  const store = new Store();
  for (const event of recordings[index].events) store.apply(event);
  const { model, seed, temperature, info } = store.session;
  const known = { ...info, model: model ?? info?.model, seed: seed ?? info?.seed, temperature };
  facts.textContent = Object.entries(known)
    .filter(([, value]) => value !== undefined)
    .map(([name, value]) => `${name} ${visible(String(value))}`)
    .join(" · ");
  const board = new Board(root, store);
  while (board.draw());
}
