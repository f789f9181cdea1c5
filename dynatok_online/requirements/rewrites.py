"""Programs that make a text comply, where a program can.

    rewrite("upper", "The sea.")             "THE SEA."
    rewrite("no_comma+exclaim", "So, it is.") "So it is!"

What comes out satisfies the requirement's own verifier, wherever the text leaves it something to
judge; it reads as well as such a change can. The blank that a text begins with stays.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from dynatok_online.requirements.registry import requirement
from dynatok_online.requirements.verdict import SENTENCE, WORD

_MARKS = re.compile(r"[.!?]+(?=[\"')\]]*(?:\s|$))")
_LAST_MARKS = re.compile(r"[.!?]+(?=[\"')\]]*\s*$)")
_COUNTED = re.compile(r"\w+")
_JOINING = frozenset(
    ("and", "but", "or", "so", "as", "when", "where", "while", "which", "that", "because", "with")
)
_LEAST = 3
"""Words of a shortened sentence, if it can be cut later."""
_ORDER = {"upper": 2, "lower": 2, "title": 2, "quoted": 3, "starts_with": 1, "ends_with": 1}
"""Of several requirements, letters are changed last."""


def rewrite(name: str, text: str) -> str:
    """`text` so changed that it satisfies the requirement of that name.

    Raises ValueError for a name that does not exist, and for one that no program rewrites for.
    """
    requirement(name)
    for one in sorted(name.split("+"), key=lambda one: _ORDER.get(one.partition(":")[0], 0)):
        kind, _, given = one.strip().partition(":")
        if kind not in REWRITES:
            raise ValueError(
                f"no program rewrites a text for {one!r}; these can be: {', '.join(REWRITES)}"
            )
        text = REWRITES[kind](text, given)
    return text


def can_rewrite(name: str) -> bool:
    """Whether `rewrite` takes this name."""
    return all(one.strip().partition(":")[0] in REWRITES for one in name.split("+"))


def _title(text: str, given: str) -> str:
    return WORD.sub(lambda match: match[0][0].upper() + match[0][1:].lower(), text)


def _marks(mark: str) -> Callable[[str, str], str]:
    def at_its_end(sentence: re.Match[str]) -> str:  # `Dr.` ends none
        return _LAST_MARKS.sub(mark, sentence[0])

    return lambda text, given: SENTENCE.sub(at_its_end, text)


def _brackets(text: str, given: str) -> str:
    return WORD.sub(lambda match: f"[{match[0]}]", re.sub(r"[\[\]]", "", text))


def _without_words(text: str, wanted: Callable[[str], bool]) -> str:
    """The text without the words that are not wanted; sentences still begin with a capital."""
    lead = text[: len(text) - len(text.lstrip())]
    out: list[str] = []
    capital = False
    for chunk in text.split():
        kept = WORD.sub(lambda match: match[0] if wanted(match[0]) else "", chunk)
        if not WORD.search(kept) and WORD.search(chunk):
            capital = capital or chunk[0].isupper()
            closing = "".join(re.findall(r"[.!?]+[\"')\]]*$", chunk))
            if closing and out and not _MARKS.search(out[-1]):
                out[-1] = out[-1].rstrip(",;:") + closing
                capital = False
            continue
        out.append(kept[0].upper() + kept[1:] if capital else kept)
        capital = False
    return lead + " ".join(out)


def _no_letter(text: str, given: str) -> str:
    return _without_words(text, lambda word: given.strip().lower() not in word.lower())


def _forbid(text: str, given: str) -> str:
    words = [word.strip().lower() for word in given.split(",")]
    bad = re.compile("|".join(rf"\b{re.escape(word)}\b" for word in words if word), re.IGNORECASE)
    return _without_words(text, lambda word: not bad.search(word))


def _no_digits(text: str, given: str) -> str:
    lead = text[: len(text) - len(text.lstrip())]
    return lead + " ".join(
        chunk for chunk in text.split() if not any(sign.isdigit() for sign in chunk)
    )


def _short_sentences(text: str, given: str) -> str:
    return SENTENCE.sub(lambda match: _shortened(match[0], int(given)), text)


def _shortened(sentence: str, most: int) -> str:
    """The sentence as several, cut behind a comma or before a joining word where there is one."""
    chunks = sentence.split()
    out: list[str] = []
    while sum(len(_COUNTED.findall(chunk)) for chunk in chunks) > most:
        count, fits = 0, 0
        for chunk in chunks:
            count += len(_COUNTED.findall(chunk))
            if count > most:
                break
            fits += 1
        fits = max(fits, 1)
        cuts = [
            at
            for at in range(min(_LEAST, fits), fits + 1)
            if at < len(chunks) and (chunks[at - 1][-1] in ",;:" or chunks[at].lower() in _JOINING)
        ]
        at = max(cuts, default=fits)
        head = " ".join(chunks[:at]).rstrip(",;:-")
        out.append(head if head.endswith((".", "!", "?")) else head + ".")
        chunks = chunks[at:]
        chunks[0] = chunks[0][0].upper() + chunks[0][1:]
    return " ".join([*out, *chunks])


def _max_words(text: str, given: str) -> str:
    places = [match.end() for match in _COUNTED.finditer(text)]
    most = int(given)
    return text if len(places) <= most else text[: places[most - 1] if most else 0] + "."


def _max_sentences(text: str, given: str) -> str:
    stops = [match.end() for match in SENTENCE.finditer(text)]
    most = int(given)
    return text if len(stops) <= most else text[: stops[most - 1] if most else 0]


def _quoted(text: str, given: str) -> str:
    body = text.strip().strip('"')
    return text[: len(text) - len(text.lstrip())] + f'"{body}"'


def _starts_with(text: str, given: str) -> str:
    body = text.lstrip()
    if body.lower().startswith(given.strip().lower()):
        return text
    return f"{text[: len(text) - len(body)]}{given.strip()} {body}"


def _ends_with(text: str, given: str) -> str:
    if text.rstrip().rstrip('"').lower().endswith(given.strip().lower()):
        return text
    return f"{text.rstrip()} {given.strip()}"


REWRITES: dict[str, Callable[[str, str], str]] = {
    "upper": lambda text, given: text.upper(),
    "lower": lambda text, given: text.lower(),
    "title": _title,
    "exclaim": _marks("!"),
    "ask": _marks("?"),
    "no_comma": lambda text, given: text.replace(",", ""),
    "brackets": _brackets,
    "forbid": _forbid,
    "no_letter": _no_letter,
    "no_e": lambda text, given: _no_letter(text, "e"),
    "no_digits": _no_digits,
    "short_sentences": _short_sentences,
    "max_words": _max_words,
    "max_sentences": _max_sentences,
    "quoted": _quoted,
    "starts_with": _starts_with,
    "ends_with": _ends_with,
}
"""Kind -> (text, what stands after the colon) -> the text that complies."""
