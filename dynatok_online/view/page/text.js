// Text from a model or a slot, made harmless to look at: control characters and the marks that
// turn the reading direction around become visible signs. Nothing here is ever parsed as HTML.

const BIDI = /[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]/g;
const CONTROL = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f]/g;

export function visible(text) {
  return text
    .replace(CONTROL, (c) => {
      const code = c.charCodeAt(0);
      if (code < 0x20) return String.fromCharCode(0x2400 + code);
      return code === 0x7f ? "\u2421" : "\ufffd";
    })
    .replace(BIDI, (c) => `⟨U+${c.charCodeAt(0).toString(16).toUpperCase().padStart(4, "0")}⟩`);
}

// A share of counted things: as per cent, with its count, and with its 95 % interval (Wilson's).
export function share(held, count) {
  if (!count) return { percent: "–", of: "", interval: "" };
  const percent = (value) => (100 * value).toFixed(0);
  const z = 1.96;
  const middle = (held + (z * z) / 2) / (count + z * z);
  const half = (z / (count + z * z)) * Math.sqrt((held * (count - held)) / count + (z * z) / 4);
  return {
    percent: `${percent(held / count)} %`,
    of: `of ${count}`,
    interval: `${percent(Math.max(0, middle - half))}–${percent(Math.min(1, middle + half))} %`,
  };
}

// One line of it, in quotes, for a label.
export function quoted(text, limit = 48) {
  const line = visible(text).replace(/\n/g, "↵").replace(/\t/g, "⇥");
  return `“${line.length > limit ? `${line.slice(0, limit - 1)}…` : line}”`;
}
