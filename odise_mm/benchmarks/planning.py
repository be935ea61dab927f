"""What is to be run on test sets, and what speaks against it before anything long begins."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config

from odise_mm.benchmarks.sets import BenchmarkSet, known_sets, make_benchmark_sets
from odise_mm.config.changing import change_config
from odise_mm.config.finding import load_config
from odise_mm.config.walking import named_weights
from odise_mm.errors import CheckpointError

NO_CHECKPOINT = "none"
"""In the place of a checkpoint: all weights are random."""


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
    """The test sets in order, each with its complete config.

    Args:
        config: of the model; a file or its name under ``configs/``.
        names: of the test sets; "all" among them: all that there are; None: the config's own.
        data_root, label_files, limit: see :func:`make_benchmark_sets`.
        work_dir: of the logs; by default ``work_dirs/CONFIG/test``.
        launcher: what started this process.
        changes: of every config, by dotted keys.

    Raises:
        ConfigError: no such config or set, or the config has none.
        DatasetError: ``label_files`` has none for a set.
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
        # Parts with random weights are the same as for the inferencer.
        test_set.cfg.setdefault("randomness", dict(seed=0))
        if sys.stderr.isatty():  # there is a bar, which lines of the log would tear
            hooks = test_set.cfg.setdefault("default_hooks", {})
            hooks["logger"] = dict(type="LoggerHook", interval=sys.maxsize)
        change_config(test_set.cfg, changes or {})
    return sets


def inputs_of(checkpoint: str, sets: Sequence[BenchmarkSet]) -> list[str | None]:
    """Files that are read, as far as their names are known beforehand."""
    found = [checkpoint]
    for test_set in sets:
        cfg = test_set.cfg
        found += [cfg.filename, *test_set.files(), *named_weights(cfg.model)]
        found.append(test_set.dataset.get("label_file"))
    return found


def check_checkpoint(checkpoint: str, cfg: Config) -> None:
    """Refuse what cannot be loaded before the frozen parts are, which takes minutes.

    Raises:
        CheckpointError: no such file, or none where the model is not a tiny model.
    """
    if checkpoint != NO_CHECKPOINT:
        if not os.path.isfile(os.path.expanduser(checkpoint)):
            raise CheckpointError(f"there is no weights file {checkpoint}: check the path")
        return
    named = named_weights(cfg.model)
    if named:
        raise CheckpointError(
            f"CHECKPOINT is `none`, but {cfg.filename} has real weights ({named[0]}): numbers of "
            "a model whose trained part is random would look real. Give its checkpoint; `none` "
            "is for tiny models such as odise_tiny, whose weights are all random"
        )
