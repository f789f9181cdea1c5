"""The demo's settings: what ships loads, and what is wrong is said."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

import launch
from actor.demo.config import DemoConfig
from actor.demo.names import unknown_host
from dynatok_online.tasks import writing
from launch import cli
from launch.config import load_process

SHIPPED = sorted((Path(launch.__file__).parent / "configs").glob("*-demo.yaml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_configurations_load(path):
    config = load_process(path, DemoConfig)
    if config.slot_width:
        assert all(len(state.text) <= config.slot_width for state in config.slots.values())
    assert all(state.requirement for state in config.slots.values())


def test_the_page_on_the_real_model_offers_what_its_gold_teaches():
    path = next(path for path in SHIPPED if path.stem == "smollm2-demo")
    assert load_process(path, DemoConfig).choices == writing.LEARNED


def test_the_page_of_the_tiny_world_opens_with_another_model():
    code = (
        "from actor.demo.config import DemoConfig; from launch.config import load_process\n"
        f"from pathlib import Path; path = Path({str(SHIPPED[-1])!r})\n"
        "print(load_process(path, DemoConfig, ['--model', 'gpt2']).slots['words'].requirement)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "sea\n", done.stderr


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--prot", "3"], "did you mean 'port'"),
        (["--port", "70000"], "port is 70000; write 0 (any free one) to 65535"),
        (["--lanes", "[exact, exact]"], "name one to four, each once"),
        (["--lanes", "[stiky]"], "lanes is 'stiky'; write exact, sticky, none or refresh:64"),
        (["--tokens-per-second", "-1"], "write 0 (full speed) or more"),
        (["--template", "{{case}}"], "has a state but no place"),
        (["--choices", "{tone: [{text: dry}]}"], "choices holds 'tone', which is no slot"),
        (["--choices", "{case: [{text: a}, {text: a}]}"], "choices.case holds a text twice"),
        (["--hosts", "[http://node7/]"], "write names as in a browser's address"),
        (["0"], "'0' is no YAML file"),
        (["nothing.yaml"], "nothing.yaml: no such file"),
    ],
)
def test_what_is_wrong_is_one_line(flags, message, capsys):
    assert cli.main(["demo", *flags]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_what_the_page_says_to_write_is_understood(capsys):
    said = unknown_host({"host": "node7:8080"}, ())
    (flag,) = re.findall(r"(--hosts '.*?')", said)
    assert cli.main(["demo", *shlex.split(flag), "--fields"]) == 0
    assert "node7:8080" in capsys.readouterr().out


def test_fields_are_listed(capsys):
    assert cli.main(["demo", "--port", "0", "--fields"]) == 0
    assert "--port 0\n" in capsys.readouterr().out


def test_a_folder_without_a_run_is_refused(tmp_path, capsys):
    assert cli.main(["demo", "--run", str(tmp_path)]) == 2
    assert "is no run folder" in capsys.readouterr().err


def test_settings_import_nothing_heavy():
    code = (
        "import sys\n"
        "import actor.demo.config, actor.demo.messages\n"
        "assert not {'torch', 'vllm', 'transformers', 'starlette'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_defaults_survive_a_round_trip():
    (path, *_) = SHIPPED
    config = load_process(path, DemoConfig)
    assert msgspec.convert(msgspec.to_builtins(config), DemoConfig) == config
