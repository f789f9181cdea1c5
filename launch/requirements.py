"""`dynatok requirements`: what a slot can ask for."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console
from rich.table import Table

from dynatok_online.requirements import Kind
from dynatok_online.requirements.kinds import GENERAL
from dynatok_online.tiny import topics


def main() -> int:
    """Print the kinds; the exit code."""
    console = Console()
    console.print(_table("For any text", GENERAL))
    console.print(_table("With the tiny world (tasks: tiny, or model: tiny)", topics.KINDS))
    console.print(
        "Two at once: upper+no_comma.\n"
        "Your own: my.module:function, given (text, what came before), returns units or a score.\n"
        "It is code that runs on your machine; a visitor of the page cannot name one.",
        markup=False,
        highlight=False,
    )
    return 0


def _table(title: str, kinds: Iterable[Kind]) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for column in ("name, with an example", "what it asks for", "what is judged"):
        table.add_column(column, overflow="fold")
    for kind in kinds:
        cells = (kind.example, kind.meaning, kind.unit)
        table.add_row(*(cell.replace("[", r"\[") for cell in cells))
    return table
