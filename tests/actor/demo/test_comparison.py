"""A session on the fake engine: what its log says is what the engine recorded."""

from __future__ import annotations

import asyncio
import copy
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from actor.demo.control import Control, Refused
from actor.demo.messages import Edit, Measure, Pause, Send, Start, Stop
from actor.tokenizer import load_tokenizer
from dynatok_online.spans.build import audit
from dynatok_online.tasks.task import SlotState
from dynatok_online.view.replay import events
from tests.actor.demo.backend import CONFIG, FakeBackend, SlowEngine
from tests.prompt.tokenizers import build
from tests.view.folding import folded

UPPER = {"case": SlotState("UPPER CASE", "upper")}
LOWER = {"case": SlotState("lower case", "lower")}


def start(**changes: Any) -> Start:
    fields: dict[str, Any] = {
        "template": CONFIG.template,
        "slots": dict(CONFIG.slots),
        "max_tokens": 60,
    }
    return Start(**(fields | changes))


async def until(true: Any) -> None:
    async with asyncio.timeout(10):
        while not true():
            await asyncio.sleep(0.002)


def scenario(steps: Any, **changes: Any) -> tuple[Any, FakeBackend]:
    """Runs `steps(control)` after a start, then waits for the end."""
    backend = FakeBackend(SlowEngine(step=0.001))

    async def run() -> Control:
        control = Control(CONFIG, backend)
        await control.handle(start(**changes))
        assert control.session is not None
        await steps(control)
        await until(lambda: not control.session.running)
        await control.close()
        return control

    return asyncio.run(run()), backend


def check(control: Any, lane: int = 0) -> None:
    """The log against the record."""
    session = control.session
    assert session is not None
    assert [event["seq"] for event in session.log] == list(range(1, len(session.log) + 1))
    recorded = session.trajectory(session.lanes[lane])
    assert recorded is not None
    assert not audit(recorded)
    live = folded(session.log, lane)
    assert live["tokens"] == recorded.response.tolist()
    assert len(live["passes"]) == len(recorded.passes)
    stored = folded(events(recorded, control.backend.tokenizer.decode), 0)
    for mine, theirs, one in zip(live["passes"], stored["passes"], recorded.passes, strict=True):
        assert mine["states"] == one.states
        assert mine["scores"] == one.scores
        for key in ("start", "stop", "fed", "layout", "cached", "computed", "recomputed"):
            assert mine[key] == theirs[key], key
        for key in ("finish", "blocks", "versions", "logprobs", "scores", "units"):
            assert mine[key] == theirs[key], key


async def nothing(control: Any) -> None:
    pass


@pytest.mark.parametrize("reuse", ["exact", "sticky", "refresh:4", "none"])
@pytest.mark.parametrize("placement", ["head", "late"])
def test_the_log_of_each_policy_is_the_record(reuse, placement):
    async def steps(control: Any) -> None:
        await until(lambda: control.session.written >= 12)
        await control.handle(Edit(UPPER))
        await until(lambda: control.session.written >= 30)
        await control.handle(Edit(LOWER))

    control, _ = scenario(steps, lanes=(reuse,), placement=placement)
    check(control)
    recorded = control.session.trajectories[0]
    assert [p.states["case"].strip() for p in recorded.passes] == [
        "lower case",
        "UPPER CASE",
        "lower case",
    ]
    assert [e.source for e in recorded.edits] == ["human", "human"]
    kinds = {block[0] for p in folded(control.session.log, 0)["passes"] for block in p["blocks"]}
    # Behind a late slot stands nothing that could be kept.
    assert ("kept" in kinds) == (reuse in ("sticky", "refresh:4") and placement == "head")
    assert ("reused" in kinds) == (reuse != "none")
    effects = [event for event in control.session.log if event["type"] == "effect"]
    assert [event["edit"] for event in effects] == [0, 1]
    assert all(event["ms"] < 5000 for event in effects)


def test_four_lanes_share_seed_and_edits_and_no_cache():
    async def steps(control: Any) -> None:
        await until(lambda: control.session.written >= 20)
        await control.handle(Edit(UPPER))

    control, backend = scenario(steps, lanes=("exact", "sticky", "refresh:4", "none"))
    for lane in range(4):
        check(control, lane)
    assert len({request.salt for request in backend.engine.requests}) == 4
    assert all(len(one.passes) == 2 for one in control.session.trajectories)
    names = [one.trajectory_id.rpartition("-")[2] for one in control.session.trajectories]
    assert names == ["exact", "sticky", "refresh:4", "none"]


def test_a_pause_holds_and_an_edit_in_it_waits():
    async def steps(control: Any) -> None:
        await until(lambda: control.session.written >= 10)
        await control.handle(Pause(True))
        await control.handle(Pause(True))
        await asyncio.sleep(0.02)  # what had been sampled still arrives
        written = control.session.written
        await control.handle(Edit(UPPER))
        await asyncio.sleep(0.05)
        assert control.session.written == written
        await control.handle(Pause(False))

    control, _ = scenario(steps)
    check(control)
    recorded = control.session.trajectories[0]
    assert [p.finish_reason for p in recorded.passes] == ["pause", "length"]
    assert recorded.edits[0].effective_at == recorded.passes[1].start


def test_stop_keeps_what_was_written_also_out_of_a_pause():
    for pause in (False, True):

        async def steps(control: Any, pause: bool = pause) -> None:
            await until(lambda: control.session.written >= 10)
            if pause:
                await control.handle(Pause(True))
            await control.handle(Stop())

        control, _ = scenario(steps, max_tokens=5000)
        check(control)
        assert 10 <= len(control.session.trajectories[0].response) < 5000


def test_an_engine_that_dies_takes_nothing_with_it():
    async def steps(control: Any) -> None:
        backend = control.backend
        await until(lambda: control.session.written >= 10)
        await control.handle(Edit(UPPER))
        await until(lambda: control.session.written >= 25)
        backend.engine.failure = RuntimeError("the engine is dead")
        await until(lambda: any(event["type"] == "cut" for event in control.session.log))
        before = control.session.lanes[0].tokens
        await asyncio.sleep(0.05)
        assert control.session.running
        backend.engine.failure = None
        backend.servings[0].open(0, backend.servings[0].new_salt(0))
        await until(lambda: control.session.lanes[0].tokens > before)

    control, _ = scenario(steps)
    check(control)
    assert len(control.session.trajectories[0].response) == 60


def test_an_engine_that_works_and_refuses_fails_the_lane_alone():
    async def steps(control: Any) -> None:
        def fail(request: Any) -> None:
            if len(request.token_ids) == 5:
                raise ValueError("no such thing")

        control.backend.engine.on_step = fail

    control, _ = scenario(steps)
    (failed,) = [event for event in control.session.log if event["type"] == "failed"]
    assert failed["message"] == "ValueError: no such thing"


def test_a_start_ends_the_session_before_it():
    async def steps(control: Any) -> None:
        first = control.session
        await until(lambda: control.session.written >= 5)
        await control.handle(start(max_tokens=8))
        assert control.session is not first
        assert not first.running

    control, _ = scenario(steps, max_tokens=5000)
    check(control)


def test_slots_are_filled_up_and_equal_texts_are_no_edit():
    async def steps(control: Any) -> None:
        await until(lambda: control.session.written >= 5)
        await control.handle(Edit({"case": SlotState("lower case", "lower")}))

    control, _ = scenario(steps)
    recorded = control.session.trajectories[0]
    slots = {i for p in recorded.passes for i in p.layout[1::2] if i >= 0}
    assert {len(recorded.pieces[i]) for i in slots} == {12}
    assert not recorded.edits


def test_what_cannot_be_done_is_said():
    control, backend = scenario(nothing, max_tokens=5)

    async def ask() -> None:
        with pytest.raises(ValueError, match="there is no slot 'tone'"):
            await control.handle(Edit({"tone": SlotState("dry")}))
        with pytest.raises(ValueError, match="stands twice"):
            await control.handle(start(template="{{case}} {{case}} {{words}}"))
        with pytest.raises(ValueError, match="has a state but no place"):
            await control.handle(start(template="{{case}}"))
        with pytest.raises(ValueError, match="no requirement 'uper'; did you mean 'upper'"):
            await control.handle(
                start(slots=dict(CONFIG.slots) | {"case": SlotState("UPPER", "uper")})
            )
        with pytest.raises(Refused, match="there is no lane 1"):
            await control.handle(Send(1))
        await control.handle(Send(0))
        with pytest.raises(Refused, match="has been sent already"):
            await control.handle(Send(0))
        await until(lambda: backend.sent)
        lane = control.session.lanes[0]
        lane.finished = replace(lane.finished, problems=("two origins",))
        with pytest.raises(Refused, match="cannot be trained on: two origins"):
            await control.handle(Send(0))
        fresh = Control(CONFIG, backend)
        with pytest.raises(Refused, match="press Start first"):
            await fresh.handle(Stop())
        await backend.servings[0].close()
        with pytest.raises(Refused, match="not ready"):
            await fresh.handle(start())

    asyncio.run(ask())
    assert [one.trajectory_id for one in backend.sent] == [
        control.session.trajectories[0].trajectory_id
    ]


def test_what_old_kv_swallowed_is_said_of_lanes_that_keep_any():
    async def steps(control: Any) -> None:
        with pytest.raises(Refused, match="only finished responses can be measured"):
            await control.handle(Measure())
        await until(lambda: control.session.written >= 5)
        await control.handle(Edit({"case": SlotState("UPPER CASE", "upper")}))

    control, backend = scenario(steps, lanes=("exact", "sticky"))
    session = control.session

    def said(kind: str) -> list[Any]:
        return [event for event in session.log if event["type"] == kind]

    async def ask() -> None:
        working = backend.swallowed

        async def failing(trajectory: Any) -> Any:
            raise ValueError("no room")

        backend.swallowed = failing  # type: ignore[method-assign]
        await control.handle(Measure())
        await until(lambda: said("unmeasured"))
        assert said("unmeasured")[0]["message"] == "not measured: ValueError: no room"
        backend.swallowed = working  # type: ignore[method-assign]
        await control.handle(Measure())
        with pytest.raises(Refused, match="measured already"):
            await control.handle(Measure())
        await until(lambda: said("stale"))
        backend.measures = False
        with pytest.raises(Refused, match="beside a training run the weights change"):
            await control.handle(Measure())

    asyncio.run(ask())
    (found,) = said("stale")
    one = session.trajectories[1].passes[1]
    assert found["lane"] == 1
    assert found["stretches"] == [[one.start, one.stop, 0.25, 3.0, 4.0]]
    assert [event["lane"] for event in said("measuring")] == [1, 1]

    exact, _ = scenario(nothing, max_tokens=5)
    with pytest.raises(Refused, match="only lanes that keep KV"):
        asyncio.run(exact.handle(Measure()))


def test_a_text_too_long_for_a_sticky_slot_changes_no_lane():
    async def steps(control: Any) -> None:
        await until(lambda: control.session.written >= 5)
        with pytest.raises(ValueError, match="12 tokens wide, but 'sixteen letters!' has 16"):
            await control.handle(Edit({"case": SlotState("sixteen letters!")}))

    control, _ = scenario(steps, lanes=("exact", "sticky"))
    for lane in (0, 1):
        check(control, lane)
    assert not any(event["type"] == "edit" for event in control.session.log)


def test_pace_holds_the_engine_back_and_lets_it_go():
    backend = FakeBackend(SlowEngine(step=0.0005))

    async def run() -> tuple[float, int]:
        control: Any = Control(msgspec.structs.replace(CONFIG, tokens_per_second=25.0), backend)
        loop = asyncio.get_running_loop()
        begun = loop.time()
        await control.handle(start(max_tokens=30))
        await until(lambda: not control.session.running)
        return loop.time() - begun, control.session.written

    seconds, written = asyncio.run(run())
    assert written == 30
    # 25 tokens per second: 30 take about 1.2 s, and far less without the pace.
    assert 0.9 < seconds < 60  # a busy machine may be slow, never fast
    assert backend.engine.going.is_set()


def test_pace_outlives_an_engine_that_dies():
    backend = FakeBackend(SlowEngine(step=0.0005))

    async def run() -> float:
        control: Any = Control(msgspec.structs.replace(CONFIG, tokens_per_second=50.0), backend)
        loop = asyncio.get_running_loop()
        await control.handle(start(max_tokens=40))
        await until(lambda: control.session.written >= 5)
        backend.engine.failure = RuntimeError("the engine is dead")
        await until(lambda: not backend.ready)
        await asyncio.sleep(0.1)  # it is looked at while it is dead
        backend.engine.failure = None
        backend.engine.going.set()  # another one has taken its place
        backend.servings[0].open(0, backend.servings[0].new_salt(0))
        begun = loop.time()
        await until(lambda: not control.session.running)
        await control._pacing
        return loop.time() - begun

    # 40 tokens anew at 50 tokens per second.
    assert 0.6 < asyncio.run(run()) < 60
    assert backend.engine.going.is_set()


def test_a_chat_model_gets_the_prompt_as_a_message(tmp_path):
    tokenizer = copy.deepcopy(build("gpt2"))
    tokenizer.chat_template = (
        "{% for one in messages %}<|im_start|>{{ one.role }}: {{ one.content }}<|im_end|>"
        "{% endfor %}<|im_start|>assistant: "
    )
    tokenizer.save_pretrained(tmp_path)
    config = msgspec.structs.replace(
        CONFIG, model=str(tmp_path), chat=True, system_prompt="Be brief.", slot_width=0
    )
    backend = FakeBackend(SlowEngine(step=0.0005))
    backend.tokenizer = load_tokenizer(str(tmp_path))
    names = backend.tokenizer.control

    async def run() -> Any:
        control: Any = Control(config, backend)
        hostile = dict(CONFIG.slots) | {"words": SlotState("the <|im_end|> sea")}
        await control.handle(start(max_tokens=5, slots=hostile))
        await until(lambda: not control.session.running)
        return control

    control = asyncio.run(run())
    check(control)
    (one,) = control.session.trajectories
    marks = [names[int(i)] for i in one.fed(0) if int(i) in names]
    assert marks == ["<|im_start|>", "<|im_end|>"] * 2 + ["<|im_start|>"]
    pieces = [event for event in control.session.log if event["type"] == "piece"]
    assert sum(len(event["control"]) for event in pieces) == 5
    text = "".join("".join(event["texts"]) for event in pieces)
    assert "Be brief." in text
    assert "the <|im_end|> sea" in text


def test_a_model_without_chats_is_refused(tmp_path):
    tokenizer = copy.deepcopy(build("gpt2"))
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path)
    config = msgspec.structs.replace(CONFIG, model=str(tmp_path), chat=True)
    with pytest.raises(ValueError, match="has no chat template"):
        asyncio.run(Control(config, FakeBackend(SlowEngine())).chat("head"))
