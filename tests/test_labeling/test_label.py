"""Labeling of collections: sources, shards, and runs that were killed."""

from __future__ import annotations

import io
import itertools
import json
import multiprocessing
import multiprocessing.connection
import os
import random
import signal
import socket
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from odise_mm.cli.main import main
from odise_mm.errors import ConfigError, DatasetError, OutputError
from odise_mm.labeling import folder as folder_module
from odise_mm.labeling import label_images
from odise_mm.labeling.listing import list_images
from tests.support.fake_segmentor import CONFIG, FakeSegmentor

NAMES = dict(texts="cat; dog")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "fake.py"
    path.write_text(CONFIG)
    return path


def write_images(folder: Path, count: int, seed: int = 0) -> list[Path]:
    """Write small images of several sizes to subfolders."""
    rng = np.random.default_rng(seed)
    paths = [folder / f"{index % 3}" / f"{index:03d}.png" for index in range(count)]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        size = rng.integers(8, 24, 2).tolist()
        Image.fromarray(rng.integers(0, 255, (*size, 3), np.uint8)).save(path)
    return paths


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Seven images, one of them broken, and a link to one of them."""
    folder = tmp_path / "photos"
    paths = write_images(folder, 7)
    paths[4].write_bytes(b"not an image")
    (folder / "0/.hidden.png").write_bytes(b"")
    (folder / "0/notes.txt").write_text("not an image")
    (folder / "2/again.png").symlink_to(paths[0])
    return folder


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def labels_of(out: Path) -> dict[str, list[dict[str, Any]]]:
    """Return the segments of all images in all shards; an image that is there twice is an error."""
    found: dict[str, list[dict[str, Any]]] = {}
    for path in sorted((out / "shards").glob("*/jsonl/labels.jsonl")):
        for line in lines(path):
            assert line["image"] not in found
            found[line["image"]] = line["segments"]
    return found


def files_of(out: Path) -> dict[str, bytes]:
    folder = out / "shards"
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_folder(
    photos: Path, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = ["label", str(photos), "--out", str(out), "--config", str(config), "--shard-size", "3"]
    words += ["--texts", "cat; dog", "--format", "jsonl,coco"]
    assert main(words) == 1  # an image is broken
    printed = capsys.readouterr()
    assert "6 images labeled in 3 shards\n1 images failed: " in printed.out
    assert "1 images were named more than once" in printed.out
    assert "7 of 7 images (100.0 %)" in printed.err and "1 failed" in printed.err
    labels = labels_of(out)
    expected = sorted(str(path.relative_to(photos)) for path in photos.glob("*/0*.png"))
    assert list(labels) == [name for name in expected if name != "1/004.png"]
    for name, segments in labels.items():
        pixels = np.asarray(Image.open(photos / name))
        left, right = (
            coco_mask.decode(dict(size=pixels.shape[:2], counts=segment["rle"])) > 0
            for segment in segments
        )
        half = (pixels.shape[1] + 1) // 2
        assert left[:, :half].all() and not left[:, half:].any() and (left ^ right).all()
        assert [segment["name"] for segment in segments] == ["cat", "dog"]
    index = lines(out / "index.jsonl")
    assert [line["image"] for line in index] == expected
    assert [line["shard"] for line in index] == ["000000"] * 3 + ["000001"] * 3 + ["000002"]
    (failed,) = lines(out / "failed.jsonl")
    assert failed["image"] == "1/004.png" and "not a readable image" in failed["error"]
    assert lines(out / "duplicates.jsonl") == [dict(image="2/again.png", same_as="0/000.png")]
    assert len(list((out / "shards").glob("*/coco/instances.json"))) == 3
    described = json.loads((out / "model.json").read_text())
    assert [c["name"] for c in described["categories"]] == ["cat", "dog"] and described["notice"]

    # The same command finds nothing to do, and labels what is new or mended.
    before = {path: path.stat().st_mtime_ns for path in (out / "shards").rglob("*")}
    (photos / "0/new.png").write_bytes((photos / "0/000.png").read_bytes())
    (photos / "1/004.png").write_bytes((photos / "0/000.png").read_bytes())
    assert main(words) == 1
    assert main([*words, "--retry-failed"]) == 0
    assert main([*words, "--retry-failed"]) == 0
    assert set(labels_of(out)) == {*expected, "0/new.png"}
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert len(lines(out / "index.jsonl")) == 8 and not lines(out / "failed.jsonl")
    assert len(list((out / "shards").iterdir())) == 5


def test_other_settings_are_refused(
    photos: Path, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    label_images(photos, out, config, **NAMES, score_threshold=0.1, progress=False)
    for change in (dict(texts="cat"), dict(score_threshold=0.2), dict(formats=("npz",))):
        with pytest.raises(OutputError, match=f"different settings.*{next(iter(change))}"):
            changed = {**NAMES, "score_threshold": 0.1, **change}
            label_images(photos, out, config, **changed, progress=False)
    write_images(photos / "more", 1)
    config = config.with_name("other.py")
    with pytest.raises(OutputError, match="different settings.*config"):
        config.write_text(CONFIG + "model['test_cfg'] = dict(topk=3)\n")
        label_images(photos, out, config, **NAMES, score_threshold=0.1, progress=False)
    words = ["label", str(photos), "--out", str(tmp_path / "new"), "--config", str(config)]
    with pytest.raises(SystemExit):  # the option reaches the model
        main([*words, "--texts", "cat; dog", "--memory", "nothing.safetensors"])
    assert "nothing.safetensors: no such" in capsys.readouterr().err
    (tmp_path / "mine/shards").mkdir(parents=True)
    with pytest.raises(OutputError, match=r"contains shards, but no plan\.json"):
        label_images(photos, tmp_path / "mine", config, **NAMES)
    with pytest.raises(ConfigError, match="unknown format 'yaml'"):
        label_images(photos, out, config, **NAMES, formats=["yaml"])


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def test_tar_parquet_and_lists_give_the_labels_of_the_files(
    photos: Path, config: Path, tmp_path: Path
) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="pip install 'odise_mm[parquet]'")
    from pyarrow import parquet

    paths = sorted(photos.glob("*/0*.png"))
    contents = [path.read_bytes() for path in paths]
    names = [str(path.relative_to(photos)) for path in paths]
    with tarfile.open(photos / "a.tar", "w") as tar:
        for name, content in zip(names, contents, strict=True):
            add(tar, name, content)
            add(tar, name.replace(".png", ".json"), b"{}")
    column = [dict(bytes=content, path="/etc/passwd") for content in contents]
    table = pyarrow.table(dict(label=list(range(7)), image=column))
    parquet.write_table(table, photos / "b.parquet", row_group_size=3)
    parquet.write_table(pyarrow.table(dict(file_name=names)), photos / "c.parquet")
    (photos / "d.txt").write_text("".join(f"{name}\n" for name in [*names, "", names[0]]))
    found = {}
    for source in ("*/0*.png", "a.tar", "b.parquet", "c.parquet", "d.txt"):
        out = tmp_path / "out" / source.replace("*/", "")
        done = label_images(photos / source, out, config, **NAMES, progress=False, batch_size=2)
        assert (done.labeled, done.failed, done.duplicates) == (6, 1, int(source == "d.txt"))
        found[source] = labels_of(out)
    assert list(found["a.tar"]) == [f"a.tar/{name}" for name in found["*/0*.png"]]
    assert list(found["b.parquet"]) == [f"b.parquet/{row}" for row in range(7) if row != 4]
    assert list(found["c.parquet"]) == list(found["d.txt"]) == list(found["*/0*.png"])
    for labels in found.values():
        assert list(labels.values()) == list(found["*/0*.png"].values())


def test_foreign_tar_members_stay_in_their_file(photos: Path, config: Path, tmp_path: Path) -> None:
    good = (photos / "0/000.png").read_bytes()
    with tarfile.open(tmp_path / "bad.tar", "w") as tar:
        for name in (
            "../../evil.png",
            "/evil.png",
            "fine.png",
            "fine.png",
            "c:\\evil.png",
            "\udcff.png",
        ):
            add(tar, name, good)
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
        add(tar, "last.png", good * 100)
    whole = (tmp_path / "bad.tar").read_bytes()
    cut = whole.index(good * 2) + 600
    (tmp_path / "bad.tar").write_bytes(whole[:cut])
    (tmp_path / "none.tar").write_bytes(b"x" * 2000)
    out = tmp_path / "out"
    sources = [tmp_path / "bad.tar", tmp_path / "none.tar"]
    done = label_images(sources, out, config, **NAMES, formats=["semantic"], progress=False)
    reasons = {line["image"]: line["error"] for line in lines(out / "failed.jsonl")}
    assert set(reasons) == {
        "bad.tar",
        "bad.tar/1",
        "bad.tar/2",
        "bad.tar/\udcff.png",
        "bad.tar/last.png",
        "none.tar",
    }
    assert done.labeled == 3 and done.failed == len(reasons)
    assert "leads outside the file" in reasons["bad.tar/1"]
    assert "the name is not UTF-8" in reasons["bad.tar/\udcff.png"]
    assert "ends before this image" in reasons["bad.tar/last.png"]
    assert "not a tar file" in reasons["none.tar"]
    written = {path.name for path in tmp_path.rglob("*evil*")}
    assert written == {"c:\\evil.png"} and not list(tmp_path.parent.glob("evil*"))


def test_sources_that_cannot_be_listed(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "list.txt").write_text("photos/0/000.png\n../other.png\n")
    (tmp_path / "a.tar.gz").write_bytes(b"")
    for source, message in {
        "empty": "no images, tar files or parquet files",
        "missing.tar": "no such source of images",
        "*.jpg": "no file matches this pattern",
        "list.txt": r"list.txt: line 2: '../other.png' leads outside .*--root",
        "a.tar.gz": "neither an image nor one of .*Unpack it to .tar",
    }.items():
        with pytest.raises(DatasetError, match=message):
            list_images([tmp_path / source])
    (tmp_path / "list.txt").write_text(f"photos/0/000.png\n{photos}/0/003.png\n/a b.png\n")
    listing = list_images([tmp_path / "list.txt"], root="/")
    assert [item.file for item in listing.items] == [
        "photos/0/000.png",
        f"{photos}/0/003.png"[1:],
        "a b.png",
    ]


def test_large_images_in_windows(config: Path, tmp_path: Path) -> None:
    Image.new("RGB", (40, 16)).save(tmp_path / "wide.png")
    label_images(tmp_path / "wide.png", tmp_path / "out", config, **NAMES, window=16, overlap=8)
    (segments,) = labels_of(tmp_path / "out").values()
    assert len(segments) > 2 and sum(segment["area"] for segment in segments) == 40 * 16


# --- killed runs ------------------------------------------------------------------------------

IMAGES = 300
KILLS = 8


def start(rank: int, port: int, photos: Path, out: Path, config: Path, kill_at: int) -> None:
    """Run one of two processes. It kills itself at the ``kill_at``-th batch or flushed file."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    moments = itertools.count(1)

    def counted(work: Callable[..., Any]) -> Callable[..., Any]:
        def count_and_work(*args: Any) -> Any:
            if next(moments) == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return work(*args)

        return count_and_work

    folder_module.flush_to_disk = counted(folder_module.flush_to_disk)
    FakeSegmentor.test_step = counted(FakeSegmentor.test_step)
    label_images(
        photos, out, config, **NAMES, shard_size=8, batch_size=2, launcher="pytorch", workers=2
    )
    os._exit(0)


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def test_killed_runs_lose_nothing_and_repeat_nothing(config: Path, tmp_path: Path) -> None:
    """Two processes, killed at random moments, end with the files of an uninterrupted process."""
    photos, whole, out = tmp_path / "photos", tmp_path / "whole", tmp_path / "out"
    paths = write_images(photos, IMAGES)
    for path in paths[::50]:
        path.write_bytes(b"broken")
    done = label_images(photos, whole, config, **NAMES, shard_size=8, batch_size=2, progress=False)
    assert (done.labeled, done.failed, len(done.shards)) == (IMAGES - 6, 6, 38)
    rng, context = random.Random(0), multiprocessing.get_context("fork")
    seen: dict[Path, int] = {}
    children: list[Any] = []
    interrupted = 0
    while not children or any(child.exitcode for child in children):
        kill = interrupted < KILLS
        arguments = (free_port(), photos, out, config)
        children = []
        for rank in range(2):
            kill_at = rng.randint(1, 25) if kill else 0
            children.append(context.Process(target=start, args=(rank, *arguments, kill_at)))
            children[-1].start()
        multiprocessing.connection.wait([child.sentinel for child in children])
        if kill:  # torchrun ends the others, too
            time.sleep(rng.uniform(0, 0.02))
            for child in children:
                child.kill()
        for child in children:
            child.join()
        now = {p: p.stat().st_mtime_ns for p in (out / "shards").glob("[0-9]*/images.jsonl")}
        assert seen.items() <= now.items(), "a finished shard was lost or written again"
        seen = now
        interrupted += any(child.exitcode == -signal.SIGKILL for child in children)
        assert interrupted <= KILLS and (kill or not any(child.exitcode for child in children))
    assert interrupted > KILLS // 2
    assert files_of(out) == files_of(whole)
    assert (out / "index.jsonl").read_bytes() == (whole / "index.jsonl").read_bytes()
    assert len(lines(out / "failed.jsonl")) == 6 and not list((out / "shards").glob(".*"))


def test_ray_gives_the_files_of_one_process(photos: Path, config: Path, tmp_path: Path) -> None:
    ray = pytest.importorskip("ray", reason="pip install 'odise_mm[ray]'")
    pytest.importorskip("ray.data", reason="pip install 'odise_mm[ray]'")
    options = dict(NAMES, shard_size=2, progress=False)
    label_images(photos, tmp_path / "one", config, **options)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        done = label_images(photos, tmp_path / "ray", config, **options, engine="ray", actors=2)
        with pytest.raises(ConfigError, match="nothing.py"):
            label_images(photos, tmp_path / "new", "nothing.py", **options, engine="ray")
    finally:
        ray.shutdown()
    assert (done.labeled, done.failed, len(done.shards)) == (6, 1, 4)
    assert files_of(tmp_path / "ray") == files_of(tmp_path / "one")
