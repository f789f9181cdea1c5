"""The tiny world's words, and the requirements that are about them: `sea`, `forest`, `city`.

The lists of one kind run in parallel: entry *i* of each topic can stand in the same place of a
sentence, so that the same sentence can be written about any topic. No word is in two lists.
"""

from __future__ import annotations

from collections.abc import Callable

from dynatok_online.requirements import Kind, Requirement
from dynatok_online.requirements import register as register_kinds
from dynatok_online.requirements.parameters import plain
from dynatok_online.requirements.verdict import WORD, each

THINGS: dict[str, tuple[str, ...]] = {
    "sea": ("boats", "gulls", "whales", "sailors", "shells", "waves", "crabs", "nets"),
    "forest": ("trees", "owls", "deer", "hunters", "acorns", "ferns", "foxes", "logs"),
    "city": ("buses", "pigeons", "trams", "tailors", "lamps", "towers", "cafes", "bridges"),
}
PLACES: dict[str, tuple[str, ...]] = {
    "sea": ("harbor", "beach", "island", "reef", "pier", "lagoon"),
    "forest": ("grove", "thicket", "meadow", "hollow", "trail", "clearing"),
    "city": ("station", "market", "avenue", "museum", "plaza", "subway"),
}
WORD_LISTS: dict[str, frozenset[str]] = {
    topic: frozenset(THINGS[topic] + PLACES[topic]) for topic in THINGS
}

# "one" is left out: in running text it is mostly a pronoun.
NUMBERS: dict[int, str] = {
    2: "two",
    3: "three",
    4: "four",
    5: "five",
    6: "six",
    7: "seven",
    8: "eight",
    9: "nine",
    10: "ten",
    11: "eleven",
    12: "twelve",
}
NUMBER_WORDS: frozenset[str] = frozenset(NUMBERS.values())


def _from_list(topic: str) -> Callable[[str], bool | None]:
    """Words of this list hold, words of the other lists do not, any other word is free."""
    wanted = WORD_LISTS[topic]
    others = frozenset[str]().union(*(words for name, words in WORD_LISTS.items() if name != topic))

    def judge(word: str) -> bool | None:
        word = word.lower()
        return True if word in wanted else False if word in others else None

    return judge


KINDS: tuple[Kind, ...] = tuple(
    Kind(
        topic,
        plain(Requirement(topic, "words", f"the {topic}", each(WORD, _from_list(topic)))),
        "word of a list",
        f"nouns of the tiny world's {topic}, of no other topic",
    )
    for topic in WORD_LISTS
)


def register() -> None:
    """Make these names known to `requirement`, wherever the tiny world or its model is used."""
    register_kinds(*KINDS)
