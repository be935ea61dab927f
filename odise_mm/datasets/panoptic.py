"""Panoptic datasets in COCO's format: one JSON file, and a PNG file of segment ids per image."""

from __future__ import annotations

import os.path as osp
from typing import Any

from mmdet.datasets import CocoPanopticDataset
from mmengine.logging import print_log

from odise_mm.annotations.coco_json import CocoFile, Id
from odise_mm.annotations.json_fields import shown
from odise_mm.annotations.reading import read_annotations
from odise_mm.datasets.captions import add_captions, add_phrases
from odise_mm.datasets.class_names import Subsets, metainfo_of, resolve_vocabulary
from odise_mm.datasets.images import check_folder, keep_usable
from odise_mm.datasets.orientation import OrientedImages
from odise_mm.datasets.seeding import SeededItems
from odise_mm.errors import ConfigError, DatasetError
from odise_mm.registry import DATASETS
from odise_mm.utils.display import printable
from odise_mm.utils.files import path_inside
from odise_mm.utils.settings import check_flag
from odise_mm.vocabulary import Vocabulary
from odise_mm.vocabulary.categories import label_of_category


@DATASETS.register_module()
class PanopticDataset(SeededItems, OrientedImages, CocoPanopticDataset):
    """mmdet's ``CocoPanopticDataset`` with the classes of a vocabulary, in its order.

    Loading reads the JSON file alone: no image is opened, and panopticapi is not needed. Class
    indices are places in the vocabulary, not in the file. In training, images without a segment
    (other than crowd regions) are left out; in testing they stay. Images that the file has no
    annotation for are left out always, as panopticapi does.

    An image's information: ``img_path``, ``img_id``, ``height``, ``width``, ``seg_map_path``,
    ``segments_info`` (a list of dict(id, label, is_thing, is_crowd, area)); with ``data_prefix``
    'sem_seg' also ``sem_seg_path`` and ``reduce_zero_label``, with ``phrases_file`` also
    ``captions_phrases`` (captions, each a list of noun phrases), with ``captions_file``
    ``captions`` (texts) and ``caption`` (the first of them).

    Args:
        vocabulary: a built-in vocabulary's name, a file, or a :class:`Vocabulary`. Its
            ``source_names`` are the names of the file's categories. May be None if
            ``class_agnostic``: then any category will do.
        label_file: a file of names that replace the vocabulary's synonyms, class by class.
        class_agnostic: all classes become one, the thing "object".
        subsets: parts of the classes that metrics report numbers of, too, such as "base" and
            "novel": name -> a built-in vocabulary, a file, or a list of names. Their
            ``source_names`` are among the dataset's own, whatever their case; subsets may
            overlap. Not with ``class_agnostic``.
        phrases_file: noun phrases of the captions, see docs/training_data.md.
        captions_file: the captions themselves (COCO's ``captions_*.json``), for models that are
            told them; every image must have one.
        img_suffix, sem_seg_suffix: the semantic label file is called like the image, the first
            replaced by the second; ``img_suffix`` None: whatever the extension is.
        reduce_zero_label: in the semantic label files, 0 is ignored and classes count from 1.
        kwargs: of ``CocoPanopticDataset``: ``ann_file``, ``data_root``, ``data_prefix`` with
            folders 'img', 'seg' and perhaps 'sem_seg', ``pipeline``, ``test_mode``, ``indices``.
            Relative paths (of the files above, too) are looked up below ``data_root``. And
            ``exif``, see :class:`odise_mm.datasets.orientation.OrientedImages`.

    Raises:
        DatasetError: files or folders are missing, are something else or contradict the
            vocabulary or each other, or no image is left.
    """

    METAINFO: dict = {}

    def __init__(
        self,
        vocabulary: str | Vocabulary | None = None,
        *,
        label_file: str | None = None,
        class_agnostic: bool = False,
        subsets: Subsets | None = None,
        phrases_file: str | None = None,
        captions_file: str | None = None,
        img_suffix: str | None = None,
        sem_seg_suffix: str = ".png",
        reduce_zero_label: bool = False,
        **kwargs: Any,
    ) -> None:
        if kwargs.get("filter_cfg"):
            raise ConfigError(
                "PanopticDataset leaves out images without segments by itself: remove filter_cfg"
            )
        check_flag("reduce_zero_label", reduce_zero_label)
        root = kwargs.get("data_root")
        self.vocabulary, self._annotated = resolve_vocabulary(
            vocabulary, label_file, class_agnostic, root
        )
        self.class_agnostic = class_agnostic
        self.phrases_file = phrases_file and osp.join(root or "", phrases_file)
        self.captions_file = captions_file and osp.join(root or "", captions_file)
        self.img_suffix = img_suffix
        self.sem_seg_suffix = sem_seg_suffix
        self.reduce_zero_label = reduce_zero_label
        super().__init__(metainfo=metainfo_of(self.vocabulary, subsets, root), **kwargs)

    def load_data_list(self) -> list[dict]:
        """Read the JSON file (COCO's largest in seconds, not by way of pycocotools' index)."""
        check_folder(self.data_prefix.get("img"), "images")
        check_folder(self.data_prefix.get("seg"), "panoptic PNG files")
        if "sem_seg" in self.data_prefix:
            check_folder(self.data_prefix["sem_seg"], "semantic label files")
        data = self._parse(read_annotations(self.ann_file, "panoptic"))
        if self.phrases_file:
            add_phrases(data, self.phrases_file)
        if self.captions_file:
            add_captions(data, self.captions_file)
        return data

    def _parse(self, content: CocoFile) -> list[dict]:
        label_of = label_of_category(content, self._annotated)
        if self.class_agnostic:
            label_of = dict.fromkeys(label_of, 0)
        self.cat2label = label_of  # as mmdet calls it
        self._warn_of_flags(content, label_of)
        annotation_of: dict[Id, dict] = {a["image_id"]: a for a in content.annotations}
        data = [
            self._parse_image(image, annotation_of[image_id], label_of)
            for image_id, image in content.images.items()
            if image_id in annotation_of
        ]
        if len(data) < len(content.images):
            print_log(
                f"{content.path}: {len(content.images) - len(data)} of {len(content.images)} "
                "images have no annotation and are left out",
                logger="current",
            )
        return data

    def _parse_image(self, image: dict, annotation: dict, label_of: dict[Id, int]) -> dict:
        if "file_name" not in image:
            raise DatasetError(
                f"{printable(self.ann_file)}: image {shown(image['id'])} has no `file_name`, which "
                "names its image"
            )
        is_thing = self.vocabulary.is_thing
        segments = [
            dict(
                id=segment["id"],
                label=label_of[segment["category_id"]],
                is_thing=is_thing[label_of[segment["category_id"]]],
                is_crowd=bool(segment.get("iscrowd", 0)),
                area=segment.get("area"),
            )
            for segment in annotation["segments_info"]
        ]
        info = dict(
            img_path=self._path("img", image["file_name"], image),
            img_id=image["id"],
            height=image["height"],
            width=image["width"],
            seg_map_path=self._path("seg", annotation["file_name"], image),
            segments_info=segments,
        )
        if "sem_seg" in self.data_prefix:
            name = self._stem(image["file_name"]) + self.sem_seg_suffix
            info["sem_seg_path"] = self._path("sem_seg", name, image)
            info["reduce_zero_label"] = self.reduce_zero_label
        return info

    def _path(self, prefix: str, name: str, image: dict) -> str:
        """Of a file that the JSON file names, below one of the folders of ``data_prefix``."""
        where = f"{printable(self.ann_file)}: image {shown(image['id'])}"
        path_inside(self.data_prefix[prefix], name, DatasetError, where)
        return osp.join(self.data_prefix[prefix], name)

    def _stem(self, file_name: str) -> str:
        if self.img_suffix is None:
            return osp.splitext(file_name)[0]
        if not file_name.endswith(self.img_suffix):
            raise DatasetError(
                f"{self.ann_file}: {file_name} does not end in img_suffix={self.img_suffix!r}"
            )
        return file_name.removesuffix(self.img_suffix)

    def _warn_of_flags(self, content: CocoFile, label_of: dict[Id, int]) -> None:
        differ = [
            category["name"]
            for id_, category in content.categories.items()
            if id_ in label_of
            and "isthing" in category
            and bool(category["isthing"]) != self.vocabulary.is_thing[label_of[id_]]
        ]
        if differ and not self.class_agnostic:
            print_log(
                f"{content.path}: thing or stuff of {len(differ)} categories is otherwise in the "
                f"vocabulary '{self.vocabulary.name}', which counts (the first: "
                f"{printable(differ[0])})",
                logger="current",
            )

    def filter_data(self) -> list[dict]:
        """Leave out images that cannot be trained on; see the class.

        Raises:
            DatasetError: no image is left.
        """
        usable = [
            self.test_mode or any(not s["is_crowd"] for s in info["segments_info"])
            for info in self.data_list
        ]
        return keep_usable(self.data_list, usable, self.ann_file, "without a segment to train on")

    def get_cat_ids(self, idx: int) -> list[int]:
        """Class indices of the segments of one image (for ``ClassBalancedDataset``)."""
        return [segment["label"] for segment in self.get_data_info(idx)["segments_info"]]
