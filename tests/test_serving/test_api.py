"""The HTTP API, over a real connection."""

from __future__ import annotations

import base64
import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mmengine.config import Config
from PIL import Image
from pycocotools import mask as coco_mask

from odise_mm.apis import OpenVocabInferencer
from odise_mm.errors import OutputError
from odise_mm.serving.server import PACKAGES, listen
from odise_mm.serving.uploads import INTERNAL_ERROR, Limits
from odise_mm.vocabulary import Vocabulary
from tests.support import load_api
from tests.support.fake_segmentor import CONFIG
from tests.support.load_api import Client, form, load

for module in PACKAGES:
    pytest.importorskip(module, reason="pip install 'odise_mm[api]'")

ROOT = Path(__file__).resolve().parents[2]
NAMES = {"texts": "cat; dog", "stuff_texts": "sky"}


@contextmanager
def serving(config: Config, **options: Any) -> Iterator[tuple[Client, Any]]:
    """Serve a model from a thread; yields a client and the service."""
    import uvicorn

    from odise_mm.serving.api import make_app
    from odise_mm.serving.service import Service

    images = options.pop("images", None)
    limits = Limits(max_bytes=200_000, max_pixels=100_000)
    inferencer = OpenVocabInferencer(config, device="cpu")
    service = Service(inferencer, **{"limits": limits, **options})
    with listen("127.0.0.1", 0) as bound:
        server = uvicorn.Server(uvicorn.Config(make_app(service, images), log_level="critical"))
        thread = threading.Thread(target=server.run, kwargs=dict(sockets=[bound]))
        thread.start()
        try:
            yield Client(f"http://127.0.0.1:{bound.getsockname()[1]}", NAMES), service
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    path = tmp_path_factory.mktemp("config") / "fake.py"
    path.write_text(CONFIG)
    return Config.fromfile(path)


@pytest.fixture(scope="module")
def server(config: Config) -> Iterator[tuple[Client, Any]]:
    with serving(config) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: tuple[Client, Any]) -> Client:
    return server[0]


def picture(width: int = 40, height: int = 30) -> bytes:
    return png(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return file.getvalue()


def halves(width: int = 40, height: int = 30) -> np.ndarray:
    """The fake model's map: 1 in the left half, 2 in the right half."""
    return np.where(np.arange(width) < width / 2, 1, 2) * np.ones((height, 1), int)


def test_coco(client: Client) -> None:
    content = client.post(picture()).content
    assert content["info"]["random_weights"] and content["warnings"] == []
    assert content["images"] == [dict(id=1, file_name="scene.jpg", height=30, width=40)]
    assert [(c["name"], c["isthing"]) for c in content["categories"]] == [
        ("cat", 1),
        ("dog", 1),
        ("sky", 0),
    ]
    assert [a["category_id"] for a in content["annotations"]] == [1, 3]
    for number, annotation in enumerate(content["annotations"], 1):
        mask = coco_mask.decode(annotation["segmentation"])
        assert np.array_equal(mask == 1, halves() == number)
        assert annotation["score"] == 0.75


def test_panoptic_and_png(client: Client) -> None:
    content = client.post(picture(), output="panoptic").content
    for file in (
        base64.b64decode(content["panoptic_png"]),
        client.post(picture(), output="map").body,
    ):
        rgb = np.asarray(Image.open(io.BytesIO(file))).astype(int)
        assert np.array_equal(rgb @ [1, 256, 65536], halves())
    (annotation,) = content["annotations"]
    assert [s["area"] for s in annotation["segments_info"]] == [600, 600]
    drawing = np.asarray(Image.open(io.BytesIO(client.post(picture(), output="drawing").body)))
    original = np.asarray(Image.open(io.BytesIO(picture())))
    assert drawing.shape == original.shape and (drawing != original).any()
    with_legend = Image.open(io.BytesIO(client.post(picture(), output="drawing", legend="1").body))
    assert with_legend.size > (40, 30)


def test_base64(client: Client) -> None:
    encoded = base64.b64encode(picture()).decode()
    plain = client.post_json(image=encoded).content
    assert plain == client.post_json(image=f"data:image/png;base64,{encoded}").content
    uploaded = client.post(picture()).content
    assert plain["annotations"] == uploaded["annotations"]


def test_names_and_settings_of_a_request(client: Client) -> None:
    content = client.post(picture(), texts="cat. dog.", stuff_texts="", vocabulary="voc20").content
    assert content["categories"][0]["name"] == "cat. dog." and len(content["categories"]) == 21
    assert "read as 1 class" in content["warnings"][0]
    assert client.post(picture(), min_area="601", alpha="0.5").status == 200
    # As browsers send empty fields.
    empty = b'--a7c1e0\r\nContent-Disposition: form-data; name="alpha"\r\n\r\n\r\n'
    body, content_type = form(picture(), NAMES)
    assert client.send("/segment", empty + body, content_type).status == 200, (
        "as a browser sends it"
    )


@pytest.mark.parametrize(
    ("image", "fields", "status", "message"),
    [
        (b"hello", {}, 422, "none of the formats"),
        (picture()[:500], {}, 422, "damaged"),
        (png(np.zeros((300, 400), np.uint8)), {}, 413, "120,000 pixels, but the limit is 100,000"),
        (bytes(200_001), {}, 413, "200,001 bytes, but the limit is 200,000"),
        (bytes(2_000_000), {}, 413, "larger than"),
        (picture(), dict(texts=str(ROOT / "README.md")), 422, "not read here"),
        (picture(), dict(texts="cat; dog, cat"), 422, "in two classes"),
        (picture(), dict(vocabulary="imagenet"), 422, "unknown vocabulary 'imagenet'"),
        (picture(), dict(alpha="nan"), 422, "alpha: "),
        (picture(), dict(min_area="-1"), 422, "min_area: "),
        (picture(), dict(output="jpeg"), 422, "output: "),
        (picture(), dict(scores="1"), 422, "scores: Extra inputs"),
    ],
)
def test_bad_requests(
    client: Client, image: bytes, fields: dict[str, str], status: int, message: str
) -> None:
    reply = client.post(image, **fields)
    assert reply.status == status and set(reply.content) == {"error"}
    assert message in reply.content["error"]


def test_requests_that_are_not_requests(client: Client) -> None:
    def refusal(*args: Any) -> str:
        reply = client.send(*args)
        assert reply.status == 422
        return reply.content["error"]

    json_type = "application/json"
    assert "JSON decode error" in refusal("/segment/base64", b'{"image":', json_type)
    assert "image: Field required" in refusal("/segment/base64", b"{}", json_type)
    for nested in (b"[" * 100_000, b'{"image":' * 50_000):
        reply = client.send("/segment/base64", nested, json_type)
        assert reply.status in (400, 422) and reply.content["error"]
    body, content_type = form(picture(), NAMES)
    assert "image" in refusal("/segment", b"", content_type)
    assert "image" in refusal("/segment", b"texts=cat", "application/x-www-form-urlencoded")
    assert client.send("/segment", body[:300], content_type).status in (400, 422)
    assert client.get("/segment").status == 405 and client.get("/../etc/passwd").status == 404


def test_states(client: Client) -> None:
    assert client.get("/health").content == {"status": "UP"}
    about = client.get("/model").content
    assert about["random_weights"] and about["limits"]["max_pixels"] == 100_000
    before = client.get("/metrics").body.decode()
    client.post(b"")
    after = client.get("/metrics").body.decode()
    line = 'odise_mm_requests_total{path="/segment",status="422"} '
    count = [float(text.partition(line)[2].split("\n")[0] or 0) for text in (before, after)]
    assert count[1] == count[0] + 1
    assert client.memory() > 0


def test_documentation_needs_no_other_server(client: Client) -> None:
    page = client.get("/docs").body.decode()
    assert "https://" not in page and "http://" not in page
    for name in ("swagger-ui-bundle.js", "swagger-ui.css"):
        assert f"/static-offline-docs/{name}" in page
        assert len(client.get(f"/static-offline-docs/{name}").body) > 100_000
    described = client.get("/openapi.json").content
    paths = described["paths"]
    for name in ("FormRequest", "JsonRequest"):
        schema = described["components"]["schemas"][name]
        assert next(iter(schema["properties"])) == "image" and schema["required"] == ["image"]
    assert set(paths["/segment"]["post"]["requestBody"]["content"]) == {"multipart/form-data"}
    assert set(paths) == {"/segment", "/segment/base64", "/health", "/model", "/metrics"}


def test_nothing_is_lost_under_load(client: Client) -> None:
    picked = load_api.good_requests(client, picture())
    assert set(picked) >= {"coco", "panoptic", "map", "drawing", "base64"}
    report = load(client, picture(), 48, 8)
    assert report.problems == [] and sum(report.statuses.values()) == 48
    assert report.statuses[200] == 32 and report.statuses[0] > 0 and report.statuses[413] > 0
    assert "active_requests 0.0" in client.get("/metrics").body.decode()


class Gate:
    """Keeps the model busy until it is opened."""

    def __init__(self, service: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.entered, self.open = threading.Semaphore(0), threading.Event()
        step = service.inferencer.model.test_step

        def wait(*args: Any) -> Any:
            self.entered.release()
            assert self.open.wait(60)
            return step(*args)

        monkeypatch.setattr(service.inferencer.model, "test_step", wait)


def test_queue_time_and_end(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """One request is processed, one waits, one is too many; those two end when time is over."""
    with serving(config, queue=1, timeout=2.0) as (client, service):
        gate = Gate(service, monkeypatch)
        with ThreadPoolExecutor(3) as threads:
            first = threads.submit(client.post, picture())
            assert gate.entered.acquire(timeout=60)
            second = threads.submit(client.post, picture())
            while "active_requests 2.0" not in client.get("/metrics").body.decode():
                time.sleep(0.02)
            refused = client.post(picture())
            assert refused.status == 429 and "2 other requests" in refused.content["error"]
            assert client.get("/health").status == 200
            for waiting in (first, second):
                assert waiting.result().status == 503
                assert "no result within 2 s" in waiting.result().content["error"]
            gate.open.set()
        assert client.post(picture()).status == 200, "the worker is free again"
        assert len(service.inferencer.model.batches) == 2, "the dropped request did not run"


def test_requests_that_have_begun_are_answered_before_the_end(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ThreadPoolExecutor(1) as threads:
        with serving(config) as (client, service):
            gate = Gate(service, monkeypatch)
            begun = threads.submit(client.post, picture())
            assert gate.entered.acquire(timeout=60)
            later = threading.Timer(0.5, gate.open.set)
            later.start()
        assert begun.result().status == 200
    with pytest.raises(OSError):
        client.get("/health")


def test_failures_of_the_server_are_not_shown(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(config, names=Vocabulary.parse("cat")) as (client, service):
        model = service.inferencer.model
        for fail, status in (("/srv/secret: broken", 500), ("cpu", 503), ("overflow", 500)):
            monkeypatch.setattr(model, "fail", fail)
            reply = client.post(png(np.full((30, 40, 3), 255, np.uint8)))
            assert reply.status == status, fail
            assert "secret" not in reply.body.decode()
            assert (reply.content["error"] == INTERNAL_ERROR) == ("secret" in fail)
        monkeypatch.setattr(model, "fail", None)
        reply = client.post(picture(), texts="", stuff_texts="")
        assert [c["name"] for c in reply.content["categories"]] == ["cat"]


def test_the_command(tmp_path: Path) -> None:
    """It says where it listens, and ends with 0 after SIGTERM."""
    (tmp_path / "fake.py").write_text(CONFIG)
    command = [sys.executable, "-m", "odise_mm", "serve", "--api", "--config"]
    command += [str(tmp_path / "fake.py"), "--port", "0", "--texts", "cat; dog"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=environment, cwd=tmp_path
    ) as process:
        assert process.stdout is not None
        line = next(line for line in process.stdout if line.startswith("serving on http://"))
        client = Client(line.split()[-1], {})
        with pytest.raises(OutputError, match="choose another --host or --port"):
            listen("127.0.0.1", int(client.host.partition(":")[2]))
        names = client.post(picture()).content["categories"]
        assert [c["name"] for c in names] == ["cat", "dog"]
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
