"""Instance datasets in COCO's format, such as COCO, LVIS and UVO."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from mmdet.datasets import CocoDataset
from mmengine.logging import print_log

from odise_mm.annotations.coco_json import CocoFile, Id, image_name
from odise_mm.annotations.json_fields import shown
from odise_mm.annotations.reading import read_annotations
from odise_mm.datasets.class_names import Subsets, metainfo_of, resolve_vocabulary
from odise_mm.datasets.images import check_folder, keep_usable
from odise_mm.datasets.orientation import OrientedImages
from odise_mm.datasets.seeding import SeededItems
from odise_mm.errors import ConfigError, DatasetError
from odise_mm.registry import DATASETS
from odise_mm.utils.files import path_inside
from odise_mm.vocabulary import Vocabulary
from odise_mm.vocabulary.categories import label_of_category


@DATASETS.register_module()
class InstanceDataset(SeededItems, OrientedImages, CocoDataset):
    """mmdet's ``CocoDataset`` with the classes of a vocabulary, in the vocabulary's order.

    It also reads LVIS, whose files name images by ``coco_url``. In training, instances without a
    mask and images without instances are left out; in testing they are kept. Unusable masks are
    always left out, see :mod:`odise_mm.annotations.coco_json`.

    Each image has the keys ``img_path``, ``img_id``, ``height``, ``width`` and mmdet's
    ``instances`` (bbox, bbox_label, mask, ignore_flag).

    Args:
        vocabulary, label_file, class_agnostic, subsets: see
            :class:`odise_mm.datasets.PanopticDataset`.
        kwargs: arguments of ``CocoDataset``: ``ann_file``, ``data_root``, ``data_prefix`` with
            the folder 'img', ``pipeline``, ``test_mode``, ``indices``; and ``exif``, see
            :class:`odise_mm.datasets.orientation.OrientedImages`.

    Raises:
        DatasetError: a file or folder is missing, is invalid or contradicts the vocabulary, or no
            image is left.
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
                "InstanceDataset always leaves out images without instances: remove filter_cfg"
            )
        root = kwargs.get("data_root")
        self.vocabulary, self._annotated = resolve_vocabulary(
            vocabulary, label_file, class_agnostic, root
        )
        self.class_agnostic = class_agnostic
        super().__init__(metainfo=metainfo_of(self.vocabulary, subsets, root), **kwargs)

    def load_data_list(self) -> list[dict]:
        """Read the annotation file; no image is opened."""
        folder = self.data_prefix.get("img")
        check_folder(folder, "images")
        content = read_annotations(self.ann_file, "instance", masks=not self.test_mode)
        label_of = label_of_category(content, self._annotated)
        if self.class_agnostic:
            label_of = dict.fromkeys(label_of, 0)
        self.cat2label, self.cat_ids = label_of, label_of.keys()  # read by mmdet's parser
        annotations_of: dict[Id, list[dict]] = defaultdict(list)
        for annotation in content.annotations:
            annotations_of[annotation["image_id"]].append(annotation)
        data = [
            self._parse_image(image, annotations_of.pop(image_id, []), content)
            for image_id, image in content.images.items()
        ]
        self.cat_ids = list(label_of)
        self._log_empty_boxes(data, content)
        return data

    def _parse_image(self, image: dict, annotations: list[dict], content: CocoFile) -> dict:
        where = f"{content.path}: image {shown(image['id'])}"
        try:
            name = image_name(image)
        except DatasetError as err:
            raise DatasetError(f"{content.path}: {err}") from err
        path_inside(self.data_prefix["img"], name, DatasetError, where)
        raw = {**image, "img_id": image["id"], "file_name": name}
        info = self.parse_data_info({"raw_img_info": raw, "raw_ann_info": annotations})
        info.pop("seg_map_path")
        return info

    def _log_empty_boxes(self, data: list[dict], content: CocoFile) -> None:
        """Log how many instances mmdet left out. In testing, none of them is used anyway."""
        missing = len(content.annotations) - sum(len(info["instances"]) for info in data)
        if missing and not self.test_mode:
            print_log(
                f"{content.path}: {missing} of {len(content.annotations)} annotations are left "
                "out: they are marked as ignored, have no area, or have a box that covers less "
                "than a pixel of the image",
                logger="current",
            )

    def filter_data(self) -> list[dict]:
        """Leave out images that cannot be trained on, see the class.

        Raises:
            DatasetError: no image is left.
        """
        usable = [
            self.test_mode or any(not i["ignore_flag"] for i in info["instances"])
            for info in self.data_list
        ]
        return keep_usable(self.data_list, usable, self.ann_file, "without instances")
