"""What the experiment on a real model trains on and is measured with: gold texts, held-out tasks.

Gold is made from what the untrained model itself writes to plain prompts (`dynatok_online.tasks.
rewriting`), once for all arms and seeds, and kept as task rows with their gold responses: files of
`dynatok gold` are of the same kind.
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

from benchmarks._sampling import sample_trajectories
from dynatok_online.prompt import Encoder, chat_of
from dynatok_online.tasks import writing
from dynatok_online.tasks.files import Chat, TaskRow, make_task, read_row
from dynatok_online.tasks.gold import gold
from dynatok_online.tasks.rendering import renderer_of
from dynatok_online.tasks.rewriting import LEAST_WORDS, rewritten, tidy
from dynatok_online.tasks.task import Task

TEMPERATURE = 0.8
WORDS = (50, 80)
"""Words of a plain text: between these, at random."""
MOST_TOKENS = 288
"""A gold text with more tokens is left out."""
BATCH = 400
"""Texts that are sampled together."""


@dataclass(frozen=True)
class Gold:
    """A task whose edits come where its gold text was cut, and the text's tokens."""

    task: Task
    tokens: list[int]


@dataclass(frozen=True)
class Speech:
    """A chat model's tokenizer as the experiment uses it."""

    tokenizer: Any

    @cached_property
    def encode(self) -> Encoder:
        """Text to token ids."""
        return Encoder.of(self.tokenizer)

    @cached_property
    def chat(self) -> Chat:
        """Chat messages to a template."""
        return chat_of(self.tokenizer, "of the experiment")

    @property
    def stop(self) -> int:
        """The token that ends a response."""
        assert self.encode.turn_stop is not None
        return self.encode.turn_stop

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids; control tokens have none."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def templates(self, topic: str) -> dict[tuple[str, ...], str]:
        """Slots -> template of the chat messages on a topic; () for a plain prompt."""
        return {slots: self.chat(writing.messages(topic, slots)) for slots in {(), *writing.SLOTS}}

    def gold(self, row: TaskRow) -> Gold:
        """A row's task and the tokens of its gold response."""
        task, tokens, _ = gold(row, self.encode, chat=self.chat)
        return Gold(task, tokens)


def check_pieces(speech: Speech, task: Task) -> None:
    """ValueError where the pieces of the prompt are not the tokens of the whole text."""
    texts = {slot: state.text for slot, state in task.states.items()}
    if found := renderer_of(task, speech.encode).differences(texts):
        raise ValueError(f"task {task.task_id}: cut where the tokenizer does not cut: {found}")


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
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Rows with gold texts on the topics of a split, and what became of the texts sampled."""
    rng = random.Random(f"{split}/{seed}")
    topics = writing.TRAIN_TOPICS if split == "train" else writing.HELDOUT_TOPICS
    rows: list[dict[str, Any]] = []
    counts = {"sampled": 0, "short": 0, "unfit": 0, "long": 0}
    while len(rows) < count and counts["sampled"] < 4 * count + BATCH:
        numbers = range(counts["sampled"], counts["sampled"] + min(BATCH, count + 16))
        plain = [
            TaskRow(
                task_id=f"plain-{i}",
                messages=writing.messages(topics[i % len(topics)]),
                max_tokens=max_tokens,
            )
            for i in numbers
        ]
        written = sample_trajectories(
            model,
            [make_task(row, chat=speech.chat) for row in plain],
            speech.encode,
            stop={speech.stop},
            temperature=TEMPERATURE,
            seed=rng.randrange(2**31),
            say=progress,
        )
        for i, one in zip(numbers, written, strict=True):
            text = tidy(speech.decode(one.response.tolist()), rng.randrange(*WORDS))
            slots = rng.choice(writing.SLOTS)
            states = writing.drawn_states(rng, slots)
            edits = rng.choice((1, 2, 2))
            change = partial(writing.drawn_change, rng)
            segments = rewritten(text, states, change, rng, edits=edits)
            if segments is None:
                few = len(text.split()) < LEAST_WORDS * (edits + 1)
                counts["short" if few else "unfit"] += 1
                continue
            row = writing.gold_row(f"{split}-{i}", topics[i % len(topics)], slots, segments)
            row["split"] = split
            if len(speech.gold(read_row(row)).tokens) > MOST_TOKENS:
                counts["long"] += 1
            else:
                rows.append(row)
        counts["sampled"] += len(numbers)
    counts["kept"] = len(rows)
    return rows[:count], counts


def write_gold(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """One JSON object per text."""
    path.write_bytes(b"".join(msgspec.json.encode(row) + b"\n" for row in rows))


def read_gold(path: Path, split: str, speech: Speech) -> list[Gold]:
    """The texts of one split."""
    rows = [read_row(json.loads(line)) for line in path.read_text().splitlines()]
    return [speech.gold(row) for row in rows if row.split == split]
