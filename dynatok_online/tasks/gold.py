"""What offline training reads: collected trajectories, or gold responses under scripted edits.

A row with `pieces` is a trajectory (`dynatok_online.trajectory`). A row with `response` is a task
row (`dynatok_online.tasks.files`) whose gold text somebody wrote: its passes are those that an
engine with this reuse policy would have run.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import msgspec

from dynatok_online.data.storage import OnBad, read_rows
from dynatok_online.tasks.files import Chat, make_task, read_row
from dynatok_online.tasks.scripted import scripted_trajectory
from dynatok_online.trajectory import Trajectory, from_row


def load_training_data(
    path: str | os.PathLike[str],
    *,
    encode: Callable[[str], list[int]],
    chat: Callable[[], Chat],
    reuse: str = "exact",
    block_size: int = 1,
    seed: int = 0,
    on_bad: OnBad | None = None,
) -> list[Trajectory]:
    """Every trajectory of a file or folder.

    `encode`, `chat`, `reuse` and `block_size` matter for gold responses only. ValueError names the
    line of a broken row; where `on_bad` is given it is told instead, and the row left out.
    """
    turn: Chat | None = None
    out = []
    for number, (raw, where) in enumerate(read_rows(path, on_bad), 1):
        try:
            if not isinstance(raw, dict) or not {"pieces", "response"} & raw.keys():
                raise ValueError(
                    "is neither a trajectory (it has no 'pieces') nor a task with a gold 'response'"
                )
            if "pieces" in raw:
                out.append(from_row(raw))
                continue
            row = read_row(raw)
            if row.messages and turn is None:
                turn = chat()
            row = msgspec.structs.replace(row, task_id=row.task_id or f"row-{number}")
            tokens = encode(row.response or "")
            if not tokens:
                raise ValueError("the gold response is empty")
            row = msgspec.structs.replace(row, max_tokens=max(row.max_tokens, len(tokens)))
            task = make_task(row, seed=seed, chat=turn)
            if task.rules:
                raise ValueError(
                    "a gold response needs edits at known tokens: rule random or every"
                )
            out.append(
                scripted_trajectory(task, tokens, encode, reuse=reuse, block_size=block_size)
            )
        except ValueError as error:
            if on_bad is None:
                raise ValueError(f"{where}: {error}") from error
            on_bad(f"{where}: {error}")
    return out
