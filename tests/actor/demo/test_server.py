"""The server: who may open the page and the socket, what a message may be, and catching up."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import msgspec
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.typing import Origin

from actor.demo.control import Control
from actor.demo.messages import MAX_MESSAGE_BYTES, Start
from actor.demo.server import PageServer
from dynatok_online.data.storage import read_trajectories
from dynatok_online.trajectory import Trajectory
from tests.actor.demo.backend import CONFIG, FakeBackend, SlowEngine, served

Scenario = Callable[[Control, PageServer], Awaitable[None]]
START = {
    "type": "start",
    "template": CONFIG.template,
    "slots": msgspec.to_builtins(CONFIG.slots),
    "max_tokens": 40,
}


def run(scenario: Scenario) -> None:
    async def all_of_it() -> None:
        async with asyncio.timeout(30), served(CONFIG, FakeBackend(SlowEngine(step=0.002))) as both:
            await scenario(*both)

    asyncio.run(all_of_it())


def token(server: PageServer) -> str:
    return server.address.partition("token=")[2]


def page(
    server: PageServer, *, origin: str | None = None, cookie: str | None = None, **more: Any
) -> Any:
    """A connection as the page makes it, unless told otherwise."""
    own = f"http://127.0.0.1:{server.port}"
    cookie = f"dynatok_{server.port}={token(server)}" if cookie is None else cookie
    return connect(
        f"ws://127.0.0.1:{server.port}/live",
        origin=Origin(own if origin is None else origin),
        additional_headers={"Cookie": cookie, **more},
        proxy=None,
    )


async def receive(socket: ClientConnection, kind: str) -> dict[str, Any]:
    while True:
        message: dict[str, Any] = json.loads(await socket.recv())
        if message["type"] == kind:
            return message


async def collect(socket: ClientConnection, stop: Callable[[dict[str, Any]], bool]) -> list[Any]:
    found = []
    while True:
        for event in (await receive(socket, "events"))["events"]:
            found.append(event)
            if stop(event):
                return found


def test_the_page_needs_this_starts_token_and_this_host():
    async def scenario(control: Control, server: PageServer) -> None:
        base = f"http://127.0.0.1:{server.port}"
        async with httpx.AsyncClient(base_url=base, trust_env=False) as client:
            for path in ("/", "/?token=wrong", "/page/main.js", "/session.html"):
                assert (await client.get(path)).status_code == 403, path
            evil = await client.get(f"/?token={token(server)}", headers={"Host": "evil.example"})
            assert evil.status_code == 403
            opened = await client.get(f"/?token={token(server)}")
            assert opened.status_code == 307
            assert "HttpOnly" in opened.headers["set-cookie"]
            page = await client.get("/")
            assert page.status_code == 200
            assert "default-src 'none'" in page.headers["content-security-policy"]
            assert (await client.get("/page/main.js")).status_code == 200
            for path in ("/page/..%2fserver.py", "/page/server.py", "/page/%2fetc%2fpasswd"):
                assert (await client.get(path)).status_code == 404, path
            assert (await client.get("/", headers={"Host": "evil.example"})).status_code == 403
            assert (await client.get("/session.html")).status_code == 404

    run(scenario)


def test_a_listed_name_is_let_in_and_an_unlisted_one_is_told_what_to_write():
    async def scenario(control: Control, server: PageServer) -> None:
        control.config = msgspec.structs.replace(CONFIG, hosts=("node7",))
        listed = PageServer(control, 0)
        serving = asyncio.create_task(listed.run())
        base = f"http://127.0.0.1:{listed.port}"
        opening = f"/?token={token(listed)}"
        async with httpx.AsyncClient(base_url=base, trust_env=False) as client:
            for host, code in (("node7:8080", 307), ("node8", 403), ("localhost:9000", 307)):
                got = await client.get(opening, headers={"Host": host})
                assert got.status_code == code, host
            refused = await client.get(opening, headers={"Host": "node8"})
            assert "--hosts '[\"node8\"]'" in refused.text
            # The page asks why its socket was refused: a browser does not say.
            cookie = {"Cookie": f"dynatok_{listed.port}={token(listed)}"}
            for origin, code in (("https://node7", 200), ("https://node8", 403)):
                got = await client.post("/live", headers={"Origin": origin, **cookie})
                assert (got.status_code, "node8" in got.text) == (code, code == 403)
        async with page(listed, origin="https://node7") as socket:
            await socket.send('{"type": "hello"}')
            await receive(socket, "welcome")
        listed.stop()
        await serving

    run(scenario)


def test_a_send_that_waits_for_the_learner_holds_up_nothing_else():
    async def scenario(control: Control, server: PageServer) -> None:
        room = asyncio.Event()
        backend = control.backend
        assert isinstance(backend, FakeBackend)

        async def send(trajectory: Trajectory) -> None:
            await room.wait()
            backend.sent.append(trajectory)

        backend.send = send  # type: ignore[method-assign]
        async with page(server) as socket:
            await socket.send('{"type": "hello"}')
            await socket.send(json.dumps(START | {"max_tokens": 5}))
            await collect(socket, lambda event: event["type"] == "ended")
            await socket.send('{"type": "send"}')
            await collect(socket, lambda event: event["type"] == "sending")
            first = control.session
            await socket.send(json.dumps(START | {"max_tokens": 5000}))
            await collect(socket, lambda event: event["type"] == "tokens")
            await socket.send('{"type": "pause", "paused": true}')
            await collect(socket, lambda event: event["type"] == "paused")
            edit = {"type": "edit", "slots": {"case": {"text": "UPPER CASE"}}}
            await socket.send(json.dumps(edit))
            await collect(socket, lambda event: event["type"] == "edit")
        assert not backend.sent
        room.set()
        assert first is not None
        while first.log[-1]["type"] != "sent":
            await asyncio.sleep(0.01)
        assert len(backend.sent) == 1

    run(scenario)


def test_the_server_listens_on_loopback_alone():
    async def scenario(control: Control, server: PageServer) -> None:
        assert server._socket.getsockname()[0] == "127.0.0.1"

    run(scenario)


@pytest.mark.parametrize(
    "wrong",
    [
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"cookie": "dynatok_1=wrong"},
        {"cookie": ""},
    ],
    ids=lambda wrong: json.dumps(wrong),
)
def test_the_socket_checks_origin_and_token(wrong):
    async def scenario(control: Control, server: PageServer) -> None:
        with pytest.raises(InvalidStatus) as refused:
            await page(server, **wrong)
        assert refused.value.response.status_code == 403

    run(scenario)


@pytest.mark.parametrize(
    ("message", "why"),
    [
        ("{", "JSON is malformed|truncated"),
        ('{"type": "shell", "command": "ls"}', "Invalid value 'shell'"),
        ('{"type": "stop", "more": 1}', "unknown field `more`"),
        (json.dumps(START | {"seed": -1}), "Expected `int` >= 0"),
        (json.dumps(START | {"lanes": ["exact"] * 5}), "length <= 4"),
        (json.dumps(START | {"template": "x" * 20_001}), "length <= 20000"),
        (json.dumps(START | {"temperature": 1e9}), "<= 10"),
        (json.dumps({"type": "edit", "slots": {"tone": {"text": "x"}}}), "press Start first"),
    ],
)
def test_a_message_that_is_wrong_is_refused_and_the_page_lives_on(message, why):
    async def scenario(control: Control, server: PageServer) -> None:
        async with page(server) as socket:
            await socket.send('{"type": "hello"}')
            await socket.send(message)
            refused = await receive(socket, "refused")
            assert re.search(why, refused["message"]), refused
            await socket.send(json.dumps(START))
            await receive(socket, "events")

    run(scenario)


def test_a_message_that_is_too_long_ends_the_connection_alone():
    async def scenario(control: Control, server: PageServer) -> None:
        async with page(server) as socket, page(server) as other:
            await socket.send('{"type": "hello"}')
            await other.send('{"type": "hello"}')
            await receive(other, "welcome")
            await socket.send("x" * (MAX_MESSAGE_BYTES + 1))
            await socket.wait_closed()
            assert socket.close_code == 1009
            await other.send(json.dumps(START))
            await receive(other, "events")

    run(scenario)


def test_two_tabs_and_a_lost_connection_see_every_event_once():
    async def scenario(control: Control, server: PageServer) -> None:
        async with page(server) as first:
            await first.send('{"type": "hello"}')
            await first.send(json.dumps(START))
            seen = await collect(first, lambda event: event["type"] == "tokens")
        # The connection is gone in the middle of a pass; the session goes on.
        assert control.session is not None
        name = control.session.name
        await asyncio.sleep(0.02)
        async with page(server) as again, page(server) as second:
            await again.send(json.dumps({"type": "hello", "session": name, "seq": seen[-1]["seq"]}))
            await second.send('{"type": "hello"}')
            ended = [
                collect(socket, lambda event: event["type"] == "ended")
                for socket in (again, second)
            ]
            rest, everything = await asyncio.gather(*ended)
            assert seen + rest == everything == control.session.log
        assert sum(len(e["ids"]) for e in everything if e["type"] == "tokens") == 40

    run(scenario)


def test_a_page_of_an_earlier_session_begins_anew():
    async def scenario(control: Control, server: PageServer) -> None:
        await control.handle(Start(CONFIG.template, dict(CONFIG.slots), max_tokens=5))
        async with page(server) as socket:
            await socket.send('{"type": "hello", "session": "demo-old", "seq": 900}')
            events = await collect(socket, lambda event: event["type"] == "ended")
            assert events[0]["type"] == "session"
            assert events[0]["seq"] == 1

    run(scenario)


def test_a_session_is_saved_as_page_and_trajectory(tmp_path):
    async def scenario(control: Control, server: PageServer) -> None:
        await control.handle(Start(CONFIG.template, dict(CONFIG.slots), max_tokens=20))
        assert control.session is not None
        while control.session.running:
            await asyncio.sleep(0.01)
        base = f"http://127.0.0.1:{server.port}"
        async with httpx.AsyncClient(
            base_url=base, follow_redirects=True, trust_env=False
        ) as client:
            await client.get(f"/?token={token(server)}")
            html = await client.get("/session.html")
            assert f"{control.session.name}.html" in html.headers["content-disposition"]
            assert "http://" not in html.text.replace("http-equiv", "")
            lines = await client.get("/trajectories.jsonl")
        path = tmp_path / "session.jsonl"
        path.write_bytes(lines.content)
        (stored,) = read_trajectories(path)
        assert stored.response.tolist() == control.session.trajectories[0].response.tolist()
        assert stored.info["model"] == "tiny"

    run(scenario)


def test_a_page_that_says_nothing_is_let_go(monkeypatch):
    monkeypatch.setattr("actor.demo.server.HELLO_TIMEOUT", 0.05)

    async def scenario(control: Control, server: PageServer) -> None:
        async with page(server) as socket:
            with contextlib.suppress(ConnectionClosed):
                await socket.recv()
            assert socket.close_code == 1008

    run(scenario)
