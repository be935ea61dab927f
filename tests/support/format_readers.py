"""Reads converted results with the programs that own or read the formats.

Runs in the environment of one of these programs, without odise_mm, for
tests/test_io/test_readers.py. Usage: format_readers.py PROGRAM FOLDER OUT.npz. FOLDER has a folder
for each format, and ``images``.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

Found = Iterator[tuple[str, str, str, np.ndarray]]  # format, name of the image, class, mask


def read_labelme(folder: Path) -> Found:
    os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
    from labelme import utils
    from labelme._label_file import read_label_file

    for name in ("labelme", "labelme_masks"):
        shutil.copytree(folder / "images", folder / name, dirs_exist_ok=True)
        for path in sorted((folder / name).rglob("*.json")):
            stem = path.relative_to(folder / name).with_suffix("").as_posix()
            content = json.loads(path.read_text())
            size = (content["imageHeight"], content["imageWidth"])
            for shape in read_label_file(str(path)).shapes:
                _, mask = utils.shapes_to_label(size, [shape], {shape["label"]: 1})
                yield name, stem, shape["label"], mask > 0


def read_labelstudio(folder: Path) -> Found:
    from label_studio_sdk.converter import brush
    from label_studio_sdk.label_interface import LabelInterface

    config = LabelInterface((folder / "labelstudio/config.xml").read_text())
    for task in json.loads((folder / "labelstudio/tasks.json").read_text()):
        stem = task["data"]["image"].partition("?d=")[2].removesuffix(".jpg")
        (prediction,) = task["predictions"]
        assert config.validate_prediction(prediction)
        for region in prediction["result"]:
            size = (region["original_height"], region["original_width"])
            channels = brush.decode_rle(region["value"]["rle"]).reshape(*size, 4)
            assert (channels == channels[..., :1]).all()
            (label,) = region["value"]["brushlabels"]
            yield "labelstudio", stem, label, channels[..., 3] > 0


def read_datumaro(folder: Path) -> Found:
    from datumaro import AnnotationType, Dataset, Mask, Polygon
    from pycocotools import mask as coco_mask

    work = folder / "for_datumaro"  # its folders of COCO and CVAT
    for name in ("coco", "coco_polygons"):
        annotations = work / name / "annotations"
        annotations.mkdir(parents=True)
        shutil.copy(folder / name / "instances.json", annotations / "instances_default.json")
    (work / "coco_panoptic/annotations").mkdir(parents=True)
    maps = work / "coco_panoptic/annotations/panoptic_default"
    shutil.copytree(folder / "coco_panoptic/panoptic", maps)
    shutil.copy(folder / "coco_panoptic/panoptic.json", maps.with_suffix(".json"))
    for name in ("coco", "coco_polygons", "coco_panoptic"):
        shutil.copytree(folder / "images", work / name / "images/default")
    for name in ("cvat", "cvat_polygons"):
        shutil.copytree(folder / name, work / name)
        shutil.copytree(folder / "images", work / name / "images")
    shutil.copytree(folder / "voc", work / "voc")
    formats = dict(coco="coco_instances", coco_polygons="coco_instances", voc="voc", cvat="cvat")
    formats |= dict(coco_panoptic="coco_panoptic", cvat_polygons="cvat")
    for name, theirs in formats.items():
        dataset = Dataset.import_from(str(work / name), theirs)
        labels = dataset.categories()[AnnotationType.label]
        for item in dataset:
            height, width = item.media_as(type(item.media)).size
            for found in item.annotations:
                if isinstance(found, Mask):
                    yield name, item.id, labels[found.label].name, np.asarray(found.image) > 0
                elif isinstance(found, Polygon):
                    runs = coco_mask.frPyObjects([found.points], height, width)
                    mask = coco_mask.decode(coco_mask.merge(runs)) > 0
                    yield name, item.id, labels[found.label].name, mask


def read_fiftyone(folder: Path) -> Found:
    from fiftyone.utils.coco import COCODetectionDatasetImporter

    for name in ("coco", "coco_polygons"):
        importer = COCODetectionDatasetImporter(
            data_path=str(folder / "images"),
            labels_path=str(folder / name / "instances.json"),
            label_types="segmentations",
        )
        with importer:
            for path, size, found in importer:
                stem = Path(path).relative_to(folder / "images").with_suffix("").as_posix()
                for one in found.detections:
                    mask = np.zeros((size.height, size.width), bool)
                    left, top = one.bounding_box[0] * size.width, one.bounding_box[1] * size.height
                    rows, columns = np.nonzero(one.mask)
                    mask[rows + round(top), columns + round(left)] = True
                    yield name, stem, one.label, mask


READERS = {
    "datumaro": read_datumaro,
    "fiftyone": read_fiftyone,
    "label-studio-sdk": read_labelstudio,
    "labelme": read_labelme,
}

if __name__ == "__main__":
    program, folder, out = sys.argv[1:]
    masks: dict[str, np.ndarray] = {}
    for *key, mask in READERS[program](Path(folder)):
        name = "|".join(key)
        masks[name] = masks.get(name, False) | mask
    np.savez(out, **masks)
