"""Semantic datasets: a folder of images and a folder of label files."""

from __future__ import annotations

import logging
import os
from collections import Counter
from typing import Any

import numpy as np
from mmengine.logging import print_log
from mmseg.datasets import BaseSegDataset

from odise_mm.datasets.class_names import Subsets, metainfo_of, resolve_vocabulary
from odise_mm.datasets.images import check_folder, keep_usable
from odise_mm.datasets.orientation import OrientedImages
from odise_mm.datasets.seeding import SeededItems
from odise_mm.errors import ConfigError, DatasetError
from odise_mm.registry import DATASETS
from odise_mm.utils.display import printable
from odise_mm.utils.files import path_inside
from odise_mm.utils.image import image_suffixes
from odise_mm.vocabulary import Vocabulary


@DATASETS.register_module()
class SemanticDataset(SeededItems, OrientedImages, BaseSegDataset):
    """mmseg's ``BaseSegDataset`` with the classes of a vocabulary.

    Pixels of the label files are class indices. The value 255 (8-bit files) or 65535 (16-bit files)
    marks ignored pixels; more than 255 classes need 16-bit files. Loading opens no image or label
    file, so sizes are known only once an image is read (``ori_shape``).

    Each image has the keys ``img_path``, ``img_id`` (its path inside the folder of images, without
    the suffix), ``sem_seg_path``, ``reduce_zero_label`` and ``num_classes``. In training, each
    class of an image is one segment.

    Args:
        vocabulary, label_file, subsets: see :class:`odise_mm.datasets.PanopticDataset`. The order
            of the classes is that of the indices in the label files.
        kwargs: arguments of ``BaseSegDataset``: ``data_root``, ``data_prefix`` with the folders
            'img_path' and 'seg_map_path', ``ann_file`` (a list of names; if empty, all images of
            the folder), ``img_suffix``, ``seg_map_suffix``, ``reduce_zero_label``, ``pipeline``,
            ``test_mode``; and ``exif``, see
            :class:`odise_mm.datasets.orientation.OrientedImages`.

    Raises:
        ConfigError: ``ignore_index`` is not 255.
        DatasetError: a file or folder is missing, or there are no images.
    """

    def __init__(
        self,
        vocabulary: str | Vocabulary | None = None,
        *,
        label_file: str | None = None,
        subsets: Subsets | None = None,
        **kwargs: Any,
    ) -> None:
        if kwargs.get("ignore_index", 255) != 255:
            raise ConfigError(
                f"SemanticDataset(ignore_index={kwargs['ignore_index']!r}): ignored pixels must be "
                "255 in 8-bit and 65535 in 16-bit label files; remove ignore_index and convert the "
                "files"
            )
        root = kwargs.get("data_root")
        self.vocabulary, _ = resolve_vocabulary(vocabulary, label_file, data_root=root)
        super().__init__(metainfo=metainfo_of(self.vocabulary, subsets, root), **kwargs)

    def load_data_list(self) -> list[dict]:
        """List the images and label files; none of them is opened."""
        images, labels = self.data_prefix.get("img_path"), self.data_prefix.get("seg_map_path")
        check_folder(images, "images")
        check_folder(labels, "semantic label files")
        if self.ann_file and not os.path.isfile(self.ann_file):
            raise DatasetError(f"{self.ann_file}: list of images (`ann_file`) not found")
        if not self.ann_file:
            self._warn_of_other_suffixes(images, labels)
        found = self._read_list() if self.ann_file else super().load_data_list()
        return [
            dict(
                img_path=info["img_path"],
                img_id=os.path.relpath(info["img_path"], images).removesuffix(self.img_suffix),
                sem_seg_path=info["seg_map_path"],
                reduce_zero_label=self.reduce_zero_label,
            )
            for info in found
        ]

    def get_data_info(self, idx: int) -> dict:
        """Extend mmengine's method: add ``num_classes``."""
        return {**super().get_data_info(idx), "num_classes": len(self.vocabulary)}

    def _warn_of_other_suffixes(self, images: str, labels: str) -> None:
        """Log how many images have a label file, but a different suffix than ``img_suffix``."""
        others: Counter[str] = Counter()
        tail = self.img_suffix.rpartition(".")[0]  # of "_rgb.png"
        for folder, _, names in os.walk(images):
            for stem, suffix in map(os.path.splitext, names):
                path = os.path.join(folder, stem.removesuffix(tail))
                label = os.path.join(labels, os.path.relpath(path, images) + self.seg_map_suffix)
                is_other = stem.endswith(tail) and suffix.lower() in image_suffixes()
                if is_other and stem + suffix != stem.removesuffix(tail) + self.img_suffix:
                    others[suffix] += os.path.isfile(label) and label != path + suffix
        if others.total():
            kinds = ", ".join(f"{count} {printable(suffix)}" for suffix, count in (+others).items())
            print_log(
                f"{printable(images)}: images with label files are left out because they do not "
                f"end in img_suffix={self.img_suffix!r}: {kinds}",
                logger="current",
                level=logging.WARNING,
            )

    def _read_list(self) -> list[dict]:
        """Read ``ann_file``; refuse names that point outside the dataset's folders."""
        path = printable(self.ann_file)
        try:
            found = super().load_data_list()
        except UnicodeDecodeError as err:
            raise DatasetError(f"{path}: not a list of names in UTF-8 ({err})") from err
        for info in found:
            for key in ("img_path", "seg_map_path"):
                name = os.path.relpath(info[key], self.data_prefix[key])
                path_inside(self.data_prefix[key], name, DatasetError, path)
        return found

    def filter_data(self) -> list[dict]:
        """Keep all images; each must have a label file.

        Raises:
            DatasetError: a label file is missing, or there are no images.
        """
        where = self.ann_file or self.data_prefix["img_path"]
        for info in self.data_list:
            if not os.path.isfile(info["sem_seg_path"]):
                raise DatasetError(
                    f"{info['sem_seg_path']}: label file of {info['img_path']} not found; check "
                    "seg_map_suffix, or prepare the dataset"
                )
        return keep_usable(
            self.data_list,
            [True] * len(self.data_list),
            f"{where} (images end in {self.img_suffix})",
            "",
        )

    def get_cat_ids(self, idx: int) -> list[int]:
        """Return the class indices in an image's label file (for ``ClassBalancedDataset``).

        Raises:
            DatasetError: the label file cannot be read, or has a class outside the vocabulary.
        """
        from odise_mm.annotations.ground_truth import read_semantic_truth

        classes, _ = read_semantic_truth(self.get_data_info(idx), len(self.vocabulary))
        return [int(label) for label in np.unique(classes) if label >= 0]
