"""The page's server: loopback, this start's token, known names, messages of bounded size.

Whoever opens the printed address gets a cookie; without it there is neither page nor socket. The
name by which the browser asks is checked too (`names`), so no other site that it has open can
reach the page. All addresses are relative: a proxy may put a path before them.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import json
import secrets
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import HTTPConnection, Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from actor.demo import names
from actor.demo.control import Control
from actor.demo.messages import MAX_MESSAGE_BYTES, Hello, decode
from dynatok_online.view import export

PAGE = Path(__file__).parent / "page"
"""What only the live page is made of."""
HELLO_TIMEOUT = 10.0
"""Seconds for a page's first message."""
BATCH = 400
"""Events in one frame, at most."""


class PageServer:
    """Serves one control on one loopback port."""

    def __init__(self, control: Control, port: int, token: str = "") -> None:
        """Binds the port. Raises ValueError where it is taken."""
        self._control = control
        self._token = token or secrets.token_urlsafe(24)
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self._socket.bind(("127.0.0.1", port))
        except OSError as error:
            raise ValueError(
                f"port {port} cannot be used ({error.strerror}); write --port 0 for a free one"
            ) from error
        self._socket.listen()  # whoever comes before `run` waits for it
        self.port: int = self._socket.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}/?token={self._token}"
        self._hosts = control.config.hosts
        self._cookie = f"dynatok_{self.port}"  # cookies do not tell ports apart
        self._files = export.page_files() | export.page_files(PAGE)
        self._headers = {
            "Content-Security-Policy": _policy(self._files["index.html"].decode()),
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cache-Control": "no-store",
        }
        self.app = Starlette(
            routes=[
                Route("/", self._index),
                Route("/page/{name}", self._file),
                Route("/session.html", self._session_html),
                Route("/trajectories.jsonl", self._trajectories),
                WebSocketRoute("/live", self._live),
                Route("/live", self._connectable, methods=["POST"]),
            ]
        )
        self._server = Server(
            uvicorn.Config(
                self.app,
                log_level="warning",
                access_log=False,
                lifespan="off",
                ws_max_size=MAX_MESSAGE_BYTES,
                timeout_graceful_shutdown=1,
            )
        )

    async def run(self) -> None:
        """Serve until `stop`."""
        await self._server.serve(sockets=[self._socket])

    def stop(self) -> None:
        """End `run`."""
        self._server.should_exit = True

    def _why_not(self, connection: HTTPConnection) -> str:
        """Why this browser gets nothing; empty: it may have all."""
        given = connection.query_params.get("token") or connection.cookies.get(self._cookie, "")
        if not hmac.compare_digest(given.encode(), self._token.encode()):
            return "Open the address that dynatok demo printed: it holds this start's token."
        return names.unknown_host(connection.headers, self._hosts)

    def _why_no_socket(self, connection: HTTPConnection) -> str:
        return self._why_not(connection) or names.unknown_origin(connection.headers, self._hosts)

    async def _index(self, request: Request) -> Response:
        if why := self._why_not(request):
            return PlainTextResponse(why, status_code=403)
        if "token" in request.query_params:
            # The fragment, which holds prompt and settings, stays with the browser.
            response = RedirectResponse("./", headers=self._headers)
            # Without a path it is for this page's alone, also behind a proxy that serves others.
            response.set_cookie(self._cookie, self._token, httponly=True, samesite="lax", path=None)
            return response
        return Response(self._files["index.html"], media_type="text/html", headers=self._headers)

    async def _connectable(self, request: Request) -> Response:
        """What a browser asks that gets no socket: it cannot see why a socket was refused."""
        why = self._why_no_socket(request)
        return PlainTextResponse(why, status_code=403 if why else 200, headers=self._headers)

    async def _file(self, request: Request) -> Response:
        name = request.path_params["name"]
        if why := self._why_not(request):
            return PlainTextResponse(why, status_code=403)
        if name not in self._files:
            return PlainTextResponse("no such file", status_code=404)
        kind = {"js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}
        media = kind.get(Path(name).suffix[1:], "text/html")
        return Response(self._files[name], media_type=media, headers=self._headers)

    async def _session_html(self, request: Request) -> Response:
        if why := self._why_not(request):
            return PlainTextResponse(why, status_code=403)
        session = self._control.session
        if session is None:
            return PlainTextResponse("nothing has been written yet", status_code=404)
        page = export.page([(session.name, session.log)])
        return self._download(page, "text/html", f"{session.name}.html")

    async def _trajectories(self, request: Request) -> Response:
        if why := self._why_not(request):
            return PlainTextResponse(why, status_code=403)
        session = self._control.session
        if session is None or not session.trajectories:
            return PlainTextResponse("no response has ended yet", status_code=404)
        lines = export.trajectory_lines(session.trajectories)
        return self._download(lines, "application/jsonl", f"{session.name}.jsonl")

    def _download(self, body: bytes, media: str, name: str) -> Response:
        disposition = {"Content-Disposition": f'attachment; filename="{name}"'}
        return Response(body, media_type=media, headers=self._headers | disposition)

    async def _live(self, page: WebSocket) -> None:
        if self._why_no_socket(page):
            await page.close(1008)  # before accepting: the browser gets a plain 403
            return
        await page.accept()
        try:
            async with asyncio.timeout(HELLO_TIMEOUT):
                hello = decode(await page.receive_text())
            if not isinstance(hello, Hello):
                raise ValueError("the first message is `hello`")
            async with _together(self._send(page, hello)):
                await self._receive(page)
        except WebSocketDisconnect:
            pass
        except (ValueError, TimeoutError) as error:
            with contextlib.suppress(RuntimeError, WebSocketDisconnect):
                await page.close(1008, reason=str(error)[:120])

    async def _receive(self, page: WebSocket) -> None:
        known = self._control.config.named_requirements()
        while True:
            text = await page.receive_text()
            try:
                await self._control.handle(decode(text, known))
            except Exception as error:
                # Whatever went wrong (an engine that dies, say), the page stays.
                named = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
                await page.send_text(_json({"type": "refused", "message": f"{named}{error}"}))

    async def _send(self, page: WebSocket, hello: Hello) -> None:
        """Sends what is new, as fast as this page takes it."""
        control = self._control
        name, seq = hello.session, hello.seq
        await page.send_text(_json(control.welcome()))
        status: dict[str, Any] = {}
        while True:
            news = control.news
            if status != (status := control.status()):
                await page.send_text(_json(status))
            session = control.session
            if session is not None:
                if name != session.name or seq > len(session.log):
                    name, seq = session.name, 0
                if events := session.log[seq : seq + BATCH]:
                    seq += len(events)
                    await page.send_text(_json({"type": "events", "events": events}))
                    continue
            await news.wait()


class Server(uvicorn.Server):
    """Leaves the signals to the process that it runs in."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@contextlib.asynccontextmanager
async def _together(other: Any) -> AsyncIterator[None]:
    """Runs `other` beside the body, and not longer."""
    task = asyncio.ensure_future(other)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})
        if not task.cancelled():
            task.exception()  # the page has gone: whoever receives from it says so


def _json(value: dict[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _policy(index: str) -> str:
    """Only our own files, and the one inline script of the page (its import map)."""
    script = index.split('<script type="importmap">')[1].split("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        f"default-src 'none'; script-src 'self' 'sha256-{digest}'; style-src 'self'; "
        "connect-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )
