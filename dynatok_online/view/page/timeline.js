// The edits of a session, newest first, each with how long its first token took in every lane.

import { el, write } from "dynatok/dom.js";
import { policyOf } from "dynatok/policies.js";
import { COLOURS } from "dynatok/response.js";
import { quoted } from "dynatok/text.js";

export class Timeline {
  constructor(store, { seen = new Map(), onReturn = null } = {}) {
    this.store = store;
    this.seen = seen; // edit key -> milliseconds until this page showed its first token
    this.onReturn = onReturn;
    this.entries = [];
    this.list = el("ol", { class: "edits" });
    this.empty = el("p", { class: "none" }, "No edits yet.");
    this.node = el("section", { class: "timeline", "aria-label": "Edits" }, el("h2", {}, "Edits"), this.empty, this.list);
  }

  draw() {
    this.store.edits.forEach((edit, number) => {
      if (!this.entries[number]) this.add(edit, number);
      const { times } = this.entries[number];
      write(times, this.timesOf(edit));
      const seen = this.seen.get(edit.key);
      if (seen !== undefined) this.entries[number].node.dataset.seenMs = seen.toFixed(1);
    });
    this.empty.hidden = this.entries.length > 0;
  }

  add(edit, number) {
    const changes = Object.entries(edit.slots).map(
      ([name, slot]) => `${name}: ${quoted(slot.from.trim(), 24)} → ${quoted(slot.text.trim(), 24)}`,
    );
    const times = el("span", { class: "times" });
    const again = this.onReturn
      ? el("button", { type: "button", onclick: () => this.onReturn(edit.after), title: "Return to this state" }, "Use again")
      : null;
    const what = el("span", { class: "change" }, changes.join("; "));
    const swatch = el("span", { class: `swatch s${edit.state % COLOURS}` });
    const node = el("li", { "data-edit": number }, swatch, what, times, again);
    this.entries[number] = { node, times };
    this.list.prepend(node);
  }

  timesOf(edit) {
    const parts = [];
    if (edit.at !== undefined) parts.push(`at ${edit.at.toFixed(1)} s`);
    if (edit.source && edit.source !== "human") parts.push(edit.source);
    const lanes = edit.effects.filter(Boolean);
    if (!lanes.length) parts.push("waiting for its first token");
    for (const effect of lanes) {
      const { reuse } = this.store.lanes[effect.lane];
      const name = this.store.lanes.length > 1 ? `${policyOf(reuse)[0].toLowerCase()}: ` : "";
      parts.push(`${name}token ${effect.index}${effect.ms == null ? "" : ` after ${effect.ms.toFixed(0)} ms`}`);
    }
    const seen = this.seen.get(edit.key);
    if (seen !== undefined) parts.push(`on screen after ${seen.toFixed(0)} ms`);
    return parts.join(" · ");
  }
}
