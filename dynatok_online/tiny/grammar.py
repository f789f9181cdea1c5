"""Sentences that can be written under any combination of the tiny world's requirements.

A sentence is a row of atoms (plain words, numbers, topic words). Case, topic and number style are
chosen only when an atom is written out, so one and the same content exists in every style, and a
change of requirements in the middle of a response has a gold continuation: each atom is written
under the states in force at its first character.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from dynatok_online.tiny.topics import NUMBERS, PLACES, THINGS

# N a number, T a kind of thing, P a place; anything else stands for itself.
FRAMES: tuple[str, ...] = (
    "N T near the P.",
    "we saw N T by the P.",
    "the P has N T.",
    "after N days the T left the P.",
    "N T and N T came to the P.",
    "at the P we met N T.",
    "all N T love the P.",
    "the T slept for N hours.",
    "from the P came N T.",
    "my T and your T share N songs.",
)
CASES: dict[str, Callable[[str], str]] = {
    "upper": str.upper,
    "lower": str.lower,
    "title": str.capitalize,
}


@dataclass(frozen=True)
class Atom:
    """One word before it is written: `kind` is "word", "number", "thing" or "place"."""

    kind: str
    word: str = ""
    choice: int = 0
    stop: str = ""

    def write(self, states: Mapping[str, str]) -> str:
        """The word under `states` (case, words, numbers -> requirement), with its full stop."""
        if self.kind == "number":
            spelled = states["numbers"] == "spelled"
            word = NUMBERS[self.choice] if spelled else str(self.choice)
        elif self.kind == "thing":
            word = THINGS[states["words"]][self.choice]
        elif self.kind == "place":
            word = PLACES[states["words"]][self.choice]
        else:
            word = self.word
        return CASES[states["case"]](word) + self.stop


def sentence(rng: random.Random) -> list[Atom]:
    """The atoms of one random sentence; the last one carries the full stop."""
    atoms = []
    for part in rng.choice(FRAMES).split():
        stop = "." if part.endswith(".") else ""
        part = part.removesuffix(".")
        if part == "N":
            atoms.append(Atom("number", choice=rng.choice(list(NUMBERS)), stop=stop))
        elif part == "T":
            atoms.append(Atom("thing", choice=rng.randrange(len(THINGS["sea"])), stop=stop))
        elif part == "P":
            atoms.append(Atom("place", choice=rng.randrange(len(PLACES["sea"])), stop=stop))
        else:
            atoms.append(Atom("word", word=part, stop=stop))
    return atoms


def atoms(rng: random.Random) -> Iterator[Atom]:
    """Sentence after sentence, without end."""
    while True:
        yield from sentence(rng)


def write(rng: random.Random, states: Mapping[str, str], length: int) -> str:
    """A response of exactly `length` characters under states that never change."""
    return gold(rng, lambda index: states, length)


def gold(rng: random.Random, states_at: Callable[[int], Mapping[str, str]], length: int) -> str:
    """A response of exactly `length` characters; each word obeys the states at its beginning."""
    text = ""
    for atom in atoms(rng):
        text += atom.write(states_at(len(text))) + " "
        if len(text) >= length:
            return text[:length]
    raise AssertionError("sentences never end")
