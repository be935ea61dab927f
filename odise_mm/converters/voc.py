"""Check Pascal VOC 2012 for the datasets with 20 and 21 classes. Nothing is converted.

The palette PNG files in SegmentationClass/ already are label maps: 0 is the background, 1 to 20 are
the classes, and 255 is the border, which is ignored. The background is a class in voc21 and ignored
in voc20.

Example:
    python tools/dataset_converters/voc.py data/VOCdevkit/VOC2012
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from odise_mm.converters.files import need_file, need_folder, read_lines
from odise_mm.converters.program import Row, converter_parser, show_written
from odise_mm.converters.verification import verify_semantic
from odise_mm.errors import DatasetError
from odise_mm.utils.files import path_inside

EXPECTED = {"train": 1464, "val": 1449}
UNPACK = "unpack VOCtrainval_11-May-2012.tar"


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    return converter_parser(__doc__, "data/VOCdevkit/VOC2012", list(EXPECTED)).parse_args(argv)


def verify(root: Path, split: str, workers: int) -> list[Row]:
    """Check a split of the unpacked archive.

    Raises:
        DatasetError: A file is missing or invalid; the message names the first one.
    """
    listed = need_file(root / "ImageSets" / "Segmentation" / f"{split}.txt", UNPACK)
    need_folder(root / "SegmentationClass", UNPACK)
    names = [name for line in read_lines(listed) for name in line.split()]
    if len(set(names)) != len(names):
        raise DatasetError(f"{listed}: contains a name twice")
    for name in names:
        path_inside(root / "JPEGImages", name, DatasetError, str(listed))
    pairs = [
        (root / "JPEGImages" / f"{name}.jpg", root / "SegmentationClass" / f"{name}.png")
        for name in names
    ]
    found = verify_semantic(pairs, 21, workers=workers, description=f"verify VOC {split}")
    return [
        Row(listed, "images", found.images, EXPECTED[split]),
        Row(root / "SegmentationClass", f"classes present ({split})", found.classes, 21),
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Run the program and return its exit status."""
    args = parse_args(argv)
    rows = [row for split in args.splits for row in verify(args.data_root, split, args.workers)]
    show_written("Pascal VOC 2012, 20 and 21 classes", rows)
