"""Names for blocks of KV that say what is in them, kept by the actor for each trajectory.

Invariant: two blocks of one trajectory have equal names if and only if their KV is the same: the
same tokens, computed on the same KV at all lower positions. Going up a pass, a *chain* stands for
all KV so far:

    computed here    name = H(chain, tokens)    chain' = name
    kept (sticky)    name as it was             chain' = name where that is H(chain, tokens),
                                                         else H(chain, name)
    moved (turned)   name = H(its parts)        chain' = H(chain, name)

What has moved is put together from parts of other blocks (`moved`).

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

from actor.sessions.moved import Part, Source, is_whole, parts_of
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
    parts: tuple[tuple[Part, ...], ...]
    """What each block is made of: itself, unless it has moved. Their `origin` is the pass that
    computed them, this one's own index where that was itself."""


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
        sources: Sequence[Sequence[Source]] = (),
        computed_ahead: Container[int] = (),
        kept: Container[int] | None = None,
    ) -> PassBlocks:
        """The blocks of pass `index`, whose first `reused` ones were found in the cache.

        `previous` is the pass that a sticky session keeps blocks of, `sources` what each block may
        be taken from, if anything. Of the reused blocks, `computed_ahead` were computed by the
        pass itself, in a request of its own, and `kept` (by default all that can be) came from
        `previous`.
        """
        size = self.block_size
        chain = xxhash.xxh3_128_digest(salt.encode())
        names: list[bytes] = []
        parts: list[tuple[Part, ...]] = []
        for j in range(len(tokens) // size):
            fresh = xxhash.xxh3_128_digest(chain + tokens[j * size : (j + 1) * size].tobytes())
            found = j < reused and j not in computed_ahead
            source = sources[j] if found and j < len(sources) else ()
            if source and previous is not None and (kept is None or j in kept):
                mine = parts_of(source, previous.parts.__getitem__)
                name = _name(mine, size)
                if name != fresh:
                    # From outside is what `previous` would have computed, not what this would.
                    mine = tuple(
                        part._replace(origin=previous.index) if part.origin == OUTSIDE else part
                        for part in mine
                    )
            else:
                name, origin = fresh, index
                if found:
                    origin = self._computed.get(fresh, OUTSIDE)
                else:
                    self._computed[fresh] = index
                mine = (Part(name, 0, size, 0, origin),)
            names.append(name)
            parts.append(mine)
            chain = name if name == fresh else xxhash.xxh3_128_digest(chain + b"kept" + name)
        return PassBlocks(index, tokens, salt, tuple(names), tuple(parts))


def _name(parts: Sequence[Part], size: int) -> bytes:
    """Of a block that is made of `parts`."""
    if is_whole(parts, size):
        return parts[0].name
    said = (part.name + b"%d,%d,%d;" % part[1:4] for part in parts)
    return xxhash.xxh3_128_digest(b"moved" + b"".join(said))


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


def reuse_runs(
    parts: Sequence[Sequence[Part]], index: int, size: int
) -> tuple[tuple[Reuse, ...], tuple[int, ...]]:
    """What pass `index` did not compute of its blocks, as runs of one origin and shift each, and
    their shifts."""
    runs: list[Reuse] = []
    shifts: list[int] = []
    for j, block in enumerate(parts):
        at = j * size
        for part in block:
            stop = at + part.stop - part.start
            if part.origin != index:
                last = runs[-1] if runs else None
                found = part.origin, at, part.shift
                if last is not None and (last.origin, last.stop, shifts[-1]) == found:
                    runs[-1] = Reuse(part.origin, last.start, stop)
                else:
                    runs.append(Reuse(part.origin, at, stop))
                    shifts.append(part.shift)
            at = stop
    return tuple(runs), tuple(shifts)
