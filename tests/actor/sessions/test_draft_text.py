"""What is written with guesses is what would have been written without them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from actor.config import DraftsConfig, SamplingConfig
from actor.sessions.live_session import Finished, LiveSession
from actor.sessions.serving import Serving
from actor.tokenizer import load_tokenizer
from dynatok_online import tiny
from dynatok_online.tasks.task import Task
from dynatok_online.tiny import world

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(900)]

TEXTS, LENGTH, AT_ONCE = 6400, 16, 32


@pytest.fixture(scope="module")
def engines() -> Iterator[dict[bool, Any]]:
    """The tiny model twice: with guesses, and without."""
    pytest.importorskip("vllm")
    from actor.engine.engine import VllmEngine

    asyncio.set_event_loop(asyncio.new_event_loop())
    found: dict[bool, Any] = {}
    try:
        for on in (True, False):
            found[on] = VllmEngine.start(
                tiny.resolve("tiny"),
                {"max_num_seqs": AT_ONCE, "max_model_len": 512},
                drafts=DraftsConfig(tokens=4 if on else 0),
                run_id=f"draft-text-{on}",
            )
        yield found
    finally:
        for engine in found.values():
            engine.shutdown()


def write(
    engine: Any, tasks: list[Task], temperature: float, groups: list[int] | None = None
) -> list[Finished]:
    """All of them, `AT_ONCE` at a time; `groups` gets how many tokens came at once."""
    tokenizer = load_tokenizer(tiny.resolve("tiny"))
    serving = Serving(engine, "text")
    serving.open(0, serving.new_salt(0))
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(task: Task) -> Finished:
        live = LiveSession(
            task,
            serving,
            encode=tokenizer.encode,
            decode=tokenizer.decode,
            sampling=SamplingConfig(ignore_eos=True, temperature=temperature),
            on_tokens=None if groups is None else lambda new: groups.append(len(new)),
        )
        async with gate:
            return await live.run()

    async def all_of_them() -> list[Finished]:
        return await asyncio.gather(*(one(task) for task in tasks))

    return asyncio.get_event_loop().run_until_complete(all_of_them())


def test_the_likeliest_text_is_the_same(engines) -> None:
    """64 tasks with their edits, written twice: the second time guesses know the first."""
    source = world.tasks("heldout", seed=0, edits=(1, 3))
    tasks = [next(source) for _ in range(64)]
    groups: list[int] = []
    for _ in range(2):
        with_guesses = write(engines[True], tasks, 0.0, groups)
        without = write(engines[False], tasks, 0.0)
        for one, other in zip(with_guesses, without, strict=True):
            assert one.problems == other.problems == ()
            assert one.trajectory.response.tolist() == other.trajectory.response.tolist()
    assert np.mean(groups) > 1.2, "hardly anything was guessed"


def test_drawn_text_has_the_same_distribution(engines) -> None:
    """One prompt, 1e5 tokens each way. Texts are independent: at each place, a test of its own for
    the tokens there, and one for pairs of neighbours."""
    from scipy.stats import chi2_contingency

    (prompt,) = (next(world.tasks("heldout", seed=1, edits=(1, 1))) for _ in range(1))
    groups: list[int] = []
    drawn = {}
    for on, first in ((True, 0), (False, TEXTS)):
        tasks = [
            Task(f"{i}", prompt.template, prompt.states, max_tokens=LENGTH, seed=i)
            for i in range(first, first + TEXTS)
        ]
        done = write(engines[on], tasks, 1.0, groups if on else [])
        drawn[on] = np.stack([one.trajectory.response for one in done])
    assert drawn[True].size == TEXTS * LENGTH > 1e5
    assert np.mean(groups) > 1.1, "hardly anything was guessed"
    chances = []
    for width in (1, 2):
        for at in range(LENGTH - width + 1):
            both = [texts[:, at : at + width] for texts in drawn.values()]
            _, kind = np.unique(np.concatenate(both), axis=0, return_inverse=True)
            kind = kind.reshape(2, TEXTS)
            table = np.stack([np.bincount(one, minlength=kind.max() + 1) for one in kind])
            often = table.sum(axis=0) >= 20
            table = np.column_stack([table[:, often], table[:, ~often].sum(axis=1)])
            table = table[:, table.sum(axis=0) > 0]
            if table.shape[1] > 1:
                chances.append(chi2_contingency(table).pvalue)
    assert len(chances) > LENGTH
    assert min(chances) * len(chances) > 0.01
