"""Who edits goes first: room for the requests of people, made before each step of vLLM.

Runs in vLLM's engine process. With `scheduling_policy: priority` vLLM itself lets urgent requests
(priority below 0) go before others that wait, and preempts the others when a running one needs a
block. What it does not do is preempt anybody for a request that waits: an edit ends a pass, whose
blocks are taken at once by whoever waited, and its next pass would wait for a response to end. So
before a step in which urgent requests wait, others are preempted, the latest first, as vLLM does
it, until there are as many free blocks and places as the urgent ones need.
"""

from __future__ import annotations

import time
from typing import Any

from vllm.v1.core.sched.request_queue import SchedulingPolicy
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import Request, RequestStatus

from actor.engine.names import URGENT


def install() -> None:
    """Teach vLLM of this process; without urgent requests it schedules as before."""
    standard = Scheduler.schedule
    if getattr(standard, "dynatok", False):
        return

    def schedule(self: Scheduler, *arguments: Any, **options: Any) -> Any:
        if self.policy == SchedulingPolicy.PRIORITY and self.waiting:
            _make_room(self)
        return standard(self, *arguments, **options)

    schedule.dynatok = True  # type: ignore[attr-defined]
    Scheduler.schedule = schedule


def _make_room(scheduler: Scheduler) -> None:
    if scheduler.waiting.peek_request().priority > URGENT:
        return
    manager = scheduler.kv_cache_manager
    size = scheduler.vllm_config.cache_config.block_size
    blocks = places = 0
    for request in scheduler.waiting:
        if request.priority > URGENT:
            break
        # Upper bounds: it may find some of its blocks, or those of the request before it.
        blocks += request.num_tokens // size + 1
        places += 1
    others = [one for one in scheduler.running if one.priority > URGENT]
    others.sort(key=lambda one: (one.priority, one.arrival_time))
    while others and (
        manager.block_pool.get_num_free_blocks() < blocks
        or scheduler.max_num_running_reqs - len(scheduler.running) < places
    ):
        _preempt(scheduler, others.pop())


def _preempt(scheduler: Scheduler, request: Request) -> None:
    if request.status != RequestStatus.RUNNING or not scheduler._request_blocks_can_be_freed(
        request
    ):
        return
    scheduler.running.remove(request)
    scheduler._preempt_request(request, time.monotonic())
