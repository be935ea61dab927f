#!/usr/bin/env python
"""Segment pictures and name the segments with names that you choose.

Example:
    python demo/image_demo.py demo/images/pagoda.jpg \
        --texts "pagoda, temple; tree" --stuff-texts "sky; lake, water" --out out
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # runs from a clone that is not installed, too

from odise_mm.utils.command_line import one_line_errors, positive_int  # noqa: E402
from odise_mm.utils.precision import PRECISIONS  # noqa: E402

DEFAULT_CONFIG = ROOT / "configs" / "toy" / "odise_tiny.py"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "images", nargs="+", metavar="IMAGE", help="pictures, folders or glob patterns"
    )
    names = parser.add_argument_group("names")
    names.add_argument(
        "--texts",
        help="names of things, ';' between classes, ',' between synonyms; names of vocabularies "
        "(coco, ade20k, lvis, ...) work as well",
    )
    names.add_argument("--stuff-texts", help="names of stuff (sky, grass, ...), written alike")
    names.add_argument(
        "--vocabulary", help="vocabularies, by name or file, joined to the typed names"
    )
    model = parser.add_argument_group("model")
    model.add_argument(
        "--config",
        default=str(DEFAULT_CONFIG),
        help="config file or its name under configs/ (default: the miniature)",
    )
    model.add_argument("--weights", help="our checkpoint or a published ODISE checkpoint")
    model.add_argument("--diffusion-weights", help="folder, single file or hub id")
    model.add_argument("--clip-weights", help="file or open_clip tag")
    model.add_argument("--device", help="cuda, cuda:1, cpu, ... (default: cuda where there is one)")
    model.add_argument("--precision", choices=PRECISIONS, default="fp32")
    model.add_argument(
        "--batch-size", type=positive_int, default=1, help="pictures that run together"
    )
    out = parser.add_argument_group("output")
    out.add_argument("--out", default="out", metavar="DIR", help="default: %(default)s")
    out.add_argument("--no-picture", action="store_true", help="write the maps alone")
    out.add_argument("--no-progress", action="store_true", help="no progress bar")
    return parser.parse_args(argv)


def print_segments(console, result) -> None:
    """A table of one picture's segments, the largest first."""
    from rich.table import Table
    from rich.text import Text

    title = f"{result.image_name}  ({result.width} x {result.height})"
    table = Table(title=Text(title), title_justify="left", title_style="bold")
    table.add_column("segment")
    table.add_column("kind")
    table.add_column("score", justify="right")
    table.add_column("area", justify="right")
    for segment in sorted(result.segments, key=lambda s: -s.area):
        table.add_row(
            Text(segment.name),
            "thing" if segment.is_thing else "stuff",
            f"{segment.score:.2f}",
            f"{100 * result.share(segment):.1f} %",
        )
    if result.made_up_weights:
        table.caption = "made-up weights: meaningless"
        table.caption_style = "black on yellow"
    if not result.segments:
        table.add_row(Text("nothing found", style="italic"), "", "", "")
    console.print(table)


def main(argv: list[str] | None = None) -> int:
    """Run the command: 0, or 1 when a picture was skipped; mistakes exit with 2, as argparse."""
    args = parse_args(argv)
    # After the arguments: these imports take seconds, and --help should not.
    from rich.console import Console

    with one_line_errors():
        return run(args, Console(highlight=False))


def run(args: argparse.Namespace, console) -> int:
    import odise_mm  # noqa: F401  (first: it prepares mmcv)
    from odise_mm.apis import OpenVocabInferencer
    from odise_mm.apis.inferencer import MADE_UP_NOTICE

    inferencer = OpenVocabInferencer(
        args.config,
        args.weights,
        args.device,
        args.precision,
        diffusion_weights=args.diffusion_weights,
        clip_weights=args.clip_weights,
        # Only the panoptic result is shown: don't compute the others.
        cfg_options={"model.test_cfg.semantic": False, "model.test_cfg.instance": False},
    )
    failed = 0
    written: dict[str, None] = {}
    for result in inferencer.stream(
        args.images,
        args.texts,
        args.stuff_texts,
        args.vocabulary,
        batch_size=args.batch_size,
        out_dir=args.out,
        draw=not args.no_picture,
        progress=not args.no_progress,
    ):
        if result.ok:
            print_segments(console, result)
            written |= dict.fromkeys(result.files.values())
        else:
            failed += 1
            console.print(f"skipped: {result.error}", style="red", markup=False, soft_wrap=True)
    if inferencer.made_up_weights:
        console.print(MADE_UP_NOTICE, style="black on yellow", markup=False)
    for path in written:
        console.print(f"wrote {path}", markup=False, soft_wrap=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
