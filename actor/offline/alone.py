"""An actor without a learner: an engine, its tokenizer, and sessions."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import warnings
from collections.abc import Callable, Coroutine, Iterable, Iterator
from typing import Any

from actor.config import ReusePolicy
from actor.engine.engine import VllmEngine
from actor.offline.config import AloneConfig
from actor.sessions.live_session import LiveSession
from actor.sessions.rules import open_session
from actor.sessions.serving import Serving
from actor.task_groups import first_error
from actor.task_source import tasks
from actor.tokenizer import BorderNotice, chat_of, load_tokenizer
from dynatok_online import tiny
from dynatok_online.tasks.files import Chat, Split
from dynatok_online.tasks.task import Task

QUIET = {
    "VLLM_LOGGING_LEVEL": "ERROR",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "TQDM_DISABLE": "1",
    "PYTHONWARNINGS": "ignore",
}
"""What libraries say while an engine starts is nothing for people who watch a progress bar."""


def say(text: str) -> None:
    """A line for people, in front of nothing that a machine reads."""
    print(f"dynatok: {text}", file=sys.stderr, flush=True)


class Alone:
    """A running engine that serves the model's own weights."""

    def __init__(self, config: AloneConfig, engine: VllmEngine, model: str) -> None:
        self.engine = engine
        self._config = config
        self._encode, self.decode = load_tokenizer(model)
        self._serving = Serving(engine, f"alone-{os.getpid()}")
        self.fresh_cache()
        self._notice = BorderNotice(self._encode, config.placement, say)

    def fresh_cache(self) -> None:
        """From here on nothing that is cached is found."""
        self._serving.open(0, self._serving.new_salt(0))

    def session(self, task: Task, reuse: ReusePolicy) -> LiveSession:
        """A session of a task; its draws depend on the task alone."""
        self._notice(task)
        return open_session(
            task,
            self._serving,
            encode=self._encode,
            decode=self.decode,
            sampling=self._config.sampling,
            reuse=reuse,
            placement=self._config.placement,
        )


class Bad:
    """Counts what was left out, and shows the first few."""

    def __init__(self, show: int = 5) -> None:
        self.count = 0
        self._show = show

    def __call__(self, text: str) -> None:
        """One more."""
        self.count += 1
        if self.count <= self._show:
            say(f"left out: {text}")


def chat_from(config: AloneConfig) -> Chat:
    """What turns chat messages into a template. ValueError for a model without a chat template."""
    return chat_of(
        config.model, config.placement, config.system_prompt, config.chat_template_kwargs
    )


def load_tasks(
    config: AloneConfig, split: Split, seed: int, bad: Bad | None = None
) -> Iterator[Task]:
    """The config's tasks without end. ValueError before the first one for what cannot be used."""
    tiny.resolve(config.model)  # what is wrong with it is said first; `tiny` brings its names
    return tasks(
        config.tasks,
        split,
        seed,
        chat=lambda: chat_from(config),
        on_bad=bad if config.skip_bad else None,
    )


def with_engine(
    config: AloneConfig,
    seed: int,
    work: Callable[[Alone], Coroutine[Any, Any, None]],
    reuse: Iterable[ReusePolicy] = (),
) -> None:
    """Start the engine, do the work, stop the engine. SIGTERM is taken as Ctrl-C. `reuse`: the
    policies of the work's sessions, refused before the start where the engine cannot follow one."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    warnings.simplefilter("ignore", FutureWarning)

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, stop)
    model = tiny.resolve(config.model)
    engine = VllmEngine.start(
        model,
        config.engine,
        reuse=reuse,
        drafts=config.drafts,
        environment=config.environment,
        run_id="alone",
        seed=seed,
    )
    try:
        asyncio.run(work(Alone(config, engine, model)))
    except BaseExceptionGroup as group:
        raise first_error(group) from group
    finally:
        engine.shutdown()
        signal.signal(signal.SIGTERM, previous)
