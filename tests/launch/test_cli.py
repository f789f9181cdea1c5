"""The command line: quick, light, and exact about what is wrong."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

import launch
from launch import cli

ROOT = Path(launch.__file__).parent.parent
TINY = str(ROOT / "launch" / "configs" / "tiny.yaml")
HEAVY = ("torch", "vllm", "transformers", "deepspeed", "trl", "matplotlib", "pyarrow")


VERBS = (
    *("launch", "actor", "learner", "collect", "train", "eval", "demo", "inspect", "bench"),
    *("gold", "select", "model", "requirements", "keys", "doctor", "status", "stop"),
)


def test_every_help_is_quick_light_and_has_an_example():
    code = (
        "import sys\n"
        "from launch import cli\n"
        f"for verb in {('', *VERBS)!r}:\n"
        "    print('====', flush=True)\n"
        "    try:\n"
        "        cli.main([*filter(None, [verb]), '--help'])\n"
        "    except SystemExit as end:\n"
        "        assert not end.code\n"
        f"heavy = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "assert not heavy, heavy\n"
    )
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    first, *others = done.stdout.split("====\n")[1:]
    assert len(others) == len(VERBS)
    listed = re.findall(r"^    ([a-z]+)\s", first.partition("verbs:")[2], re.MULTILINE)
    assert {*listed} == {*VERBS}
    for verb, text in zip(VERBS, others, strict=True):
        assert text.startswith(f"usage: dynatok {verb} ")
        assert f"example:\n  dynatok {verb}" in text
    # A second each on a quiet machine, the first one included; here, others may run beside.
    assert time.perf_counter() - started < 5


def test_reading_a_configuration_imports_nothing_heavy():
    code = (
        "import sys\n"
        "from launch import cli, doctor, picture, supervisor\n"
        f"cli.main(['launch', {TINY!r}, '--fields'])\n"
        f"heavy = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True)


def run(capsys, *arguments):
    code = cli.main(arguments)
    out, err = capsys.readouterr()
    return code, out, err


@pytest.mark.parametrize(
    ("text", "flags", "message"),
    [
        ("actor: {sesions: 3}", [], "did you mean 'actor.sessions'?"),
        ("actor: {sessions: -3}", [], "actor.sessions is -3"),
        ("", ["--actor.sesions", "3"], "did you mean 'actor.sessions'?"),
        ("", ["--seed", "-3"], "seed is -3"),
        ("", ["--seed", "x"], "seed must be int, got str ('x')"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(tmp_path, capsys, text, flags, message):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    code, out, err = run(capsys, "launch", str(path), *flags)
    assert (code, out) == (2, "")
    assert message in err
    assert err.startswith("dynatok: ")
    assert err.count("\n") == 1


def test_a_missing_file_is_one_line_and_exit_2(capsys):
    for verb in ("launch", "actor", "learner"):
        code, _, err = run(capsys, verb, "nowhere/run.yaml")
        assert code == 2
        assert err == "dynatok: nowhere/run.yaml: no such file\n"


def test_a_busy_port_is_one_line_exit_2_and_leaves_no_folder(tmp_path, capsys):
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as busy:
        endpoint = f"tcp://127.0.0.1:{busy.getsockname()[1]}"
        code, _, err = run(
            capsys, "launch", TINY, "--dir", str(tmp_path), "--protocol.endpoint", endpoint
        )
    assert code == 2
    assert f"protocol.endpoint: {endpoint} cannot be used" in err
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_flags_before_the_file_are_explained(capsys):
    code, _, err = run(capsys, "launch", "--seed", "7", TINY)
    assert code == 2
    assert "write the file first" in err


def test_dry_run_writes_the_folder_and_stops(tmp_path, capsys):
    code, out, err = run(capsys, "launch", TINY, "--dir", str(tmp_path), "--dry-run", "--seed", "7")
    assert code == 0, err
    run_dir = Path(json.loads(out.splitlines()[-1])["run_dir"])
    assert sorted(one.name for one in run_dir.iterdir()) == [
        "actor.yaml",
        "config.yaml",
        "learner.yaml",
    ]
    assert "seed: 7" in (run_dir / "actor.yaml").read_text()
    assert "seed: 7" in (run_dir / "learner.yaml").read_text()


def test_odd_places_and_locales(tmp_path):
    """No home, the C locale, a long path with blanks and umlauts."""
    folder = tmp_path / "Läufe mit Leerzeichen" / ("x" * 100)
    command = [sys.executable, "-m", "launch.cli", "launch", TINY, "--dir", str(folder)]
    done = subprocess.run(
        [*command, "--dry-run"],
        env={"PATH": "/usr/bin:/bin", "LC_ALL": "C", "HOME": "/nonexistent"},
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    run_dir = Path(json.loads(done.stdout.splitlines()[-1])["run_dir"])
    assert run_dir.parent == folder
    written = (run_dir / "learner.yaml").read_text(encoding="utf-8")
    assert yaml.safe_load(written)["run_dir"] == str(run_dir)


def test_fields_lists_flags(capsys):
    code, out, _ = run(capsys, "launch", TINY, "--fields")
    assert code == 0
    assert "--actor.sessions 32" in out.splitlines()


@pytest.mark.parametrize(
    ("arguments", "codes"),
    [
        (("launch", TINY, "--fields"), {141}),
        (("requirements",), {1}),  # rich ends by itself
        (("launch", "--help"), {0, 141}),  # argparse says nothing of it in later Pythons
    ],
)
def test_a_reader_that_has_seen_enough_is_no_fault(arguments, codes):
    gone, pipe = os.pipe()
    os.close(gone)  # as `| head` does
    try:
        done = subprocess.run(
            [sys.executable, "-m", "launch.cli", *arguments],
            stdout=pipe,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    finally:
        os.close(pipe)
    assert done.returncode in codes
    assert done.stderr == ""


def test_doctor_takes_no_flags(capsys):
    code, _, err = run(capsys, "doctor", "--sed", "3")
    assert code == 2
    assert "doctor takes no '--sed'" in err


def test_requirements_are_listed_with_what_they_mean(capsys):
    code, out, _ = run(capsys, "requirements")
    assert code == 0
    assert {line.split()[0] for line in out.splitlines() if line} >= {
        "upper",
        "max_words:20",
        "sea",
    }
    assert "no word more than twice" in out
    assert "[brackets]" in out
    assert "It is code that runs on your machine" in out


def test_keys_are_made_once(capsys, tmp_path):
    code, out, _ = run(capsys, "keys", str(tmp_path / "keys"))
    assert code == 0
    assert len(out.splitlines()) == 4
    code, _, err = run(capsys, "keys", str(tmp_path / "keys"))
    assert code == 2
    assert "already has" in err


def test_adapters_that_cannot_be_served_are_refused_before_anything_starts(tmp_path, capfd):
    path = tmp_path / "run.yaml"
    lora = "learner: {lora: {r: 2, target_modules: [q_proj], %s}}"
    path.write_text(lora % "alora_invocation_tokens: [1]")
    assert cli.main(["launch", str(path), "--dir", str(tmp_path)]) == 2
    assert "learner.lora.alora_invocation_tokens cannot be served" in capfd.readouterr().err

    path.write_text(lora % "modules_to_save: [lm_head]")
    assert cli.main(["launch", str(path), "--dir", str(tmp_path)]) == 2
    assert "are one tensor of this model" in capfd.readouterr().err
    assert [one.name for one in tmp_path.iterdir()] == ["run.yaml"], "nothing was started"
