"""What the benchmarks train on: responses whose prompt was edited at regular places."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from dynatok_online.trajectory import RESPONSE, Pass, Reuse, Trajectory


def edited_response(
    policy: str, static: int, slot: int, response: int, states: int, vocabulary: int, seed: int = 0
) -> Trajectory:
    """A response in equal segments, each under its own state of a slot before it."""
    rng = np.random.default_rng(seed)

    def words(count: int) -> np.ndarray:
        return rng.integers(0, vocabulary, count).astype(np.int32)

    edges = np.linspace(0, response, states + 1).astype(int).tolist()
    head = static + slot
    passes = []
    for k, (start, stop) in enumerate(pairwise(edges)):
        reuse = [Reuse(0, 0, static)] if k and static else []
        if policy == "sticky":
            # The last token of a segment gets its KV in the next pass.
            ends = [head, *(head + edge - 1 for edge in edges[1:])]
            reuse += [Reuse(o, ends[o], ends[o + 1]) for o in range(k) if ends[o] < ends[o + 1]]
        passes.append(
            Pass(
                layout=(0, k + 1, RESPONSE),
                states={"slot": str(k)},
                start=start,
                stop=stop,
                num_cached_tokens=sum(run.stop - run.start for run in reuse),
                reuse=tuple(reuse),
            )
        )
    pieces = (words(static), *(words(slot) for _ in range(states)))
    # Every state differs in its first token, or prefixes of states would be shared by chance.
    for k, piece in enumerate(pieces[1:]):
        piece[:1] = k
    return Trajectory(
        trajectory_id=policy,
        pieces=pieces,
        response=words(response),
        logprobs=np.zeros(response, np.float32),
        passes=tuple(passes),
        policy=policy,
    )
