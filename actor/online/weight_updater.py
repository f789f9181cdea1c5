"""Puts new weights into service, proved by value, or keeps the old ones.

Fetched and hashed while the engine generates; then the gate closes, passes in flight end (their
sessions keep the tokens), the engine loads, an ordinary request answers the canary, and the gate
opens under a new version and a new cache salt. An engine whose answers did not move although the
learner's did has changed nothing. Whatever fails before that puts the last good weights back; if
even that fails, the gate stays closed and `Fenced` is raised: wrong weights never serve.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping

import msgspec

from actor.sessions.generation import WeightTarget
from actor.sessions.serving import Serving
from protocol.weights.base import Progress, WeightReceiver, WeightsError
from protocol.weights.payload import check_expected
from protocol.wire.messages import (
    Canary,
    PlacedWeights,
    WeightManifest,
    WeightsApplied,
    WeightsRejected,
)

Shapes = Mapping[str, tuple[str, tuple[int, ...]]]


Answers = tuple[tuple[float, ...], ...]
"""Log-probabilities of the canary's texts."""

_STILL = 0.1
"""An engine that moved by less than this share of what the learner moved did not move."""
_MOVED = 1e-6
"""Mean change of the learner's log-probabilities from which on it can be told (float32)."""


_TOLD_FROM = 0.01
"""Share of the trained elements that must differ as published before an engine can be told by
whether it moved."""


class Fenced(RuntimeError):
    """No known weights can be put into service."""


class WeightUpdater:
    """Applies one `WeightManifest` after another."""

    def __init__(
        self, engine: WeightTarget, serving: Serving, transport: WeightReceiver, *, timeout: float
    ) -> None:
        self._engine = engine
        self._serving = serving
        self._transport = transport
        self._timeout = timeout
        self._updating = False
        self._fetching: asyncio.Future[PlacedWeights] | None = None
        self._good: PlacedWeights | None = None
        self._answers: Answers = ()
        self._expected: Shapes | None = None

    @property
    def updating(self) -> bool:
        """Whether a version is being fetched or loaded; that ends by deadlines of its own."""
        return self._updating

    async def update(self, manifest: WeightManifest) -> WeightsApplied | WeightsRejected:
        """Put a version into service, or say why not. Raises `Fenced`."""
        self._updating = True
        try:
            return await self._update(manifest)
        finally:
            self._updating = False

    async def _update(self, manifest: WeightManifest) -> WeightsApplied | WeightsRejected:
        begun = time.monotonic()
        try:
            placed = await self._fetched(manifest)
        except (WeightsError, OSError) as error:
            return WeightsRejected(manifest.version, self._serving.version, _reason(error))
        fetched = time.monotonic()
        restarted = await self._serving.close()
        try:
            salt, answers = await self._load(placed)
            gap = _gap(manifest.canary.logprobs, answers)
            self._check_moved(manifest, answers)
        except Exception as error:
            await self._serving.reject()
            await self._go_back(error)
            return WeightsRejected(manifest.version, self._serving.version, _reason(error))
        self._good, self._answers = placed, answers
        self._transport.serves(manifest)
        self._expected = {spec.name: (spec.dtype, spec.shape) for spec in manifest.tensors}
        self._serving.open(manifest.version, salt)
        return WeightsApplied(
            version=manifest.version,
            pause_seconds=time.monotonic() - fetched,
            fetch_seconds=fetched - begun,
            canary_gap=gap,
            restarted_passes=restarted,
        )

    async def _fetched(self, manifest: WeightManifest) -> PlacedWeights:
        """Fetch, for as long as something comes. Raises `WeightsError`.

        One thread fetches at a time: one that cannot be stopped (a file system that hangs) is
        waited for before the next version is tried.
        """
        if self._fetching is not None:
            await asyncio.wait({self._fetching}, timeout=self._timeout)
            if not self._fetching.done():
                raise WeightsError("the fetch of an earlier version hangs and cannot be stopped")
        progress = Progress()
        work = asyncio.ensure_future(asyncio.to_thread(self._fetch, manifest, progress))
        self._fetching = work
        work.add_done_callback(_look_at_error)
        seen, since = -1, 0.0
        try:
            while not work.done():
                now = time.monotonic()
                if progress.nbytes != seen:
                    seen, since = progress.nbytes, now
                elif now - since > self._timeout:
                    raise WeightsError(
                        f"weights {manifest.version}: nothing came for {self._timeout:g} s, after "
                        f"{seen / 2**20:.0f} MiB fetched or checked (actor.weights_timeout)"
                    )
                await asyncio.wait({work}, timeout=min(0.5, self._timeout / 4))
        finally:
            progress.cancel(f"the fetch of weights {manifest.version} was given up")
        return work.result()

    def _fetch(self, manifest: WeightManifest, progress: Progress) -> PlacedWeights:
        """Check every hash, and that it is the same model as before. Runs in a thread."""
        if self._expected is not None:
            check_expected(manifest, self._expected)
        self._transport.read(manifest, progress=progress)
        path, start = self._transport.locate(manifest)
        return PlacedWeights(**msgspec.structs.asdict(manifest), path=str(path), start=start)

    async def _load(self, manifest: PlacedWeights) -> tuple[str, Answers]:
        """Load and check; returns the new cache salt and what the canary answered."""
        salt = self._serving.new_salt(manifest.version)
        async with asyncio.timeout(self._timeout):
            await self._engine.pause()
            try:
                # First: a pass that continues must not pass off half-loaded weights as the old.
                await self._engine.set_weight_label(self._serving.new_label(manifest.version))
                await self._engine.load_weights(manifest)
            finally:
                await self._engine.resume()
            answers = await self._ask(manifest.canary, salt)
        gap = _gap(manifest.canary.logprobs, answers)
        if not gap <= manifest.canary.tolerance:
            raise WeightsError(
                f"weights {manifest.version}: the canary's log-probabilities differ by "
                f"{gap:.3g} on average, more than {manifest.canary.tolerance:.3g}: these are not "
                "the weights that were published"
            )
        return salt, answers

    async def _ask(self, canary: Canary, salt: str) -> Answers:
        answers = await asyncio.gather(
            *(self._engine.prompt_logprobs(ids, cache_salt=salt) for ids in canary.token_ids)
        )
        for expected, found in zip(canary.logprobs, answers, strict=True):
            if len(expected) != len(found):
                raise WeightsError(f"the canary answered {len(found)} of {len(expected)} tokens")
        return tuple(tuple(one) for one in answers)

    def _check_moved(self, manifest: WeightManifest, answers: Answers) -> None:
        """Small updates pass the canary's tolerance whether they were applied or not."""
        before = self._good
        if before is None or before.canary.token_ids != manifest.canary.token_ids:
            return
        if manifest.changed is not msgspec.UNSET and manifest.changed < _TOLD_FROM:
            return  # the learner moved, but rounding kept nearly all of it from being published
        expected = _gap(before.canary.logprobs, manifest.canary.logprobs)
        moved = _gap(self._answers, answers)
        if expected > _MOVED and moved < _STILL * expected:
            raise WeightsError(
                f"weights {manifest.version}: the canary's log-probabilities should have moved by "
                f"{expected:.3g} on average, but moved by {moved:.3g}: the engine took the update "
                "and changed nothing"
            )

    async def _go_back(self, cause: Exception) -> None:
        """Put the last good weights back and open the gate."""
        if self._good is None:
            return  # nothing has ever served: the gate stays closed
        try:
            salt, _ = await self._load(self._good)
        except Exception as error:
            raise Fenced(
                f"new weights failed ({_reason(cause)}), and version {self._good.version} could "
                f"not be put back: {_reason(error)}"
            ) from cause
        self._serving.open(self._good.version, salt)


def _gap(expected: Answers, found: Answers) -> float:
    """Mean absolute difference over a text, the largest of all texts; NaN where there is one."""
    worst = 0.0
    for one, other in zip(expected, found, strict=True):
        if one:
            mean = sum(abs(a - b) for a, b in zip(one, other, strict=True)) / len(one)
            worst = mean if mean != mean else max(worst, mean)
    return worst


def _look_at_error(work: asyncio.Future[PlacedWeights]) -> None:
    """A fetch that was given up may still fail, and nobody waits for it."""
    if not work.cancelled():
        work.exception()


def _reason(error: BaseException) -> str:
    text = str(error) or "took too long"
    return f"{type(error).__name__}: {text}"
