#!/usr/bin/env python
"""Train and test one config after the other: a study, or a whole folder of them.

Every config gets a work directory below --work-root, named like the config, with the checkpoints,
the log of both steps (study.log), the results (result.json) and pictures of them (shown/). Stopped
in any way and started again, it goes on where it was: results that are there are kept, a training
is resumed. Where a config fails, the others are still run. Configs that say the same about the
training, such as rows of several studies that are the paper's own model, share the first one's.

Examples:
    python tools/run_study.py configs/toy/ablation/representation
    python tools/run_study.py configs/ablation/steps --precision bf16 --datasets coco ade20k
    python tools/analysis_tools/ablation_table.py work_dirs/toy/ablation/representation/*
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # runs from a clone that is not installed, too

from rich.console import Console  # noqa: E402
from rich.text import Text  # noqa: E402

from odise_mm.config.naming import name_of  # noqa: E402
from odise_mm.errors import ConfigError  # noqa: E402
from odise_mm.utils.command_line import Parser, one_line_errors  # noqa: E402
from odise_mm.utils.display import printable  # noqa: E402
from odise_mm.utils.files import read_json  # noqa: E402
from odise_mm.utils.processes import run_child  # noqa: E402

LAST_LINES = 5
OF_TESTS = ("test_", "val_")
# Beginnings of settings that tools/test.py has no use for, or even refuses.
TRAINING = (
    "train_",
    "val_",
    "optim_wrapper",
    "param_scheduler",
    "auto_scale_lr",
    "default_hooks",
    "randomness",
)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("configs", nargs="+", type=Path, help="config files, or folders of them")
    parser.add_argument("--work-root", type=Path, default=Path("work_dirs"), metavar="DIR")
    parser.add_argument("--data-root", metavar="DIR", help="instead of data/ in the configs")
    parser.add_argument(
        "--datasets", nargs="+", default=[], metavar="NAME", help="test sets, as of tools/test.py"
    )
    parser.add_argument("--precision", help="as of tools/train.py and tools/test.py")
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="changes of every config; those of the training alone are left out in testing",
    )
    return parser.parse_args(argv)


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


def changes(options: list[str]) -> list[str]:
    """The arguments that change a config, if anything is to be changed."""
    return ["--cfg-options", *options] if options else []


def is_done(file: Path, datasets: list[str]) -> bool:
    """Whether a file of tools/test.py has all its sets; it writes one when the first is through."""
    try:
        content = read_json(file, ConfigError)
        return not content["not_done"] and content["sets"].keys() >= set(datasets)
    except (ConfigError, KeyError, TypeError, AttributeError):  # the test is run again
        return False


def training_of(config: Path) -> dict[str, Any] | None:
    """What a config says about the training; None if it cannot be read."""
    from odise_mm.config.finding import load_config  # here, for a quick --help

    try:
        cfg = load_config(config)
    except ConfigError:
        return None
    return {key: value for key, value in cfg.to_dict().items() if not key.startswith(OF_TESTS)}


class Study:
    """Runs configs in processes of their own."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.console = Console()
        self.trainings: list[tuple[dict[str, Any], Path]] = []

    def run(self, configs: list[Path]) -> int:
        """All of them; the number of those that failed."""
        failed = []
        start, done = time.monotonic(), 0
        for number, config in enumerate(configs, 1):
            name = name_of(config)
            head = f"[{number}/{len(configs)}] {printable(name)}"
            work = self.args.work_root / name
            trained_in = self.trained_in(config, work)
            if is_done(work / "result.json", self.args.datasets):
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
        from odise_mm.checkpoints.training_state import (
            latest_checkpoint,  # here, for a quick --help
        )

        work.mkdir(parents=True, exist_ok=True)
        if trained_in != work and latest_checkpoint(trained_in) is None:
            return f"the training that it shares, {trained_in}, has failed"
        shared = [
            *(["--data-root", self.args.data_root] if self.args.data_root else []),
            *(["--precision", self.args.precision] if self.args.precision else []),
        ]
        options = self.args.cfg_options
        of_tests = [option for option in options if not option.startswith(TRAINING)]
        log = work / "study.log"
        steps = [
            lambda: ["train.py", config, "--work-dir", work, "--resume", *changes(options)],
            lambda: [
                *("test.py", config, latest_checkpoint(trained_in)),
                *("--work-dir", work, "--out", work / "result.json", "--show-dir", work / "shown"),
                *(["--datasets", *self.args.datasets] if self.args.datasets else []),
                *changes(of_tests),
            ],
        ]
        if trained_in != work:
            del steps[0]
        with log.open("a") as stream:
            for step in steps:
                tool, *rest = step()
                command = [sys.executable, ROOT / "tools" / tool, *rest, *shared]
                if run_child([*map(str, command)], stream):
                    lines = log.read_text(errors="replace").strip().splitlines()
                    return "\n".join([*lines[-LAST_LINES:], f"(all of it: {printable(log)})"])
        return ""


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    with one_line_errors():
        return 1 if Study(args).run(find_configs(args.configs)) else 0


if __name__ == "__main__":
    sys.exit(main())
