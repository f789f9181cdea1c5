"""A run as Ray tasks: the learner and each actor are one, in a placement group of its own.

Ray places them, starts one again that crashed or lost its node, and shows their logs in its
dashboard. This process asks for them, watches until the learner has ended, and gives all back:
where it dies, Ray ends the tasks, and they their processes. Nodes share the run folder.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from actor.config import ActorConfig
from launch import process, result
from launch.config import RunConfig
from launch.decode import ConfigError
from launch.engines.local import processes
from launch.engines.ray_task import FOLDER, Crashed, run_process
from launch.engines.scale import Scale
from launch.supervisor import ENDING, FINAL, LEARNER, SAVING, Display, Outcome, Signals
from protocol.run.json_files import read_json
from protocol.run.stop import StopRequest, ask_to_stop, asked_to_stop, forget_stop

INTERVAL: Final = 0.5
"""Seconds between two looks."""
ENDED: Final = 20.0
"""Seconds that a task may take to end once it was cancelled."""


class _Task:
    """One process of the run, through all of its starts."""

    def __init__(self, ray: Any, run_dir: Path, name: str, verb: str, config: RunConfig) -> None:
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        self.name = name
        self.code: int | None = None
        """How it ended for good; -1: it has crashed too often, or was cancelled."""
        self.words = ""
        self._ray = ray
        self._told = run_dir / FOLDER / f"{name}.json"
        self._told.unlink(missing_ok=True)
        needs = config.ray.learner if verb == "learner" else config.ray.actor
        self.needs = {key: value for key, value in needs.items() if value}
        self._group = ray.util.placement_group([self.needs])
        rest = {key: value for key, value in self.needs.items() if key not in ("CPU", "GPU")}
        self.ref = (
            ray.remote(run_process_on_node)
            .options(
                name=name,
                num_cpus=self.needs.get("CPU", 0),
                num_gpus=self.needs.get("GPU", 0),
                resources=rest,
                max_retries=config.restarts,
                retry_exceptions=[Crashed],
                scheduling_strategy=PlacementGroupSchedulingStrategy(self._group, 0),
            )
            .remote(str(run_dir), name, verb)
        )

    def look(self) -> None:
        """Whether it has ended for good."""
        if self.code is None and self._ray.wait([self.ref], timeout=0)[0]:
            try:
                self.code = self._ray.get(self.ref)
            except self._ray.exceptions.RayError as error:
                self.code, self.words = -1, str(error).strip().splitlines()[-1]

    @property
    def starts(self) -> int:
        """How often it was started."""
        return int(read_json(self._told).get("starts", 0))

    def describe(self) -> str:
        """For people."""
        if self.code is not None:
            return process.describe_exit(self.code) if self.code >= 0 else self.words
        told = read_json(self._told)
        if not told:
            asked = ", ".join(f"{value:g} {key}" for key, value in self.needs.items())
            return f"waiting for a node with {asked}"
        return "running" if told["starts"] == 1 else f"running (start {told['starts']})"

    def cancel(self, *, force: bool = False) -> None:
        """Ask it to end."""
        with contextlib.suppress(ValueError):
            self._ray.cancel(self.ref, force=force)

    def give_back(self) -> None:
        """Its place is free. Calling it twice does no harm."""
        if self._group is not None:
            self._ray.util.remove_placement_group(self._group)
            self._group = None


def run_process_on_node(run_dir: str, name: str, verb: str) -> int:
    """The task: in Ray's worker."""
    import ray

    return run_process(run_dir, name, verb, ray.util.get_node_ip_address())


def run_on_ray(
    run_dir: Path,
    config: RunConfig,
    actors: Sequence[ActorConfig],
    display: Display,
    saving: float = SAVING,
) -> Outcome:
    """Run the processes to their end. Raises ConfigError where Ray cannot be used.

    The first `config.actors` actors are there from the start, and those that an earlier start had
    added; the others come and go.
    """
    forget_stop(run_dir)
    began = time.monotonic()
    # In this order: Ray puts a handler of its own for SIGTERM in the place of what it finds.
    with _connected(config.ray.address, run_dir) as ray, Signals() as signals:
        run = _Run(ray, run_dir, config, actors, display, signals, saving)
        try:
            status, code, message = run.watch()
        finally:
            run.end()
            display.close()
    if status == "finished" and read_json(run_dir / "learner.json").get("finished") is False:
        log = run_dir / "logs" / "learner.log"
        status, code, message = "failed", 1, f"the learner ended before its last step; log: {log}"
    seconds = time.monotonic() - began
    crashes = {name: starts - 1 for name, starts in run.starts().items() if starts > 1}
    result.write(run_dir, result.collect(run_dir, status, seconds) | {"crashes": crashes})
    return Outcome(status, code, message, seconds)


@contextlib.contextmanager
def _connected(address: str, run_dir: Path) -> Any:
    try:
        import ray
    except ImportError as error:
        raise ConfigError(
            f"--on ray needs Ray: pip install --no-deps -r launch/locks/ray.txt ({error})"
        ) from None
    try:
        ray.init(
            address=address or os.environ.get("RAY_ADDRESS") or None,
            namespace="dynatok",
            log_to_driver=False,
            logging_level="ERROR",
        )
    except (ConnectionError, ValueError, RuntimeError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ConfigError(f"Ray cannot be reached: {lines[0]}") from None
    try:
        yield ray
    finally:
        ray.shutdown()


_End = tuple[str, int, str]


class _Run:
    def __init__(
        self,
        ray: Any,
        run_dir: Path,
        config: RunConfig,
        actors: Sequence[ActorConfig],
        display: Display,
        signals: Signals,
        saving: float,
    ) -> None:
        self._ray = ray
        self._run_dir = run_dir
        self._config = config
        self._display = display
        self._signals = signals
        self._saving = saving
        more = [name for name, _ in processes(actors)[1 + config.actors :]]
        # What an actor of an earlier start had finished may lie in its journal still.
        came = [name for name in more if (run_dir / FOLDER / f"{name}.json").exists()]
        self._waiting = [name for name in more if name not in came]
        """Actors that may be added."""
        self._scale = Scale(run_dir, config.actors, max(config.actors, config.ray.max_actors))
        self._began = time.monotonic()
        self._asked_at: float | None = None
        self._over_at: float | None = None
        self._tasks: dict[str, _Task] = {}
        self._leaving: list[_Task] = []
        """Given back: until they have ended, their names and places are not free."""
        self._gone: list[_Task] = []
        for name, verb in processes(actors):
            if name not in self._waiting:
                self._start(name, verb)

    def _start(self, name: str, verb: str) -> None:
        self._tasks[name] = _Task(self._ray, self._run_dir, name, verb, self._config)

    def starts(self) -> Mapping[str, int]:
        """How often each was started."""
        return {task.name: task.starts for task in self._all()}

    def _all(self) -> list[_Task]:
        return [*self._tasks.values(), *self._leaving, *self._gone]

    def watch(self) -> _End:
        """How it ended; tasks may still run then."""
        while True:
            now = time.monotonic()
            for task in self._all():
                task.look()
            self._free_places()
            end = self._failures() or self._ends(now)
            if end is not None:
                return end
            self._follow_scale(now)
            state = {task.name: task.describe() for task in self._tasks.values()}
            self._display.update(state, now - self._began)
            time.sleep(INTERVAL)

    def _free_places(self) -> None:
        for task in [one for one in self._leaving if one.code is not None]:
            self._leaving.remove(task)
            self._gone.append(task)
            self._waiting.insert(0, task.name)
        for task in self._gone:
            task.give_back()

    def _failures(self) -> _End | None:
        for name, task in list(self._tasks.items()):
            if not task.code:
                continue
            log = self._run_dir / "logs" / f"{name}.log"
            if task.code in FINAL:
                return "failed", 2 if task.code == 2 else 1, f"{_last(log)} (log: {log})"
            others = [one for one in self._tasks.values() if one.code is None and one is not task]
            if name != LEARNER and any(one.name != LEARNER for one in others):
                self._gone.append(self._tasks.pop(name))
                self._display.say(f"{name} is given up: {task.words} (log: {log})")
                continue
            return "failed", 1, f"{name}: {task.words} (log: {log})"
        return None

    def _ends(self, now: float) -> _End | None:
        running = [task for task in self._tasks.values() if task.code is None]
        learner = self._tasks[LEARNER].code is None
        if not running:
            return "finished", 0, ""
        if self._signals.received is not None:
            number = self._signals.received
            return "interrupted", 128 + number, f"stopped by {number.name}"
        if self._signals.save and self._asked_at is None:
            ask_to_stop(self._run_dir, StopRequest("SIGUSR1"))
        if (request := asked_to_stop(self._run_dir)) is not None:
            self._asked_at = self._asked_at or now
            if not learner:
                return "interrupted", 0, f"stopped by {request.reason}"
            if now - self._asked_at > self._saving:
                late = f"; the learner had not saved {self._saving:g} s later"
                return "interrupted", 1, f"stopped by {request.reason}{late}"
        limit = self._config.time_limit
        if limit and now - self._began > limit:
            return "failed", 1, f"time limit of {limit:g} s reached"
        if not learner:
            for task in [one for one in running if not one.starts]:
                # It still waits for a node, and would find nothing to do there.
                task.cancel()
                self._gone.append(self._tasks.pop(task.name))
            self._over_at = self._over_at or now
            if now - self._over_at > ENDING:
                names = ", ".join(task.name for task in running)
                return "failed", 1, f"the learner has ended, but these still run: {names}"
        return None

    def _follow_scale(self, now: float) -> None:
        """One more actor, or one less, where the learner waits much, or hardly."""
        extra = [name for name in self._tasks if name != LEARNER][self._config.actors :]
        change = self._scale.change(now, self._config.actors + len(extra))
        if change > 0 and self._waiting:
            name = self._waiting.pop(0)
            self._display.say(f"the learner waits: {name} is added")
            self._start(name, "actor")
        elif change < 0 and extra:
            task = self._tasks.pop(extra[-1])
            self._display.say(f"the learner does not wait: {task.name} is given back")
            task.cancel()
            self._leaving.append(task)

    def end(self) -> None:
        """Nothing runs any more, and all places are given back."""
        begun = self._signals.count
        if self._signals.received is not None:
            self._display.say("stopping; Ctrl-C again kills")
        for force in (False, True):
            running = [task for task in self._all() if task.code is None]
            for task in running:
                task.cancel(force=force)
            end = time.monotonic() + ENDED
            while running and time.monotonic() < end and self._signals.count == begun:
                for task in running:
                    task.look()
                running = [task for task in running if task.code is None]
                time.sleep(0.1)
        for task in self._all():
            task.give_back()


def _last(log: Path) -> str:
    with contextlib.suppress(OSError):
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        return lines[-1] if lines else ""
    return ""
