"""Responses of an earlier evaluation, measured again: no engine, the measures of today."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from actor.config import ReusePolicy
from actor.offline.eval_summary import Sample
from actor.sessions.live_session import Finished
from actor.sessions.recorder import Counts
from dynatok_online.adherence.coverage import ending
from dynatok_online.adherence.outcomes import judge
from dynatok_online.adherence.passes import Decode
from dynatok_online.data.storage import read_trajectories
from dynatok_online.tasks.task import Task
from dynatok_online.trajectory import Trajectory

AGAIN = " again "
"""In the name of a task that is given once more."""


def samples_file(folder: Path, reuse: ReusePolicy, seed: int) -> Path:
    """Where an evaluation keeps the trajectories of a policy and a seed."""
    return folder / "trajectories" / f"{reuse.replace(':', '-')}-{seed}.parquet"


def stored_samples(path: Path, tasks: Sequence[Task], decode: Decode) -> list[Sample]:
    """The responses in a file, judged. ValueError where one is to none of these tasks."""
    by_id = {task.task_id: task for task in tasks}
    found = []
    for one in read_trajectories(path):
        task = by_id.get(one.info.get("task", ""))
        if task is None:
            raise ValueError(
                f"samples: {path} answers the task {one.info.get('task')!r}, which these settings "
                "do not draw; give those of that evaluation (its eval.json), model, tasks, split, "
                "count and seeds alike"
            )
        found.append(sample_of(task, unwatched(one), decode))
    if not found:
        raise ValueError(f"samples: {path} holds no response")
    return found


def unwatched(one: Trajectory) -> Finished:
    """A response of which nobody knows what an engine computed for it."""
    counts = Counts(edits=len(one.edits), generated_tokens=len(one.response))
    return Finished(one, counts, ())


def sample_of(task: Task, finished: Finished, decode: Decode) -> Sample:
    """A response, judged."""
    one = finished.trajectory
    name = task.task_id.partition(AGAIN)[0]
    judged, ends = judge(task, one, decode), ending(task, one, decode)
    return Sample(finished, decode(one.response.tolist()), judged, ends, name)
