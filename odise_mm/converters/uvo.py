"""Prepare UVO: class-agnostic instance annotations of frames.

Unpack the kit (v0.5 or v1.0) in DATA_ROOT and split its videos into frames with the kit's script
(see docs/datasets.md). The converter writes there:

    annotations/frame_val.json    from FrameSet/UVO_frame_val.json (7,356 frames of 2,452 videos),
                                  frames in uvo_videos_sparse_frames/
    annotations/dense_val.json    from VideoDenseSet/UVO_video_val_dense.json (256 videos),
                                  frames in uvo_videos_dense_frames/

and the same for train. All objects have the class "object". Masks are stored as run lengths; areas
and boxes are computed from them. Empty masks are left out.

Example:
    python tools/dataset_converters/uvo.py data/uvo --splits frame_val
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from odise_mm.annotations.json_fields import (
    FLAG,
    ID,
    LENGTH,
    NAMES,
    TEXT,
    fault,
    shown,
    twin,
)
from odise_mm.converters.claims import claim
from odise_mm.converters.files import need_file, need_folder, read_json, rows_of
from odise_mm.converters.masks import measured_mask
from odise_mm.converters.program import Row, alone_in, converter_parser, program, show_written
from odise_mm.converters.verification import verify_instances
from odise_mm.converters.work import progress_bar
from odise_mm.errors import DatasetError
from odise_mm.utils.files import path_inside, write_json

CATEGORIES = [dict(id=1, name="object")]
SCRIPT = "the UVO kit's video2frames.py"
UNPACK = "unpack the UVO kit"


class Split(NamedTuple):
    """Locations of a split's annotations, frames and videos in the kit."""

    annotations: str
    frames: str
    videos: str
    num_frames: int | None  # of the complete split, if the kit specifies it


_SPARSE = ("uvo_videos_sparse_frames", "uvo_videos_sparse")
_DENSE = ("uvo_videos_dense_frames", "uvo_videos_dense")
SPLITS = {
    "frame_train": Split("FrameSet/UVO_frame_train.json", *_SPARSE, 15414),
    "frame_val": Split("FrameSet/UVO_frame_val.json", *_SPARSE, 7356),
    "dense_train": Split("VideoDenseSet/UVO_video_train_dense.json", *_DENSE, None),
    "dense_val": Split("VideoDenseSet/UVO_video_val_dense.json", *_DENSE, None),
}


class Frame(NamedTuple):
    """Frame with its masks (COCO polygons or run lengths), each with its crowd flag."""

    file_name: str
    height: int
    width: int
    masks: list[tuple[Any, int]]


def read_frames(path: Path) -> list[Frame]:
    """Read the annotated frames from a file in COCO's or YouTube-VIS's format.

    Raises:
        DatasetError: The file has neither format.
    """
    content = read_json(path)
    is_video = isinstance(content, dict) and "videos" in content
    frames = list(_of_videos(content, path) if is_video else _of_images(content, path))
    for frame in frames:
        path_inside("frames", frame.file_name, DatasetError, str(path))
    return frames


def _of_images(content: Any, path: Path) -> Iterator[Frame]:
    images = rows_of(content, "images", path, id=ID, file_name=TEXT, height=LENGTH, width=LENGTH)
    masks: dict[Any, list] = {image["id"]: [] for image in images}
    if len(masks) < len(images):
        raise DatasetError(f"{path}: `images` contains an id twice")
    for annotation in rows_of(content, "annotations", path, image_id=ID):
        name = f"{path}: an annotation of image {shown(annotation['image_id'])}"
        problem = fault(annotation, "iscrowd", FLAG, required=False)
        if annotation["image_id"] not in masks:
            problem = f"belongs to no entry of `images`{twin(annotation['image_id'], masks)}"
        if problem or "segmentation" not in annotation:
            raise DatasetError(f"{name} {problem or 'has no `segmentation`'}")
        mask = (annotation["segmentation"], int(annotation.get("iscrowd", 0)))
        masks[annotation["image_id"]].append(mask)
    for image in images:
        yield Frame(image["file_name"], image["height"], image["width"], masks[image["id"]])


def _of_videos(content: Any, path: Path) -> Iterator[Frame]:
    videos = rows_of(content, "videos", path, id=ID, file_names=NAMES, height=LENGTH, width=LENGTH)
    objects: dict[Any, list] = {video["id"]: [] for video in videos}
    if len(objects) < len(videos):
        raise DatasetError(f"{path}: `videos` contains an id twice")
    for one in rows_of(content, "annotations", path, video_id=ID, segmentations="a list"):
        name = f"{path}: an annotation of video {shown(one['video_id'])}"
        problem = fault(one, "iscrowd", FLAG, required=False)
        if one["video_id"] not in objects:
            problem = f"belongs to no entry of `videos`{twin(one['video_id'], objects)}"
        if problem:
            raise DatasetError(f"{name} {problem}")
        objects[one["video_id"]].append(one)
    for video in videos:
        frames = len(video["file_names"])
        for one in objects[video["id"]]:
            if len(one["segmentations"]) != frames:
                raise DatasetError(
                    f"{path}: an annotation of video {shown(video['id'])} has "
                    f"{len(one['segmentations'])} masks for its {frames} frames"
                )
        for place, name in enumerate(video["file_names"]):
            masks = [(o["segmentations"][place], int(o.get("iscrowd", 0)))
                     for o in objects[video["id"]] if o["segmentations"][place]]  # fmt: skip
            yield Frame(name, video["height"], video["width"], masks)


def prepare(root: Path, split: str) -> None:
    """Write the annotation file of one split.

    Raises:
        DatasetError: A frame or mask is missing or invalid; the message names the first one.
    """
    path = need_file(root / SPLITS[split].annotations, UNPACK)
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
    written = root / "annotations" / f"{split}.json"
    claim(root, [written])
    write_json(written, content)


def check_frames(root: Path, split: str, frames: list[Frame]) -> None:
    """Check that all frames exist (:func:`verify` checks their sizes).

    Raises:
        DatasetError: A frame is missing, or the split has no frames.
    """
    folder = need_folder(root / SPLITS[split].frames, f"split the videos into frames with {SCRIPT}")
    if not frames:
        raise DatasetError(f"{root / SPLITS[split].annotations}: lists no frames")
    missing = [frame.file_name for frame in frames if not (folder / frame.file_name).is_file()]
    if missing:
        raise DatasetError(
            f"{folder / missing[0]}: no such frame ({len(missing):,} of {len(frames):,} are "
            f"missing); split the videos in {SPLITS[split].videos}/ with {SCRIPT}"
        )


def _annotation(mask: Any, frame: Frame, path: Path) -> dict:
    """Return area, box and run lengths of a mask in COCO's format."""
    size = frame.height, frame.width
    try:
        run_lengths, area, box = measured_mask(mask, size)
    except DatasetError as error:
        raise DatasetError(f"{path}: {frame.file_name}: {error}") from error
    counts = run_lengths["counts"]
    counts = counts.decode("ascii") if isinstance(counts, bytes) else counts
    return dict(area=area, bbox=box, segmentation=dict(size=list(size), counts=counts))


def verify(root: Path, split: str, workers: int) -> list[Row]:
    """Check that the annotation file of one split matches the frames and the kit's file.

    Raises:
        DatasetError: A file is missing or invalid; the message names the first one.
    """
    raw = need_file(root / SPLITS[split].annotations, UNPACK)
    frames = read_frames(raw)
    check_frames(root, split, frames)
    path = root / "annotations" / f"{split}.json"
    found = verify_instances(path, root / SPLITS[split].frames, workers=workers)
    masks = sum(len(frame.masks) for frame in frames)
    if found.images != len(frames) or found.segments > masks:
        raise DatasetError(
            f"{path}: {found.segments} masks in {found.images} frames, but {raw} has {masks} in "
            f"{len(frames)}; run this program again without --verify-only"
        )
    return [
        Row(path, "frames", found.images, SPLITS[split].num_frames),
        Row(path, "masks", found.segments),
        Row(path, "empty masks, left out", masks - found.segments),
    ]


def main(argv: list[str] | None = None) -> int:
    """Run the program and return its exit status."""
    parser = converter_parser(__doc__, "data/uvo", list(SPLITS), "frame_val")
    args = parser.parse_args(argv)
    with program(), alone_in(args.data_root, args.verify_only):
        rows = []
        for split in args.splits:
            if not args.verify_only:
                prepare(args.data_root, split)
            rows += verify(args.data_root, split, args.workers)
        show_written("UVO", rows)
    return 0
