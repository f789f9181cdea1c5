"""A folder on the command line of a benchmark."""

from __future__ import annotations

import argparse
from pathlib import Path


def existing_folder(text: str) -> Path:
    """A type for argparse: said before anything is measured."""
    path = Path(text)
    if not path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is no folder; make it first, or leave it out")
    return path
