"""Segments as tables and arrays, for programs rather than labeling tools."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from odise_mm.errors import OutputError
from odise_mm.io.base import LabelWriter
from odise_mm.structures import SegmentationResult
from odise_mm.structures.geometry import encode_mask
from odise_mm.utils.files import atomic_writer
from odise_mm.vocabulary import Vocabulary


class NpzWriter(LabelWriter):
    """Writes ``STEM.npz`` per image: the panoptic map, and arrays with a row per segment.

    ``panoptic`` is (H, W) int32; ``id``, ``label``, ``name``, ``score``, ``area`` and ``is_thing``
    are the fields of the segments; ``box`` is (N, 4) int64, left, top, right and bottom, the latter
    two exclusive; ``class_names`` are the names of all K classes. If the result keeps its queries:
    ``probabilities``, (N, K + 1) float32, with void at the end, and ``embedding``, (N, C) float32,
    if the model makes embeddings.
    """

    def add(self, result: SegmentationResult, stem: str) -> None:
        """Write the file of an image."""
        rows = list(rows_of(result))
        kinds = dict(id=int, label=int, name=str, score=float, area=int, is_thing=bool)
        arrays: dict[str, Any] = {
            name: np.array([row[name] for row in rows], kind) for name, kind in kinds.items()
        }
        arrays["box"] = np.array([row["box"] for row in rows], int).reshape(-1, 4)
        arrays["class_names"] = np.array(self.vocabulary.names, str)
        arrays["panoptic"] = result.require_panoptic()
        for name, width in _widths(result).items():
            values = [row[name] for row in rows]
            arrays[name] = np.array(values, np.float32).reshape(-1, width)
        with atomic_writer(self.folder / f"{stem}.npz", durable=False) as file:
            np.savez_compressed(file, **arrays)


class JsonlWriter(LabelWriter):
    """Writes ``labels.jsonl`` with a line per image, in UTF-8.

    A line has ``image`` (file name), ``height``, ``width`` and ``segments``, a list. Its entries
    have the columns of :class:`ParquetWriter`; ``probabilities`` and ``embedding`` are left out if
    the result does not keep its queries.
    """

    def __init__(self, folder: Path, vocabulary: Vocabulary) -> None:
        super().__init__(folder, vocabulary)
        self.path = folder / "labels.jsonl"
        self.path.touch()

    def add(self, result: SegmentationResult, stem: str) -> None:
        """Write the line of an image."""
        segments = []
        for row in rows_of(result):
            known = {name: row[name].tolist() for name in _widths(result)}
            segments.append({**row, **known, "rle": _run_lengths(result, row["id"])})
        line = dict(image=self.image_name(result), height=result.height, width=result.width)
        with open(self.path, "a", encoding="utf-8", errors="backslashreplace") as file:
            print(json.dumps({**line, "segments": segments}, ensure_ascii=False), file=file)


class ParquetWriter(LabelWriter):
    """Writes ``segments.parquet`` with a row per segment.

    Columns: ``image`` (file name), ``height``, ``width``; ``id``, ``label``, ``name``, ``score``,
    ``area`` and ``is_thing`` of the segment; ``box`` (left, top, right and bottom, the latter two
    exclusive); ``rle``, the mask as COCO's compressed run lengths; ``probabilities`` and
    ``embedding`` as in :class:`NpzWriter`, null if the result does not keep its queries. The
    metadata of the schema has ``class_names``, a JSON list.
    """

    ROWS = 2000
    """Rows that are written together; more are not kept in memory."""

    def __init__(self, folder: Path, vocabulary: Vocabulary) -> None:
        super().__init__(folder, vocabulary)
        self.check()
        import pyarrow
        from pyarrow import parquet

        whole = pyarrow.int64()
        kinds = dict(image=pyarrow.string(), height=whole, width=whole, id=whole, label=whole)
        kinds |= dict(name=pyarrow.string(), score=pyarrow.float64(), area=whole)
        kinds |= dict(is_thing=pyarrow.bool_(), box=pyarrow.list_(whole, 4), rle=pyarrow.string())
        kinds |= dict.fromkeys(("probabilities", "embedding"), pyarrow.list_(pyarrow.float32()))
        names = json.dumps(vocabulary.names, ensure_ascii=False)
        self.schema = pyarrow.schema(kinds.items(), metadata=dict(class_names=names))
        self.pyarrow = pyarrow
        self.writer = parquet.ParquetWriter(folder / "segments.parquet", self.schema)
        self.rows: list[dict[str, Any]] = []

    @classmethod
    def check(cls) -> None:
        """Check that pyarrow is installed."""
        try:
            import pyarrow  # noqa: F401
        except ImportError as error:
            raise OutputError(
                f"parquet: the package pyarrow cannot be imported ({error}): "
                "pip install 'odise_mm[parquet]'"
            ) from error

    def add(self, result: SegmentationResult, stem: str) -> None:
        """Write or collect the segments of an image."""
        place = dict(image=self.image_name(result), height=result.height, width=result.width)
        for row in rows_of(result):
            self.rows.append(place | row | dict(rle=_run_lengths(result, row["id"])))
        if len(self.rows) >= self.ROWS:
            self.flush()

    def flush(self) -> None:
        """Write the collected rows."""
        self.writer.write_table(self.pyarrow.Table.from_pylist(self.rows, self.schema))
        self.rows = []

    def close(self) -> None:
        """Write the last rows and the end of the file."""
        self.flush()
        self.writer.close()


def rows_of(result: SegmentationResult) -> Iterator[dict[str, Any]]:
    """Yield the fields, the box and what the queries know of every segment that has pixels."""
    known = _widths(result)
    for segment in result.segments:
        if result.mask(segment).any():
            row = segment.to_dict() | dict(box=list(result.box(segment)))
            del row["track_id"]  # of videos
            if not row["evidence"]:  # without a memory
                del row["evidence"]
            if "probabilities" in known:
                row["probabilities"] = result.probabilities(segment)
            if "embedding" in known:
                row["embedding"] = result.embedding(segment)
            yield row


def _run_lengths(result: SegmentationResult, segment_id: int) -> str:
    """Return the mask of a segment as COCO's compressed run lengths."""
    return encode_mask(result.require_panoptic() == segment_id)["counts"].decode()


def _widths(result: SegmentationResult) -> dict[str, int]:
    """Return the columns that a result's queries can fill, and their lengths."""
    if result.queries is None:
        return {}
    embeddings = result.queries.embeddings
    widths = dict(probabilities=len(result.class_names) + 1)
    return widths if embeddings is None else widths | dict(embedding=embeddings.shape[1])
