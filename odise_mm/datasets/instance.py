"""Instance data sets in COCO's format: COCO, LVIS, UVO and alike."""

from __future__ import annotations

import os.path as osp
from collections import defaultdict
from typing import Any

from mmdet.datasets import CocoDataset

from odise_mm.datasets.base import (
    Subsets,
    check_categories,
    check_folder,
    index_images,
    keep_usable,
    label_of_category,
    malformed_entries,
    metainfo_of,
    read_annotations,
    resolve_vocabulary,
)
from odise_mm.datasets.orientation import OrientedPictures
from odise_mm.datasets.seeding import SeededItems
from odise_mm.datasets.vocabulary import Vocabulary
from odise_mm.errors import ConfigError, DatasetError
from odise_mm.registry import DATASETS


@DATASETS.register_module()
class InstanceDataset(SeededItems, OrientedPictures, CocoDataset):
    """mmdet's ``CocoDataset`` with the classes of a vocabulary, in its order.

    Serves LVIS, too (its files name pictures by ``coco_url`` alone). In training, images without an
    instance are left out; in testing they stay.

    An image's information: ``img_path``, ``img_id``, ``height``, ``width`` and mmdet's
    ``instances`` (bbox, bbox_label, mask, ignore_flag).

    Args:
        vocabulary, label_file, class_agnostic, subsets: see
            :class:`odise_mm.datasets.PanopticDataset`.
        kwargs: of ``CocoDataset``: ``ann_file``, ``data_root``, ``data_prefix`` with the folder
            'img', ``pipeline``, ``test_mode``, ``indices``; and ``exif``, see
            :class:`odise_mm.datasets.orientation.OrientedPictures`.

    Raises:
        DatasetError: files or folders are missing, are something else or contradict the
            vocabulary, or no image is left.
    """

    METAINFO: dict = {}

    def __init__(
        self,
        vocabulary: str | Vocabulary | None = None,
        *,
        label_file: str | None = None,
        class_agnostic: bool = False,
        subsets: Subsets | None = None,
        **kwargs: Any,
    ) -> None:
        if kwargs.get("filter_cfg"):
            raise ConfigError(
                "InstanceDataset leaves out images without instances by itself: remove filter_cfg"
            )
        root = kwargs.get("data_root")
        self.vocabulary, self._annotated = resolve_vocabulary(
            vocabulary, label_file, class_agnostic, root
        )
        self.class_agnostic = class_agnostic
        super().__init__(metainfo=metainfo_of(self.vocabulary, subsets, root), **kwargs)

    def load_data_list(self) -> list[dict]:
        check_folder(self.data_prefix.get("img"), "images")
        content = read_annotations(self.ann_file, "instance")
        with malformed_entries(self.ann_file):
            return self._parse(**content)

    def _parse(
        self, images: list[dict], annotations: list[dict], categories: list[dict]
    ) -> list[dict]:
        path = self.ann_file
        label_of = label_of_category(categories, self._annotated, path)
        check_categories({a["category_id"] for a in annotations}, label_of, categories, path)
        if self.class_agnostic:
            label_of = dict.fromkeys(label_of, 0)
        self.cat2label, self.cat_ids = label_of, label_of.keys()  # as mmdet's parsing wants them
        image_of = index_images(images, path)
        annotations_of: dict[Any, list[dict]] = defaultdict(list)
        for annotation in annotations:
            if annotation["image_id"] not in image_of:
                raise DatasetError(
                    f"{path}: annotation {annotation.get('id')} is of image id "
                    f"{annotation['image_id']}, which `images` does not list"
                )
            annotations_of[annotation["image_id"]].append(annotation)
        data = []
        for image_id, image in image_of.items():
            raw = {**image, "img_id": image_id, "file_name": _file_name(image)}
            found = annotations_of.pop(image_id, [])
            info = self.parse_data_info({"raw_img_info": raw, "raw_ann_info": found})
            info.pop("seg_map_path")
            data.append(info)
        self.cat_ids = list(label_of)
        return data

    def filter_data(self) -> list[dict]:
        """Leave out images that cannot be trained on; see the class.

        Raises:
            DatasetError: no image is left.
        """
        usable = [
            self.test_mode or any(not i["ignore_flag"] for i in info["instances"])
            for info in self.data_list
        ]
        return keep_usable(self.data_list, usable, self.ann_file, "without an instance")


def _file_name(image: dict) -> str:
    """A picture's path below the folder of images; LVIS: e.g. ``val2017/000000397133.jpg``."""
    if "file_name" in image:
        return image["file_name"]
    return osp.join(*image["coco_url"].split("/")[-2:])
