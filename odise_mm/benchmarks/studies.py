"""Studies: training and testing of several configs. Importing this module imports no torch."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from odise_mm.config.naming import path_below_configs
from odise_mm.errors import ConfigError
from odise_mm.utils.display import printable
from odise_mm.utils.files import read_json
from odise_mm.utils.processes import run_child

_LAST_LINES = 5  # of the log, which are shown after a failure
# Prefixes of settings that do not affect training.
_TESTING = ("test_", "val_")
# Prefixes of settings that tools/test.py ignores or rejects.
_TRAINING = (
    "train_",
    "val_",
    "optim_wrapper",
    "param_scheduler",
    "auto_scale_lr",
    "default_hooks",
    "randomness",
)


def find_configs(paths: list[Path]) -> list[Path]:
    """List the configs of some files and folders, in order and without repetitions.

    Args:
        paths: Config files, or folders of configs.

    Raises:
        ConfigError: A path does not exist, or a folder contains no configs.
    """
    found: list[Path] = []
    for path in paths:
        files = [path] if path.is_file() else sorted(path.rglob("*.py"))
        if not files:
            raise ConfigError(f"{path}: neither a config nor a folder with configs")
        found += [file for file in files if "_base_" not in file.parts]
    return list(dict.fromkeys(file.resolve() for file in found))


def training_of(config: Path) -> dict[str, Any] | None:
    """Return the settings of a config that affect training, or None if it cannot be read."""
    from odise_mm.config.finding import load_config  # here: imports torch

    try:
        cfg = load_config(config)
    except ConfigError:
        return None
    return {key: value for key, value in cfg.to_dict().items() if not key.startswith(_TESTING)}


class Study:
    """Runner that trains and tests configs in separate processes and prints its progress.

    Args:
        tools: Folder of the programs ``train.py`` and ``test.py``.
        work_root: Folder in which every config gets its work directory.
        data_root: Folder that replaces ``data/`` in configs.
        datasets: Names of test sets. Defaults to those of the configs.
        precision: Precision option for the programs. Defaults to those of the configs.
        options: Changes of every config, KEY=VALUE. Those that only affect training are left out
            in testing.
    """

    def __init__(
        self,
        tools: Path,
        work_root: Path,
        *,
        data_root: str | None = None,
        datasets: Sequence[str] = (),
        precision: str | None = None,
        options: Sequence[str] = (),
    ) -> None:
        self.tools = tools
        self.work_root = work_root
        self.datasets = datasets
        self.options = options
        self.shared = [
            *(["--data-root", data_root] if data_root else []),
            *(["--precision", precision] if precision else []),
        ]
        self.console = Console()
        self.trainings: list[tuple[dict[str, Any], Path]] = []

    def run(self, configs: list[Path]) -> int:
        """Run all configs that are not finished yet.

        Args:
            configs: Config files.

        Returns:
            The number of failures.
        """
        failed = []
        start, done = time.monotonic(), 0
        for number, config in enumerate(configs, 1):
            name = path_below_configs(config)
            head = f"[{number}/{len(configs)}] {printable(name)}"
            work = self.work_root / name
            trained_in = self.trained_in(config, work)
            if _is_done(work / "result.json", self.datasets):
                self.console.print(Text(f"{head}: already done"))
                continue
            with self.console.status(Text(head)):
                error = self.run_one(config, work, trained_in)
            done += 1
            elapsed = time.monotonic() - start
            left = elapsed / done * (len(configs) - number)
            state = "FAILED" if error else f"results in {work / 'result.json'}"
            if trained_in != work:
                state = f"shares the training run {trained_in}; {state}"
            times = f"{elapsed / 60:.1f} min so far, about {left / 60:.1f} left"
            self.console.print(Text(f"{head}: {printable(state)}; {times}"))
            if error:
                failed.append((name, error))
        for name, error in failed:
            lines = [f"{name} failed:", *error.splitlines()]
            self.console.print(Text("\n".join(map(printable, lines)), style="red"))
        return len(failed)

    def trained_in(self, config: Path, work: Path) -> Path:
        """Return the work directory of an earlier config with equal training, else ``work``.

        Args:
            config: Config file.
            work: Work directory of the config.
        """
        training = training_of(config)
        for known, folder in self.trainings:
            if known == training:
                return folder
        if training is not None:
            self.trainings.append((training, work))
        return work

    def run_one(self, config: Path, work: Path, trained_in: Path) -> str:
        """Train, unless that is done, and test.

        Args:
            config: Config file.
            work: Work directory of the config.
            trained_in: Work directory of the training run.

        Returns:
            The end of the log if a step failed, else "".
        """
        from odise_mm.checkpoints.training_state import latest_checkpoint  # here: imports torch

        work.mkdir(parents=True, exist_ok=True)
        if trained_in != work and latest_checkpoint(trained_in) is None:
            return f"the shared training run {trained_in} has failed"
        test_options = [option for option in self.options if not option.startswith(_TRAINING)]
        log = work / "study.log"
        steps = [
            lambda: ["train.py", config, "--work-dir", work, "--resume", *_changes(self.options)],
            lambda: [
                *("test.py", config, latest_checkpoint(trained_in)),
                *("--work-dir", work, "--out", work / "result.json", "--show-dir", work / "shown"),
                *(["--datasets", *self.datasets] if self.datasets else []),
                *_changes(test_options),
            ],
        ]
        if trained_in != work:
            del steps[0]
        with log.open("a") as stream:
            for step in steps:
                tool, *rest = step()
                command = [sys.executable, self.tools / tool, *rest, *self.shared]
                if run_child([*map(str, command)], stream):
                    lines = log.read_text(errors="replace").strip().splitlines()
                    return "\n".join([*lines[-_LAST_LINES:], f"(complete log: {printable(log)})"])
        return ""


def _changes(options: Sequence[str]) -> list[str]:
    """Return the command-line arguments for changes of a config."""
    return ["--cfg-options", *options] if options else []


def _is_done(file: Path, datasets: Sequence[str]) -> bool:
    """Return whether a JSON file of tools/test.py is complete.

    tools/test.py already writes the file after the first test set.
    """
    try:
        content = read_json(file, ConfigError)
        return not content["not_done"] and content["sets"].keys() >= set(datasets)
    except (ConfigError, KeyError, TypeError, AttributeError):  # missing or damaged: test again
        return False
