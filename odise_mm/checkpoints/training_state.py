"""Finding and reading of the checkpoints of a training run.

A file with the name of a checkpoint is always complete: checkpoints are written to a temporary file
in the same folder, flushed to disk and then renamed.
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
    """Return the checkpoint to resume a run in ``work_dir`` from; None if there is none.

    The file that ``last_checkpoint`` names is searched in ``work_dir`` first, because folders may
    be moved. Without ``last_checkpoint``, the newest checkpoint is used: ``iter_N.pth`` with the
    highest N.

    Raises:
        CheckpointError: ``last_checkpoint`` names a file that does not exist.
    """
    note = Path(work_dir) / LAST
    if not note.is_file():
        return _newest(Path(work_dir))
    named = Path(note.read_text(encoding="utf-8", errors="replace").replace("\0", "").strip())
    for path in (Path(work_dir) / named.name, named):
        if path.is_file():
            return path
    newest = _newest(Path(work_dir))
    others = f" (the newest in this folder is {newest.name})" if newest else ""
    raise CheckpointError(
        f"{note} names {printable(named)}, which does not exist: give the path of the checkpoint "
        f"to resume from{others}, or choose another work directory to start from the beginning"
    )


def _newest(folder: Path) -> Path | None:
    numbers = {
        (match[1] == "iter", int(match[2])): path
        for path in folder.glob("*.pth")
        if (match := _NUMBERED.fullmatch(path.name)) and path.is_file()
    }
    return numbers[max(numbers)] if numbers else None


def read_training_state(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a checkpoint to resume from to the CPU, without running code from it.

    Raises:
        CheckpointError: the checkpoint is missing or damaged, contains only weights, or has
            entries of unexpected types.
    """
    if not os.path.lexists(path):
        raise CheckpointError(f"no checkpoint {path} to resume from: check the path")
    try:
        state = load_training_state(path)
    except CheckpointError as err:
        raise CheckpointError(
            f"{path} cannot be resumed from: it is damaged or not a training checkpoint ({err})"
        ) from err
    missing = [key for key in _RESUMABLE if not isinstance(state, dict) or key not in state]
    if missing:
        raise CheckpointError(
            f"{path} cannot be resumed from, because it has no {', '.join(missing)}: it contains "
            "only weights, not a training state; to start from its weights, set load_from"
        )
    check_types(state, os.fspath(path))
    return state
