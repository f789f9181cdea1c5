"""What children find in their environment."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from launch import environment
from protocol.run.threads import NAMES, cores


def test_the_learner_gets_what_torchrun_would_set():
    env = environment.for_child("learner", {"CUDA_VISIBLE_DEVICES": "", "PATH": "/bin"})
    assert (env["RANK"], env["WORLD_SIZE"], env["LOCAL_RANK"]) == ("0", "1", "0")
    assert env["MASTER_ADDR"] == "127.0.0.1"
    assert env["MASTER_PORT"] == "0"
    assert env["DS_ACCELERATOR"] == "cpu"
    assert "RANK" not in environment.for_child("actor", {})


def test_the_cores_are_shared_and_the_users_word_takes_precedence():
    share = str(max(1, cores() // 2))
    env = environment.for_child("actor", {})
    assert [env[name] for name in NAMES] == [share] * 3
    assert environment.for_child("actor", {}, processes=9 * cores())["MKL_NUM_THREADS"] == "1"
    for name in ("actor", "learner"):
        env = environment.for_child(name, {"OMP_NUM_THREADS": "7"})
        assert [env[name] for name in NAMES] == ["7"] * 3


def test_the_environments_tools_are_on_the_path_once():
    tools = str(Path(sys.prefix) / "bin")
    first = environment.for_child("learner", {"PATH": "/bin"})
    again = environment.for_child("learner", first)
    assert first["PATH"] == again["PATH"] == tools + os.pathsep + "/bin"
