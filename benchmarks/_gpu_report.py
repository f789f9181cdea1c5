"""A report that is on disk line by line: a run that is killed leaves what it found."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


class Report:
    """Markdown in a file, each line written, and shown, as soon as it is known."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)

    def write(self, *lines: str) -> None:
        """Adds lines."""
        with self._path.open("a") as file:
            for line in lines:
                file.write(line + "\n")
                print(line, flush=True)

    def table(self, title: str, text: str, columns: Sequence[str]) -> None:
        """A heading, a sentence and the head of a table; `row` goes on."""
        self.write("", f"## {title}", "", *([text, ""] if text else []))
        self.row(*columns)
        self.row(*("---" for _ in columns))

    def row(self, *cells: str) -> None:
        """One line of a table."""
        self.write(f"| {' | '.join(cells)} |")


def short(problem: BaseException) -> str:
    """What went wrong, in a cell of a table."""
    lines = str(problem).strip().splitlines() or [""]
    return f"{type(problem).__name__}: {lines[0][:110]}".replace("|", "/")
