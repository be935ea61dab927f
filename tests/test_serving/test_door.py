"""Which requests reach Gradio."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from odise_mm.serving.door import HEADERS, MAX_BODY, Door


def ask(
    method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
) -> tuple[int, dict[str, str], bytes | None]:
    """Return the status, the headers, and the body that the application received, if any."""
    seen: list[bytes] = []
    sent: list[dict[str, Any]] = []
    parts = [body[i : i + 1000] for i in range(0, len(body), 1000)] or [b""]

    async def app(scope, receive, send) -> None:
        content = b""
        while True:
            message = await receive()
            content += message.get("body", b"")
            if not message.get("more_body"):
                break
        seen.append(content)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"ok"})

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": parts.pop(0), "more_body": bool(parts)}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    given = {"content-length": str(len(body))} if headers is None else headers
    raw = [(key.encode(), value.encode()) for key, value in given.items()]
    scope = {"type": "http", "method": method, "path": path, "headers": raw}
    asyncio.run(Door(app, 5000, "/tmp/page")(scope, receive, send))
    answer = {key.decode(): value.decode() for key, value in sent[0]["headers"]}
    return sent[0]["status"], answer, seen[0] if seen else None


@pytest.mark.parametrize(
    "path",
    [
        "/", "/config", "/theme.css", "/assets/index-1.js", "/static/fonts/a.woff2",
        "/gradio_api/queue/data", "/gradio_api/heartbeat/x1y2",
        "/gradio_api/file=/tmp/page/1/a.webp",
    ],
)  # fmt: skip
def test_what_the_page_reads(path: str) -> None:
    status, headers, seen = ask("GET", path)
    assert (status, seen) == (200, b"")
    assert HEADERS.items() <= headers.items()


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/gradio_api/file=https://example.com/a.png"),
        ("GET", "/gradio_api/file=//example.com/a.png"),
        ("GET", "/gradio_api/file=/tmp/page"),
        ("GET", "/gradio_api/file=/tmp/page2/a.webp"),
        ("GET", "/gradio_api/file=/tmp/page/../a.webp"),
        ("GET", "/gradio_api/file=README.md"),
        ("GET", "/gradio_api/file/README.md"),
        ("GET", "/gradio_api/proxy=https://example.com/a.png"),
        ("GET", "/gradio_api/info"),
        ("GET", "/gradio_api/openapi.json"),
        ("GET", "/monitoring"),
        ("GET", "/gradio_api/vibe-code/"),
        ("POST", "/gradio_api/vibe-edit/"),
        ("POST", "/gradio_api/run/segment"),
        ("POST", "/gradio_api/call/segment"),
        ("POST", "/"),
        ("DELETE", "/gradio_api/queue/join"),
        ("OPTIONS", "/gradio_api/queue/join"),
    ],
)
def test_what_the_page_does_not_use(method: str, path: str) -> None:
    status, headers, seen = ask(method, path)
    assert (status, seen) == (404, None)
    assert HEADERS.items() <= headers.items()


@pytest.mark.parametrize("path", ["/gradio_api/queue/join", "/gradio_api/run/predict"])
def test_events_pass_unless_they_name_addresses(path: str) -> None:
    def event(file: str) -> bytes:
        value = {"path": file, "meta": {"_type": "gradio.FileData"}}
        return json.dumps({"data": [1, "https://in.text", [value]], "fill": "x" * 3000}).encode()

    fine = event("/tmp/odise_mm_page_x/a.jpg")
    assert ask("POST", path, fine)[::2] == (200, fine)
    drive = event("C:\\temp\\a.jpg")
    assert ask("POST", path, drive)[::2] == (200, drive)
    for file in ("http://a.b/c", "HTTPS://a.b/c", " https://a.b", "//a.b/c", "ftp:a", "data:x"):
        assert ask("POST", path, event(file))[::2] == (400, None), file
    for body in (b"", b"{", b"\xff", b"[" * 100_000):
        assert ask("POST", path, body)[::2] == (400, None)


def test_sizes() -> None:
    assert ask("POST", "/gradio_api/upload", b"x" * 4000)[::2] == (200, b"x" * 4000)
    assert ask("POST", "/gradio_api/upload", b"x" * 80_000)[::2] == (413, None)
    assert ask("POST", "/gradio_api/queue/join", b" " * (MAX_BODY + 1))[::2] == (413, None)
    assert ask("POST", "/gradio_api/upload", b"x", headers={})[::2] == (411, None)
    assert ask("POST", "/gradio_api/upload", b"x", {"content-length": "-1"})[::2] == (411, None)
