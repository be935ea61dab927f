"""Masks from a file: of another model, of a tool, or drawn by hand."""

import os
from pathlib import Path

import numpy as np
import torch
from mmdet.structures import DetDataSample
from torch import Tensor

from odise_mm.annotations.proposals import MaskEntry, MaskFile, read_masks, to_array
from odise_mm.errors import DatasetError
from odise_mm.models.frozen import is_meta_context
from odise_mm.models.proposals.base import MASK_LOGIT, ImageMaskSource, Proposals
from odise_mm.registry import MODELS
from odise_mm.utils.display import printable
from odise_mm.utils.settings import check_text, check_weight, check_whole
from odise_mm.vocabulary import Vocabulary


@MODELS.register_module()
class FileProposals(ImageMaskSource):
    """Class-agnostic masks from a JSON file in COCO's format.

    The file is a list of COCO's results, or a dataset of instances, see
    :func:`odise_mm.annotations.proposals.read_masks`; classes in the file are ignored. It is read
    once, when the model is built. Masks have the size of the image file, whatever size the test
    pipeline gives the image, and may overlap.

    The score of a mask is the probability that it is an object: class probabilities are multiplied
    by it, and void gets the rest. Without a score, it is 1. Masks without pixels are left out. An
    image without masks has an empty result.

    Args:
        file: path of the JSON file.
        min_score: masks with a lower score are left out.
        max_masks: number of masks of an image that are used, those with the highest scores; None:
            all. Memory grows with their number, by 4 bytes per mask and pixel.

    Raises:
        DatasetError: the file cannot be read. The message names the file and the entry.
        ConfigError: a setting is not allowed.
    """

    def __init__(
        self, file: str | os.PathLike[str], min_score: float = 0.0, max_masks: int | None = None
    ) -> None:
        super().__init__()
        check_text("file", file if isinstance(file, str) else os.fspath(file))
        check_weight("min_score", min_score)
        if max_masks is not None:
            check_whole("max_masks", max_masks)
        self.min_score = min_score
        self.max_masks = max_masks
        self._masks: MaskFile | None = None
        if not is_meta_context():
            self._masks = read_masks(Path(file).expanduser())

    def propose(
        self, image: Tensor, sample: DetDataSample | None, vocabulary: Vocabulary
    ) -> Proposals:
        """See :meth:`ImageMaskSource.propose`.

        Raises:
            DatasetError: the sample has no name, the file does not list the image, or a mask does
                not have the size of the image file.
        """
        if sample is None or self._masks is None:
            raise DatasetError(
                "FileProposals finds masks by the name of the image: call `predict` with data "
                "samples that have an img_path or an img_id, on a model with real tensors"
            )
        path, image_id = sample.metainfo.get("img_path"), sample.metainfo.get("img_id")
        entries = [e for e in self._masks.of(path, image_id) if e.score >= self.min_score]
        entries.sort(key=lambda entry: -entry.score)  # stable: equal scores keep their order
        entries = entries[: self.max_masks]
        height, width = sample.ori_shape[:2]
        masks = np.zeros((len(entries), height, width), dtype=bool)
        for mask, entry in zip(masks, entries, strict=True):
            mask[:] = self._array(entry, (height, width), path or image_id)
        filled = masks.any(axis=(1, 2))
        inside = torch.from_numpy(masks[filled]).to(image.device)
        scores = [entry.score for entry, kept in zip(entries, filled, strict=True) if kept]
        scores = torch.tensor(scores, dtype=torch.float32, device=image.device)
        return Proposals(torch.where(inside, MASK_LOGIT, -MASK_LOGIT), scores)

    def _array(self, entry: MaskEntry, size: tuple[int, int], image: object) -> np.ndarray:
        found = to_array(entry)
        if found.shape != size:
            raise DatasetError(
                f"{self._masks.path}: {entry.name}: the mask has {found.shape[0]} x "
                f"{found.shape[1]} pixels (height x width), but image {printable(image)} has "
                f"{size[0]} x {size[1]}"
            )
        return found
