"""Limits of requests: their number, the size of their bodies, and the time that these may take."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import anyio
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

_DRAINED = 4  # a body is read to its end if it is up to this many times too large
_DRAIN_SECONDS = 5.0


class Guard:
    """ASGI middleware that rejects requests with a body beyond its limits.

    Requests are rejected before their body is read, if possible. As much of a rejected body as is
    reasonable is still received: otherwise, clients that are sending see a broken connection
    instead of the answer.

    Args:
        app: The application.
        max_body: Maximum number of bytes of a body.
        max_active: Maximum number of requests with a body that are processed or wait.
        timeout: Seconds in which a body must arrive.
        count: Called with path, status and seconds of every request.
        show_active: Called with the number of active requests when it has changed.
    """

    def __init__(
        self,
        app: App,
        max_body: int,
        max_active: int,
        timeout: float,
        count: Callable[[str, int, float], None],
        show_active: Callable[[int], None],
    ) -> None:
        self.app = app
        self.max_body = max_body
        self.max_active = max_active
        self.timeout = timeout
        self.count = count
        self.show_active = show_active
        self.active = 0

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Process a request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.monotonic()
        status = 499  # nginx's code for a client that left

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            if scope["method"] in ("GET", "HEAD", "OPTIONS"):
                await self.app(scope, receive, counted)
            else:
                await self._limited(scope, receive, counted)
        except Exception:
            status = 500
            raise
        finally:
            self.count(scope["path"], status, time.monotonic() - started)

    async def _limited(self, scope: Message, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        length = headers.get(b"content-length", b"0")
        too_large = length.isdigit() and int(length) > self.max_body
        if too_large or self.active >= self.max_active:
            small = int(length) <= _DRAINED * self.max_body if length.isdigit() else False
            if small and b"expect" not in headers:
                await _drain(receive, _DRAINED * self.max_body)
            problem = self._too_large() if too_large else self._too_many()
            response = JSONResponse(
                dict(error=problem.detail), problem.status_code, headers=problem.headers
            )
            await response(scope, receive, send)
            return
        self.active += 1
        self.show_active(self.active)
        try:
            await self.app(scope, self._counting(receive), send)
        finally:
            self.active -= 1
            self.show_active(self.active)

    def _counting(self, receive: Receive) -> Receive:
        """Return a function that receives like ``receive``, but raises beyond the limits."""
        deadline = anyio.current_time() + self.timeout
        received = 0
        complete = False

        async def limited() -> Message:
            nonlocal received, complete
            if complete:
                return await receive()
            with anyio.move_on_at(deadline) as scope:
                message = await receive()
            if scope.cancelled_caught:
                raise HTTPException(408, f"the request did not arrive within {self.timeout:g} s")
            received += len(message.get("body", b""))
            complete = not message.get("more_body", False)
            if received > self.max_body:
                if not complete:
                    await _drain(receive, _DRAINED * self.max_body)
                raise self._too_large()
            return message

        return limited

    def _too_large(self) -> HTTPException:
        limit = f"{self.max_body:,} bytes"
        return HTTPException(413, f"the request is larger than {limit}; shrink the image first")

    def _too_many(self) -> HTTPException:
        return HTTPException(
            429,
            f"{self.active} other requests are being processed or wait; try again later",
            headers={"Retry-After": "1"},
        )


async def _drain(receive: Receive, most: int) -> None:
    """Receive and drop the rest of a body, at most ``most`` bytes."""
    with anyio.move_on_after(_DRAIN_SECONDS):
        while most > 0:
            message = await receive()
            most -= len(message.get("body", b""))
            if not message.get("more_body", False):
                return
