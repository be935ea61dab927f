"""Processes that end with the one that started them. Imports no torch."""

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
"""Environment variable with the process id that a child is to follow."""

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_SECONDS = 1.0


def follow_parent(launcher: str = "none") -> None:
    """From now on, this process ends when the one that started it has ended, however that was.

    This concerns processes of :func:`run_child` and of torch's launcher; all others go on without
    the shell that started them. On Linux the kernel sends SIGTERM, elsewhere on POSIX a thread
    looks once a second. On Windows nothing happens.

    Args:
        launcher: what started this process, as ``--launcher`` says.
    """
    named = os.environ.pop(PARENT, "")  # it is not that of our own children
    if os.name != "posix" or not (named or launcher == "pytorch"):
        return
    parent = os.getppid()
    if named.isdecimal() and int(named) != parent:
        sys.exit(f"error: process {named}, which started this one, has ended")
    if sys.platform == "linux" and _ask_kernel():
        if os.getppid() != parent:  # it ended in between
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
    """Whether this is the first of the processes that a launcher started, or the only one.

    Known before any of them has spoken to another.
    """
    ranks = ("RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK")
    return all(os.environ.get(rank, "0") == "0" for rank in ranks)


def run_child(command: Sequence[str], output: IO[str]) -> int:
    """Run a program that calls :func:`follow_parent`, and wait for it.

    Args:
        command: the program and its arguments.
        output: what it prints and complains goes here.

    Returns:
        Its exit status.
    """
    environment: Mapping[str, str] = {**os.environ, PARENT: str(os.getpid())}
    done = subprocess.run(command, stdout=output, stderr=output, env=environment)
    return done.returncode
