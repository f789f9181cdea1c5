"""Tasks of the tiny world: travel notes whose style rules change while they are written.

The static prefix is longer than two KV blocks of 32 tokens, the slots come after it and have a
fixed width, the response comes last. Train and held-out tasks share no writer, place or seed.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Literal

from dynatok_online.requirements import family, requirement
from dynatok_online.tasks.task import ScheduledEdit, SlotState, Task
from dynatok_online.tiny import grammar, topics
from dynatok_online.tiny.topics import NUMBER_WORDS, WORD_LISTS

topics.register()

Split = Literal["train", "heldout"]

TEMPLATE = (
    "A travel note by {name} from {place}, {day}. Rules of style, valid now:\n"
    "letters: {{{{case}}}}\nwords: {{{{words}}}}\nnumbers: {{{{numbers}}}}\nText:\n"
)
SLOTS: tuple[str, ...] = ("case", "words", "numbers")
SLOT_WIDTH = 12
# How often each slot is the one that an edit changes. A new word list is followed as it comes:
# each noun is looked up in the prompt. Training practises most what is hardest, the letters.
EDIT_SHARE: dict[Split, dict[str, float]] = {
    "train": {"case": 0.6, "words": 0.05, "numbers": 0.35},
    "heldout": {"case": 0.45, "words": 0.1, "numbers": 0.45},
}
RESPONSE_LENGTH = 160
# An edit leaves at least this many characters before it, after it, and to the next one.
GAP = 32

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
NAMES: dict[Split, tuple[str, ...]] = {
    "train": (
        *("Anna", "Boris", "Clara", "David", "Elena", "Felix", "Greta", "Henry"),
        *("Irene", "Jonas", "Karin", "Louis", "Maria", "Nadia", "Oscar", "Paula"),
    ),
    "heldout": ("Quinn", "Rosa", "Simon", "Tessa", "Ulrich", "Vera", "Walter", "Yusuf"),
}
TOWNS: dict[Split, tuple[str, ...]] = {
    "train": (
        *("Athens", "Bergen", "Cairo", "Dublin", "Esbjerg", "Florence", "Geneva", "Hanoi"),
        *("Izmir", "Jakarta", "Kyoto", "Lisbon", "Madrid", "Nairobi", "Oslo", "Porto"),
    ),
    "heldout": ("Quito", "Riga", "Seville", "Tunis", "Utrecht", "Vienna", "Warsaw", "Zagreb"),
}


def slot_state(name: str) -> SlotState:
    """The slot text of a requirement, padded with blanks to `SLOT_WIDTH` characters."""
    text = requirement(name).text
    if len(text) > SLOT_WIDTH:
        raise ValueError(
            f"requirement {name!r}: its text {text!r} has {len(text)} characters; "
            f"a slot of the tiny world holds {SLOT_WIDTH}"
        )
    return SlotState(text.ljust(SLOT_WIDTH), name)


def template(rng: random.Random, split: Split) -> str:
    """A random static prefix of that split, followed by the three slots."""
    return TEMPLATE.format(
        name=rng.choice(NAMES[split]), place=rng.choice(TOWNS[split]), day=rng.choice(DAYS)
    )


def prompt(template: str, states: Mapping[str, SlotState]) -> str:
    """The whole prompt of a static text: the template with its slots filled in."""
    return Task("static", template, dict(states)).render(states)


def random_states(rng: random.Random) -> dict[str, SlotState]:
    """A random requirement for every slot."""
    return {slot: slot_state(rng.choice(family(slot)).name) for slot in SLOTS}


def random_edits(
    rng: random.Random, split: Split, states: dict[str, SlotState], count: int, length: int
) -> tuple[ScheduledEdit, ...]:
    """`count` edits, each to another state of a random slot, `GAP` characters apart or more."""
    room = length - GAP * (count + 1)
    if room < 0:
        raise ValueError(
            f"{count} edits do not fit into {length} tokens; "
            f"write at most {max(length // GAP - 1, 0)} edits or a longer response"
        )
    indices = [
        GAP * (i + 1) + at for i, at in enumerate(sorted(rng.choices(range(room + 1), k=count)))
    ]
    live = dict(states)
    edits = []
    for index in indices:
        (slot,) = rng.choices(SLOTS, [EDIT_SHARE[split][name] for name in SLOTS])
        others = [item.name for item in family(slot) if item.name != live[slot].requirement]
        live[slot] = slot_state(rng.choice(others))
        edits.append(ScheduledEdit(index, slot, live[slot]))
    return tuple(edits)


def tasks(
    split: Split = "train",
    *,
    seed: int = 0,
    edits: tuple[int, int] = (1, 3),
    max_tokens: int = RESPONSE_LENGTH,
) -> Iterator[Task]:
    """Tasks without end, the same for the same arguments; `edits` is the least and most of each."""
    number = 0
    while True:
        rng = random.Random(f"{split}/{seed}/{number}")
        states = random_states(rng)
        yield Task(
            task_id=f"tiny-{split}-{seed}-{number}",
            template=template(rng, split),
            states=states,
            edits=random_edits(rng, split, states, rng.randint(*edits), max_tokens),
            max_tokens=max_tokens,
            seed=rng.randrange(2**31),
            widths=dict.fromkeys(SLOTS, SLOT_WIDTH),
        )
        number += 1


def gold_response(task: Task) -> str:
    """What a perfect writer answers: each word obeys the states in force at its first character."""
    names = [
        {slot: str(state.requirement) for slot, state in task.states_at(index).items()}
        for index in (0, *(edit.index for edit in task.edits))
    ]
    cuts = [edit.index for edit in task.edits]
    return grammar.gold(
        random.Random(task.seed), lambda at: names[bisect_right(cuts, at)], task.max_tokens
    )


@cache
def words() -> frozenset[str]:
    """Every word that a gold response can hold, in lower case, numbers in digits left out."""
    plain = {word.strip(".") for frame in grammar.FRAMES for word in frame.split()} - {*"NTP"}
    return frozenset(plain) | NUMBER_WORDS | frozenset[str]().union(*WORD_LISTS.values())
