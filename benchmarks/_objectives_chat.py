"""The objectives experiment on a chat model: gold texts, held-out tasks and judging of
`dynatok bench real`."""

from __future__ import annotations

import argparse
import copy
import json
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from benchmarks._objectives_arms import CORRUPTED, Arm
from benchmarks._objectives_overlooked import overlooked
from benchmarks._objectives_train import mean_coverage
from benchmarks._real_arms import BLOCK_SIZE
from benchmarks._real_data import TEMPERATURE, Gold
from benchmarks._real_measures import measure
from benchmarks._sampling import sample_trajectories
from benchmarks.real import DOCS, Bench
from dynatok_online import attention
from dynatok_online.adherence.drift import drift
from dynatok_online.adherence.scoring import judged
from dynatok_online.tasks import writing
from dynatok_online.tasks.files import TaskRow, make_task, read_row
from dynatok_online.tasks.scripted import scripted_trajectory
from dynatok_online.trajectory import Trajectory

LEARNING_RATE = 2e-4
"""That of `dynatok bench real`."""
MAX_TOKENS = 96
"""Of a measured response: gold texts have 75 on average, so most edits are reached."""
STATIC = 32
"""Texts of the untrained model to prompts without requirements, on which drift is measured."""
STATIC_TOKENS = 64
COVERED, TIMES = 6, 4
"""Tasks that are sampled so many times each, for coverage."""
GOLD = DOCS / "real-gold.jsonl"


class ChatWorld:
    """See `_objectives_train.World`."""

    batch = 4

    def __init__(
        self, model: str, tasks: int, gold: Path, say: Callable[[str], None] = lambda what: None
    ) -> None:
        self.cpu = not torch.cuda.is_available()
        if self.cpu:
            torch.set_num_threads(1)
        asked = argparse.Namespace(
            model=model, gold=gold, texts=1200, tasks=tasks, max_tokens=MAX_TOKENS
        )
        self._bench = Bench(asked, lambda what, at, of: say(what))
        self.kernel: str = self._bench.kernel
        self._speech = self._bench.speech
        rows = [read_row(json.loads(line)) for line in gold.read_text().splitlines()]
        self._rows = [one for one in rows if one.split == "train"]
        say("texts of the untrained model")
        self._static = self._plain()

    def model(self) -> Any:
        """A fresh copy of the untrained model, in float32."""
        return copy.deepcopy(self._bench.base)

    def learning_rate(self, arm: Arm) -> float:
        """The same for all."""
        return LEARNING_RATE

    def batches(self, arm: Arm, seed: int, model: Any) -> Iterator[list[Trajectory]]:
        """Gold texts without end, in an order of the seed's own. ValueError for other data."""
        if arm.data not in ("gold", "corrupted"):
            raise ValueError(f"arms on {arm.data} train in the tiny world only, not {arm.key}")
        golds, order = self._golds(arm.data, seed), random.Random(seed)
        while True:
            shuffled = list(golds)
            order.shuffle(shuffled)
            for start in range(0, len(shuffled) - self.batch + 1, self.batch):
                yield [self._scored(one) for one in shuffled[start : start + self.batch]]

    def _golds(self, data: str, seed: int) -> Sequence[Gold]:
        if data == "gold":
            return list(self._bench.golds)
        rng = random.Random(f"{data}/{seed}")
        return [self._speech.gold(overlooked(one, rng, CORRUPTED)[0]) for one in self._rows]

    def _scored(self, gold: Gold) -> Trajectory:
        one = scripted_trajectory(
            gold.task, gold.tokens, self._speech.encode, block_size=BLOCK_SIZE
        )
        states = [gold.task.states_at(p.start) for p in one.passes]
        return judged(one, states, self._speech.decode)

    def state(self, model: Any, seed: int, covered: bool) -> dict[str, Any]:
        """What `model` does now; it is left as it was."""
        bench, speech = self._bench, self._speech
        implementation, training = model.config._attn_implementation, model.training
        how: dict[str, Any] = {"seed": seed, "kernel": self.kernel}
        found = measure(model, bench.base, speech, bench.tasks, ("exact",), **how)["exact"]
        after, static, kept = (_all(found[name]) for name in ("after", "static", "kept"))
        out = {
            "adherence_after_edit": fmean(after) if after else None,
            "adherence_static": fmean(static) if static else None,
            "adherence_kept": fmean(kept) if kept else None,
            "edits_judged": len(after),
            **{
                name: found[name]
                for name in ("after", "edits", "unreached", "silent", "never", "latency", "length")
            },
            **{name: found[name] for name in ("nll_under_base", "repetition", "logprob_gap")},
        }
        if covered:
            again = [task for task in bench.tasks[:COVERED] for _ in range(TIMES)]
            written = sample_trajectories(
                model,
                again,
                speech.encode,
                stop={speech.stop},
                block_size=BLOCK_SIZE,
                temperature=TEMPERATURE,
                seed=seed + 1,
            )
            out |= mean_coverage(again, written, TIMES, speech.decode)
        for one in (model, bench.base):
            attention.prepare(one, self.kernel)
            one.eval()
        out["drift"] = fmean(drift(model, bench.base, self._static))
        model.set_attn_implementation(implementation)
        model.train(training)
        return out

    def _plain(self) -> list[Trajectory]:
        """What the untrained model writes on held-out topics; the same for everybody."""
        topics = writing.HELDOUT_TOPICS
        rows = [
            TaskRow(
                task_id=f"plain-{i}",
                messages=writing.messages(topics[i % len(topics)]),
                max_tokens=STATIC_TOKENS,
            )
            for i in range(STATIC)
        ]
        fresh = self.model()
        fresh.set_attn_implementation("sdpa")
        return sample_trajectories(
            fresh,
            [make_task(row, chat=self._speech.chat) for row in rows],
            self._speech.encode,
            stop={self._speech.stop},
            block_size=BLOCK_SIZE,
            temperature=TEMPERATURE,
            seed=78,
        )


def _all(scores: dict[str, list[float]]) -> list[float]:
    return [one for values in scores.values() for one in values]
