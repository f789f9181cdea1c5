"""Puts new weights into service, proved by value, or goes on with the old ones.

Fetched and hashed while generation goes on; then the gate closes, passes under way end (their
sessions keep the tokens), the engine loads, an ordinary request answers the canary, and the gate
opens under a new version and a new cache salt. Whatever fails before that puts the last good
weights back; if even that fails, the gate stays closed and `Fenced` is raised: wrong weights
never serve.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping

from actor.generation import WeightTarget
from actor.serving import Serving
from protocol.messages import (
    Canary,
    WeightManifest,
    WeightsApplied,
    WeightsRejected,
)
from protocol.weights import WeightReceiver as Transport
from protocol.weights import WeightsError, check_expected

Shapes = Mapping[str, tuple[str, tuple[int, ...]]]


class Fenced(RuntimeError):
    """No known weights can be put into service."""


class WeightReceiver:
    """Applies one `WeightManifest` after another."""

    def __init__(
        self, engine: WeightTarget, serving: Serving, transport: Transport, *, timeout: float
    ) -> None:
        self._engine = engine
        self._serving = serving
        self._transport = transport
        self._timeout = timeout
        self._good: WeightManifest | None = None
        self._expected: Shapes | None = None

    async def update(self, manifest: WeightManifest) -> WeightsApplied | WeightsRejected:
        """Put a version into service, or say why not. Raises `Fenced`."""
        begun = time.monotonic()
        try:
            async with asyncio.timeout(self._timeout):
                await asyncio.to_thread(self._fetch, manifest)
        except (WeightsError, TimeoutError) as error:
            return WeightsRejected(manifest.version, self._serving.version, _reason(error))
        fetched = time.monotonic()
        restarted = await self._serving.close()
        try:
            salt, gap = await self._load(manifest)
            await self._engine.set_weight_label(str(manifest.version))
        except Exception as error:
            await self._go_back(error)
            return WeightsRejected(manifest.version, self._serving.version, _reason(error))
        self._good = manifest
        self._expected = {spec.name: (spec.dtype, spec.shape) for spec in manifest.tensors}
        self._serving.open(manifest.version, salt)
        return WeightsApplied(
            version=manifest.version,
            pause_seconds=time.monotonic() - fetched,
            fetch_seconds=fetched - begun,
            canary_gap=gap,
            restarted_passes=restarted,
        )

    def _fetch(self, manifest: WeightManifest) -> None:
        """Check every hash, and that it is the same model as before. Runs in a thread."""
        if self._expected is not None:
            check_expected(manifest, self._expected)
        self._transport.read(manifest)

    async def _load(self, manifest: WeightManifest) -> tuple[str, float]:
        """Load and check; returns the new cache salt and the canary's largest gap."""
        salt = self._serving.new_salt(manifest.version)
        async with asyncio.timeout(self._timeout):
            await self._engine.pause()
            try:
                await self._engine.load_weights(manifest)
            finally:
                await self._engine.resume()
            gap = await self._canary_gap(manifest.canary, salt)
        if not gap <= manifest.canary.tolerance:
            raise WeightsError(
                f"weights {manifest.version}: the canary's log-probabilities differ by "
                f"{gap:.3g} on average, more than {manifest.canary.tolerance:.3g}: these are not "
                "the weights that were published"
            )
        return salt, gap

    async def _canary_gap(self, canary: Canary, salt: str) -> float:
        """Mean absolute difference over a text, the largest of all texts."""
        answers = await asyncio.gather(
            *(self._engine.prompt_logprobs(ids, cache_salt=salt) for ids in canary.token_ids)
        )
        worst = 0.0
        for expected, found in zip(canary.logprobs, answers, strict=True):
            if len(expected) != len(found):
                raise WeightsError(f"the canary answered {len(found)} of {len(expected)} tokens")
            if expected:
                gaps = [abs(a - b) for a, b in zip(expected, found, strict=True)]
                mean = sum(gaps) / len(gaps)
                worst = mean if mean != mean else max(worst, mean)
        return worst

    async def _go_back(self, cause: Exception) -> None:
        """Put the last good weights back and open the gate."""
        if self._good is None:
            return  # nothing has ever served: the gate stays closed
        try:
            salt, _ = await self._load(self._good)
            await self._engine.set_weight_label(str(self._good.version))
        except Exception as error:
            raise Fenced(
                f"new weights failed ({_reason(cause)}), and version {self._good.version} could "
                f"not be put back: {_reason(error)}"
            ) from cause
        self._serving.open(self._good.version, salt)


def _reason(error: BaseException) -> str:
    text = str(error) or "took too long"
    return f"{type(error).__name__}: {text}"
