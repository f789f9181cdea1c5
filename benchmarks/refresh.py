"""How much must be computed anew after an edit? Adherence against m, from evaluations.

    dynatok eval launch/configs/smollm2-eval.yaml --reuse "exact,sticky,refresh:16,refresh:64"
    dynatok bench refresh "untrained=runs/eval-20260102-030405" "trained=runs/eval-20260102-040506"

Each argument names a model and the run folder of an evaluation of it with `exact` among its reuse
policies; folders of one name are pooled, edit by edit. All policies of an evaluation have the same
tasks and draws. Writes the page, and prints one line of JSON: for each model the fewest tokens that
reach 0.95 of exact.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ENOUGH = 0.95
"""Of what exact reuse reaches."""
DOCS = Path(__file__).parent.parent / "docs" / "benchmarks"


@dataclass
class Pooled:
    """One model under one policy, over seeds."""

    edits: int = 0
    followed: float = 0.0
    """Sum of the scores of judged edits."""
    square: float = 0.0
    """Of half intervals times edits, summed."""
    recomputed: list[float] = field(default_factory=list)
    computed: list[float] = field(default_factory=list)

    @property
    def mean(self) -> float:
        return self.followed / self.edits

    @property
    def half(self) -> float:
        """Of the 95 % interval over edits."""
        return math.sqrt(self.square) / self.edits

    def add(self, measured: dict[str, Any]) -> None:
        """One seed, as an evaluation reports it."""
        edits = measured["edits_judged"]
        self.edits += edits
        self.followed += edits * measured["adherence_after_edit"]
        self.square += (edits * (measured["adherence_after_edit_half"] or 0.0)) ** 2
        self.recomputed.append(measured["recomputed_per_edit"])
        self.computed.append(measured["computed_per_token"])


def main(arguments: Sequence[str]) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="dynatok bench refresh",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="+", metavar="MODEL=RUN", help="what is evaluated, and where")
    parser.add_argument("--page", type=Path, default=DOCS / "refresh.md")
    options = parser.parse_args(arguments)
    runs: dict[str, list[Path]] = defaultdict(list)
    for one in options.runs:
        name, _, folder = one.partition("=")
        if not (Path(folder) / "evaluation.json").is_file():
            parser.error(f"{one}: write MODEL=RUN, where RUN/evaluation.json exists")
        runs[name].append(Path(folder))
    found = {name: read(folders) for name, folders in runs.items()}
    for name, policies in found.items():
        if "exact" not in policies:
            parser.error(f"{name} was not evaluated with reuse exact")
    configs = [
        json.loads((one / "eval.json").read_text()) for all_ in runs.values() for one in all_
    ]
    options.page.write_text("\n".join(page(found, configs[0])))
    print(json.dumps({name: smallest(policies) for name, policies in found.items()}), flush=True)
    return 0


def read(folders: Sequence[Path]) -> dict[str, Pooled]:
    """Policy -> its measures, over all seeds of all folders."""
    found: dict[str, Pooled] = defaultdict(Pooled)
    for folder in folders:
        report = json.loads((folder / "evaluation.json").read_text())
        for policy, part in report.items():
            if policy == "gold":
                continue
            for seed in part["by_seed"].values():
                found[policy].add(seed["all"])
    return dict(found)


def smallest(policies: dict[str, Pooled]) -> str:
    """The policy that computes least anew of those that come to 0.95 of exact."""
    exact = policies["exact"].mean
    enough = [name for name, one in policies.items() if one.mean >= ENOUGH * exact]
    return min(enough, key=lambda name: sum(policies[name].recomputed))


def page(found: dict[str, dict[str, Pooled]], config: dict[str, Any]) -> list[str]:
    """The page."""
    lines = [
        "# How much to compute anew after an edit",
        "",
        "`dynatok bench refresh MODEL=RUN ...` writes this page from evaluations "
        '(`dynatok eval --reuse "exact,sticky,refresh:16,..."`): '
        f"{config['count']} {config['split']} tasks of `{config['tasks']}` a seed, temperature "
        f"{config['sampling']['temperature']}, the same tasks and draws under every policy. "
        "`sticky` computes the slot anew and nothing else (m = 0), `refresh:m` also the last m "
        "tokens before the edit, in whole blocks, `exact` all that stands behind the slot. "
        "Adherence after an edit ± half of its 95 % interval over edits.",
    ]
    for name, policies in found.items():
        exact = policies["exact"].mean
        lines += [
            "",
            f"## {name}",
            "",
            "| reuse | edits judged | adherence after an edit | of exact | computed again per edit "
            "| computed per generated token |",
            "|---|---|---|---|---|---|",
        ]
        for policy, one in policies.items():
            again, computed = (sum(a) / len(a) for a in (one.recomputed, one.computed))
            lines.append(
                f"| {policy} | {one.edits} | {one.mean:.3f} ± {one.half:.3f} "
                f"| {one.mean / exact:.3f} | {again:.1f} | {computed:.2f} |"
            )
        seeds = len(policies["exact"].recomputed)
        lines += [
            "",
            f"{seeds} seed{'s' if seeds > 1 else ''}. The least that comes to {ENOUGH} of exact: "
            f"`{smallest(policies)}`.",
        ]
    lines += [
        "",
        "Requirements of style alone: which other edits old KV swallows, and what repairs them, is "
        "in [stale.md](stale.md).",
        "",
    ]
    return lines
