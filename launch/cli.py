"""The `dynatok` command: reads the arguments, then imports what the verb needs.

Parsing comes before everything heavy, so `--help` answers at once. Exit codes: 0 done, 1 the
run failed, 2 what was asked for cannot be run (one line says why), 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from launch.decode import ConfigError

_OVERRIDES = """\
Every field of the configuration is a flag, with dashes or underscores:
  --seed 7   --actor.sessions 16   --learner.training.learning-rate 1e-3
Sections that pass through take any name that their library knows: actor.engine (vLLM's engine
arguments), learner.training (TRL's SFTConfig), learner.deepspeed (a DeepSpeed configuration)."""

_BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = _parser()
    known, rest = parser.parse_known_args(arguments)
    run: Callable[[argparse.Namespace, list[str]], int] = known.run
    try:
        return run(known, rest)
    except ConfigError as error:
        print(f"dynatok: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
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
        "start actor and learner on this machine and watch them",
        "dynatok launch launch/configs/tiny.yaml --learner.training.max-steps 20",
        _OVERRIDES,
    )
    launch.add_argument("config", type=Path, help="YAML file, such as launch/configs/tiny.yaml")
    launch.add_argument(
        "--dry-run", action="store_true", help="write the run folder with its configs, and stop"
    )
    launch.add_argument(
        "--fields", action="store_true", help="list every field with its value, and stop"
    )

    for name, what in (("actor", "generates"), ("learner", "trains")):
        one = _verb(
            verbs,
            name,
            _process,
            f"start the process that {what}, alone, from its resolved config",
            f"dynatok {name} runs/tiny-20260102-030405/{name}.yaml",
            "Every field is a flag: --seed 7",
        )
        one.add_argument("config", type=Path, help=f"{name}.yaml of a run folder")
        one.set_defaults(process=name)

    names = sorted(path.stem for path in _BENCHMARKS.glob("*.py") if not path.stem.startswith("_"))
    if names:
        bench = _verb(
            verbs,
            "bench",
            _bench,
            "measure one part of the system",
            f"dynatok bench {names[0]}",
            f"benchmarks: {', '.join(names)}\n"
            f"Arguments go on to the benchmark: dynatok bench {names[0]} --help",
        )
        bench.add_argument("benchmark", nargs="?", choices=names, help="what to measure")
        bench.set_defaults(parser=bench)

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
        "check this environment, and say how to mend what is wrong",
        "dynatok doctor",
    )
    doctor.add_argument(
        "--config", type=Path, help="also check what this configuration asks for (its port)"
    )
    return parser


def _verb(
    verbs: argparse._SubParsersAction[argparse.ArgumentParser],
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

    _expect_file(known.config)
    loaded = config.load_run(known.config, flags)
    if known.fields:
        print(config.list_fields(loaded))
        return 0
    return run.launch(loaded, dry_run=known.dry_run)


def _process(known: argparse.Namespace, flags: list[str]) -> int:
    from launch.config import load_process

    # One process at a time: the other one's packages need not be installed.
    _expect_file(known.config)
    name: str = known.process
    into = getattr(importlib.import_module(f"{name}.config"), f"{name.title()}Config")
    loaded = load_process(known.config, into, flags)
    code: int = importlib.import_module(f"{name}.main").run(loaded)
    return code


def _expect_file(path: Path) -> None:
    """`dynatok launch --seed 7 tiny.yaml` would take 7 for the file."""
    if path.suffix not in (".yaml", ".yml") and not path.exists():
        raise ConfigError(f"'{path}' is no YAML file; write the file first, then the flags")


def _bench(known: argparse.Namespace, rest: list[str]) -> int:
    if known.benchmark is None:
        known.parser.print_help()
        return 0 if rest in (["-h"], ["--help"]) else 2
    module = importlib.import_module(f"benchmarks.{known.benchmark}")
    code: int | None = module.main(rest)
    return code or 0


def _keys(known: argparse.Namespace, rest: list[str]) -> int:
    if rest:
        raise ConfigError(f"keys takes no '{rest[0]}'; see dynatok keys --help")
    from protocol.keys import make_keys

    try:
        for path in make_keys(known.folder):
            print(path)
    except (ValueError, OSError) as error:
        raise ConfigError(str(error)) from error
    return 0


def _doctor(known: argparse.Namespace, rest: list[str]) -> int:
    if rest:
        raise ConfigError(f"doctor takes no '{rest[0]}'; see dynatok doctor --help")
    from launch import doctor

    return doctor.main(known.config)


if __name__ == "__main__":
    sys.exit(main())
