"""Segmentation results, and their use with mmdet's metrics and visualizers."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmdet.evaluation.functional import INSTANCE_OFFSET as MMDET_OFFSET
from mmdet.evaluation.functional import panoptic_utils
from mmdet.evaluation.metrics import coco_panoptic_metric
from mmdet.registry import METRICS, VISUALIZERS
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData, PixelData

from odise_mm import structures
from odise_mm.annotations.panoptic_io import ids_to_rgb, read_panoptic_png
from odise_mm.evaluation import PanopticQuality
from odise_mm.structures import Segment, SegmentationResult, to_mmdet_panoptic
from odise_mm.vocabulary import Vocabulary

QUALITY = Path(__file__).parent / "data/panoptic_quality"
NAMES = ("sky", "cat", "grass")
INFOS = [
    dict(id=4, category_id=1, category_name="cat", isthing=True, score=0.5, area=2),
    dict(id=7, category_id=0, category_name="sky", isthing=False, score=0.25, area=3),
    dict(id=2, category_id=1, category_name="cat", isthing=True, score=0.75, area=1),
    dict(id=5, category_id=2, category_name="grass", isthing=False, score=1.0, area=1),
]
IDS = torch.tensor([[[4, 4, 7, 7], [2, 5, 0, 7]]], dtype=torch.int32)


def sample(infos: list[dict] = INFOS, ids: torch.Tensor = IDS, **meta: Any) -> DetDataSample:
    """Build a sample as the segmentor writes it."""
    made = DetDataSample(metainfo=meta)
    made.pred_panoptic_seg = PixelData(sem_seg=ids, metainfo=dict(segments_info=infos))
    return made


def test_segment_conversions() -> None:
    segment = Segment.from_info(INFOS[0], NAMES)
    assert segment == Segment(4, 1, "cat", 0.5, 2, True)
    assert segment.to_info() == INFOS[0] and list(segment.to_info()) == list(INFOS[0])
    bare = dict(id=4, category_id=1, isthing=1)
    assert Segment.from_info(bare, NAMES, IDS[0].numpy()) == Segment(4, 1, "cat", 1.0, 2, True)
    assert segment.to_coco(17, IDS[0].numpy() == 4) == dict(
        id=4, category_id=17, iscrowd=0, bbox=[0, 0, 2, 1], area=2, score=0.5
    )


def test_result_from_sample() -> None:
    full = sample()
    full.pred_sem_seg = PixelData(sem_seg=torch.ones(1, 2, 4, dtype=torch.int64))
    full.pred_instances = InstanceData(
        masks=IDS == 4,
        labels=torch.tensor([1]),
        scores=torch.tensor([0.5], dtype=torch.bfloat16),
        bboxes=torch.tensor([[0.0, 0.0, 2.0, 1.0]]),
    )
    result = SegmentationResult.from_sample(full, NAMES, image_name="a")
    assert (result.height, result.width, result.image_name) == (2, 4, "a")
    assert [s.to_info() for s in result.segments] == INFOS
    assert np.array_equal(result.panoptic, IDS[0]) and (result.semantic == 1).all()
    assert np.array_equal(result.instances.masks, IDS == 4)
    assert result.class_names == NAMES
    nothing = SegmentationResult.from_sample(DetDataSample(), NAMES, height=2, width=4)
    assert nothing.panoptic is nothing.semantic is nothing.instances is None
    assert (nothing.height, nothing.segments) == (2, [])


def test_mmdet_encoding() -> None:
    assert structures.INSTANCE_OFFSET == MMDET_OFFSET
    ours = sample(img_id=3)
    theirs = to_mmdet_panoptic(ours, NAMES)
    # Class 0 without an object would be 0, which is void in PNG files.
    expected = [[1001, 1001, 1000, 1000], [2001, 2, 3, 1000]]
    assert theirs.pred_panoptic_seg.sem_seg.tolist() == [expected]
    assert theirs.pred_panoptic_seg.sem_seg.dtype == torch.int32
    assert theirs.img_id == 3
    assert ours.pred_panoptic_seg.sem_seg.tolist() == IDS.tolist(), "the sample stays as it is"
    assert ours.pred_panoptic_seg.segments_info == INFOS
    back = SegmentationResult.from_sample(theirs, NAMES)
    numbers = dict(zip((4, 7, 2, 5), (1001, 1000, 2001, 2), strict=True))
    assert [s.to_info() for s in back.segments] == [{**i, "id": numbers[i["id"]]} for i in INFOS]
    assert np.array_equal(back.panoptic == 0, IDS[0] == 0)
    again = to_mmdet_panoptic(theirs, NAMES).pred_panoptic_seg
    assert again.sem_seg.tolist() == [expected]


def test_limits_of_the_mmdet_encoding() -> None:
    names = [f"class {i}" for i in range(999)]
    one = [dict(id=1, category_id=998, isthing=True, score=1.0, area=1)]
    ids = torch.tensor([[[1, 0]]])
    assert to_mmdet_panoptic(sample(one, ids), names).pred_panoptic_seg.sem_seg.tolist() == [
        [[1998, 999]]
    ]
    with pytest.raises(ValueError, match=r"1000 classes and void do not fit, at most 999"):
        to_mmdet_panoptic(sample(one, ids), [*names, "one more"])
    count = (2**24 - 1) // 1000
    many = [dict(id=i + 1, category_id=0, isthing=True, area=1) for i in range(count + 1)]
    ids = torch.arange(1, count + 1)[None, None]
    found = to_mmdet_panoptic(sample(many[:-1], ids), ["cat"]).pred_panoptic_seg.sem_seg
    assert found.unique().numel() == count and found.max() == 16_777_000
    with pytest.raises(ValueError, match=", up to 16777215: more than 16777 objects of 'cat'"):
        to_mmdet_panoptic(sample(many, ids), ["cat"])


def test_image_without_segments() -> None:
    theirs = to_mmdet_panoptic(sample([], torch.zeros(1, 2, 3, dtype=torch.int32)), NAMES)
    assert theirs.pred_panoptic_seg.sem_seg.tolist() == [[[3, 3, 3], [3, 3, 3]]]
    assert to_mmdet_panoptic(
        sample([], torch.zeros(1, 0, 3, dtype=torch.int32)), NAMES
    ).pred_panoptic_seg.shape == (0, 3)


class PQStat:
    """Stand-in for panopticapi's class statistics, as panopticapi is not on PyPI."""

    def __init__(self) -> None:
        self.counts: dict[int, Counts] = defaultdict(Counts)

    def __getitem__(self, category: int) -> Counts:
        return self.counts[category]

    def __iadd__(self, other: PQStat) -> PQStat:
        for category, more in other.counts.items():
            for key, value in vars(more).items():
                setattr(self[category], key, getattr(self[category], key) + value)
        return self

    def pq_average(
        self, categories: Mapping[int, Mapping[str, Any]], isthing: bool | None
    ) -> tuple[dict[str, float], dict[int, dict[str, float]]]:
        rows = {}
        for id_, category in categories.items():
            c = self[id_]
            weight = c.tp + c.fp / 2 + c.fn / 2
            if weight and isthing in (None, category["isthing"] == 1):
                sq = c.iou / c.tp if c.tp else 0.0
                rows[id_] = dict(pq=c.iou / weight, sq=sq, rq=c.tp / weight)
        means = {k: float(np.mean([row[k] for row in rows.values()])) for k in ("pq", "sq", "rq")}
        return {**means, "n": len(rows)}, rows


class Counts:
    def __init__(self) -> None:
        self.tp = self.fp = self.fn = 0
        self.iou = 0.0


def rgb2id(color: np.ndarray) -> np.ndarray:
    return color.astype(np.int64) @ np.array([1, 256, 256**2])


@pytest.fixture
def panopticapi(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace what mmdet's metric uses of panopticapi; the rest of the metric is mmdet's."""
    stand_ins: dict[str, Any] = dict(PQStat=PQStat, rgb2id=rgb2id, VOID=0)
    for name, value in stand_ins.items():
        monkeypatch.setattr(panoptic_utils, name, value)
        monkeypatch.setattr(coco_panoptic_metric, name, value)
    monkeypatch.setattr(coco_panoptic_metric, "id2rgb", ids_to_rgb)
    monkeypatch.setattr(coco_panoptic_metric, "panopticapi", object())


@pytest.mark.parametrize("which", ["pred_a", "pred_b"])
def test_mmdet_metric_equals_our_panoptic_quality(panopticapi: None, which: str) -> None:
    """Both equal the values of panopticapi for these maps."""
    truth = json.loads((QUALITY / "truth.json").read_text())
    categories = truth["categories"]
    label_of = {c["id"]: label for label, c in enumerate(categories)}
    classes = Vocabulary(
        tuple((c["name"],) for c in categories), tuple(bool(c["isthing"]) for c in categories)
    )
    found = {
        a["image_id"]: a for a in json.loads((QUALITY / f"{which}.json").read_text())["annotations"]
    }
    meta = dict(classes=classes.names, vocabulary=classes)
    ours = PanopticQuality()
    theirs = METRICS.build(
        dict(
            type="CocoPanopticMetric",
            ann_file=str(QUALITY / "truth.json"),
            seg_prefix=str(QUALITY / "truth"),
        )
    )
    ours.dataset_meta = theirs.dataset_meta = meta
    for annotation in truth["annotations"]:
        result = found[annotation["image_id"]]
        ids = torch.from_numpy(read_panoptic_png(QUALITY / which / result["file_name"]))[None]
        infos = [
            dict(
                id=s["id"],
                category_id=(k := label_of[s["category_id"]]),
                isthing=classes.is_thing[k],
            )
            for s in result["segments_info"]
        ]
        segments = [
            dict(
                id=s["id"],
                label=(k := label_of[s["category_id"]]),
                is_thing=classes.is_thing[k],
                is_crowd=bool(s["iscrowd"]),
            )
            for s in annotation["segments_info"]
        ]
        one = sample(
            infos,
            ids,
            img_id=annotation["image_id"],
            img_path=annotation["file_name"],
            ori_shape=tuple(ids.shape[1:]),
            seg_map_path=str(QUALITY / "truth" / annotation["file_name"]),
            segments_info=segments,
        )
        ours.process(None, [one.to_dict()])
        theirs.process({}, [to_mmdet_panoptic(one, classes.names).to_dict()])
    count = len(truth["annotations"])
    numbers, others = ours.evaluate(count), theirs.evaluate(count)
    expected = json.loads((QUALITY / f"{which}_expected.json").read_text())
    assert others["coco_panoptic/PQ"] / 100 == pytest.approx(expected["All"]["pq"], abs=1e-9)
    for name in ("PQ", "SQ", "RQ"):
        for group in ("", "_th", "_st"):
            key = f"{name}{group}"
            assert numbers[f"panoptic/{key}"] == pytest.approx(
                others[f"coco_panoptic/{key}"], abs=1e-9
            ), key


def test_mmdet_visualizer_draws_the_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Segments have the color and the name of their class; void pixels are unchanged."""
    ids = IDS.repeat_interleave(16, 1).repeat_interleave(16, 2)
    image = np.full((*ids.shape[1:], 3), 200, np.uint8)
    visualizer = VISUALIZERS.build(
        dict(type="DetLocalVisualizer", name="of mmdet", alpha=1.0, save_dir=None)
    )
    palette = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    visualizer.dataset_meta = dict(classes=NAMES, palette=palette)
    texts: list[str] = []
    skip: Callable[..., None] = lambda *args, **kwargs: texts.append(args[0])  # noqa: E731
    monkeypatch.setattr(visualizer, "draw_texts", skip)
    monkeypatch.setattr(visualizer, "draw_polygons", lambda *args, **kwargs: None)
    theirs = to_mmdet_panoptic(sample(ids=ids), NAMES)
    drawn = visualizer._draw_panoptic_seg(image, theirs.pred_panoptic_seg.numpy(), NAMES, palette)
    assert sorted(texts) == ["cat", "cat", "grass", "sky"]
    for number, color in {4: palette[1], 7: palette[0], 2: palette[1], 5: palette[2]}.items():
        assert (drawn[ids[0] == number] == color).all(), number
    assert (drawn[ids[0] == 0] == 200).all()
    visualizer.add_datasample("whole", image, theirs, draw_gt=False)  # as hooks call it
