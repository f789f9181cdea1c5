"""The model names that need no path: `tiny` (embedded) and `smollm2` (made by `dynatok model`)."""

from __future__ import annotations

import os
from pathlib import Path

SMOLLM2 = "smollm2"
"""SmolLM2-135M-Instruct, an English chat model of 134.5 million parameters."""


def cache_path(name: str) -> Path:
    """The folder in which a fetched model is kept: below XDG_CACHE_HOME, or ~/.cache."""
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "dynatok" / "models" / name


def resolve(model: str) -> str:
    """What loads a model: the folder of a name above, else the name as it is.

    With `tiny`, the requirement names of its world are known from here on.
    Raises ValueError that says how to get `smollm2` where it is not on this machine.
    """
    if model == "tiny":
        from dynatok_online import tiny  # which offers this function, too

        tiny.register_names()
        return str(tiny.model_path())
    if model == SMOLLM2:
        folder = cache_path(model)
        if not (folder / "config.json").is_file():
            raise ValueError(
                f"model {model!r} is not on this machine yet (it would be in {folder}); "
                f"run: dynatok model {model}"
            )
        return str(folder)
    return model
