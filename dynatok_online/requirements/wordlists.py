"""The words that word-list and number requirements look for.

The lists of one kind run in parallel: entry *i* of each topic can stand in the same place of a
sentence, so that the same sentence can be written about any topic. No word is in two lists.
"""

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
