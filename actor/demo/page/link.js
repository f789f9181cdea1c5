// Prompt, slots and settings in the address, after the #: it never leaves the browser.

export function readLink() {
  const given = new URLSearchParams(location.hash.slice(1));
  if (!given.has("prompt")) return null;
  const slots = {};
  for (const [key, text] of given) {
    if (!key.startsWith("slot.")) continue;
    const name = key.slice(5);
    slots[name] = { text, requirement: given.get(`require.${name}`) };
  }
  const number = (key) => (given.has(key) && Number.isFinite(Number(given.get(key))) ? Number(given.get(key)) : undefined);
  const link = {
    template: given.get("prompt"),
    slots,
    lanes: given.get("lanes")?.split(",").filter(Boolean),
    placement: given.get("placement") ?? undefined,
    temperature: number("temperature"),
    seed: number("seed"),
    max_tokens: number("max_tokens"),
  };
  return Object.fromEntries(Object.entries(link).filter(([, value]) => value !== undefined));
}

export function writeLink(settings) {
  const given = new URLSearchParams();
  given.set("prompt", settings.template);
  for (const [name, slot] of Object.entries(settings.slots)) {
    given.set(`slot.${name}`, slot.text.trimEnd());
    if (slot.requirement) given.set(`require.${name}`, slot.requirement);
  }
  given.set("lanes", settings.lanes.join(","));
  for (const key of ["placement", "temperature", "seed", "max_tokens"]) given.set(key, settings[key]);
  const hash = `#${given}`;
  if (hash !== location.hash) history.replaceState(null, "", hash);
}
