"""Trajectories without an engine: the passes that a block cache would have run.

Given a task and a response (a gold text written by a person, or tokens sampled elsewhere), `Script`
lists its passes, what each reuses of the one before it, and what it computes. `exact` reuses the
longest unchanged prefix, in whole blocks. `sticky` keeps every whole block, save those with a token
of an edited slot; `refresh:M` (`dynatok_online.policy`) computes some of these anew. The last
position that a pass feeds is always computed.

    trajectory = scripted_trajectory(task, encode(text), encode, reuse="sticky", block_size=16)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np

from dynatok_online.policy import Refresh, parse_policy
from dynatok_online.prompt import Placement
from dynatok_online.tasks.rendering import renderer_of
from dynatok_online.tasks.task import Task
from dynatok_online.trajectory import RESPONSE, Edit, Pass, Reuse, TokenIds, Trajectory, VersionRun


class Script:
    """The passes of one task, listed one by one as its response grows."""

    def __init__(
        self,
        task: Task,
        encode: Callable[[str], list[int]],
        *,
        reuse: str = "exact",
        block_size: int = 1,
        placement: Placement = "head",
    ) -> None:
        self.task = task
        self._policy = parse_policy(reuse, none=False)
        self._renderer = renderer_of(
            task, encode, fixed_width=self._policy.keeps, placement=placement
        )
        self._block = block_size
        self._passes: list[tuple[int, tuple[int, ...], tuple[Reuse, ...]]] = []
        self._held = (np.zeros(0, np.int32), np.zeros(0, np.int64))

    def begin(self, response: TokenIds) -> tuple[TokenIds, list[tuple[int, int]]]:
        """The pass that begins after `response`: what it feeds, and which positions it computes.

        The response so far must be that of the pass before, gone on. Returns token ids [N] and the
        runs `start .. stop` of positions that no earlier pass gives, in order.
        """
        at = len(response)
        texts = {name: state.text for name, state in self.task.states_at(at).items()}
        layout = self._renderer.layout(texts)
        pieces = self._renderer.pieces
        fed = np.concatenate([response if i == RESPONSE else pieces[i] for i in layout])
        k = len(self._passes)
        origin = np.full(len(fed), k)
        if k:
            # The KV that the pass before left: what it fed and sampled, but for the last token.
            tokens, held = self._held
            sampled = response[self._passes[-1][0] : -1]
            self._held = (
                np.concatenate([tokens, sampled]),
                np.concatenate([held, np.full(len(sampled), k - 1)]),
            )
            if self._policy.keeps:
                refresh = self._policy.refresh(f"{self.task.seed}/{self.task.task_id}/{at}")
                self._stick(origin, fed, layout, at, refresh)
            self._share_prefix(origin, fed)
        self._passes.append((at, layout, _runs(origin, k)))
        self._held = (fed, origin)
        return fed, [(a, b) for a, b in _edges(origin) if origin[a] == k]

    def _share_prefix(self, origin: np.ndarray, fed: TokenIds) -> None:
        tokens, held = self._held
        n = min(len(tokens), len(fed) - 1)
        same = int(np.argmin(np.append(tokens[:n] == fed[:n], False)))
        same = same // self._block * self._block
        origin[:same] = held[:same]

    def _stick(
        self,
        origin: np.ndarray,
        fed: TokenIds,
        layout: tuple[int, ...],
        at: int,
        refresh: Refresh,
    ) -> None:
        _, before, _ = self._passes[-1]
        edited = np.zeros(len(origin), bool)
        position = 0
        for old, new in zip(before, layout, strict=True):
            width = at if new == RESPONSE else len(self._renderer.pieces[new])
            edited[position : position + width] = old != new
            position += width
        tokens, held = self._held
        limit = min(len(origin) - 1, len(held))
        # What stands behind the response so far has moved: other tokens are no KV to keep.
        edited[:limit] |= tokens[:limit] != fed[:limit]
        if refresh.first:
            (ends,) = np.nonzero(edited[:-1] & ~edited[1:])
            for end in ends.tolist():
                edited[end + 1 : end + 1 + refresh.first] = True
        edited[max(0, len(held) - refresh.last) :] = True
        for start in range(0, limit // self._block * self._block, self._block):
            if not edited[start : start + self._block].any():
                origin[start : start + self._block] = held[start : start + self._block]

    def finish(
        self, response: Sequence[int], logprobs: Sequence[float] = (), stopped: bool = False
    ) -> Trajectory:
        """The trajectory of the whole response, under the passes begun so far."""
        tokens = np.asarray(response, np.int32)
        last = "stop" if stopped else "length"
        bounds = [*(at for at, _, _ in self._passes), len(tokens)]
        passes = []
        for (at, layout, reuse), (_, stop) in zip(self._passes, pairwise(bounds), strict=True):
            states = {name: state.text for name, state in self.task.states_at(at).items()}
            passes.append(
                Pass(
                    layout=layout,
                    states=states,
                    start=at,
                    stop=stop,
                    num_cached_tokens=sum(run.stop - run.start for run in reuse),
                    reuse=reuse,
                    weight_versions=(VersionRun(0, stop - at),),
                    finish_reason="edit" if stop < len(tokens) else last,
                )
            )
        return Trajectory(
            trajectory_id=self.task.task_id,
            pieces=tuple(self._renderer.pieces),
            response=tokens,
            logprobs=np.asarray(
                logprobs if len(logprobs) else np.full(len(tokens), np.nan), np.float32
            ),
            passes=tuple(passes),
            edits=tuple(
                Edit(edit.slot, edit.state.text, edit.index, edit.index, "schedule")
                for edit in self.task.edits
                if edit.index < len(tokens)
            ),
            policy="sticky" if self._policy.keeps else "exact",
            block_size=self._block,
        )


def scripted_trajectory(
    task: Task,
    response: Sequence[int],
    encode: Callable[[str], list[int]],
    *,
    reuse: str = "exact",
    block_size: int = 1,
    placement: Placement = "head",
    stopped: bool = False,
) -> Trajectory:
    """The trajectory of a given response under the task's edits; edits after its end are left out.

    `stopped`: its last token is the model's stop token.

    Log-probabilities are NaN: nobody sampled these tokens.
    """
    tokens = np.asarray(response, np.int32)
    script = Script(task, encode, reuse=reuse, block_size=block_size, placement=placement)
    for at in sorted({0, *(edit.index for edit in task.edits if edit.index < len(tokens))}):
        script.begin(tokens[:at])
    return script.finish(tokens.tolist(), stopped=stopped)


def computed_tokens(trajectory: Trajectory) -> int:
    """Positions whose KV was computed while it was written."""
    return sum(
        trajectory.kv_length(k) - one.num_cached_tokens for k, one in enumerate(trajectory.passes)
    )


def _edges(origin: np.ndarray) -> list[tuple[int, int]]:
    cuts = [0, *(np.flatnonzero(np.diff(origin)) + 1).tolist(), len(origin)]
    return list(pairwise(cuts))


def _runs(origin: np.ndarray, k: int) -> tuple[Reuse, ...]:
    return tuple(Reuse(int(origin[a]), a, b) for a, b in _edges(origin) if origin[a] != k)
