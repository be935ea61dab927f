"""Every command of docs/evaluation.md runs unchanged, on tiny copies of all datasets.

Configs, test sets and converters are the repository's. Only the models are tiny ones, in configs
with the real names, and their checkpoints have the names of the published files.
"""

from __future__ import annotations

import importlib
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch

from odise_mm.annotations.panoptic_io import write_panoptic_png
from odise_mm.benchmarks.sets import CONVERTERS, LABEL_FILES, known_sets
from odise_mm.vocabulary import Vocabulary
from tests.support import tiny_ade_pascal as tiny_archives
from tests.support import tiny_street_lvis_uvo as more_tiny_archives

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "evaluation.md"
PUBLISHED = ("odise_label_coco_50e-b67d2efc.pth", "odise_caption_coco_50e-853cc971.pth")


def commands() -> list[list[str]]:
    """Return the words of all commands, in the page's order."""
    code = re.findall(r"^```(?:shell|bash)\n(.*?)^```$", PAGE.read_text(), re.M | re.S)
    lines = "".join(code).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True) for line in lines]


def write_raw_coco(data: Path) -> None:
    """Write COCO's unpacked archives: 3 validation images with things, stuff, crowd and void."""
    rng = np.random.default_rng(5)
    vocabulary = Vocabulary.load("coco")
    categories = [
        dict(id=index + 1, name=name, isthing=int(thing))
        for index, (name, thing) in enumerate(
            zip(vocabulary.source_names, vocabulary.is_thing, strict=True)
        )
    ]
    images, panoptic, instances, captions = [], [], [], []
    root = data / "coco"
    raw = root / "annotations"
    for number, size in enumerate(tiny_archives.SIZES):
        image_id = 100 + number
        ids = tiny_archives.patches(rng, size, [0, 10, 2000, 70000])
        name = f"{image_id:012d}"
        tiny_archives.write_image(root / "val2017" / f"{name}.jpg", ids, rng)
        write_panoptic_png(raw / "panoptic_val2017" / f"{name}.png", ids)
        images.append(dict(id=image_id, file_name=f"{name}.jpg", height=size[0], width=size[1]))
        segments = []
        for id_, category, crowd in ((10, 1, 0), (2000, 3, 1), (70000, 120, 0)):
            rows, columns = np.nonzero(ids == id_)
            box = [int(columns.min()), int(rows.min())]
            box += [int(columns.max()) - box[0] + 1, int(rows.max()) - box[1] + 1]
            common = dict(category_id=category, iscrowd=crowd, area=len(rows), bbox=box)
            segments.append(dict(id=id_, **common))
            if category < 81:
                counts = more_tiny_archives.run_lengths(ids == id_, "plain")
                instances.append(
                    dict(id=len(instances) + 1, image_id=image_id, segmentation=counts, **common)
                )
        panoptic.append(dict(image_id=image_id, file_name=f"{name}.png", segments_info=segments))
        captions.append(
            dict(id=number, image_id=image_id, caption="A brown dog sits on a wooden bench.")
        )
    things = [category for category in categories if category["isthing"]]
    for name, entries, listed in (
        ("panoptic", panoptic, categories),
        ("instances", instances, things),
        ("captions", captions, []),
    ):
        content = dict(info={}, images=images, annotations=entries, categories=listed)
        (raw / f"{name}_val2017.json").write_text(json.dumps(content))


def write_labels(folder: Path, name: str, vocabulary: Vocabulary) -> None:
    """Write a label file in OpenSeg's format, with a synonym that the built-in list lacks."""
    lines = [
        f"{index}:{source.replace(',', '')},published name {index}"
        for index, source in enumerate(vocabulary.source_names, start=1)
    ]
    if name == "voc21":  # VOC's file counts from 0
        lines = [f"{int(line.partition(':')[0]) - 1}:{line.partition(':')[2]}" for line in lines]
    else:
        lines.insert(0, "0:invalid_class_id")
    (folder / LABEL_FILES[name]).write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create a small version of a user's folder after unpacking everything."""
    folder = tmp_path_factory.mktemp("evaluation")
    data = folder / "data"
    tiny_archives.write_raw_ade20k(data)
    tiny_archives.write_raw_ade847(data)
    context = tiny_archives.write_raw_pascal_context(data)
    tiny_archives.write_raw_voc(data)
    more_tiny_archives.write_raw_cityscapes(data)
    more_tiny_archives.write_raw_mapillary(data)
    write_raw_coco(data)
    more_tiny_archives.write_raw_lvis(data)
    more_tiny_archives.write_raw_uvo(data)

    labels = data / "openseg_labels"
    labels.mkdir()
    # Not in the order of the index; "floor, flooring" has no image.
    chosen = ("sky", "person, someone", "building, edifice", "floor, flooring", "wall")
    lines = [f"{i}:{name.replace(', ', ',')}\n" for i, name in enumerate(chosen, start=1)]
    (labels / "ade20k_847.txt").write_text("0:invalid_class_id\n" + "".join(lines))
    (labels / LABEL_FILES["ade847"]).write_text("".join(line.strip() + ",more\n" for line in lines))
    names = tuple(tuple([name]) for _, name in sorted(context.names.items()))
    write_labels(labels, "pc459", Vocabulary(names, (True,) * len(names)))
    for name in ("coco", "ade20k", "pc59", "voc21"):
        write_labels(labels, name, Vocabulary.load(name))

    (folder / "configs").mkdir()
    for name in ("odise_coco_label", "odise_coco_caption", "odise_label_ade20k"):
        (folder / "configs" / f"{name}.py").write_text(
            f'_base_ = ["{ROOT}/configs/odise/{name}.py"]\n'
            'custom_imports = dict(imports=["tests.support.small_test_set"])\n'
            'ensemble = dict(train_vocabulary="coco")\n'
            'model = dict(_delete_=True, type="HalvesSegmentor", ensemble=ensemble)\n'
        )
    checkpoint = dict(state_dict=dict(scale=torch.ones(1)))
    (folder / "checkpoints").mkdir()
    (folder / "work_dirs" / "odise_coco_label").mkdir(parents=True)
    for name in PUBLISHED:
        torch.save(checkpoint, folder / "checkpoints" / name)
    torch.save(checkpoint, folder / "work_dirs" / "odise_coco_label" / "iter_92188.pth")
    return folder


@pytest.fixture
def few_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Load and convert images in this process: each set has only three."""
    from odise_mm.benchmarks import sets

    complete = sets._from_name

    def quick(*args):
        test_set = complete(*args)
        test_set.cfg.test_dataloader.update(num_workers=0, persistent_workers=False)
        return test_set

    monkeypatch.setattr(sets, "_from_name", quick)


def run(words: list[str]) -> None:
    assert words[0] == "python", words
    module = importlib.import_module(words[1].removesuffix(".py").replace("/", "."))
    # The tiny models' configs have the names of the real ones, so a path is used.
    small = {path.stem: str(path) for path in Path("configs").glob("*.py")}
    arguments = [small.get(word, word) for word in words[2:]]
    if "dataset_converters" in words[1]:
        arguments += ["--workers", "1"]
    assert not module.main(arguments), words


def test_the_page_s_commands_in_their_order(
    workplace: Path, few_processes: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workplace)
    for words in commands():
        run(words)
    expected = {
        "label": ["ade20k", "coco", "ade847", "pc459", "pc59", "voc21"],
        "caption": ["ade20k", "coco", "ade847", "pc459", "pc59", "voc21"],
        "others": ["cityscapes", "mapillary", "lvis", "uvo", "voc20"],
    }
    for name, sets in expected.items():
        found = json.loads((workplace / "results" / f"{name}.json").read_text())
        assert found["done"] == sets and not found["not_done"] and not found["random_weights"]
        for set_name, result in found["sets"].items():
            assert result["images"] == 3
            assert all(v is None or 0 <= v <= 100 for v in result["metrics"].values()), set_name
        three = {"panoptic", "instance", "semantic"}
        special = dict(mapillary={"panoptic", "semantic"}, lvis={"lvis"}, uvo={"proposals"})
        for set_name in sets:
            all_three = set_name in ("ade20k", "coco", "cityscapes")
            wanted = three if all_three else special.get(set_name, {"semantic"})
            measured = {key.split("/")[0] for key in found["sets"][set_name]["metrics"]}
            assert measured == wanted, set_name
    label = json.loads((workplace / "results" / "label.json").read_text())
    assert label["train_vocabulary"]["source"].endswith(LABEL_FILES["coco"])
    files = {n: Path(r["vocabulary"]["label_file"]).name for n, r in label["sets"].items()}
    assert files == {name: LABEL_FILES[name] for name in label["sets"]}
    ade847 = label["sets"]["ade847"]["is_thing"]
    assert list(ade847) == ["sky", "person", "building", "floor", "wall"]
    rows = (workplace / "results" / "two.csv").read_text().splitlines()
    assert {row.split(",")[0] for row in rows[1:]} == set(known_sets())
    assert (workplace / "results/files/cityscapes/panoptic.json").is_file()
    assert len(list((workplace / "results/images/cityscapes").iterdir())) == 2


def test_every_set_is_prepared_and_tested_on_the_page() -> None:
    prepared = {" ".join(words[1:]) for words in commands() if "dataset_converters" in words[1]}
    for command in CONVERTERS.values():
        wanted = f"tools/dataset_converters/{command}"
        assert any(line == wanted or line.startswith(f"{wanted} --classes") for line in prepared)
    assert set(CONVERTERS) == set(known_sets())
    tested = {word for words in commands() if words[1] == "tools/test.py" for word in words}
    assert set(known_sets()) <= tested
    table = PAGE.read_text().split("## Sets")[1].split("\n## ")[0]
    assert set(re.findall(r"`(\w+)`", re.sub(r"\|[^|]*\|[^|]*\|$", "|", table, flags=re.M))) <= (
        set(known_sets()) | {"panoptic_val2017", "train2017"}
    )


def test_a_missing_set_is_named_with_its_converter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    from odise_mm.cli import test as tool

    monkeypatch.chdir(tmp_path)
    for name, command in CONVERTERS.items():
        with pytest.raises(SystemExit):
            tool.main(["odise_tiny", "none", "--datasets", name, "--data-root", "disk/"])
        error = capsys.readouterr().err
        assert f"error: {name}: no file disk/" in error
        command = command.replace("data/", "disk/")
        assert f"`python tools/dataset_converters/{command}`" in error


def test_the_published_table_is_the_paper_s() -> None:
    """Check the number of cells, and that the sets are those of the commands."""
    rows = re.findall(r"^\| (label|caption) \| (.+) \|$", PAGE.read_text(), re.M)
    assert [name for name, _ in rows] == ["label", "caption"]
    for _, cells in rows:
        assert [len(cell.split("/")) for cell in cells.split("|")] == [3, 3, 1, 1, 1, 1]
