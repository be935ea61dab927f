"""Segment images or a video and name the segments with class names of your choice.

Example:
    odise-mm segment demo/images/pagoda.jpg \\
        --texts "pagoda, temple; tree" --stuff-texts "sky; lake, water" \\
        --config odise_coco_label --out out
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from contextlib import closing
from typing import TYPE_CHECKING, Any

from odise_mm.cli.convert import FORMAT_HELP, list_of_names
from odise_mm.utils.command_line import (
    ConfigOptions,
    Parser,
    ended_by_signals,
    fraction,
    one_line_errors,
    positive_int,
    positive_number,
    seconds,
    whole_number,
)
from odise_mm.utils.display import printable
from odise_mm.utils.precision import PRECISIONS
from odise_mm.video.names import is_video

if TYPE_CHECKING:
    from rich.console import Console

    from odise_mm.apis import OpenVocabInferencer
    from odise_mm.structures import SegmentationResult

SETTINGS = ("score_threshold", "overlap_threshold", "min_area", "alpha", "beta")
OF_VIDEOS = ("every", "start", "end", "max_side", "rate")
GO_ON = "run the same command again to continue"
NO_CONFIG = (
    "--config is missing. Use odise_coco_label (its weights are downloaded on first use), another "
    "config that `odise-mm info` lists together with --weights, or odise_tiny (random weights and "
    "meaningless results, but no downloads)"
)


def parse_args(argv: list[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = Parser(__doc__, prog=prog)
    parser.add_argument(
        "images",
        nargs="+",
        metavar="IMAGE",
        help="image files, folders or glob patterns; or one video: a file, camera:0, rtsp://...",
    )
    names = parser.add_argument_group("class names")
    names.add_argument(
        "--texts",
        help="names of things; ';' separates classes and ',' separates synonyms. Names of "
        "vocabularies (coco, ade20k, lvis, ...) and files (.txt, .csv, .yaml, .json) work as well",
    )
    names.add_argument("--stuff-texts", help="names of stuff (sky, grass, ...), in the same format")
    names.add_argument(
        "--vocabulary", help="names or files of vocabularies, in addition to --texts"
    )
    model = parser.add_argument_group("model")
    model.add_argument(
        "--config",
        metavar="CONFIG",
        help="config file or its name under configs/, such as odise_coco_label",
    )
    model.add_argument(
        "--weights",
        help="checkpoint of this package or published checkpoint (default: the published "
        "one of the config, which is downloaded on first use)",
    )
    model.add_argument(
        "--diffusion-weights",
        help="folder, file or hub id of the diffusion model (default: as in the config)",
    )
    model.add_argument(
        "--clip-weights", help="file or open_clip tag of CLIP (default: as in the config)"
    )
    model.add_argument("--device", help="cuda, cuda:1, cpu, ... (default: a GPU if there is one)")
    model.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="fp32",
        help="precision of the model (default: %(default)s)",
    )
    model.add_argument(
        "--batch-size",
        type=positive_int,
        default=1,
        metavar="N",
        help="number of images that run together (default: %(default)s)",
    )
    model.add_argument(
        "--max-pixels",
        type=positive_int,
        metavar="N",
        help="reject images with more pixels (default: 67,108,864, which is 8192 x 8192)",
    )
    model.add_argument(
        "--window",
        type=positive_int,
        metavar="N",
        help="cut larger images into windows of N x N pixels and join the results (default: never)",
    )
    model.add_argument(
        "--overlap",
        type=positive_int,
        metavar="N",
        help="pixels by which windows overlap at least (default: a quarter of --window)",
    )
    model.add_argument(
        "--score-threshold",
        type=fraction,
        metavar="P",
        help="drop segments whose class probability is not above this (default: as in the config)",
    )
    model.add_argument(
        "--overlap-threshold",
        type=fraction,
        metavar="P",
        help="drop masks that keep less than this part of their area (default: as in the config)",
    )
    model.add_argument(
        "--min-area",
        type=whole_number,
        metavar="N",
        help="drop segments with fewer pixels (default: as in the config)",
    )
    model.add_argument(
        "--alpha",
        type=fraction,
        metavar="W",
        help="weight of CLIP's prediction for base classes (default: as in the config)",
    )
    model.add_argument(
        "--beta",
        type=fraction,
        metavar="W",
        help="weight of CLIP's prediction for novel classes (default: as in the config)",
    )
    model.add_argument(
        "--cfg-options",
        action=ConfigOptions,
        help="further changes of the config, e.g. model.test_cfg.overlap_threshold=0.7",
    )
    out = parser.add_argument_group("output")
    out.add_argument(
        "--out",
        default="out",
        metavar="DIR",
        help="folder for the results (default: %(default)s). Results of earlier runs are replaced; "
        "the same command continues an interrupted run. For a video also a file (.mp4, .mkv, .mov)",
    )
    out.add_argument(
        "--overwrite",
        action="store_true",
        help="also replace files in DIR that this program did not write (never its inputs), and "
        "start over instead of continuing an interrupted run",
    )
    out.add_argument(
        "--format",
        type=list_of_names,
        default=[],
        help=f"also write {FORMAT_HELP}; each gets a folder in DIR",
    )
    out.add_argument(
        "--legend",
        action="store_true",
        help="add a legend to the drawings, and enlarge small images",
    )
    out.add_argument(
        "--fill",
        choices=("class", "mean"),
        help="color of the segments in the drawings: one color per class, or the mean color of the "
        "segment's pixels, for class names that contain colors (default: class)",
    )
    out.add_argument("--no-vis", action="store_true", help="write only the maps, no drawings")
    out.add_argument("--no-progress", action="store_true", help="hide the progress bar")
    video = parser.add_argument_group("video")
    video.add_argument(
        "--every",
        type=positive_int,
        metavar="N",
        help="use every N-th frame (default: all)",
    )
    video.add_argument("--start", type=seconds, metavar="S", help="start at this second")
    video.add_argument("--end", type=seconds, metavar="S", help="end before this second")
    video.add_argument(
        "--max-side",
        type=positive_int,
        metavar="N",
        help="reduce frames to at most N pixels on their longer side",
    )
    video.add_argument(
        "--rate",
        type=positive_number,
        metavar="R",
        help="make a video of a folder of images, at R images per second",
    )
    args = parser.parse_args(argv)
    if args.config is None:
        parser.error(NO_CONFIG)
    for option in ("legend", "fill"):
        if getattr(args, option) and args.no_vis:
            parser.error(f"--{option} changes the drawings, so it cannot be used with --no-vis")
    if args.overlap is not None and args.window is None:
        parser.error("--overlap is for images in windows: add --window")
    args.video = args.rate is not None or any(map(is_video, args.images))
    problem = _problem_of_video(args)
    if problem:
        parser.error(problem)
    return args


def _problem_of_video(args: argparse.Namespace) -> str | None:
    """Return what is wrong with the options for videos, if anything."""
    given = [f"--{name.replace('_', '-')}" for name in OF_VIDEOS if getattr(args, name) is not None]
    if not args.video:
        return f"{', '.join(given)}: only for videos" if given else None
    if len(args.images) > 1:
        return f"a video is segmented alone, not with {len(args.images) - 1} other inputs"
    images_only = (("--legend", args.legend), ("--fill", args.fill), ("--no-vis", args.no_vis))
    for option, value in images_only:
        if value:
            return f"{option} is for images, not for videos"
    if args.format:
        return "--format is for images; a video gets one JSON file with tracks"
    if args.window is not None:
        return "--window is for images; use --max-side for videos"
    return None


def print_segments(console: Console, result: SegmentationResult) -> None:
    """Print a table of one image's segments, largest first."""
    from rich.table import Table
    from rich.text import Text

    title = f"{printable(result.image_name)}  ({result.width} x {result.height})"
    table = Table(title=Text(title), title_justify="left", title_style="bold")
    table.add_column("segment")
    table.add_column("kind")
    table.add_column("score", justify="right")
    table.add_column("area", justify="right")
    for segment in sorted(result.segments, key=lambda s: -s.area):
        table.add_row(
            Text(printable(segment.name)),
            "thing" if segment.is_thing else "stuff",
            f"{segment.score:.2f}",
            f"{100 * result.share(segment):.1f} %",
        )
    if result.random_weights:
        table.caption = "random weights: meaningless"
        table.caption_style = "black on yellow"
    if not result.segments:
        table.add_row(Text("nothing found", style="italic"), "", "", "")
    console.print(table)


def main(argv: list[str] | None = None, prog: str | None = None) -> int:
    """Run the command and return 0, or 1 if images were skipped; errors exit with status 2."""
    args = parse_args(argv, prog)
    # Imported after parsing the arguments, so that --help is fast.
    from rich.console import Console

    with one_line_errors(f"interrupted; {GO_ON}"), ended_by_signals():
        return run(args, Console(highlight=False))


def run(args: argparse.Namespace, console: Console) -> int:
    """Segment all images and print the results; return the exit status."""
    from odise_mm.apis.output import OutputFolder
    from odise_mm.apis.sources import expand
    from odise_mm.io.conversion import check_formats, check_targets, convert
    from odise_mm.utils.outputs import InputFiles

    if args.video:
        return run_video(args, console)
    named = (args.config, args.weights, args.diffusion_weights, args.clip_weights, args.vocabulary)
    # Check the outputs before building the model, which takes minutes.
    folder = OutputFolder(args.out, InputFiles(*named), args.overwrite)
    folder.check(list(expand(args.images, log=False)), not args.no_vis)
    check_formats(args.format)
    check_targets(args.format, args.out)
    inferencer = build_inferencer(args)
    names = inferencer.make_vocabulary(args.texts, args.stuff_texts, args.vocabulary)
    print_line(console, f"class names: {printable(names.describe())}")
    results = inferencer.stream(
        args.images,
        args.texts,
        args.stuff_texts,
        args.vocabulary,
        batch_size=args.batch_size,
        out_dir=args.out,
        draw=not args.no_vis,
        legend=args.legend,
        fill=args.fill or "class",
        window=args.window,
        overlap=args.overlap,
        progress=not args.no_progress,
        resume=not args.overwrite,
        overwrite=args.overwrite,
        **given(args, SETTINGS),
    )
    failed = 0
    written: dict[str, None] = {}
    with closing(results):
        for result in results:
            if result.ok:
                print_segments(console, result)
                written |= dict.fromkeys(result.files.values())
            else:
                failed += 1
                print_line(console, f"skipped: {printable(result.error)}", "red")
    if args.format and folder.json.is_file():
        written |= dict.fromkeys(map(str, convert(folder.json, args.format, args.out)))
    print_end(console, inferencer, written)
    return 1 if failed else 0


def build_inferencer(args: argparse.Namespace) -> OpenVocabInferencer:
    """Build the inferencer that the arguments describe."""
    from odise_mm.apis import OpenVocabInferencer
    from odise_mm.errors import ConfigError

    limit = {} if args.max_pixels is None else dict(max_pixels=args.max_pixels)
    inferencer = OpenVocabInferencer(
        args.config,
        args.weights,
        args.device,
        args.precision,
        diffusion_weights=args.diffusion_weights,
        clip_weights=args.clip_weights,
        **limit,
        cfg_options={
            # Only the panoptic result is shown, so the others are not computed.
            "model.test_cfg.semantic": False,
            "model.test_cfg.instance": False,
            **args.cfg_options,
        },
    )
    if not inferencer.model.test_cfg.get("panoptic", True):
        raise ConfigError("model.test_cfg.panoptic=False: this command shows the panoptic result")
    return inferencer


def given(args: argparse.Namespace, names: Iterable[str]) -> dict[str, Any]:
    """Return the arguments out of ``names`` that were given."""
    return {name: value for name in names if (value := getattr(args, name)) is not None}


def run_video(args: argparse.Namespace, console: Console) -> int:
    """Segment a video and print what was found; return the exit status."""
    from pathlib import Path

    from odise_mm.apis.video import summarize
    from odise_mm.utils.outputs import InputFiles, check_outputs
    from odise_mm.video.frames import open_frames
    from odise_mm.video.names import OUTPUT_SUFFIXES

    (source,) = args.images
    open_frames(source)  # fails before the model is built, which takes minutes
    out = Path(args.out)
    if out.suffix.lower() not in OUTPUT_SUFFIXES:
        stem = Path(source).stem if "://" not in source else "stream"
        out = out / f"{stem.replace(':', '')}.mp4"
    check_outputs([out, out.with_suffix(".json")], InputFiles(source))
    inferencer = build_inferencer(args)
    names = inferencer.make_vocabulary(args.texts, args.stuff_texts, args.vocabulary)
    print_line(console, f"class names: {printable(names.describe())}")
    done = summarize(
        inferencer.stream_video(
            source,
            args.texts,
            args.stuff_texts,
            args.vocabulary,
            out=out,
            batch_size=args.batch_size,
            progress=not args.no_progress,
            **given(args, OF_VIDEOS),
            **given(args, SETTINGS),
        ),
        out,
    )
    print_line(console, f"{done.frames:,} frames, {done.tracks:,} objects and classes of stuff")
    print_end(console, inferencer, [done.video, done.json] if done.frames else [])
    return 0


def print_end(console: Console, inferencer: OpenVocabInferencer, written: Iterable[str]) -> None:
    """Print a notice if the weights are random, and the written files."""
    from odise_mm.models.random_weights import RANDOM_WEIGHTS_NOTICE

    if inferencer.random_weights:
        print_line(console, RANDOM_WEIGHTS_NOTICE, "black on yellow")
    for path in written:
        print_line(console, f"wrote {printable(path)}")


def print_line(console: Console, text: str, style: str = "") -> None:
    """Print a line without wrapping it or interpreting markup."""
    from rich.text import Text

    console.print(Text(text, style=style), soft_wrap=True)
