"""Planning of test runs, with checks that run before anything slow starts."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config

from odise_mm.benchmarks.sets import BenchmarkSet, known_sets, make_benchmark_sets
from odise_mm.checkpoints.safe_loading import weights_format
from odise_mm.config.changing import change_config
from odise_mm.config.checking import is_complete
from odise_mm.config.finding import load_config
from odise_mm.config.walking import named_weights
from odise_mm.errors import CheckpointError

NO_CHECKPOINT = "none"
"""Value of CHECKPOINT for a model with only random weights, or without trained parameters."""


def plan_sets(
    config: str,
    names: Sequence[str] | None = None,
    *,
    data_root: str | None = None,
    label_files: str | None = None,
    limit: int | None = None,
    work_dir: str | None = None,
    launcher: str = "none",
    changes: Mapping[str, Any] | None = None,
) -> list[BenchmarkSet]:
    """Make the test sets of a run, each with its complete config.

    Args:
        config: Config file of the model, or its name under ``configs/``.
        names: Names of the test sets. "all" means all available ones, None the config's own.
        data_root: See :func:`make_benchmark_sets`.
        label_files: See :func:`make_benchmark_sets`.
        limit: See :func:`make_benchmark_sets`.
        work_dir: Folder for logs. Defaults to ``work_dirs/CONFIG/test``.
        launcher: Launcher that started this process.
        changes: Changes of every config, by dotted key.

    Returns:
        The test sets, in the given order.

    Raises:
        ConfigError: The config or a test set does not exist, or the config has no test set.
        DatasetError: ``label_files`` has no file for a test set.
    """
    cfg = load_config(config)
    if names is not None:
        names = known_sets() if "all" in names else list(dict.fromkeys(names))
    sets = make_benchmark_sets(
        cfg, names, data_root=data_root, label_files=label_files, limit=limit
    )
    folder = work_dir or os.path.join("work_dirs", Path(cfg.filename).stem, "test")
    for test_set in sets:
        test_set.cfg.work_dir = folder
        test_set.cfg.launcher = launcher
        # The seed of the inferencer, so that random weights are the same.
        test_set.cfg.setdefault("randomness", dict(seed=0))
        if sys.stderr.isatty():  # log lines would break up the progress bar
            hooks = test_set.cfg.setdefault("default_hooks", {})
            hooks["logger"] = dict(type="LoggerHook", interval=sys.maxsize)
        change_config(test_set.cfg, changes or {})
    return sets


def inputs_of(checkpoint: str, sets: Sequence[BenchmarkSet]) -> list[str | None]:
    """List the input files of a test run, as far as their names are known beforehand."""
    found = [checkpoint]
    for test_set in sets:
        cfg = test_set.cfg
        found += [cfg.filename, *test_set.files(), *named_weights(cfg.model)]
        found.append(test_set.dataset.get("label_file"))
    return found


def check_checkpoint(checkpoint: str, cfg: Config) -> None:
    """Check that the checkpoint exists, before the frozen parts are loaded, which takes minutes.

    Args:
        checkpoint: File, or ``NO_CHECKPOINT``.
        cfg: Config of the model.

    Raises:
        CheckpointError: The file does not exist or is no checkpoint, or ``NO_CHECKPOINT`` is given
            for a model with real weights and trained parameters.
    """
    if checkpoint != NO_CHECKPOINT:
        weights_format(checkpoint)
        return
    named = named_weights(cfg.model)
    if named and not is_complete(cfg):
        raise CheckpointError(
            f"CHECKPOINT is `none`, but {cfg.filename} has real weights ({named[0]}), so the "
            "numbers of a model with random trained parts would look real; pass its checkpoint "
            "(`none` is for tiny models such as odise_tiny, whose weights are all random, and for "
            "configs with needs_checkpoint = False, whose models have no trained parameters)"
        )
