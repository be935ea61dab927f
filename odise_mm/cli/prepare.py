"""Check a folder of annotated images, split it, and write a config for training on it.

The images are in FOLDER/images. The annotations are panoptic.json with panoptic/ (COCO), or
instances.json (COCO), or labels/*.png with names.txt (class indices), or labels/*.txt with
data.yaml (YOLO polygons), or labels/*.json (LabelMe).

Writes to FOLDER: the splits, names.txt if it is missing, and instances.json for YOLO and LabelMe.

Example:
    odise-mm prepare data/mine --base odise_coco_label --config finetune.py
    odise-mm train finetune.py --load-from checkpoints/odise_label_coco_50e-b67d2efc.pth
"""

from __future__ import annotations

import argparse
from pathlib import Path

from odise_mm.utils.command_line import Parser, fraction, one_line_errors, positive_int
from odise_mm.utils.display import printable


def parse_args(argv: list[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = Parser(__doc__, prog=prog)
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="folder of the data")
    parser.add_argument(
        "--base",
        default="odise_coco_label",
        metavar="CONFIG",
        help="config to start from (default: %(default)s)",
    )
    parser.add_argument(
        "--config",
        type=Path,
        default=Path("finetune.py"),
        metavar="FILE",
        help="config to write (default: %(default)s)",
    )
    parser.add_argument(
        "--val-part",
        type=fraction,
        default=0.2,
        metavar="P",
        help="part of the images for validation (default: %(default)s)",
    )
    parser.add_argument(
        "--max-iters",
        type=positive_int,
        default=1000,
        metavar="N",
        help="iterations in the config (default: %(default)s)",
    )
    parser.add_argument(
        "--workers", type=positive_int, default=1, help="number of processes (default: 1)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing config")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None, prog: str | None = None) -> int:
    """Run the command and return its exit status."""
    args = parse_args(argv, prog)
    with one_line_errors():
        from odise_mm.benchmarks.tables import Table, show
        from odise_mm.config.finding import load_config
        from odise_mm.converters.own_data import prepare, write_config
        from odise_mm.errors import OutputError

        if args.config.exists() and not args.overwrite:
            raise OutputError(
                f"{args.config}: exists already; choose another --config, or add --overwrite"
            )
        base = load_config(args.base).filename
        data = prepare(args.folder, args.val_part, args.workers)
        write_config(data, base, args.config, args.max_iters)
        title = f"{printable(str(args.folder))} ({data.kind})"
        cells = [[printable(name), f"{i:,}", f"{s:,}"] for name, i, s in data.rows]
        show([Table(title, ["class", "images", "segments"], cells, data.notes)], {}, "table")
        images = ", ".join(f"{name}: {count:,} images" for name, count in data.splits.items())
        print(f"{images}; wrote {printable(str(args.config))}")
    return 0
