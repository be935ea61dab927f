"""A web server for one file, which can be made to misbehave."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class FileServer:
    """Content and behavior of the server, and the requests that it received.

    Attributes:
        content: content of the file, served under any path.
        cut_after: number of bytes of each response after which the connection is closed; None for
            complete responses.
        ranges: whether Range requests are supported.
        status: HTTP status; no file is sent unless it is 200.
        declared: Content-Length; None for the true one, 0 for no header.
        chunked: whether to send chunks, without Content-Length.
        kind: Content-Type.
        etag: ETag of the file, "" for no header.
        requests: path and Range header of each request, in order.
        before: function called before each response with the number of the request.
        url: address of the file.
    """

    content: bytes = b""
    cut_after: int | None = None
    ranges: bool = True
    status: int = 200
    declared: int | None = None
    chunked: bool = False
    kind: str = "application/octet-stream"
    etag: str = '"one"'
    requests: list[tuple[str, str | None]] = field(default_factory=list)
    before: Callable[[int], None] = lambda _: None
    url: str = ""


@contextmanager
def serving(content: bytes) -> Iterator[FileServer]:
    """Run a server on this machine in a thread."""
    state = FileServer(content)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            self.close_connection = True
            asked = self.headers.get("Range")
            state.requests.append((self.path, asked))
            state.before(len(state.requests))
            if state.status != 200:
                self.send_response(state.status)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
            if not state.ranges or self.headers.get("If-Range", state.etag) != state.etag:
                start = 0
            size = len(state.content)
            if start and start >= size:
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{size}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            body = state.content[start:]
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
            self.send_header("Content-Type", state.kind)
            if state.etag:
                self.send_header("ETag", state.etag)
            if state.chunked:
                self.send_header("Transfer-Encoding", "chunked")
            elif state.declared != 0:
                self.send_header("Content-Length", str(state.declared or len(body)))
            self.end_headers()
            sent = body if state.cut_after is None else body[: state.cut_after]
            if state.chunked:
                sent = b"%x\r\n" % len(body) + sent
                sent += b"\r\n0\r\n\r\n" if state.cut_after is None else b""
            with suppress(ConnectionError):
                self.wfile.write(sent)
                self.wfile.flush()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_port}/weights.pth"
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
