"""The passes of a lane so far, as the trajectory that the recorder will make of them.

While a session runs nobody has its trajectory; its pass reports hold all that the picture needs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from actor.sessions.live_session import PassReport
from actor.sessions.serving import Served
from dynatok_online.trajectory import Pass, Reuse, Trajectory, VersionRun


class Record:
    """Grows with each pass that has ended."""

    def __init__(self, name: str, reuse: str, block_size: int) -> None:
        self._name = name
        self._reuse = reuse
        self._block_size = block_size
        self._passes: list[Pass] = []
        self._logprobs: list[float] = []
        self._versions: tuple[VersionRun, ...] = ()

    @property
    def passes(self) -> int:
        """How many passes have ended."""
        return len(self._passes)

    def sampled(self, served: Served) -> None:
        """The pass under way has ended, with these tokens."""
        self._logprobs += served.generated.logprobs
        # Weights may have changed under it, where a pass goes on through an update.
        self._versions = tuple(
            VersionRun(int(label) if label.isdecimal() else served.version, length)
            for label, length in served.generated.weight_labels
        )

    def with_pass(self, report: PassReport, response: Sequence[int]) -> Trajectory:
        """The passes so far and the one that is reported, which is kept if it has ended."""
        # A report at the first token comes before the token itself.
        sampled = report.sampled if report.ended else 0
        stop = report.start + sampled
        last = Pass(
            layout=report.layout,
            states=dict(report.states),
            start=report.start,
            stop=stop,
            num_cached_tokens=report.reused_tokens,
            reuse=tuple(
                Reuse(block.origin, block.start, block.stop)
                for block in report.blocks
                if block.kind in ("reused", "shared")
            ),
            weight_versions=self._versions if report.ended else (),
            finish_reason=report.finish_reason,
        )
        found = Trajectory(
            trajectory_id=self._name,
            pieces=tuple(report.pieces),
            response=np.asarray(response[:stop], np.int32),
            logprobs=np.asarray(self._logprobs[:stop], np.float32),
            passes=(*self._passes, last),
            policy="sticky" if self._reuse == "sticky" else "exact",
            block_size=self._block_size,
            info={"reuse": self._reuse},
        )
        if report.ended:
            self._passes.append(last)
        return found
