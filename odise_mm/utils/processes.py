"""Child processes that end with their parent. Does not import torch."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import IO

PARENT = "ODISE_MM_PARENT"
"""Environment variable with the id of the parent process that a child follows."""

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_SECONDS = 1.0


def follow_parent(launcher: str = "none") -> None:
    """End this process as soon as its parent has ended, even if the parent was killed.

    This only applies to processes started by :func:`run_child` or torch's launcher. On Linux, the
    kernel sends SIGTERM; on other POSIX systems, a thread checks the parent once per second. On
    Windows, nothing happens.

    Args:
        launcher: Launcher of this process, the value of ``--launcher``.
    """
    named = os.environ.pop(PARENT, "")  # removed, as it is wrong for our own children
    if os.name != "posix" or not (named or launcher == "pytorch"):
        return
    parent = os.getppid()
    if named.isdecimal() and int(named) != parent:
        sys.exit(f"error: the parent process {named} has ended")
    if sys.platform == "linux" and _ask_kernel():
        if os.getppid() != parent:  # it ended in the meantime
            os._exit(128 + signal.SIGTERM)
        return
    threading.Thread(target=_watch, args=(parent,), daemon=True).start()


def _ask_kernel() -> bool:
    try:
        return ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0) == 0
    except (OSError, AttributeError):
        return False


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_SECONDS)
    os._exit(128 + signal.SIGTERM)


def is_first_process() -> bool:
    """Return whether this is the only process, or the one with rank 0.

    Read from the environment, so that it is known before the process group is initialized.
    """
    ranks = ("RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK")
    return all(os.environ.get(rank, "0") == "0" for rank in ranks)


def run_child(command: Sequence[str], output: IO[str]) -> int:
    """Run a program that calls :func:`follow_parent`, and wait for it.

    Args:
        command: Program and arguments.
        output: File for stdout and stderr of the program.

    Returns:
        Exit status of the program.
    """
    environment: Mapping[str, str] = {**os.environ, PARENT: str(os.getpid())}
    done = subprocess.run(command, stdout=output, stderr=output, env=environment)
    return done.returncode
