"""Measure a model on held-out tasks: `python -m dynatok_online.tiny.check [MODEL] [--tasks 200]`.

`dynatok_online.adherence.stretches` says what counts. Every edit recomputes the whole prompt.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from dynatok_online.adherence.outcomes import judge
from dynatok_online.tasks.scripted import scripted_trajectory
from dynatok_online.tasks.task import Task
from dynatok_online.tiny import model_path, world
from dynatok_online.tiny.sampling import SampledPass, decode, encode, sample

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def measure(tasks: Sequence[Task], responses: Sequence[Sequence[SampledPass]]) -> dict[str, float]:
    """Means over stretches, in all and per slot, and the number of stretches in each."""
    values: dict[str, list[float]] = {}
    for task, passes in zip(tasks, responses, strict=True):
        text = encode("".join(one.text for one in passes))
        for one in judge(task, scripted_trajectory(task, text, encode), decode):
            kind = "static" if one.static else "after_edit" if one.edited else "kept"
            values.setdefault(kind, []).append(one.score)
            values.setdefault(f"{kind}_{one.slot}", []).append(one.score)
    means = {name: sum(v) / len(v) for name, v in sorted(values.items())}
    counts = {
        f"passes_{name}": float(len(values.get(name, ()))) for name in ("static", "after_edit")
    }
    return means | counts


def evaluate(
    model: PreTrainedModel, tasks: int = 200, *, seed: int = 0, temperature: float = 1.0
) -> dict[str, float]:
    """`measure` on that many held-out tasks with one to three edits each."""
    chosen = list(islice(world.tasks("heldout", seed=seed), tasks))
    return measure(chosen, sample(model, chosen, seed=seed, temperature=temperature))


def main() -> None:
    """Parse the arguments, print a sample and then one line of JSON."""
    parser = argparse.ArgumentParser(prog="python -m dynatok_online.tiny.check")
    parser.add_argument("model", type=Path, nargs="?", default=model_path())
    parser.add_argument("--tasks", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(args.threads)
    model = AutoModelForCausalLM.from_pretrained(args.model).eval()
    tasks = list(islice(world.tasks("heldout", seed=args.seed), args.tasks))
    responses = sample(model, tasks, seed=args.seed, temperature=args.temperature)
    for passes in responses[:4]:
        for item in passes:
            asked = ", ".join(str(state.requirement) for state in item.states.values())
            print(f"{asked:24} | {item.text}")
        print()
    print(json.dumps({name: round(value, 4) for name, value in measure(tasks, responses).items()}))


if __name__ == "__main__":
    main()
