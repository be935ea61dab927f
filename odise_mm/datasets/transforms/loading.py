"""Transforms that load and resize images."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import torch
from mmcv.image.geometric import (
    cv2_interp_codes,
    imresize,
    pillow_interp_codes,
    rescale_size,
)
from mmcv.transforms import BaseTransform, RandomResize
from mmdet.datasets.transforms import Resize
from mmengine.logging import print_log
from PIL import Image

from odise_mm.datasets.orientation import check_exif
from odise_mm.errors import ConfigError, DatasetError
from odise_mm.registry import TRANSFORMS
from odise_mm.utils.display import printable
from odise_mm.utils.image import (
    MAX_PIXELS,
    ImageError,
    check_max_pixels,
    exif_orientation,
    read_image,
    turned_hint,
)
from odise_mm.utils.settings import check_choice, check_size, check_whole, is_number


@TRANSFORMS.register_module()
class LoadImage(BaseTransform):
    """Read an image with :func:`odise_mm.utils.image.read_image`.

    Required keys: ``img_path``, or ``img`` with an image in memory (an array in BGR order, a PIL
    image or the bytes of a file). ``img`` takes precedence. Optional key: ``exif``, the dataset's
    setting.

    Modified and added keys: ``img`` (uint8 (H, W, 3) BGR), ``img_path`` (None without a file),
    ``img_shape`` and ``ori_shape`` ((H, W)).

    If an annotated image has an EXIF orientation that leaves its size unchanged, the size does not
    show whether the annotations were made on the rotated image. A warning names the first such
    image.

    Args:
        max_pixels: images with more pixels raise an error before they are decoded. None disables
            the limit. It does not apply to arrays.
        exif: True rotates images by their EXIF orientation, False keeps pixels as stored. None uses
            the dataset's setting; without a dataset, images are rotated.

    Raises:
        ImageError: the image cannot be used; the message names it.
        DatasetError: instances were annotated on the image rotated by 90 degrees.
        ConfigError: an invalid value of ``exif``.
    """

    def __init__(self, max_pixels: int | None = MAX_PIXELS, exif: bool | None = None) -> None:
        self.max_pixels = check_max_pixels(max_pixels)
        self.exif = check_exif(exif, "LoadImage")
        # Shared with the worker processes, so that only one of them warns.
        self._warned = torch.zeros(1, dtype=torch.bool).share_memory_()

    def transform(self, results: dict) -> dict:
        """Load the image and set the keys listed in the class's docstring."""
        path = results.get("img_path")
        source = results.get("img")
        exif = results.get("exif", True) if self.exif is None else self.exif
        if source is None:
            source = path
        if source is None:
            raise ImageError("LoadImage needs the key `img_path` or `img`")
        image = read_image(
            source,
            name=None if path is None else str(path),
            max_pixels=None if isinstance(source, np.ndarray) else self.max_pixels,
            exif=exif,
        )
        if "instances" in results:
            _check_turned(results, image.shape[:2])
        if exif and path is not None and source is path and _ANNOTATIONS & results.keys():
            self._warn_of_orientation(path, image.shape[:2])
        results["img"] = image
        results["img_path"] = path
        results["img_shape"] = results["ori_shape"] = image.shape[:2]
        return results

    def _warn_of_orientation(self, path: str, shape: tuple[int, int]) -> None:
        if self._warned.item():
            return
        orientation = exif_orientation(path)
        hidden = _SAME_SIZE if shape[0] != shape[1] else range(2, 9)
        if orientation in hidden:
            self._warned.fill_(True)
            print_log(
                f"{printable(path)}: has EXIF orientation {orientation} and is rotated upright, "
                "like all such images of this dataset (no more warnings follow). If the "
                "annotations were made on the pixels as stored, set exif=False in the dataset",
                logger="current",
                level=logging.WARNING,
            )

    def __repr__(self) -> str:
        return f"{type(self).__name__}(max_pixels={self.max_pixels}, exif={self.exif})"


# Keys of a dataset's information that hold annotations of regions.
_ANNOTATIONS = {"segments_info", "seg_map_path", "sem_seg_path", "instances"}
# Orientations that keep the size of the image: rotation by 180 degrees, and flips.
_SAME_SIZE = (2, 3, 4)


def _check_turned(results: dict, shape: tuple[int, int]) -> None:
    """Check that instances were not annotated on the rotated image.

    Masks and boxes carry no size, so the annotated height and width of the image are compared.
    """
    annotated = results.get("height"), results.get("width")
    hint = turned_hint(annotated, shape, results.get("img_path"))
    if hint:
        raise DatasetError(
            f"{printable(results['img_path'])}: {shape[1]} x {shape[0]} pixels (width x height), "
            f"annotated as {annotated[1]} x {annotated[0]}{hint}"
        )


@TRANSFORMS.register_module()
class ResizeKeepRatio(Resize):
    """mmdet's ``Resize`` with a fixed aspect ratio, for images of any shape.

    In mmdet's version, the short side of a strip that is more than ``2 * max(scale)`` times longer
    than wide is rounded to 0, which raises an error. Here it is at least 1 pixel. All other images
    are resized exactly as in mmdet.

    ``gt_seg_map`` (int32) is resized as well, with any number of segments; mmcv's Pillow backend is
    limited to 8 bits.

    Args:
        scale: (long, short). The result is as large as possible with a long edge of at most
            ``max(scale)`` and a short edge of at most ``min(scale)`` pixels.
        backend, interpolation: as in mmcv. The published test pipeline resizes bilinearly with
            Pillow.

    Raises:
        ConfigError: ``scale`` is not a size in pixels, or ``backend`` or ``interpolation`` is
            unknown.
    """

    def __init__(
        self,
        scale: tuple[int, int],
        backend: str = "pillow",
        interpolation: str = "bilinear",
        **kwargs,
    ) -> None:
        if type(scale) is not int or scale != 0:  # mmcv's RandomResize builds it with 0
            _check_scale(scale)
        scale = tuple(scale) if isinstance(scale, list) else scale
        check_choice("backend", backend, ("pillow", "cv2"))
        known = pillow_interp_codes if backend == "pillow" else cv2_interp_codes
        check_choice("interpolation", interpolation, tuple(known))
        super().__init__(
            scale=scale, keep_ratio=True, backend=backend, interpolation=interpolation, **kwargs
        )

    def check_scale(self) -> None:
        """Check the scale. 0 is allowed only until mmcv's ``RandomResize`` sets another one.

        Raises:
            ConfigError: the scale is not a size in pixels.
        """
        _check_scale(self.scale)

    def transform(self, results: dict) -> dict:
        """Resize the image and its annotations."""
        self.check_scale()
        height, width = results["img"].shape[:2]
        if min(rescale_size((width, height), self.scale)) > 0:
            return super().transform(results)
        long_side = np.clip(max(height, width), 1, max(self.scale))
        size = (1, int(long_side)) if height > width else (int(long_side), 1)
        squeezed = type(self)(
            scale=size,
            backend=self.backend,
            interpolation=self.interpolation,
            clip_object_border=self.clip_object_border,
        )
        squeezed.keep_ratio = False
        return Resize.transform(squeezed, results)

    def _resize_seg(self, results: dict) -> None:
        numbers = results.get("gt_seg_map")
        if numbers is None:
            return
        height, width = results["img_shape"]
        if self.backend == "pillow":
            resized = resize_nearest(numbers.astype(np.int32, copy=False), (width, height))
        else:
            resized = imresize(numbers, (width, height), interpolation="nearest", backend="cv2")
        results["gt_seg_map"] = resized


@TRANSFORMS.register_module()
class LargeScaleJitter(RandomResize):
    """mmcv's ``RandomResize`` with :class:`ResizeKeepRatio` as its transform, and a random crop.

    Large-scale jitter (Simple Copy-Paste, arXiv 2012.07177); padding follows. Without
    ``crop_size``, it modifies the same keys as :class:`ResizeKeepRatio`. With it, the result is
    that of ``mmdet.RandomCrop`` after it, with the same random numbers, but only the pixels that
    are left are computed.

    Args:
        scale: (width, height) of the box into which an image is fitted at ratio 1.
        ratio_range: range of the factor that scales the box, drawn uniformly.
        crop_size: (width, height) of the crop; a side that has fewer pixels is kept. It supports
            ``img`` and ``gt_seg_map``; use ``mmdet.RandomCrop`` for boxes and masks. None: no crop.

    Raises:
        ConfigError: ``scale`` or ``crop_size`` is not a size in pixels, ``ratio_range`` is not a
            range or makes the box smaller than a pixel, or there are boxes or masks to crop.
    """

    def __init__(
        self,
        scale: tuple[int, int],
        ratio_range: tuple[float, float] = (0.1, 2.0),
        crop_size: tuple[int, int] | None = None,
    ) -> None:
        check_size("scale", scale)
        pair = isinstance(ratio_range, list | tuple) and len(ratio_range) == 2
        if not (pair and all(map(is_number, ratio_range)) and 0 < ratio_range[0] <= ratio_range[1]):
            raise ConfigError(
                f"ratio_range={ratio_range!r} must be two positive numbers, the lower first"
            )
        if min(scale) * ratio_range[0] < 1:
            raise ConfigError(
                f"ratio_range={ratio_range!r} makes scale={scale!r} smaller than a pixel"
            )
        if crop_size is not None:
            check_size("crop_size", crop_size)
        self.crop_size = None if crop_size is None else tuple(crop_size)
        super().__init__(
            scale=tuple(scale), ratio_range=tuple(ratio_range), resize_type=ResizeKeepRatio
        )

    def transform(self, results: dict) -> dict:
        """Resize the image and the map of segments, and crop them if ``crop_size`` is set."""
        if self.crop_size is None:
            return super().transform(results)
        other = [key for key in ("gt_bboxes", "gt_masks", "gt_keypoints") if key in results]
        if other:
            raise ConfigError(
                f"LargeScaleJitter with crop_size does not crop {other[0]}: remove crop_size, and "
                "add mmdet.RandomCrop after it"
            )
        image = results["img"]
        scale = self._random_scale()
        height, width = image.shape[:2]
        # A short side of less than half a pixel is 1 pixel, as in ResizeKeepRatio.
        size = tuple(max(side, 1) for side in rescale_size((width, height), scale))
        crop = tuple(min(pair) for pair in zip(self.crop_size, size, strict=True))
        top, left = (np.random.randint(0, size[axis] - crop[axis] + 1) for axis in (1, 0))
        window = (left, top, left + crop[0], top + crop[1])
        results["img"] = resize_window(image, size, window)
        if results.get("gt_seg_map") is not None:
            numbers = results["gt_seg_map"].astype(np.int32, copy=False)
            results["gt_seg_map"] = resize_nearest(numbers, size, window)
        results["img_shape"] = results["img"].shape[:2]
        results["scale"], results["keep_ratio"] = scale, True
        results["scale_factor"] = (size[0] / width, size[1] / height)
        return results


Window = tuple[int, int, int, int]
"""Left, top, right and bottom of a part of an image in pixels."""


def resize_window(image: np.ndarray, size: tuple[int, int], window: Window) -> np.ndarray:
    """Compute a window of a resized image, equal to Pillow's bilinear resizing and then cropping.

    Pillow resizes the rows first, then the columns. Here the columns outside the window are removed
    in between.

    Args:
        image: (H, W, 3) uint8.
        size: (width, height) of the whole resized image.
        window: the window in the resized image.

    Returns:
        (bottom - top, right - left, 3) uint8.
    """
    left, top, right, bottom = window
    pixels = Image.fromarray(image)
    if right - left < size[0]:
        rows = pixels.resize((size[0], pixels.height), Image.Resampling.BILINEAR)
        pixels = rows.crop((left, 0, right, pixels.height))
    resized = np.asarray(pixels.resize((right - left, size[1]), Image.Resampling.BILINEAR))
    return resized[top:bottom]


def resize_nearest(
    numbers: np.ndarray, size: tuple[int, int], window: Window | None = None
) -> np.ndarray:
    """Resize a map by nearest neighbor as Pillow does, or compute a window of the resized map.

    Pillow resizes one row and one column of places; all others are copied in the same way.

    Args:
        numbers: (H, W).
        size: (width, height) of the whole resized map.
        window: the window in the resized map; None: all of it.

    Returns:
        (bottom - top, right - left) of the same type.
    """
    left, top, right, bottom = window or (0, 0, *size)
    columns = _nearest(numbers.shape[1], size[0])[left:right]
    rows = _nearest(numbers.shape[0], size[1])[top:bottom]
    return numbers.take(columns, axis=1).take(rows, axis=0)


def _nearest(length: int, new_length: int) -> np.ndarray:
    places = Image.fromarray(np.arange(length, dtype=np.int32)[None])
    return np.asarray(places.resize((new_length, 1), Image.Resampling.NEAREST))[0]


def _check_scale(scale: Any) -> None:
    if isinstance(scale, list | tuple):
        check_size("scale", scale)
    else:
        check_whole("scale", scale)
