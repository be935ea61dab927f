"""Annotation files of datasets: looked for, read, and what was left out of them logged."""

from __future__ import annotations

import logging
import os

from mmengine.logging import print_log

from odise_mm.annotations.coco_json import CocoFile, read_coco
from odise_mm.errors import DatasetError
from odise_mm.utils.display import printable

LAYOUT = "docs/datasets.md and docs/training_data.md say what belongs where"


def read_annotations(path: str | os.PathLike, kind: str, **wanted: bool) -> CocoFile:
    """Annotations in COCO's format; the log says what was left out.

    Args:
        path, kind, wanted: see :func:`odise_mm.annotations.coco_json.read_coco`.

    Raises:
        DatasetError: there is no such file, or it is wrong.
    """
    if not path or not os.path.exists(path):
        missing = printable(os.fspath(path)) if path else "`ann_file` is empty"
        raise DatasetError(f"{missing}: no such annotation file; {LAYOUT}")
    content = read_coco(path, kind, **wanted)
    for note in content.notes:
        print_log(note, logger="current", level=logging.WARNING)
    return content
