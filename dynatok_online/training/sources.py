"""What trajectories come from: datasets, lists, streams; and the tokenizer that need not be."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from trl.trainer.utils import get_config_model_id


class _Listed(torch.utils.data.Dataset):
    def __init__(self, trajectories: Sequence[Any]) -> None:
        self._trajectories = trajectories

    def __len__(self) -> int:
        return len(self._trajectories)

    def __getitem__(self, index: int) -> Any:
        return self._trajectories[index]


class _Streamed(torch.utils.data.IterableDataset):
    def __init__(self, trajectories: Iterable[Any]) -> None:
        self._trajectories = trajectories

    def __iter__(self) -> Iterator[Any]:
        return iter(self._trajectories)


def as_dataset(given: Any, name: str) -> Any:
    """A dataset that torch can load: rows of `datasets`, or trajectories from any iterable."""
    if given is None:
        raise ValueError(f"{name} is missing; give a datasets.Dataset, or a list of trajectories")
    if isinstance(given, (datasets.Dataset, datasets.IterableDataset)):
        columns = given.column_names
        missing = {"pieces", "response", "passes"} - set(columns or ())
        if columns is not None and missing:
            raise ValueError(
                f"{name} lacks the columns {sorted(missing)} (it has {columns}); its rows must be "
                "trajectories: write them with dynatok_online.trajectory.to_row"
            )
        return given
    if isinstance(given, (str, bytes, Mapping)) or not isinstance(given, Iterable):
        raise ValueError(
            f"{name} must be a datasets.Dataset or an iterable of trajectories, got "
            f"{type(given).__name__}; load a file with datasets.load_dataset('json', "
            "data_files=..., split='train')"
        )
    return _Listed(given) if isinstance(given, Sequence) else _Streamed(given)


def placeholder() -> datasets.Dataset:
    """One row, for TRL to look at where a stream has none yet."""
    return datasets.Dataset.from_list([{"trajectory_id": "placeholder"}])


def tokenizer_of(model: Any) -> PreTrainedTokenizerBase | None:
    """The model's tokenizer where it has one. Training does not need it; saving takes it along."""
    name = model if isinstance(model, str) else get_config_model_id(model.config)
    folder = Path(name or "")
    # For a folder without one, transformers makes one up, and puts its ids into the model's config.
    if not name or (folder.is_dir() and not any(folder.glob("*token*"))):
        return None
    try:
        return AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError):
        return None


def thought_marks(tokenizer: PreTrainedTokenizerBase | None) -> tuple[int, int]:
    """The tokens that open and close a thought. ValueError where the tokenizer has none."""
    known = {} if tokenizer is None else tokenizer.get_vocab()
    if not {"<think>", "</think>"} <= known.keys():
        raise ValueError(
            "skip_thoughts: the model's tokenizer has no tokens <think> and </think>; leave it out"
        )
    return int(known["<think>"]), int(known["</think>"])


def no_tokenizer() -> PreTrainedTokenizerBase:
    """What satisfies TRL, which asks for a tokenizer: trajectories are token ids already."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    words = Tokenizer(WordLevel({"": 0}, unk_token=""))
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="", pad_token="")
