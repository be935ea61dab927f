"""Studies: configs that are trained and tested one after the other. Imports no torch by itself."""

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

_LAST_LINES = 5
_OF_TESTS = ("test_", "val_")
# Beginnings of settings that tools/test.py has no use for, or even refuses.
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
    """The configs named, and those in the folders named, in order and once each.

    Raises:
        ConfigError: a path that does not exist, or a folder without configs.
    """
    found: list[Path] = []
    for path in paths:
        files = [path] if path.is_file() else sorted(path.rglob("*.py"))
        if not files:
            raise ConfigError(f"{path}: neither a config nor a folder with configs")
        found += [file for file in files if "_base_" not in file.parts]
    return list(dict.fromkeys(file.resolve() for file in found))


def training_of(config: Path) -> dict[str, Any] | None:
    """What a config says about the training; None if it cannot be read."""
    from odise_mm.config.finding import load_config  # here: imports torch

    try:
        cfg = load_config(config)
    except ConfigError:
        return None
    return {key: value for key, value in cfg.to_dict().items() if not key.startswith(_OF_TESTS)}


class Study:
    """Trains and tests configs, in processes of their own, and tells how far it is.

    Args:
        tools: folder of the programs ``train.py`` and ``test.py``.
        work_root: where every config gets its work directory.
        data_root: the folder that stands for ``data/`` in configs.
        datasets: names of test sets; none: the configs' own.
        precision: as the programs take it; None: what the configs say.
        options: changes of every config, KEY=VALUE; those of the training alone are left out in
            testing.
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
        """All of them; the number of those that failed."""
        failed = []
        start, done = time.monotonic(), 0
        for number, config in enumerate(configs, 1):
            name = path_below_configs(config)
            head = f"[{number}/{len(configs)}] {printable(name)}"
            work = self.work_root / name
            trained_in = self.trained_in(config, work)
            if _is_done(work / "result.json", self.datasets):
                self.console.print(Text(f"{head}: done before"))
                continue
            with self.console.status(Text(head)):
                complaint = self.run_one(config, work, trained_in)
            done += 1
            took = time.monotonic() - start
            left = took / done * (len(configs) - number)
            state = "FAILED" if complaint else f"results in {work / 'result.json'}"
            if trained_in != work:
                state = f"trained as {trained_in}; {state}"
            times = f"{took / 60:.1f} min so far, about {left / 60:.1f} left"
            self.console.print(Text(f"{head}: {printable(state)}; {times}"))
            if complaint:
                failed.append((name, complaint))
        for name, complaint in failed:
            lines = [f"{name} failed:", *complaint.splitlines()]
            self.console.print(Text("\n".join(map(printable, lines)), style="red"))
        return len(failed)

    def trained_in(self, config: Path, work: Path) -> Path:
        """Where the same training was run, in this study and before; else ``work``."""
        training = training_of(config)
        for known, folder in self.trainings:
            if known == training:
                return folder
        if training is not None:
            self.trainings.append((training, work))
        return work

    def run_one(self, config: Path, work: Path, trained_in: Path) -> str:
        """Train, unless it was done, and test; what the log ends with if one of them failed."""
        from odise_mm.checkpoints.training_state import latest_checkpoint  # here: imports torch

        work.mkdir(parents=True, exist_ok=True)
        if trained_in != work and latest_checkpoint(trained_in) is None:
            return f"the training that it shares, {trained_in}, has failed"
        of_tests = [option for option in self.options if not option.startswith(_TRAINING)]
        log = work / "study.log"
        steps = [
            lambda: ["train.py", config, "--work-dir", work, "--resume", *_changes(self.options)],
            lambda: [
                *("test.py", config, latest_checkpoint(trained_in)),
                *("--work-dir", work, "--out", work / "result.json", "--show-dir", work / "shown"),
                *(["--datasets", *self.datasets] if self.datasets else []),
                *_changes(of_tests),
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
                    return "\n".join([*lines[-_LAST_LINES:], f"(all of it: {printable(log)})"])
        return ""


def _changes(options: Sequence[str]) -> list[str]:
    """The arguments that change a config, if anything is to be changed."""
    return ["--cfg-options", *options] if options else []


def _is_done(file: Path, datasets: Sequence[str]) -> bool:
    """Whether a file of tools/test.py has all its sets; it writes one when the first is through."""
    try:
        content = read_json(file, ConfigError)
        return not content["not_done"] and content["sets"].keys() >= set(datasets)
    except (ConfigError, KeyError, TypeError, AttributeError):  # the test is run again
        return False
