"""Dataset wrappers: reproducible items, and common class names."""

from __future__ import annotations

import json
import pickle
import random
from collections import Counter, OrderedDict
from itertools import islice
from pathlib import Path
from typing import Any

import mmengine.dataset
import numpy as np
import pytest
import torch
from mmcv.transforms import BaseTransform
from mmdet.datasets import ConcatDataset as MmdetConcat
from mmengine.registry import DefaultScope, init_default_scope
from PIL import Image
from torch.utils.data import DataLoader

from odise_mm.config.building import make_test_pipeline
from odise_mm.config.changing import complete_config
from odise_mm.config.checking import check_config
from odise_mm.datasets import (
    ClassBalancedDataset,
    ConcatDataset,
    FirstImages,
    PanopticDataset,
    RepeatDataset,
    SeededIndex,
    SeededSampler,
    wrappers,
)
from odise_mm.datasets.seeding import build_seeded
from odise_mm.engine import OpenVocabRunner
from odise_mm.engine.loops import vocabulary_of
from odise_mm.errors import ConfigError, DatasetError
from odise_mm.registry import DATASETS, TRANSFORMS
from odise_mm.vocabulary import Vocabulary
from tests.support.small_coco import VOCABULARY, write_small_coco
from tests.support.small_training import config


@TRANSFORMS.register_module()
class DrawEverywhere(BaseTransform):
    """Record a random number of each generator that a pipeline may use."""

    def transform(self, results: dict) -> dict:
        results["drawn"] = (random.random(), float(np.random.rand()), float(torch.rand(())))
        return results


@TRANSFORMS.register_module()
class MixWithAnother(BaseTransform):
    """A minimal transform for ``MultiImageMixDataset``: add another image's id and numbers."""

    def get_indexes(self, dataset: Any) -> int:
        return int(np.random.randint(len(dataset)))

    def transform(self, results: dict) -> dict:
        (other,) = results["mix_results"]
        results["drawn"] += (other["img_id"], *other["drawn"])
        return results


PIPELINE = [dict(type="LoadImage"), dict(type="DrawEverywhere")]


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """Return configs of the three kinds of datasets, with the same four classes."""
    coco = write_small_coco(tmp_path_factory.mktemp("coco"))
    labels = coco.root / "labels"
    labels.mkdir()
    for place, image_id in enumerate(coco.maps):
        height, width = coco.maps[image_id].shape
        drawn = np.full((height, width), 255, np.uint8)
        drawn[:4] = place
        drawn[4:8] = 3
        Image.fromarray(drawn).save(labels / f"{image_id:012}.png")
    square = [[2, 2, 9, 2, 9, 9, 2, 9]]
    rows = [(7, 17), (7, 18), (3, 18), (25, 18)]  # image, category
    content = dict(
        coco.read(),
        annotations=[
            dict(id=n, image_id=i, category_id=c, bbox=[2, 2, 7, 7], area=49, segmentation=square)
            for n, (i, c) in enumerate(rows, start=1)
        ],
    )
    (coco.root / "instances.json").write_text(json.dumps(content))
    # Serializing triggers garbage collection, which takes most of a second.
    usual = dict(pipeline=PIPELINE, serialize_data=False)
    shared = dict(vocabulary=VOCABULARY, data_root=str(coco.root), **usual)
    folders = dict(img_path="train2017", seg_map_path="labels")
    files = dict(ann_file="instances.json", data_prefix=dict(img="train2017"))
    return dict(
        panoptic=coco.config(**usual),
        instance=dict(type="InstanceDataset", **shared, **files),
        semantic=dict(type="SemanticDataset", **shared, data_prefix=folders),
    )


def wrapped(part: dict) -> dict[str, dict]:
    """Return configs with each wrapper around a dataset, and with nested wrappers."""
    concat = dict(type="ConcatDataset", datasets=[part, part])
    repeat = dict(type="RepeatDataset", times=2, dataset=part)
    balanced = dict(type="ClassBalancedDataset", oversample_thr=0.9, dataset=part)
    mixed = dict(type="MultiImageMixDataset", dataset=part, pipeline=[dict(type="MixWithAnother")])
    return dict(
        concat=concat,
        repeat=repeat,
        balanced=balanced,
        mixed=mixed,
        first=dict(type="FirstImages", number=2, dataset=part),
        balanced_concat=dict(balanced, dataset=concat),
        balanced_repeat=dict(balanced, dataset=repeat),
        repeated_concat_of_balanced=dict(repeat, dataset=dict(concat, datasets=[balanced, part])),
        concat_of_mixed=dict(concat, datasets=[mixed, repeat]),
        mixed_concat=dict(mixed, dataset=concat),
    )


def stream(dataset: Any, count: int, start: int = 0, workers: int = 0, noise: int = 0) -> list:
    """Return items of a data loader, after ``noise`` other random numbers were drawn."""
    random.seed(noise)
    np.random.seed(noise)
    torch.manual_seed(noise)
    sampler = SeededSampler(dataset, seed=11)
    sampler.start_at(start)
    loader = DataLoader(dataset, 1, sampler=sampler, num_workers=workers, collate_fn=list)
    return [(item["img_id"], item["drawn"]) for (item,) in islice(loader, count)]


@pytest.mark.parametrize("kind", ["panoptic", "instance", "semantic"])
def test_items_depend_only_on_seed_and_position(parts: dict, kind: str) -> None:
    for name, cfg in wrapped(parts[kind]).items():
        dataset = DATASETS.build(cfg)
        count = 2 * len(dataset)
        expected = stream(dataset, count)
        assert len({drawn for _, drawn in expected}) == count, f"{name}: every pass is another"
        assert stream(dataset, count - 3, start=3, noise=1) == expected[3:], name
        assert vocabulary_of(dataset) == dataset.vocabulary == VOCABULARY, name


@pytest.mark.parametrize("name", ["mixed", "repeated_concat_of_balanced"])
def test_worker_processes_make_no_difference(parts: dict, name: str) -> None:
    dataset = DATASETS.build(wrapped(parts["panoptic"])[name])
    assert stream(dataset, 7, workers=2, noise=1) == stream(dataset, 7)


def test_a_wrapped_item_equals_the_item_with_the_same_seed(parts: dict) -> None:
    alone = DATASETS.build(parts["panoptic"])
    joined = DATASETS.build(dict(type="ConcatDataset", datasets=[parts["panoptic"]] * 2))
    repeated = DATASETS.build(dict(type="RepeatDataset", times=3, dataset=parts["panoptic"]))
    for index in (0, 2):
        item = alone[SeededIndex(index, 5)]
        for other in (joined[SeededIndex(index + 3, 5)], repeated[SeededIndex(index + 6, 5)]):
            assert (other["img_id"], other["drawn"]) == (item["img_id"], item["drawn"])


def test_random_states_are_restored_after_an_item(parts: dict) -> None:
    dataset = DATASETS.build(wrapped(parts["panoptic"])["mixed_concat"])
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    first = torch.rand(())
    dataset[SeededIndex(1, 8)]
    assert torch.equal(torch.stack([first, torch.rand(())]), expected)


def test_original_wrappers_are_replaced(parts: dict) -> None:
    part = parts["panoptic"]
    for kind, ours in {
        "mmdet.ConcatDataset": ConcatDataset,
        "mmengine.ConcatDataset": ConcatDataset,
        MmdetConcat: ConcatDataset,
        mmengine.dataset.ConcatDataset: ConcatDataset,
    }.items():
        dataset = DATASETS.build(dict(type=kind, datasets=[part]))
        assert type(dataset) is ours and isinstance(dataset, MmdetConcat)
    repeat = dict(type="mmengine.RepeatDataset", times=2, dataset=part)
    balanced = dict(type="mmengine.ClassBalancedDataset", oversample_thr=0.5, dataset=repeat)
    dataset = DATASETS.build(balanced)
    assert type(dataset) is ClassBalancedDataset and type(dataset.dataset) is RepeatDataset
    mixed = dict(type="mmdet.MultiImageMixDataset", dataset=part, pipeline=PIPELINE[1:])
    assert type(DATASETS.build(mixed)) is wrappers.MultiImageMixDataset


def test_no_default_scope_is_needed(parts: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DefaultScope, "_instance_dict", OrderedDict())
    assert DefaultScope.get_current_instance() is None
    for name, cfg in wrapped(parts["panoptic"]).items():
        dataset = DATASETS.build(cfg)
        assert dataset[SeededIndex(1, 4)]["drawn"], name


def test_images_with_rare_classes_are_repeated(parts: dict) -> None:
    """The cat is in one of three images: sqrt(0.9 / (1 / 3)) = 1.64, rounded up to 2."""
    balanced = dict(type="ClassBalancedDataset", oversample_thr=0.9)
    dataset = DATASETS.build(dict(balanced, dataset=parts["instance"]))
    ids = [dataset.get_data_info(index)["img_id"] for index in range(len(dataset))]
    assert Counter(ids) == {7: 2, 3: 1, 25: 1}
    twice = dict(type="ConcatDataset", datasets=[parts["instance"]] * 2)
    joined = DATASETS.build(dict(balanced, dataset=twice))
    assert len(joined) == 8 and sorted(set(joined.get_cat_ids(0))) == [1, 3]
    # In the semantic files, image n has the classes n and 3; all but class 3 are rare.
    semantic = DATASETS.build(dict(balanced, dataset=parts["semantic"]))
    assert len(semantic) == 6
    inner = semantic.dataset
    found = {inner.get_data_info(i)["img_id"]: inner.get_cat_ids(i) for i in range(3)}
    assert found == {f"{i:012}": [place, 3] for place, i in enumerate((7, 3, 25))}
    panoptic = DATASETS.build(wrapped(parts["panoptic"])["mixed_concat"])
    assert sorted(panoptic.get_cat_ids(4)) == [0, 1, 1, 2, 3]


def test_the_first_images(parts: dict) -> None:
    concat = dict(type="ConcatDataset", datasets=[parts["panoptic"]] * 2)
    for number, expected in ((1, 1), (4, 4), (50, 6)):
        dataset = DATASETS.build(dict(type="FirstImages", number=number, dataset=concat))
        assert len(dataset) == expected == len([dataset[i] for i in range(len(dataset))])


def other_names(**changes: Any) -> Vocabulary:
    fields = dict(synonyms=VOCABULARY.synonyms, is_thing=VOCABULARY.is_thing, name="other")
    return Vocabulary(**{**fields, "source_names": VOCABULARY.source_names, **changes})


@pytest.mark.parametrize(
    "changes, words",
    [
        (dict(synonyms=(("sky", "heaven"), ("cat",), ("grass",), ("dog",))),
         "class 1 (cat) is 'cat,kitten' there, 'cat' here"),
        (dict(is_thing=(False, True, False, False)), "class 3 (dog) is thing there, stuff here"),
    ],
)  # fmt: skip
def test_concatenating_different_classes_raises(
    parts: dict, tmp_path: Path, changes: dict, words: str
) -> None:
    part = parts["panoptic"]
    cfg = dict(type="ConcatDataset", datasets=[part, dict(part, vocabulary=other_names(**changes))])
    for kind in ("ConcatDataset", "mmdet.ConcatDataset", "mmengine.ConcatDataset"):
        with pytest.raises(
            DatasetError, match="cannot be concatenated with .* classes differ"
        ) as caught:
            DATASETS.build(dict(cfg, type=kind, ignore_keys=["vocabulary", "classes"]))
        message = str(caught.value)
        assert words in message and "panoptic_train2017.json" in message and "\n" not in message


def test_other_source_names_are_accepted(parts: dict) -> None:
    part = parts["panoptic"]
    names = tuple(name.upper() for name in VOCABULARY.source_names)
    path = Path(part["data_root"], "renamed.json")
    content = json.loads(Path(part["data_root"], part["ann_file"]).read_text())
    for category in content["categories"]:
        category["name"] = category["name"].upper()
    path.write_text(json.dumps(content))
    renamed = dict(part, vocabulary=other_names(source_names=names), ann_file=path.name)
    dataset = DATASETS.build(dict(type="ConcatDataset", datasets=[part, renamed]))
    assert len(dataset) == 6 and dataset.metainfo["classes"] == VOCABULARY.source_names
    assert dataset.cat2label == dataset.datasets[0].cat2label != {}


def test_different_metainfo_raises(parts: dict) -> None:
    part = parts["panoptic"]
    cfg = dict(type="ConcatDataset", datasets=[part, dict(part, subsets=dict(pets=["dog"]))])
    with pytest.raises(DatasetError, match=r"differs in `subsets` .*ignore_keys"):
        DATASETS.build(cfg)
    assert DATASETS.build(dict(cfg, ignore_keys="subsets")).metainfo["subsets"] == {}


@pytest.mark.parametrize(
    "cfg, words",
    [
        (dict(type="RepeatDataset", times=0), "RepeatDataset: times=0"),
        (dict(type="RepeatDataset", times="2"), "times='2'"),
        (dict(type="RepeatDataset", times=True), "times=True"),
        (dict(type="FirstImages", number=1.0), "number=1.0"),
        (dict(type="ClassBalancedDataset", oversample_thr=-0.1), "oversample_thr=-0.1"),
        (dict(type="ClassBalancedDataset", oversample_thr=float("nan")), "oversample_thr=nan"),
        (dict(type="ConcatDataset", datasets=[]), "at least one dataset"),
        (dict(type="MultiImageMixDataset", pipeline=[]), "`pipeline` must be a list"),
        (dict(type="RepeatDataset", times=1, dataset=[1]), "not a list"),
    ],
)
def test_invalid_arguments_raise_config_errors(parts: dict, cfg: dict, words: str) -> None:
    inside = {} if cfg["type"] == "ConcatDataset" else dict(dataset=parts["panoptic"])
    with pytest.raises(ConfigError) as caught:
        DATASETS.build({**inside, **cfg})
    assert words in str(caught.value)


def test_foreign_datasets_are_seeded(parts: dict) -> None:
    """Datasets of other packages do not support seeds, but the runner seeds their items."""
    part = {k: v for k, v in parts["instance"].items() if k not in ("vocabulary", "type")}
    init_default_scope("odise_mm")
    dataset = build_seeded(dict(type="mmdet.CocoDataset", **part))
    expected = stream(dataset, 6)
    assert len({drawn for _, drawn in expected}) == 6
    assert stream(dataset, 4, start=2, noise=1) == expected[2:]
    assert stream(dataset, 6, workers=1, noise=2) == expected
    assert dataset.cat2label and dataset.metainfo["classes"]
    again = pickle.loads(pickle.dumps(dataset))
    index = SeededIndex(1, 4)
    assert len(again) == 3 and again[index]["drawn"] == dataset[index]["drawn"]
    dataset.pipeline = "another"  # as hooks do
    assert dataset._dataset.pipeline == "another"


def small(**changes: Any) -> dict:
    return dict(type="SmallDataset", **changes)


def test_wrapped_datasets_are_checked(tmp_path: Path) -> None:
    cfg = config(tmp_path)
    concat = dict(type="ConcatDataset", datasets=[small(), small(ann_file="gone.json")])
    cfg.train_dataloader.dataset = dict(type="RepeatDataset", times=2, dataset=concat)
    with pytest.raises(
        DatasetError, match=r"dataset\.dataset\.datasets\[1\]\.ann_file: gone.json not"
    ):
        check_config(complete_config(cfg))
    cfg.train_dataloader.dataset.dataset.datasets[1] = dict(type="SmalDataset")
    with pytest.raises(ConfigError, match=r"datasets\[1\]: unknown .*did you mean SmallData"):
        check_config(complete_config(cfg))
    cfg.train_dataloader.dataset.dataset.type = "ConcatDatset"
    with pytest.raises(ConfigError, match="did you mean ConcatDataset"):
        check_config(complete_config(cfg))


def test_wrapped_datasets_get_the_config_s_pipeline(tmp_path: Path) -> None:
    own, given = [dict(type="LoadImage")], [dict(type="DrawWords")]
    cfg = config(tmp_path, train_pipeline=given)
    repeated = dict(type="RepeatDataset", times=2, dataset=small(pipeline=own))
    mixed = dict(type="MultiImageMixDataset", dataset=repeated)
    cfg.train_dataloader.dataset = dict(type="ConcatDataset", datasets=[mixed, small()])
    done = complete_config(cfg).train_dataloader.dataset
    assert "pipeline" not in done
    assert done.datasets[0].pipeline == given == done.datasets[1].pipeline
    assert done.datasets[0].dataset.dataset.pipeline == own
    assert "pipeline" not in done.datasets[0].dataset
    cfg.train_dataloader.dataset.datasets[0].dataset.dataset.pop("pipeline")
    with pytest.raises(
        ConfigError, match=r"datasets\[0\]\.dataset\.dataset: missing key `pipeline`"
    ):
        check_config(complete_config(cfg))
    cfg.pop("train_pipeline")
    cfg.test_dataloader = dict(dataset=dict(type="ConcatDataset", datasets=[small(pipeline=own)]))
    assert len(make_test_pipeline(cfg).transforms) == 1


@pytest.mark.parametrize("scope", ["", "mmengine."])
def test_resuming_with_wrapped_data(parts: dict, tmp_path: Path, scope: str) -> None:
    """A resumed run draws the same random numbers as an uninterrupted one."""
    part = dict(parts["panoptic"], pipeline=[*PIPELINE, dict(type="RememberDrawn")])
    part["vocabulary"] = "names.txt"
    VOCABULARY.save(Path(part["data_root"], "names.txt"))
    concat = dict(type=f"{scope}ConcatDataset", datasets=[part, part])
    data = dict(type=f"{scope}RepeatDataset", times=2, dataset=concat)
    names = "sky,heaven; cat,kitten; grass; dog"

    def train(folder: Path, **more: Any) -> None:
        cfg = config(folder, model__train_vocabulary=names, **more)
        cfg.train_dataloader.dataset = data
        OpenVocabRunner.from_cfg(cfg).train()

    DRAWN.clear()
    train(tmp_path / "whole")
    whole = list(DRAWN)
    DRAWN.clear()
    train(tmp_path / "parts", train_cfg__max_iters=6)
    np.random.seed(99)
    train(tmp_path / "parts", resume=True)
    assert DRAWN == whole and len(set(whole)) == 24


DRAWN: list = []


@TRANSFORMS.register_module()
class RememberDrawn(BaseTransform):
    """Record the random numbers, and pack the inputs of SmallModel."""

    def transform(self, results: dict) -> dict:
        from mmdet.structures import DetDataSample

        DRAWN.append((results["img_id"], results["drawn"]))
        sample = DetDataSample(metainfo=dict(img_id=results["img_id"], img_path="x"))
        return dict(inputs=torch.tensor(results["drawn"][:2]), data_samples=sample)


def test_built_datasets_are_accepted(parts: dict) -> None:
    part: PanopticDataset = DATASETS.build(parts["panoptic"])
    repeated = RepeatDataset(ConcatDataset([part, part]), times=2)
    assert len(FirstImages(repeated, 7)) == 7 and repeated.vocabulary == VOCABULARY
    lazy = ConcatDataset([part], lazy_init=True)
    assert not lazy._fully_initialized and len(lazy) == 3
