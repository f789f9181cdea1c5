// The prompt with its slots: a template, and for each slot a field and the known requirements.

import { el } from "dynatok/dom.js";
import { visible } from "dynatok/text.js";

// A place, or a literal {{"..."}}, whose text is none.
const PLACE = /\{\{\s*(?:([A-Za-z_][A-Za-z0-9_]*)|"(?:[^"\\]|\\.)*")\s*\}\}/g;

export class Prompt {
  constructor(root, onApply) {
    this.onApply = onApply; // called with {name: {text, requirement}}: what a person has changed
    this.requirements = [];
    this.choices = {}; // slot -> the states to offer, where the settings name them
    this.slots = {};
    this.rows = new Map();
    this.template = root.querySelector("textarea");
    this.fields = root.querySelector(".slots");
    this.template.addEventListener("input", () => this.sync());
  }

  // Takes over a prompt as a whole.
  load(template, slots) {
    this.template.value = template;
    this.slots = structuredClone(slots);
    this.sync();
  }

  // What stands in the slots now, whoever changed it.
  show(slots) {
    for (const [name, slot] of Object.entries(slots)) {
      if (this.slots[name]?.text !== slot.text || this.slots[name]?.requirement !== slot.requirement) {
        this.slots[name] = { ...slot };
        this.rows.get(name)?.show(this.slots[name]);
      }
    }
  }

  names() {
    const names = [...this.template.value.matchAll(PLACE)].map((match) => match[1]);
    return [...new Set(names)].filter((name) => name !== undefined && name !== "response");
  }

  current() {
    // Typed and not applied counts too: what is on the screen is what is written.
    return Object.fromEntries(this.names().map((name) => [name, this.rows.get(name).typed()]));
  }

  sync() {
    const names = this.names();
    for (const [name, row] of this.rows) {
      if (!names.includes(name)) {
        row.node.remove();
        this.rows.delete(name);
      }
    }
    for (const name of names) {
      this.slots[name] ??= { text: "", requirement: null };
      if (!this.rows.has(name)) this.rows.set(name, new SlotRow(this, name));
      const row = this.rows.get(name);
      row.show(this.slots[name]);
      this.fields.append(row.node);
    }
  }

  // What there is to choose for a slot: states. Without a kind that is known: all of them.
  offered(name, family) {
    const known = this.requirements.filter((one) => family === undefined || one.family === family);
    return this.choices[name] ?? known.map((one) => ({ text: one.text, requirement: one.name }));
  }

  requirementOf(name, text) {
    const same = (one) => one.text === text.trim();
    const chosen = this.choices[name]?.find(same);
    return chosen ? chosen.requirement : (this.requirements.find(same)?.name ?? null);
  }

  apply(name, slot) {
    this.slots[name] = slot;
    this.rows.get(name).show(slot);
    this.onApply({ [name]: slot });
  }
}

class SlotRow {
  constructor(prompt, name) {
    this.prompt = prompt;
    this.name = name;
    const id = `slot-${name}`;
    this.input = el("input", {
      id,
      type: "text",
      autocomplete: "off",
      spellcheck: "false",
      maxlength: "2000",
      oninput: () => this.mark(),
      onkeydown: (event) => {
        if (event.key === "Enter") this.apply();
        if (event.key === "Escape") this.show(this.prompt.slots[name]);
      },
    });
    this.button = el("button", { type: "button", class: "apply", onclick: () => this.apply() }, "Apply");
    this.chips = el("div", { class: "chips", role: "group", "aria-label": `Known requirements for ${name}` });
    this.node = el(
      "div",
      { class: "slot", "data-slot": name },
      el("label", { for: id }, visible(name)),
      el("div", { class: "field" }, this.input, this.button),
      this.chips,
    );
  }

  typed() {
    const text = this.input.value;
    const slot = this.prompt.slots[this.name];
    return text === slot.text.trimEnd() ? slot : { text, requirement: this.prompt.requirementOf(this.name, text) };
  }

  apply() {
    const slot = this.typed();
    if (slot !== this.prompt.slots[this.name]) this.prompt.apply(this.name, slot);
  }

  show(slot) {
    const text = slot.text.trimEnd();
    if (this.input.value !== text) this.input.value = text;
    this.drawChips(slot);
    this.mark();
  }

  mark() {
    const pending = this.typed() !== this.prompt.slots[this.name];
    this.node.classList.toggle("pending", pending);
    this.button.disabled = !pending;
  }

  drawChips(slot) {
    const family = this.prompt.requirements.find((one) => one.name === slot.requirement)?.family;
    if (family !== undefined) this.family = family;
    const shown = this.prompt.offered(this.name, this.family);
    if (this.chips.childElementCount !== shown.length || this.drawn !== this.family) {
      this.drawn = this.family;
      this.chips.replaceChildren(
        ...shown.map((state) =>
          el(
            "button",
            {
              type: "button",
              class: "chip",
              "data-requirement": state.requirement ?? "",
              onclick: () => this.prompt.apply(this.name, { ...state }),
            },
            state.text,
          ),
        ),
      );
    }
    for (const chip of this.chips.children) {
      chip.setAttribute("aria-pressed", String(chip.dataset.requirement === (slot.requirement ?? "")));
    }
  }
}
