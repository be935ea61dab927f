"""The ML backend of Label Studio: its requests, as Label Studio 1.23 sends them."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
from mmengine.config import Config

from odise_mm.errors import ConfigError, ImageError
from odise_mm.io.labelstudio import encode_brush
from odise_mm.serving.label_studio import ImageStore, LabelConfig
from odise_mm.serving.server import PACKAGES
from odise_mm.serving.uploads import Limits, TooLargeError
from odise_mm.vocabulary import Vocabulary
from tests.support.fake_segmentor import CONFIG
from tests.support.file_server import serving as serving_file
from tests.support.load_api import Client, Reply
from tests.test_serving.test_api import halves, picture, serving

for module in PACKAGES:
    pytest.importorskip(module, reason="pip install 'odise_mm[api]'")

LABELS = """<View>
  <!-- a comment -->
  <Image name="photo" value="$picture" zoom="true"/>
  <BrushLabels name="mask" toName="photo">
    <Label value="Cat" predicted_values="cat, kitty" background="#ff0000"/>
    <Label value="dog"/>
    <Label value="Sky"/>
  </BrushLabels>
</View>"""
LIMITS = Limits(max_bytes=20_000)


def test_the_labels_of_a_project() -> None:
    config = LabelConfig.parse(LABELS)
    assert (config.from_name, config.to_name, config.image_key) == ("mask", "photo", "picture")
    assert config.labels == ("Cat", "dog", "Sky")
    names = config.vocabulary(Vocabulary.parse("cat", "sky, heaven"))
    assert names.synonyms == (("cat", "kitty"), ("dog",), ("Sky",))
    assert names.is_thing == (True, True, False), "the known vocabulary tells what is stuff"
    assert config.vocabulary(None).is_thing == (True, True, True)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (LABELS, "", "missing"),
        ("</View>", "", "not XML"),
        ("<View>", '<!DOCTYPE x [<!ENTITY a "b">]><View>', "not read"),
        ("BrushLabels", "PolygonLabels", "no BrushLabels"),
        ('toName="photo"', 'toName="image"', "no Image has the toName='image'"),
        ("$picture", "http://x/1.png", "must be like"),
        ("Label value", "Label title", "no labels"),
        ("kitty", "k" * 201, "more than 200"),
    ],
)
def test_bad_configs(old: str, new: str, message: str) -> None:
    with pytest.raises(ConfigError, match=f"label_config.*{message}"):
        LabelConfig.parse(LABELS.replace(old, new))


def test_addresses_of_images(tmp_path: Path) -> None:
    (tmp_path / "root/a").mkdir(parents=True)
    (tmp_path / "root/a/1 ü.png").write_bytes(picture())
    (tmp_path / "root/large.png").write_bytes(bytes(20_001))
    (tmp_path / "secret.png").write_bytes(picture())
    store = ImageStore(None, None, tmp_path / "root", LIMITS)
    assert store.read("/data/local-files/?d=a/1%20%C3%BC.png") == picture()
    encoded = base64.b64encode(picture()).decode()
    assert store.read(f"data:image/png;base64,{encoded}") == picture()
    with pytest.raises(TooLargeError):
        store.read("/data/local-files/?d=large.png")
    for name in (
        "../secret.png",
        "a/../../secret.png",
        str(tmp_path / "secret.png"),
        "a",
        "",
        "%00",
    ):
        with pytest.raises(ImageError, match="no such file below the root") as caught:
            store.read(f"/data/local-files/?d={name}")
        assert str(tmp_path / "root") not in str(caught.value)
    for address in ("/data/upload/1.png", "http://localhost/1.png", "file:///etc/passwd", None, 3):
        with pytest.raises(ImageError, match="not fetched|is not the address"):
            store.read(address)


def test_images_are_fetched_only_from_label_studio() -> None:
    with serving_file(picture()) as files, serving_file(picture()) as other:
        base, elsewhere = (server.url.rpartition("/")[0] for server in (files, other))
        store = ImageStore(base, "k1", None, LIMITS)
        assert store.read("/data/upload/1/x.png") == store.read(f"{base}/x.png") == picture()
        refused = (f"{elsewhere}/x.png", "s3://bucket/x.png")
        for address in (*refused, base.replace("http://", "http://user@"), f"{base}@evil.example/"):
            with pytest.raises(ImageError, match="only from"):
                store.read(address)
        assert other.requests == []
        files.content = bytes(20_001)
        with pytest.raises(TooLargeError):
            store.read("/x.png")
        files.status = 401
        with pytest.raises(ImageError, match="answers 401; check the token"):
            store.read("/x.png")
    with pytest.raises(ImageError, match="cannot be fetched"):
        store.read("/x.png")
    with pytest.raises(ConfigError, match="not an address"):
        ImageStore("localhost:8080", None, None, LIMITS)


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    folder = tmp_path_factory.mktemp("images")
    (folder / "fake.py").write_text(CONFIG)
    (folder / "1.png").write_bytes(picture())
    images = ImageStore(None, None, folder, Limits())
    with serving(Config.fromfile(folder / "fake.py"), images=images) as (client, _):
        yield client


def ask(client: Client, path: str, **content: Any) -> Reply:
    return client.send(path, json.dumps(content).encode(), "application/json")


def predict(client: Client, *addresses: str) -> Reply:
    tasks = [dict(id=i, data=dict(picture=a), project=1) for i, a in enumerate(addresses, 7)]
    params = dict(login=None, password=None, context=None)
    return ask(client, "/predict", tasks=tasks, project="1.1", label_config=LABELS, params=params)


def test_predictions(backend: Client) -> None:
    assert backend.get("/health").content["status"] == "UP"
    version = ask(backend, "/setup", project="1.1", schema=LABELS).content["model_version"]
    assert backend.get("/versions").content["versions"] == [version]
    assert ask(backend, "/webhook", action="ANNOTATION_CREATED").status == 200
    content = predict(backend, "/data/local-files/?d=1.png", "/data/local-files/?d=2.png").content
    (prediction,), failed = content["results"]
    assert failed == [], "a task that fails has no prediction, and the others have theirs"
    assert prediction["model_version"] == version and prediction["score"] == 0.75
    for number, label, region in zip((1, 2), ("Cat", "Sky"), prediction["result"], strict=True):
        assert region["from_name"] == "mask" and region["to_name"] == "photo"
        assert region["value"]["brushlabels"] == [label]
        assert region["value"]["rle"] == encode_brush(halves() == number)
        assert (region["original_width"], region["original_height"]) == (40, 30)


def test_refusals(backend: Client) -> None:
    reply = predict(backend, "/data/local-files/?d=2.png")
    assert reply.status == 422 and reply.content["error"].startswith("task 7: ")
    assert ask(backend, "/setup", schema="<View/>").content["error"].startswith("label_config: ")
    assert ask(backend, "/predict", label_config=LABELS).status == 422
    assert ask(backend, "/predict", label_config=LABELS, tasks=[3]).status == 422


class Studio(BaseHTTPRequestHandler):
    """Gives an access token for a personal one, and the image for that."""

    exchanged: ClassVar[list[Any]] = []

    def do_POST(self) -> None:
        content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.exchanged.append((self.path, content))
        self.answer(json.dumps(dict(access="short")).encode())

    def do_GET(self) -> None:
        assert self.path == "/data/upload/1/%C3%BC%201.png"
        assert self.headers["Authorization"] == "Bearer short"
        self.answer(picture())

    def answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def test_a_personal_token_is_exchanged_once() -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Studio) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            url = f"http://127.0.0.1:{server.server_port}/"
            store = ImageStore(url, "a.b.c", None, LIMITS)
            for _ in range(2):
                assert store.read("/data/upload/1/ü 1.png") == picture()
        finally:
            server.shutdown()
            thread.join()
    assert Studio.exchanged == [("/api/token/refresh/", {"refresh": "a.b.c"})]
