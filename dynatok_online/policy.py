"""Reuse policies: what a pass takes from the cache after an edit, as configs write it.

    exact           an unchanged prefix, so a pass equals a fresh prompt
    sticky          besides, all that stands behind the edited slot, as it was computed before
    refresh:M       sticky, but the last M tokens of what was there are computed anew
    refresh:A-B     M drawn for every pass, from A to B: what one model needs to serve every M
    refresh:M+F     besides, the first F tokens behind what has changed are computed anew
    turned          sticky, but slots have no fixed width: what stands behind one that grows or
                    shrinks moves, its keys turned on to where it stands now
    none            nothing: every pass starts over

In blocks: one that holds a token to be computed anew is not kept. Where M covers all that stands
behind the slot, `refresh` is `exact` with slots of a fixed width; `refresh:0` is `sticky`.
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass

_REFRESH = re.compile(r"refresh:(\d{1,9})(?:-(\d{1,9}))?(?:\+(\d{1,9}))?")


@dataclass(frozen=True, slots=True)
class Refresh:
    """What one pass computes anew of what a sticky pass would keep."""

    last: int = 0
    """Tokens at the end of what the pass before held."""
    first: int = 0
    """Tokens behind each token that has changed."""


NOTHING = Refresh()
"""Everything that can be kept is."""


@dataclass(frozen=True, slots=True)
class Policy:
    """A reuse policy that was read; `text` is how it was written."""

    text: str
    last: tuple[int, int] = (0, 0)
    """Lowest and highest M."""
    first: int = 0

    @property
    def keeps(self) -> bool:
        """Whether blocks behind a changed one are kept: trajectories are `sticky`."""
        return self.text not in ("exact", "none")

    @property
    def turns(self) -> bool:
        """Whether what is kept may move."""
        return self.text == "turned"

    @property
    def fixed_width(self) -> bool:
        """Whether slots have a fixed width, because what is kept must not move."""
        return self.keeps and not self.turns

    def refresh(self, draw: str) -> Refresh:
        """What a pass computes anew; `draw` names the pass, and so chooses M."""
        low, high = self.last
        return Refresh(low + zlib.crc32(f"refresh/{draw}".encode()) % (high - low + 1), self.first)


def parse_policy(
    text: str, where: str = "reuse", *, none: bool = True, turned: bool = True
) -> Policy:
    """The policy that `text` writes. ValueError, naming the field `where`, for anything else, and
    for those that are not possible there (`none`, `turned`)."""
    if text == "turned":
        if turned:
            return Policy(text)
        raise ValueError(
            f"{where} is 'turned', but this sampler keeps KV where it was computed; write sticky, "
            "with slots of a fixed width"
        )
    if text in ("exact", "sticky") or (none and text == "none"):
        return Policy(text)
    found = _REFRESH.fullmatch(text)
    if found is None:
        words = ["exact", "sticky", *(["none"] if none else [])]
        raise ValueError(
            f"{where} is {text!r}; write {', '.join(words)} or refresh:64 (sticky, but the last 64 "
            "tokens are computed anew; refresh:0-128 draws how many, refresh:64+16 adds the first "
            "16 behind the slot)"
        )
    low = int(found[1])
    high = low if found[2] is None else int(found[2])
    if high < low:
        raise ValueError(f"{where} is {text!r}; write the lower number first: refresh:{high}-{low}")
    return Policy(text, (low, high), int(found[3] or 0))
