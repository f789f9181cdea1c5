"""Builds the trajectory of a session from what the engine reported, pass by pass.

The engine says how many tokens of a pass it took from its cache. Which pass computed them follows
from the rule by which blocks are named (`block_names`), so a record is complete as soon as
its pass has ended. Before a trajectory leaves, `confirm` compares every block of it with the
engine's own cache events: what was found, what was computed, and by whom, must be the same.

What is recorded is what happened: after an eviction the engine reuses less, and says so. A sticky
pass that was preempted, and whose kept blocks were gone when it came back, saw two caches: it is
recorded as two passes.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from msgspec import UNSET

from actor.config import ReusePolicy
from actor.sessions.block_names import (
    BlockNames,
    PassBlocks,
    heads,
    reuse_runs,
    same_blocks,
)
from actor.sessions.cache_audit import PassRecord, contradictions, cut_at_preemptions
from actor.sessions.generation import CacheLog, EventsLost, Generated, Scheduled
from actor.sessions.moved import Part, Run, Source, places_of, runs_of, sources_of
from actor.sessions.serving import Keep, Served
from dynatok_online.moves import former_places
from dynatok_online.policy import Policy, Refresh, parse_policy
from dynatok_online.trajectory import (
    OUTSIDE,
    RESPONSE,
    Edit,
    Pass,
    TokenIds,
    Trajectory,
    VersionRun,
)


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
    """Reports of the engine that cannot be true, or that contradict each other."""
    preemptions: int = 0
    """How often the engine took a pass's blocks away and computed what was missing again."""

    def add(self, other: Counts) -> None:
        """Add the numbers of another."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


@dataclass
class Recorder:
    """Collects the passes of one trajectory."""

    block_size: int
    reuse: ReusePolicy = "exact"
    session: str = ""
    """Name of the sticky session."""
    unreported: int = 1
    """See `generation.Engine.unreported`."""
    counts: Counts = field(default_factory=Counts)
    problems: list[str] = field(default_factory=list)
    """What was wrong with the engine's reports."""
    unaudited: str = ""
    """Why `confirm` could not hold the record against the engine's cache events."""
    response: list[int] = field(default_factory=list)
    """Every token sampled so far."""
    passes: list[Pass] = field(default_factory=list)
    edits: list[Edit] = field(default_factory=list)
    _logprobs: list[float] = field(default_factory=list)
    _parts: list[PassRecord] = field(default_factory=list)
    _held: list[PassBlocks] = field(default_factory=list)
    _empty: list[str] = field(default_factory=list)
    _names: BlockNames = field(init=False)
    _policy: Policy = field(init=False)

    def __post_init__(self) -> None:
        self._names = BlockNames(self.block_size)
        self._policy = parse_policy(self.reuse)

    @property
    def requests(self) -> list[str]:
        """The engine requests of all passes."""
        return [*self._empty, *(name for part in self._parts for name, _ in part.requests(0))]

    def add_edit(self, edit: Edit) -> None:
        """A slot was changed before the next pass."""
        self.edits.append(edit)

    def keep(
        self,
        fed: TokenIds,
        cache_salt: str,
        draw: str = "",
        *,
        layout: Sequence[int] = (),
        table: Sequence[TokenIds] = (),
    ) -> Keep | None:
        """What a pass that feeds `fed` keeps of the one before it, if the session is sticky.

        `draw` names the pass where the policy draws how much is computed anew; `layout` lists the
        pieces of `table` that it feeds, where what is kept may move.
        """
        if not self._policy.keeps:
            return None
        last = self._previous(cache_salt)
        if last is None:
            return Keep(self.session, moves=() if self._policy.turns else None)
        if self._policy.turns:
            return self._keep_moved(fed, last, layout, table)
        size, refresh = self.block_size, self._policy.refresh(draw)
        same = same_blocks(fed, last.tokens, size, refresh)
        blocks = int(np.flatnonzero(same).max(initial=-1)) + 1
        all_same = same_blocks(fed, last.tokens, size)[:blocks]
        return Keep(
            self.session,
            self._parts[-1].served.name,
            held=blocks * size,
            anew=tuple(np.flatnonzero(all_same & ~same[:blocks]).tolist()),
            refresh=refresh,
            heads=tuple(heads(fed, same, size)),
        )

    def _keep_moved(
        self,
        fed: TokenIds,
        last: PassBlocks,
        layout: Sequence[int],
        table: Sequence[TokenIds],
    ) -> Keep:
        size, part = self.block_size, self._parts[-1]
        held = len(last.names) * size
        # Where its response began: a pass that was preempted was fed what it had sampled.
        begun = len(part.fed) - sum(len(table[i]) for i in part.layout if i != RESPONSE)
        places = former_places(part.layout, begun, held, layout, len(self.response), table)
        same = np.array([bool(one) for one in sources_of(places, size)], bool)
        return Keep(
            self.session,
            part.served.name,
            held=held,
            heads=tuple(heads(fed, same, size)),
            moves=runs_of(places),
        )

    def add_pass(
        self,
        served: Served,
        *,
        layout: Sequence[int],
        states: Mapping[str, str],
        fed: TokenIds,
        finish_reason: str,
        keep: Keep | None = None,
    ) -> None:
        """A pass has ended, with at least one token; `keep` is what it was submitted with."""
        keep = Keep("") if keep is None else keep
        self._add(
            PassRecord(
                served,
                tuple(layout),
                dict(states),
                fed,
                finish_reason,
                refresh=keep.refresh,
                moves=keep.moves,
            )
        )

    def empty_pass(self, served: Served, heads: int = 0) -> None:
        """A pass has ended before its first token: it leaves no trace but its count."""
        self._empty += [served.name, *(f"{served.name}.{i}" for i in range(heads))]
        self.counts.empty_passes += 1

    def begun_pass(
        self,
        *,
        layout: Sequence[int],
        states: Mapping[str, str],
        fed: TokenIds,
        cache_salt: str,
        cached: int,
        keep: Keep | None,
    ) -> Pass:
        """A pass that runs, as far as it is known: without tokens, its `finish_reason` empty.

        What its own heads computed is not reported yet: it is what nobody here has computed.
        """
        index, size, at = len(self.passes), self.block_size, len(self.response)
        previous = self._previous(cache_salt)
        keep = Keep("") if keep is None else keep
        sources = self._sources(fed, previous, keep.refresh, keep.moves)

        def parts(ahead: Container[int]) -> tuple[tuple[Part, ...], ...]:
            held = self._names.copy().pass_blocks(
                index,
                fed,
                cache_salt,
                reused=cached // size,
                previous=previous,
                sources=sources,
                computed_ahead=ahead,
            )
            return held.parts

        found = parts(())
        if keep.heads:
            ends = keep.heads[-1] // size
            found = parts(
                [j for j in range(ends) if not sources[j] and found[j][0].origin == OUTSIDE]
            )
        reuse, shifts = reuse_runs(found, index, size)
        return Pass(
            layout=tuple(layout),
            states=dict(states),
            start=at,
            stop=at,
            num_cached_tokens=sum(run.stop - run.start for run in reuse),
            reuse=reuse,
            shifts=shifts if any(shifts) else UNSET,
            finish_reason="",
        )

    async def confirm(self, log: CacheLog) -> None:
        """Hold every pass against the engine's cache events, and record what they say.

        Whatever does not agree is counted as an audit mismatch. Where events are lost for good,
        the record stays as it is, `unaudited`.
        """
        parts, size = self._parts, self.block_size
        reports: dict[str, Sequence[Scheduled]] = {}
        try:
            for k, part in enumerate(parts):
                for name, tokens in part.requests(self.unreported):
                    found = await log.blocks_of(name, tokens // size)
                    if found is None:
                        self._problem(f"pass {k}: the engine's cache events of {name} did not come")
                    else:
                        reports[name] = found
        except EventsLost as error:
            self.unaudited = str(error)
            return
        finally:
            log.forget(self.requests)
        self._start_over()
        for part in parts:
            reported = reports.get(part.served.name, ())
            self.counts.preemptions += max(0, len(reported) - 1)
            try:
                parts_of_it = cut_at_preemptions(part, reported, size)
            except ValueError as error:
                self._problem(f"pass {len(self.passes)}: {error}")
                parts_of_it = [part]
            for piece in parts_of_it:
                self._add(piece)
        for text in contradictions(self._parts, self._held, reports, size, self.unreported):
            self._problem(text)

    def trajectory(
        self,
        trajectory_id: str,
        table: Sequence[TokenIds],
        info: Mapping[str, str] | None = None,
        begun: Pass | None = None,
    ) -> Trajectory:
        """What happened so far. An edit after which nothing was sampled is left out.

        `table` holds the pieces that layouts index; `begun` is a pass that runs (see `begun_pass`).
        """
        edits = tuple(edit for edit in self.edits if edit.effective_at < len(self.response))
        self.counts.edits = len(edits)
        passes = self.passes
        return Trajectory(
            trajectory_id=trajectory_id,
            pieces=tuple(table),
            response=np.asarray(self.response, np.int32),
            logprobs=np.asarray(self._logprobs, np.float32),
            passes=(*passes, *([] if begun is None else [begun])),
            edits=edits,
            policy="sticky" if self._policy.keeps else "exact",
            block_size=self.block_size,
            info=dict(info or {}),
        )

    def _add(self, part: PassRecord) -> None:
        served, generated, size = part.served, part.served.generated, self.block_size
        index, tokens = len(self.passes), part.tokens
        cached = self._checked(generated, len(part.fed))
        # What its own heads computed is no reuse.
        ahead = {
            block
            for head in served.heads
            for block in range(head.num_cached_tokens // size, head.length // size)
            if block < cached // size
        }
        previous = self._previous(served.cache_salt)
        held = self._names.pass_blocks(
            index,
            tokens,
            served.cache_salt,
            reused=cached // size,
            previous=previous,
            sources=self._sources(part.fed, previous, part.refresh, part.moves),
            computed_ahead=ahead,
            kept=None if part.scheduled is None else part.scheduled.kept,
        )
        reused = cached - len(ahead) * size
        runs, shifts = reuse_runs(held.parts, index, size)
        start = len(self.response)
        self.response += generated.token_ids
        self._logprobs += generated.logprobs
        self.passes.append(
            Pass(
                layout=part.layout,
                states=dict(part.states),
                start=start,
                stop=len(self.response),
                num_cached_tokens=reused,
                reuse=runs,
                shifts=shifts if any(shifts) else UNSET,
                weight_versions=self._versions(served),
                finish_reason=part.finish_reason,
            )
        )
        self._parts.append(part)
        self._held.append(held)
        counts = self.counts
        counts.passes += 1
        counts.generated_tokens += len(generated.token_ids)
        counts.reused_tokens += reused
        counts.computed_tokens += len(tokens) - cached
        counts.computed_tokens += sum(one.length - one.num_cached_tokens for one in served.heads)

    def _previous(self, cache_salt: str) -> PassBlocks | None:
        """The blocks that a sticky pass keeps."""
        if self._policy.keeps and self._held and self._held[-1].salt == cache_salt:
            return self._held[-1]
        return None

    def _sources(
        self,
        fed: TokenIds,
        previous: PassBlocks | None,
        refresh: Refresh,
        moves: Sequence[Run] | None,
    ) -> Sequence[tuple[Source, ...]]:
        """What each block of a pass may be taken from, of `previous`."""
        if previous is None:
            return ()
        size = self.block_size
        if moves is not None:
            held = len(previous.names) * size
            return sources_of(places_of(moves, len(fed), held), size)
        same = same_blocks(fed, previous.tokens, size, refresh).tolist()
        return [(Source(j, 0, size, 0),) if one else () for j, one in enumerate(same)]

    def _start_over(self) -> None:
        """Forget the passes; what was counted of the session as a whole stays."""
        self.counts = Counts(
            empty_passes=self.counts.empty_passes, audit_mismatches=self.counts.audit_mismatches
        )
        self._names = BlockNames(self.block_size)
        self.response, self.passes = [], []
        self._logprobs, self._parts, self._held = [], [], []

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

    def _versions(self, served: Served) -> tuple[VersionRun, ...]:
        generated, version = served.generated, served.version
        numbers = [label.partition(".")[0] for label, _ in generated.weight_labels]
        runs = tuple(
            VersionRun(int(number) if number.isdecimal() else version, length)
            for number, (_, length) in zip(numbers, generated.weight_labels, strict=True)
        )
        if sum(run.length for run in runs) != len(generated.token_ids):
            runs = (VersionRun(version, len(generated.token_ids)),)
        if any(run.version != version for run in runs) and not served.continued:
            self._problem(
                f"pass {len(self.passes)}: started under weights {version}, but the engine says "
                f"{generated.weight_labels}"
            )
        return runs

    def _problem(self, text: str) -> None:
        self.problems.append(text)
        self.counts.audit_mismatches += 1


def fed_tokens(
    layout: Sequence[int], pieces: Sequence[TokenIds], response: Sequence[int]
) -> TokenIds:
    """Token ids of a prompt in `layout`, with the response so far in its place."""
    so_far = np.asarray(response, np.int32)
    return np.concatenate([so_far if piece == RESPONSE else pieces[piece] for piece in layout])
