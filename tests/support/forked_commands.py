"""Commands in processes of their own, of which none imports PyTorch and other large packages anew.

These imports are most of the time of a short command. Here one process imports them, and forks for
every command. It imports nothing of this package, so each command still does that itself.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

LARGE = (
    "torch",
    "torch._dynamo",
    "torchvision",
    "transformers",
    "transformers.models.bert",
    "mmengine.runner",
    "scipy.optimize",
    "matplotlib.pyplot",
    "pycocotools.mask",
)


def run_commands(commands: Sequence[Sequence[str]], folder: Path) -> None:
    """Run commands in a folder one after another; fail with the message of the first that fails.

    Args:
        commands: lists of words. Those after "python" run with this Python, other commands as they
            are.
        folder: the current folder of the commands, which is also on Python's path.
    """
    done = subprocess.run(
        [sys.executable, __file__],
        input=json.dumps([*map(list, commands)]),
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def _next_command(commands: list[list[str]]) -> list[str]:
    """Run commands in forks, and return in each of these what it has to run."""
    for words in commands:
        if words[0] != "python":
            code = subprocess.run(words).returncode
        elif child := os.fork():
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        else:
            return words[1:]
        if code:
            sys.exit(f"{shlex.join(words)} ended with {code}")
    sys.exit()


def _run(words: list[str]) -> None:
    if words[0] == "-m":
        sys.path[0], sys.argv = os.getcwd(), words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.path[0], sys.argv = str(Path(words[0]).resolve().parent), words
        runpy.run_path(words[0], run_name="__main__")


if __name__ == "__main__":
    for name in LARGE:
        importlib.import_module(name)
    assert "odise_mm" not in sys.modules
    _run(_next_command(json.load(sys.stdin)))
