"""Weights go into service proved, or not at all."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from actor.online.weight_updater import Fenced, WeightUpdater
from actor.sessions.serving import Serving
from protocol.weights.base import Progress, Tensor, WeightReceiver, WeightsError
from protocol.wire.messages import (
    Canary,
    TensorSpec,
    WeightManifest,
    WeightsApplied,
    WeightsRejected,
)
from tests.actor.fake import FakeEngine


class FakeTransport(WeightReceiver):
    """Answers reads, or fails as told."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.slow: Callable[[Progress], None] = lambda progress: None
        self.reading = 0

    def read(
        self, manifest: WeightManifest, *, verify: bool = True, progress: Progress | None = None
    ) -> dict[str, Tensor]:
        assert progress is not None
        self.reading += 1
        try:
            self.slow(progress)
        finally:
            self.reading -= 1
        if self.error is not None:
            raise self.error
        return {}

    def locate(self, manifest: WeightManifest) -> tuple[Path, int]:
        return Path(), 0

    def close(self) -> None:
        pass


def manifest(version: int, *, wrong: float = 0.0, shape: int = 4) -> WeightManifest:
    expected = tuple(-float(version) + wrong for _ in range(3))
    spec = TensorSpec("w", "F32", (shape,), 0, 4 * shape, 0)
    canary = Canary(((1, 2, 3, 4),), (expected,), 1e-3)
    return WeightManifest(version, "shm", 0, 4 * shape, (spec,), canary)


class World:
    def __init__(self, timeout: float = 1) -> None:
        self.engine = FakeEngine()
        self.serving = Serving(self.engine, "run")
        self.transport = FakeTransport()
        self.receiver = WeightUpdater(self.engine, self.serving, self.transport, timeout=timeout)


def test_first_weights_open_the_gate() -> None:
    async def scenario() -> None:
        world = World()
        answer = await world.receiver.update(manifest(0))
        assert isinstance(answer, WeightsApplied)
        assert (answer.version, answer.canary_gap) == (0, 0.0)
        assert world.serving.is_open
        assert world.engine.calls == ["pause", "load 0", "resume"]
        assert world.engine.label == "0"

    asyncio.run(scenario())


def test_every_version_has_a_new_salt() -> None:
    async def scenario() -> None:
        world = World()
        salts = set()
        for version in range(3):
            await world.receiver.update(manifest(version))
            salts.add(world.serving.cache_salt)
        assert len(salts) == 3

    asyncio.run(scenario())


@pytest.mark.parametrize("fault", ["hash", "shape", "canary", "load", "nan"])
def test_bad_weights_leave_the_last_good_ones_in_service(fault: str) -> None:
    async def scenario() -> None:
        world = World()
        await world.receiver.update(manifest(1))
        before = world.serving.cache_salt
        bad = manifest(2)
        if fault == "hash":
            world.transport.error = WeightsError("its bytes do not match its hash")
        elif fault == "shape":
            bad = manifest(2, shape=5)
        elif fault == "canary":
            bad = manifest(2, wrong=0.1)
        elif fault == "nan":
            bad = manifest(2, wrong=float("nan"))
        else:
            world.engine.fail_load = lambda m: RuntimeError("broken") if m.version == 2 else None
        answer = await world.receiver.update(bad)
        assert isinstance(answer, WeightsRejected)
        assert (answer.version, answer.serving) == (2, 1)
        assert world.serving.is_open
        assert world.serving.version == 1
        assert world.engine.weights == 1
        if fault in ("canary", "load", "nan"):
            assert world.serving.cache_salt != before, "KV of wrong weights could be reused"
        else:
            assert world.serving.cache_salt == before, "generation need not have been disturbed"
        world.transport.error = None
        world.engine.fail_load = lambda m: None
        assert isinstance(await world.receiver.update(manifest(3)), WeightsApplied)

    asyncio.run(scenario())


def test_an_engine_that_changes_nothing_is_found_out_below_the_tolerance() -> None:
    async def scenario() -> None:
        world = World()

        async def answers(token_ids: Any, *, cache_salt: str) -> list[float]:
            return [-1e-5 * world.engine.weights] * (len(token_ids) - 1)

        def small(version: int) -> WeightManifest:
            expected = (-1e-5 * version,) * 3
            one = manifest(version)
            return msgspec.structs.replace(one, canary=Canary(((1, 2, 3, 4),), (expected,), 1e-3))

        world.engine.prompt_logprobs = answers  # type: ignore[method-assign]
        assert isinstance(await world.receiver.update(small(1)), WeightsApplied)
        assert isinstance(await world.receiver.update(small(2)), WeightsApplied)
        load = world.engine.load_weights

        async def nothing(manifest: WeightManifest) -> None:
            pass

        world.engine.load_weights = nothing  # type: ignore[method-assign]
        answer = await world.receiver.update(small(3))
        assert isinstance(answer, WeightsRejected)
        assert "changed nothing" in answer.reason
        assert world.serving.is_open
        assert world.serving.version == 2
        world.engine.load_weights = load  # type: ignore[method-assign]
        assert isinstance(await world.receiver.update(small(4)), WeightsApplied)

    asyncio.run(scenario())


def test_weights_that_are_equal_may_stay_where_they_are() -> None:
    async def scenario() -> None:
        world = World()
        await world.receiver.update(manifest(1))
        again = msgspec.structs.replace(manifest(1), version=2)
        world.engine.fail_load = lambda m: None

        async def answers(token_ids: Any, *, cache_salt: str) -> list[float]:
            return [-1.0] * (len(token_ids) - 1)

        world.engine.prompt_logprobs = answers  # type: ignore[method-assign]
        assert isinstance(await world.receiver.update(again), WeightsApplied)

    asyncio.run(scenario())


@pytest.mark.parametrize(("changed", "told"), [(0.0, False), (0.009, False), (0.5, True)])
def test_an_engine_may_stay_where_rounding_kept_the_update_from_it(
    changed: float, told: bool
) -> None:
    """The canary is the trainer's own, which moves by less than what is published can show."""

    async def scenario() -> None:
        world = World()

        async def still(token_ids: Any, *, cache_salt: str) -> list[float]:
            return [-1.0] * (len(token_ids) - 1)

        world.engine.prompt_logprobs = still  # type: ignore[method-assign]
        await world.receiver.update(manifest(1))
        moved = Canary(((1, 2, 3, 4),), ((-1.0 - 1e-4,) * 3,), 1e-3)
        news = msgspec.structs.replace(manifest(2), canary=moved, changed=changed)
        answer = await world.receiver.update(news)
        assert isinstance(answer, WeightsRejected) == told

    asyncio.run(scenario())


def test_nothing_serves_if_the_old_weights_cannot_be_put_back() -> None:
    async def scenario() -> None:
        world = World()
        await world.receiver.update(manifest(1))
        world.engine.fail_load = lambda m: RuntimeError("broken")
        with pytest.raises(Fenced, match="could not be put back"):
            await world.receiver.update(manifest(2))
        assert not world.serving.is_open

    asyncio.run(scenario())


def test_first_weights_that_fail_keep_the_gate_closed() -> None:
    async def scenario() -> None:
        world = World()
        answer = await world.receiver.update(manifest(0, wrong=1.0))
        assert isinstance(answer, WeightsRejected)
        assert answer.serving == -1
        assert not world.serving.is_open

    asyncio.run(scenario())


def test_a_fetch_may_take_as_long_as_something_comes() -> None:
    async def scenario() -> None:
        world = World(timeout=0.2)

        def slow(progress: Progress) -> None:
            for _ in range(10):
                time.sleep(0.05)
                progress.add(1)

        world.transport.slow = slow
        answer = await world.receiver.update(manifest(0))
        assert isinstance(answer, WeightsApplied), answer
        assert answer.fetch_seconds >= 0.5

    asyncio.run(scenario())


def test_a_fetch_that_stands_still_is_given_up_and_ends() -> None:
    async def scenario() -> None:
        world = World(timeout=0.1)
        await world.receiver.update(manifest(1))

        def still(progress: Progress) -> None:
            progress.add(3 * 2**20)
            while True:
                time.sleep(0.01)
                progress.add(0)

        world.transport.slow = still
        answer = await world.receiver.update(manifest(2))
        assert isinstance(answer, WeightsRejected)
        assert "nothing came for 0.1 s, after 3 MiB" in answer.reason
        assert answer.serving == 1
        world.transport.slow = lambda progress: None
        assert isinstance(await world.receiver.update(manifest(3)), WeightsApplied)
        assert world.transport.reading == 0, "the thread of version 2 has ended"

    asyncio.run(scenario())


def test_one_thread_fetches_at_a_time() -> None:
    """One that cannot be stopped, on a file system that hangs, blocks the next and not for ever."""

    async def scenario() -> None:
        world = World(timeout=0.1)
        hangs = threading.Event()

        def stuck(progress: Progress) -> None:
            hangs.wait(30)

        world.transport.slow = stuck
        for says in ("nothing came", "hangs and cannot be stopped"):
            answer = await world.receiver.update(manifest(0))
            assert isinstance(answer, WeightsRejected)
            assert says in answer.reason
            assert world.transport.reading == 1
        hangs.set()
        world.transport.slow = lambda progress: None
        assert isinstance(await world.receiver.update(manifest(1)), WeightsApplied)

    asyncio.run(scenario())


def test_an_engine_that_hangs_is_given_up() -> None:
    async def scenario() -> None:
        world = World()
        world.receiver = WeightUpdater(world.engine, world.serving, world.transport, timeout=0.05)
        await world.receiver.update(manifest(1))

        async def hang(*args: Any, **more: Any) -> list[float]:
            await asyncio.sleep(60)
            return []

        world.engine.prompt_logprobs = hang  # type: ignore[method-assign]
        with pytest.raises(Fenced, match="took too long"):
            await world.receiver.update(manifest(2))

    asyncio.run(scenario())
