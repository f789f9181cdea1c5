// Everything that a session shows: its lanes side by side, and its edits.

import { el } from "dynatok/dom.js";
import { LaneView } from "dynatok/lane.js";
import { Timeline } from "dynatok/timeline.js";

export class Board {
  constructor(root, store, timeline = {}) {
    this.root = root;
    this.store = store;
    this.options = timeline;
    this.generation = -1;
    this.lanes = [];
  }

  // Returns whether there is more to draw in the next frame.
  draw() {
    if (!this.store.session) return false;
    if (this.generation !== this.store.generation) this.build();
    this.timeline.draw();
    return this.lanes.map((lane) => lane.draw()).some(Boolean);
  }

  build() {
    this.generation = this.store.generation;
    this.lanes = this.store.lanes.map((_, index) => new LaneView(this.store, index));
    this.timeline = new Timeline(this.store, this.options);
    const lanes = el("div", { class: `lanes of${this.lanes.length}` }, ...this.lanes.map((lane) => lane.node));
    this.root.replaceChildren(lanes, this.timeline.node);
  }
}
