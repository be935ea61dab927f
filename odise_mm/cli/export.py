"""Export a model to ONNX or torch.export, with class names of your choice.

DIR gets the graph, model.json (its inputs, classes and settings), results.py (prepares images and
merges masks, with NumPy alone), and README.md (an example). Then the graph runs once, and is
compared with PyTorch. docs/export.md lists what can be exported, and how long it takes.

Examples:
    odise-mm export fcclip_coco fcclip.pth --vocabulary coco --size any --out exported
    odise-mm export odise_tiny --texts "cat; dog" --stuff-texts sky --size 512x768 --out exported
"""

from __future__ import annotations

import argparse

from odise_mm.utils.command_line import ConfigOptions, Parser, one_line_errors
from odise_mm.utils.display import printable


def parse_args(argv: list[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = Parser(__doc__, prog=prog)
    parser.add_argument(
        "config",
        metavar="CONFIG",
        help="config file or its name under configs/, such as odise_coco_label",
    )
    parser.add_argument(
        "weights",
        nargs="?",
        metavar="WEIGHTS",
        help="checkpoint of this package or published checkpoint (default: the published "
        "one of the config, which is downloaded on first use)",
    )
    parser.add_argument(
        "--format",
        choices=("onnx", "torch", "both"),
        default="onnx",
        help="ONNX, or a program of torch.export (default: %(default)s)",
    )
    parser.add_argument(
        "--size",
        type=image_size,
        default=(),
        metavar="HxW",
        help="height and width of the images in pixels, or 'any', for models whose graph does not "
        "depend on them (default: a square with the short edge of the config's test images, such "
        "as 1024x1024)",
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for the files")
    names = parser.add_argument_group("class names")
    names.add_argument("--texts", help="names of things; ';' separates classes, ',' synonyms")
    names.add_argument("--stuff-texts", help="names of stuff, in the same format")
    names.add_argument(
        "--vocabulary",
        help="names or files of vocabularies, in addition to --texts (default: the model's own)",
    )
    names.add_argument(
        "--names",
        choices=("baked", "input"),
        default="baked",
        help="make the names constants of the graph, or make their embeddings inputs, which "
        "names.npz holds (default: %(default)s)",
    )
    names.add_argument(
        "--only-names",
        action="store_true",
        help="write only names.npz and names.json, for a graph exported with --names input",
    )
    parser.add_argument(
        "--cfg-options", action=ConfigOptions, help="changes of the config, by dotted keys"
    )
    return parser.parse_args(argv)


def image_size(text: str) -> tuple[int, int] | None:
    """Parse ``512x768``, or ``any``, as the ``type`` of an argument."""
    if text == "any":
        return None
    height, sign, width = text.partition("x")
    if not (sign and height.isdecimal() and width.isdecimal() and int(height) and int(width)):
        raise argparse.ArgumentTypeError(f"{text!r} must be HEIGHTxWIDTH, such as 512x768, or any")
    return int(height), int(width)


def main(argv: list[str] | None = None, prog: str | None = None) -> int:
    """Run the command and return 0; errors exit with status 2, like argparse."""
    args = parse_args(argv, prog)
    with one_line_errors():
        return run(args)


def run(args: argparse.Namespace) -> int:
    """Export the model, print the files and differences, and return 1 if these are too large."""
    from odise_mm.apis import OpenVocabInferencer
    from odise_mm.errors import ConfigError
    from odise_mm.export import FORMATS, TOLERANCE, export_model, scale_of, write_names

    inferencer = OpenVocabInferencer(
        args.config, args.weights, device="cpu", cfg_options=args.cfg_options
    )
    vocabulary = inferencer.make_vocabulary(args.texts, args.stuff_texts, args.vocabulary)
    if args.only_names:
        for path in write_names(inferencer.model, args.out, vocabulary):
            print(f"wrote {printable(path)}")
        return 0
    formats = tuple(FORMATS) if args.format == "both" else (args.format,)
    scale = scale_of(inferencer.pipeline)
    size = args.size
    if size == ():
        if scale is None:
            raise ConfigError("the config does not resize test images: choose a size with --size")
        size = (min(scale), min(scale))
    done = export_model(inferencer.model, args.out, formats, vocabulary, size, args.names, scale)
    for path in done.files:
        print(f"wrote {printable(path)} ({path.stat().st_size / 1e6:.1f} MB)")
    worst = 0.0
    for format, differences in done.differences.items():
        values = ", ".join(f"{name} {value:.1e}" for name, value in differences.items())
        print(f"largest differences between {format} and PyTorch: {values}")
        worst = max(worst, *differences.values())
    if worst > TOLERANCE:
        print(f"these exceed {TOLERANCE:g}: check the results before you use the graph")
    return int(worst > TOLERANCE)
