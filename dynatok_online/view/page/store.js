// Folds the events of a session into what is shown. The live page and an exported one use it alike.

export class Store {
  constructor() {
    this.clear();
  }

  clear() {
    this.session = null;
    this.seq = 0;
    this.lanes = [];
    this.edits = [];
    this.states = []; // distinct combinations of slot texts, in order of appearance
    this.slots = {}; // what stands in the slots now: name -> {text, requirement}
    this.undo = []; // what an undo returns to, newest last
    this.paused = false;
    this.ended = false;
    this.generation = (this.generation ?? 0) + 1; // views begin anew when it changes
  }

  apply(event) {
    this.seq = event.seq;
    const lane = event.lane === undefined ? null : this.lanes[event.lane];
    HANDLERS[event.type]?.call(this, event, lane);
  }

  // The number of a state: equal texts are one state, so a toggle gets its colour back.
  stateOf(states) {
    const key = JSON.stringify(Object.entries(states).map(([name, text]) => [name, text.trimEnd()]));
    let index = this.states.findIndex((state) => state.key === key);
    if (index < 0) {
      index = this.states.length;
      this.states.push({ key, slots: states });
    }
    return index;
  }
}

const HANDLERS = {
  session(event) {
    this.clear();
    this.session = event;
    this.seq = event.seq;
    this.slots = event.slots;
    this.lanes = event.lanes.map((reuse) => new Lane(reuse, event.block_size));
    this.stateOf(textsOf(this.slots));
  },
  edit(event) {
    const before = this.slots;
    if (event.key?.startsWith("undo")) this.undo.pop();
    else this.undo.push(before);
    this.slots = { ...before };
    for (const [name, slot] of Object.entries(event.slots)) {
      this.slots[name] = { text: slot.text, requirement: slot.requirement };
    }
    this.edits[event.edit] = { ...event, after: this.slots, effects: [] };
    this.edits[event.edit].state = this.stateOf(textsOf(this.slots));
  },
  effect(event, lane) {
    this.edits[event.edit].effects[event.lane] = event;
    lane.version++;
  },
  paused(event) {
    this.paused = event.paused;
  },
  ended() {
    this.ended = true;
  },
  piece(event, lane) {
    const texts = [...event.texts];
    for (const [i, name] of event.control ?? []) texts[i] = `⟦${name}⟧`;
    lane.pieces[event.piece] = texts;
  },
  pass(event, lane) {
    lane.begin(event, this.stateOf(event.states));
  },
  tokens(event, lane) {
    lane.extend(event);
  },
  blocks(event, lane) {
    const { blocks, cached, layout } = event;
    Object.assign(lane.passes[event.index], { blocks, cached, layout });
    lane.version++;
  },
  passend(event, lane) {
    lane.end(event);
  },
  verdict(event, lane) {
    Object.assign(lane.passes[event.index], { scores: event.scores, units: event.units });
    lane.version++;
  },
  cut(event, lane) {
    lane.cut(event.start);
  },
  void(event, lane) {
    lane.passes.length = event.index;
    lane.version++;
  },
  finished(event, lane) {
    lane.status = event.finish === "length" ? "full" : "ended";
    lane.message = (event.problems ?? []).join("; ");
    lane.version++;
  },
  failed(event, lane) {
    lane.status = "failed";
    lane.message = event.message;
    lane.version++;
  },
  measuring(event, lane) {
    lane.measuring = true;
  },
  stale(event, lane) {
    lane.measuring = false;
    lane.stale = event.stretches; // [start, stop, share or null, nats kept, nats fresh]
    lane.version++;
  },
  unmeasured(event, lane) {
    lane.measuring = false;
    lane.message = event.message;
    lane.version++;
  },
  sending(event, lane) {
    lane.sending = "sending"; // to the learner
  },
  sent(event, lane) {
    lane.sending = "sent";
  },
  unsent(event, lane) {
    lane.sending = "";
    lane.message = event.message;
    lane.version++;
  },
};

function textsOf(slots) {
  return Object.fromEntries(Object.entries(slots).map(([name, slot]) => [name, slot.text]));
}

export class Lane {
  constructor(reuse, blockSize) {
    this.reuse = reuse;
    this.blockSize = blockSize;
    this.passes = [];
    this.ids = [];
    this.texts = [];
    this.control = []; // token -> its name, where it is a control token
    this.logprobs = [];
    this.passAt = []; // token -> index of the pass that sampled it
    this.times = []; // [seconds, tokens], for the rate
    this.pieces = [];
    this.status = "writing";
    this.message = "";
    this.sending = "";
    this.measuring = false;
    this.stale = null;
    this.cutAt = Infinity; // the lowest cut that has not been drawn yet
    this.version = 0; // grows with every change
  }

  begin(event, state) {
    this.passes.length = event.index;
    this.passes.push({ ...event, state, stop: event.start, scores: {}, units: [] });
    this.version++;
  }

  extend(event) {
    const pass = this.passes.at(-1);
    for (const [i, name] of event.control ?? []) this.control[event.start + i] = name;
    this.ids.push(...event.ids);
    this.texts.push(...event.texts);
    if (event.logprobs) this.logprobs.push(...event.logprobs);
    for (let i = this.passAt.length; i < this.ids.length; i++) this.passAt.push(pass.index);
    pass.stop = this.ids.length;
    if (event.at !== undefined) this.times.push([event.at, this.ids.length]);
    this.version++;
  }

  end(event) {
    const pass = this.passes[event.index];
    event.logprobs.forEach((value, i) => (this.logprobs[pass.start + i] = value));
    const { type, seq, lane, logprobs, at, ...rest } = event;
    Object.assign(pass, rest, { done: true });
    this.version++;
  }

  cut(length) {
    for (const list of [this.ids, this.texts, this.control, this.logprobs, this.passAt]) {
      list.length = Math.min(list.length, length);
    }
    const pass = this.passes.at(-1);
    if (pass) pass.stop = Math.max(pass.start, Math.min(pass.stop, length));
    this.cutAt = Math.min(this.cutAt, length);
    this.times = [];
    this.version++;
  }

  // How many positions of a pass have KV: all but the last sampled token.
  positions(pass) {
    return pass.fed + Math.max(0, pass.stop - pass.start - 1);
  }

  blockCount(pass) {
    return Math.ceil(this.positions(pass) / this.blockSize);
  }

  // Block `b` of a pass as [kind, start, stop, origin]; while the pass runs, as far as is known.
  blockAt(pass, b) {
    const start = b * this.blockSize;
    const stop = Math.min(start + this.blockSize, this.positions(pass));
    const [kind, , , origin] = pass.blocks?.[b] ?? [start >= pass.fed ? "new" : "pending", 0, 0, pass.index];
    return [kind, start, stop, origin];
  }

  // Where response token `index` stands in a pass, or null where it is not in it.
  positionOf(pass, index) {
    if (index >= pass.stop) return null;
    if (index >= pass.start) return pass.fed + index - pass.start;
    const offset = this.responseOffset(pass);
    return offset === null ? null : offset + index;
  }

  // The response token at a position of a pass, or null where the prompt stands there.
  tokenAt(pass, position) {
    if (position >= pass.fed) return pass.start + position - pass.fed;
    const index = position - (this.responseOffset(pass) ?? Infinity);
    return index >= 0 && index < pass.start ? index : null;
  }

  responseOffset(pass) {
    if (!pass.layout) return null;
    let offset = 0;
    for (const piece of pass.layout) {
      if (piece < 0) return offset;
      offset += this.pieces[piece]?.length ?? 0;
    }
    return null;
  }

  // The text at positions `start .. stop` of a pass, as the engine saw it.
  textAt(pass, start, stop) {
    const texts = [];
    for (const piece of pass.layout ?? []) {
      texts.push(...(piece < 0 ? this.texts.slice(0, pass.start) : this.pieces[piece] ?? []));
    }
    texts.push(...this.texts.slice(pass.start, pass.stop));
    return texts.slice(start, stop).join("");
  }

  // The running figures.
  figures() {
    let cached = 0;
    let computed = 0;
    let recomputed = 0;
    for (const pass of this.passes) {
      cached += pass.cached ?? 0;
      computed += pass.computed ?? 0;
      recomputed += pass.recomputed ?? 0;
    }
    return { tokens: this.ids.length, cached, computed, recomputed, rate: this.rate() };
  }

  rate() {
    const last = this.times.at(-1);
    if (!last) return null;
    let from = this.times.length - 1;
    const window = this.status === "writing" ? 2 : Infinity;
    while (from > 0 && last[0] - this.times[from - 1][0] <= window) from--;
    const [at, tokens] = this.times[from];
    return last[0] > at ? (last[1] - tokens) / (last[0] - at) : null;
  }

  // Per state: tokens written under it, and the share of judged units that hold.
  adherence() {
    const byState = new Map();
    for (const pass of this.passes) {
      const entry = byState.get(pass.state) ?? { tokens: 0, units: 0, held: 0, counted: true };
      entry.tokens += pass.stop - pass.start;
      const scores = Object.values(pass.scores);
      if (pass.units.length) {
        entry.units += pass.units.length;
        entry.held += pass.units.filter((unit) => unit[3]).length;
      } else if (scores.length) {
        // Only the scores are known: they count by the tokens that they speak of.
        entry.counted = false;
        const weight = pass.stop - pass.start;
        entry.units += weight;
        entry.held += (weight * scores.reduce((sum, one) => sum + one, 0)) / scores.length;
      }
      byState.set(pass.state, entry);
    }
    return byState;
  }
}
