"""Measure a model on held-out tasks: `python -m dynatok_online.tiny.check [MODEL] [--tasks 200]`.

Static adherence is the mean verifier score of every slot over the passes before the first edit.
Adherence after edit is the mean verifier score of the edited slot over the passes that follow an
edit, the whole prompt recomputed. Passes without evidence do not count.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from dynatok_online.tiny import model_path, world
from dynatok_online.tiny.sampling import SampledPass, sample

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def measure(responses: Sequence[Sequence[SampledPass]]) -> dict[str, float]:
    """Means over passes, in all and per slot, and the number of passes that entered each."""
    values: dict[str, list[float]] = {}
    for passes in responses:
        for slot, score in passes[0].scores().items():
            values.setdefault("static", []).append(score)
            values.setdefault(f"static_{slot}", []).append(score)
        for item in passes[1:]:
            for slot, score in item.scores().items():
                kind = "after_edit" if slot in item.edited else "kept"
                values.setdefault(kind, []).append(score)
                values.setdefault(f"{kind}_{slot}", []).append(score)
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
    return measure(sample(model, chosen, seed=seed, temperature=temperature))


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
    print(json.dumps({name: round(value, 4) for name, value in measure(responses).items()}))


if __name__ == "__main__":
    main()
