"""The verbs that need no second process: collect, train, eval."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import launch
from actor.offline.config import CollectConfig, EvalConfig
from launch import cli
from launch.config import load_process
from learner.offline.config import SelectConfig, TrainConfig

ROOT = Path(launch.__file__).parent.parent
CONFIGS = ROOT / "launch" / "configs"
HEAVY = ("torch", "vllm", "transformers", "deepspeed", "trl", "matplotlib", "pyarrow")


def run(capsys: Any, *arguments: str) -> tuple[int, str, str]:
    code = cli.main(arguments)
    out, err = capsys.readouterr()
    return code, out, err


def test_fields_are_listed_without_anything_heavy() -> None:
    code = (
        "import sys\n"
        "from launch import cli\n"
        "for verb in ('collect', 'select', 'train', 'eval'):\n"
        f"    path = {str(CONFIGS)!r} + f'/tiny-{{verb}}.yaml'\n"
        "    print(f'{verb}:', flush=True)\n"
        "    cli.main([verb, path, '--fields'])\n"
        f"heavy = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n--seed") == 4  # --seeds for eval


def test_shipped_configurations_are_read() -> None:
    collect = load_process(CONFIGS / "tiny-collect.yaml", CollectConfig)
    assert collect.tasks == "tiny:2-3"
    train = load_process(CONFIGS / "tiny-train.yaml", TrainConfig)
    assert train.objective == "reward"
    select = load_process(CONFIGS / "tiny-select.yaml", SelectConfig)
    assert select.method == "qtuning"
    evaluate = load_process(CONFIGS / "tiny-eval.yaml", EvalConfig)
    assert evaluate.reuse == ("exact", "sticky")
    assert len(evaluate.seeds) == 5


@pytest.mark.parametrize(
    ("verb", "flags", "message"),
    [
        ("collect", ["--trajectory", "3"], "did you mean 'trajectories'?"),
        ("collect", ["--trajectories", "0"], "trajectories is 0; write 1 or more"),
        (
            "collect",
            ["--reuse", "sticki"],
            "reuse is 'sticki'; write exact, sticky, none or refresh:64",
        ),
        ("train", ["--ranks", "0"], "ranks is 0; write 1 or more"),
        ("train", ["--ranks", "3"], "trajectories_per_step (16) must be divisible"),
        ("eval", ["--reuse", "[sticki]"], "write exact, sticky, none or refresh:64"),
        ("eval", ["--seeds", "[]"], "write one or more numbers from 0 up"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(
    capsys: Any, verb: str, flags: list[str], message: str
) -> None:
    code, out, err = run(capsys, verb, str(CONFIGS / f"tiny-{verb}.yaml"), *flags)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


GOOD = {"prompt": "In {{case}}: ", "slots": {"case": ["upper", "lower"]}}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{broken", "line 2: not JSON"),
        (GOOD | {"prompt": "{{tone}} {{case}}"}, "slot {{tone}} stands in the text, but 'slots'"),
        (
            GOOD | {"slots": {"case": "uper"}},
            "there is no requirement 'uper'; did you mean 'upper'",
        ),
        (
            GOOD | {"edits": [{"at": 500, "slot": "case", "to": "lower"}]},
            "edit at token 500 is outside the response; write an index from 1 to 127",
        ),
        (
            {"messages": [{"role": "user", "content": "hi"}]},
            "there are chat messages, but model 'tiny' has no chat template",
        ),
    ],
)
def test_bad_tasks_are_one_line_before_anything_is_started(
    tmp_path: Path, capsys: Any, line: Any, message: str
) -> None:
    tasks = tmp_path / "tasks.jsonl"
    bad = line if isinstance(line, str) else json.dumps(line)
    tasks.write_text(f"{json.dumps(GOOD)}\n{bad}\n")
    out = tmp_path / "out"
    code, _, err = run(
        capsys,
        "collect",
        str(CONFIGS / "tiny-collect.yaml"),
        "--tasks",
        str(tasks),
        "--out",
        str(out),
    )
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
    assert not out.exists()
