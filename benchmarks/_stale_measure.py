"""Log-probabilities of answers under rows of mixed caches, and of prose that no slot touches.

Everything is measured in float32 without TF32: log-odds of a few nats do not survive bfloat16.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks._stale_items import Encoder, Group, Way
from benchmarks._stale_texts import STATIC_PROSE
from dynatok_online import attention
from dynatok_online.rows.plan import plan_rows
from dynatok_online.rows.row import Row
from dynatok_online.trajectory import RESPONSE, Pass, Trajectory

RowRun = tuple[Row, attention.Layout]


def load_model(path: str | Path, device: str) -> Any:
    """The model in float32, prepared for rows."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).to(device).eval()
    attention.prepare(model, "concat")
    return model


def ready(rows: Iterable[Row]) -> list[RowRun]:
    """Rows with their layouts, which remember what kernels derive from them."""
    return [(row, attention.Layout(row)) for row in rows]


@torch.no_grad()
def score(model: Any, rows: Sequence[RowRun], count: int) -> np.ndarray:
    """[count] summed log-probability of the targets of each trajectory, float64."""
    out = np.zeros(count)
    precise()
    for row, layout in rows:
        logits = model(**attention.inputs(row, model.device, layout), use_cache=False).logits[0]
        targets = torch.as_tensor(row.targets, dtype=torch.long, device=model.device)
        found = torch.log_softmax(logits.float(), -1).gather(1, targets[:, None])[:, 0]
        np.add.at(out, row.trajectory, found.double().cpu().numpy())
    return out


def precise() -> None:
    """No TF32 from here on."""
    torch.set_float32_matmul_precision("highest")


def log_odds(found: np.ndarray, ways: Sequence[Way]) -> tuple[np.ndarray, np.ndarray]:
    """[n] of the new answer over the one before the last edit, and over the best old one."""
    one = np.array([found[way.new] - found[way.old[0]] for way in ways])
    every = np.array([found[way.new] - max(found[i] for i in way.old) for way in ways])
    return one, every


def measure(model: Any, group: Group, rows: Sequence[RowRun]) -> dict[str, Any]:
    """The log-odds of every item under every condition, as they are written down."""
    found = score(model, rows, group.count)
    odds, right = {}, {}
    for name, ways in group.ways.items():
        one, every = log_odds(found, ways)
        odds[name] = [round(float(x), 3) for x in one]
        right[name] = [int(x > 0) for x in every]
    return {
        "family": group.family,
        "distance": group.distance,
        "edits": group.edits,
        "between": round(group.between, 1),
        "odds": odds,
        "right": right,
    }


class Prose:
    """Fixed English prose: how likely it is, and how far the model has moved on it."""

    def __init__(self, model: Any, encode: Encoder) -> None:
        """`model`: the untrained one, whose distributions are kept."""
        texts = []
        for one in STATIC_PROSE:
            ids = np.array(encode(one), np.int32)
            texts.append(
                Trajectory(
                    trajectory_id="prose",
                    pieces=(ids[:1],),
                    response=ids[1:],
                    logprobs=np.full(len(ids) - 1, np.nan, np.float32),
                    passes=(
                        Pass(
                            layout=(0, RESPONSE),
                            states={},
                            start=0,
                            stop=len(ids) - 1,
                            num_cached_tokens=0,
                        ),
                    ),
                )
            )
        self._rows = ready(plan_rows(texts))
        self._base = [self._logp(model, one) for one in self._rows]

    @torch.no_grad()
    def _logp(self, model: Any, one: RowRun) -> torch.Tensor:
        precise()
        row, layout = one
        logits = model(**attention.inputs(row, model.device, layout), use_cache=False).logits[0]
        return torch.log_softmax(logits.float(), -1)

    def measure(self, model: Any) -> dict[str, float]:
        """Mean NLL of a token and mean KL(untrained ‖ model), in nats; how many tokens."""
        nll = kl = 0.0
        count = 0
        for one, base in zip(self._rows, self._base, strict=True):
            found = self._logp(model, one)
            targets = torch.as_tensor(one[0].targets, dtype=torch.long, device=found.device)
            nll -= float(found.gather(1, targets[:, None]).double().sum())
            kl += float((base.exp() * (base - found)).sum(-1).double().sum())
            count += len(targets)
        return {"nll": round(nll / count, 5), "kl": round(kl / count, 5), "prose_tokens": count}
