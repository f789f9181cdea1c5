"""The summary of an actor, written by one process after another."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from actor.config import ActorConfig
from actor.online.report import Report
from actor.sessions.recorder import Counts
from dynatok_online.data.storage import read_trajectories
from dynatok_online.tasks.scripted import scripted_trajectory
from dynatok_online.tasks.task import Task
from protocol.config import ProtocolConfig
from protocol.wire.messages import WeightsApplied, WeightsRejected

SESSIONS = 2


def report(folder: Path) -> Report:
    """Of an actor that has sent three trajectories and dropped one."""
    collector = SimpleNamespace(
        counts=Counts(edits=5, generated_tokens=40),
        trajectories=3,
        problems=["one"],
        seconds_waiting=0.5,
        seconds_generating=1.5,
        dropped=Counter({"empty": 1}),
        adherence={"mean": 0.75, "half": 0.1, "count": 27},
    )
    config = ActorConfig(
        run_dir=str(folder),
        run_id="t",
        model="tiny",
        protocol=ProtocolConfig(),
        prometheus_port=-1,
        sessions=SESSIONS,
    )
    engine = SimpleNamespace(cache_log=SimpleNamespace(lost_batches=3))
    serving = SimpleNamespace(version=2, engine=engine)
    refusals = SimpleNamespace(counts={"checksum": 2})
    channel = SimpleNamespace(paused=None, free_credits=4, refusals=refusals)
    return Report(config, *cast(Any, (collector, serving, channel)))


def run(folder: Path) -> dict[str, Any]:
    """One life; what it leaves behind."""
    one = report(folder)
    for version in (0, 1):
        one.weights(
            WeightsApplied(
                version=version,
                pause_seconds=0.25,
                fetch_seconds=0.1,
                canary_gap=0.0,
                restarted_passes=1,
            )
        )
    one.weights(WeightsRejected(2, 1, "damaged"))
    one.write()
    one.close()
    return json.loads((folder / "actor.json").read_text())


def test_a_second_life_goes_on_counting(tmp_path: Path) -> None:
    first = run(tmp_path)
    assert first["trajectories"] == 3
    assert first["weight_syncs"] == 1  # the weights that training starts from are no sync
    assert first["weights_rejected"] == 1
    assert first["seconds_weights"] == 0.5
    assert first["dropped"] == {"empty": 1}
    assert first["refused_messages"] == {"checksum": 2}
    # 0.5 of 2 seconds of its sessions; the engine was paused for 0.5 s, for all of them.
    assert first["idle_share"] == 0.25
    assert first["paused_share"] == 0.5 * SESSIONS / 2
    assert first["peak_memory_mb"] > 20

    second = run(tmp_path)
    assert second["idle_share"] == 0.25
    assert second["peak_memory_mb"] >= first["peak_memory_mb"]
    assert second["trajectories"] == 6
    assert second["edits"] == 10
    assert second["dropped"] == {"empty": 2}
    assert second["problems"] == ["one", "one"]
    # These are of the moment.
    assert second["weight_version"] == 2
    assert (second["adherence"], second["adherence_half"]) == (0.75, 0.1)
    assert second["adherence_edits"] == 27
    assert second["lost_cache_batches"] == 6


def test_an_evaluation_is_filed_under_the_weights_that_serve(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = report(tmp_path)
    summary = {
        "adherence_after_edit": None,
        "adherence_after_edit_half": None,
        "edits_judged": 0,
        "passes_after_edit": 0,
        "adherence_static": 0.5,
        "adherence_static_half": 0.125,
        "repetition": 0.02,
        "passes_static": 9,
        "seconds": 1.0,
    }
    response = scripted_trajectory(
        Task("t", "Text: ", {}, max_tokens=3), [1, 2, 3], lambda text: [*map(ord, text)]
    )
    one.evaluation("before", summary, [response])
    written = json.loads((tmp_path / "evaluation" / "before.json").read_text())
    assert written == {"version": 2, **summary}
    (kept,) = read_trajectories(tmp_path / "evaluation" / "before.parquet")
    assert kept.response.tolist() == [1, 2, 3]
    said = capsys.readouterr().err
    assert "after edit unknown (0 edits), static 0.500 ± 0.125, repetition 0.020" in said
    assert "repeat themselves" not in said
    one.evaluation("after", summary | {"repetition": 0.4}, [response])
    one.close()
    assert "repeat themselves (0.40 of their runs of four words" in capsys.readouterr().err
    logged, _ = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert logged["evaluation_adherence_after_edit"] is None
    assert logged["evaluation_adherence_static"] == 0.5
