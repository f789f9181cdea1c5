"""One actor process: `dynatok actor RUN/actor.yaml`.

Start the engine, then run an `Actor` until it is done. SIGTERM and SIGINT end the process cleanly
at any point of this.

Exit codes: 0 done or told to stop, 1 it failed (starting it again may help), 2 what was asked for
cannot be run.
"""

from __future__ import annotations

import asyncio
import signal
import time
from types import FrameType

from actor.config import ActorConfig
from actor.demo.run_socket import run_socket
from actor.engine.engine import VllmEngine
from actor.log import say
from actor.online.actor import Actor
from actor.online.weight_updater import Fenced
from dynatok_online import tiny
from protocol.delivery.actor_channel import Disconnected
from protocol.run.grace import end_within_grace

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
"""What ends it well. srun passes only the last one on."""


class Stopped(BaseException):
    """Asked to stop by a signal."""


def run(config: ActorConfig) -> int:
    """Run an actor to its end; the exit code of its process."""

    def stop(number: int, frame: FrameType | None) -> None:
        end_within_grace(0)
        raise Stopped(signal.Signals(number).name)

    # While vLLM starts there is no event loop to tell: the exception unwinds the start.
    previous = {number: signal.signal(number, stop) for number in SIGNALS}
    engine: VllmEngine | None = None
    try:
        begun = time.monotonic()
        model = tiny.resolve(config.model)
        engine = VllmEngine.start(
            model,
            config.engine,
            reuse=[config.reuse],
            drafts=config.drafts,
            environment=config.environment,
            run_id=config.run_id,
            seed=config.seed,
        )
        say(f"engine ready after {time.monotonic() - begun:.1f} s")
        asyncio.run(_run_until_signal(Actor(config, engine, model, run_socket)))
        return 0
    except Stopped as error:
        say(f"stopped by {error}")
        return 0
    except (Disconnected, Fenced) as error:
        say(f"{type(error).__name__}: {error}")
        return 1
    except ValueError as error:
        say(f"{error}")
        return 2
    finally:
        for number in previous:
            signal.signal(number, signal.SIG_IGN)  # already on the way out
        if engine is not None:
            engine.shutdown()
        for number, handler in previous.items():
            signal.signal(number, handler)


async def _run_until_signal(actor: Actor) -> None:
    loop = asyncio.get_running_loop()
    stopped: asyncio.Future[str] = loop.create_future()

    def stop(name: str) -> None:
        if not stopped.done():
            end_within_grace(0)
            stopped.set_result(name)

    for number in SIGNALS:
        loop.add_signal_handler(number, stop, signal.Signals(number).name)
    await actor.run(stopped)
