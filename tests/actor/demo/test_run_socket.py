"""The door of a running actor: in, a page, out; the same page from the actor that comes next."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import stat
from pathlib import Path

import httpx
import msgspec

from actor.demo import attach
from actor.demo.control import Control
from actor.demo.messages import Send, Start
from actor.demo.run_socket import SUFFIX, Answer, RunBackend, Visit, connect, run_socket
from actor.demo.server import PageServer
from actor.sessions.serving import Serving
from dynatok_online.trajectory import Trajectory
from tests.actor.demo.backend import CONFIG, FakeBackend, SlowEngine
from tests.actor.demo.test_comparison import check

VISIT = Visit(msgspec.structs.replace(CONFIG, port=0), "secret-token")


async def knock(path, line):
    reader, writer = await connect(path)
    writer.write(line + b"\n")
    answer = msgspec.json.decode(await asyncio.wait_for(reader.readline(), 5), type=Answer)
    return answer, reader, writer


async def nothing(trajectory: Trajectory) -> None:
    pass


def answering(folder, backend: FakeBackend):
    return run_socket(folder, "actor", "tiny", backend.servings[0], backend.tokenizer, nothing)


def test_a_visitor_gets_a_page_and_takes_it_along(tmp_path):
    folder = tmp_path / ("deep" * 30)  # longer than a socket's name may be
    folder.mkdir()

    async def scenario() -> None:
        async with answering(folder, FakeBackend(SlowEngine())):
            path = folder / f"actor{SUFFIX}"
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            answer, _, writer = await knock(path, msgspec.json.encode(VISIT))
            assert answer.address.endswith("/?token=secret-token")
            async with httpx.AsyncClient(follow_redirects=True, trust_env=False) as client:
                assert (await client.get(answer.address)).status_code == 200
                writer.close()
                async with asyncio.timeout(20):
                    with contextlib.suppress(httpx.TransportError):
                        while True:  # until the page is taken down
                            await client.get(answer.address)
                            await asyncio.sleep(0.02)
        assert not path.exists()

    asyncio.run(scenario())


def without_sockets(monkeypatch, *folders):
    """No unix socket can be made in these folders, as on some network file systems."""
    start = asyncio.start_unix_server

    async def refused(come_in, path, **settings):
        where = Path(path).parent.resolve()
        if not folders or where in folders:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        return await start(come_in, path, **settings)

    monkeypatch.setattr(asyncio, "start_unix_server", refused)


def test_a_run_folder_without_sockets_has_its_socket_elsewhere(tmp_path, monkeypatch):
    without_sockets(monkeypatch, tmp_path)

    async def scenario() -> Path:
        path = tmp_path / f"actor{SUFFIX}"
        async with answering(tmp_path, FakeBackend(SlowEngine())):
            there = Path(path.read_text().strip())
            assert stat.S_IMODE(there.stat().st_mode) == 0o600
            answer, *_ = await knock(path, msgspec.json.encode(VISIT))
            assert answer.address.endswith("/?token=secret-token")
        assert not path.exists()
        return there

    assert not asyncio.run(scenario()).parent.exists()


def test_a_machine_without_sockets_runs_on_without_a_page(tmp_path, monkeypatch, capsys):
    without_sockets(monkeypatch)

    async def scenario() -> str:
        async with answering(tmp_path, FakeBackend(SlowEngine())):
            return "trained"

    assert asyncio.run(scenario()) == "trained"
    (line,) = capsys.readouterr().err.splitlines()
    assert "no page can be opened beside this run" in line
    assert not list(tmp_path.iterdir())


def test_what_is_wrong_is_answered(tmp_path):
    async def scenario() -> None:
        async with answering(tmp_path, FakeBackend(SlowEngine())):
            path = tmp_path / f"actor{SUFFIX}"
            answer, *_ = await knock(path, b'{"config": 3}')
            assert "Expected `object`" in answer.error
            first, _, writer = await knock(path, msgspec.json.encode(VISIT))
            port = int(first.address.split(":")[2].split("/")[0])
            taken = Visit(msgspec.structs.replace(CONFIG, port=port), "other")
            answer, *_ = await knock(path, msgspec.json.encode(taken))
            assert f"port {port} cannot be used" in answer.error
            writer.close()

    asyncio.run(scenario())


def test_an_actor_that_says_nothing_is_given_up(tmp_path, monkeypatch, capsys):
    (tmp_path / "actor.yaml").write_text("model: tiny\n")
    monkeypatch.setattr(attach, "PATIENCE", 0.1)

    async def scenario() -> int:
        async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read()

        async with await asyncio.start_unix_server(silent, tmp_path / f"actor{SUFFIX}"):
            return await attach._attach(VISIT.config, tmp_path)

    assert asyncio.run(scenario()) == 2
    assert "the actor has not answered" in capsys.readouterr().err


def test_a_page_that_fails_is_said_and_the_actor_lives_on(tmp_path, monkeypatch, capsys):
    async def broken(self: PageServer) -> None:
        raise RuntimeError("no more files")

    monkeypatch.setattr(PageServer, "run", broken)

    async def scenario() -> None:
        async with answering(tmp_path, FakeBackend(SlowEngine())):
            _, reader, _ = await knock(tmp_path / f"actor{SUFFIX}", msgspec.json.encode(VISIT))
            assert await asyncio.wait_for(reader.read(), 5) == b""

    asyncio.run(scenario())
    assert "has failed (RuntimeError: no more files)" in capsys.readouterr().err


def test_sessions_beside_a_run_follow_its_weights_and_reach_the_learner():
    engine = SlowEngine(step=0.001)
    engine.label = "3"
    serving = Serving(engine, "run")
    serving.open(3, serving.new_salt(3))
    sent: list[Trajectory] = []

    async def send(trajectory: Trajectory) -> None:
        sent.append(trajectory)

    async def scenario() -> None:
        control = Control(CONFIG, RunBackend(serving, FakeBackend(engine).tokenizer, send))
        await control.handle(Start(CONFIG.template, dict(CONFIG.slots), max_tokens=40))
        session = control.session
        assert session is not None
        while session.written < 10:
            await asyncio.sleep(0.002)
        await serving.close()
        engine.label = "4"
        serving.open(4, serving.new_salt(4))
        while session.running:
            await asyncio.sleep(0.002)
        assert control.status()["version"] == 4
        assert not control.status()["paced"]
        await control.handle(Send(0))

    asyncio.run(scenario())
    (one,) = sent
    assert [run.version for p in one.passes for run in p.weight_versions] == [3, 4]
    assert [p.finish_reason for p in one.passes] == ["weights", "length"]


def test_what_rejected_weights_sampled_is_never_shown_and_the_lane_goes_on():
    engine = SlowEngine(step=0.001)
    serving = Serving(engine, "run", "continue")

    def opened(version: int) -> None:
        engine.label = serving.new_label(version)
        serving.open(version, serving.new_salt(version))

    opened(3)

    async def scenario() -> Control:
        control = Control(CONFIG, RunBackend(serving, FakeBackend(engine).tokenizer, nothing))
        await control.handle(Start(CONFIG.template, dict(CONFIG.slots), max_tokens=60))
        session = control.session
        assert session is not None
        while session.written < 10:
            await asyncio.sleep(0.002)
        await serving.close()
        engine.label = serving.new_label(4)
        on_trial = session.written
        while len(engine.requests[0].token_ids) < on_trial + 10:
            await asyncio.sleep(0.002)
        assert session.written == on_trial
        await serving.reject()
        opened(3)
        while session.running:
            await asyncio.sleep(0.002)
        return control

    control = asyncio.run(scenario())
    check(control)
    assert control.session is not None
    log = control.session.log
    assert not [event for event in log if event["type"] == "cut"]
    (one,) = control.session.trajectories
    assert [p.finish_reason for p in one.passes] == ["weights", "length"]
    assert {run.version for p in one.passes for run in p.weight_versions} == {3}


def test_the_page_stays_when_the_actor_is_started_again(tmp_path, capsys):
    (tmp_path / "actor.yaml").write_text("model: tiny\n")

    async def scenario() -> None:
        async with answering(tmp_path, FakeBackend(SlowEngine())):
            visiting = asyncio.create_task(attach._attach(VISIT.config, tmp_path))
            visiting_address = ""
            while not visiting_address:
                await asyncio.sleep(0.01)
                visiting_address = capsys.readouterr().out.rpartition(" ")[2].strip()
        async with (
            answering(tmp_path, FakeBackend(SlowEngine())),
            httpx.AsyncClient(follow_redirects=True, trust_env=False) as client,
        ):
            async with asyncio.timeout(20):
                while True:  # until the page is there again
                    with contextlib.suppress(httpx.TransportError):
                        assert (await client.get(visiting_address)).status_code == 200
                        break
                    await asyncio.sleep(0.05)
        (tmp_path / "result.json").write_text("{}")
        assert await asyncio.wait_for(visiting, 10) == 0

    asyncio.run(scenario())
