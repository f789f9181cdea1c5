// The block strip: one row a pass, one cell a KV block, in engine order.

import { el } from "dynatok/dom.js";
import { COLOURS } from "dynatok/response.js";

const CELLS = 200; // new cells of a row in one frame

export const KINDS = {
  reused: "reused: taken from the cache",
  kept: "kept: from the cache, computed under an earlier state",
  shared: "shared: from the cache, computed for another response",
  recomputed: "recomputed: computed again, because what precedes it has changed",
  evicted: "evicted: computed again, because it was no longer in the cache",
  new: "new: text that no pass had computed",
  pending: "not reported yet",
};

export class Strip {
  constructor(lane, onPoint) {
    this.lane = lane;
    this.rows = [];
    this.counts = {};
    this.tied = [];
    this.at = null;
    this.onPoint = onPoint;
    this.grid = el("div", { class: "rows" });
    this.node = el(
      "div",
      {
        class: "strip",
        tabindex: "0",
        role: "group",
        "aria-label": "KV blocks, a row for each pass; arrow keys walk through them",
        onkeydown: (event) => this.walk(event),
        onfocusout: () => this.point(null),
      },
      this.grid,
    );
    this.node.addEventListener("pointerover", (event) => this.point(event.target.at ?? null));
    this.node.addEventListener("pointerleave", () => this.point(null));
  }

  draw() {
    const { lane, rows } = this;
    const below = this.node.scrollHeight - this.node.scrollTop - this.node.clientHeight < 24;
    while (rows.length > lane.passes.length) {
      const row = rows.pop();
      for (const cell of row.cells) this.recount(cell, null);
      row.node.remove();
    }
    lane.passes.forEach((pass, k) => {
      if (!rows[k]) {
        rows[k] = newRow(pass);
        this.grid.append(rows[k].node);
      }
      this.drawRow(rows[k], pass, k);
    });
    this.behind = rows.some((row, k) => row.cells.length < lane.blockCount(lane.passes[k]));
    if (below) this.node.scrollTop = this.node.scrollHeight;
  }

  drawRow(row, pass, k) {
    const { lane } = this;
    if (row.pass !== pass) Object.assign(row, { pass, blocks: null, closed: false });
    if (row.closed) return;
    if (row.state !== pass.state) {
      row.state = pass.state;
      row.swatch.className = `swatch s${pass.state % COLOURS}`;
    }
    const wanted = lane.blockCount(pass);
    while (row.cells.length > wanted) this.recount(row.cells.pop(), null).remove();
    // A pass that runs changes its last block alone, until the engine says more.
    const from = row.blocks === pass.blocks ? Math.max(0, row.cells.length - 1) : 0;
    const until = Math.min(wanted, row.cells.length + CELLS);
    for (let b = from; b < until; b++) {
      let cell = row.cells[b];
      if (!cell) {
        cell = document.createElement("i");
        cell.at = [k, b];
        row.cells.push(cell);
        row.line.append(cell);
      }
      const [kind, start, stop] = lane.blockAt(pass, b);
      this.recount(cell, kind);
      const name = stop - start < lane.blockSize ? `${kind} part` : kind;
      if (cell.className !== name) cell.className = name;
    }
    row.blocks = pass.blocks;
    row.closed = pass.done && pass.blocks !== undefined && until === wanted;
  }

  // Keeps `counts`: how many blocks of each kind are shown.
  recount(cell, kind) {
    if (cell.kind !== kind) {
      if (cell.kind) this.counts[cell.kind]--;
      if (kind) this.counts[kind] = (this.counts[kind] ?? 0) + 1;
      cell.kind = kind;
    }
    return cell;
  }

  // Cells keep their width while a response grows: there is room for the longest one.
  fit(blocks) {
    const room = this.node.clientWidth - 5 * parseFloat(getComputedStyle(this.node).fontSize);
    const width = Math.max(3, Math.min(20, Math.floor(room / Math.max(blocks, 1)) - 1));
    this.node.style.setProperty("--cell", `${width}px`);
  }

  // Shows in every pass the block that holds a response token.
  tie(index) {
    for (const cell of this.tied) cell.classList.remove("tied");
    this.tied = [];
    if (index < 0) return;
    this.lane.passes.forEach((pass, k) => {
      const position = this.lane.positionOf(pass, index);
      const cell = position === null ? null : this.rows[k]?.cells[Math.floor(position / this.lane.blockSize)];
      if (cell) {
        cell.classList.add("tied");
        this.tied.push(cell);
      }
    });
  }

  point(at) {
    if (at?.[0] === this.at?.[0] && at?.[1] === this.at?.[1]) return;
    this.cellAt(this.at)?.classList.remove("pointed");
    this.at = at;
    this.cellAt(at)?.classList.add("pointed");
    this.onPoint(at);
  }

  cellAt(at) {
    return at ? this.rows[at[0]]?.cells[at[1]] : undefined;
  }

  walk(event) {
    if (event.key === "Escape") return this.point(null);
    const step = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] }[event.key];
    if (!step || !this.rows.length) return;
    event.preventDefault();
    const [k, b] = this.at ?? [this.rows.length - 1, -1];
    const row = Math.max(0, Math.min(this.rows.length - 1, k + step[0]));
    this.point([row, Math.max(0, Math.min(this.rows[row].cells.length - 1, b + step[1]))]);
    this.cellAt(this.at)?.scrollIntoView({ block: "nearest", inline: "nearest" });
  }
}

function newRow(pass) {
  const swatch = el("span", { class: `swatch s${pass.state % COLOURS}` });
  const line = el("span", { class: "cells" });
  const node = el("div", { class: "row" }, el("span", { class: "number" }, swatch, String(pass.index)), line);
  return { node, line, swatch, cells: [], blocks: null, state: pass.state, pass, closed: false };
}
