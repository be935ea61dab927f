"""Drawings of dataset images after the pipeline, with their segments and caption words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from mmcv.image import imresize
from mmengine.dataset import BaseDataset
from PIL import Image

import odise_mm.models  # noqa: F401  (configs name them)
from odise_mm.annotations.ground_truth import read_panoptic_truth, read_semantic_truth
from odise_mm.benchmarks.tables import Table
from odise_mm.config.changing import change_config, complete_config, set_data_root
from odise_mm.config.finding import load_config
from odise_mm.datasets import SeededSampler
from odise_mm.datasets.seeding import build_seeded
from odise_mm.engine.loops import vocabulary_of
from odise_mm.errors import ConfigError
from odise_mm.registry import TRANSFORMS
from odise_mm.structures import Segment, SegmentationResult
from odise_mm.utils.outputs import check_outputs, image_path, stem_of, write_image
from odise_mm.visualization import draw_panoptic
from odise_mm.visualization.legend import add_banner
from odise_mm.vocabulary import Vocabulary

PAPER, GAP = 255, 8
COLUMNS = ("file", "image", "original", "drawn", "segments", "classes", "words")


def browse(
    config: str,
    out: str | Path,
    *,
    split: str | None = None,
    number: int = 10,
    seed: int = 0,
    data_root: str | None = None,
    changes: Mapping[str, Any] | None = None,
) -> Table:
    """Draw images of a dataset with their ground truth.

    Args:
        config: Config file, or its name under ``configs/``.
        out: Folder for the images.
        split: "train", "val" or "test". Defaults to the first one that the config defines.
        number: Number of images to draw.
        seed: Seed of the training sampler.
        data_root: Folder to use instead of ``data/`` in the config.
        changes: Changes of the config, by dotted key.

    Returns:
        A table with one row per image.

    Raises:
        ConfigError: The config has no data for this split.
        DatasetError: Files of the dataset are missing or contradict each other.
        OutputError: An image would overwrite the config or a file of the dataset.
    """
    dataset, split = load_dataset(config, split, data_root, changes)
    vocabulary = vocabulary_of(dataset)
    indices = range(len(dataset))
    if split == "train":
        indices = SeededSampler(dataset, seed=seed)
    out = Path(out)
    chosen = [(index, dataset.get_data_info(int(index))) for index in islice(indices, number)]
    stems = [f"{split}_{i:03d}_{stem_of(info['img_path'])}" for i, (_, info) in enumerate(chosen)]
    inputs = (value for _, info in chosen for value in info.values())
    check_outputs([image_path(out, stem) for stem in stems], [config, *inputs])
    table = Table(f"{config}, {split}: {len(dataset):,} images", COLUMNS)
    for stem, (index, info) in zip(stems, chosen, strict=True):
        item = dataset[index]
        image = item["inputs"].numpy().transpose(1, 2, 0)
        sample = item["data_samples"]
        result = ground_truth(item, info, vocabulary)
        words = sample.get("words")
        path = write_image(out, stem, draw(image, result, words))
        height, width = sample.ori_shape
        names = dict.fromkeys(segment.name for segment in result.segments)
        table.rows.append(
            (
                path.name,
                Path(info["img_path"]).name,
                f"{width} x {height}",
                f"{result.width} x {result.height}",
                str(len(result.segments)),
                _short(names),
                "" if words is None else _short(words) or "none",
            )
        )
    table.notes.append(f"images are in {out}/; sizes are width x height")
    return table


def load_dataset(
    config: str,
    split: str | None = None,
    data_root: str | None = None,
    changes: Mapping[str, Any] | None = None,
) -> tuple[BaseDataset, str]:
    """Build the dataset of a config.

    Args:
        config: Config file, or its name under ``configs/``.
        split: "train", "val" or "test". Defaults to the first one that the config defines.
        data_root: Folder to use instead of ``data/`` in the config.
        changes: Changes of the config, by dotted key.

    Returns:
        The dataset, and the name of its split.

    Raises:
        ConfigError: The config has no data for this split.
    """
    cfg = load_config(config)
    change_config(cfg, changes or {})
    if data_root is not None:
        set_data_root(cfg, data_root)
    cfg = complete_config(cfg)
    available = [name for name in ("train", "val", "test") if f"{name}_dataloader" in cfg]
    split = split or next(iter(available), None)
    if split not in available:
        raise ConfigError(
            f"{config}: no {split} data in this config; available: {', '.join(available)}"
            if available
            else f"{config}: no data in this config, it only defines a model"
        )
    return build_seeded(cfg[f"{split}_dataloader"].dataset), split


def ground_truth(item: dict, info: dict[str, Any], vocabulary: Vocabulary) -> SegmentationResult:
    """Return the ground truth of an image, from the packed sample or else from the files.

    Args:
        item: Output of the pipeline: ``inputs`` and ``data_samples``. Samples of test pipelines
            contain no masks, so these are read from the annotation files.
        info: The dataset's entry for the image.
        vocabulary: Classes of the dataset.

    Returns:
        The ground truth at the size of ``item["inputs"]``.

    Raises:
        DatasetError: The files are missing or contradict each other.
    """
    sample = item["data_samples"]
    shape = tuple(item["inputs"].shape[-2:])
    if "masks" in sample.get("gt_instances", ()):
        masks = sample.gt_instances.masks.to_ndarray()
        return result_of_masks(masks, sample.gt_instances.labels.tolist(), vocabulary)
    if info.get("segments_info") is not None:
        truth = read_panoptic_truth(info, len(vocabulary))
        shown = [segment for segment in truth.segments if not segment.is_crowd]
        masks = [truth.ids == segment.id for segment in shown]
        labels = [segment.label for segment in shown]
    elif "sem_seg_path" in info:
        classes, _ = read_semantic_truth(info, len(vocabulary))
        labels = [int(label) for label in np.unique(classes) if label >= 0]
        masks = [classes == label for label in labels]
    else:
        masks, labels = _instance_masks(info)
    resized = [
        imresize(mask.astype(np.uint8), shape[::-1], interpolation="nearest") for mask in masks
    ]
    stack = np.stack(resized) if resized else np.zeros((0, *shape), np.uint8)
    return result_of_masks(stack, labels, vocabulary)


def _instance_masks(info: dict[str, Any]) -> tuple[list[np.ndarray], list[int]]:
    """Return masks and labels of an ``InstanceDataset`` image, largest first.

    Later masks are drawn over earlier ones, so the small ones stay visible.
    """
    load = TRANSFORMS.build(dict(type="mmdet.LoadAnnotations", with_mask=True, poly2mask=True))
    shape = info["height"], info["width"]
    done = load({**info, "img_shape": shape, "ori_shape": shape})
    masks = done["gt_masks"].to_ndarray()
    kept = np.flatnonzero(~done["gt_ignore_flags"].astype(bool))
    order = sorted(kept, key=lambda index: -int(masks[index].sum()))
    return [masks[i] for i in order], [int(done["gt_bboxes_labels"][i]) for i in order]


def result_of_masks(
    masks: np.ndarray, labels: list[int], vocabulary: Vocabulary
) -> SegmentationResult:
    """Make a panoptic result of masks; where masks overlap, the last one wins.

    Args:
        masks: (N, H, W), nonzero inside a mask.
        labels: Class index of each mask.
        vocabulary: Classes of the dataset.
    """
    panoptic = np.zeros(masks.shape[1:], dtype=np.int32)
    for number, mask in enumerate(masks, start=1):
        panoptic[mask.astype(bool)] = number
    segments = [
        Segment(
            id=number,
            label=label,
            name=vocabulary.names[label],
            score=1.0,
            area=int((panoptic == number).sum()),
            is_thing=vocabulary.is_thing[label],
        )
        for number, label in enumerate(labels, start=1)
    ]
    height, width = panoptic.shape
    return SegmentationResult(
        height=height,
        width=width,
        panoptic=panoptic,
        segments=segments,
        class_names=vocabulary.names,
    )


def draw(image: np.ndarray, result: SegmentationResult, words: list[str] | None) -> np.ndarray:
    """Draw the image and its named segments side by side, with a banner of words above.

    Args:
        image: (H, W, 3) uint8, BGR.
        result: Ground truth of the image.
        words: Words of the caption; None draws no banner.

    Returns:
        The drawing, (h, w, 3) uint8, BGR.
    """
    right = draw_panoptic(image, result, legend=None)
    zoom = max(1, right.shape[1] // image.shape[1])  # draw_panoptic enlarges small images
    size = image.shape[1] * zoom, image.shape[0] * zoom
    left = cv2.resize(image, size, interpolation=cv2.INTER_NEAREST)
    height, width = max(left.shape[0], right.shape[0]), left.shape[1] + right.shape[1] + GAP
    canvas = np.full((height, width, 3), PAPER, np.uint8)
    canvas[: left.shape[0], : left.shape[1]] = left
    canvas[: right.shape[0], -right.shape[1] :] = right
    if words is None:
        return canvas
    text = "words: " + (", ".join(words) if words else "none")
    below = add_banner(Image.fromarray(canvas[..., ::-1]), text, max(12, round(0.012 * width)))
    return np.ascontiguousarray(np.asarray(below)[..., ::-1])


def _short(names: Iterable[str], limit: int = 5) -> str:
    names = list(names)
    return ", ".join(names[:limit]) + (f" + {len(names) - limit}" if len(names) > limit else "")
