"""Train a model.

Checkpoints, curves and the log go to the work directory. With --resume, an interrupted run
continues and ends with the same weights.

Examples:
    odise-mm train odise_coco_label --precision bf16
    odise-mm train odise_coco_caption --resume --auto-scale-lr
    tools/dist_train.sh odise_coco_label 8
"""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from odise_mm.utils.command_line import (
    INTERRUPTED,
    ConfigOptions,
    Parser,
    one_line_errors,
    positive_int,
)
from odise_mm.utils.display import printable
from odise_mm.utils.precision import PRECISIONS
from odise_mm.utils.processes import follow_parent, is_first_process

if TYPE_CHECKING:
    from mmengine.config import Config

    from odise_mm.engine import OpenVocabRunner


def parse_args(argv: list[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = Parser(__doc__, prog=prog)
    parser.add_argument("config", metavar="CONFIG", help="config file or its name under configs/")
    parser.add_argument(
        "--work-dir",
        metavar="DIR",
        help="folder for checkpoints and logs (default: work_dirs/CONFIG)",
    )
    parser.add_argument(
        "--resume",
        nargs="?",
        const="auto",
        metavar="CHECKPOINT",
        help="continue from a checkpoint, by default the last one in the work directory; start "
        "from the beginning if there is none",
    )
    parser.add_argument(
        "--precision",
        "--amp-dtype",
        choices=PRECISIONS,
        help="precision of the model (default: that of the config)",
    )
    parser.add_argument(
        "--load-from",
        metavar="CHECKPOINT",
        help="trained weights to start from, of this package or published (default: those of the "
        "config)",
    )
    parser.add_argument(
        "--max-iters",
        type=positive_int,
        metavar="N",
        help="number of iterations; the steps of the schedule are scaled with it",
    )
    parser.add_argument(
        "--batch-size",
        type=positive_int,
        metavar="N",
        help="images per iteration and process (default: as in the config)",
    )
    parser.add_argument(
        "--auto-scale-lr",
        action="store_true",
        help="scale the learning rate with the number of images per iteration",
    )
    parser.add_argument(
        "--data-root", metavar="DIR", help="folder to use instead of data/ in the config"
    )
    parser.add_argument(
        "--cfg-options",
        action=ConfigOptions,
        help="further changes of the config, e.g. train_dataloader.batch_size=4",
    )
    parser.add_argument(
        "--launcher",
        choices=("none", "pytorch", "slurm", "mpi"),
        default="none",
        help="how the processes of a distributed run are started (default: %(default)s)",
    )
    parser.add_argument("--local-rank", "--local_rank", type=int, default=0, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None, prog: str | None = None) -> int:
    """Run the command and return 0; errors exit with status 2, like argparse."""
    args = parse_args(argv, prog)
    follow_parent(args.launcher)
    os.environ.setdefault("LOCAL_RANK", str(args.local_rank))
    with one_line_errors():
        try:
            return run(args)
        except KeyboardInterrupt:
            print("interrupted; --resume continues from the last checkpoint", file=sys.stderr)
            return INTERRUPTED


def run(args: argparse.Namespace) -> int:
    """Train the model; return the exit status."""
    from mmengine.dist import is_main_process
    from rich.console import Console
    from rich.text import Text

    from odise_mm.checkpoints.safe_loading import weights_format
    from odise_mm.checkpoints.training_state import latest_checkpoint
    from odise_mm.engine import OpenVocabRunner
    from odise_mm.utils.files import FolderLock

    cfg = plan(args)
    if cfg.get("load_from") and not cfg.get("resume"):
        weights_format(cfg.load_from)  # before frozen weights are downloaded and models are built
    lock = FolderLock(cfg.work_dir, "training") if is_first_process() else nullcontext()
    with lock:
        runner = OpenVocabRunner.from_cfg(cfg)
        console = Console(highlight=False, quiet=not is_main_process())
        for line in summary(runner):
            console.print(Text(printable(line)), soft_wrap=True)
        runner.train()
    last = latest_checkpoint(runner.work_dir)
    console.print(Text(f"done; checkpoint: {printable(last)}"), soft_wrap=True)
    return 0


def plan(args: argparse.Namespace) -> Config:
    """Load the config and apply the changes of the arguments.

    Raises:
        ConfigError: The config does not exist or cannot be used for training.
    """
    from odise_mm.checkpoints.training_state import latest_checkpoint
    from odise_mm.config.changing import (
        change_config,
        set_data_root,
        set_max_iters,
        set_precision,
    )
    from odise_mm.config.finding import load_config
    from odise_mm.errors import ConfigError

    cfg = load_config(args.config)
    if args.max_iters:
        set_max_iters(cfg, args.max_iters)
    if args.batch_size and cfg.get("train_dataloader"):
        cfg.train_dataloader.batch_size = args.batch_size
    if args.load_from:
        cfg.load_from = os.path.expanduser(args.load_from)
    change_config(cfg, args.cfg_options)
    if args.data_root:
        set_data_root(cfg, args.data_root)
    if args.precision:
        set_precision(cfg, args.precision)
    if args.auto_scale_lr:
        if not (cfg.get("auto_scale_lr") or {}).get("base_batch_size"):
            raise ConfigError(
                f"{cfg.filename}: --auto-scale-lr needs `auto_scale_lr.base_batch_size`, the "
                "number of images per iteration that the learning rate was chosen for"
            )
        cfg.auto_scale_lr.enable = True
    cfg.launcher = args.launcher
    cfg.work_dir = args.work_dir or cfg.get("work_dir") or f"work_dirs/{Path(cfg.filename).stem}"
    if args.resume:
        # Without a checkpoint to resume from, training starts from the config's `load_from`, if
        # there is one.
        path = latest_checkpoint(cfg.work_dir) if args.resume == "auto" else args.resume
        cfg.resume = path is not None
        if path is not None:
            cfg.load_from = os.path.expanduser(path)
        else:
            folder = printable(cfg.work_dir)
            print(f"{folder} has no checkpoint to resume from; starting at iteration 0")
    if not cfg.get("train_dataloader"):
        raise ConfigError(
            f"{cfg.filename}: the config has no `train_dataloader`, it is for testing only; use a "
            "config such as odise_coco_label or odise_coco_caption"
        )
    return cfg


def summary(runner: OpenVocabRunner) -> list[str]:
    """Describe model, data and schedule of a training run in a few lines."""
    from odise_mm.config.changing import precision_of
    from odise_mm.engine.loops import vocabulary_of

    loop = runner.train_loop
    counts = {True: 0, False: 0}
    for parameter in runner.model.parameters():
        counts[parameter.requires_grad] += parameter.numel()
    dataset = loop.dataloader.dataset
    lines = [
        f"parameters: {counts[True]:,} trained, {counts[False]:,} frozen",
        f"training data: {len(dataset):,} images, class names: {vocabulary_of(dataset)}",
    ]
    if runner.val_loop is not None:
        lines.append(
            f"validation: {len(runner.val_loop.dataloader.dataset):,} images, every "
            f"{loop.val_interval:,} iterations"
        )
    batch = getattr(loop, "total_batch", None)
    lines += [
        f"iterations: {loop.max_iters:,}"
        + (f" of {batch} images in {runner.world_size} processes" if batch else ""),
        f"precision: {precision_of(runner.cfg)}",
        f"work directory: {runner.work_dir}",
        f"log file: {runner.logger.log_file}",
    ]
    return lines
