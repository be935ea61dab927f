"""Reading of the annotation files of datasets, with warnings about skipped annotations."""

from __future__ import annotations

import logging
import os

from mmengine.logging import print_log

from odise_mm.annotations.coco_json import CocoFile, read_coco
from odise_mm.errors import DatasetError
from odise_mm.utils.display import printable

LAYOUT = "docs/datasets.md and docs/training_data.md describe the expected files"


def read_annotations(path: str | os.PathLike, kind: str, **wanted: bool) -> CocoFile:
    """Read annotations in COCO's format and log what was skipped.

    Args:
        path: See :func:`odise_mm.annotations.coco_json.read_coco`, like the other arguments.
        kind: "panoptic" or "instance".
        wanted: ``boxes`` and ``masks``.

    Raises:
        DatasetError: If the file is missing or invalid.
    """
    if not path or not os.path.exists(path):
        missing = printable(os.fspath(path)) if path else "`ann_file` is empty"
        raise DatasetError(f"{missing}: no such annotation file; {LAYOUT}")
    content = read_coco(path, kind, **wanted)
    for note in content.notes:
        print_log(note, logger="current", level=logging.WARNING)
    return content
