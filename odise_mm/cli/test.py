"""Measure panoptic quality, mAP and mIoU of a model on one or several test sets.

The model is loaded once, and every image runs once for all three tasks. Results are written after
each test set.

Examples:
    odise-mm test odise_coco_label checkpoints/odise_label_coco_50e-b67d2efc.pth
    odise-mm test odise_coco_label work_dirs/odise_coco_label/iter_92188.pth \\
        --datasets ade20k pc59 voc21 --out results.json --per-class
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from odise_mm.utils.command_line import (
    INTERRUPTED,
    ConfigOptions,
    Parser,
    fraction,
    one_line_errors,
    positive_int,
)
from odise_mm.utils.outputs import check_outputs, owned_folders
from odise_mm.utils.precision import PRECISIONS
from odise_mm.utils.processes import follow_parent

if TYPE_CHECKING:
    from odise_mm.benchmarks.sets import BenchmarkSet


def result_file(text: str) -> Path:
    """Parse a path that ends in .json or .csv (argument type)."""
    path = Path(text)
    if path.suffix not in (".json", ".csv"):
        raise argparse.ArgumentTypeError(f"must end in .json or .csv: {text}")
    return path


def add_run_arguments(parser: Parser) -> argparse._ArgumentGroup:
    """Add the arguments of all programs that run a model on test sets, for :func:`plan_run`.

    Args:
        parser: Parser to extend.

    Returns:
        The group "running", for further arguments.
    """
    parser.add_argument("config", metavar="CONFIG", help="config file or its name under configs/")
    parser.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        help="checkpoint of this package (.pth, .safetensors), published checkpoint, or "
        "`none` for a tiny model whose weights are all random, or a model without trained parts",
    )
    data = parser.add_argument_group("data")
    data.add_argument(
        "--datasets",
        nargs="+",
        metavar="NAME",
        help="test sets, or `all` (default: the config's own): coco ade20k ade847 pc59 pc459 voc20 "
        "voc21 cityscapes mapillary lvis uvo",
    )
    data.add_argument(
        "--data-root", metavar="DIR", help="folder to use instead of data/ in the configs"
    )
    data.add_argument(
        "--label-files",
        metavar="PATH",
        help="folder of published label files (*_with_prompt_eng.txt), which replace the built-in "
        "synonyms of test sets and training vocabulary, as in the published protocol; or the label "
        "file of the only test set",
    )
    data.add_argument(
        "--limit", type=positive_int, metavar="N", help="use only the first N images of each set"
    )
    how = parser.add_argument_group("running")
    how.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="fp32",
        help="precision of the model (default: %(default)s)",
    )
    how.add_argument(
        "--work-dir", metavar="DIR", help="folder for logs (default: work_dirs/CONFIG/test)"
    )
    how.add_argument(
        "--cfg-options",
        action=ConfigOptions,
        help="further changes of the config, for all test sets",
    )
    return how


def not_negative(text: str) -> int:
    """Parse a whole number from 0 (argument type)."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"must be at least 0, not {value}")
    return value


def parse_args(argv: list[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = Parser(__doc__, prog=prog)
    how = add_run_arguments(parser)
    how.add_argument(
        "--memory",
        metavar="FILE",
        help="examples of classes, written by `odise-mm teach` with the same model",
    )
    how.add_argument(
        "--memory-weight",
        type=fraction,
        metavar="W",
        help="factor on the weights of the memory's prediction: 0 leaves it out (default: 1)",
    )
    out = parser.add_argument_group("output")
    out.add_argument(
        "--out",
        type=result_file,
        metavar="FILE",
        help="file for the results, .json (everything) or .csv (only numbers)",
    )
    out.add_argument("--per-class", action="store_true", help="also print a table of classes")
    out.add_argument(
        "--dump",
        metavar="DIR",
        help="write panoptic results (PNG and COCO JSON), instances (COCO results) and semantic "
        "label maps (PNG)",
    )
    out.add_argument(
        "--image-scores",
        metavar="DIR",
        help="write the scores of every image, the worst images with their ground truth, and the "
        "confusion of classes",
    )
    out.add_argument(
        "--worst",
        type=not_negative,
        default=10,
        metavar="N",
        help="number of images that --image-scores draws (default: %(default)s)",
    )
    out.add_argument("--show-dir", metavar="DIR", help="write drawings of the results")
    out.add_argument(
        "--show-interval",
        type=positive_int,
        default=1,
        metavar="N",
        help="draw every Nth image (default: %(default)s)",
    )
    how.add_argument(
        "--launcher",
        choices=("none", "pytorch", "slurm", "mpi"),
        default="none",
        help="how the processes of a distributed run are started (default: %(default)s)",
    )
    how.add_argument("--local-rank", "--local_rank", type=int, default=0, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None, prog: str | None = None) -> int:
    """Run the command and return 0; errors exit with status 2, like argparse."""
    args = parse_args(argv, prog)
    follow_parent(args.launcher)
    os.environ.setdefault("LOCAL_RANK", str(args.local_rank))
    folders = (args.dump, args.show_dir, args.image_scores, args.work_dir)
    with one_line_errors():
        try:
            with owned_folders(folders, "writing test results"):
                return run(args)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return INTERRUPTED


def plan_run(args: argparse.Namespace, launcher: str = "none") -> list[BenchmarkSet]:
    """Make and check the test sets that the arguments of :func:`add_run_arguments` name.

    Args:
        args: Parsed arguments.
        launcher: Launcher that started this process.

    Raises:
        OdiseError: The precision, the config, the checkpoint or a test set cannot be used.
    """
    import torch
    from mmengine.device import get_device

    from odise_mm.benchmarks import planning
    from odise_mm.utils.precision import check_precision

    check_precision(args.precision, torch.device(get_device()))
    sets = planning.plan_sets(
        args.config,
        args.datasets,
        data_root=args.data_root,
        label_files=args.label_files,
        limit=args.limit,
        work_dir=args.work_dir,
        launcher=launcher,
        changes=args.cfg_options,
    )
    planning.check_checkpoint(args.checkpoint, sets[0].cfg)
    for test_set in sets:
        test_set.check()
    return sets


def run(args: argparse.Namespace) -> int:
    """Test the model on all test sets; return the exit status."""
    from mmengine.dist import is_main_process

    from odise_mm.benchmarks import planning, running
    from odise_mm.benchmarks.report import Report
    from odise_mm.config.checking import is_complete
    from odise_mm.engine.image_scores import ImageScoresHook
    from odise_mm.engine.result_writer import ResultWriterHook
    from odise_mm.errors import ConfigError
    from odise_mm.models.random_weights import RANDOM_WEIGHTS_NOTICE
    from odise_mm.utils.display import printable

    memory = None
    if args.memory is not None:
        from odise_mm.models import RegionMemory

        memory = RegionMemory.load(args.memory)  # fails before the model is built
    sets = plan_run(args, args.launcher)
    none_given = args.checkpoint == planning.NO_CHECKPOINT
    random_weights = none_given and not is_complete(sets[0].cfg)
    notice = RANDOM_WEIGHTS_NOTICE if random_weights else None
    writer = ResultWriterHook(args.dump, args.show_dir, args.show_interval, notice)
    check_outputs([args.out], planning.inputs_of(args.checkpoint, sets))
    scores = None
    if args.image_scores is not None:
        scores = ImageScoresHook(args.image_scores, args.worst)
    hooks = [writer, scores] if scores is not None else [writer]
    for test_set in sets:
        for hook in hooks:
            hook.check(test_set.name)

    runner = running.make_runner(sets[0].cfg, args.checkpoint, args.precision)
    described = running.describe_run(runner, args.checkpoint, args.precision, args.cfg_options)
    model = running.unwrapped(runner.model)
    if memory is not None:
        model.memory = memory
        described["memory"] = dict(file=args.memory, digest=memory.digest, names=memory.names)
    if args.memory_weight is not None:
        if getattr(model, "memory", None) is None:
            raise ConfigError("--memory-weight needs examples: give them with --memory")
        model.ensemble = model.ensemble.with_weights(memory_weight=args.memory_weight)
        described["memory_weight"] = args.memory_weight
    report = Report(described, [test_set.name for test_set in sets], random_weights)
    running.run_sets(
        runner, report, sets, hooks, args.out, limit=args.limit, per_class=args.per_class
    )
    if is_main_process():
        for folder in filter(None, (args.image_scores, args.dump, args.show_dir)):
            print(f"wrote {printable(str(folder))}")
    return 0
