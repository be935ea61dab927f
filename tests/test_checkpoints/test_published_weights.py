"""Published weights of a config: found in caches, or downloaded from a local server."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import open_clip
import pytest
import torch

from odise_mm.apis import OpenVocabInferencer
from odise_mm.checkpoints import hub, published_weights
from odise_mm.checkpoints.published_weights import (
    LICENSES,
    fetch,
    find_published,
    license_notice,
    published_names,
)
from odise_mm.checkpoints.safe_loading import save_state_dict
from odise_mm.config.finding import load_config
from odise_mm.errors import CheckpointError, ConfigError
from odise_mm.utils.download import RemoteFile
from tests.support.fake_segmentor import CONFIG
from tests.support.file_server import FileServer, serving

ROOT = Path(__file__).parents[2]
METAFILE = """
Collections:
  - Name: Fakes
    Weights License: CC BY-NC-SA 4.0 (non-commercial)
Models:
  - Name: another
    Config: configs/fakes/another.py
    Weights: {url}
  - Name: fake
    In Collection: Fakes
    Config: configs/fakes/fake.py
    Weights: {url}
  - Name: weightless
    Config: configs/fakes/weightless.py
"""


@pytest.fixture(autouse=True)
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "torch"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "torch" / "checkpoints"


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("weights") / "fake.pth"
    save_state_dict(path, {"scale": torch.full((1,), 3.0)})
    return path.read_bytes()


@pytest.fixture
def server(content: bytes) -> Iterator[FileServer]:
    with serving(content) as running:
        yield running


@pytest.fixture
def config(server: FileServer, content: bytes, tmp_path: Path) -> str:
    """A config whose metafile names a file of the server, with a part of its checksum."""
    folder = tmp_path / "configs" / "fakes"
    folder.mkdir(parents=True)
    digits = hashlib.sha256(content).hexdigest()[:8]
    server.url = server.url.replace("weights.pth", f"fake-{digits}.pth")
    (folder / "metafile.yml").write_text(METAFILE.format(url=server.url))
    text = CONFIG.replace("random_weights = True\n", "")
    for name in ("fake", "weightless"):
        (folder / f"{name}.py").write_text(text)
    return str(folder / "fake.py")


@pytest.mark.parametrize("weights", [None, "published"])
def test_an_inferencer_downloads_the_weights_in_the_metafile(
    config: str, server: FileServer, caches: Path, weights: str | None
) -> None:
    for _ in range(2):  # the second time from the cache
        inferencer = OpenVocabInferencer(config, weights, device="cpu")
        assert inferencer.model.scale == 3 and not inferencer.random_weights
    assert len(server.requests) == 1
    assert [file.name for file in caches.glob("*.pth")] == [server.url.rpartition("/")[2]]


def test_the_license_is_shown_before_a_download(config: str, server: FileServer) -> None:
    seen: list[tuple[str, int]] = []

    def ask(notice: str) -> bool:
        seen.append((notice, len(server.requests)))
        return len(seen) > 1

    with pytest.raises(
        CheckpointError, match=r"fake\.py: download declined, nothing was downloaded"
    ):
        fetch(config, ask=ask)
    assert not server.requests
    path = fetch(config, ask=ask)
    assert path == fetch(config, ask=ask) and path.is_file()
    assert len(seen) == 2 and seen[1][1] == 0  # no question if the file exists
    assert f"{path.name}: CC BY-NC-SA 4.0 (non-commercial)" in seen[0][0]


def test_a_file_with_a_wrong_checksum_is_rejected(config: str, server: FileServer) -> None:
    server.content = b"PK" + server.content
    with pytest.raises(
        CheckpointError, match="the checkpoint of fake from .* has a wrong checksum"
    ):
        OpenVocabInferencer(config, device="cpu")


def test_offline(config: str, server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(CheckpointError, match="HF_HUB_OFFLINE is set.*pass a local copy"):
        OpenVocabInferencer(config, device="cpu")
    assert not server.requests


def test_a_config_without_weights_is_an_error(config: str) -> None:
    path = config.replace("fake.py", "weightless.py")
    for weights in (None, "published"):
        with pytest.raises(CheckpointError) as caught:
            OpenVocabInferencer(path, weights, device="cpu")
        for part in (
            "weightless.py: this config needs weights",
            "weights=PATH",
        ):
            assert part in str(caught.value)
        for name in ("odise_coco_label", "odise_coco_caption", "odise_toy_label", "odise_tiny"):
            assert name in str(caught.value)
    with pytest.raises(CheckpointError, match="weightless.py: this config needs weights"):
        fetch(path)


def test_a_derived_config_is_not_the_published_one(config: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(f"_base_ = [{config!r}]\nx = 1\n")
    assert find_published(str(tmp_path / "mine.py")) is None
    with pytest.raises(CheckpointError, match="mine.py: this config needs weights"):
        OpenVocabInferencer(str(tmp_path / "mine.py"), device="cpu")


def test_random_weights_must_be_set_in_the_config(tmp_path: Path) -> None:
    path = tmp_path / "random.py"
    path.write_text(CONFIG)
    assert OpenVocabInferencer(path, device="cpu").random_weights
    with pytest.raises(
        CheckpointError, match="uses random weights, so there is nothing to download"
    ):
        OpenVocabInferencer(path, "published", device="cpu")
    with pytest.raises(
        CheckpointError, match="uses random weights, so there is nothing to download"
    ):
        fetch(path)
    path.write_text(CONFIG.replace("random_weights = True", "random_weights = 1"))
    with pytest.raises(ConfigError, match="random_weights=1 must be True or False"):
        OpenVocabInferencer(path, device="cpu")


def test_random_weights_with_pretrained_parts_are_an_error() -> None:
    with pytest.raises(ConfigError, match="whole model is random, but a part .* weights openai"):
        OpenVocabInferencer("odise_coco_label", cfg_options={"random_weights": True})


def test_load_from_comes_before_the_metafile(
    config: str, server: FileServer, tmp_path: Path
) -> None:
    save_state_dict(tmp_path / "mine.pth", {"scale": torch.full((1,), 5.0)})
    options = {"load_from": str(tmp_path / "mine.pth")}
    assert OpenVocabInferencer(config, device="cpu", cfg_options=options).model.scale == 5
    assert not server.requests
    published = OpenVocabInferencer(config, "published", device="cpu", cfg_options=options)
    assert published.model.scale == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Models: [1]", "lists of mappings"),
        ("a: [", "not a valid metafile"),
        ("- 1", "not a valid metafile"),
    ],
)
def test_a_broken_metafile(config: str, text: str, message: str) -> None:
    path = Path(config).parent / "metafile.yml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        find_published(config)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "file", "digits"),
    [
        ("odise_coco_label", "odise_label_coco_50e-b67d2efc.pth", "b67d2efc"),
        ("odise_label_pc59", "odise_label_coco_50e-b67d2efc.pth", "b67d2efc"),
        ("odise_coco_caption", "odise_caption_coco_50e-853cc971.pth", "853cc971"),
    ],
)
def test_the_published_models(name: str, file: str, digits: str, caches: Path) -> None:
    published = find_published(name)
    place = f"https://github.com/NVlabs/ODISE/releases/download/v1.0.0/{file}"
    assert published.source == RemoteFile(place, sha256=digits)
    assert published.path == caches / file
    notice = license_notice(load_config(name))
    for line in (
        f"{file}: CC BY-NC-SA 4.0 (non-commercial)",
        "CompVis/stable-diffusion-v1-3: CreativeML Open RAIL-M",
        "openai: MIT",
    ):
        assert f"\n  {line}" in notice


@pytest.mark.parametrize("kind", ["label", "caption"])
def test_weights_of_toy_models_are_in_the_repository(kind: str) -> None:
    path = ROOT / f"projects/toy_world/weights/odise_{kind}.safetensors"
    assert fetch(f"odise_toy_{kind}") == path
    inferencer = OpenVocabInferencer(f"odise_toy_{kind}", device="cpu")
    assert not inferencer.random_weights


def test_the_names_of_published_models() -> None:
    assert published_names() == [
        "odise_coco_caption",
        "odise_coco_label",
        "odise_toy_caption",
        "odise_toy_label",
    ]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Record the requests to the hub clients, which return empty files."""
    asked: list[str] = []
    for part, stem in (
        ("unet", "diffusion_pytorch_model"),
        ("vae", "diffusion_pytorch_model"),
        ("text_encoder", "model"),
    ):
        (tmp_path / "diffusion" / part).mkdir(parents=True)
        (tmp_path / "diffusion" / part / f"{stem}.safetensors").touch()

    def snapshot(repository: str, allow_patterns: list[str]) -> str:
        asked.append(repository)
        return str(tmp_path / "diffusion")

    def file(repository: str, name: str) -> str:
        asked.append(f"{repository}/{name}")
        return name

    def clip(tag: dict) -> str:
        asked.append("clip")
        return str(tmp_path / "clip.pt")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", file)
    monkeypatch.setattr(open_clip, "download_pretrained", clip)
    return asked


def test_frozen_parts_are_downloaded_by_their_own_loaders(asked: list[str]) -> None:
    # Without a published checkpoint, only the frozen parts are downloaded.
    assert fetch("ablation/representation/mae_h") is None
    assert sorted(asked) == ["clip", "timm/vit_huge_patch14_224.mae/model.safetensors"]
    asked.clear()
    assert fetch("ablation/representation/stable_diffusion") is None
    assert sorted(asked) == ["CompVis/stable-diffusion-v1-3", "clip"]


def test_a_wrong_copy_is_rejected_before_any_download(asked: list[str]) -> None:
    path = find_published("odise_coco_label").path
    path.parent.mkdir(parents=True)
    path.touch()
    with pytest.raises(CheckpointError, match="is not the checkpoint of odise_coco_label"):
        fetch("odise_coco_label")
    assert not asked and path.exists()


def test_a_repository_in_the_cache(tmp_path: Path) -> None:
    assert not hub.is_cached("owner/name")
    (tmp_path / "hub" / "models--owner--name").mkdir(parents=True)
    assert hub.is_cached("owner/name")


def test_licenses_are_documented() -> None:
    page = (ROOT / "docs" / "weights.md").read_text(encoding="utf-8")
    for source in LICENSES:
        assert f"`{source}`" in page


def test_the_notice_is_logged_without_ask(config: str, monkeypatch: pytest.MonkeyPatch) -> None:
    logged: list[str] = []
    monkeypatch.setattr(published_weights, "print_log", lambda text, **_: logged.append(text))
    for _ in range(2):
        fetch(config)
    (notice,) = logged
    assert notice == license_notice(load_config(config))
