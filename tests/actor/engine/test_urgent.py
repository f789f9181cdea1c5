"""Who edits goes first, in a real vLLM whose cache does not hold the sessions that run."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from actor.sessions.generation import CacheUse
from actor.sessions.live_session import Finished
from dynatok_online.spans.build import audit
from tests.actor.engine.test_engine import SAMPLING
from tests.actor.engine.test_sticky import edited, session
from tests.actor.kv_oracle import kv_logprobs

pytestmark = pytest.mark.engine


def test_an_urgent_request_waits_for_no_response_to_end(vllm, serving) -> None:
    """The cache has 160 blocks; those before it hold them all, and others wait already."""

    async def order() -> list[str]:
        ended: list[str] = []

        async def one(name: str, tokens: int, urgent: bool) -> None:
            request = await vllm.engine.submit(
                [5 + len(name)] * 40,
                request_id=name,
                sampling=SAMPLING,
                max_tokens=tokens,
                seed=1,
                cache=CacheUse(serving.cache_salt, name, urgent=urgent),
                stream=False,
            )
            await request.wait()
            ended.append(name)

        names = [f"{serving.run_id}-{i}" for i in range(24)]
        others = [asyncio.create_task(one(name, 460, urgent=False)) for name in names]
        # Until a request is preempted for want of blocks: from then on none are free.
        while not any(len(parts or ()) > 1 for parts in vllm.engine.cache_log._requests.values()):
            await asyncio.sleep(0.02)
            await vllm.engine.cache_log._drain()
        assert not ended
        await one("urgent", 3, urgent=True)
        await asyncio.gather(*others)
        vllm.engine.cache_log.forget([*names, "urgent"])
        return ended

    assert vllm.run(order())[0] == "urgent"


@pytest.mark.parametrize("reuse", ["exact", "sticky"])
def test_what_a_person_writes_is_never_preempted(vllm, serving, reference, reuse) -> None:
    """Others are, and are recorded as what they are."""

    async def both() -> tuple[Finished, list[Finished]]:
        others = [
            asyncio.create_task(session(serving, edited(number, 3, 380), "sticky").run())
            for number in range(1, 25)
        ]
        await asyncio.sleep(0.5)
        person = await session(serving, edited(0, 8, 300), reuse, urgent=True).run()
        assert not all(one.done() for one in others)
        return person, await asyncio.gather(*others)

    person, others = vllm.run(both(), timeout=280)
    for one in (person, *others):
        assert one.problems == ()
        assert not audit(one.trajectory)
        gap = np.abs(kv_logprobs({0: reference}, one.trajectory) - one.trajectory.logprobs)
        assert gap.max() < 1e-4
    assert person.counts.preemptions == 0
    assert sum(one.counts.preemptions for one in others) > 0
