"""What the experiment on a real model trains on and is measured with: gold texts, held-out tasks.

Gold is made from what the untrained model itself writes to plain prompts (`dynatok_online.gold`),
once for all arms and seeds, and kept in a file of one JSON object per text.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import msgspec

from dynatok_online import writing
from dynatok_online.gold import LEAST_WORDS, Gold, make_gold, tidy
from dynatok_online.prompt import from_chat
from dynatok_online.sampling import sample_trajectories
from dynatok_online.scripted import Script
from dynatok_online.tasks import Task

TEMPERATURE = 0.8
WORDS = (50, 80)
"""Words of a plain text: between these, at random."""
MOST_TOKENS = 288
"""A gold text with more tokens is left out."""
BATCH = 400
"""Texts that are sampled together."""


@dataclass(frozen=True)
class Speech:
    """A tokenizer as the experiment uses it."""

    tokenizer: Any

    @property
    def stop(self) -> int:
        """The token that ends a response."""
        return int(self.tokenizer.eos_token_id)

    @cached_property
    def _known(self) -> dict[str, list[int]]:
        return {}

    def encode(self, text: str) -> list[int]:
        """Token ids, without special tokens; what was encoded once is remembered."""
        found = self._known.get(text)
        if found is None:
            found = self._known[text] = self.tokenizer.encode(text, add_special_tokens=False)
        return list(found)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids; control tokens have none."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def templates(self, topic: str) -> dict[tuple[str, ...], str]:
        """Slots -> template of the chat messages on a topic; () for a plain prompt."""
        return {
            slots: from_chat(writing.messages(topic, slots), self.tokenizer)
            for slots in {(), *writing.SLOTS}
        }


def check_pieces(speech: Speech, task: Task) -> None:
    """ValueError where the pieces of the prompt are not the tokens of the whole text."""
    import numpy as np

    fed, _ = Script(task, speech.encode).begin(np.zeros(0, np.int32))
    whole = speech.encode(task.render(task.states))
    if fed.tolist() != whole:
        raise ValueError(f"task {task.task_id}: its pieces are other tokens than its whole text")


def heldout_tasks(speech: Speech, count: int, *, max_tokens: int, seed: int = 77) -> list[Task]:
    """The same held-out tasks for every arm and seed."""
    rng = random.Random(seed)
    tasks = []
    for i in range(count):
        topic = writing.HELDOUT_TOPICS[i % len(writing.HELDOUT_TOPICS)]
        task = writing.drawn_task(
            rng, f"heldout-{i}", speech.templates(topic), max_tokens=max_tokens
        )
        check_pieces(speech, task)
        tasks.append(task)
    return tasks


def gold_of(
    model: Any,
    speech: Speech,
    split: str,
    count: int,
    *,
    seed: int,
    max_tokens: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[list[Gold], dict[str, int]]:
    """Gold texts on the topics of a split, and what became of the texts that were sampled."""
    rng = random.Random(f"{split}/{seed}")
    topics = writing.TRAIN_TOPICS if split == "train" else writing.HELDOUT_TOPICS
    prompts = {topic: speech.templates(topic) for topic in topics}
    golds: list[Gold] = []
    counts = {"sampled": 0, "short": 0, "unfit": 0, "long": 0}
    while len(golds) < count and counts["sampled"] < 4 * count + BATCH:
        number = min(BATCH, count + 16)
        asked = [
            Task(f"plain-{i}", prompts[topics[i % len(topics)]][()], {}, max_tokens=max_tokens)
            for i in range(counts["sampled"], counts["sampled"] + number)
        ]
        written = sample_trajectories(
            model,
            asked,
            speech.encode,
            stop={speech.stop},
            temperature=TEMPERATURE,
            seed=rng.randrange(2**31),
            say=progress,
        )
        for i, one in enumerate(written, counts["sampled"]):
            text = tidy(speech.decode(one.response.tolist()), rng.randrange(*WORDS))
            slots = rng.choice(writing.SLOTS)
            states = writing.drawn_states(rng, slots)
            task = Task(f"{split}-{i}", prompts[topics[i % len(topics)]][slots], states)
            edits = rng.choice((1, 2, 2))
            change = partial(writing.drawn_change, rng)
            gold = make_gold(text, task, change, rng, speech.encode, stop=speech.stop, edits=edits)
            if gold is None and len(text.split()) < LEAST_WORDS * (edits + 1):
                counts["short"] += 1
            elif gold is None:
                counts["unfit"] += 1
            elif len(gold.tokens) > MOST_TOKENS:
                counts["long"] += 1
            else:
                golds.append(gold)
        counts["sampled"] += number
    counts["kept"] = len(golds)
    return golds[:count], counts


def write_gold(path: Path, golds: Sequence[Gold]) -> None:
    """One JSON object per text: its task and its tokens."""
    lines = [
        json.dumps({"task": msgspec.to_builtins(one.task), "tokens": one.tokens}) for one in golds
    ]
    path.write_text("\n".join(lines) + "\n")


def read_gold(path: Path, split: str) -> list[Gold]:
    """The texts of one split that `write_gold` wrote."""
    rows = map(json.loads, path.read_text().splitlines())
    golds = [Gold(msgspec.convert(row["task"], Task), row["tokens"]) for row in rows]
    return [one for one in golds if one.task.task_id.startswith(f"{split}-")]
