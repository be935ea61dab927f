"""Teach a model classes by examples: write a memory of named regions, for --memory elsewhere.

The examples come from annotations (COCO instances or panoptic, or a folder of LabelMe files), or
from a folder of crops with one subfolder per class. No weights are trained. If FILE exists, the
examples are added to it; regions that it has already are left out.

Examples:
    odise-mm teach --annotations shelf.json --images photos --config odise_coco_label \\
        --out shelf.safetensors
    odise-mm teach --crops crops --config odise_coco_label --out shelf.safetensors
    odise-mm teach --out shelf.safetensors --rename "crakers=crackers" --forget bottle
    odise-mm segment other.jpg --memory shelf.safetensors --texts "crackers; box" \\
        --config odise_coco_label
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from odise_mm.cli.arguments import NO_CONFIG, add_model, build_inferencer
from odise_mm.utils.command_line import Parser, one_line_errors, positive_int
from odise_mm.utils.display import printable

if TYPE_CHECKING:
    from odise_mm.models import RegionMemory


def parse_args(argv: list[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = Parser(__doc__, prog=prog)
    examples = parser.add_argument_group("examples")
    examples.add_argument(
        "--annotations",
        type=Path,
        metavar="PATH",
        help="COCO's instances or panoptic segments (.json), or a folder of LabelMe files",
    )
    examples.add_argument(
        "--images", type=Path, metavar="DIR", help="folder of the images of --annotations"
    )
    examples.add_argument(
        "--crops",
        type=Path,
        metavar="DIR",
        help="folder with a subfolder of images for each class; the example is the model's mask "
        "that fills the image, or the whole image",
    )
    examples.add_argument(
        "--limit",
        type=positive_int,
        metavar="N",
        help="use the first N examples of each class (default: all)",
    )
    examples.add_argument(
        "--no-pictures",
        action="store_true",
        help="keep no small pictures of the regions, which show the examples as evidence; those "
        "in FILE are removed",
    )
    memory = parser.add_argument_group("memory")
    memory.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help="memory to write (.safetensors)"
    )
    memory.add_argument(
        "--merge", type=Path, nargs="+", default=[], metavar="FILE", help="add other memories"
    )
    memory.add_argument("--rename", nargs="+", default=[], metavar="OLD=NEW", help="rename classes")
    memory.add_argument("--forget", nargs="+", default=[], metavar="NAME", help="remove classes")
    add_model(parser, results=False)
    args = parser.parse_args(argv)
    taught = args.annotations is not None or args.crops is not None
    if not (taught or args.merge or args.rename or args.forget or args.out.is_file()):
        parser.error("no examples: give --annotations and --images, or --crops")
    if (args.annotations is None) != (args.images is None):
        parser.error("--annotations and --images belong together")
    if taught and args.config is None:
        parser.error(NO_CONFIG)
    for pair in args.rename:
        if pair.count("=") != 1:
            parser.error(f"--rename {printable(pair)}: must be OLD=NEW")
    if args.out.suffix != ".safetensors":
        parser.error(f"--out {printable(str(args.out))} must end with .safetensors")
    return args


def main(argv: list[str] | None = None, prog: str | None = None) -> int:
    """Run the command and return 0, or 1 if images were skipped; errors exit with status 2."""
    args = parse_args(argv, prog)
    with one_line_errors():
        return run(args)


def run(args: argparse.Namespace) -> int:
    """Change the memory, write it and list its content; return the exit status."""
    from odise_mm.models.classifiers.region_memory import RegionMemory
    from odise_mm.utils.outputs import InputFiles, check_outputs

    check_outputs([args.out], InputFiles(args.annotations, args.weights, args.config, *args.merge))
    memory = RegionMemory.load(args.out) if args.out.exists() else RegionMemory()
    before = memory.digest
    for file in args.merge:
        print(f"{memory.merge(RegionMemory.load(file)):,} new regions of {printable(str(file))}")
    for pair in args.rename:
        memory.rename(*pair.split("="))
    for name in args.forget:
        memory.remove(name)
    skipped = 0
    try:
        if args.annotations is not None or args.crops is not None:
            skipped = _teach(args, memory)
    finally:  # what was taught before an error or Ctrl-C is kept
        dropped = memory.drop_pictures() if args.no_pictures else 0
        changed = dropped > 0 or memory.digest != before
        if changed:
            memory.save(args.out)
    _show(memory)
    if changed:
        print(f"wrote {printable(str(args.out))}")
    return 1 if skipped else 0


def _teach(args: argparse.Namespace, memory: RegionMemory) -> int:
    """Teach all examples; return the number of skipped images."""
    from rich.progress import track

    from odise_mm.apis.teaching import Example
    from odise_mm.converters.examples import limited, read_crops, read_examples
    from odise_mm.errors import ConfigError, DeviceMemoryError, ImageError
    from odise_mm.utils.image import read_image

    found = []
    if args.annotations is not None:
        found += read_examples(args.annotations, args.images)
    if args.crops is not None:
        found += read_crops(args.crops)
    if args.limit is not None:
        found = limited(found, args.limit)
    inferencer = build_inferencer(args)
    inferencer.memory = memory
    skipped: list[str] = []
    new = total = unseen = 0
    for one in track(found, "teaching", console=inferencer.console):
        try:
            if one.rles is None:
                height, width = read_image(one.path).shape[:2]
                examples = [Example(one.names[0], box=(0, 0, width, height))]
            else:
                rows = zip(one.names, one.masks(), one.is_thing, strict=True)
                examples = [Example(name, mask, is_thing=thing) for name, mask, thing in rows]
            taught = inferencer.teach_all(one.path, examples, pictures=not args.no_pictures)
        except (ImageError, DeviceMemoryError, ConfigError) as error:
            skipped.append(f"skipped {printable(str(one.path))}: {printable(error)}")
            continue
        total += len(taught)
        new += sum(each.region is not None for each in taught)
        unseen += sum(each.overlap < 0.5 for each in taught)
    print("\n".join([*skipped, f"{total:,} regions, {new:,} of them new"]))
    if unseen:
        print(f"{unseen:,} regions are like no mask that the model makes; it may not find these")
    return len(skipped)


def _show(memory: RegionMemory) -> None:
    from odise_mm.benchmarks.tables import Table, show

    cells = [[printable(name), f"{count:,}"] for name, count in memory.names.items()]
    show([Table("memory", ["class", "regions"], cells, [])], {}, "table")
