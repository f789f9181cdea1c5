"""Every benchmark through `dynatok bench`, with tiny sizes: its last line is JSON, its code 0."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import gpu
from launch import cli

PLACED = {
    "adherence": ("--raw", "raw.jsonl", "--report", "report.md"),
    "sync": ("--folder", "sync"),
    "wire": ("--folder", "wire"),
}
"""Where each writes: names of files and folders, below a folder of the test."""
TINY: dict[str, tuple[tuple[str, ...], Callable[[Any], bool]]] = {
    "adherence": (
        (
            *("--seeds", "0", "--arms", "a_base", "b_one_state", "--seconds", "0.5"),
            *("--loss-tokens", "400", "--tasks", "2"),
        ),
        lambda said: said["results"] == 2,
    ),
    "models": (
        ("llama", "gemma2"),
        lambda said: "exact" in said["llama"] and "soft-capped" in said["gemma2"],
    ),
    "pack": (
        (
            *("--static", "24", "--slot", "4", "--response", "16"),
            *("--states", "2", "--rounds", "1"),
        ),
        lambda said: all(one["static"] == 24 for one in said) and len(said) > 3,
    ),
    "sync": (("--gigabytes", "0.01", "--repeats", "1"), lambda said: len(said["results"]) == 4),
    "wire": (("--trajectories", "200"), lambda said: said["trajectories"] == 200),
}


def test_every_benchmark_is_here() -> None:
    found = {path.stem for path in Path("benchmarks").glob("[a-z]*.py")}
    # Others have tests of their own: actor starts vLLM, two want a model with a chat template,
    # objectives trains several models, memory models of 0.1 billion parameters and more, fleet
    # starts a learner's channel, refresh reads evaluations.
    assert found == {
        *TINY,
        "gpu",
        "actor",
        "real",
        "stale",
        "objectives",
        "memory",
        "fleet",
        "refresh",
        "drafts",
    }


@pytest.mark.engine
@pytest.mark.parametrize("name", TINY)
def test_it_runs_from_the_command_line(name: str, tmp_path: Path, capfd: Any) -> None:
    flags, expected = TINY[name]
    placed = [one if one.startswith("--") else str(tmp_path / one) for one in PLACED.get(name, ())]
    for one in placed:
        if Path(one).parent == tmp_path and not Path(one).suffix and name in ("sync", "wire"):
            Path(one).mkdir()
    assert cli.main(["bench", name, *placed, *flags]) == 0
    out, errors = capfd.readouterr()
    assert "Traceback" not in errors
    assert expected(json.loads(out.splitlines()[-1]))


@pytest.mark.parametrize("name", ["sync", "wire"])
def test_a_folder_that_is_not_there_is_said_first(name: str, capsys: Any, tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["bench", name, "--folder", str(tmp_path / "missing")])
    assert ended.value.code == 2
    assert "missing is no folder; make it first" in capsys.readouterr().err


@pytest.mark.engine
@pytest.mark.timeout(700)
def test_gpu_runs_without_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    monkeypatch.setitem(gpu.PARTS, "exactness", (600, gpu.PARTS["exactness"][1]))
    folder = tmp_path / "report"
    flags = ("--parts", "exactness", "--seconds", "600")
    assert cli.main(["bench", "gpu", str(folder), *flags]) == 0
    assert "Traceback" not in capfd.readouterr().err
    assert "| Qwen3 | concat | float32 |" in (folder / "report.md").read_text()
