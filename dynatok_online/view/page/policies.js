// What a lane may reuse after an edit: its title, and what that means.

export const POLICIES = {
  exact: ["Exact", "reuses the unchanged beginning; the result equals a fresh prompt"],
  sticky: ["Sticky", "replaces only the slot; what follows keeps its earlier KV"],
  none: ["Start over", "reuses nothing; computes everything again after each edit"],
};
