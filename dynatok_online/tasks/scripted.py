"""Trajectories without an engine: the passes that a block cache would have run.

Given a task and a response (a gold text written by a person, or tokens sampled elsewhere), `Script`
lists its passes, what each reuses of the one before it, and what it computes. `exact` reuses the
longest unchanged prefix, in whole blocks. `sticky` keeps every whole block, save those with a token
of an edited slot; `refresh:M` (`dynatok_online.policy`) computes some of these anew. `turned` keeps
what stands behind a slot that grows or shrinks as well, in whole blocks of where it stands now. The
last position that a pass feeds is always computed.

    trajectory = scripted_trajectory(task, encode(text), encode, reuse="sticky", block_size=16)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import msgspec
import numpy as np

from dynatok_online.moves import former_places
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
            task, encode, fixed_width=self._policy.fixed_width, placement=placement
        )
        self._block = block_size
        self._passes: list[tuple[int, tuple[int, ...], _Origins]] = []
        self._held = np.zeros(0, np.int32), _Origins.computed(0, 0)
        self.moves: list[tuple[int, int, int]] = []
        """What the last pass took from other positions of the one before: `start .. stop` stood
        at `start - shift .. stop - shift`; (start, stop, shift), in order."""

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
        origins = _Origins.computed(len(fed), k)
        origin = origins.pass_of
        self.moves = []
        if k:
            # The KV that the pass before left: what it fed and sampled, but for the last token.
            tokens, held = self._held
            sampled = response[self._passes[-1][0] : -1]
            self._held = np.concatenate([tokens, sampled]), held.gone_on(len(sampled), k - 1)
            if self._policy.turns:
                self._move(origins, fed, layout, at)
            elif self._policy.keeps:
                refresh = self._policy.refresh(f"{self.task.seed}/{self.task.task_id}/{at}")
                self._stick(origin, fed, layout, at, refresh)
            self._share_prefix(origins, fed)
        self._passes.append((at, layout, origins))
        self._held = fed, origins
        return fed, [(a, b) for a, b in _edges(origin) if origin[a] == k]

    def _share_prefix(self, origins: _Origins, fed: TokenIds) -> None:
        tokens, held = self._held
        n = min(len(tokens), len(fed) - 1)
        same = int(np.argmin(np.append(tokens[:n] == fed[:n], False)))
        same = same // self._block * self._block
        origins.pass_of[:same] = held.pass_of[:same]
        origins.shift[:same] = held.shift[:same]

    def _move(self, origins: _Origins, fed: TokenIds, layout: tuple[int, ...], at: int) -> None:
        """Whole blocks of where text stands now, that the pass before held wherever it stood."""
        begun, before, _ = self._passes[-1]
        tokens, held = self._held
        source = former_places(before, begun, len(tokens), layout, at, self._renderer.pieces)
        limit = (len(fed) - 1) // self._block * self._block
        kept = (source[:limit] >= 0).reshape(-1, self._block).all(1).repeat(self._block)
        (new,) = np.nonzero(kept)
        old = source[new]
        origins.pass_of[new] = held.pass_of[old]
        origins.shift[new] = held.shift[old] + new - old
        step = np.zeros(len(fed), np.int64)
        step[new] = new - old
        self.moves = [(a, b, int(step[a])) for a, b in _edges(step) if step[a]]

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
        limit = min(len(origin) - 1, len(tokens))
        # What stands behind the response so far has moved: other tokens are no KV to keep.
        edited[:limit] |= tokens[:limit] != fed[:limit]
        if refresh.first:
            (ends,) = np.nonzero(edited[:-1] & ~edited[1:])
            for end in ends.tolist():
                edited[end + 1 : end + 1 + refresh.first] = True
        edited[max(0, len(tokens) - refresh.last) :] = True
        for start in range(0, limit // self._block * self._block, self._block):
            if not edited[start : start + self._block].any():
                origin[start : start + self._block] = held.pass_of[start : start + self._block]

    def finish(
        self, response: Sequence[int], logprobs: Sequence[float] = (), stopped: bool = False
    ) -> Trajectory:
        """The trajectory of the whole response, under the passes begun so far."""
        tokens = np.asarray(response, np.int32)
        last = "stop" if stopped else "length"
        bounds = [*(at for at, _, _ in self._passes), len(tokens)]
        passes = []
        for k, ((at, layout, origins), (_, stop)) in enumerate(
            zip(self._passes, pairwise(bounds), strict=True)
        ):
            reuse, shifts = origins.runs(k)
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
                    shifts=shifts if any(shifts) else msgspec.UNSET,
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


@dataclass(frozen=True)
class _Origins:
    """Where the KV at each position of a pass comes from."""

    pass_of: np.ndarray
    """[N] the pass that computed it."""
    shift: np.ndarray
    """[N] how far it has moved since."""

    @staticmethod
    def computed(count: int, k: int) -> _Origins:
        """All of it by pass `k` itself."""
        return _Origins(np.full(count, k), np.zeros(count, np.int64))

    def gone_on(self, count: int, k: int) -> _Origins:
        """With as many positions that pass `k` sampled."""
        more = _Origins.computed(count, k)
        return _Origins(
            np.concatenate([self.pass_of, more.pass_of]),
            np.concatenate([self.shift, more.shift]),
        )

    def runs(self, k: int) -> tuple[tuple[Reuse, ...], tuple[int, ...]]:
        """What pass `k` did not compute, as runs of one origin and shift, and their shifts."""
        key = np.stack([self.pass_of, self.shift])
        cuts = (np.flatnonzero((np.diff(key) != 0).any(0)) + 1).tolist()
        edges = [(a, b) for a, b in pairwise([0, *cuts, len(self.shift)])]
        found = [(a, b) for a, b in edges if b > a and self.pass_of[a] != k]
        return (
            tuple(Reuse(int(self.pass_of[a]), a, b) for a, b in found),
            tuple(int(self.shift[a]) for a, _ in found),
        )
