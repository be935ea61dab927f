#!/usr/bin/env python
"""Draw what a model sees of a data set: pictures after the pipeline, segments, names, words.

Of training data the first pictures of the stream are drawn, with its augmentations; of validation
and test data the first ones in order. Each file shows the picture at the left, and at the right its
ground truth; the words for caption supervision stand above it. Dark pixels have no segment.

Examples:
    python tools/analysis_tools/browse_dataset.py odise_coco_caption --number 8
    python tools/analysis_tools/browse_dataset.py odise_label_ade20k --split test
"""

from __future__ import annotations

import argparse
import sys
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # runs from a clone that is not installed, too

from odise_mm.benchmarks.tables import Table, show  # noqa: E402
from odise_mm.utils.command_line import ConfigOptions, Parser, one_line_errors, positive_int  # noqa: E402
from odise_mm.utils.outputs import (  # noqa: E402
    check_outputs,
    picture_path,
    stem_of,
    write_picture,
)

if TYPE_CHECKING:
    import numpy as np
    from mmengine.config import Config
    from mmengine.dataset import BaseDataset

    from odise_mm.structures import SegmentationResult
    from odise_mm.vocabulary import Vocabulary

PAPER, GAP = 255, 8
COLUMNS = ("file", "picture", "original", "drawn", "segments", "classes", "words")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("config", metavar="CONFIG", help="config file or its name under configs/")
    parser.add_argument(
        "--split", choices=("train", "val", "test"), help="default: the first there is"
    )
    parser.add_argument("--number", type=positive_int, default=10, metavar="N", help="of pictures")
    parser.add_argument(
        "--out", default="work_dirs/browse", metavar="DIR", help="default: %(default)s/"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of the training stream (default: %(default)s)"
    )
    parser.add_argument("--data-root", metavar="DIR", help="instead of data/ in the config")
    parser.add_argument(
        "--cfg-options",
        action=ConfigOptions,
        help="changes of the config",
    )
    return parser.parse_args(argv)


def load_dataset(args: argparse.Namespace) -> tuple[BaseDataset, str]:
    """The data set as the config says, and its split.

    Raises:
        ConfigError: the config has no such data.
    """
    from odise_mm.config.changing import change_config, complete_config, set_data_root
    from odise_mm.config.finding import load_config
    from odise_mm.datasets.seeding import build_seeded
    from odise_mm.errors import ConfigError

    cfg: Config = load_config(args.config)
    change_config(cfg, args.cfg_options)
    if args.data_root is not None:
        set_data_root(cfg, args.data_root)
    cfg = complete_config(cfg)
    there = [split for split in ("train", "val", "test") if f"{split}_dataloader" in cfg]
    split = args.split or next(iter(there), None)
    if split not in there:
        raise ConfigError(
            f"{args.config}: no {split} data in this config; there are: {', '.join(there)}"
            if there
            else f"{args.config}: no data in this config, it is that of a model alone"
        )
    return build_seeded(cfg[f"{split}_dataloader"].dataset), split


def result_of_masks(
    masks: np.ndarray, labels: list[int], vocabulary: Vocabulary
) -> SegmentationResult:
    """What is drawn of masks (N, H, W) and their class indices; of overlaps the last one."""
    import numpy as np

    from odise_mm.structures import Segment, SegmentationResult

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


def ground_truth(item: dict, info: dict[str, Any], vocabulary: Vocabulary) -> SegmentationResult:
    """What is to be found in a picture: from the sample, or, in testing, from the files.

    Args:
        item: as the pipeline packs it.
        info: what the data set says of the picture.

    Raises:
        DatasetError: the files are missing or contradict each other.
    """
    import numpy as np
    from mmcv.image import imresize

    from odise_mm.annotations.ground_truth import read_panoptic_truth, read_semantic_truth

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
    """Masks of an ``InstanceDataset``'s picture, the largest first: small ones stay visible."""
    import numpy as np

    from odise_mm.registry import TRANSFORMS

    load = TRANSFORMS.build(dict(type="mmdet.LoadAnnotations", with_mask=True, poly2mask=True))
    shape = info["height"], info["width"]
    done = load({**info, "img_shape": shape, "ori_shape": shape})
    masks = done["gt_masks"].to_ndarray()
    kept = np.flatnonzero(~done["gt_ignore_flags"].astype(bool))
    order = sorted(kept, key=lambda index: -int(masks[index].sum()))
    return [masks[i] for i in order], [int(done["gt_bboxes_labels"][i]) for i in order]


def draw(image: np.ndarray, result: SegmentationResult, words: list[str] | None) -> np.ndarray:
    """The picture, beside it its segments with their names, above them the words (BGR)."""
    import cv2
    import numpy as np
    from PIL import Image

    from odise_mm.visualization import draw_panoptic
    from odise_mm.visualization.legend import add_banner

    right = draw_panoptic(image, result)
    zoom = max(1, right.shape[1] // image.shape[1])  # small pictures are enlarged there
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


def browse(args: argparse.Namespace) -> Table:
    from odise_mm.datasets import SeededSampler
    from odise_mm.engine.loops import vocabulary_of

    dataset, split = load_dataset(args)
    vocabulary = vocabulary_of(dataset)
    indices = range(len(dataset))
    if split == "train":
        indices = SeededSampler(dataset, seed=args.seed)
    out = Path(args.out)
    chosen = [(index, dataset.get_data_info(int(index))) for index in islice(indices, args.number)]
    stems = [f"{split}_{i:03d}_{stem_of(info['img_path'])}" for i, (_, info) in enumerate(chosen)]
    inputs = (value for _, info in chosen for value in info.values())
    check_outputs([picture_path(out, stem) for stem in stems], [args.config, *inputs])
    table = Table(f"{args.config}, {split}: {len(dataset):,} pictures", COLUMNS)
    for stem, (index, info) in zip(stems, chosen, strict=True):
        item = dataset[index]
        image = item["inputs"].numpy().transpose(1, 2, 0)
        sample = item["data_samples"]
        result = ground_truth(item, info, vocabulary)
        words = sample.get("words")
        path = write_picture(out, stem, draw(image, result, words))
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
    table.notes.append(f"pictures are in {out}/; sizes are width x height")
    return table


def _short(names: Any, limit: int = 5) -> str:
    names = list(names)
    return ", ".join(names[:limit]) + (f" + {len(names) - limit}" if len(names) > limit else "")


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    with one_line_errors():
        import odise_mm.models  # noqa: F401  (the config names them)

        show([browse(args)], {}, "table")
    return 0


if __name__ == "__main__":
    sys.exit(main())
