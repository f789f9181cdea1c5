"""The plugin inside the real vLLM: nothing leaks, and who does not use it does not notice it."""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import sys
from typing import Any

import numpy as np
import psutil
import pytest

from actor.config import ReusePolicy, SamplingConfig
from actor.engine.kv_events import KvEvents
from actor.sessions.generation import CacheUse
from actor.sessions.live_session import Finished, LiveSession
from actor.sessions.serving import Serving
from dynatok_online.spans.build import audit
from dynatok_online.tasks.task import ScheduledEdit, SlotState, Task
from tests.actor.kv_oracle import kv_logprobs
from tests.actor.sessions.test_parity import encode

pytestmark = pytest.mark.engine

PLAIN = """
import json, sys
from vllm import LLM, SamplingParams

if __name__ == "__main__":
    llm = LLM(sys.argv[1], skip_tokenizer_init=True, enforce_eager=True, dtype="float32",
              block_size=32, kv_cache_memory_bytes=8 << 20, enable_prefix_caching=True,
              enable_chunked_prefill=False, max_num_seqs=8)
    out = []
    for turn in range(2):
        prompts = [{"prompt_token_ids": [5 + (i * j) % 80 for j in range(40 + 30 * (i % 3))]}
                   for i in range(1, 13)]
        params = SamplingParams(max_tokens=40, temperature=1.0, seed=7, logprobs=0,
                                detokenize=False, ignore_eos=True)
        for one in llm.generate(prompts, params, use_tqdm=False):
            done = one.outputs[0]
            logprobs = [list(each.values())[0].logprob for each in done.logprobs]
            out.append([list(done.token_ids), logprobs, one.num_cached_tokens])
    print("RESULT" + json.dumps(out))
"""


def session(serving: Serving, task: Task, reuse: ReusePolicy, **more: Any) -> LiveSession:
    return LiveSession(
        task,
        serving,
        encode=encode,
        decode=lambda token_ids: "",
        sampling=SamplingConfig(ignore_eos=True),
        reuse=reuse,
        **more,
    )


def edited(number: int, edits: int, length: int) -> Task:
    """A task whose slot changes `edits` times, at random, among three states."""
    rng = random.Random(number)
    places = sorted(rng.sample(range(1, length), edits))
    states = [SlotState(c * 20) for c in "abc"]
    changes = tuple(ScheduledEdit(at, "s", rng.choice(states)) for at in places)
    template = f"{number:06d}".translate(str.maketrans("0123456789", "abcdefghij")) * 8
    return Task(
        f"{number}",
        template + "\n{{s}}\nz",
        {"s": states[0]},
        changes,
        length,
        number,
        widths={"s": 1},
    )


def test_exact_and_sticky_sessions_share_what_is_equal_and_nothing_else(
    vllm, serving, reference
) -> None:
    task = edited(1, 5, 150)
    both: list[ReusePolicy] = ["exact", "sticky"]

    async def side_by_side() -> list[Finished]:
        alone = [await session(serving, task, reuse).run() for reuse in both]
        return alone + await asyncio.gather(*(session(serving, task, r).run() for r in both * 4))

    done = vllm.run(side_by_side())
    for one in done:
        assert one.problems == ()
        assert not audit(one.trajectory)
        gap = np.abs(kv_logprobs({0: reference}, one.trajectory) - one.trajectory.logprobs)
        assert gap.max() < 1e-4
    exact, sticky = done[:2]
    assert sticky.trajectory.passes[0].num_cached_tokens > 0, "the prompt is the same"
    assert sticky.counts.computed_tokens < exact.counts.computed_tokens


def test_a_late_subscriber_gets_what_it_missed(vllm, serving) -> None:
    """From vLLM's own replay socket."""
    at = vllm.engine.cache_log._next
    finished = vllm.run(session(serving, edited(2, 3, 80), "sticky").run())
    events = KvEvents(*vllm.engine.cache_log.endpoints)
    events._next = at
    name = f"{serving.run_id}/1"
    events.expect(name)
    try:
        vllm.run(session(serving, edited(3, 1, 40), "exact").run())
        found = vllm.run(events.blocks_of(name, 1))
    finally:
        events.close()
    assert events.replays > 0
    assert found is not None
    assert len(found[0].reused) * 32 == finished.trajectory.passes[0].num_cached_tokens


def test_ended_sessions_are_told_of_until_the_engine_has_heard(vllm, serving) -> None:
    """The first request that tells of them is aborted before it is scheduled."""

    async def remembered() -> int:
        await session(serving, edited(4, 1, 10), "sticky").run()
        await vllm.engine.pause()
        unheard = await vllm.engine.submit(
            [5] * 40,
            request_id="unheard",
            sampling=SamplingConfig(),
            max_tokens=4,
            seed=1,
            cache=CacheUse(serving.cache_salt, "unheard", session="unheard"),
            stream=False,
        )
        await unheard.abort()
        assert (await unheard.wait()).token_ids == []
        vllm.engine.cache_log.forget(["unheard"])
        await vllm.engine.resume()
        await session(serving, edited(5, 1, 10), "sticky").run()
        return (await vllm.engine.in_use())[1]

    assert vllm.run(remembered()) == 1, "all but the one that ended last"


def test_sticky_is_refused_where_layers_see_a_window() -> None:
    from types import SimpleNamespace

    from actor.engine.arguments import why_not_sticky

    def config(window: int | None, hybrid: bool, caching: bool) -> Any:
        model = SimpleNamespace(get_sliding_window=lambda: window, is_hybrid=hybrid)
        cache = SimpleNamespace(enable_prefix_caching=caching)
        return SimpleNamespace(model_config=model, cache_config=cache)

    assert why_not_sticky(config(None, False, True)) == ""
    assert "full attention" in why_not_sticky(config(128, False, True))
    assert "full attention" in why_not_sticky(config(None, True, True))
    assert "enable_prefix_caching" in why_not_sticky(config(None, False, False))


@pytest.mark.timeout(300)
def test_plain_vllm_is_the_same_with_and_without_the_plugin(random_model, tmp_path) -> None:
    script = tmp_path / "plain.py"
    script.write_text(PLAIN)

    def outputs(**environment: str) -> list[Any]:
        done = subprocess.run(
            [sys.executable, str(script), str(random_model)],
            env={**os.environ, "TORCHDYNAMO_DISABLE": "1", **environment},
            capture_output=True,
            text=True,
            timeout=140,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        (line,) = [line for line in done.stdout.splitlines() if line.startswith("RESULT")]
        return list(json.loads(line.removeprefix("RESULT")))

    plain, with_plugin = outputs(VLLM_PLUGINS="none"), outputs(VLLM_PLUGINS="dynatok")
    assert with_plugin == plain
    assert any(cached > 0 for _, _, cached in plain)


@pytest.mark.parametrize(
    ("sessions", "edits"),
    [(40, 10), pytest.param(500, 20, marks=[pytest.mark.slow, pytest.mark.timeout(900)])],
)
def test_edits_leak_nothing(vllm, serving, reference, sessions: int, edits: int) -> None:
    """Blocks, sessions, records and memory return to what they were."""
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]

    def memory() -> float:
        return sum(one.memory_info().rss for one in processes) / 2**20

    async def one(gate: asyncio.Semaphore, number: int) -> Finished:
        async with gate:
            return await session(serving, edited(number, edits, 100), "sticky").run()

    async def many(numbers: range) -> list[Finished]:
        gate = asyncio.Semaphore(24)
        return await asyncio.gather(*(one(gate, number) for number in numbers))

    async def in_use() -> tuple[int, int]:
        # The engine hears of ended sessions with the next one.
        await session(serving, edited(0, 1, 10), "sticky").run()
        return await vllm.engine.in_use()

    vllm.run(many(range(24)), timeout=800)
    blocks = vllm.run(in_use())
    sizes = []
    made = 0
    chunk = sessions // 10
    for first in range(0, sessions, chunk):
        done = vllm.run(many(range(first, first + chunk)), timeout=800)
        made += sum(one.counts.edits for one in done)
        for finished in done:
            assert finished.problems == ()
            assert len(finished.trajectory.response) == 100
        trajectory = done[0].trajectory
        gap = np.abs(kv_logprobs({0: reference}, trajectory) - trajectory.logprobs)
        assert gap.max() < 1e-4
        del done, finished
        sizes.append(memory())
    assert made == sessions * edits
    assert vllm.run(in_use()) == blocks
    assert vllm.engine.cache_log.remembered == 0
    print(f"{made} edits, MiB after each tenth: {[round(size) for size in sizes]}")
    assert max(sizes[5:]) - max(sizes[:5]) < 16
