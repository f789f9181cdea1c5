"""`dynatok eval`: adherence before and after edits, its latency, and fluency, seed by seed.

Every seed samples its own tasks with its own draws; what is reported is the mean over seeds with a
95 % interval over seeds, or over edits where there is one seed, and how many edits were judged. The
run folder holds `evaluation.json` (all numbers, per seed), `evaluation.md` (tables),
`evaluation.png`, and the sampled trajectories.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec

from actor.config import ReusePolicy
from actor.offline.alone import Alone, Bad, load_tasks, with_engine
from actor.offline.config import EvalConfig
from actor.offline.eval_gold import gold_report
from actor.offline.eval_report import draw, markdown
from actor.offline.eval_stored import AGAIN, sample_of, samples_file, stored_samples
from actor.offline.eval_summary import Sample, over_seeds, summary
from actor.tokenizer import load_tokenizer
from dynatok_online import tiny
from dynatok_online.data.storage import write_trajectories
from dynatok_online.policy import parse_policy
from dynatok_online.tasks.task import Task
from protocol.run.json_files import write_json
from protocol.run.progress import Bar, progress_bar
from protocol.run.run_folder import make_run_folder


def run(config: EvalConfig) -> int:
    """Sample, judge, write the report; the exit code. Raises ValueError."""
    bad = Bad()
    tasks = {
        seed: repeated(
            list(islice(load_tasks(config, config.split, seed, bad), config.count)),
            config.responses,
        )
        for seed in config.seeds
    }
    stored = _stored(config, tasks) if config.samples else None
    folder = make_run_folder(Path(config.dir), config.name)
    write_json(folder / "eval.json", msgspec.to_builtins(config))
    print(f"dynatok: run folder {folder}", file=sys.stderr, flush=True)
    samples = stored or _sampled(config, tasks)
    for (reuse, seed), found in samples.items():
        path = samples_file(folder, reuse, seed)
        write_trajectories(path, [one.finished.trajectory for one in found])
    report = _measured(config, samples)
    write_json(folder / "evaluation.json", report)
    (folder / "evaluation.md").write_text(markdown(config, report))
    draw(folder / "evaluation.png", report)
    last = {
        reuse: {name: one["mean"] for name, one in part["mean"]["all"].items()}
        | {"edits_judged": part["mean"]["edits_judged"]["all"]}
        for reuse, part in report.items()
    }
    print(json.dumps({"run_dir": str(folder), "bad_tasks": bad.count, **last}), flush=True)
    return 0


def _measured(
    config: EvalConfig, samples: dict[tuple[ReusePolicy, int], list[Sample]]
) -> dict[str, Any]:
    """The measures: policy -> those of each seed, and over seeds."""
    report: dict[str, Any] = {}
    done = 0
    with progress_bar("measure", sum(map(len, samples.values()))) as bar:
        for reuse in config.reuse:
            by_seed = {}
            for seed in config.seeds:
                by_seed[seed] = summary(
                    samples[reuse, seed],
                    config.base_model,
                    model=config.model,
                    stale=config.stale and parse_policy(reuse).keeps,
                )
                done += len(samples[reuse, seed])
                bar.move(done)
            report[reuse] = {"by_seed": by_seed, "mean": over_seeds(list(by_seed.values()))}
        if config.gold:
            report["gold"] = gold_report(config)
    return report


def _stored(
    config: EvalConfig, tasks: dict[int, list[Task]]
) -> dict[tuple[ReusePolicy, int], list[Sample]]:
    """The responses of an earlier evaluation. ValueError where they are to other tasks."""
    _, decode = load_tokenizer(tiny.resolve(config.model))
    folder = Path(config.samples)
    return {
        (reuse, seed): stored_samples(samples_file(folder, reuse, seed), tasks[seed], decode)
        for reuse in config.reuse
        for seed in config.seeds
    }


def _sampled(
    config: EvalConfig, tasks: dict[int, list[Task]]
) -> dict[tuple[ReusePolicy, int], list[Sample]]:
    """What the model writes now."""
    samples: dict[tuple[ReusePolicy, int], list[Sample]] = {}

    async def work(alone: Alone) -> None:
        with progress_bar("eval", len(config.reuse) * sum(map(len, tasks.values()))) as bar:
            for reuse in config.reuse:
                for seed in config.seeds:
                    # Else a policy would find what another one computed of the same tasks.
                    alone.fresh_cache()
                    samples[reuse, seed] = await _sample(
                        alone, tasks[seed], reuse, config.sessions, bar
                    )

    with_engine(config, config.seeds[0], work, config.reuse)
    return samples


def repeated(tasks: Sequence[Task], times: int) -> list[Task]:
    """Each task so many times, with other draws."""
    return [
        msgspec.structs.replace(task, task_id=f"{task.task_id}{AGAIN}{i}") if i else task
        for task in tasks
        for i in range(times)
    ]


async def _sample(
    alone: Alone, tasks: Sequence[Task], reuse: ReusePolicy, sessions: int, bar: Bar
) -> list[Sample]:
    pending = iter(tasks)
    done: list[Sample] = []

    async def work() -> None:
        for task in pending:
            finished = await alone.session(task, reuse).run()
            done.append(sample_of(task, finished, alone.decode))
            bar.advance()

    async with asyncio.TaskGroup() as group:
        for _ in range(min(sessions, len(tasks))):
            group.create_task(work())
    return sorted(done, key=lambda one: one.finished.trajectory.trajectory_id)
