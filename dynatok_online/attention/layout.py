"""What attention needs to know about one row, and what it works out once per row.

Invariant: token i attends to token j iff `j <= i` and `visible[span(i), span(j)]`, and, in a
layer with a sliding window, `position(i) - position(j) < window`. Kernels differ only in how
they compute this.

A `Layout` travels as the model's `attention_mask`: every way of calling a model hands that
through (gradient checkpointing, peft, DeepSpeed), our mask function turns it into what the layers
get, and a model that is not prepared for it stops at once instead of computing something else.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import NoReturn, TypeVar

import numpy as np
import torch

from dynatok_online.arrays import Flags, Ints
from dynatok_online.attention.moved import Moved, moved_keys
from dynatok_online.attention.stored import StoredKV
from dynatok_online.attention.watched import Watched
from dynatok_online.rows.row import Row

T = TypeVar("T")


class Layout:
    """Spans of one row, with a memory for what kernels derive from them.

    Keys are the A tokens that were run before (see `parts`), then the row's N; queries the N.
    """

    def __init__(
        self, row: Row, above: Sequence[StoredKV] = (), stores: StoredKV | None = None
    ) -> None:
        self.bounds: Ints = np.asarray(row.bounds, np.int64)
        self.visible: Flags = np.asarray(row.visible, bool)
        self.positions: Ints = np.concatenate([row.above, row.position_ids]).astype(np.int64)
        self.above = len(row.above)
        """A"""
        self._shifts = row.shifts
        self.watched: Watched | None = None
        """What wants to know where the last layer's attention goes."""
        self._read = above
        self._stores = stores
        self._derived: dict[Hashable, object] = {}

    @property
    def tokens(self) -> int:
        """N"""
        return len(self.positions) - self.above

    @property
    def first(self) -> int:
        """Index of the first span of the row itself."""
        return int(np.searchsorted(self.bounds[:-1], self.above))

    def keys(
        self, layer: torch.nn.Module, key: torch.Tensor, value: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What the queries meet in `layer`, given the row's own: [1, G, A + N, D] both."""
        if self._stores is not None:
            self._stores.store(layer, key, value)
        if not self._read:
            return key, value
        pairs = [*(stored.read(layer) for stored in self._read), (key, value)]
        return torch.cat([one for one, _ in pairs], 2), torch.cat([one for _, one in pairs], 2)

    def moved(self) -> Moved | None:
        """The keys that have moved since they were computed; None where none have."""
        shifts = self._shifts
        return None if shifts is None else self.once("moved", lambda: moved_keys(self, shifts))

    def once(self, key: Hashable, derive: Callable[[], T]) -> T:
        """What `derive` returns; computed at the first call with this key."""
        if key not in self._derived:
            self._derived[key] = derive()
        return self._derived[key]  # type: ignore[return-value]

    def window(self, window: int | None) -> int | None:
        """`window`, or None where it hides nothing in this row."""
        if window is None or not len(self.positions):
            return None
        reach = self.once("reach", lambda: int(self.positions.max() - self.positions.min()))
        return window if window <= reach else None

    def mask(self, window: int | None, queries: Ints | None = None) -> Flags:
        """[N, A + N] which tokens (second axis) a token attends to: the definition itself.

        `queries`: of these alone, by index among the row's own tokens.
        """
        span = np.repeat(np.arange(len(self.bounds) - 1), np.diff(self.bounds))
        at = self.above + (np.arange(self.tokens) if queries is None else queries)
        mask: Flags = self.visible[span[at]][:, span] & (np.arange(len(span)) <= at[:, None])
        if window is not None:
            mask &= self.positions[at, None] - self.positions[None, :] < window
        return mask

    # What transformers reads of an attention mask before it asks our mask function.

    ndim = 3

    @property
    def shape(self) -> tuple[int, int, int]:
        """As an attention mask: [1, 1, N]."""
        return 1, 1, self.tokens

    def view(self, *shape: int) -> Layout:
        """Itself: GPT-2 flattens masks that it did not make."""
        return self

    def reshape(self, *shape: int) -> torch.Tensor:
        """[N] ones: the balance loss of experts asks which tokens are real, and all are."""
        return torch.ones(self.tokens)

    # What only other mask functions ask for.

    def __getitem__(self, index: object) -> NoReturn:
        _not_prepared()

    def all(self, *_: object, **__: object) -> NoReturn:
        """Raises ValueError."""
        _not_prepared()

    sum = all


def _not_prepared() -> NoReturn:
    raise ValueError(
        "a row of spans reached a model that is not prepared for it, which would attend to the "
        "wrong tokens; call attention.prepare(model) first"
    )


@dataclass(frozen=True)
class Scoring:
    """How a layer makes weights of scores, beside what a row lets it see."""

    scale: float
    window: int | None = None
    """Keys this many positions back, or further, are not seen."""
    sinks: torch.Tensor | None = None
    """[H] a score without a key, for every head: it takes its share of the softmax and adds
    nothing."""
    softcap: float | None = None
    """Scores are bent to `softcap * tanh(score / softcap)`."""


@dataclass(frozen=True)
class LayerMask:
    """What our mask function hands to the layers of one kind."""

    layout: Layout
    window: int | None
    """The sliding window of these layers."""
