"""The arms of the adherence experiment: one stream of gold texts, trained on in different ways.

Every arm sees the same tasks and the same gold responses in the same order. They differ in the
texts that they make of them, in which tokens of these carry loss, and in the divisor.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from dynatok_online.rows.plan import Row, plan_rows
from dynatok_online.tasks.scripted import scripted_trajectory
from dynatok_online.tasks.task import ScheduledEdit, Task
from dynatok_online.tiny import world
from dynatok_online.tiny.sampling import encode
from dynatok_online.trajectory import Pass, Trajectory

BLOCK_SIZE = 16
MAX_ROW_TOKENS = 8192

Weights = list[np.ndarray]


@dataclass(frozen=True)
class Arm:
    """One way to train. `divisor`: `tokens` (all loss tokens of the batch) or `states`."""

    name: str
    label: str
    strategy: str = "packed"
    reuse: str = "exact"
    one_state: bool = False
    appended: bool = False
    divisor: str = "tokens"
    batch: int = 8
    """Trajectories of an optimizer step."""

    def prepare(self, task: Task, rng: random.Random) -> tuple[Trajectory, np.ndarray]:
        """The trajectory of a task's gold response, and the state that each token counts for.

        [R] int: the index of the pass, -1 for tokens without loss.
        """
        text = world.gold_response(task)
        if self.appended:
            return appended_trajectory(task, text)
        one = scripted_trajectory(
            task, encode(text), encode, reuse=self.reuse, block_size=BLOCK_SIZE
        )
        return owned(one, rng if self.one_state else None)

    def rows(self, batch: Sequence[tuple[Trajectory, np.ndarray]]) -> tuple[list[Row], int]:
        """Rows whose weights already hold the divisor, and how many tokens carry loss."""
        count = sum(int((owner >= 0).sum()) for _, owner in batch)
        if self.divisor == "tokens":
            weights = [(owner >= 0) / count for _, owner in batch]
        else:  # the mean over a state's tokens, then the mean over states
            sizes = [np.bincount(owner[owner >= 0]) for _, owner in batch]
            states = sum(int((size > 0).sum()) for size in sizes)
            weights = [
                np.where(owner >= 0, 1 / size[owner.clip(0)].clip(1) / states, 0.0)
                for (_, owner), size in zip(batch, sizes, strict=True)
            ]
        rows = plan_rows(
            [one for one, _ in batch],
            [one.astype(np.float32) for one in weights],
            MAX_ROW_TOKENS,
            strategy=self.strategy,
        )
        return rows, count


def owned(one: Trajectory, choose: random.Random | None) -> tuple[Trajectory, np.ndarray]:
    """A trajectory, and [R] int: the index of each token's pass, -1 for tokens without loss.

    With `choose`, one pass's state is chosen: the whole text stands under it, and only the tokens
    sampled under it carry loss (snapshot masking, one state per visit).
    """
    owner = np.repeat(np.arange(len(one.passes)), [p.stop - p.start for p in one.passes])
    if choose is None:
        return one, owner
    chosen = choose.randrange(len(one.passes))
    owner[owner != chosen] = -1
    whole = Pass(
        layout=one.passes[chosen].layout,
        states=one.passes[chosen].states,
        start=0,
        stop=len(one.response),
        num_cached_tokens=0,
    )
    return msgspec.structs.replace(one, passes=(whole,)), owner


ARMS: dict[str, Arm] = {
    arm.name: arm
    for arm in (
        Arm(
            "b_one_state",
            "snapshot masking, one state per visit (as published)",
            one_state=True,
            divisor="states",
        ),
        Arm(
            "b_one_state_tokens",
            "snapshot masking, one state per visit, global token count",
            one_state=True,
        ),
        Arm("b_all_states", "snapshot masking, all states", "snapshot", divisor="states"),
        Arm("b_all_states_tokens", "snapshot masking, all states, global token count", "snapshot"),
        Arm("c_truncated", "one truncated pass per state", "truncated"),
        Arm("d_exact", "packed spans, exact"),
        Arm("g_sticky", "packed spans, sticky", reuse="sticky"),
        Arm("h_appended", "appended correction", appended=True),
        # As many loss tokens a step as snapshot masking has with one state per visit.
        Arm("d_exact_3", "packed spans, exact, 3 a step", batch=3),
        Arm("g_sticky_3", "packed spans, sticky, 3 a step", reuse="sticky", batch=3),
    )
}


def correction(edit: ScheduledEdit) -> str:
    """What stands in the text where the prompt cannot be edited."""
    return f"\n({edit.slot}: {edit.state.text.strip()})\n"


def insertions(task: Task) -> dict[int, str]:
    """Index of the longer text -> the correction that stands there."""
    out, shift = {}, 0
    for edit in task.edits:
        out[edit.index + shift] = correction(edit)
        shift += len(correction(edit))
    return out


def without_edits(task: Task) -> Task:
    """The task whose corrections are appended: its prompt stays, its text grows by them."""
    return msgspec.structs.replace(
        task, edits=(), max_tokens=task.max_tokens + sum(map(len, insertions(task).values()))
    )


def appended_trajectory(task: Task, text: str) -> tuple[Trajectory, np.ndarray]:
    """The gold text with a correction wherever an edit would have been; they carry no loss."""
    owner: list[int] = []
    out, at = "", 0
    for state, (index, inserted) in enumerate(insertions(task).items()):
        part = text[at : at + index - len(out)]
        out += part + inserted
        owner += [state] * len(part) + [-1] * len(inserted)
        at += len(part)
    owner += [len(task.edits)] * (len(text) - at)
    one = scripted_trajectory(
        without_edits(task), encode(out + text[at:]), encode, block_size=BLOCK_SIZE
    )
    return one, np.array(owner)


def removed_corrections(task: Task, text: str) -> str:
    """The text without the corrections that were appended to it."""
    for index, inserted in reversed(insertions(task).items()):
        assert text[index : index + len(inserted)] == inserted
        text = text[:index] + text[index + len(inserted) :]
    return text


def batches(arm: Arm, seed: int) -> Iterator[list[tuple[Trajectory, np.ndarray]]]:
    """Batches without end; the same tasks and gold texts for every arm of a seed."""
    rng = random.Random(f"{arm.name}/{seed}")
    tasks = world.tasks("train", seed=10_000 + seed)
    while True:
        yield [arm.prepare(next(tasks), rng) for _ in range(arm.batch)]
