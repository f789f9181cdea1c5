"""What children find in their environment."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from launch import environment


def test_the_learner_gets_what_torchrun_would_set():
    env = environment.for_child("learner", {"CUDA_VISIBLE_DEVICES": "", "PATH": "/bin"})
    assert (env["RANK"], env["WORLD_SIZE"], env["LOCAL_RANK"]) == ("0", "1", "0")
    assert env["MASTER_ADDR"] == "127.0.0.1"
    assert int(env["MASTER_PORT"]) > 0
    assert env["DS_ACCELERATOR"] == "cpu"
    assert "RANK" not in environment.for_child("actor", {})


def test_the_cores_are_shared_and_the_users_word_goes_first():
    env = environment.for_child("actor", {})
    assert int(env["OMP_NUM_THREADS"]) == max(1, environment.cores() // 2)
    assert environment.for_child("actor", {"OMP_NUM_THREADS": "7"})["OMP_NUM_THREADS"] == "7"


def test_the_environments_tools_are_on_the_path_once():
    tools = str(Path(sys.prefix) / "bin")
    first = environment.for_child("learner", {"PATH": "/bin"})
    again = environment.for_child("learner", first)
    assert first["PATH"] == again["PATH"] == tools + os.pathsep + "/bin"
