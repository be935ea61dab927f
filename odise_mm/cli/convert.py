"""Convert segmented images to the formats of labeling and training tools.

Example:
    odise-mm convert out/panoptic.json --format coco,yolo --out labels
"""

from __future__ import annotations

import argparse

from odise_mm.utils.command_line import Parser, one_line_errors
from odise_mm.utils.display import printable

FORMAT_HELP = (
    "formats, separated by commas: coco (instances with run-length masks), coco_polygons, "
    "coco_panoptic, cvat (masks), cvat_polygons, jsonl (a line per image), labelme (polygons), "
    "labelme_masks, labelstudio (brush masks), masks (a PNG per segment), npz, parquet, semantic "
    "(PNG with class indices), voc (Pascal VOC), yolo (Ultralytics' polygons)"
)


def parse_args(argv: list[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = Parser(__doc__, prog=prog)
    parser.add_argument(
        "panoptic_json",
        metavar="JSON",
        help="panoptic.json of `odise-mm segment`, or another file in COCO's panoptic format; the "
        "folder of its maps is beside it and has its name",
    )
    parser.add_argument("--format", required=True, type=list_of_names, help=FORMAT_HELP)
    parser.add_argument(
        "--out",
        required=True,
        metavar="DIR",
        help="folder for the results; each format gets a folder of its name there",
    )
    return parser.parse_args(argv)


def list_of_names(text: str) -> list[str]:
    """Split names at commas, as the ``type`` of an argument."""
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise argparse.ArgumentTypeError(f"{text!r} contains an empty name")
    return names


def main(argv: list[str] | None = None, prog: str | None = None) -> int:
    """Run the command and return its exit status."""
    args = parse_args(argv, prog)
    with one_line_errors("interrupted; unfinished formats were removed"):
        from odise_mm.io.conversion import convert

        for folder in convert(args.panoptic_json, args.format, args.out):
            print(f"wrote {printable(folder)}")
    return 0
