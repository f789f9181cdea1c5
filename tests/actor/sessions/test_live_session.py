"""Sessions on a fake engine: edits, toggles, races, weights in the middle, limits."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from actor.config import SamplingConfig
from actor.sessions.live_session import Finished, LiveSession
from actor.sessions.serving import Interrupt, Serving
from dynatok_online.spans.blocks import blocks
from dynatok_online.spans.build import audit
from dynatok_online.tasks.task import ScheduledEdit, SlotState, Task
from dynatok_online.trajectory import OUTSIDE, Reuse, Trajectory
from tests.actor.fake import FakeEngine

A, B = SlotState("aaaa", "lower"), SlotState("BBBB", "upper")
C, D = SlotState("cccc"), SlotState("dddd")


def encode(text: str) -> list[int]:
    return [ord(c) for c in text]


def decode(token_ids: Any) -> str:
    return "".join(chr(i) for i in token_ids)


def make(engine: FakeEngine, one: Task, **more: Any) -> LiveSession:
    serving = more.pop("serving", None)
    if serving is None:
        serving = Serving(engine, "run")
        serving.open(0, serving.new_salt(0))
    return LiveSession(
        one,
        serving,
        encode=encode,
        decode=decode,
        sampling=more.pop("sampling", SamplingConfig()),
        **more,
    )


def task(
    *edits: tuple[int, SlotState], max_tokens: int = 20, template: str = "12345{{s}}6"
) -> Task:
    planned = tuple(ScheduledEdit(index, "s", state) for index, state in edits)
    return Task("t", template, {"s": A}, planned, max_tokens, widths={"s": 4})


def check(finished: Finished) -> None:
    """Whatever happened, the record is whole and consistent."""
    assert finished.problems == ()
    assert not audit(finished.trajectory)
    trajectory = finished.trajectory
    for k, one in enumerate(trajectory.passes):
        assert one.stop > one.start
        whole = trajectory.tokens(k).tolist()
        for i in range(trajectory.fed_length(k), len(whole)):
            assert whole[i] == 100 + i % 7, "a token was lost, doubled or misplaced"


def test_scheduled_edits_cost_no_token() -> None:
    engine = FakeEngine()
    finished = asyncio.run(make(engine, task((5, B), (12, A))).run())
    check(finished)
    assert [(p.start, p.stop, p.finish_reason) for p in finished.trajectory.passes] == [
        (0, 5, "edit"),
        (5, 12, "edit"),
        (12, 20, "length"),
    ]
    assert sum(len(r.token_ids) for r in engine.requests) == 20
    assert [r.max_tokens for r in engine.requests] == [5, 7, 8]
    assert [p.states for p in finished.trajectory.passes] == [
        {"s": "aaaa"},
        {"s": "BBBB"},
        {"s": "aaaa"},
    ]
    # A comes back: its pieces, its blocks.
    assert finished.trajectory.passes[0].layout == finished.trajectory.passes[2].layout
    assert finished.trajectory.passes[2].num_cached_tokens >= 8
    assert finished.trajectory.passes[2].reuse[0].origin == 0


def test_two_edits_at_one_index_make_one_pass() -> None:
    one = Task(
        "t",
        "{{a}}-{{b}}",
        {"a": C, "b": C},
        (ScheduledEdit(4, "a", D), ScheduledEdit(4, "b", D)),
        8,
    )
    finished = asyncio.run(make(FakeEngine(), one).run())
    check(finished)
    assert [p.states for p in finished.trajectory.passes] == [
        {"a": "cccc", "b": "cccc"},
        {"a": "dddd", "b": "dddd"},
    ]
    assert len(finished.trajectory.edits) == 2


@pytest.mark.parametrize("delay", [0, 3])
@pytest.mark.parametrize("turns", [0, 1, 2, 3, 4, 6, 9, 15, 18])
@pytest.mark.parametrize("watched", [False, True])
def test_a_surprise_edit_at_any_moment(turns: int, delay: int, watched: bool) -> None:
    """Before submission, while submitting, before the first token, between tokens."""
    engine = FakeEngine()
    engine.submit_delay = delay
    seen: list[int] = []
    live = make(engine, task(), on_tokens=seen.extend if watched else None)

    async def scenario() -> Finished:
        running = asyncio.create_task(live.run())
        for _ in range(turns):
            await asyncio.sleep(0)
        await live.edit("s", "cccc")
        return await running

    finished = asyncio.run(scenario())
    check(finished)
    trajectory = finished.trajectory
    assert len(trajectory.response) == 20
    (edit,) = trajectory.edits
    assert edit.requested_at <= edit.effective_at
    assert trajectory.passes[-1].states == {"s": "cccc"}
    assert all(p.states == {"s": "aaaa"} for p in trajectory.passes if p.stop <= edit.effective_at)
    if watched:
        assert seen == trajectory.response.tolist()
    # The aborted pass may have sampled more than was kept; nothing of it came through.
    assert finished.counts.generated_tokens == 20


def test_an_edit_after_the_end_is_refused() -> None:
    live = make(FakeEngine(), task())

    async def scenario() -> bool:
        await live.run()
        return await live.edit("s", "cccc")

    assert asyncio.run(scenario()) is False


@pytest.mark.parametrize("watched", [False, True])
@pytest.mark.parametrize("end", ["stop", "length", "edit"])
def test_an_edit_while_the_last_token_is_on_its_way(watched: bool, end: str) -> None:
    """The engine is done with the pass, and the session has not heard of it yet."""
    engine = FakeEngine(stop_token=7 if end == "stop" else -1)
    engine.end_delay = 2
    engine.next_token = lambda whole: 7 if len(whole) == 22 else 100 + len(whole) % 7
    edits = ((5, B),) if end == "edit" else ()
    live = make(engine, task(*edits), on_tokens=(lambda ids: None) if watched else None)

    async def scenario() -> tuple[bool, Finished]:
        running = asyncio.create_task(live.run())
        while not engine.requests or not engine.requests[0].finish:
            await asyncio.sleep(0)
        assert not running.done()
        return await live.edit("s", "cccc"), await running

    edited, finished = asyncio.run(scenario())
    texts = [edit.text for edit in finished.trajectory.edits]
    assert edited is (end == "edit")
    assert texts == (["BBBB", "cccc"] if end == "edit" else [])
    assert finished.trajectory.passes[-1].states == {"s": "cccc" if end == "edit" else "aaaa"}


def test_an_edit_that_leaves_no_room_is_refused() -> None:
    live = make(FakeEngine(max_model_len=20), task())

    async def scenario() -> bool:
        running = asyncio.create_task(live.run())
        for _ in range(9):
            await asyncio.sleep(0)
        edited = await live.edit("s", "c" * 12)
        await running
        return edited

    assert asyncio.run(scenario()) is False


def test_an_edit_of_an_unknown_slot_is_an_error() -> None:
    with pytest.raises(ValueError, match="no slot 'x'"):
        asyncio.run(make(FakeEngine(), task()).edit("x", "cccc"))


def test_stop_token_ends_the_response_and_drops_later_edits() -> None:
    engine = FakeEngine(stop_token=7)
    engine.next_token = lambda whole: 7 if len(whole) == 13 else 100 + len(whole) % 7
    finished = asyncio.run(make(engine, task((10, B))).run())
    (one,) = finished.trajectory.passes
    assert one.finish_reason == "stop"
    assert finished.trajectory.response.tolist()[-1] == 7
    assert finished.trajectory.edits == ()
    assert finished.counts.edits == 0


def test_limits_of_task_config_and_engine() -> None:
    def length(engine: FakeEngine, **more: Any) -> int:
        finished = asyncio.run(make(engine, task(), **more).run())
        assert finished.trajectory.passes[-1].finish_reason == "length"
        return len(finished.trajectory.response)

    assert length(FakeEngine()) == 20
    assert length(FakeEngine(), sampling=SamplingConfig(max_tokens=7)) == 7
    assert length(FakeEngine(max_model_len=15)) == 5


def test_a_prompt_that_fills_the_context_gives_an_empty_response() -> None:
    finished = asyncio.run(make(FakeEngine(max_model_len=10), task()).run())
    assert len(finished.trajectory.response) == 0
    assert finished.trajectory.passes == ()


@pytest.mark.parametrize("turns", range(0, 40, 3))
@pytest.mark.parametrize("delay", [0, 2])
def test_weights_in_the_middle_restart_the_pass(turns: int, delay: int) -> None:
    engine = FakeEngine()
    engine.submit_delay = delay
    serving = Serving(engine, "run")
    serving.open(0, serving.new_salt(0))
    sessions = [make(engine, task((6, B)), serving=serving) for _ in range(4)]

    async def scenario() -> list[Finished]:
        running = [asyncio.create_task(one.run()) for one in sessions]
        for _ in range(turns):
            await asyncio.sleep(0)
        await serving.close()
        quiet = [len(r.token_ids) for r in engine.requests]
        assert all(r.finish for r in engine.requests)
        for _ in range(5):
            await asyncio.sleep(0)
        assert quiet == [len(r.token_ids) for r in engine.requests], "the gate leaks"
        engine.label = "1"
        serving.open(1, serving.new_salt(1))
        return await asyncio.gather(*running)

    for finished in asyncio.run(scenario()):
        check(finished)
        assert len(finished.trajectory.response) == 20
        versions = finished.trajectory.versions().tolist()
        assert versions == sorted(versions)
        salted = 0
        for one in finished.trajectory.passes:
            (run,) = one.weight_versions
            if run.version == 1 and salted == 0:
                assert all(r.origin < 0 for r in one.reuse), "KV of old weights"
            salted = run.version
        (edit,) = finished.trajectory.edits
        assert edit.effective_at == 6


def test_an_edit_and_new_weights_at_once() -> None:
    engine = FakeEngine()
    serving = Serving(engine, "run")
    serving.open(0, serving.new_salt(0))
    live = make(engine, task(), serving=serving)

    async def scenario() -> Finished:
        running = asyncio.create_task(live.run())
        while not engine.requests or len(engine.requests[0].token_ids) < 4:
            await asyncio.sleep(0)
        await asyncio.gather(serving.close(), live.edit("s", "cccc"))
        engine.label = "1"
        serving.open(1, serving.new_salt(1))
        return await running

    finished = asyncio.run(scenario())
    check(finished)
    assert [p.states["s"] for p in finished.trajectory.passes] == ["aaaa", "cccc"]
    assert len(finished.trajectory.edits) == 1


def test_cancelling_a_session_aborts_its_request() -> None:
    engine = FakeEngine()
    serving = Serving(engine, "run")
    serving.open(0, serving.new_salt(0))

    async def scenario() -> None:
        running = asyncio.create_task(make(engine, task(), serving=serving).run())
        for _ in range(8):
            await asyncio.sleep(0)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        async with asyncio.timeout(1):
            assert await serving.close() == 0

    asyncio.run(scenario())


def test_an_engine_that_aborts_by_itself_is_an_error() -> None:
    engine = FakeEngine()

    def step(request: Any) -> None:
        request.finish = "abort"

    engine.on_step = step
    with pytest.raises(RuntimeError, match="aborted a pass by itself"):
        asyncio.run(make(engine, task()).run())


def test_interrupt_keeps_its_first_reason() -> None:
    async def scenario() -> str | None:
        interrupt = Interrupt()
        await interrupt.now("edit")
        await interrupt.now("weights")
        return interrupt.reason

    assert asyncio.run(scenario()) == "edit"


def test_scores_follow_the_states_and_leave_out_cut_words() -> None:
    engine = FakeEngine()
    text = "abc def GHI jkl MNO!"
    start = len("12345aaaa6")
    engine.next_token = lambda whole: ord(text[len(whole) - start])
    finished = asyncio.run(make(engine, task((9, B))).run())
    scores = [p.scores for p in finished.trajectory.passes]
    # "abc def " under lower: both hold; "GHI" is cut by the edit; under upper "jkl" fails.
    assert scores == [{"s": 1.0}, {"s": 0.5}]


# What is kept of the cache, and where slots stand.

LONG = "a prefix of words {{s}}then more text:"


def run(engine: FakeEngine, one: Task, **more: Any) -> Finished:
    finished = asyncio.run(make(engine, one, **more).run())
    check(finished)
    assert finished.counts.audit_mismatches == 0
    return finished


def test_a_sticky_edit_computes_the_slot_and_keeps_what_follows() -> None:
    engine = FakeEngine()
    finished = run(engine, task((20, B), (30, A), max_tokens=40, template=LONG), reuse="sticky")
    assert finished.trajectory.policy == "sticky"
    # 18 characters stand before the slot, 22 up to its end: blocks 4 and 5 hold it.
    assert [len(head.fed) for head in engine.heads] == [25, 25]
    first, second, third = finished.trajectory.passes
    # 37 were fed and 20 sampled: KV up to 56. Blocks 6 to 13 are kept, the rest is computed.
    assert second.reuse == (Reuse(0, 0, 16), Reuse(0, 24, 56))
    # Back in the first state its slot is found again; of pass 1, what it computed beyond is kept.
    assert third.reuse == (Reuse(0, 0, 56), Reuse(1, 56, 64))
    assert first.num_cached_tokens == 0
    assert engine.ended == [engine.requests[0].cache.session]


def test_foreign_blocks_that_go_stale_are_those_of_the_first_pass_that_held_them() -> None:
    engine = FakeEngine()
    serving = Serving(engine, "run")
    serving.open(0, serving.new_salt(0))
    asyncio.run(make(engine, task(max_tokens=1, template=LONG), serving=serving).run())
    one = task((6, B), max_tokens=12, template=LONG)
    finished = run(engine, one, reuse="sticky", serving=serving)
    first, second = finished.trajectory.passes
    assert first.reuse == (Reuse(OUTSIDE, 0, 36),)
    # Behind the edited slot they are not what this pass would have computed.
    assert second.reuse == (Reuse(OUTSIDE, 0, 16), Reuse(0, 24, 40))


def test_two_slots_edited_at_once_keep_what_stands_between_them() -> None:
    engine = FakeEngine()
    one = Task(
        "t",
        "0123{{a}}0123456789ab{{b}}0123",
        {"a": C, "b": C},
        (ScheduledEdit(8, "a", D), ScheduledEdit(8, "b", D)),
        12,
        widths={"a": 4, "b": 4},
    )
    finished = run(engine, one, reuse="sticky")
    assert [len(head.fed) for head in engine.heads] == [9, 25]
    assert finished.trajectory.passes[1].reuse == (
        Reuse(0, 0, 4),
        Reuse(0, 8, 20),
        Reuse(0, 24, 32),
    )


def test_sticky_states_are_filled_up_to_one_width() -> None:
    short = SlotState("ab")
    finished = run(FakeEngine(), task((5, short)), reuse="sticky")
    widths = {len(finished.trajectory.pieces[p.layout[1]]) for p in finished.trajectory.passes}
    assert widths == {4}
    assert decode(finished.trajectory.fed(1)[5:9]) == "ab  "


def test_a_state_longer_than_its_slot_is_refused_at_once() -> None:
    live = make(FakeEngine(), task(), reuse="sticky")
    with pytest.raises(ValueError, match=r"slot 's' is 4 tokens wide, but 'too long' has 8"):
        asyncio.run(live.edit("s", "too long"))
    assert asyncio.run(
        make(FakeEngine(), task(), reuse="sticky", slot_width=8).edit("s", "too long")
    )


@pytest.mark.parametrize("reuse", ["exact", "sticky"])
def test_late_slots_stand_behind_the_response(reuse: str) -> None:
    engine = FakeEngine()
    template = "some prefix\nstyle: {{s}}\nText:"
    finished = run(engine, task((8, B), template=template), reuse=reuse, placement="late")
    response = decode(finished.trajectory.response[:8])
    assert decode(finished.trajectory.fed(1)) == f"some prefix\nText:{response}\nstyle: BBBB\n"
    # The prefix and the response so far, as far as it was fed and not sampled behind the slot.
    assert finished.trajectory.passes[1].reuse == (Reuse(0, 0, 16),)


def test_starting_over_reads_nothing() -> None:
    finished = run(FakeEngine(), task((5, B), (12, A)), reuse="none")
    assert [p.num_cached_tokens for p in finished.trajectory.passes] == [0, 0, 0]


@pytest.mark.parametrize("reuse", ["exact", "sticky"])
@pytest.mark.parametrize("turns", range(0, 30, 2))
def test_a_surprise_edit_of_a_sticky_session_at_any_moment(reuse: str, turns: int) -> None:
    engine = FakeEngine()
    live = make(engine, task(max_tokens=30, template=LONG), reuse=reuse)

    async def scenario() -> Finished:
        running = asyncio.create_task(live.run())
        for text in ("BBBB", "cccc", "aaaa"):
            for _ in range(turns):
                await asyncio.sleep(0)
            await live.edit("s", text)
        return await running

    finished = asyncio.run(scenario())
    check(finished)
    assert len(finished.trajectory.response) == 30


def test_on_pass_gets_the_trajectory_so_far() -> None:
    seen: list[Trajectory] = []
    finished = run(
        FakeEngine(),
        task((20, B), max_tokens=30, template=LONG),
        reuse="sticky",
        on_tokens=lambda token_ids: None,
        on_pass=seen.append,
    )
    assert [[(p.start, p.stop, p.finish_reason) for p in one.passes] for one in seen] == [
        [(0, 0, "")],
        [(0, 20, "edit")],
        [(0, 20, "edit"), (20, 20, "")],
        [(0, 20, "edit"), (20, 30, "length")],
    ]
    begun, ended = seen[2:]
    assert [block.kind for block in blocks(begun, 1)] == [
        *["reused"] * 4,
        *["new"] * 2,
        *["kept"] * 8,
        "new",
    ]
    assert [block.kind for block in blocks(ended, 1)][:4] == ["reused"] * 4
    assert begun.passes[1].num_cached_tokens == ended.passes[1].num_cached_tokens == 48
    assert decode(begun.fed(1)).startswith("a prefix of words BBBBthen more")
    assert finished.trajectory.info["reuse"] == "sticky"
    # Nothing that was handed out earlier has changed, and the last one holds all but the verdicts.
    assert [len(one.response) for one in seen] == [0, 20, 20, 30]
    unscored = [
        msgspec.structs.replace(one, scores={}, earlier=msgspec.UNSET)
        for one in finished.trajectory.passes
    ]
    assert list(ended.passes) == unscored


def test_a_lie_of_the_cache_log_is_counted() -> None:
    engine = FakeEngine()
    serving = Serving(engine, "run")
    serving.open(0, serving.new_salt(0))
    engine.cache_log.lies["run/2"] = None
    finished = asyncio.run(make(engine, task((5, B)), serving=serving).run())
    assert finished.counts.audit_mismatches == 1
    assert "did not come" in finished.problems[0]


# Passes that go on under new weights.


@pytest.mark.parametrize("fails", [False, True])
def test_passes_that_continue_are_labelled_and_wait_for_the_verdict(fails: bool) -> None:
    engine = FakeEngine()
    serving = Serving(engine, "run", "continue")
    engine.label = serving.new_label(0)
    serving.open(0, serving.new_salt(0))
    live = make(engine, task((15, B)), serving=serving)

    async def scenario() -> Finished:
        running = asyncio.create_task(live.run())
        while not engine.requests or len(engine.requests[0].token_ids) < 5:
            await asyncio.sleep(0)
        assert await serving.close() == 0
        salt = serving.new_salt(1)
        engine.label = serving.new_label(1)
        while not engine.requests[0].finish:
            await asyncio.sleep(0)
        for _ in range(5):
            await asyncio.sleep(0)
        assert len(engine.requests) == 1, "it did not wait"
        if fails:
            await serving.reject()
            engine.label = serving.new_label(0)
            serving.open(0, serving.new_salt(0))
        else:
            serving.open(1, salt)
        return await running

    finished = asyncio.run(scenario())
    check(finished)
    first = finished.trajectory.passes[0]
    if fails:
        assert set(finished.trajectory.versions().tolist()) == {0}
        assert (first.finish_reason, first.stop < 15) == ("weights", True)
    else:
        assert [run.version for run in first.weight_versions] == [0, 1]
        assert first.finish_reason == "edit"


@pytest.mark.parametrize("turns", range(0, 24, 2))
@pytest.mark.parametrize("fails", [False, True])
def test_a_stream_never_takes_back_what_it_handed_over(fails: bool, turns: int) -> None:
    """Weights are on trial while it streams, from before its first token to after its last."""
    engine = FakeEngine()
    serving = Serving(engine, "run", "continue")
    engine.label = serving.new_label(0)
    serving.open(0, serving.new_salt(0))
    seen: list[int] = []
    live = make(engine, task((15, B)), serving=serving, on_tokens=seen.extend)

    async def scenario() -> Finished:
        running = asyncio.create_task(live.run())
        for _ in range(turns):
            await asyncio.sleep(0)
        await serving.close()
        salt = serving.new_salt(1)
        engine.label = serving.new_label(1)
        before = list(seen)
        for _ in range(7):
            await asyncio.sleep(0)
            assert seen == before, "tokens of weights that may be wrong"
        if fails:
            await serving.reject()
            engine.label = serving.new_label(0)
            serving.open(0, serving.new_salt(0))
        else:
            serving.open(1, salt)
        return await running

    finished = asyncio.run(scenario())
    check(finished)
    assert seen == finished.trajectory.response.tolist()
    assert len(seen) == 20
    if fails:
        assert set(finished.trajectory.versions().tolist()) == {0}


def test_a_session_that_fails_leaves_nothing_in_the_cache_log() -> None:
    engine = FakeEngine()

    def step(request: Any) -> None:
        if len(engine.requests) == 2:
            request.finish = "abort"

    engine.on_step = step
    with pytest.raises(RuntimeError, match="aborted a pass by itself"):
        asyncio.run(make(engine, task((5, B))).run())
    assert set(engine.cache_log.forgotten) == set(engine.cache_log.named)


def test_a_response_that_outlives_its_engine_is_unaudited() -> None:
    """The log of the engine that died is closed, and the new one never heard of the first pass."""
    first, second = FakeEngine(), FakeEngine()
    serving = Serving(first, "run")
    serving.open(0, serving.new_salt(0))

    def engine_changes(trajectory: Trajectory) -> None:
        if len(trajectory.passes) == 1 and trajectory.passes[0].stop:
            serving.engine = second

    one = make(first, task((5, B)), serving=serving, on_pass=engine_changes)
    finished = asyncio.run(one.run())
    assert len(finished.trajectory.passes) == 2
    assert "has died" in finished.unaudited
    assert not finished.problems
    for engine in (first, second):
        assert set(engine.named) <= set(engine.cache_log.forgotten), "nobody will ask again"
