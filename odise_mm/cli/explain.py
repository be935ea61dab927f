"""Show why an image was segmented as it was: one sheet of masks, attention, features and names.

Example:
    odise-mm explain demo/images/pagoda.jpg --texts "pagoda, temple; tree" --stuff-texts "sky" \\
        --config odise_coco_label --out explained.png
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from odise_mm.cli.arguments import (
    NO_CONFIG,
    SETTINGS,
    add_model,
    add_names,
    build_inferencer,
    given,
)
from odise_mm.utils.command_line import Parser, one_line_errors, positive_int
from odise_mm.utils.display import printable

if TYPE_CHECKING:
    from odise_mm.structures import SegmentationResult

SUFFIXES = (".png", ".jpg", ".jpeg", ".pdf", ".svg")


def parse_args(argv: list[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = Parser(__doc__, prog=prog)
    parser.add_argument("image", metavar="IMAGE", help="image file")
    add_names(parser)
    add_model(parser)
    out = parser.add_argument_group("output")
    out.add_argument(
        "--masks",
        type=positive_int,
        default=8,
        metavar="N",
        help="number of masks to show: the strongest ones, half of them kept and half dropped "
        "(default: %(default)s)",
    )
    out.add_argument(
        "--out",
        default="explained.png",
        metavar="FILE",
        help="image to write, .png, .jpg, .pdf or .svg (default: %(default)s)",
    )
    args = parser.parse_args(argv)
    if args.config is None:
        parser.error(NO_CONFIG)
    if not args.out.lower().endswith(SUFFIXES):
        parser.error(f"--out {printable(args.out)} must end with {', '.join(SUFFIXES)}")
    return args


def main(argv: list[str] | None = None, prog: str | None = None) -> int:
    """Run the command and return its exit status."""
    args = parse_args(argv, prog)
    with one_line_errors():
        from odise_mm.analysis.explaining import NO_DECODER, explain
        from odise_mm.utils.outputs import InputFiles, check_outputs

        named = (
            args.weights,
            args.diffusion_weights,
            args.clip_weights,
            args.vocabulary,
            args.memory,
        )
        check_outputs([args.out], InputFiles(args.image, args.config, *named))
        inferencer = build_inferencer(args)
        explained = explain(
            inferencer,
            args.image,
            args.texts,
            args.stuff_texts,
            args.vocabulary,
            **given(args, SETTINGS),
        )
        explained.save(args.out, args.masks)
        print_masks(explained.result, args.masks)
        if explained.features is None:
            print(NO_DECODER)
        print(f"wrote {printable(args.out)}")
    return 0


def print_masks(result: SegmentationResult, count: int) -> None:
    """Print the masks of the sheet and what became of them."""
    from odise_mm.analysis.explaining import describe, strongest

    for query in strongest(result.require_queries(), count):
        heading, (fate, *_) = describe(result, query)
        print(f"mask {query:3}  {heading:32}  {' '.join(fate.split())}")
