"""Names for blocks of KV that say what is in them, kept by the actor for each trajectory.

Invariant: two blocks of one trajectory have equal names if and only if their KV is the same: the
same tokens, computed on the same KV at all lower positions. Going up a pass, a *chain* stands for
all KV so far:

    computed here    name = H(chain, tokens)    chain' = name
    kept (sticky)    name as it was             chain' = name where that is H(chain, tokens),
                                                         else H(chain, name)

The engine names its blocks by the same rule (`actor.engine.sticky`), with its own hash;
`dynatok_online` names single positions by it. So the engine can only take what the name promises,
and the recorder can say from the number of cached tokens alone which pass computed each block.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import xxhash

from dynatok_online.policy import NOTHING, Refresh
from dynatok_online.trajectory import OUTSIDE, Reuse, TokenIds


@dataclass(frozen=True, slots=True)
class PassBlocks:
    """The full blocks that a pass left in the cache."""

    index: int
    """Which pass."""
    tokens: TokenIds
    """All positions of the pass that have KV."""
    salt: str
    names: tuple[bytes, ...]
    origins: tuple[int, ...]
    """The pass that computed each block; its own index where that was itself."""


@dataclass
class BlockNames:
    """The blocks of one trajectory's passes."""

    block_size: int
    _computed: dict[bytes, int] = field(default_factory=dict)
    """Name -> latest pass that computed such a block."""

    def copy(self) -> BlockNames:
        """One that forgets what it is asked."""
        return BlockNames(self.block_size, dict(self._computed))

    def pass_blocks(
        self,
        index: int,
        tokens: TokenIds,
        salt: str,
        *,
        reused: int,
        previous: PassBlocks | None = None,
        same: Sequence[bool] = (),
        computed_ahead: Container[int] = (),
        kept: Container[int] | None = None,
    ) -> PassBlocks:
        """The blocks of pass `index`, whose first `reused` ones were found in the cache.

        `previous` is the pass that a sticky session keeps blocks of, `same` which of them it may
        keep (`same_blocks`). Of the reused blocks, `computed_ahead` were computed by the pass
        itself, in a request of its own, and `kept` (by default all that can be) came from
        `previous`.
        """
        size = self.block_size
        chain = xxhash.xxh3_128_digest(salt.encode())
        names, origins = [], []
        for j in range(len(tokens) // size):
            fresh = xxhash.xxh3_128_digest(chain + tokens[j * size : (j + 1) * size].tobytes())
            keeps = j < reused and j not in computed_ahead and j < len(same) and bool(same[j])
            if keeps and previous is not None and (kept is None or j in kept):
                name, origin = previous.names[j], previous.origins[j]
                if name != fresh and origin == OUTSIDE:
                    # It is what `previous` would have computed, and not what this pass would.
                    origin = previous.index
            elif j < reused and j not in computed_ahead:
                name, origin = fresh, self._computed.get(fresh, OUTSIDE)
            else:
                name, origin = fresh, index
                self._computed[fresh] = index
            names.append(name)
            origins.append(origin)
            chain = name if name == fresh else xxhash.xxh3_128_digest(chain + b"kept" + name)
        return PassBlocks(index, tokens, salt, tuple(names), tuple(origins))


def same_blocks(
    fed: TokenIds, held: TokenIds, size: int, refresh: Refresh = NOTHING
) -> npt.NDArray[np.bool_]:
    """[B] which of the full blocks that both have may be kept by a pass that feeds `fed`.

    Those with the same tokens at the same place; after an edit, without what `refresh` names.
    """
    common = min(len(fed), len(held))
    same = np.asarray(fed[:common] == held[:common])
    if not same.all():
        at = np.arange(common)
        # Of each position the last one up to it that has changed.
        changed = np.maximum.accumulate(np.where(same, -1, at))
        same[(changed >= 0) & (at - changed <= refresh.first)] = False
        same[max(0, len(held) - refresh.last) :] = False
    blocks = common // size
    return np.asarray(same[: blocks * size].reshape(blocks, size).all(axis=1))


def heads(fed: TokenIds, same: npt.NDArray[np.bool_], size: int) -> list[int]:
    """How many tokens to prefill first, so that blocks behind a changed one are found again.

    A request takes cached blocks up to the first that is missing. Each run of changed blocks with
    unchanged ones behind it is therefore computed by a request of its own that ends in it.
    """
    same = same[: (len(fed) - 1) // size]
    ends = np.flatnonzero(~same[:-1] & same[1:]) + 1
    return [int(end) * size + 1 for end in ends]


def reuse_runs(origins: Sequence[int], index: int, size: int) -> tuple[Reuse, ...]:
    """The blocks that pass `index` did not compute, as runs of one origin each."""
    runs: list[Reuse] = []
    for j, origin in enumerate(origins):
        if origin == index:
            continue
        last = runs[-1] if runs else None
        if last is not None and last.origin == origin and last.stop == j * size:
            runs[-1] = Reuse(origin, last.start, last.stop + size)
        else:
            runs.append(Reuse(origin, j * size, (j + 1) * size))
    return tuple(runs)
