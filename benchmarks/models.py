"""`dynatok bench models`: which model families rows of spans are right for, measured one by one.

Every causal family that transformers and vLLM share is made small, with random weights, in
float64, and given a trajectory of three states. Loss and all gradients of the packed row are held
against one plain forward of transformers per pass, with attention written out. A family is exact,
or refused with a sentence; anything else is a fault.

What is left of an error is float32: transformers' norms and softmax go through it whatever comes
in.
"""

from __future__ import annotations

import argparse
import copy
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks._edited_response import edited_response
from benchmarks._small_models import families, small_model
from dynatok_online import attention
from dynatok_online.rows.plan import plan_rows
from dynatok_online.training.head import ChunkedHead
from dynatok_online.trajectory import Trajectory

PAGE = Path("docs/models.md")

TOLERANCE = 1e-5
"""Relative, of all gradients together. A wrong mask is off by 1e-2 or more."""

TRAJECTORY = (13, 3, 12, 3)
"""static, slot, response, states: longer than the windows of 5 that the models have."""


@dataclass(frozen=True)
class Found:
    """What became of one family."""

    family: str
    error: float | None = None
    """Relative difference of all gradients; None where it was refused."""
    refused: str = ""
    failed: str = ""
    """What it raised, other than a refusal."""

    @property
    def well(self) -> bool:
        """Exact, or refused."""
        return bool(self.refused) or (self.error is not None and self.error <= TOLERANCE)

    @property
    def said(self) -> str:
        """For the table."""
        if self.refused:
            return f"refused: {self.refused}"
        if self.failed:
            return f"FAILED: {self.failed}"
        return f"{'exact' if self.well else 'WRONG'} ({self.error:.1e})"


def measure(family: str) -> Found:
    """One family, by `attention: concat`."""
    try:
        return _measure(family)
    except Exception as problem:  # a fault of this family leaves the others to be measured
        return Found(family, failed=f"{type(problem).__name__}: {problem}"[:200])


def _measure(family: str) -> Found:
    trajectory = edited_response("exact", *TRAJECTORY, 60)
    model = small_model(family)
    kind = type(model).__name__
    plain = copy.deepcopy(model)
    try:
        attention.prepare(model)
        (row,) = plan_rows([trajectory])
        targets = torch.as_tensor(row.targets, dtype=torch.long)
        inputs = attention.inputs(row, "cpu")
        loss, _ = ChunkedHead(model).run(
            lambda: model(**inputs, use_cache=False),
            lambda logits, piece: -logits.log_prob(targets[piece]),
        )
    except ValueError as error:
        return Found(family, refused=str(error).removeprefix(f"{kind} "))
    found = _gradients(model, loss / len(targets))
    return Found(family, _apart(found, _gradients(plain, _pass_by_pass(plain, trajectory))))


def _pass_by_pass(model: Any, trajectory: Trajectory) -> torch.Tensor:
    losses = []
    for k in range(len(trajectory.passes)):
        ids = torch.as_tensor(trajectory.tokens(k), dtype=torch.long)
        fed = trajectory.fed_length(k)
        logits = model(input_ids=ids[None], use_cache=False).logits[0, fed - 1 : -1]
        losses.append(F.cross_entropy(logits, ids[fed:], reduction="sum"))
    return torch.stack(losses).sum() / len(trajectory.response)


def _gradients(model: Any, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def _apart(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> float:
    # An expert that no token went to has no gradient: none is zero.
    total, difference = 0.0, 0.0
    for name in found.keys() | wanted.keys():
        ours, theirs = found.get(name, torch.zeros(())), wanted.get(name, torch.zeros(()))
        total += float(theirs.square().sum())
        difference += float((ours - theirs).square().sum())
    return float((difference / total) ** 0.5)


def table(results: Sequence[Found]) -> str:
    """Markdown."""
    known = families()
    lines = ["| family | model | rows of spans |", "| --- | --- | --- |"]
    for one in results:
        lines.append(f"| {one.family} | {known[one.family]} | {one.said} |")
    return "\n".join(lines)


def main(argv: Sequence[str]) -> int:
    """`dynatok bench models [FAMILY ...] [--write]`"""
    parser = argparse.ArgumentParser(
        prog="dynatok bench models",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: dynatok bench models gpt_oss qwen3_moe",
    )
    parser.add_argument("families", nargs="*", metavar="FAMILY", help="which (default: all)")
    parser.add_argument("--write", action="store_true", help=f"put the table into {PAGE}")
    given = parser.parse_args(argv)
    from rich.progress import track
    from transformers import logging

    logging.set_verbosity_error()
    torch.set_num_threads(1)
    known = families()
    if unknown := sorted(set(given.families) - known.keys()):
        parser.error(f"no family {', '.join(unknown)}; there are {', '.join(known)}")
    names = given.families or list(known)
    results = [measure(name) for name in track(names, "families")]
    print(table(results))
    if given.write:
        text = PAGE.read_text()
        PAGE.write_text(
            re.sub(r"(?s)(<!-- table -->\n).*(<!-- end -->)", rf"\1\n{table(results)}\n\n\2", text)
        )
    print(json.dumps({one.family: one.said for one in results}))
    return int(not all(one.well for one in results))


if __name__ == "__main__":
    import sys

    raise SystemExit(main(sys.argv[1:]))
