"""Adherence on held-out tasks, measured the same way before and after training.

Every task is sampled once by an ordinary live session, with its own seeds;
`dynatok_online.adherence.summary` says what is counted.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

from actor.sessions.live_session import Finished, LiveSession
from dynatok_online.adherence.measures import repetition
from dynatok_online.adherence.passes import Decode
from dynatok_online.adherence.summary import share, summarize
from dynatok_online.tasks.task import Task

MakeSession = Callable[[Task], LiveSession]


async def evaluate(
    tasks: Iterable[Task], count: int, sessions: int, make: MakeSession, decode: Decode
) -> tuple[dict[str, Any], list[Finished]]:
    """Sample `count` tasks, `sessions` at once; the summary and what was sampled.

    Besides adherence it has `repetition`, the share of runs of four words that stood before: a
    model may come to follow every edit and write nothing but loops.
    """
    begun = time.monotonic()
    pending = islice(iter(tasks), count)
    finished: list[Finished] = []

    async def work() -> None:
        for task in pending:
            finished.append(await make(task).run())

    async with asyncio.TaskGroup() as group:
        for _ in range(min(sessions, count)):
            group.create_task(work())
    summary = summarize(one.trajectory for one in finished)
    texts = [decode(one.trajectory.response.tolist()) for one in finished]
    repeated = share([repetition(text) for text in texts])
    summary |= {"repetition": repeated["mean"], "repetition_half": repeated["half"]}
    summary["seconds"] = round(time.monotonic() - begun, 3)
    summary["generated_tokens"] = sum(one.counts.generated_tokens for one in finished)
    return summary, finished
