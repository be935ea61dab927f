"""Files of a training's state: found, read and written so that a kill or a full disk costs nothing.

A checkpoint appears under its name when it is complete, and never before: it is written to a
temporary file beside it, flushed to the disk and renamed.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from odise_mm.checkpoints.resuming import check_types
from odise_mm.checkpoints.safe_loading import load_training_state
from odise_mm.errors import CheckpointError
from odise_mm.utils.display import printable

LAST = "last_checkpoint"
"""File in the work directory that holds the path of the newest checkpoint, as in mmengine."""

_NUMBERED = re.compile(r"(iter|epoch)_(\d{1,18})\.pth")
_RESUMABLE = ("state_dict", "optimizer", "meta", "message_hub")


def latest_checkpoint(work_dir: str | os.PathLike[str]) -> Path | None:
    """The checkpoint that a training in ``work_dir`` goes on from; None if there is none.

    What ``last_checkpoint`` names is looked for in ``work_dir`` first, as folders are moved. Where
    that file is missing it is the newest, ``iter_N.pth`` of the highest N: whatever has such a name
    is complete.

    Raises:
        CheckpointError: ``last_checkpoint`` names a file that is gone.
    """
    note = Path(work_dir) / LAST
    if not note.is_file():
        return _newest(Path(work_dir))
    named = Path(note.read_text(encoding="utf-8", errors="replace").replace("\0", "").strip())
    for path in (Path(work_dir) / named.name, named):
        if path.is_file():
            return path
    newest = _newest(Path(work_dir))
    others = f" (the newest there is {newest.name})" if newest else ""
    raise CheckpointError(
        f"{note} names {printable(named)}, which is not there: give the checkpoint to resume from "
        f"by its path{others}, or choose another work directory to start from the beginning"
    )


def _newest(folder: Path) -> Path | None:
    numbers = {
        (match[1] == "iter", int(match[2])): path
        for path in folder.glob("*.pth")
        if (match := _NUMBERED.fullmatch(path.name)) and path.is_file()
    }
    return numbers[max(numbers)] if numbers else None


def read_training_state(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A checkpoint with everything that resuming needs, on the CPU; no code in it is run.

    Raises:
        CheckpointError: missing, damaged, weights without the state of a training, or a state
            with something else than what a training puts there.
    """
    if not os.path.lexists(path):
        raise CheckpointError(f"there is no checkpoint {path} to resume from")
    try:
        state = load_training_state(path)
    except CheckpointError as err:
        raise CheckpointError(
            f"{path} cannot be resumed from: it is damaged or no checkpoint of a training ({err})"
        ) from err
    missing = [key for key in _RESUMABLE if not isinstance(state, dict) or key not in state]
    if missing:
        raise CheckpointError(
            f"{path} cannot be resumed from, as it has no {', '.join(missing)}: it holds weights, "
            "not the state of a training; to start from its weights set load_from"
        )
    check_types(state, os.fspath(path))
    return state
