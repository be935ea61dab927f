"""Label a large collection of images, in shards that survive interruptions.

Run the same command again to continue, or to label images that are new.

Examples:
    odise-mm label photos --out labels --texts "pagoda; tree" --config odise_coco_label
    odise-mm label 'shards/*.tar' --out labels --vocabulary coco --format parquet \\
        --config odise_coco_label --precision bf16
    torchrun --nproc-per-node 8 -m odise_mm label list.txt --out labels --vocabulary coco \\
        --config odise_coco_label --launcher pytorch
"""

from __future__ import annotations

import argparse
import os

from odise_mm.cli.arguments import NO_CONFIG, SETTINGS, add_batches, add_model, add_names, given
from odise_mm.cli.convert import FORMAT_HELP, list_of_names
from odise_mm.utils.command_line import (
    Parser,
    ended_by_signals,
    one_line_errors,
    positive_int,
    whole_number,
)
from odise_mm.utils.display import printable
from odise_mm.utils.processes import follow_parent

_PASSED_ON = ("diffusion_weights", "clip_weights", "max_pixels", "memory", "cfg_options")


def parse_args(argv: list[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = Parser(__doc__, prog=prog)
    parser.add_argument(
        "sources",
        nargs="+",
        metavar="SOURCE",
        help="folder (with its subfolders), list of paths (.txt), glob pattern, tar file "
        "(WebDataset) or parquet file (paths or images)",
    )
    source = parser.add_argument_group("images")
    source.add_argument(
        "--root",
        metavar="DIR",
        help="folder that names are relative to, and that no path in a list may leave (default: "
        "the folder of the list, or the one that contains all sources)",
    )
    source.add_argument(
        "--column",
        metavar="NAME",
        help="column of parquet files with the images or paths (default: image, path, file_name, "
        "... or the only one with bytes)",
    )
    source.add_argument(
        "--retry-failed", action="store_true", help="try the failed images of earlier runs again"
    )
    add_names(parser)
    add_batches(add_model(parser))
    out = parser.add_argument_group("output")
    out.add_argument("--out", required=True, metavar="DIR", help="folder for the labels")
    out.add_argument(
        "--format",
        type=list_of_names,
        default=["jsonl"],
        help=f"{FORMAT_HELP} (default: jsonl)",
    )
    out.add_argument(
        "--shard-size",
        type=positive_int,
        default=500,
        metavar="N",
        help="images per shard; a killed process loses the shard it was at (default: %(default)s)",
    )
    out.add_argument("--no-progress", action="store_true", help="hide the progress")
    how = parser.add_argument_group("running")
    how.add_argument(
        "--workers",
        type=whole_number,
        default=4,
        metavar="N",
        help="threads that read images, per process (default: %(default)s)",
    )
    how.add_argument(
        "--engine",
        choices=("process", "ray"),
        default="process",
        help="`ray`: actors of a Ray cluster, or of this machine (default: %(default)s)",
    )
    how.add_argument(
        "--actors", type=positive_int, metavar="N", help="number of Ray actors (default: GPUs)"
    )
    how.add_argument(
        "--launcher",
        choices=("none", "pytorch", "slurm", "mpi"),
        default="none",
        help="how the processes of this run are started (default: %(default)s)",
    )
    how.add_argument("--local-rank", "--local_rank", type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.config is None:
        parser.error(NO_CONFIG)
    if args.overlap is not None and args.window is None:
        parser.error("--overlap is for images in windows: add --window")
    if args.actors is not None and args.engine != "ray":
        parser.error("--actors is for --engine ray")
    return args


def main(argv: list[str] | None = None, prog: str | None = None) -> int:
    """Run the command and return 0, or 1 if images failed; errors exit with status 2."""
    args = parse_args(argv, prog)
    follow_parent(args.launcher)
    os.environ.setdefault("LOCAL_RANK", str(args.local_rank))
    with one_line_errors("interrupted; run the same command again to continue"):
        with ended_by_signals():
            return run(args)


def run(args: argparse.Namespace) -> int:
    """Label the images and print what was done; return the exit status."""
    from odise_mm.labeling import label_images
    from odise_mm.utils.processes import is_first_process

    done = label_images(
        args.sources,
        args.out,
        args.config,
        args.weights,
        texts=args.texts,
        stuff_texts=args.stuff_texts,
        vocabulary=args.vocabulary,
        formats=args.format,
        shard_size=args.shard_size,
        root=args.root,
        column=args.column,
        retry_failed=args.retry_failed,
        batch_size=args.batch_size,
        window=args.window,
        overlap=args.overlap,
        workers=args.workers,
        device=args.device,
        precision=args.precision,
        model=given(args, _PASSED_ON),
        engine=args.engine,
        launcher=args.launcher,
        actors=args.actors,
        progress=not args.no_progress,
        **given(args, SETTINGS),
    )
    if is_first_process():
        if done.notice:
            print(done.notice)
        print(f"{done.labeled:,} images labeled in {len(done.shards):,} shards")
        if done.failed:
            print(f"{done.failed:,} images failed: {printable(done.folder / 'failed.jsonl')}")
        if done.duplicates:
            place = printable(done.folder / "duplicates.jsonl")
            print(f"{done.duplicates:,} images were named more than once: {place}")
        print(f"wrote {printable(done.folder / 'index.jsonl')}")
    return 1 if done.failed else 0
