"""Converters of ADE20K, Pascal Context and VOC, and the code that all converters share.

Each test converts a tiny copy of the provider's archive, and compares the result pixel by pixel
with the data that the copy was made from.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mmengine.config import Config
from PIL import Image
from pycocotools import mask as run_lengths
from scipy.io import savemat

from odise_mm.annotations.ground_truth import read_semantic_truth
from odise_mm.annotations.label_maps import IGNORED
from odise_mm.converters import ade20k, ade20k_full, pascal_context, voc
from odise_mm.converters.files import image_size, read_json
from odise_mm.converters.program import INTERRUPTED
from odise_mm.converters.verification import verify_semantic
from odise_mm.converters.work import Item, convert_all
from odise_mm.errors import DatasetError
from odise_mm.registry import DATASETS
from odise_mm.utils.files import atomic_writer, write_json
from odise_mm.vocabulary import Vocabulary
from tests.support import tiny_ade_pascal as tiny_archives
from tests.support.converter_work import double, items_in

ROOT = Path(__file__).resolve().parents[2]


def png(path: Path) -> np.ndarray:
    return np.array(Image.open(path))


def written(root: Path) -> dict[str, tuple[bytes, int]]:
    """Return content and modification time of all files."""
    return {
        str(p.relative_to(root)): (p.read_bytes(), p.stat().st_mtime_ns)
        for p in sorted(root.rglob("*"))
        if p.is_file()
    }


# --- common ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2])
def test_results_are_ordered_and_first_bad_file_is_named(tmp_path: Path, workers: int) -> None:
    results = convert_all(items_in(tmp_path, 11), double, "", workers)
    assert results == [dict(twice=2 * i) for i in range(11)]
    assert [png(tmp_path / f"{i:03d}.png")[0, 0] for i in range(11)] == list(range(11))
    other = tmp_path / "other"
    with pytest.raises(DatasetError, match=r"other/004\.raw: nothing sensible"):
        convert_all(items_in(other, 11, n4="bad", n7="bad"), double, "", workers)
    assert all((other / f"{i:03d}.png").exists() for i in range(4))


def test_only_missing_items_are_processed_again(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    with pytest.raises(DatasetError, match=r"003\.raw"):
        convert_all(items_in(tmp_path, 6, n3="bad"), double, "", journal=journal)
    # simulate a truncated last line and a truncated image
    journal.write_text(journal.read_text().rstrip("\n")[:-5])
    (tmp_path / "001.png").write_bytes((tmp_path / "001.png").read_bytes()[:-6])
    before = (tmp_path / "000.png").stat().st_mtime_ns
    done: list[str] = []

    def recording(item: Item) -> dict[str, int]:
        done.append(item.source.stem)
        return double(item)

    results = convert_all(items_in(tmp_path, 6), recording, "", journal=journal)
    assert done == ["001", "002", "003", "004", "005"]
    assert results == [dict(twice=2 * i) for i in range(6)]
    assert (tmp_path / "000.png").stat().st_mtime_ns == before
    done.clear()
    assert convert_all(items_in(tmp_path, 6), recording, "", journal=journal) == results
    assert done == []


def test_unexpected_errors_are_not_converted(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="invalid literal") as caught:
        convert_all([Item(tmp_path / "x.raw", tmp_path / "x.png")], double, "")
    assert not isinstance(caught.value, DatasetError)


@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGINT])
def test_stopped_runs_continue_and_leave_no_process_behind(
    tmp_path: Path, stop: signal.Signals
) -> None:
    code = (
        "import signal, sys; sys.path.insert(0, sys.argv[1])\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # background jobs ignore it
        "from pathlib import Path\n"
        "from tests.support.converter_work import double, items_in\n"
        "from odise_mm.converters.program import program\n"
        "from odise_mm.converters.work import convert_all\n"
        "if __name__ == '__main__':\n"
        "    folder = Path(sys.argv[2])\n"
        "    slow = {f'n{i}': 0.3 for i in range(4, 40)}\n"
        "    with program():\n"
        "        convert_all(items_in(folder, 40, **slow), double, '', 2,"
        " journal=folder / 'journal')\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(ROOT), str(tmp_path)], stderr=subprocess.PIPE, text=True
    )
    journal, limit = tmp_path / "journal", time.monotonic() + 60
    while not (journal.exists() and "003.raw" in journal.read_text()):
        assert process.poll() is None and time.monotonic() < limit
        time.sleep(0.05)
    workers = [
        int(pid)
        for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    ]
    process.send_signal(stop)
    _, messages = process.communicate(timeout=60)
    assert len(workers) >= 2 and "039.raw" not in journal.read_text()
    if stop is signal.SIGINT:
        assert process.returncode == INTERRUPTED
        assert "interrupted; run the same command again to continue" in messages
        assert "Traceback" not in messages
    while any(is_running(pid) for pid in workers):
        assert time.monotonic() < limit
        time.sleep(0.05)
    results = convert_all(items_in(tmp_path, 40), double, "", journal=journal)
    assert results == [dict(twice=2 * i) for i in range(40)]
    if stop is signal.SIGINT:  # a kill may leave a hidden, incomplete file
        assert set(tmp_path.iterdir()) == {journal, *(i.output for i in items_in(tmp_path, 40))}


def is_running(pid: int) -> bool:
    """Return whether a process exists and is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, dict(a=1))
    with pytest.raises(RuntimeError), atomic_writer(path) as file:
        file.write(b"half of")
        raise RuntimeError
    assert read_json(path) == dict(a=1)
    assert os.listdir(tmp_path) == ["a.json"]


def test_image_size_applies_the_exif_orientation(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (30, 20)).save(tmp_path / "turned.jpg", exif=exif)
    assert image_size(tmp_path / "turned.jpg") == (30, 20)


@pytest.mark.parametrize(
    ("numbers", "num_classes", "from_one", "present"),
    [
        (np.array([[0, 20, 255]], np.uint8), 21, False, {0, 20}),
        (np.array([[0, 20, 255]], np.uint8), 20, True, {19}),
        (np.array([[0, 846, 65535]], np.uint16), 847, False, {0, 846}),
        (np.array([[False, True]]), 2, False, {0, 1}),
        (np.array([[0, 21]], np.uint8), 21, False, "class index 21"),
        (
            np.array([[0, 255]], np.uint8),
            300,
            False,
            "255 is both a class and .*'ignored'",
        ),
    ],
)
def test_verification_of_label_maps(
    numbers: np.ndarray, num_classes: int, from_one: bool, present: Any, tmp_path: Path
) -> None:
    label, image = tmp_path / "label.png", tmp_path / "image.jpg"
    Image.fromarray(numbers).save(label)
    Image.new("RGB", numbers.shape[::-1]).save(image)
    check = partial(verify_semantic, [(image, label)], num_classes, reduce_zero_label=from_one)
    if isinstance(present, set):
        assert check().classes == len(present)
        return
    with pytest.raises(DatasetError, match=rf"label\.png: {present}"):
        check()


# --- the converters -------------------------------------------------------------------------------

TOOLS: dict[str, tuple[Callable, Callable]] = {
    "ade20k": (tiny_archives.write_raw_ade20k, ade20k.main),
    "ade20k_full": (tiny_archives.write_raw_ade847, ade20k_full.main),
    "pascal_context": (tiny_archives.write_raw_pascal_context, pascal_context.main),
    "voc": (tiny_archives.write_raw_voc, voc.main),
}


def run(name: str, root: Path, *options: str) -> None:
    TOOLS[name][1]([str(root), "--workers", "1", *options])


def raw(name: str, data: Path) -> tiny_archives.Truth:
    return TOOLS[name][0](data)


def test_ade20k_panoptic_and_instances(tmp_path: Path) -> None:
    truth = tiny_archives.prepare("ade20k", tmp_path)
    content = json.loads((truth.root / "panoptic_val.json").read_text())
    objects = json.loads((truth.root / "instances_val.json").read_text())
    names = {c["id"]: c["name"] for c in content["categories"]}
    assert tuple(names.values()) == Vocabulary.load("ade20k").source_names
    assert list(names) == list(range(1, 151))
    assert {c["id"] for c in objects["categories"]} == {
        c["id"] for c in content["categories"] if c["isthing"]
    }
    things = tiny_archives.ade20k_things()
    assert [i["id"] for i in content["images"]] == [1, 2, 3]
    for image, annotation in zip(content["images"], content["annotations"], strict=True):
        stem = Path(image["file_name"]).stem
        assert annotation["image_id"] == image["id"] and annotation["file_name"] == f"{stem}.png"
        rgb = png(truth.root / "panoptic_val" / f"{stem}.png").astype(int)
        ids = rgb @ [1, 256, 65536]
        place, number, _ = np.moveaxis(
            png(truth.root / "annotations_instance" / "validation" / f"{stem}.png"), 2, 0
        )
        semantic = truth.labels[stem]
        # (category, object) of each pixel; (category, 0) for stuff, (0, 0) for void
        category = np.where(number > 0, np.array([0, *things])[place], semantic)
        category[(number == 0) & np.isin(semantic, things)] = 0
        expected = {
            (c, n): (category == c) & (number == n)
            for c, n in set(zip(category.ravel().tolist(), number.ravel().tolist(), strict=True))
        }
        assert (ids[expected.pop((0, 0))] == 0).all()
        segments = annotation["segments_info"]
        assert len(segments) == len(expected) == len(set(np.unique(ids)) - {0})
        of_image = [a for a in objects["annotations"] if a["image_id"] == image["id"]]
        for (c, n), mask in expected.items():
            (segment,) = [s for s in segments if (ids[mask] == s["id"]).all()]
            rows, columns = np.nonzero(mask)
            box = [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
            assert (ids == segment["id"]).sum() == segment["area"] == mask.sum()
            assert segment["category_id"] == c and segment["bbox"] == box
            same = [a for a in of_image if (run_lengths.decode(a["segmentation"]) == mask).all()]
            assert len(same) == (n > 0)
            if n:
                assert same[0]["category_id"] == c and same[0]["area"] == mask.sum()
                assert same[0]["bbox"] == box and same[0]["iscrowd"] == 0
        assert len(of_image) == sum(n > 0 for _, n in expected)


def test_ade20k_instance_classes_equal_the_provider_list() -> None:
    """Compare with some lines of the provider's instanceInfo100_val.txt."""
    listed = {
        1: "bed", 2: "windowpane", 4: "person", 20: "bathtub", 31: "stairs", 44: "palm",
        50: "bus", 58: "television receiver", 60: "apparel", 71: "barrel", 79: "trade name",
        85: "screen", 92: "ashcan", 95: "monitor", 100: "flag",
    }  # fmt: skip
    things = tiny_archives.ade20k_things()
    names = Vocabulary.load("ade20k").source_names
    assert {place: names[things[place - 1] - 1] for place in listed} == listed
    assert len(things) == 100


def test_ade20k_wrong_order_of_instance_classes_raises(tmp_path: Path) -> None:
    truth = raw("ade20k", tmp_path)
    for path in sorted((truth.root / "annotations_instance" / "validation").iterdir()):
        pixels = png(path)
        pixels[..., 0] = np.where(pixels[..., 0], pixels[..., 0] % 100 + 1, 0)
        tiny_archives.write_map(path, pixels)
    with pytest.raises(
        DatasetError, match=r"ADE_val_00000001\.png: the classes of the instances differ"
    ):
        run("ade20k", truth.root)


def test_ade20k_single_inconsistent_file_is_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    truth = raw("ade20k", tmp_path)
    path = truth.root / "annotations_instance" / "validation" / "ADE_val_00000002.png"
    pixels = png(path)
    pixels[..., 0] = np.where(pixels[..., 0], pixels[..., 0] % 100 + 1, 0)
    tiny_archives.write_map(path, pixels)
    run("ade20k", truth.root)
    assert "1 files in which the class of most instance pixels differs" in capsys.readouterr().out


def test_ade20k_training_split(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    truth = raw("ade20k", tmp_path)
    run("ade20k", truth.root, "--splits", "train", "val")
    out = capsys.readouterr().out
    assert "2 images; the complete dataset has 20,210" in out and "3 images" in out
    content = json.loads((truth.root / "panoptic_train.json").read_text())
    assert [i["file_name"] for i in content["images"]] == [
        "ADE_train_00000001.jpg", "ADE_train_00000002.jpg",
    ]  # fmt: skip


def test_ade847(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    truth = tiny_archives.prepare("ade847", tmp_path)
    assert "derived from the index" in capsys.readouterr().out
    vocabulary = Vocabulary.load(truth.root / "ade847.txt")
    numbers = [1, 2, 300, 600, 999]
    assert vocabulary.synonyms == tuple(tuple(truth.names[n].split(", ")) for n in numbers)
    for name, labels in truth.labels.items():
        folder = truth.images[name].parent.name
        below = f"annotations_847/validation/urban/{folder}/{name}.png"
        made = png(truth.root / below)
        expected = np.full(labels.shape, 65535)
        for index, number in enumerate(numbers):
            expected[labels == number] = index
        assert made.dtype == np.uint16 and (made == expected).all()


def test_ade847_with_given_classes(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    truth = raw("ade20k_full", tmp_path)
    given = tmp_path / "classes.txt"
    given.write_text("sky\n999\n\nbuilding, edifice\n")
    run("ade20k_full", truth.root, "--classes", str(given))
    assert "derived from the index" not in capsys.readouterr().out
    assert (truth.root / "ade847.txt").read_text() == (
        "0:sky\n1:sidewalk,pavement\n2:building,edifice\n"
    )
    name = "ADE_val_00000002"
    made = png(truth.root / "annotations_847/validation/urban/street_1" / f"{name}.png")
    assert (made == np.where(truth.labels[name] == 999, 1, 65535)).all()
    with pytest.raises(
        DatasetError, match=r"ade847\.txt: its classes differ from the requested ones"
    ):
        run("ade20k_full", truth.root)
    for line, message in (
        ("unheard of", "classes.txt:2: the index has no object 'unheard of'"),
        ("5000", "classes.txt:2: the index has no object '5000'"),
        ("sky", "classes.txt:2: 'sky' is listed twice"),
    ):
        given.write_text(f"sky\n{line}\n")
        with pytest.raises(DatasetError, match=message):
            run("ade20k_full", truth.root, "--classes", str(given))


def test_ade847_names_are_normalized(tmp_path: Path) -> None:
    """Spaces around commas and double spaces differ between the index and published lists."""
    truth = raw("ade20k_full", tmp_path)
    path = truth.root / "index_ade20k.pkl"
    content = pickle.loads(path.read_bytes())
    spelled = {2: "building ,edifice", 1200: " rock,  stone ,", 999: "sidewalk , pavement"}
    names = list(content["objectnames"])
    for number, name in spelled.items():
        names[number - 1] = name
    path.write_bytes(pickle.dumps({**content, "objectnames": names}, protocol=4))
    given = tmp_path / "classes.txt"
    given.write_text(
        "0:invalid_class_id\n1:rock,stone\n2:building, edifice\n3:sidewalk,pavement \n"
    )
    run("ade20k_full", truth.root, "--classes", str(given))
    assert (truth.root / "ade847.txt").read_text() == (
        "0:rock,stone\n1:building,edifice\n2:sidewalk,pavement\n"
    )
    index = ade20k_full.read_index(path)
    for line in ("rock , stone", "rock,stone,", "1200", "rock,\tstone"):
        given.write_text(f"{line}\n")
        assert ade20k_full.choose_classes(index, given) == [1200]
    given.write_text("rock\n")
    with pytest.raises(DatasetError, match="no object 'rock'"):
        ade20k_full.choose_classes(index, given)


@pytest.mark.parametrize(
    ("folder", "file"),
    [
        ("ADE20K_2021_17_01/images/ADE/validation/../../../../out", "a.jpg"),
        ("ADE20K_2021_17_01/images/ADE/validation/urban", "../../../../../a.jpg"),
        ("ADE20K_2021_17_01/..", "a.jpg"),
        ("ADE20K_2021_17_01", "/etc/a.jpg"),
        ("ADE20K_2021_17_01", ""),
        ("ADE20K_2021_17_01/images/ADE/validation/..", "validation/a.jpg"),
    ],
)
def test_ade847_paths_stay_inside_the_release(tmp_path: Path, folder: str, file: str) -> None:
    truth = raw("ade20k_full", tmp_path)
    path = truth.root / "index_ade20k.pkl"
    content = pickle.loads(path.read_bytes())
    content["folder"] = [*content["folder"][:-1], folder]
    content["filename"] = [*content["filename"][:-1], file]
    path.write_bytes(pickle.dumps(content, protocol=4))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(DatasetError, match=r"index_ade20k\.pkl: the path of an image"):
        run("ade20k_full", truth.root)
    assert sorted(tmp_path.rglob("*")) == before


class Malicious:
    def __reduce__(self) -> tuple:
        return os.mkdir, ("was_run",)


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_ade847_index_with_code_raises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocol: int
) -> None:
    monkeypatch.chdir(tmp_path)
    truth = raw("ade20k_full", tmp_path)
    path = truth.root / "index_ade20k.pkl"
    content = pickle.loads(path.read_bytes())
    content["objectcounts"] = [np.float64(3), np.int64(4), b"bytes"]
    path.write_bytes(pickle.dumps(content, protocol))
    index = ade20k_full.read_index(path)
    assert index.names == content["objectnames"]
    assert index.presence[299].tolist() == [True, False, False, True, False]
    assert not index.presence[300].any()  # wheels are parts
    function = b"_frombuffer" if protocol == 5 else b"_reconstruct"
    path.write_bytes(path.read_bytes().replace(function, function[:-1] + b"?"))
    with pytest.raises(DatasetError, match=r"cannot be read \(it needs numpy.*not plain data"):
        ade20k_full.read_index(path)
    content["scene"] = Malicious()
    path.write_bytes(pickle.dumps(content, protocol))
    with pytest.raises(
        DatasetError, match=r"index_ade20k\.pkl: cannot be read \(it needs posix\.mkdir"
    ):
        ade20k_full.read_index(path)
    assert not (tmp_path / "was_run").exists()


def test_ade847_index_of_another_release_raises(tmp_path: Path) -> None:
    truth = raw("ade20k_full", tmp_path)
    path = truth.root / "index_ade20k.pkl"
    content = pickle.loads(path.read_bytes())
    content["objectnames"].insert(0, "new")
    content["objectnames"].pop()
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(
        DatasetError, match=r"00000001\.json: object 1 is called 'wall', but not in index_ade20k"
    ):
        run("ade20k_full", truth.root)


def test_pascal_context(tmp_path: Path) -> None:
    truth = tiny_archives.prepare("pc59", tmp_path)
    assert (truth.root / "pascal_context_val.txt").read_text().split() == list(truth.labels)
    known = Vocabulary.load("pascal_context59").source_names
    vocabulary = Vocabulary.load(truth.root / "pc459.txt")
    assert [group[0] for group in vocabulary.synonyms] == list(truth.names.values())
    index = {number: known.index(name.replace("potted plant", "pottedplant"))
             for number, name in truth.names.items() if not name.startswith("odd")}  # fmt: skip
    assert len(index) == 59
    for name, labels in truth.labels.items():
        small = png(truth.root / "annotations_pc59" / f"{name}.png")
        large = png(truth.root / "annotations_pc459" / f"{name}.png")
        assert small.dtype == np.uint8 and large.dtype == np.uint16
        assert (small == np.vectorize(lambda n: index.get(n, 255))(labels)).all()
        assert (large == np.where(labels == 0, 65535, labels - 1)).all()
        assert len(np.unique(small)) > 3


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (
            "59_labels.txt",
            ("sofa", "settee"),
            r"59_labels\.txt: 'settee' is not one of the 59 classes",
        ),
        ("59_labels.txt", ("57: water\n", ""), r"59_labels\.txt: lacks 'water'"),
        ("labels.txt", (": horse\n", ": pony\n"), r"/labels\.txt: no class 'horse'"),
        ("labels.txt", ("459: odd thing 459\n", ""), r"/labels\.txt: 458 classes"),
        ("labels.txt", ("12: ", "11: "), r"/labels\.txt:12: number 11 occurs twice"),
    ],
)
def test_pascal_context_wrong_lists_raise(
    tmp_path: Path, file: str, change: tuple[str, str], message: str
) -> None:
    truth = raw("pascal_context", tmp_path)
    path = truth.root / file
    assert change[0] in path.read_text()
    path.write_text(path.read_text().replace(change[0], change[1], 1))
    with pytest.raises(DatasetError, match=message):
        run("pascal_context", truth.root)


def test_voc_is_verified_and_not_changed(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    truth = raw("voc", tmp_path)
    before = written(truth.root)
    run("voc", truth.root, "--splits", "train", "val")
    assert written(truth.root) == before
    assert "3 images; the complete dataset has 1,449" in capsys.readouterr().out


# --- interrupted, damaged and modified files ------------------------------------------------------

# for each dataset, an original file in the middle and an output file
MIDDLE_SOURCE = {
    "ade20k": "annotations_instance/validation/ADE_val_00000002.png",
    "ade20k_full": "images/ADE/validation/urban/street_1/ADE_val_00000002_seg.png",
    "pascal_context": "trainval/2008_000001.mat",
    "voc": "SegmentationClass/2007_000001.png",
}
FIRST_OUTPUT = {
    "ade20k": "panoptic_val/ADE_val_00000001.png",
    "ade20k_full": "annotations_847/validation/urban/street_0/ADE_val_00000001.png",
    "pascal_context": "annotations_pc459/2008_000000.png",
}


@pytest.mark.parametrize("name", TOOLS)
def test_stops_at_a_bad_file_and_continues_there(tmp_path: Path, name: str) -> None:
    truth = raw(name, tmp_path / "cut")
    whole = raw(name, tmp_path / "whole")
    run(name, whole.root)
    path = truth.root / MIDDLE_SOURCE[name]
    good = path.read_bytes()
    path.write_bytes(good[: len(good) // 2])
    with pytest.raises(DatasetError, match=path.name):
        run(name, truth.root)
    path.write_bytes(good)
    first = FIRST_OUTPUT.get(name)
    before = first and (truth.root / first).stat().st_mtime_ns
    run(name, truth.root)
    assert not first or (truth.root / first).stat().st_mtime_ns == before
    made, expected = written(truth.root), written(whole.root)
    assert {k: v[0] for k, v in made.items()} == {k: v[0] for k, v in expected.items()}
    run(name, truth.root)  # the next run only verifies
    later = written(truth.root)
    pngs = [k for k in made if k.endswith(".png") or k.endswith("_val.json")]
    assert {k: later[k] for k in pngs} == {k: made[k] for k in pngs}


@pytest.mark.parametrize("name", TOOLS)
@pytest.mark.parametrize("fault", ["missing", "size", "image"])
def test_first_bad_file_is_named(tmp_path: Path, name: str, fault: str) -> None:
    truth = raw(name, tmp_path)
    path = truth.root / MIDDLE_SOURCE[name]
    image = list(truth.images.values())[1]
    if fault == "missing" and name == "pascal_context":
        path = image  # images without a .mat file are not part of the dataset
    if fault == "missing":
        path.unlink()
    elif fault == "image":
        image.write_bytes(b"not an image")
    elif path.suffix == ".mat":
        savemat(path, dict(LabelMap=np.ones((7, 9), np.uint16)))
    else:
        tiny_archives.write_map(path, png(path)[:-1])
    with pytest.raises(DatasetError, match=image.stem):
        run(name, truth.root)


@pytest.mark.parametrize("name", TOOLS)
def test_missing_folder_message_has_the_archive(tmp_path: Path, name: str) -> None:
    with pytest.raises(DatasetError, match=r"no such f.*; (unpack|get it from) .*"):
        run(name, tmp_path)


def flip_a_pixel(path: Path) -> None:
    pixels = png(path)
    pixels[0, 0] = 250 if pixels.ndim == 2 else pixels[0, 0] + 1
    tiny_archives.write_map(path, pixels)


def edit(change: Callable[[dict], None]) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return apply


def segments(content: dict) -> list[dict]:
    return content["annotations"][1]["segments_info"]


MODIFIED = {
    "png": ("panoptic_val/ADE_val_00000002.png", flip_a_pixel, r"00000002\.png: the JSON lacks"),
    "png size": (
        "panoptic_val/ADE_val_00000002.png",
        lambda p: tiny_archives.write_map(p, png(p)[1:]),
        r"00000002\.png: 33 x 47 pixels, but 33 x 48 in the JSON",
    ),
    "png gone": ("panoptic_val/ADE_val_00000002.png", Path.unlink, r"00000002\.png"),
    "png mode": (
        "panoptic_val/ADE_val_00000002.png",
        lambda p: tiny_archives.write_map(p, png(p)[..., 0]),
        r"00000002\.png: a panoptic PNG must be RGB",
    ),
    "segment gone": (
        "panoptic_val.json", edit(lambda c: segments(c).pop()), r"00000002\.png: the JSON lacks",
    ),
    "segment twice": (
        "panoptic_val.json",
        edit(lambda c: segments(c).append(segments(c)[0])),
        r"00000002\.png has two segments with the same id",
    ),
    "segment more": (
        "panoptic_val.json",
        edit(lambda c: segments(c).append(dict(segments(c)[0], id=99))),
        r"00000002\.png: the PNG lacks segment 99",
    ),
    "area": (
        "panoptic_val.json",
        edit(lambda c: segments(c)[0].update(area=1)),
        r"00000002\.png: area or box of segment 1 differs",
    ),
    "category": (
        "panoptic_val.json",
        edit(lambda c: segments(c)[0].update(category_id=151)),
        r"00000002\.png: segment 1 has category 151",
    ),
    "stuff twice": (
        "panoptic_val.json",
        edit(lambda c: segments(c)[1].update(category_id=segments(c)[0]["category_id"])),
        r"00000002\.png: two segments of the stuff category",
    ),
    "image gone": (
        "panoptic_val.json",
        edit(lambda c: (c["images"].pop(), c["annotations"].pop())),
        r"panoptic_val\.json: 2 images, but .* has 3",
    ),
    "image twice": (
        "panoptic_val.json",
        edit(lambda c: c["images"].append(c["images"][0])),
        r"panoptic_val\.json: image id 1 appears more than once",
    ),
    "categories": (
        "panoptic_val.json",
        edit(lambda c: c["categories"].reverse()),
        r"panoptic_val\.json: its categories are not",
    ),
    "not json": (
        "panoptic_val.json", lambda p: p.write_text("{"), r"panoptic_val\.json: not JSON",
    ),
    "no categories": (
        "panoptic_val.json",
        edit(lambda c: c.pop("categories")),
        r"panoptic_val\.json: not annotations in COCO's format \(KeyError\('categories'\)",
    ),
    "annotation of no image": (
        "panoptic_val.json",
        edit(lambda c: c["annotations"][0].pop("image_id")),
        r"panoptic_val\.json: annotation number 1 of the list has no `image_id`",
    ),
    "no area": (
        "panoptic_val.json",
        edit(lambda c: segments(c)[0].pop("area")),
        r"00000002\.png: not described completely by the JSON \(KeyError\('area'\)",
    ),
    "object without box": (
        "instances_val.json",
        edit(lambda c: c["annotations"][4].pop("bbox")),
        r"instances_val\.json: annotation 5 has no `bbox`",
    ),
    "object without mask": (
        "instances_val.json",
        edit(lambda c: c["annotations"][4].update(segmentation=[])),
        r"skipped 1 of \d+ annotations .* they have no mask \(the first: annotation 5 of image 2",
    ),
    "object twice": (
        "instances_val.json",
        edit(lambda c: c["annotations"].append(c["annotations"][0])),
        r"instances_val\.json: annotation id 1 appears more than once",
    ),
    "object's area": (
        "instances_val.json",
        edit(lambda c: c["annotations"][4].update(area=3)),
        r"annotation 5 of .*ADE_val_00000002\.jpg: its mask has",
    ),
    "object's box": (
        "instances_val.json",
        edit(lambda c: c["annotations"][4].update(bbox=[0, 0, 2, 2])),
        r"annotation 5 of .*: its box does not match its mask",
    ),
    "object's category": (
        "instances_val.json",
        edit(lambda c: c["annotations"][4].update(category_id=1)),  # wall
        r"annotation 5 has category 1, which is not in",
    ),
    "raw label": (
        "annotations/validation/ADE_val_00000002.png", flip_a_pixel,
        r"00000002\.png: class index 249, value 250",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def prepared_ade20k(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_archives.prepare("ade20k", tmp_path_factory.mktemp("ade20k")).root


@pytest.mark.parametrize("how", MODIFIED)
def test_ade20k_verification_finds_modified_files(
    tmp_path: Path, prepared_ade20k: Path, how: str
) -> None:
    root = tmp_path / "ade"
    shutil.copytree(prepared_ade20k, root)
    run("ade20k", root, "--verify-only")
    file, change, message = MODIFIED[how]
    change(root / file)
    before = written(root)
    with pytest.raises(DatasetError, match=message):
        run("ade20k", root, "--verify-only")
    assert written(root) == before


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("ade20k_full", FIRST_OUTPUT["ade20k_full"]),
        ("pascal_context", FIRST_OUTPUT["pascal_context"]),
        ("pascal_context", "annotations_pc59/2008_000002.png"),
        ("voc", MIDDLE_SOURCE["voc"]),
    ],
)
@pytest.mark.parametrize("how", ["label", "size", "gone", "cut"])
def test_semantic_verification_finds_modified_files(
    tmp_path: Path, name: str, file: str, how: str
) -> None:
    truth = raw(name, tmp_path)
    run(name, truth.root)
    path = truth.root / file
    pixels = png(path)
    if how == "label":
        pixels[0, 0] = 21 if name == "voc" else 459 if pixels.dtype == np.uint16 else 59
        tiny_archives.write_map(path, pixels)
    elif how == "size":
        tiny_archives.write_map(path, pixels[:, 1:])
    elif how == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(DatasetError, match=path.name):
        run(name, truth.root, "--verify-only")


def test_verify_only_without_outputs_raises(tmp_path: Path) -> None:
    for name in ("ade20k", "ade20k_full", "pascal_context"):
        truth = raw(name, tmp_path)
        with pytest.raises(DatasetError, match="without --verify-only"):
            run(name, truth.root, "--verify-only")


def test_programs_print_one_line_on_errors(tmp_path: Path) -> None:
    for name in TOOLS:
        done = subprocess.run(
            [sys.executable, ROOT / f"tools/dataset_converters/{name}.py", tmp_path / "none"],
            capture_output=True,
            text=True,
            cwd=tmp_path,
        )
        assert done.returncode == 2 and done.stdout == ""
        (line,) = done.stderr.splitlines()
        assert line.startswith("error: ") and "none" in line


def test_several_processes_write_the_same_files(tmp_path: Path) -> None:
    one, two = (raw("ade20k", tmp_path / n) for n in ("one", "two"))
    run("ade20k", one.root)
    ade20k.main([str(two.root), "--workers", "2"])
    first, second = written(one.root), written(two.root)
    assert {k: v[0] for k, v in first.items()} == {k: v[0] for k, v in second.items()}


# --- datasets of the configs on the converted files -----------------------------------------------

DATASET_NAMES = ["ade20k", "ade847", "pc59", "pc459", "voc20", "voc21"]


@pytest.mark.parametrize("name", DATASET_NAMES)
def test_datasets_of_the_configs_return_the_ground_truth(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    truth = tiny_archives.prepare(name, tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    cfg = Config.fromfile(ROOT / f"configs/_base_/datasets/{name}.py")
    dataset = DATASETS.build(dict(cfg.test_dataloader.dataset, pipeline=[]))
    assert len(dataset) == len(truth.images) == 3
    classes = dict(ade20k=150, ade847=5, pc59=59, pc459=459, voc20=20, voc21=21)[name]
    assert len(dataset.vocabulary) == len(dataset.metainfo["classes"]) == classes
    number_of = {n: i for i, n in truth.names.items()}
    for index, (stem, image) in enumerate(truth.images.items()):
        info = dataset.get_data_info(index)
        assert Path(info["img_path"]).samefile(image)
        labels, _ = read_semantic_truth(info, classes)
        assert labels.shape == truth.labels[stem].shape
        expected = truth.labels[stem]
        seen = np.unique(labels[labels != IGNORED])
        assert len(seen) > 1
        for label in seen:
            (number,) = np.unique(expected[labels == label])
            assert (labels[expected == number] == label).all()
            source = dataset.vocabulary.source_names[label]
            if name == "ade847":
                shown = ", ".join(dataset.vocabulary.synonyms[label])
                assert number == number_of[shown]
            elif name == "pc59":
                assert number == number_of[source.replace("pottedplant", "potted plant")]
            elif name == "pc459":
                assert number == number_of[source]
            else:  # the provider's numbers are the vocabulary's indices
                assert number == label + (name != "voc21")
        if name == "ade20k":
            rgb = png(Path(info["seg_map_path"])).astype(int)
            drawn = set(np.unique(rgb @ [1, 256, 65536])) - {0}
            assert {s["id"] for s in info["segments_info"]} == drawn
            things = {s["label"] + 1 for s in info["segments_info"] if s["is_thing"]}
            assert things <= set(tiny_archives.ade20k_things())
            assert len([s for s in info["segments_info"] if s["is_thing"]]) == 3
    ann_file = cfg.test_evaluator[1].get("ann_file") if name == "ade20k" else None
    assert ann_file is None or Path(ann_file).is_file()
