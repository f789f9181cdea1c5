"""Sections of a page in docs/benchmarks that a command writes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def write_section(page: Path, heading: str, lines: Sequence[str]) -> None:
    """Put a section into a page: in the place of the one with this heading, else at its end."""
    text = page.read_text()
    begin = text.find(heading + "\n")
    if begin < 0:
        before, after = text.rstrip("\n") + "\n\n", ""
    else:
        end = text.find("\n## ", begin + 1)
        before, after = text[:begin], "" if end < 0 else text[end:]
    page.write_text(before + "\n".join([heading, "", *lines, ""]) + after)


def write_between(page: Path, mark: str, lines: Sequence[str]) -> None:
    """Put lines between the marks of that name."""
    begin, end = f"<!-- {mark} -->", f"<!-- end of {mark} -->"
    before, _, rest = page.read_text().partition(begin)
    page.write_text("\n".join([before + begin, "", *lines, "", end]) + rest.partition(end)[2])
