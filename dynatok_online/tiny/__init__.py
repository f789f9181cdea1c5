"""The embedded default: a small world, its tokenizer, and a model made from scratch in minutes.

In a config the literal model name `tiny` stands for the folder that `model_path` returns.
"""

from pathlib import Path

from dynatok_online.models import resolve

__all__ = ["model_path", "register_names", "resolve"]


def model_path() -> Path:
    """The folder of the committed model; transformers and vLLM load it as any other."""
    return Path(__file__).parent / "model"


def register_names() -> None:
    """Make the requirement names of the tiny world known: `sea`, `forest`, `city`."""
    from dynatok_online.tiny import topics

    topics.register()
