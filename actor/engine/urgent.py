"""Who edits goes first: room for the requests of people, made before each step of vLLM.

Runs in vLLM's engine process. With `scheduling_policy: priority` vLLM itself lets urgent requests
(priority below 0) go before others that wait, and preempts the others when a running one needs a
block. Four things are added, while somebody is there:

- Between two passes of a person's session nobody else is let in: whoever waited would take the
  blocks of the pass that has ended, and the next one would have to get them back.
- Where the next pass still finds too few blocks or places, others are preempted, the latest first,
  as vLLM does it. vLLM preempts nobody for a request that waits.
- The step in which it begins is its own: the tokens of the others would make it longer.
- Steps with much of other prompts would be long, and an edit waits for the step that it falls
  into: prompts are computed in small parts.
"""

from __future__ import annotations

import time
from typing import Any, Final

from vllm.platforms import current_platform
from vllm.v1.core.sched.request_queue import SchedulingPolicy
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import Request, RequestStatus

from actor.engine.names import URGENT

GAP: Final = 0.1
"""Seconds after a person's request in which its session is taken to go on."""
THERE: Final = 2.0
"""Seconds after it in which the person is taken to be there."""
PART: Final = {"cpu": 64}
"""Device -> prompt tokens in a step while somebody is there, besides what each request writes: so
many that the step takes little longer."""
_PART: Final = 512
"""On any other device."""


def install() -> None:
    """Teach vLLM of this process; without urgent requests it schedules as before."""
    standard = Scheduler.schedule
    if getattr(standard, "dynatok", False):
        return

    def schedule(self: Scheduler, *arguments: Any, **options: Any) -> Any:
        if self.policy != SchedulingPolicy.PRIORITY:
            return standard(self, *arguments, **options)
        waiting = _urgent_ones(self)
        everybody, places = self.running, self.max_num_active_reqs
        tokens = self.max_num_scheduled_tokens
        others: list[Request] = []
        now = time.monotonic()
        since = now - getattr(self, "dynatok_urgent", -THERE)
        if waiting:
            _make_room(self, waiting)
            others = [one for one in everybody if not _is_urgent(one)]
            self.running = [one for one in everybody if _is_urgent(one)]
            self.max_num_active_reqs = min(places, len(self.running) + len(waiting))
        elif since < THERE:
            if self.scheduler_config.enable_chunked_prefill:
                self.max_num_scheduled_tokens = min(tokens, _tokens(self))
            if since < GAP and not any(map(_is_urgent, everybody)):
                self.max_num_active_reqs = min(places, len(everybody))
        try:
            return standard(self, *arguments, **options)
        finally:
            self.running += others
            self.max_num_active_reqs, self.max_num_scheduled_tokens = places, tokens
            if any(map(_is_urgent, self.running)):
                self.dynatok_urgent = now

    schedule.dynatok = True  # type: ignore[attr-defined]
    Scheduler.schedule = schedule


def _urgent_ones(scheduler: Scheduler) -> list[Request]:
    """Those that wait; a queue by priority holds them first."""
    found: list[Request] = []
    for request in scheduler.waiting:
        if not _is_urgent(request):
            break
        found.append(request)
    return found


def _tokens(scheduler: Scheduler) -> int:
    """Of a step: what each request writes, guesses included, and a part of the prompts."""
    each = 1 + scheduler.num_spec_tokens
    part = PART.get(current_platform.device_type, _PART)
    left = [
        max(0, one.num_tokens - one.num_computed_tokens - each)
        for one in scheduler.running
        if _is_urgent(one)
    ]
    return len(scheduler.running) * each + part + sum(left)


def _is_urgent(request: Request) -> bool:
    return bool(request.priority <= URGENT)


def _make_room(scheduler: Scheduler, waiting: list[Request]) -> None:
    manager = scheduler.kv_cache_manager
    size = scheduler.vllm_config.cache_config.block_size
    # Upper bounds: each may find some of its blocks, or those of the request before it.
    blocks = sum(request.num_tokens // size + 1 for request in waiting)
    places = len(waiting)
    others = [one for one in scheduler.running if not _is_urgent(one)]
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
