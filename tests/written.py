"""Trajectories written by hand: one character per token."""

from __future__ import annotations

import numpy as np

from dynatok_online.trajectory import Pass, Reuse, Trajectory


def ids(text: str) -> np.ndarray:
    return np.frombuffer(text.encode(), np.uint8).astype(np.int32)


def text(array: np.ndarray) -> str:
    return bytes(array.astype(np.uint8)).decode()


def make(
    pieces: list[str],
    passes: list[tuple[tuple[int, ...], str, tuple[Reuse, ...]]],
    policy: str = "exact",
    name: str = "t",
) -> Trajectory:
    """Passes as (layout, sampled text, reuse)."""
    at, out = 0, []
    for layout, sampled, reuse in passes:
        cached = sum(run.stop - run.start for run in reuse)
        out.append(
            Pass(
                layout=layout,
                states={},
                start=at,
                stop=at + len(sampled),
                num_cached_tokens=cached,
                reuse=reuse,
            )
        )
        at += len(sampled)
    response = ids("".join(sampled for _, sampled, _ in passes))
    return Trajectory(
        trajectory_id=name,
        pieces=tuple(ids(piece) for piece in pieces),
        response=response,
        logprobs=np.zeros(len(response), np.float32),
        passes=tuple(out),
        policy=policy,
    )
