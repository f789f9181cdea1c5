"""Builds the trajectory of a session from what the engine reported, pass by pass.

The engine says how many tokens of a pass it took from its cache. Where they came from follows
from the exact reuse policy: a full block can only be reused by a pass that feeds the same tokens
from position 0 to its end, under the same cache salt. The origin of a position is the latest
earlier pass that held such a block, followed back to the pass that computed it; blocks that no
pass of this trajectory held are `OUTSIDE` (a shared system prompt, say).

What is recorded is what happened: after an eviction the engine reuses less, and says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np

from actor.generation import Generated
from actor.serving import Served
from dynatok_online.trajectory import (
    OUTSIDE,
    RESPONSE,
    Edit,
    Pass,
    Reuse,
    TokenIds,
    Trajectory,
    VersionRun,
)


@dataclass(frozen=True, slots=True)
class _Held:
    """The KV that an earlier pass left in the cache."""

    tokens: TokenIds
    """All that it fed and sampled, as far as KV was computed for it."""
    cache_salt: str
    reuse: tuple[Reuse, ...]


@dataclass
class Counts:
    """What the engine did, summed over passes."""

    passes: int = 0
    empty_passes: int = 0
    """Ended before their first token; not part of the trajectory."""
    edits: int = 0
    generated_tokens: int = 0
    computed_tokens: int = 0
    """Positions whose KV was computed."""
    reused_tokens: int = 0
    """Positions whose KV came from the cache."""
    audit_mismatches: int = 0
    """Reports of the engine that cannot be true."""

    def add(self, other: Counts) -> None:
        """Add the numbers of another."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


@dataclass
class Recorder:
    """Collects the passes of one trajectory."""

    block_size: int
    counts: Counts = field(default_factory=Counts)
    problems: list[str] = field(default_factory=list)
    """What was wrong with the engine's reports."""
    response: list[int] = field(default_factory=list)
    """Every token sampled so far."""
    passes: list[Pass] = field(default_factory=list)
    edits: list[Edit] = field(default_factory=list)
    _logprobs: list[float] = field(default_factory=list)
    _held: list[_Held] = field(default_factory=list)

    def add_edit(self, edit: Edit) -> None:
        """A slot was changed before the next pass."""
        self.edits.append(edit)

    def add_pass(
        self,
        served: Served,
        *,
        layout: Sequence[int],
        states: Mapping[str, str],
        fed: Sequence[int],
        finish_reason: str,
    ) -> None:
        """A pass has ended. One without tokens leaves no trace but its count."""
        generated = served.generated
        if not generated.token_ids:
            self.counts.empty_passes += 1
            return
        cached = self._checked(generated, len(fed))
        tokens = np.asarray([*fed, *generated.token_ids[:-1]], np.int32)
        reuse = _origins(self._held, tokens[:cached], served.cache_salt, self.block_size)
        start = len(self.response)
        self.response += generated.token_ids
        self._logprobs += generated.logprobs
        self.passes.append(
            Pass(
                layout=tuple(layout),
                states=dict(states),
                start=start,
                stop=len(self.response),
                num_cached_tokens=cached,
                reuse=reuse,
                weight_versions=self._versions(generated, served.version),
                finish_reason=finish_reason,
            )
        )
        self._held.append(_Held(tokens, served.cache_salt, reuse))
        self.counts.passes += 1
        self.counts.generated_tokens += len(generated.token_ids)
        self.counts.reused_tokens += cached
        self.counts.computed_tokens += len(tokens) - cached

    def trajectory(
        self,
        trajectory_id: str,
        pieces: Sequence[TokenIds],
        scores: Sequence[Mapping[str, float]] = (),
        info: Mapping[str, str] | None = None,
    ) -> Trajectory:
        """What happened. `scores` holds one mapping per pass (none: not scored).

        An edit after which nothing was sampled is left out.
        """
        edits = tuple(edit for edit in self.edits if edit.effective_at < len(self.response))
        self.counts.edits = len(edits)
        passes = self.passes
        if scores:
            passes = [_scored(one, given) for one, given in zip(passes, scores, strict=True)]
        return Trajectory(
            trajectory_id=trajectory_id,
            pieces=tuple(pieces),
            response=np.asarray(self.response, np.int32),
            logprobs=np.asarray(self._logprobs, np.float32),
            passes=tuple(passes),
            edits=edits,
            block_size=self.block_size,
            info=dict(info or {}),
        )

    def _checked(self, generated: Generated, fed: int) -> int:
        cached = generated.num_cached_tokens
        if not 0 <= cached < fed:
            self._problem(
                f"pass {len(self.passes)}: the engine says it reused {cached} of {fed} tokens, "
                "but it must have computed the last one"
            )
            return min(max(cached, 0), max(fed - 1, 0))
        if cached % self.block_size:
            self._problem(
                f"pass {len(self.passes)}: the engine says it reused {cached} tokens, which is "
                f"not a whole number of blocks of {self.block_size}"
            )
        return cached

    def _versions(self, generated: Generated, version: int) -> tuple[VersionRun, ...]:
        runs = tuple(
            VersionRun(int(label) if label.isdecimal() else version, length)
            for label, length in generated.weight_labels
        )
        if sum(run.length for run in runs) != len(generated.token_ids):
            runs = (VersionRun(version, len(generated.token_ids)),)
        if any(run.version != version for run in runs):
            self._problem(
                f"pass {len(self.passes)}: started under weights {version}, but the engine says "
                f"{generated.weight_labels}"
            )
        return runs

    def _problem(self, text: str) -> None:
        self.problems.append(text)
        self.counts.audit_mismatches += 1


def _origins(
    held: Sequence[_Held], cached: TokenIds, cache_salt: str, block_size: int
) -> tuple[Reuse, ...]:
    """Where the first `len(cached)` positions of a pass came from."""
    runs: list[Reuse] = []
    at = 0
    for index in reversed(range(len(held))):
        if at == len(cached):
            break
        earlier = held[index]
        if earlier.cache_salt == cache_salt:
            common = _common_prefix(earlier.tokens, cached)
            usable = common // block_size * block_size
            for run in _resolved(earlier, index, at, usable):
                _append(runs, run)
            at = max(at, usable)
    if at < len(cached):
        _append(runs, Reuse(OUTSIDE, at, len(cached)))
    return tuple(runs)


def _resolved(held: _Held, index: int, start: int, stop: int) -> list[Reuse]:
    """Positions `start .. stop` of an earlier pass, each named by the pass that computed it."""
    runs = []
    at = start
    for run in held.reuse:
        low, high = max(run.start, at), min(run.stop, stop)
        if low < high:
            if low > at:
                runs.append(Reuse(index, at, low))
            runs.append(Reuse(run.origin, low, high))
            at = high
    if at < stop:
        runs.append(Reuse(index, at, stop))
    return runs


def _append(runs: list[Reuse], run: Reuse) -> None:
    if runs and runs[-1].origin == run.origin and runs[-1].stop == run.start:
        runs[-1] = Reuse(run.origin, runs[-1].start, run.stop)
    else:
        runs.append(run)


def _common_prefix(a: TokenIds, b: TokenIds) -> int:
    length = min(len(a), len(b))
    differs = np.flatnonzero(a[:length] != b[:length])
    return int(differs[0]) if len(differs) else length


def _scored(one: Pass, scores: Mapping[str, float]) -> Pass:
    return msgspec.structs.replace(one, scores=dict(scores))


def fed_tokens(
    layout: Sequence[int], pieces: Sequence[TokenIds], response: Sequence[int]
) -> list[int]:
    """Token ids of a prompt in `layout`, with the response so far in its place."""
    fed: list[int] = []
    for piece in layout:
        fed += response if piece == RESPONSE else pieces[piece].tolist()
    return fed
