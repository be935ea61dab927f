"""Subsets of classes in metainfo: lists, files, vocabularies, and errors."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from odise_mm.datasets.class_names import resolve_subsets
from odise_mm.errors import DatasetError
from odise_mm.registry import DATASETS
from odise_mm.vocabulary import Vocabulary
from tests.support.small_coco import VOCABULARY, write_small_coco

PAGE = Path(__file__).parents[2] / "docs/evaluation.md"
NAMES = VOCABULARY.source_names  # sky-other-merged, cat, grass-merged, dog


def datasets(root: Path, **arguments: Any) -> list[Any]:
    """Build one dataset of each kind, with one image."""
    coco = write_small_coco(root)
    (root / "labels").mkdir()
    Image.new("L", (4, 4)).save(root / "labels/a.png")
    content = dict(
        images=[dict(id=1, height=4, width=4, file_name="a.png")],
        annotations=[],
        categories=[dict(id=i, name=name) for i, name in enumerate(NAMES)],
    )
    (root / "instances.json").write_text(json.dumps(content))
    common = dict(vocabulary=VOCABULARY, data_root=str(root), test_mode=True, **arguments)
    folders = dict(img_path="labels", seg_map_path="labels")
    return [
        DATASETS.build(coco.config(**arguments)),
        DATASETS.build(dict(type="SemanticDataset", data_prefix=folders, img_suffix=".png",
                            **common)),
        DATASETS.build(dict(type="InstanceDataset", ann_file="instances.json",
                            data_prefix=dict(img="labels"), **common)),
    ]  # fmt: skip


def test_subsets_of_every_kind_of_dataset(tmp_path: Path) -> None:
    # The file also has names of its own; relative paths are looked up in the dataset's folder.
    (tmp_path / "novel.txt").write_text("stuff: lawn, turf | grass-merged\nthing: dog, puppy\n")
    subsets = dict(base=["Cat", "sky-other-merged"], novel="novel.txt")
    for dataset in datasets(tmp_path, subsets=subsets):
        assert dataset.metainfo["subsets"] == dict(base=(0, 1), novel=(2, 3))
        assert dataset.metainfo["vocabulary"] == VOCABULARY


def test_no_subsets_by_default(tmp_path: Path) -> None:
    assert [dataset.metainfo["subsets"] for dataset in datasets(tmp_path)] == [{}] * 3


def test_subsets_use_source_names_of_renamed_classes(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("1:air\n2:tabby\n3:lawn\n4:hound\n")
    coco = write_small_coco(tmp_path)
    changes = dict(label_file="labels.txt", subsets=dict(pets=["dog", "cat"]))
    assert DATASETS.build(coco.config(**changes)).metainfo["subsets"] == dict(pets=(1, 3))


def test_built_in_vocabularies_and_overlaps() -> None:
    """A class may be in several subsets, and twice in one."""
    coco = Vocabulary.load("coco")
    things = [name for name, thing in zip(coco.source_names, coco.is_thing, strict=True) if thing]
    found = resolve_subsets(dict(all="coco", things=things, two=["dog", " DOG", "cat"]), coco)
    assert found["all"] == tuple(range(133))
    assert found["things"] == tuple(i for i in range(133) if coco.is_thing[i])
    assert [coco.source_names[i] for i in found["two"]] == ["cat", "dog"]


def test_the_documented_example() -> None:
    """Check COCO's 17 novel classes."""
    (code,) = re.findall(r"```python\n(_base_.*?)```", PAGE.read_text(), re.S)
    config: dict[str, Any] = {}
    exec(code, config)
    subsets = config["test_dataloader"]["dataset"]["subsets"]
    coco = Vocabulary.load("coco")
    found = resolve_subsets(dict(novel=subsets["novel"]), coco)["novel"]
    assert len(found) == len(subsets["novel"]) == 17 and found[0] == 4
    assert all(coco.is_thing[label] for label in found)
    assert (PAGE.parent / config["_base_"][0].replace("configs", "../configs", 1)).is_file()


def test_an_ambiguous_name_selects_all_its_classes() -> None:
    vocabulary = Vocabulary((("crane",), ("dog",), ("crane",)), (True, True, True))
    assert resolve_subsets(dict(novel=["crane"]), vocabulary) == dict(novel=(0, 2))


@pytest.mark.parametrize(
    ("subsets", "message"),
    [
        (dict(novel=["dog", "catt"]), "subset 'novel': 'catt' not among .*4.*'small'.*mean cat?"),
        (dict(novel=["grass"]), "subset 'novel': 'grass' not among .* mean grass-merged?"),
        (dict(novel=["q", "z"]), "'q', 'z' not among .* which are 'sky-other-merged', 'cat', .*"),
        (dict(novel=[0, 1]), "subset 'novel': 0, 1 not among .* which are"),
        (dict(novel=[]), "subset 'novel' has no class"),
        (
            dict(novel="cat"),
            "subset 'novel': unknown vocabulary 'cat'.*to name classes, pass a list",
        ),
        (
            dict(novel="lost.txt"),
            "subset 'novel': lost.txt: file of class names not found, neither in .*coco",
        ),
        (dict(novel="empty.txt"), "subset 'novel': .*empty.txt has no classes"),
        (dict(novel="voc20"), "subset 'novel': 'aeroplane', .* not among"),
        (dict(novel=17), "subset 'novel' must be a built-in vocabulary, a file or a list .*not 17"),
        ({"panoptic/novel": ["cat"]}, "subset 'panoptic/novel': .* plain word"),
        ({"": ["cat"]}, "subset '': .* plain word"),
        ({17: ["cat"]}, "subset 17: .* plain word"),
        (["cat"], r"`subsets` must map names of subsets to classes, not \['cat'\]"),
    ],
)
def test_mistakes_are_named(subsets: Any, message: str, tmp_path: Path) -> None:
    root = tmp_path / "coco"
    root.mkdir()
    (root / "empty.txt").write_text("# nothing\n")
    with pytest.raises(DatasetError) as error:
        resolve_subsets(subsets, VOCABULARY, str(root))
    assert re.search(message, str(error.value)) and "\n" not in str(error.value)


def test_class_agnostic_subsets_raise(tmp_path: Path) -> None:
    coco = write_small_coco(tmp_path)
    with pytest.raises(DatasetError, match="subsets base, novel: .*class_agnostic.* subsets=None"):
        DATASETS.build(coco.config(class_agnostic=True, subsets=dict(base=["cat"], novel=["dog"])))
    assert DATASETS.build(coco.config(class_agnostic=True)).metainfo["subsets"] == {}
