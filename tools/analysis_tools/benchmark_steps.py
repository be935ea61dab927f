#!/usr/bin/env python
"""Measure the steps around the network, most of them beside another implementation.

Each subcommand prints one table. Times are CPU times of this process. The two alternate, so
other programs on the machine influence both. Random weights suffice.

Examples:
    python tools/analysis_tools/benchmark_steps.py names odise_coco_label --threads 1
    python tools/analysis_tools/benchmark_steps.py names odise_coco_label --names 10000 --whole 256
    python tools/analysis_tools/benchmark_steps.py losses odise_coco_label
    python tools/analysis_tools/benchmark_steps.py input odise_coco_label --images 100
    python tools/analysis_tools/benchmark_steps.py evaluation --images 500 --processes 2
    python tools/analysis_tools/benchmark_steps.py writing odise_tiny
    python tools/analysis_tools/benchmark_steps.py start odise_coco_label --precision bf16
    python tools/analysis_tools/benchmark_steps.py label odise_coco_label
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from typing import Any

from odise_mm.benchmarks.tables import FORMATS, Table, show
from odise_mm.utils.command_line import Parser, one_line_errors, positive_int

Run = Callable[[argparse.Namespace], tuple[Table, dict[str, Any]]]


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--threads", type=positive_int, default=1, metavar="N", help="threads of torch (default: 1)"
    )
    common.add_argument(
        "--format", choices=FORMATS, default="table", help="output format (default: %(default)s)"
    )
    parser = Parser(__doc__)
    steps = parser.add_subparsers(dest="step", required=True, metavar="STEP")

    def add(name: str, summary: str, run: Run) -> argparse.ArgumentParser:
        step = steps.add_parser(name, parents=[common], help=summary, description=summary)
        step.set_defaults(run=run)
        return step

    names = add("names", "embed class names: whole texts, and up to the end token", run_names)
    names.add_argument("config", metavar="CONFIG", help="config whose CLIP is used")
    names.add_argument(
        "--vocabulary", default="lvis", help="vocabulary of the names (default: %(default)s)"
    )
    names.add_argument(
        "--template", default="Photo of a {}.", help="prompt template (default: %(default)s)"
    )
    names.add_argument(
        "--names", type=int, default=0, metavar="N", help="number of names (default: one per class)"
    )
    names.add_argument(
        "--whole",
        type=int,
        default=0,
        metavar="N",
        help="number of names that are also embedded with all positions (default: all)",
    )

    losses = add("losses", "matching and losses: mmdet's method, and this package's", run_losses)
    losses.add_argument("config", metavar="CONFIG", help="config whose head is used")
    add_numbers(
        losses,
        ("size", 1024, "edge of the image in pixels"),
        ("targets", 60, "targets per image"),
        ("layers", 10, "layers with losses"),
        ("images", 1, "images of the batch"),
        ("repeats", 3, "measured rounds"),
    )

    data = add(
        "input", "training pipeline, step by step, and the transfer of its results", run_input
    )
    data.add_argument("config", metavar="CONFIG", help="config with a train_dataloader")
    for name, meaning in (
        ("data-root", "data_root of the dataset"),
        ("ann-file", "annotations, relative to the data root"),
        ("image-folder", "folder of the images, relative to the data root"),
        ("map-folder", "folder of the panoptic maps, relative to the data root"),
    ):
        data.add_argument(f"--{name}", metavar="PATH", help=f"{meaning} (default: the config's)")
    data.add_argument(
        "--images",
        type=positive_int,
        default=100,
        metavar="N",
        help="measured images (default: %(default)s)",
    )

    metrics = add(
        "evaluation",
        "metrics: this package's, and mmdet's, mmseg's and pycocotools'",
        run_evaluation,
    )
    add_numbers(
        metrics,
        ("images", 200, "images; some repeat"),
        ("height", 480, "height of the images"),
        ("width", 640, "width of the images"),
        ("segments", 20, "segments drawn in each image"),
        ("processes", 1, "processes among which the images are divided for PQ"),
    )

    metrics.add_argument(
        "--metrics",
        nargs="+",
        choices=("PQ", "mIoU", "AP"),
        default=("PQ", "mIoU", "AP"),
        help="measured metrics (default: all)",
    )

    writing = add("writing", "drawing and writing of results, and the model itself", run_writing)
    writing.add_argument("config", metavar="CONFIG", help="config; no weights are needed")
    writing.add_argument("--vocabulary", default="coco", help="class names (default: %(default)s)")
    add_numbers(
        writing,
        ("height", 427, "height of the image"),
        ("width", 640, "width of the image"),
        ("segments", 20, "segments drawn in the result"),
        ("repeats", 3, "measured rounds"),
    )

    start = add("start", "a new process: imports, model, first image; no weights needed", run_start)
    start.add_argument("config", metavar="CONFIG", help="config with a diffusion model and a CLIP")
    start.add_argument(
        "--size",
        type=positive_int,
        default=512,
        metavar="N",
        help="edge of the image in pixels (default: %(default)s)",
    )
    start.add_argument(
        "--precision",
        choices=("fp32", "bf16"),
        default="fp32",
        help="precision of the model (default: %(default)s)",
    )
    start.add_argument(
        "--files",
        choices=("fp32", "fp16"),
        default="fp32",
        help="precision of the weights files (default: %(default)s)",
    )
    start.add_argument("--build-only", action="store_true", help="stop when the model is built")

    label = add("label", "labeling: how long the network waits for the rest", run_label)
    label.add_argument("config", metavar="CONFIG", help="config whose test pipeline is used")
    add_numbers(
        label,
        ("images", 300, "number of images"),
        ("height", 480, "height of the images"),
        ("width", 640, "width of the images"),
        ("segments", 20, "segments per image"),
        ("milliseconds", 50, "how long the stand-in for the network sleeps"),
    )
    return parser.parse_args(argv)


def add_numbers(step: argparse.ArgumentParser, *options: tuple[str, int, str]) -> None:
    """Add options that are whole numbers above 0: name, default and meaning of each."""
    for name, default, meaning in options:
        step.add_argument(
            f"--{name}",
            type=positive_int,
            default=default,
            metavar="N",
            help=f"{meaning} (default: %(default)s)",
        )


def run_names(args: argparse.Namespace) -> tuple[Table, dict[str, Any]]:
    """Measure the embedding of class names."""
    from odise_mm.analysis.text_cost import measure_texts, text_table

    result = measure_texts(args.config, args.vocabulary, args.template, args.names, args.whole)
    return text_table(result), result


def run_losses(args: argparse.Namespace) -> tuple[Table, dict[str, Any]]:
    """Measure matching and losses."""
    from odise_mm.analysis.loss_cost import loss_table, measure_losses

    result = measure_losses(
        args.config, args.size, args.targets, args.layers, args.images, args.repeats
    )
    return loss_table(result), result


def run_input(args: argparse.Namespace) -> tuple[Table, dict[str, Any]]:
    """Measure the training pipeline."""
    from odise_mm.analysis.input_cost import input_table, measure_input

    changes = dict(data_root=args.data_root, ann_file=args.ann_file)
    changes |= dict(images=args.image_folder, maps=args.map_folder)
    result = measure_input(args.config, changes, args.images)
    return input_table(result), result


def run_evaluation(args: argparse.Namespace) -> tuple[Table, dict[str, Any]]:
    """Measure the metrics."""
    from odise_mm.analysis.evaluation_cost import evaluation_table, measure_evaluation

    size = args.height, args.width
    result = measure_evaluation(args.images, size, args.segments, args.metrics, args.processes)
    return evaluation_table(result), result


def run_writing(args: argparse.Namespace) -> tuple[Table, dict[str, Any]]:
    """Measure drawing and writing."""
    from odise_mm.analysis.writing_cost import measure_writing, writing_table
    from odise_mm.apis import OpenVocabInferencer
    from odise_mm.apis.output import ResultWriter

    size = args.height, args.width
    inferencer = OpenVocabInferencer(args.config, device="cpu")
    result = measure_writing(
        inferencer, ResultWriter, args.vocabulary, size, args.segments, args.repeats
    )
    return writing_table(result), {"config": args.config, **result}


def run_start(args: argparse.Namespace) -> tuple[Table, dict[str, Any]]:
    """Measure the start."""
    from odise_mm.analysis.start_cost import measure_start, start_table

    size = None if args.build_only else args.size
    result = measure_start(args.config, size, args.precision, args.files, args.threads)
    return start_table(result), result


def run_label(args: argparse.Namespace) -> tuple[Table, dict[str, Any]]:
    """Measure the labeling of files."""
    from odise_mm.labeling.waiting import measure_waiting, waiting_table

    size = (args.height, args.width)
    result = measure_waiting(args.config, args.images, size, args.segments, args.milliseconds)
    return waiting_table(result), result


def main(argv: list[str] | None = None) -> int:
    """Run the program and return its exit status."""
    args = parse_args(argv)
    with one_line_errors():
        with redirect_stdout(sys.stderr):  # the log must not mix with the numbers
            import torch

            from odise_mm.analysis.machine import describe_machine

            torch.set_num_threads(args.threads)
            machine = describe_machine(torch.device("cpu"))
            table, result = args.run(args)
        threads = f"{machine['threads']} thread" + "s" * (machine["threads"] > 1)
        table.notes.append(
            f"{machine['cpu']}, {threads}, torch {machine['torch']}, load average "
            f"{machine['load_average'][0]} at the start."
        )
        show([table], {**result, "machine": machine}, args.format)
    return 0


if __name__ == "__main__":
    sys.exit(main())
