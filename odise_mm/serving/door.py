"""ASGI middleware that lets only the requests of the web page through to Gradio.

Gradio has routes that the page does not use, some of which fetch addresses of the internet or
change the program. It also downloads files whose address a client sends in place of an upload.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

HEADERS = {
    # The page's own scripts and styles are inline; nothing comes from or goes to other servers.
    "content-security-policy": "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; "
    "frame-ancestors 'self'; form-action 'self'; base-uri 'self'; object-src 'none'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "cross-origin-resource-policy": "same-origin",
}
"""Added to every answer."""
MAX_BODY = 1 << 20
"""Maximum number of bytes of a request that is not an upload."""
_READ = re.compile(
    r"/|/config/?|/theme\.css|/favicon\.ico|/manifest\.json|/robots\.txt|/(?:assets|static)/.*"
    r"|/gradio_api/(?:app_id|startup-events|upload_progress|queue/data|heartbeat/\w+)"
)
_ADDRESS = re.compile(r"\s*(?://|[a-z][a-z0-9+.-]+:)", re.IGNORECASE)  # one letter is a drive
_FILE = "/gradio_api/file="
_UPLOAD = "/gradio_api/upload"
_WRITE = (
    "/gradio_api/queue/join",
    "/gradio_api/run/predict",  # events outside the queue
    "/gradio_api/cancel",
    "/gradio_api/reset",
)


class Door:
    """The middleware.

    Args:
        app: Gradio's application.
        max_upload: maximum number of bytes of an upload.
        folder: the only folder whose files are served, below it.
    """

    def __init__(self, app: App, max_upload: int, folder: str) -> None:
        self.app = app
        self.max_upload = max_upload
        self.folder = os.path.join(folder, "")

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Process a request."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # the page uses no web sockets
            return
        answer = Answer(send)
        method, path = scope["method"], scope["path"]
        if method in ("GET", "HEAD"):
            if _READ.fullmatch(path) or self._is_served(path):
                await self.app(scope, receive, answer.pass_on)
            else:
                await answer.refuse(404, "not found")
            return
        if method != "POST" or path not in (_UPLOAD, *_WRITE):
            await answer.refuse(404, "not found")
            return
        limit = MAX_BODY if path in _WRITE else self.max_upload + (1 << 16)  # parts have heads
        length = dict(scope["headers"]).get(b"content-length", b"")
        if not length.isdigit():
            await answer.refuse(411, "send Content-Length")
            return
        if int(length) > limit:
            await answer.refuse(413, f"{int(length):,} bytes, but the limit is {limit:,}")
            return
        if path == _UPLOAD:
            await self.app(scope, receive, answer.pass_on)
            return
        body = await _read(receive)
        if body is None:
            return
        if not _is_harmless(body):
            await answer.refuse(400, "upload files; addresses are not read")
            return
        await self.app(scope, _again(body, receive), answer.pass_on)

    def _is_served(self, path: str) -> bool:
        """Return whether a path of a request is that of a file in the folder."""
        file = path.removeprefix(_FILE)
        return file != path and os.path.normpath(file).startswith(self.folder)


class Answer:
    """The answer to a request, with :data:`HEADERS`."""

    def __init__(self, send: Send) -> None:
        self._send = send

    async def pass_on(self, message: Message) -> None:
        """Send a part of the application's answer."""
        if message["type"] == "http.response.start":
            own = [(key.encode(), value.encode()) for key, value in HEADERS.items()]
            names = {key for key, _ in own}
            kept = [pair for pair in message.get("headers", ()) if pair[0].lower() not in names]
            message = {**message, "headers": [*kept, *own]}
        await self._send(message)

    async def refuse(self, status: int, text: str) -> None:
        """Answer with one line."""
        body = text.encode()
        headers = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(body))]
        start = {"type": "http.response.start", "status": status, "headers": headers}
        await self.pass_on(start)
        await self._send({"type": "http.response.body", "body": body})


async def _read(receive: Receive) -> bytes | None:
    """Return the body of a request; None if the client left. The server keeps to its length."""
    body = b""
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return None
        body += message.get("body", b"")
        if not message.get("more_body"):
            return body


def _again(body: bytes, receive: Receive) -> Receive:
    """Return a function that receives the body once more, and then what follows."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return waiting.pop() if waiting else await receive()

    return again


def _is_harmless(body: bytes) -> bool:
    """Return whether a body is JSON in which no file is given by an address of the internet."""
    try:
        waiting = [json.loads(body)]
    except (ValueError, RecursionError):
        return False
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            path = value.get("path")
            if isinstance(path, str) and _ADDRESS.match(path):
                return False
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
    return True
