"""The folder of one run: `PARENT/NAME-DATE-TIME`."""

from __future__ import annotations

import time
from pathlib import Path


def make_run_folder(parent: Path, name: str) -> Path:
    """A fresh folder, made here. ValueError says why it cannot be made."""
    stem = f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    for attempt in range(1, 100):
        folder = parent / (stem if attempt == 1 else f"{stem}-{attempt}")
        try:
            folder.mkdir(parents=True)
            return folder.resolve()
        except FileExistsError:
            if not parent.is_dir():
                raise ValueError(f"dir: {parent} is a file; name a folder for runs") from None
        except OSError as error:
            raise ValueError(f"dir: cannot make {folder} ({error.strerror})") from None
    raise ValueError(f"dir: {parent} is full of runs that began this second")
