"""Files that the inferencer writes: pictures, and panoptic maps in COCO's format."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from PIL import Image

from odise_mm.structures import SegmentationResult
from odise_mm.utils.panoptic_io import CocoPanopticWriter, VocabularyLike

_LONGEST_JPEG_SIDE = 65_500


class ResultWriter:
    """Writes results of one run below a folder.

    ``pictures/NAME.jpg`` with the segments drawn, ``panoptic/NAME.png`` and ``panoptic.json`` in
    COCO's panoptic format. NAME is the picture's file name without extension, numbered where two
    pictures share it. The JSON file is written when the ``with`` block ends, however it ends.

    Args:
        out_dir: made where missing.
        vocabulary: describes the JSON file's categories.
        made_up_weights: noted in the JSON file's ``info``.

    Raises:
        OSError: the folder cannot be made.
    """

    def __init__(
        self,
        out_dir: str | os.PathLike,
        vocabulary: VocabularyLike,
        *,
        made_up_weights: bool = False,
    ) -> None:
        self.out_dir = Path(out_dir)
        self.out_dir.mkdir(parents=True, exist_ok=True)
        info = dict(description="open-vocabulary panoptic segmentation by odise_mm")
        if made_up_weights:
            info["made_up_weights"] = "no trained weights were given: these results mean nothing"
        self._coco = CocoPanopticWriter(self.out_dir / "panoptic.json", vocabulary, info=info)
        self._stems: set[str] = set()

    def add(self, result: SegmentationResult, picture: np.ndarray | None = None) -> None:
        """Write one result; the written paths go to ``result.files``.

        Args:
            result: what could not be read is left out.
            picture: (H, W, 3) uint8 BGR to write as well.
        """
        if not result.ok:
            return
        stem = self._stem(result)
        if result.panoptic is not None:
            result.files["panoptic"] = str(self._coco.add(result, stem))
            result.files["json"] = str(self._coco.json_path)
        if picture is not None:
            result.files["picture"] = str(self._write_picture(picture, stem))

    def _stem(self, result: SegmentationResult) -> str:
        index = len(self._stems) + 1
        first = Path(result.image_path).stem if result.image_path else f"image_{index:04d}"
        stem, count = first, 1
        while stem.casefold() in self._stems:  # some file systems ignore case
            count += 1
            stem = f"{first}_{count}"
        self._stems.add(stem.casefold())
        return stem

    def _write_picture(self, picture: np.ndarray, stem: str) -> Path:
        folder = self.out_dir / "pictures"
        folder.mkdir(exist_ok=True)
        image = Image.fromarray(picture[..., ::-1])
        if max(image.size) > _LONGEST_JPEG_SIDE:
            path = folder / f"{stem}.png"
            image.save(path)
        else:
            path = folder / f"{stem}.jpg"
            image.save(path, quality=92, subsampling=0)  # full colour resolution: crisp text
        return path

    def __enter__(self) -> ResultWriter:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._coco.close()
