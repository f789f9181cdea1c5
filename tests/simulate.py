"""Random but consistent trajectories: a small engine with a block cache, without a model.

The engine keeps the blocks of earlier passes. `exact` reuses the longest unchanged prefix in
whole blocks; `sticky` (slots of fixed width at the head) reuses every whole block that holds no
slot token and was computed in the pass before, even if what stands before it changed.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import msgspec
import numpy as np

from dynatok_online.trajectory import OUTSIDE, RESPONSE, Pass, Reuse, Trajectory, VersionRun


@dataclass(frozen=True)
class World:
    """What random trajectories are drawn from."""

    vocabulary: int = 23
    passes: tuple[int, int] = (1, 6)
    slots: tuple[int, int] = (1, 3)
    text: tuple[int, int] = (1, 6)
    slot: tuple[int, int] = (0, 5)
    sampled: tuple[int, int] = (0, 7)
    outside: float = 0.3
    """Chance that a pass's first blocks come from another trajectory."""


def simulate(
    rng: np.random.Generator,
    policy: str = "exact",
    *,
    late: bool = False,
    block_size: int = 1,
    world: World = World(),
    prefix: np.ndarray | None = None,
    name: str = "t",
) -> Trajectory:
    """One random trajectory. `prefix`: the first piece, to share it between trajectories."""

    def draw(low_high: tuple[int, int]) -> int:
        return int(rng.integers(low_high[0], low_high[1] + 1))

    def words(count: int) -> np.ndarray:
        return rng.integers(0, world.vocabulary, count).astype(np.int32)

    slots = draw(world.slots)
    width = draw((max(1, world.slot[0]), world.slot[1]))
    pieces: list[np.ndarray] = [words(draw(world.text)) if prefix is None else prefix]
    parts: list[tuple[str, int]] = [("text", 0)]
    states: list[list[int]] = []
    for s in range(slots):
        alternatives = []
        for _ in range(draw((1, 3))):
            alternatives.append(len(pieces))
            pieces.append(words(width if policy == "sticky" else draw(world.slot)))
        states.append(alternatives)
        parts.append(("slot", s))
        if rng.random() < 0.6:
            parts.append(("text", len(pieces)))
            pieces.append(words(draw(world.text)))
    place = int(rng.integers(1, len(parts) + 1)) if late else len(parts)
    parts.insert(place, ("response", 0))

    count = draw(world.passes)
    response = np.zeros(0, np.int32)
    texts: list[np.ndarray] = []
    origins: list[np.ndarray] = []
    passes: list[Pass] = []
    for k in range(count):
        live = [int(rng.choice(one)) for one in states]
        layout = tuple(
            RESPONSE if kind == "response" else live[i] if kind == "slot" else i
            for kind, i in parts
        )
        fed = np.concatenate([response if i == RESPONSE else pieces[i] for i in layout])
        is_slot = np.concatenate(
            [
                np.full(len(response) if i == RESPONSE else len(pieces[i]), kind == "slot")
                for i, (kind, _) in zip(layout, parts, strict=True)
            ]
        )
        new = words(draw(world.sampled))
        if k == count - 1 and len(new) == 0 and len(response) == 0:
            new = words(1)
        text = np.concatenate([fed, new])
        length = len(fed) + max(0, len(new) - 1)
        origin = np.full(length, k)
        if policy == "sticky":
            if texts:
                _stick(origin, text, is_slot, texts[-1], origins[-1], len(fed), block_size)
        else:
            _reuse_prefix(origin, text, texts, origins, len(fed), block_size)
        if rng.random() < world.outside:
            head = int(rng.integers(0, len(fed) // block_size + 1)) * block_size
            head = min(head, (len(fed) - 1) // block_size * block_size)
            mine = np.arange(length) < head
            stop = int(np.argmin(mine & (origin == k)))
            origin[:stop] = OUTSIDE
        reuse = _runs(origin, k)
        start = len(response)
        response = np.concatenate([response, new])
        passes.append(
            Pass(
                layout=layout,
                states={f"s{i}": str(v) for i, v in enumerate(live)},
                start=start,
                stop=len(response),
                num_cached_tokens=sum(run.stop - run.start for run in reuse),
                reuse=reuse,
                weight_versions=(VersionRun(k, len(new)),),
            )
        )
        texts.append(text[:length])
        origins.append(np.where(origin == OUTSIDE, k, origin))
    return Trajectory(
        trajectory_id=name,
        pieces=tuple(pieces),
        response=response,
        logprobs=rng.normal(size=len(response)).astype(np.float32),
        passes=tuple(passes),
        policy=policy,
        block_size=block_size,
    )


def simulate_moved(
    rng: np.random.Generator,
    *,
    world: World = World(slot=(0, 6)),
    prefix: np.ndarray | None = None,
    name: str = "t",
) -> Trajectory:
    """One random trajectory whose slots grow and shrink, and what stands behind them is kept where
    it then stands; now and then some of it is lost. Blocks of one token."""

    def words(low: int, high: int) -> np.ndarray:
        count = int(rng.integers(low, high + 1))
        return rng.integers(0, world.vocabulary, count).astype(np.int32)

    pieces = [words(*world.text) if prefix is None else prefix]
    parts: list[list[int]] = [[0]]
    for _ in range(int(rng.integers(world.slots[0], world.slots[1] + 1))):
        parts.append(list(range(len(pieces), len(pieces) + 3)))
        pieces += [words(*world.slot) for _ in range(3)]
        if rng.random() < 0.7:
            parts.append([len(pieces)])
            pieces.append(words(*world.text))
    response = np.zeros(0, np.int32)
    passes: list[Pass] = []
    before: dict[tuple[int, int, int], tuple[int, int]] = {}
    for k in range(int(rng.integers(world.passes[0], world.passes[1] + 1))):
        layout = (*(int(rng.choice(one)) for one in parts), RESPONSE)
        # Which token of which place a position holds; the same one is the same text.
        places = [
            (slot, i, at)
            for slot, i in enumerate(layout)
            for at in range(len(response) if i == RESPONSE else len(pieces[i]))
        ]
        found: dict[int, tuple[int, int]] = {}
        lost = rng.random() < 0.3
        for p, place in enumerate(places[:-1]):
            if place in before and not (lost and rng.random() < 0.3):
                origin, stood = before[place]
                found[p] = (origin, p - stood)
        edges = [p for p in range(len(places) + 1) if p == 0 or found.get(p) != found.get(p - 1)]
        runs = [(a, b) for a, b in pairwise([*edges, len(places)]) if a in found]
        new = words(*world.sampled) if k else words(1, 6)
        start = len(response)
        response = np.concatenate([response, new])
        shifts = tuple(found[a][1] for a, _ in runs)
        passes.append(
            Pass(
                layout=layout,
                states={},
                start=start,
                stop=len(response),
                num_cached_tokens=len(found),
                reuse=tuple(Reuse(found[a][0], a, b) for a, b in runs),
                weight_versions=(VersionRun(k, len(new)),),
                shifts=shifts if any(shifts) else msgspec.UNSET,
            )
        )
        sampled = [(len(layout) - 1, RESPONSE, at) for at in range(start, len(response) - 1)]
        places += sampled
        computed = {p: (o, p - shift) for p, (o, shift) in found.items()}
        before = {place: computed.get(p, (k, p)) for p, place in enumerate(places)}
    return Trajectory(
        trajectory_id=name,
        pieces=tuple(pieces),
        response=response,
        logprobs=rng.normal(size=len(response)).astype(np.float32),
        passes=tuple(passes),
        policy="sticky",
    )


def _reuse_prefix(
    origin: np.ndarray,
    text: np.ndarray,
    texts: list[np.ndarray],
    origins: list[np.ndarray],
    fed: int,
    block: int,
) -> None:
    """The longest prefix, in whole blocks, that some earlier pass holds; never the last token."""
    best, source = 0, -1
    for o, other in enumerate(texts):
        n = min(len(other), fed - 1)
        same = int(np.argmin(np.append(text[:n] == other[:n], False)))
        if same // block * block > best:
            best, source = same // block * block, o
    if source >= 0:
        origin[:best] = origins[source][:best]


def _stick(
    origin: np.ndarray,
    text: np.ndarray,
    is_slot: np.ndarray,
    previous: np.ndarray,
    previous_origin: np.ndarray,
    fed: int,
    block: int,
) -> None:
    """Whole blocks without slot tokens keep the KV they had in the pass before."""
    changed = False
    for start in range(0, min(fed - 1, len(previous)) // block * block, block):
        stop = start + block
        if stop > min(fed - 1, len(previous)):
            break
        same = np.array_equal(text[start:stop], previous[start:stop])
        changed |= not same
        if same and not (changed and is_slot[start:stop].any()):
            origin[start:stop] = previous_origin[start:stop]


def _runs(origin: np.ndarray, k: int) -> tuple[Reuse, ...]:
    edges = [0, *(np.flatnonzero(np.diff(origin)) + 1).tolist(), len(origin)]
    return tuple(
        Reuse(int(origin[a]), a, b) for a, b in pairwise(edges) if b > a and origin[a] != k
    )
