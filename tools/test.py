#!/usr/bin/env python
"""Panoptic quality, mAP and mIoU of a model on one or several test sets.

The model is loaded once and every image is run once for all three tasks. Results of a set are
written as soon as it is finished.

Examples:
    python tools/test.py odise_coco_label checkpoints/odise_label_coco_50e-b67d2efc.pth
    python tools/test.py odise_coco_label work_dirs/odise_coco_label/iter_92188.pth \\
        --datasets ade20k pc59 voc21 --out results.json --per-class
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # runs from a clone that is not installed, too

from odise_mm.utils.command_line import ConfigOptions, Parser, one_line_errors, positive_int  # noqa: E402
from odise_mm.utils.display import printable  # noqa: E402
from odise_mm.utils.precision import PRECISIONS  # noqa: E402
from odise_mm.utils.processes import follow_parent, is_first_process  # noqa: E402

INTERRUPTED = 130  # the shell's exit status after Ctrl-C

if TYPE_CHECKING:
    from mmengine.config import Config
    from rich.progress import Progress

    from odise_mm.benchmarks.report import Report, SetResult
    from odise_mm.benchmarks.sets import BenchmarkSet
    from odise_mm.engine.runner import OpenVocabRunner


def result_file(text: str) -> Path:
    """Argument type: a path that ends in .json or .csv."""
    path = Path(text)
    if path.suffix not in (".json", ".csv"):
        raise argparse.ArgumentTypeError(f"must end in .json or .csv: {text}")
    return path


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("config", metavar="CONFIG", help="config file or its name under configs/")
    parser.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        help="ours (.pth, .safetensors, iter_*.pth of a training), a published ODISE file, or "
        "`none` for a miniature whose weights are all made up",
    )
    data = parser.add_argument_group("data")
    data.add_argument(
        "--datasets",
        nargs="+",
        metavar="NAME",
        help="test sets, or `all` (default: the config's own): coco ade20k ade847 pc59 pc459 voc20 "
        "voc21 cityscapes mapillary lvis uvo",
    )
    data.add_argument("--data-root", metavar="DIR", help="instead of data/ in the configs")
    data.add_argument(
        "--label-files",
        metavar="DIR",
        help="folder of OpenSeg's label files, which replace the built-in synonyms of test sets "
        "and training vocabulary (as in the published protocol)",
    )
    data.add_argument(
        "--limit", type=positive_int, metavar="N", help="the first N images of each set only"
    )
    out = parser.add_argument_group("output")
    out.add_argument(
        "--out", type=result_file, metavar="FILE", help=".json (everything) or .csv (numbers)"
    )
    out.add_argument("--per-class", action="store_true", help="print a table of classes, too")
    out.add_argument(
        "--dump",
        metavar="DIR",
        help="write panoptic PNGs and COCO JSON, instances (COCO results), semantic PNGs",
    )
    out.add_argument("--show-dir", metavar="DIR", help="write pictures")
    out.add_argument(
        "--show-interval", type=positive_int, default=1, metavar="N", help="of every Nth image"
    )
    out.add_argument("--work-dir", metavar="DIR", help="logs; default: work_dirs/CONFIG/test")
    how = parser.add_argument_group("how")
    how.add_argument("--precision", choices=PRECISIONS, default="fp32")
    how.add_argument(
        "--cfg-options",
        action=ConfigOptions,
        help="further changes of the config, for every test set",
    )
    how.add_argument("--launcher", choices=("none", "pytorch", "slurm", "mpi"), default="none")
    how.add_argument("--local-rank", "--local_rank", type=int, default=0, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the command: 0; mistakes exit with 2, as argparse does."""
    args = parse_args(argv)
    follow_parent(args.launcher)
    os.environ.setdefault("LOCAL_RANK", str(args.local_rank))
    with one_line_errors():
        try:
            with owned_folders(args):
                return run(args)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return INTERRUPTED


def run(args: argparse.Namespace) -> int:
    import torch
    from mmengine.device import get_device
    from mmengine.dist import is_main_process
    from rich.console import Console
    from rich.text import Text

    import odise_mm  # noqa: F401  (first of ours: it prepares mmcv)
    from odise_mm.apis.inferencer import MADE_UP_NOTICE
    from odise_mm.benchmarks.report import Report
    from odise_mm.engine.result_writer import ProgressHook, ResultWriterHook
    from odise_mm.engine.runner import OpenVocabRunner
    from odise_mm.errors import EvaluationError
    from odise_mm.utils.outputs import check_outputs
    from odise_mm.utils.precision import check_precision

    check_precision(args.precision, torch.device(get_device()))
    sets = plan(args)
    made_up = args.checkpoint == "none"
    check_checkpoint(args.checkpoint, sets[0].cfg)
    for test_set in sets:
        test_set.check()
    writer = ResultWriterHook(
        args.dump, args.show_dir, args.show_interval, MADE_UP_NOTICE if made_up else None
    )
    check_outputs([args.out], inputs_of(args, sets))
    for test_set in sets:
        writer.check(test_set.name)

    runner = OpenVocabRunner.from_cfg(sets[0].cfg)
    prepare_model(runner, args)
    runner.register_hook(writer)
    report = Report(describe_run(args, runner), [s.name for s in sets], made_up)
    out = args.out or Path(runner.log_dir) / "results.json"
    console = Console(highlight=False, quiet=not is_main_process())
    if not console.is_terminal:  # in a pipe rich assumes 80 columns, which would fold the cells
        console = Console(highlight=False, quiet=not is_main_process(), width=200)
    unwritten = ""
    try:
        with progress_bar() as bar:
            progress = ProgressHook(bar)
            runner.register_hook(progress)
            for test_set in sets:
                writer.set_name = progress.set_name = test_set.name
                report.results.append(test_one(runner, test_set, args))
                if is_main_process():
                    unwritten = write_report(report, out, Path(runner.log_dir) / "results.json")
    finally:  # whatever ended it: what is done is shown, and what is not is said
        if report.results:
            tables = [report.table(), report.subset_table()]
            tables += report.class_tables() if args.per_class else []
            for table in filter(None, tables):
                console.print(table)
            if not unwritten:
                console.print(Text(f"wrote {printable(out)}"), soft_wrap=True)
        elif report.missing:
            missing = printable(", ".join(report.missing))
            console.print(Text(f"not done: {missing}", style="red"))
    failures = [*report.failures, *([unwritten] if unwritten else [])]
    if failures:
        raise EvaluationError(f"not everything could be done: {'; '.join(failures)}")
    return 0


def write_report(report: Report, out: Path, spare: Path) -> str:
    """Write the results of the sets that are done.

    Args:
        report: the results.
        out: the file.
        spare: another one, which is written where that is not possible.

    Returns:
        Why ``out`` could not be written; nothing if it was.
    """
    try:
        report.write(out)
        return ""
    except OSError as error:
        why = f"{printable(out)}: the results could not be written ({error.strerror or error})"
    try:
        report.write(spare)
        why += f"; they are in {printable(spare)}"
    except OSError as error:
        why += f", nor to {printable(spare)} ({error.strerror or error})"
    print(why, file=sys.stderr)
    return why


@contextmanager
def owned_folders(args: argparse.Namespace) -> Iterator[None]:
    """The folders that results are written to, held by the first of all processes.

    Raises:
        OutputError: another program is writing there.
    """
    from odise_mm.utils.files import FolderLock
    from odise_mm.utils.outputs import check_folder

    named = (args.dump, args.show_dir, args.work_dir)
    folders = {os.path.realpath(folder) for folder in named if folder}
    with ExitStack() as stack:
        for folder in sorted(folders if is_first_process() else ()):
            check_folder(folder)
            stack.enter_context(FolderLock(folder, "writing results of a test"))
        yield


def inputs_of(args: argparse.Namespace, sets: Sequence[BenchmarkSet]) -> list[str | None]:
    """Files that are read, as far as their names are known beforehand."""
    from odise_mm.config.walking import named_weights

    found = [args.checkpoint]
    for test_set in sets:
        cfg = test_set.cfg
        found += [cfg.filename, *test_set.files(), *named_weights(cfg.model)]
        found.append(test_set.dataset.get("label_file"))
    return found


def plan(args: argparse.Namespace) -> list[BenchmarkSet]:
    """The test sets in order, each with its complete config."""
    from odise_mm.benchmarks.sets import known_sets, make_benchmark_sets
    from odise_mm.config.changing import change_config
    from odise_mm.config.finding import load_config

    cfg = load_config(args.config)
    names = args.datasets
    if names is not None:
        names = known_sets() if "all" in names else list(dict.fromkeys(names))
    sets = make_benchmark_sets(
        cfg, names, data_root=args.data_root, label_files=args.label_files, limit=args.limit
    )
    folder = args.work_dir or os.path.join("work_dirs", Path(cfg.filename).stem, "test")
    for test_set in sets:
        test_set.cfg.work_dir = folder
        test_set.cfg.launcher = args.launcher
        # Parts with random weights are the same as for the inferencer.
        test_set.cfg.setdefault("randomness", dict(seed=0))
        if sys.stderr.isatty():  # there is a bar, which lines of the log would tear
            hooks = test_set.cfg.setdefault("default_hooks", {})
            hooks["logger"] = dict(type="LoggerHook", interval=sys.maxsize)
        change_config(test_set.cfg, args.cfg_options)
    return sets


def check_checkpoint(checkpoint: str, cfg: Config) -> None:
    """Refuse what cannot be loaded before the frozen parts are, which takes minutes.

    Raises:
        CheckpointError: no such file, or none where the model is not a miniature.
    """
    from odise_mm.config.walking import named_weights
    from odise_mm.errors import CheckpointError

    if checkpoint != "none":
        if not os.path.isfile(os.path.expanduser(checkpoint)):
            raise CheckpointError(f"there is no weights file {checkpoint}: check the path")
        return
    named = named_weights(cfg.model)
    if named:
        raise CheckpointError(
            f"CHECKPOINT is `none`, but {cfg.filename} has real weights ({named[0]}): numbers of "
            "a model whose trained part is made up would look real. Give its checkpoint; `none` "
            "is for miniatures such as odise_tiny, which are made up as a whole"
        )


def prepare_model(runner: OpenVocabRunner, args: argparse.Namespace) -> None:
    """Trained weights, strictly; then the precision."""
    from mmengine.model import is_model_wrapper

    from odise_mm.checkpoints.published import load_weights
    from odise_mm.models.random_weights import make_up_weights

    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    if args.checkpoint == "none":
        make_up_weights(model, ("head", "classifiers", "clip"))
    else:
        load_weights(model, args.checkpoint)
    model.set_precision(args.precision)


def test_one(
    runner: OpenVocabRunner, test_set: BenchmarkSet, args: argparse.Namespace
) -> SetResult:
    """Walk one set."""
    from odise_mm.benchmarks.report import SetResult, describe_vocabulary
    from odise_mm.datasets.class_names import find_file
    from odise_mm.engine.loops import vocabulary_of
    from odise_mm.errors import EvaluationError

    start = time.perf_counter()
    scalars = runner.message_hub.log_scalars
    for key in [key for key in scalars if key.startswith("test/")]:
        del scalars[key]  # the log would repeat the previous set's numbers as this one's
    failed: dict[str, str] = {}
    try:
        metrics = runner.test_on(test_set.cfg)
    except EvaluationError as error:
        metrics, failed = error.numbers, error.failures
    loop = runner.test_loop
    dataset = loop.dataloader.dataset
    vocabulary = vocabulary_of(dataset)
    names = loop.evaluator.metrics[0].class_names
    settings = test_set.datasets[0]  # others have the same names
    return SetResult(
        name=test_set.name,
        metrics=metrics,
        per_class={
            metric.prefix: metric.per_class
            for metric in loop.evaluator.metrics
            if getattr(metric, "per_class", None)
        },
        is_thing=dict(zip(names, vocabulary.is_thing, strict=True)),
        images=len(dataset),
        limit=args.limit,
        vocabulary=describe_vocabulary(
            vocabulary,
            find_file(settings.get("vocabulary") or vocabulary.name, settings.get("data_root")),
            settings.get("label_file"),
        ),
        seconds=time.perf_counter() - start,
        subsets={
            subset: [names[label] for label in labels]
            for subset, labels in dataset.metainfo.get("subsets", {}).items()
        },
        failed=failed,
    )


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """A bar for terminals; in files the log's lines tell how far it is and how long it takes."""
    from mmengine.dist import is_main_process
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left:"),
        TimeRemainingColumn(),
        console=console,
        disable=not (console.is_terminal and is_main_process()),
    ) as bar:
        yield bar


def describe_run(args: argparse.Namespace, runner: OpenVocabRunner) -> dict[str, Any]:
    """What the numbers depend on, and is the same for all sets."""
    from datetime import datetime, timezone

    import torch
    from mmengine.dist import get_world_size
    from mmengine.model import is_model_wrapper

    from odise_mm.benchmarks.report import describe_vocabulary, sha256_of, software_versions
    from odise_mm.vocabulary import Vocabulary

    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    device = next(model.parameters()).device
    cfg = runner.cfg
    train = (cfg.model.get("fusion") or {}).get("train_vocabulary")
    made_up = args.checkpoint == "none"
    return dict(
        config=dict(
            file=cfg.filename,
            options={key: str(value) for key, value in args.cfg_options.items()},
            model=cfg.model.to_dict(),
            test_pipeline=[dict(step) for step in cfg.get("test_pipeline", [])],
        ),
        checkpoint=None
        if made_up
        else dict(file=args.checkpoint, sha256=sha256_of(os.path.expanduser(args.checkpoint))),
        train_vocabulary=None
        if train is None
        else describe_vocabulary(Vocabulary.load(train), str(train)),
        precision=args.precision,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        processes=get_world_size(),
        started=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        versions=software_versions(),
    )


if __name__ == "__main__":
    sys.exit(main())
