"""What adherence means, on numbers done by hand."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

from actor.online.evaluation import evaluate
from dynatok_online.adherence.summary import summarize
from dynatok_online.trajectory import RESPONSE, Edit, Pass, Trajectory
from tests.actor.fake import FakeEngine
from tests.actor.sessions.test_live_session import B, make, task


def trajectory() -> Trajectory:
    def one(start: int, stop: int, **scores: float) -> Pass:
        return Pass(
            layout=(0, RESPONSE),
            states={},
            start=start,
            stop=stop,
            num_cached_tokens=0,
            scores=scores,
        )

    return Trajectory(
        trajectory_id="t",
        pieces=(np.zeros(1, np.int32),),
        response=np.zeros(40, np.int32),
        logprobs=np.zeros(40, np.float32),
        passes=(
            one(0, 5, a=1.0, b=0.5),  # static, ended by new weights
            one(5, 10, a=0.0),  # static still: no edit yet
            one(10, 20, a=0.25, b=1.0),  # a was edited
            one(20, 30, b=0.0),  # a was edited again, without evidence
            one(30, 40, a=1.0, b=1.0),  # both were edited
        ),
        edits=(
            Edit("a", "x", 10, 10, "schedule"),
            Edit("a", "y", 20, 20, "schedule"),
            Edit("a", "x", 30, 30, "schedule"),
            Edit("b", "x", 30, 30, "schedule"),
        ),
    )


def test_summary() -> None:
    summary = summarize([trajectory(), trajectory()])
    assert summary["passes_after_edit"] == 6
    assert summary["adherence_after_edit"] == (0.25 + 1.0 + 1.0) / 3
    assert summary["passes_static"] == 6
    assert summary["adherence_static"] == 0.5
    assert summary["by_slot"]["b"]["passes_after_edit"] == 2


def test_nothing_measured_is_none() -> None:
    assert summarize([])["adherence_after_edit"] is None


def test_evaluate_samples_each_task_once() -> None:
    engine = FakeEngine()
    tasks = (task((5, B)) for _ in range(100))

    async def scenario() -> dict[str, Any]:
        summary, finished = await evaluate(
            tasks, 10, 4, lambda one: make(engine, one), lambda ids: "a b c d " * 2
        )
        assert len(finished) == 10
        return summary

    summary = asyncio.run(scenario())
    assert summary["generated_tokens"] > 0
    assert summary["repetition"] == pytest.approx(1 / 5)  # of five runs of four words
    assert len(engine.requests) == 20
