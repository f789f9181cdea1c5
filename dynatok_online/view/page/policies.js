// What a lane may reuse after an edit: its title, and what that means.

const POLICIES = {
  exact: ["Exact", "reuses the unchanged beginning; the result equals a fresh prompt"],
  sticky: ["Sticky", "replaces only the slot; what follows keeps its earlier KV"],
  none: ["Start over", "reuses nothing; computes everything again after each edit"],
};

// `refresh:64`, `refresh:0-128` (drawn for every pass), `refresh:64+16` (and the first ones).
const REFRESH = /^refresh:(\d+)(?:-(\d+))?(?:\+(\d+))?$/;

export function policyOf(reuse) {
  const [, low, high, first] = REFRESH.exec(reuse) ?? [];
  if (low === undefined) return POLICIES[reuse] ?? [reuse, ""];
  const last = high === undefined ? low : `${low} to ${high}`;
  const behind = first === undefined ? "" : `, and the first ${first} behind the slot`;
  return [`Refresh ${last}`, `replaces the slot and computes the last ${last} tokens again${behind}`];
}
