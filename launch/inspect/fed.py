"""What the model was fed, token by token: the pieces of a trajectory's prompts.

A piece is a line, its tokens are divided by bars; a blank is a dot. Control tokens stand in
brackets and in another colour: text that merely reads like one does not.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from rich.table import Table
from rich.text import Text

from dynatok_online.trajectory import RESPONSE, Trajectory
from dynatok_online.view.texts import TokenTexts, fed_texts

LONGEST = 400
"""Detokenizer of a piece that are printed; of a longer one the middle is left out."""

_CONTROL_CHARACTERS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]"
)
_MARKS = str.maketrans({" ": "·", "\n": "⏎", "\t": "⇥"})


@dataclass(frozen=True)
class Detokenizer:
    """Token ids as text, by a model's tokenizer."""

    decode: Callable[[Sequence[int]], str]
    control: Mapping[int, str] = field(default_factory=dict)
    """Control token -> its name; `decode` leaves them out."""

    def texts(self, token_ids: Sequence[int]) -> list[str]:
        """What each token adds to the text."""
        return TokenTexts(self.decode).extend(token_ids)


def visible(text: str) -> str:
    """Text that steers no terminal: control and direction characters become escapes."""
    return _CONTROL_CHARACTERS.sub(lambda match: f"\\u{ord(match.group()):04x}", text)


def append_token(line: Text, token: int, text: str, tokens: Detokenizer, style: str = "") -> None:
    """A token at the end of a line."""
    if token in tokens.control:
        line.append(f"⟦{visible(tokens.control[token])}⟧", "bold magenta")
    else:
        line.append(visible(text), style)


def fed(trajectory: Trajectory, tokens: Detokenizer) -> Table:
    """Every piece once, in the order of the prompt."""
    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0))
    for name in ("piece", "tokens", "passes"):
        table.add_column(name, justify="right")
    table.add_column("fed (│ between tokens, · blank, ⟦control token⟧)", overflow="fold")
    for place, piece in _in_order(trajectory):
        users = [k for k, one in enumerate(trajectory.passes) if piece in one.layout]
        if piece == RESPONSE:
            table.add_row("–", "", "", Text("the response so far", "dim italic"))
            continue
        texts = fed_texts(trajectory, users[0], tokens.decode)[place]
        ids = trajectory.pieces[piece].tolist()
        table.add_row(str(piece), str(len(ids)), _ranges(users), _line(ids, texts, tokens))
    return table


def _in_order(trajectory: Trajectory) -> list[tuple[int, int]]:
    """(place in the layout where it stands first, piece): states of one slot follow each other."""
    found: dict[int, int] = {}
    for one in trajectory.passes:
        for place, piece in enumerate(one.layout):
            found.setdefault(piece, place)
    return sorted((place, piece) for piece, place in found.items())


def _line(ids: Sequence[int], texts: Sequence[str], tokens: Detokenizer) -> Text:
    line = Text(overflow="fold")
    half = LONGEST // 2
    for i, (token, text) in enumerate(zip(ids, texts, strict=True)):
        if i:
            line.append("│\n" if texts[i - 1].endswith("\n") else "│", "dim")
        if len(ids) > LONGEST and half <= i < len(ids) - half:
            if i == half:
                line.append(f"… {len(ids) - 2 * half} tokens …", "dim italic")
            continue
        # Without a text of its own, as a part of a character is, its number stands for it.
        append_token(line, token, text.translate(_MARKS) or f"⟨{token}⟩", tokens)
    return line


def _ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers, neighbours as ranges: 0–2, 5."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(f"{a}" if a == b else f"{a}–{b}" for a, b in runs)
