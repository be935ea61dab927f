"""Sends many requests to ``odise-mm serve --api`` at once, broken ones among them.

Checks every answer, and prints the times of good ones and the memory of the server::

    odise-mm serve --api --config odise_toy_label --port 8000
    python tests/support/load_api.py --requests 200 --at-once 8

The exit status is 1 if an answer is missing or wrong.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import io
import json
import re
import socket
import struct
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

SCENE = Path(__file__).resolve().parents[2] / "demo/images/toy_scene.jpg"
NAMES = {"texts": "red moon; white box", "stuff_texts": "sky; water"}
PARTS = 4  # in how many parts the memory is measured
BOUNDARY = "a7c1e0"


@dataclass(frozen=True)
class Reply:
    """Status and body of an answer; status 0 if the client left."""

    status: int
    body: bytes

    @property
    def content(self) -> dict:
        """JSON of the body."""
        return json.loads(self.body)


@dataclass
class Report:
    """What happened."""

    seconds: list[float] = field(default_factory=list)
    statuses: Counter = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)
    total: float = 0.0
    again: int = 0


class Client:
    """Client of the API.

    Args:
        url: Address of the server.
        names: Class names of the requests.
    """

    def __init__(self, url: str, names: Mapping[str, str] = NAMES) -> None:
        self.host = url.removeprefix("http://").rstrip("/")
        self.names = names

    def send(
        self, path: str, body: bytes | None = None, content_type: str = "", method: str = "POST"
    ) -> Reply:
        """Send a request and return the answer."""
        connection = http.client.HTTPConnection(self.host, timeout=120)
        try:
            headers = {"Content-Type": content_type} if content_type else {}
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            return Reply(response.status, response.read())
        finally:
            connection.close()

    def get(self, path: str) -> Reply:
        """Send a GET request."""
        return self.send(path, method="GET")

    def post(self, image: bytes, **fields: str) -> Reply:
        """Upload an image; fields replace the default names, and "" drops them."""
        return self.send("/segment", *form(image, {**self.names, **fields}))

    def post_json(self, **content: object) -> Reply:
        """Send JSON."""
        body = json.dumps({**self.names, **content}).encode()
        return self.send("/segment/base64", body, "application/json")

    def leave(self, image: bytes) -> Reply:
        """Send half of an upload, and close the connection."""
        body, content_type = form(image, self.names)
        host, _, port = self.host.partition(":")
        with socket.create_connection((host, int(port))) as connection:
            head = f"POST /segment HTTP/1.1\r\nHost: {host}\r\nContent-Type: {content_type}\r\n"
            head += f"Content-Length: {len(body)}\r\n\r\n"
            connection.sendall(head.encode() + body[: len(body) // 2])
        return Reply(0, b"")

    def memory(self) -> float:
        """Return the resident memory of the server in MB."""
        text = self.get("/metrics").body.decode()
        found = re.search(r"^process_resident_memory_bytes (\S+)", text, re.MULTILINE)
        return float(found[1]) / 1e6 if found else 0.0


def form(image: bytes, fields: Mapping[str, str], name: str = "scene.jpg") -> tuple[bytes, str]:
    """Return body and content type of a form with an image."""
    parts = [
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{key}"\r\n\r\n{value}\r\n'.encode()
        for key, value in fields.items()
        if value
    ]
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n'
    parts += [head.encode(), b"Content-Type: image/jpeg\r\n\r\n", image, b"\r\n"]
    return b"".join([*parts, f"--{BOUNDARY}--\r\n".encode()]), (
        f"multipart/form-data; boundary={BOUNDARY}"
    )


def bomb(width: int = 30_000, height: int = 30_000) -> bytes:
    """Return a small PNG file that claims to have many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    data = zlib.compress(b"\0" * 1000)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


def good_requests(client: Client, image: bytes) -> dict[str, Callable[[], Reply]]:
    """Return requests that have a result."""
    encoded = base64.b64encode(image).decode()
    return {
        "coco": lambda: client.post(image),
        "panoptic": lambda: client.post(image, output="panoptic"),
        "map": lambda: client.post(image, output="map"),
        "drawing": lambda: client.post(image, output="drawing"),
        "base64": lambda: client.post_json(image=encoded, min_area=50),
        "other names": lambda: client.post(image, texts="black triangle", stuff_texts=""),
    }


def broken_requests(client: Client, image: bytes) -> dict[str, tuple[Callable[[], Reply], int]]:
    """Return requests that are rejected, and the status of the answer."""
    return {
        "no image": (lambda: client.post(b"hello"), 422),
        "empty": (lambda: client.post(b""), 422),
        "truncated": (lambda: client.post(image[: len(image) // 2]), 422),
        "too many pixels": (lambda: client.post(bomb()), 413),
        "too many bytes": (lambda: client.post(bytes(50 << 20)), 413),
        "file as name": (lambda: client.post(image, texts="/etc/passwd"), 422),
        "twice": (lambda: client.post(image, texts="red moon; red moon, white box"), 422),
        "setting": (lambda: client.post(image, score_threshold="2"), 422),
        "unknown field": (lambda: client.post(image, scores="1"), 422),
        "JSON": (lambda: client.send("/segment/base64", b"{", "application/json"), 422),
        "not base64": (lambda: client.post_json(image="%%%"), 422),
        "left": (lambda: client.leave(image), 0),
    }


def problem_of(reply: Reply, expected: Reply) -> str | None:
    """Return what is wrong with an answer, if anything."""
    if reply.status != expected.status:
        return f"status {reply.status}, expected {expected.status}: {reply.body[:200]!r}"
    if reply.status == 200 and reply.body != expected.body:
        return "another result than alone"
    if reply.status >= 400 and not reply.content.get("error"):
        return f"no message: {reply.body[:200]!r}"
    return None


def load(client: Client, image: bytes, requests: int, at_once: int) -> Report:
    """Send requests, one in three of them broken, and check the answers."""
    report = Report()
    good, broken = good_requests(client, image), broken_requests(client, image)
    expected = {}
    for name, request in good.items():
        expected[name] = request()
        if expected[name].status != 200:
            raise SystemExit(f"{name}: {expected[name].status} {expected[name].body[:200]!r}")
    for name, (request, status) in broken.items():
        request()
        expected[name] = Reply(status, b"")
    Image.open(io.BytesIO(expected["drawing"].body)).load()
    assert np.asarray(Image.open(io.BytesIO(expected["map"].body))).any()

    def one(number: int) -> None:
        names = list(broken) if number % 3 == 2 else list(good)
        name = names[(number // 3) % len(names)]
        send = broken[name][0] if name in broken else good[name]
        for _ in range(100):
            started = time.perf_counter()
            try:
                reply = send()
            except OSError as err:
                report.problems.append(f"{name}: {err!r}")
                return
            if reply.status != 429:
                break
            report.again += 1
            time.sleep(0.1)
        if name in good:
            report.seconds.append(time.perf_counter() - started)
        report.statuses[reply.status] += 1
        problem = problem_of(reply, expected[name])
        if problem:
            report.problems.append(f"{name}: {problem}")

    started = time.perf_counter()
    report.memory.append(client.memory())
    edges = [requests * part // PARTS for part in range(PARTS + 1)]
    with ThreadPoolExecutor(at_once) as threads:
        for first, last in zip(edges, edges[1:], strict=False):
            list(threads.map(one, range(first, last)))
            report.memory.append(client.memory())
    report.total = time.perf_counter() - started
    return report


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--at-once", type=int, default=8)
    parser.add_argument("--image", type=Path, default=SCENE)
    args = parser.parse_args()
    report = load(Client(args.url), args.image.read_bytes(), args.requests, args.at_once)
    answered = sum(report.statuses.values())
    p50, p95 = np.percentile(report.seconds, (50, 95))
    statuses = ", ".join(f"{n} x {status}" for status, n in sorted(report.statuses.items()))
    print(f"{args.requests} requests, {args.at_once} at once: {statuses} (0: the client left)")
    print(f"lost: {args.requests - answered}; wrong: {len(report.problems)}; 429: {report.again}")
    print(f"{len(report.seconds)} results: p50 {p50:.2f} s, p95 {p95:.2f} s")
    print(f"total: {report.total:.1f} s")
    print("memory of the server:", ", ".join(f"{value:.0f}" for value in report.memory), "MB")
    for problem in report.problems[:10]:
        print(problem, file=sys.stderr)
    return int(bool(report.problems) or answered < args.requests)


if __name__ == "__main__":
    sys.exit(main())
