"""Random trajectories of an engine that is given drafts: records are as exact as without them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from actor.config import DraftsConfig, SamplingConfig
from actor.sessions.live_session import LiveSession
from dynatok_online.tasks.task import ScheduledEdit, SlotState, Task
from tests.actor.sessions.test_parity import MODES, encode, in_full, swarm_of
from tests.conftest import SharedEngine, small_engine

pytestmark = pytest.mark.engine

RUN_ID = "draft-tests"
DRAFTS = DraftsConfig(tokens=5)
COLD = (1.0, 0.0, 0.3)
"""Temperatures at which a random model repeats itself, so that drafts are taken."""


@pytest.fixture(scope="module")
def vllm(random_model: Path) -> Iterator[SharedEngine]:
    """An engine with drafts, and as little room as the shared one."""
    with small_engine(random_model, RUN_ID, drafts=DRAFTS) as shared:
        yield shared


@pytest.mark.parametrize("reuse", ["sticky", "turned"])
def test_parity(vllm, ring, reference, reuse: str) -> None:
    found = swarm_of(
        vllm,
        ring,
        reference,
        reuse=reuse,
        placement="head",
        count=16,
        updates=1,
        on_weights="restart",
        seed=0,
        at_once=16,
        temperatures=COLD,
    )
    assert found["reused"] > 0
    assert found["versions"] == 2


def test_several_tokens_of_a_step_reach_a_session_and_edits_cut_between_them(vllm, serving) -> None:
    """Greedy text of a random model is a loop: drafts are taken. Planned edits fall into steps."""
    groups: list[int] = []
    edits = tuple(
        ScheduledEdit(at, "s", SlotState(text * 9)) for at, text in ((61, "b"), (93, "c"))
    )
    task = Task("loop", "x" * 40 + "{{s}}", {"s": SlotState("a" * 9)}, edits, 160)
    live = LiveSession(
        task,
        serving,
        encode=encode,
        decode=lambda token_ids: "",
        sampling=SamplingConfig(ignore_eos=True, temperature=0),
        reuse="sticky",
        on_tokens=lambda token_ids: groups.append(len(token_ids)),
    )
    done = vllm.run(live.run())
    assert done.problems == ()
    assert sum(groups) == len(done.trajectory.response) == 160
    assert max(groups) > 1, "no draft was taken"
    assert [one.stop for one in done.trajectory.passes] == [61, 93, 160]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("reuse", "placement"), MODES)
def test_parity_in_full(vllm, ring, reference, reuse: str, placement: str) -> None:
    """More than 60 trajectories, in a cache that does not hold the sessions that run at once."""
    in_full(vllm, ring, reference, reuse, placement, temperatures=COLD)
