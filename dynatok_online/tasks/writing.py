"""Short texts on everyday topics, under requirements of style that change: tasks for a chat model.

In a config, `tasks: dynatok_online.tasks.writing:ROWS`. Topics of held-out tasks are nobody else's.
All states are two tokens long in SmolLM2's tokenizer, so a slot needs no filling up.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import msgspec

from dynatok_online.tasks.files import Segment
from dynatok_online.tasks.task import ScheduledEdit, SlotState, Task

STATES: dict[str, tuple[SlotState, ...]] = {
    "case": (
        SlotState("upper case", "upper"),
        SlotState("lower case", "lower"),
        SlotState("title case", "title"),
    ),
    "form": (
        SlotState("with !", "exclaim"),
        SlotState("with ?", "ask"),
        SlotState("no commas", "no_comma"),
        SlotState("in brackets", "brackets"),
        SlotState("short sentences", "short_sentences:8"),
        SlotState("without the", "forbid:the"),
    ),
}
"""Slot -> its states."""

LEARNED: dict[str, tuple[SlotState, ...]] = {
    "case": STATES["case"],
    "form": tuple(one for one in STATES["form"] if one.text != "short sentences"),
}
"""Those of `ROWS`. Short sentences are not among them: cut out of texts that were written otherwise
they read badly, and a model of 135 million parameters did not learn them from such gold."""

WORDS: dict[str, tuple[SlotState, ...]] = {
    "case": STATES["case"],
    "word": tuple(
        SlotState(word, f"include:{word}")
        for word in ("water", "light", "music", "friends", "love", "trees", "stars", "gold")
    ),
}
"""Those of `WORD_ROWS`: the word that an edit asks for is to stand in what is written after it."""

LINES = {
    "case": "Letters: {{case}}",
    "form": "Style: {{form}}",
    "word": "Use the word: {{word}}",
}
WIDTH = 2
"""Tokens of a state of `STATES`."""
SLOTS: tuple[tuple[str, ...], ...] = (("case",), ("form",), ("case", "form"), ("case", "form"))
"""Which slots a task has; both as often as one."""

HELDOUT_TOPICS = (
    "a lighthouse",
    "the moon",
    "a ferry",
    "honey bees",
    "a chess game",
    "a lost umbrella",
    "the first snow",
    "a street musician",
    "tomato soup",
    "a quiet library",
    "a mountain hut",
    "paper boats",
    "a wooden clock",
    "the harbor at dawn",
    "a stray cat",
    "pottery",
    "a long bus ride",
    "wild berries",
    "a village school",
    "the desert wind",
    "a broken violin",
    "night fishing",
    "a laundry line",
    "the smell of rain",
)

TRAIN_TOPICS = (
    "autumn leaves",
    "a night train",
    "bread",
    "the sea",
    "a forest path",
    "morning coffee",
    "a small town",
    "the market",
    "an apple tree",
    "a red bicycle",
    "snow",
    "a river",
    "a birthday party",
    "the stars",
    "a farm",
    "a garden",
    "an old house",
    "a letter",
    "a summer storm",
    "the city at night",
    "a football match",
    "a good friend",
    "a grandmother",
    "the kitchen",
    "a fisherman",
    "a painter",
    "a teacher",
    "the baker",
    "a doctor",
    "a dog",
    "horses",
    "birds in spring",
    "whales",
    "an elephant",
    "a spider",
    "butterflies",
    "frogs",
    "a fox",
    "the owl",
    "ants",
    "volcanoes",
    "glaciers",
    "a waterfall",
    "islands",
    "caves",
    "clouds",
    "rainbows",
    "thunder",
    "the sunrise",
    "a winter evening",
    "trains",
    "airplanes",
    "sailing ships",
    "a hot air balloon",
    "bridges",
    "windmills",
    "castles",
    "museums",
    "the theater",
    "a circus",
    "music",
    "dancing",
    "drums",
    "a guitar",
    "painting",
    "photography",
    "cooking",
    "chocolate",
    "cheese",
    "oranges",
    "tea",
    "rice",
    "pancakes",
    "ice cream",
    "gardening",
    "camping",
    "swimming",
    "running",
    "climbing",
    "skating",
    "reading",
    "writing",
    "a diary",
    "dreams",
    "a journey",
    "a secret door",
    "a treasure map",
    "robots",
    "computers",
    "telescopes",
    "time",
    "silence",
    "friendship",
    "courage",
    "patience",
    "kindness",
    "a new job",
    "moving house",
    "a holiday",
    "the weekend",
)


def messages(
    topic: str,
    slots: tuple[str, ...] = (),
    asked: str = "Write about {topic} in short, simple sentences.",
) -> list[dict[str, str]]:
    """The chat messages that ask for a text; without slots, for a plain one."""
    asked = asked.replace("{topic}", topic)
    return [{"role": "user", "content": "\n".join([asked, *(LINES[slot] for slot in slots)])}]


def gold_row(
    task_id: str, topic: str, slots: tuple[str, ...], segments: Sequence[Segment]
) -> dict[str, Any]:
    """A row of a task file with its gold response."""
    return {
        "task_id": task_id,
        "messages": messages(topic, slots),
        "response": [msgspec.to_builtins(one) for one in segments],
        "widths": dict.fromkeys(slots, WIDTH),
    }


def drawn_states(rng: random.Random, slots: tuple[str, ...]) -> dict[str, SlotState]:
    """A state for each of these slots."""
    return {slot: rng.choice(STATES[slot]) for slot in slots}


def drawn_change(rng: random.Random, live: dict[str, SlotState]) -> tuple[str, SlotState]:
    """An edit of one of the slots: which, and its new state."""
    slot = rng.choice(sorted(live))
    return slot, rng.choice([state for state in STATES[slot] if state != live[slot]])


def drawn_task(
    rng: random.Random,
    task_id: str,
    templates: dict[tuple[str, ...], str],
    *,
    max_tokens: int = 160,
    gap: int = 24,
    step: int = 8,
) -> Task:
    """A task with one or two edits, at least `gap` tokens apart and well inside the response.

    `templates`: slots -> the template of the topic's chat messages. Edits fall on multiples of
    `step`, so that tasks that are sampled together are edited together.
    """
    slots = rng.choice(SLOTS)
    states = live = drawn_states(rng, slots)
    edits = []
    number = rng.choice((1, 2))
    room = max(1, max_tokens * 3 // 4 - gap * number)
    offsets = sorted(rng.randrange(0, room) for _ in range(number))
    for i, offset in enumerate(offsets):
        slot, state = drawn_change(rng, live)
        live = live | {slot: state}
        edits.append(ScheduledEdit((gap * (i + 1) + offset) // step * step, slot, state))
    return Task(
        task_id=task_id,
        template=templates[slots],
        states=states,
        edits=tuple(edits),
        max_tokens=max_tokens,
        seed=rng.randrange(2**31),
        widths=dict.fromkeys(slots, WIDTH),
        control_tokens=True,
    )


STORY = "Write a story about {topic}."
"""Asks for texts that are long enough for edits in the middle of them."""


def _rows(
    states: dict[str, tuple[SlotState, ...]],
    choices: Sequence[tuple[str, ...]],
    widths: dict[str, int],
    gap: int,
) -> list[dict[str, Any]]:
    return [
        {
            "task_id": f"{split}-{number}-{'-'.join(slots)}",
            "messages": messages(topic, slots, STORY),
            "slots": {
                slot: [
                    {"text": one.text, "requirement": one.requirement}
                    for one in _begun(states[slot], number)
                ]
                for slot in slots
            },
            "schedule": {"rule": "random", "edits": [1, 2], "gap": gap},
            "max_tokens": 112,
            "widths": {slot: widths[slot] for slot in slots},
            "split": split,
        }
        for split, topics in (("train", TRAIN_TOPICS), ("heldout", HELDOUT_TOPICS))
        for number, topic in enumerate(topics)
        for slots in choices
    ]


def _begun(states: tuple[SlotState, ...], number: int) -> tuple[SlotState, ...]:
    """A task begins in its first state: topic by topic another one."""
    first = number % len(states)
    return states[first:] + states[:first]


ROWS = _rows(LEARNED, SLOTS[:3], dict.fromkeys(LEARNED, WIDTH), gap=16)
"""Rows as in a task file: every topic with every choice of slots."""

WORD_ROWS = _rows(WORDS, (("word",), ("case", "word")), {"case": WIDTH, "word": 1}, gap=24)
"""The same topics, asked for words: nothing that a model trained on gold of `ROWS` has seen."""
