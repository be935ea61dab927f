"""Running of a model on several test sets."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dist import get_world_size, is_main_process
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from odise_mm.benchmarks.planning import NO_CHECKPOINT
from odise_mm.benchmarks.report import (
    Report,
    SetResult,
    describe_vocabulary,
    sha256_of,
    software_versions,
)
from odise_mm.benchmarks.sets import BenchmarkSet
from odise_mm.checkpoints.published import load_weights, use_contained_clip
from odise_mm.checkpoints.training_names import train_vocabulary
from odise_mm.config.checking import check_complete, is_complete
from odise_mm.datasets.class_names import find_file
from odise_mm.engine.image_scores import ImageScoresHook
from odise_mm.engine.loops import unwrapped, vocabulary_of
from odise_mm.engine.result_writer import ProgressHook, ResultWriterHook
from odise_mm.engine.runner import OpenVocabRunner
from odise_mm.errors import EvaluationError
from odise_mm.models.random_weights import fill_with_random_weights
from odise_mm.utils.display import printable
from odise_mm.vocabulary import Vocabulary


def make_runner(cfg: Config, checkpoint: str, precision: str) -> OpenVocabRunner:
    """Build a runner whose model has the weights of a checkpoint.

    Args:
        cfg: Config of the model and of a test set. If the checkpoint contains the CLIP, the
            config's weights of CLIP are set to None.
        checkpoint: File, or ``NO_CHECKPOINT`` for random weights, or for a model without trained
            parameters.
        precision: Precision of the model, "fp32", "fp16" or "bf16".

    Raises:
        CheckpointError: The checkpoint cannot be read or does not fit the model.
        ConfigError, DatasetError, DeviceError: See :meth:`OpenVocabRunner.from_cfg`.
    """
    if checkpoint != NO_CHECKPOINT:
        use_contained_clip(cfg.model, checkpoint)
    runner = OpenVocabRunner.from_cfg(cfg)
    model = unwrapped(runner.model)
    if checkpoint == NO_CHECKPOINT and is_complete(cfg):
        check_complete(cfg, model)
    elif checkpoint == NO_CHECKPOINT:
        fill_with_random_weights(model, ("head", "classifiers", "clip"))
    else:
        load_weights(model, checkpoint)
    model.set_precision(precision)
    return runner


def run_sets(
    runner: OpenVocabRunner,
    report: Report,
    sets: Sequence[BenchmarkSet],
    writers: Sequence[ResultWriterHook | ImageScoresHook],
    out: str | os.PathLike | None = None,
    *,
    limit: int | None = None,
    per_class: bool = False,
) -> None:
    """Test the model on all test sets.

    The report is written after each test set, and printed at the end, even after an error.

    Args:
        runner: Runner with a model from :func:`make_runner`.
        report: Report to fill.
        sets: Test sets in order.
        writers: Hooks that write results, images and scores.
        out: File of the report. Defaults to ``results.json`` in the runner's log folder, which is
            also used if ``out`` cannot be written.
        limit: Number of images that each test set was limited to, for the report.
        per_class: Also print a table of classes.

    Raises:
        EvaluationError: A metric, a hook or the report failed. Everything else was finished.
    """
    for writer in writers:
        runner.register_hook(writer)
    spare = Path(runner.log_dir) / "results.json"
    out = Path(out or spare)
    console = Console(highlight=False, quiet=not is_main_process())
    if not console.is_terminal:  # in a pipe rich assumes 80 columns, which would wrap the cells
        console = Console(highlight=False, quiet=not is_main_process(), width=200)
    unwritten = ""
    try:
        with progress_bar() as bar:
            progress = ProgressHook(bar)
            runner.register_hook(progress)
            for test_set in sets:
                for hook in (progress, *writers):
                    hook.set_name = test_set.name
                result = run_set(runner, test_set, limit)
                report.results.append(result)
                if is_main_process():
                    _write_classes(writers, result)
                    unwritten = _write_report(report, out, spare)
    finally:  # after an error, show the finished results and name the others
        if report.results:
            tables = [report.table(), report.subset_table()]
            tables += report.class_tables() if per_class else []
            for table in filter(None, tables):
                console.print(table)
            if not unwritten:
                console.print(Text(f"wrote {printable(out)}"), soft_wrap=True)
        elif report.missing:
            missing = printable(", ".join(report.missing))
            console.print(Text(f"not done: {missing}", style="red"))
    failures = [*report.failures, *([unwritten] if unwritten else [])]
    if failures:
        raise EvaluationError(f"the test run has failures: {'; '.join(failures)}")


def run_set(runner: OpenVocabRunner, test_set: BenchmarkSet, limit: int | None) -> SetResult:
    """Test the model on one test set.

    Args:
        runner: Runner with a model from :func:`make_runner`.
        test_set: The test set.
        limit: Number of images that the test set was limited to, for the result.
    """
    start = time.perf_counter()
    scalars = runner.message_hub.log_scalars
    for key in [key for key in scalars if key.startswith("test/")]:
        del scalars[key]  # the log would repeat the numbers of the previous test set
    failed: dict[str, str] = {}
    try:
        metrics = runner.test_on(test_set.cfg)
    except EvaluationError as error:
        metrics, failed = error.numbers, error.failures
    loop = runner.test_loop
    dataset = loop.dataloader.dataset
    vocabulary = vocabulary_of(dataset)
    names = loop.evaluator.metrics[0].class_names
    settings = test_set.datasets[0]  # the others have the same class names
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
        limit=limit,
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


def _write_classes(
    writers: Sequence[ResultWriterHook | ImageScoresHook], result: SetResult
) -> None:
    """Write the table of classes if a hook does that; a failure becomes one of the result."""
    for writer in writers:
        name = type(writer).__name__
        if isinstance(writer, ImageScoresHook) and name not in result.failed:
            try:
                writer.write_classes(result.is_thing, result.per_class)
            except OSError as error:
                result.failed[name] = f"{printable(writer.folder)}: {error.strerror or error}"


def _write_report(report: Report, out: Path, spare: Path) -> str:
    """Write the report so far.

    Args:
        report: The report.
        out: File to write.
        spare: File to write if ``out`` cannot be written.

    Returns:
        Why ``out`` could not be written, or "".
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
def progress_bar() -> Iterator[Progress]:
    """Show a progress bar on stderr if it is a terminal; log lines show the progress otherwise."""
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


def describe_run(
    runner: OpenVocabRunner, checkpoint: str, precision: str, changes: Mapping[str, Any]
) -> dict[str, Any]:
    """Describe what the results of all test sets depend on.

    Args:
        runner: Runner with the config and the model.
        checkpoint: Name or file of the checkpoint, as given by the user.
        precision: Precision of the model.
        changes: Changes of the config, as given by the user.

    Returns:
        ``config``, ``checkpoint``, ``train_vocabulary``, ``precision``, ``device``, ``processes``,
        ``started`` and ``versions``, in JSON types.
    """
    model = unwrapped(runner.model)
    device = next(model.parameters()).device
    cfg = runner.cfg
    configured = (cfg.model.get("ensemble") or {}).get("train_vocabulary")
    trained = train_vocabulary(model) if configured is None else Vocabulary.load(configured)
    return dict(
        config=dict(
            file=cfg.filename,
            options={key: str(value) for key, value in changes.items()},
            model=cfg.model.to_dict(),
            test_pipeline=[dict(step) for step in cfg.get("test_pipeline", [])],
        ),
        checkpoint=None
        if checkpoint == NO_CHECKPOINT
        else dict(file=checkpoint, sha256=sha256_of(os.path.expanduser(checkpoint))),
        train_vocabulary=None
        if trained is None
        else describe_vocabulary(trained, trained.name if configured is None else str(configured)),
        precision=precision,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        processes=get_world_size(),
        started=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        versions=software_versions(),
    )
