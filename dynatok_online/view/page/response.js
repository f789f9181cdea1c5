// The response of a lane: one element a token, coloured by the state it was sampled under.

import { el } from "dynatok/dom.js";
import { visible } from "dynatok/text.js";

// Tokens per box. A new token lays out its box alone, and boxes out of sight are not drawn. A box
// ends behind a blank, where a line may end anyway.
const CHUNK = 512;
export const COLOURS = 8;
const LEVELS = 5;

// The colour of a stale share: of five, from nothing swallowed (0) to all of it (4).
export function staleLevel(share) {
  return share === null ? "unknown" : `w${Math.max(0, Math.min(LEVELS - 1, Math.round(share * (LEVELS - 1))))}`;
}

export class Response {
  constructor(lane, onPoint) {
    this.lane = lane;
    this.tokens = [];
    this.judged = []; // pass -> the units that have been drawn
    this.stale = null; // what is marked of it
    this.violated = []; // token -> whether it is marked
    this.tied = [];
    this.at = -1;
    this.onPoint = onPoint;
    this.text = el("div", { class: "text" });
    this.node = el(
      "div",
      {
        class: "response",
        tabindex: "0",
        role: "group",
        "aria-label": "Response; arrow keys walk through its tokens",
        onkeydown: (event) => this.walk(event),
        onfocusout: () => this.point(-1),
      },
      this.text,
    );
    this.node.addEventListener("pointerover", (event) => this.point(event.target.index ?? -1));
    this.node.addEventListener("pointerleave", () => this.point(-1));
  }

  draw() {
    const { lane, tokens } = this;
    // A token that was taken back may have been followed by others before this frame.
    const kept = Math.min(lane.ids.length, lane.cutAt);
    lane.cutAt = Infinity;
    while (tokens.length > kept) {
      const gone = tokens.pop();
      const box = gone.parentNode;
      gone.remove();
      if (!box.childNodes.length) box.remove();
      this.violated.pop();
    }
    this.judged.length = Math.min(this.judged.length, lane.passes.length);
    if (tokens.length < lane.ids.length) this.append();
    this.mark();
    this.markStale();
  }

  append() {
    const { node, lane, tokens } = this;
    const below = node.scrollHeight - node.scrollTop - node.clientHeight < 40;
    while (tokens.length < lane.ids.length) {
      const i = tokens.length;
      let box = this.text.lastChild;
      const full = box?.childNodes.length >= CHUNK;
      if (!box || (full && (/\s$/.test(lane.texts[i - 1]) || box.childNodes.length >= 2 * CHUNK))) {
        box = el("span", { class: "chunk" });
        this.text.append(box);
      }
      const token = document.createElement("span");
      const pass = lane.passes[lane.passAt[i]];
      token.className = `token s${pass.state % COLOURS}`;
      if (i === pass.start && i > 0) token.classList.add("first");
      if (lane.control[i]) token.classList.add("control");
      token.textContent = visible(lane.control[i] ?? lane.texts[i]);
      token.index = i;
      box.append(token);
      tokens.push(token);
    }
    if (below) node.scrollTop = node.scrollHeight;
  }

  mark() {
    const { lane } = this;
    lane.passes.forEach((pass, k) => {
      if (this.judged[k] === pass.units) return;
      this.judged[k] = pass.units;
      const bad = new Set();
      for (const [, first, last, holds] of pass.units) {
        if (!holds) for (let i = first; i <= last; i++) bad.add(i);
      }
      for (let i = pass.start; i < Math.min(pass.stop, this.tokens.length); i++) {
        if (!!this.violated[i] !== bad.has(i)) {
          this.violated[i] = bad.has(i);
          this.tokens[i].classList.toggle("violated", bad.has(i));
        }
      }
    });
  }

  // A line under what follows an edit says how much of the edit old KV swallowed.
  markStale() {
    const { lane, tokens } = this;
    if (lane.stale === this.stale) return;
    this.stale = lane.stale;
    for (const [start, stop, share] of lane.stale) {
      for (const token of tokens.slice(start, stop)) token.classList.add("stale", staleLevel(share));
    }
  }

  // Shows which tokens a block holds.
  tie(first, stop) {
    for (const token of this.tied) token.classList.remove("tied");
    this.tied = this.tokens.slice(Math.max(first, 0), Math.max(stop, 0));
    for (const token of this.tied) token.classList.add("tied");
  }

  point(index) {
    if (index === this.at) return;
    this.tokens[this.at]?.classList.remove("pointed");
    this.at = index;
    this.tokens[index]?.classList.add("pointed");
    this.onPoint(index);
  }

  walk(event) {
    const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 40, ArrowUp: -40 }[event.key];
    const last = this.tokens.length - 1;
    if (event.key === "Escape") this.point(-1);
    if (event.key === "Home") this.point(Math.min(0, last));
    if (event.key === "End") this.point(last);
    if (step) this.point(Math.max(0, Math.min(last, this.at < 0 ? last : this.at + step)));
    if (step || event.key === "Home" || event.key === "End") {
      event.preventDefault();
      this.tokens[this.at]?.scrollIntoView({ block: "nearest" });
    }
  }
}
