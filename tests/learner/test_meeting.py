"""Machines that one learner is on: here each is an agent, as srun would start them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from learner import meeting
from learner.meeting import Meeting, Nodes, end_of_rank_0, nodes, rank_0_ended
from protocol.run.json_files import read_json, write_json
from tests.learner.online.test_ranks import (
    ALLOWED,
    SCRIPT,
    STEPS,
    config,
    difference,
    journal,
    weights,
)

__all__ = ["journal"]

ENTRY = """
import json, os, sys, time
from pathlib import Path
import torch
import torch.distributed as dist

def main(path):
    told = json.loads(Path(path).read_text())
    dist.init_process_group("gloo")
    total = torch.ones(1) * (1 + dist.get_rank())
    dist.all_reduce(total)
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "SLURM_NODEID")
    found = {name: int(os.environ[name]) for name in names} | {"sum": float(total)}
    Path(path).with_name(f"rank-{dist.get_rank()}.json").write_text(json.dumps(found))
    code = told["codes"].get(str(dist.get_rank()))
    if code:
        os._exit(code)
    try:
        dist.barrier()  # fails where another is gone
    except RuntimeError:
        return 1
    return 0
"""
AGENT = """
import sys
from pathlib import Path
from learner.main import _end_of
from learner.meeting import nodes
from learner.ranks import run_ranks

run = Path(sys.argv[1])
failed, asked = run_ranks(int(sys.argv[2]), "entry", run / "told.json", run, nodes())
sys.exit(_end_of(failed, run, nodes()))
"""


def on_two_nodes(*argv: str, path: Sequence[str] = ()) -> list[tuple[int, str]]:
    """The same command on two nodes of one step: (exit code, stderr) of each."""
    started = [
        subprocess.Popen(
            argv,
            env={
                **os.environ,
                **{"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "3", "SLURM_STEP_NUM_NODES": "2"},
                **{"SLURM_NODEID": str(node), "DYNATOK_HOST": "127.0.0.1"},
                "PYTHONPATH": os.pathsep.join([*path, *sys.path]),
            },
            stderr=subprocess.PIPE,
            text=True,
        )
        for node in (1, 0)
    ]
    said = [process.communicate(timeout=280)[1] for process in started]
    return [(p.returncode, words) for p, words in zip(started, said, strict=True)][::-1]


def agents(run: Path, ranks: int, codes: dict[str, int]) -> list[tuple[int, str]]:
    """Two nodes, with so many ranks each, of which some end with a code: (exit code, stderr)."""
    run.mkdir()
    (run / "entry.py").write_text(ENTRY)
    (run / "told.json").write_text(json.dumps({"codes": codes}))
    return on_two_nodes(sys.executable, "-c", AGENT, str(run), str(ranks), path=[str(run)])


def test_outside_of_a_step_and_in_one_of_one_node_it_is_this_machine_alone() -> None:
    assert nodes({}) == Nodes()
    assert nodes({"SLURM_JOB_ID": "7", "SLURM_STEP_NUM_NODES": "2"}) == Nodes()
    assert nodes({"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_NODES": "1"}) == Nodes()
    step = {"SLURM_STEP_ID": "3", "SLURM_STEP_NUM_NODES": "2", "SLURM_NODEID": "1"}
    assert nodes({**step, "SLURM_JOB_ID": "7"}) == Nodes(2, 1, "7.0.3")
    again = nodes({**step, "SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "2"})
    assert again == Nodes(2, 1, "7.2.3")


def test_what_an_earlier_start_has_written_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(meeting, "PATIENCE", 0.5)
    monkeypatch.setattr(meeting, "_LAST_WORD", 0.5)
    write_json(tmp_path / meeting.FILE, {"start": "7.0.3", "host": "here", "port": 9})
    found = Meeting(tmp_path, Nodes(2, 1, "7.0.3"))
    assert (found.host, found.port) == ("here", 9)
    with pytest.raises(TimeoutError, match="has not heard of node 0"):
        Meeting(tmp_path, Nodes(2, 1, "7.1.3"))
    rank_0_ended(tmp_path, Nodes(2, 0, "7.1.3"), 3)
    assert end_of_rank_0(tmp_path, Nodes(2, 1, "7.1.3")) == 3
    assert end_of_rank_0(tmp_path, Nodes(2, 1, "7.2.3")) is None


@pytest.mark.engine
def test_two_nodes_of_two_ranks_are_one_learner_with_rank_0_on_the_first(tmp_path: Path) -> None:
    run = tmp_path / "run"
    ended = agents(run, 2, {})
    assert ended == [(0, ""), (0, "")], {
        log.name: log.read_text()[-2000:] for log in (run / "logs").iterdir()
    }
    found: list[dict[str, Any]] = [read_json(run / f"rank-{rank}.json") for rank in range(4)]
    assert [one["sum"] for one in found] == [10.0] * 4
    assert [one["SLURM_NODEID"] for one in found] == [0, 0, 1, 1]
    assert [one["LOCAL_RANK"] for one in found] == [0, 1, 0, 1]
    assert {(one["WORLD_SIZE"], one["LOCAL_WORLD_SIZE"]) for one in found} == {(4, 2)}


@pytest.mark.engine
@pytest.mark.parametrize(
    ("codes", "ends", "speaks"),
    [
        ({"0": 3}, [3, 1], None),
        pytest.param({"1": 2}, [1, 2], 1, marks=pytest.mark.slow),
        pytest.param({"1": 5}, [1, 1], 1, marks=pytest.mark.slow),
    ],
)
def test_one_rank_that_fails_ends_all_and_the_cause_has_the_last_word(
    tmp_path: Path, codes: dict[str, int], ends: list[int], speaks: int | None
) -> None:
    """`speaks`: the node whose agent says why; where it was rank 0, that has said it itself."""
    found = agents(tmp_path / "run", 1, codes)
    assert [code for code, _ in found] == ends
    said = {node: words for node, (_, words) in enumerate(found) if words}
    assert set(said) == ({speaks} - {None})
    for words in said.values():
        assert words.startswith("learner: rank 1")
        assert len(words.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.engine
def test_a_learner_on_two_nodes_ends_where_one_on_one_does(
    tmp_path: Path, model_dir: Path, journal: tuple[Path, str]
) -> None:
    """One recorded journal, whole learners, a rank on each node."""
    from safetensors.torch import load_file

    alone = weights(tmp_path, model_dir, journal)
    run = tmp_path / "two"
    run.mkdir()
    shutil.copytree(journal[0], run / "journal")
    settings = msgspec.json.encode(config(run, model_dir, journal[1], ranks=2)).decode()
    first, second = on_two_nodes(sys.executable, "-c", SCRIPT, settings)
    assert first[0] == 3, first
    assert "no good-bye" in first[1].splitlines()[-1], "nobody is there; until then, all went well"
    assert second == (0, ""), "rank 0 has said it"
    assert read_json(run / "learner.json")["learner_steps"] == STEPS
    found = difference(alone, load_file(run / "model" / "model.safetensors"))
    print(f"two nodes: {found:.2g}")
    assert found <= ALLOWED
