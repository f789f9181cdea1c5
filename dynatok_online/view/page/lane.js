// One lane: its figures, its response, its block strip, and what the pointer is on.

import { el, write } from "dynatok/dom.js";
import { policyOf } from "dynatok/policies.js";
import { COLOURS, Response, staleLevel } from "dynatok/response.js";
import { KINDS, Strip } from "dynatok/strip.js";
import { quoted, share, visible } from "dynatok/text.js";

const STATUS = { writing: "writing", ended: "finished", full: "full length", failed: "failed" };

export class LaneView {
  constructor(store, index) {
    this.store = store;
    this.lane = store.lanes[index];
    this.index = index;
    this.drawn = -1;
    const [title, what] = policyOf(this.lane.reuse);
    this.response = new Response(this.lane, (token) => this.showToken(token));
    this.strip = new Strip(this.lane, (at) => this.showBlock(at));
    this.status = el("span", { class: "status" });
    this.figures = {};
    this.notes = {};
    this.detail = el("p", { class: "detail" });
    this.hint = "Point at a token or a block to see where it came from.";
    this.legend = el("ul", { class: "legend" });
    this.states = el("tbody");
    this.stale = el("ul", { class: "swallowed", "aria-label": "What old KV swallowed of each edit" });
    this.stale.hidden = true;
    this.node = el(
      "section",
      { class: "lane", "aria-label": `Lane ${title}`, "data-reuse": this.lane.reuse },
      el("header", {}, el("h2", {}, title), this.status, el("span", { class: "what" }, what)),
      el(
        "dl",
        { class: "figures" },
        ...this.figure("tokens", "tokens"),
        ...this.figure("rate", "tokens/s"),
        ...this.figure("reuse", "reused"),
        ...this.figure("recomputed", "recomputed"),
        ...this.figure("first", "edit to first token"),
        ...this.figure("adherence", "adherence"),
      ),
      this.response.node,
      this.stale,
      this.detail,
      el("h3", {}, "KV blocks ", el("small", {}, `${this.lane.blockSize} tokens each, a row per pass`)),
      this.strip.node,
      this.legend,
      el("h3", {}, "States"),
      el(
        "div",
        { class: "states" },
        el(
          "table",
          {},
          el(
            "thead",
            {},
            el("tr", {}, el("th", {}, "state"), el("th", {}, "tokens"), el("th", {}, "adherence")),
          ),
          this.states,
        ),
      ),
    );
    for (const [kind, what] of Object.entries(KINDS)) {
      if (kind === "pending") continue;
      const count = el("b", {}, "0");
      this.legend.append(el("li", { "data-kind": kind, title: what }, el("i", { class: kind }), kind, " ", count));
    }
    write(this.detail, visible(this.hint));
    new ResizeObserver(() => this.strip.fit(this.longest())).observe(this.strip.node);
  }

  // How many blocks the longest pass may come to have.
  longest() {
    const { lane, store } = this;
    const { max_tokens: most } = store.session;
    const lengths = lane.passes.map((pass) =>
      most === undefined ? lane.positions(pass) : pass.fed - pass.start + most,
    );
    return Math.ceil(Math.max(0, ...lengths) / lane.blockSize);
  }

  figure(name, label) {
    const value = el("dd", { "data-figure": name }, "–");
    this.figures[name] = value;
    this.notes[name] = el("dd", { class: "note" });
    return [el("div", {}, el("dt", {}, label), value, this.notes[name])];
  }

  // Returns whether there is more to draw in the next frame.
  draw() {
    const { lane, store } = this;
    const version = `${lane.version}/${store.paused}/${store.edits.length}`;
    if (version === this.drawn && !this.strip.behind) return false;
    this.drawn = version;
    this.response.draw();
    if (lane.passes.length !== this.fitted) this.strip.fit(this.longest());
    this.fitted = lane.passes.length;
    this.strip.draw();
    this.drawFigures();
    this.drawStates();
    this.drawStale();
    const paused = store.paused && lane.status === "writing";
    write(this.status, paused ? "paused" : STATUS[lane.status] ?? lane.status);
    this.status.className = `status ${paused ? "paused" : lane.status}`;
    if (lane.message && this.hint !== lane.message) {
      this.hint = lane.message;
      write(this.detail, visible(this.hint));
    }
    return this.strip.behind;
  }

  drawFigures() {
    const { lane, store, figures } = this;
    const { tokens, cached, computed, recomputed, rate } = lane.figures();
    write(figures.tokens, String(tokens));
    write(figures.rate, rate === null ? "–" : rate.toFixed(rate < 100 ? 1 : 0));
    const reused = share(cached, cached + computed);
    write(figures.reuse, reused.percent);
    write(this.notes.reuse, reused.of);
    write(figures.recomputed, String(recomputed));
    const times = store.edits.map((edit) => edit.effects[this.index]?.ms).filter((ms) => ms != null);
    write(figures.first, times.length ? `${times.at(-1).toFixed(0)} ms` : "–");
    const { counts } = this.strip;
    for (const item of this.legend.children) {
      const count = counts[item.dataset.kind] ?? 0;
      write(item.lastChild, String(count));
      item.classList.toggle("none", count === 0);
    }
  }

  drawStates() {
    const found = [...this.lane.adherence()].sort(([a], [b]) => a - b);
    const all = { units: 0, held: 0, counted: true };
    found.forEach(([state, entry], row) => {
      all.units += entry.units;
      all.held += entry.held;
      all.counted &&= entry.counted;
      let line = this.states.children[row];
      if (!line) {
        line = el("tr", {}, el("td", {}, el("span", { class: "swatch" }), el("span")), el("td"), el("td"));
        this.states.append(line);
      }
      const slots = Object.entries(this.store.states[state].slots);
      line.firstChild.firstChild.className = `swatch s${state % COLOURS}`;
      line.dataset.state = state;
      write(line.firstChild.lastChild, slots.map(([, text]) => visible(text).trim() || "–").join(" · "));
      write(line.children[1], String(entry.tokens));
      const { percent, of, interval } = share(entry.held, entry.units);
      write(line.children[2], entry.counted ? `${percent} ${of}` : percent);
      line.children[2].title = entry.counted ? `95 % interval ${interval}` : "";
    });
    while (this.states.children.length > found.length) this.states.lastChild.remove();
    const { percent, of, interval } = share(all.held, all.units);
    write(this.figures.adherence, percent);
    write(this.notes.adherence, all.counted && all.units ? `${of} · ${interval}` : "");
  }

  drawStale() {
    const { stale } = this.lane;
    if (stale === null || stale === this.staleDrawn) return;
    this.staleDrawn = stale;
    this.stale.hidden = false;
    const what =
      "The line under the text: how much of an edit's effect on it old KV swallowed. Effect: how much likelier (below 0: " +
      "less likely) the edit makes these tokens, summed; what is left with the KV that was kept, of that of a fresh prompt.";
    this.stale.replaceChildren(
      el("li", { class: "what" }, what),
      ...stale.map(([start, stop, share, kept, fresh]) => {
        const said = share === null ? "too little effect to take a share of" : `${(100 * share).toFixed(0)} %`;
        return el(
          "li",
          { "data-share": share ?? "" },
          el("i", { class: staleLevel(share) }),
          `tokens ${start} to ${stop - 1}: `,
          el("b", {}, said),
          ` (${kept.toFixed(1)} of ${fresh.toFixed(1)} nats left)`,
        );
      }),
    );
  }

  showToken(index) {
    const { lane } = this;
    this.strip.tie(index);
    if (index < 0 || index >= lane.ids.length) return write(this.detail, visible(this.hint));
    const pass = lane.passes[lane.passAt[index]];
    const verdicts = pass.units
      .filter(([, first, last]) => first <= index && index <= last)
      .map(([slot, , , holds]) => `${slot} ${holds ? "holds" : "violated"}`);
    const logprob = lane.logprobs[index];
    const parts = [
      lane.control[index] ? `control token ${index} ${visible(lane.control[index])}` : `token ${index} ${quoted(lane.texts[index])}`,
      `id ${lane.ids[index]}`,
      logprob == null ? "logprob known when the pass ends" : `logprob ${logprob.toFixed(3)}`,
      `pass ${pass.index}`,
      `state ${pass.state}`,
      versionOf(pass, index) < 0 ? "weights not recorded" : `weights ${versionOf(pass, index)}`,
      verdicts.length ? verdicts.join(", ") : "no verdict",
    ];
    write(this.detail, parts.join(" · "));
  }

  showBlock(at) {
    const { lane } = this;
    if (!at) {
      this.response.tie(0, 0);
      return write(this.detail, visible(this.hint));
    }
    const pass = lane.passes[at[0]];
    const [kind, start, stop, origin] = lane.blockAt(pass, at[1]);
    const held = [];
    for (let position = start; position < stop; position++) {
      const token = lane.tokenAt(pass, position);
      if (token !== null) held.push(token);
    }
    this.response.tie(held[0] ?? 0, (held.at(-1) ?? -1) + 1);
    const from = origin >= 0 && origin !== pass.index ? ` · computed in pass ${origin}` : "";
    const text = pass.layout ? ` · ${quoted(lane.textAt(pass, start, stop), 60)}` : "";
    write(this.detail, `pass ${pass.index}, block ${at[1]} · positions ${start}–${stop - 1} · ${KINDS[kind]}${from}${text}`);
  }
}

function versionOf(pass, index) {
  let at = pass.start;
  for (const [version, length] of pass.versions ?? []) {
    at += length;
    if (index < at) return version;
  }
  return pass.version;
}
