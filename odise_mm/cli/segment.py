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
from typing import TYPE_CHECKING

from odise_mm.cli.arguments import (
    NO_CONFIG,
    SETTINGS,
    add_batches,
    add_model,
    add_names,
    build_inferencer,
    given,
)
from odise_mm.cli.convert import FORMAT_HELP, list_of_names
from odise_mm.utils.command_line import (
    Parser,
    ended_by_signals,
    one_line_errors,
    positive_int,
    positive_number,
    seconds,
)
from odise_mm.utils.display import printable
from odise_mm.video.names import is_video

if TYPE_CHECKING:
    from rich.console import Console

    from odise_mm.apis import OpenVocabInferencer
    from odise_mm.structures import SegmentationResult

OF_VIDEOS = ("every", "start", "end", "max_side", "rate")
WITH_QUERIES = frozenset({"npz", "parquet", "jsonl"})
"""Formats that have fields for the queries of a result."""
GO_ON = "run the same command again to continue"


def parse_args(argv: list[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = Parser(__doc__, prog=prog)
    parser.add_argument(
        "images",
        nargs="+",
        metavar="IMAGE",
        help="image files, folders or glob patterns; or one video: a file, camera:0, rtsp://...",
    )
    add_names(parser)
    add_batches(add_model(parser))
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
        "--keep-queries",
        action="store_true",
        help="with --format npz, parquet or jsonl, also write the probabilities of all classes "
        "and the mask embedding of each segment; an interrupted run then starts over",
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
    if args.keep_queries and not WITH_QUERIES.intersection(args.format):
        known = ", ".join(sorted(WITH_QUERIES))
        parser.error(f"--keep-queries is for the formats {known}: add one of them to --format")
    if args.keep_queries and args.window is not None:
        parser.error("--keep-queries keeps the masks of whole images: leave out --window")
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
    from contextlib import ExitStack
    from dataclasses import replace

    from odise_mm.apis.output import OutputFolder, common_root, name_below
    from odise_mm.apis.sources import expand
    from odise_mm.io.conversion import LabelFolders, check_formats, check_targets, convert
    from odise_mm.utils.outputs import InputFiles, nested_stem

    if args.video:
        return run_video(args, console)
    named = (
        args.config,
        args.weights,
        args.diffusion_weights,
        args.clip_weights,
        args.vocabulary,
        args.memory,
    )
    # Check the outputs before building the model, which takes minutes.
    folder = OutputFolder(args.out, InputFiles(*named), args.overwrite)
    sources = list(expand(args.images, log=False))
    folder.check(sources, not args.no_vis)
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
        resume=not args.overwrite and not args.keep_queries,
        overwrite=args.overwrite,
        keep_queries=args.keep_queries,
        **given(args, SETTINGS),
    )
    failed = 0
    written: dict[str, None] = {}
    root = common_root(sources)
    with ExitStack() as stack:
        stack.enter_context(closing(results))
        # Queries are not in the panoptic files, so these labels are written meanwhile.
        labels = args.keep_queries and stack.enter_context(
            LabelFolders(names, args.format, args.out)
        )
        for result in results:
            if result.ok:
                print_segments(console, result)
                written |= dict.fromkeys(result.files.values())
                if labels:
                    name = name_below(root, result.image_path) or result.image_name
                    labels.add(replace(result, image_name=name), nested_stem(name))
            else:
                failed += 1
                print_line(console, f"skipped: {printable(result.error)}", "red")
        if labels:
            written |= dict.fromkeys(map(str, labels.finish()))
    if args.format and not labels and folder.json.is_file():
        written |= dict.fromkeys(map(str, convert(folder.json, args.format, args.out)))
    print_end(console, inferencer, written)
    return 1 if failed else 0


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
