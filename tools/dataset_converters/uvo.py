#!/usr/bin/env python
"""Prepare UVO: class-agnostic instance annotations of frames.

Unpack the kit (v0.5 or v1.0) in DATA_ROOT and split its videos into frames with the kit's own
script, as docs/datasets.md says. Written there:

    annotations/frame_val.json    from FrameSet/UVO_frame_val.json (7,356 frames of 2,452 videos),
                                  frames in uvo_videos_sparse_frames/
    annotations/dense_val.json    from VideoDenseSet/UVO_video_val_dense.json (256 videos),
                                  frames in uvo_videos_dense_frames/

and the same for train. All objects are of the one class "object"; masks are run lengths, areas and
boxes those of the masks. Masks without a pixel are left out.

Example:
    python tools/dataset_converters/uvo.py data/uvo --splits frame_val
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # runs from a clone that is not installed, too

from odise_mm.errors import DatasetError  # noqa: E402
from tools.dataset_converters.common import (  # noqa: E402
    Row,
    converter_parser,
    measured_mask,
    need_file,
    need_folder,
    parsing,
    program,
    progress_bar,
    read_json,
    show_written,
    verify_instances,
    write_json,
)

CATEGORIES = [dict(id=1, name="object")]
KIT = "the UVO kit"


class Split(NamedTuple):
    """Where the kit has a split's annotations, and where its frames belong."""

    annotations: str
    frames: str
    videos: str
    num_frames: int | None  # of the complete split, where the kit says it


_SPARSE = ("uvo_videos_sparse_frames", "uvo_videos_sparse")
_DENSE = ("uvo_videos_dense_frames", "uvo_videos_dense")
SPLITS = {
    "frame_train": Split("FrameSet/UVO_frame_train.json", *_SPARSE, 15414),
    "frame_val": Split("FrameSet/UVO_frame_val.json", *_SPARSE, 7356),
    "dense_train": Split("VideoDenseSet/UVO_video_train_dense.json", *_DENSE, None),
    "dense_val": Split("VideoDenseSet/UVO_video_val_dense.json", *_DENSE, None),
}


class Frame(NamedTuple):
    """A frame and its masks: COCO's polygons or run lengths, each with its crowd flag."""

    file_name: str
    height: int
    width: int
    masks: list[tuple[Any, int]]


def read_frames(path: Path) -> list[Frame]:
    """The annotated frames of a file of frames (COCO) or of videos (YouTube-VIS).

    Raises:
        DatasetError: neither of them.
    """
    content = read_json(path)
    with parsing(path, "annotations of UVO"):
        return list(_of_videos(content) if "videos" in content else _of_images(content))


def _of_images(content: dict) -> Iterator[Frame]:
    masks: dict[Any, list] = {image["id"]: [] for image in content["images"]}
    for annotation in content["annotations"]:
        mask = (annotation["segmentation"], int(annotation.get("iscrowd", 0)))
        masks[annotation["image_id"]].append(mask)
    for image in content["images"]:
        yield Frame(image["file_name"], image["height"], image["width"], masks[image["id"]])


def _of_videos(content: dict) -> Iterator[Frame]:
    objects: dict[Any, list] = {video["id"]: [] for video in content["videos"]}
    for annotation in content["annotations"]:
        objects[annotation["video_id"]].append(annotation)
    for video in content["videos"]:
        for place, name in enumerate(video["file_names"]):
            masks = [(o["segmentations"][place], int(o.get("iscrowd", 0)))
                     for o in objects[video["id"]] if o["segmentations"][place]]  # fmt: skip
            yield Frame(name, video["height"], video["width"], masks)


def prepare(root: Path, split: str) -> None:
    """Write the annotation file of one split.

    Raises:
        DatasetError: the first frame or mask that is missing or wrong.
    """
    path = need_file(root / SPLITS[split].annotations, KIT)
    frames = read_frames(path)
    check_frames(root, split, frames)
    images, annotations = [], []
    with progress_bar(f"uvo {split}", len(frames)) as advance:
        for number, frame in enumerate(frames, start=1):
            size = dict(height=frame.height, width=frame.width)
            images.append(dict(id=number, file_name=frame.file_name, **size))
            for mask, is_crowd in frame.masks:
                annotation = _annotation(mask, frame, path)
                if annotation["area"]:
                    first = dict(id=len(annotations) + 1, image_id=number, category_id=1)
                    annotations.append(first | dict(iscrowd=is_crowd) | annotation)
            advance()
    content = dict(images=images, annotations=annotations, categories=CATEGORIES)
    write_json(root / "annotations" / f"{split}.json", content)


def check_frames(root: Path, split: str, frames: list[Frame]) -> None:
    """All frames are there; their sizes are checked by :func:`verify`.

    Raises:
        DatasetError: one is not, or the split has none.
    """
    folder = need_folder(root / SPLITS[split].frames, f"{KIT}'s video2frames.py")
    if not frames:
        raise DatasetError(f"{root / SPLITS[split].annotations}: lists no frame")
    missing = [frame.file_name for frame in frames if not (folder / frame.file_name).is_file()]
    if missing:
        raise DatasetError(
            f"{folder / missing[0]}: no such frame ({len(missing):,} of {len(frames):,} are "
            f"missing); split the videos in {SPLITS[split].videos}/ with {KIT}'s video2frames.py"
        )


def _annotation(mask: Any, frame: Frame, path: Path) -> dict:
    """Run lengths, area and box of a mask."""
    size = frame.height, frame.width
    try:
        run_lengths, area, box = measured_mask(mask, size)
    except DatasetError as error:
        raise DatasetError(f"{path}: {frame.file_name}: {error}") from error
    counts = run_lengths["counts"]
    counts = counts.decode("ascii") if isinstance(counts, bytes) else counts
    return dict(area=area, bbox=box, segmentation=dict(size=list(size), counts=counts))


def verify(root: Path, split: str, workers: int) -> list[Row]:
    """Check one split's annotation file: against itself, the frames and the kit's.

    Raises:
        DatasetError: what is wrong first, by name.
    """
    raw = need_file(root / SPLITS[split].annotations, KIT)
    frames = read_frames(raw)
    check_frames(root, split, frames)
    path = root / "annotations" / f"{split}.json"
    found = verify_instances(path, root / SPLITS[split].frames, workers=workers)
    masks = sum(len(frame.masks) for frame in frames)
    if found.images != len(frames) or found.segments > masks:
        raise DatasetError(
            f"{path}: {found.segments} masks in {found.images} frames, {raw} has {masks} in "
            f"{len(frames)}; prepare it again"
        )
    return [
        Row(path, "frames", found.images, SPLITS[split].num_frames),
        Row(path, "masks", found.segments),
        Row(path, "masks without a pixel, left out", masks - found.segments),
    ]


def main(argv: list[str] | None = None) -> int:
    parser = converter_parser(__doc__, "data/uvo", list(SPLITS), "frame_val")
    args = parser.parse_args(argv)
    with program():
        rows = []
        for split in args.splits:
            if not args.verify_only:
                prepare(args.data_root, split)
            rows += verify(args.data_root, split, args.workers)
        show_written("UVO", rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
