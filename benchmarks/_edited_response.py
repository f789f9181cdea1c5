"""What the benchmarks train on: responses whose prompt was edited at regular places."""

from __future__ import annotations

from itertools import pairwise

import msgspec
import numpy as np

from dynatok_online.trajectory import RESPONSE, Pass, Reuse, Trajectory


def edited_response(
    policy: str, static: int, slot: int, response: int, states: int, vocabulary: int, seed: int = 0
) -> Trajectory:
    """A response in equal segments, each under its own state of a slot before it.

    `policy`: `exact`, `sticky`, `refresh:M` (the last M tokens before an edit are computed anew),
    or `turned` (sticky, and every other state is three tokens longer than `slot`).
    """
    rng = np.random.default_rng(seed)

    def words(count: int) -> np.ndarray:
        return rng.integers(0, vocabulary, count).astype(np.int32)

    edges = np.linspace(0, response, states + 1).astype(int).tolist()
    widths = [slot + (3 if policy == "turned" and k % 2 else 0) for k in range(states)]
    # The last token of a segment gets its KV in the next pass.
    anew = int(policy.partition(":")[2] or 1)
    ends = [0, *(max(0, edge - anew) for edge in edges[1:])]
    passes = []
    for k, (start, stop) in enumerate(pairwise(edges)):
        reuse = [Reuse(0, 0, static)] if k and static else []
        shifts = [0] * len(reuse)
        if policy != "exact":
            head = static + widths[k]
            for o in range(k):
                if ends[o] < ends[o + 1]:
                    reuse.append(Reuse(o, head + ends[o], head + ends[o + 1]))
                    shifts.append(widths[k] - widths[o])
        passes.append(
            Pass(
                layout=(0, k + 1, RESPONSE),
                states={"slot": str(k)},
                start=start,
                stop=stop,
                num_cached_tokens=sum(run.stop - run.start for run in reuse),
                reuse=tuple(reuse),
                shifts=tuple(shifts) if any(shifts) else msgspec.UNSET,
            )
        )
    pieces = (words(static), *(words(width) for width in widths))
    # Every state differs in its first token, or prefixes of states would be shared by chance.
    for k, piece in enumerate(pieces[1:]):
        piece[:1] = k
    return Trajectory(
        trajectory_id=policy,
        pieces=pieces,
        response=words(response),
        logprobs=np.zeros(response, np.float32),
        passes=tuple(passes),
        policy="exact" if policy == "exact" else "sticky",
    )
