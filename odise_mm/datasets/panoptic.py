"""Panoptic datasets in COCO's format: a JSON file, and one PNG file of segment ids per image."""

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
    """mmdet's ``CocoPanopticDataset`` with the classes of a vocabulary, in the vocabulary's order.

    Loading reads only the JSON file: no image is opened, and panopticapi is not needed. Class
    indices are positions in the vocabulary, not in the file. In training, images without segments
    (crowd regions do not count) are left out; in testing they are kept. Images without an
    annotation in the file are always left out, as in panopticapi.

    Each image has the keys ``img_path``, ``img_id``, ``height``, ``width``, ``seg_map_path`` and
    ``segments_info`` (a list of dict(id, label, is_thing, is_crowd, area)). ``data_prefix`` with
    'sem_seg' adds ``sem_seg_path`` and ``reduce_zero_label``. ``phrases_file`` adds
    ``captions_phrases`` (one list of noun phrases per caption). ``captions_file`` adds ``captions``
    (strings) and ``caption`` (the first of them).

    Args:
        vocabulary: name of a built-in vocabulary, a file, or a :class:`Vocabulary`. Its
            ``source_names`` are the names of the file's categories. With ``class_agnostic`` it may
            be None, which accepts any categories.
        label_file: file of names that replace the vocabulary's synonyms, class by class.
        class_agnostic: whether to merge all classes into one, the thing "object".
        subsets: subsets of the classes, such as "base" and "novel", for which metrics report
            separate numbers: name -> a built-in vocabulary, a file, or a list of names. Their
            ``source_names`` must be among the dataset's; case is ignored. Subsets may overlap. Not
            available with ``class_agnostic``.
        phrases_file: noun phrases of the captions, see docs/training_data.md.
        captions_file: the captions (COCO's ``captions_*.json``), for models that are conditioned on
            them; every image must have one.
        img_suffix, sem_seg_suffix: the name of the semantic label file is that of the image with
            ``img_suffix`` replaced by ``sem_seg_suffix``. If ``img_suffix`` is None, the extension
            is replaced.
        reduce_zero_label: whether 0 is ignored in semantic label files, so that classes start at 1.
        kwargs: arguments of ``CocoPanopticDataset``: ``ann_file``, ``data_root``, ``data_prefix``
            with the folders 'img', 'seg' and optionally 'sem_seg', ``pipeline``, ``test_mode``,
            ``indices``; and ``exif``, see
            :class:`odise_mm.datasets.orientation.OrientedImages`. Relative paths, also those of the
            files above, are looked up below ``data_root``.

    Raises:
        DatasetError: a file or folder is missing, is invalid or contradicts the vocabulary or
            another file, or no image is left.
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
                "PanopticDataset always leaves out images without segments: remove filter_cfg"
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
        """Read the JSON file, without the slow index of pycocotools."""
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
        self.cat2label = label_of  # mmdet's name
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
                "images are left out: they have no annotation",
                logger="current",
            )
        return data

    def _parse_image(self, image: dict, annotation: dict, label_of: dict[Id, int]) -> dict:
        if "file_name" not in image:
            raise DatasetError(
                f"{printable(self.ann_file)}: image {shown(image['id'])} has no `file_name`, so "
                "its image cannot be found"
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
        """Return the path of a file that the annotations name, inside a ``data_prefix`` folder."""
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
                f"{content.path}: isthing of {len(differ)} categories differs from the vocabulary "
                f"'{self.vocabulary.name}', whose things and stuff are used (the first: "
                f"{printable(differ[0])})",
                logger="current",
            )

    def filter_data(self) -> list[dict]:
        """Leave out images that cannot be trained on, see the class.

        Raises:
            DatasetError: no image is left.
        """
        usable = [
            self.test_mode or any(not s["is_crowd"] for s in info["segments_info"])
            for info in self.data_list
        ]
        return keep_usable(self.data_list, usable, self.ann_file, "without segments to train on")

    def get_cat_ids(self, idx: int) -> list[int]:
        """Return the class indices of an image's segments (for ``ClassBalancedDataset``)."""
        return [segment["label"] for segment in self.get_data_info(idx)["segments_info"]]
