"""The embedded default: a small world, its tokenizer, and a model made from scratch in minutes.

In a config the literal model name `tiny` stands for the folder that `model_path` returns.
"""

from pathlib import Path


def model_path() -> Path:
    """The folder of the committed model; transformers and vLLM load it as any other."""
    return Path(__file__).parent / "model"


def resolve(model: str) -> str:
    """What loads a model: the embedded one's folder for `tiny`, else the name as it is."""
    return str(model_path()) if model == "tiny" else model
