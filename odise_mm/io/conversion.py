"""Panoptic files and results in the formats of other tools."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

from odise_mm.annotations.panoptic_io import iterate_coco_panoptic
from odise_mm.errors import ConfigError, OutputError, PanopticFileError
from odise_mm.io import FORMATS, LabelWriter
from odise_mm.structures import SegmentationResult
from odise_mm.utils.display import printable
from odise_mm.utils.files import read_json
from odise_mm.utils.outputs import check_folder, nested_stem, owned_folders, spelling, unused_stem
from odise_mm.vocabulary import Vocabulary

MARK = ".written_by_odise_mm"
"""File in a folder that :func:`convert` wrote and may therefore replace."""


def check_formats(names: Sequence[str]) -> None:
    """Check the names of formats, and that the packages that they need are installed.

    Raises:
        ConfigError: A name is unknown or repeated.
        OutputError: A package is missing.
    """
    for name in names:
        if name not in FORMATS:
            raise ConfigError(f"unknown format {name!r}; formats: {', '.join(sorted(FORMATS))}")
        if names.count(name) > 1:
            raise ConfigError(f"format {name!r} is named twice")
        FORMATS[name].check()


def check_targets(formats: Sequence[str], folder: str | os.PathLike) -> None:
    """Check, before long work, that :func:`convert` can write to a folder.

    Raises:
        OutputError: A folder of a format exists and was not written by :func:`convert`.
    """
    check_folder(folder)
    for name in formats:
        target = Path(folder) / name
        if not os.path.lexists(target):
            continue
        ours = target.is_dir() and not target.is_symlink() and (target / MARK).is_file()
        if not ours and not (target.is_dir() and not any(target.iterdir())):
            raise OutputError(
                f"{printable(target)} exists and was not written by this program; move it, or "
                "choose another folder"
            )


def convert(
    panoptic_json: str | os.PathLike,
    formats: Sequence[str],
    folder: str | os.PathLike,
    advance: Callable[[], object] = lambda: None,
) -> list[Path]:
    """Convert the results in a panoptic JSON file and its maps.

    Every format gets a folder of its name, which is complete or does not exist: files are first
    written beside it. A folder of an earlier conversion is replaced.

    Args:
        panoptic_json: File in COCO's panoptic format, with its folder of maps beside it. Both
            may come from any program.
        formats: Names in :data:`odise_mm.io.FORMATS`.
        folder: Folder for the folders of the formats.
        advance: Called after every image.

    Returns:
        The folders.

    Raises:
        ConfigError: Unknown format.
        PanopticFileError: The file or a map cannot be read.
        OutputError: The output would replace something else, a package is missing, or a result does
            not fit into a format.
    """
    check_formats(formats)
    check_targets(formats, folder)
    results = iterate_coco_panoptic(panoptic_json)
    first = next(results, None)  # checks the file
    maps = Path(panoptic_json).with_suffix("")

    def named() -> Iterator[tuple[SegmentationResult, str]]:
        for result in chain(() if first is None else (first,), results):
            name = os.path.relpath(result.files["panoptic"], maps)
            yield result, Path(name).with_suffix("").as_posix()
            advance()

    return _write(named(), _vocabulary_of(panoptic_json), formats, folder)


def write_labels(
    results: Iterable[SegmentationResult],
    vocabulary: Vocabulary,
    formats: Sequence[str],
    folder: str | os.PathLike,
    root: str | os.PathLike | None = None,
) -> list[Path]:
    """Write the results of an inferencer like :func:`convert`, without panoptic files between.

    The formats npz and parquet then contain probabilities and embeddings, if the results keep their
    queries.

    Args:
        results: The results. Those with an error are skipped.
        vocabulary: The classes of the results, from ``OpenVocabInferencer.make_vocabulary``.
        formats: Names in :data:`odise_mm.io.FORMATS`.
        folder: Folder for the folders of the formats.
        root: Folder to which the names of images are relative. None: names have no folders.

    Returns:
        The folders.

    Raises:
        ConfigError: Unknown format.
        OutputError: See :func:`convert`; or an image is not below ``root``.
    """
    check_formats(formats)
    check_targets(formats, folder)

    def named() -> Iterator[tuple[SegmentationResult, str]]:
        for number, result in enumerate((r for r in results if r.ok), start=1):
            name = f"image_{number:04d}"
            if result.image_path is not None:
                name = _relative_name(result.image_path, root)
            yield replace(result, image_name=name), nested_stem(name)

    return _write(named(), vocabulary, formats, folder)


def _relative_name(path: str, root: str | os.PathLike | None) -> str:
    if root is None:
        return os.path.basename(path)
    try:
        return Path(os.path.abspath(path)).relative_to(os.path.abspath(root)).as_posix()
    except ValueError:
        raise OutputError(
            f"{printable(path)} is not in {printable(root)}; choose another root"
        ) from None


class LabelFolders:
    """A folder for each format, complete or not there: files are first written beside it.

    Use it as a context manager: without :meth:`finish`, nothing is left.

    Args:
        vocabulary: The classes of the results.
        formats: Names in :data:`odise_mm.io.FORMATS`.
        folder: Folder for the folders of the formats.

    Raises:
        ConfigError: Unknown format.
        OutputError: A package is missing, or a folder was not written by this program.
    """

    def __init__(
        self, vocabulary: Vocabulary, formats: Sequence[str], folder: str | os.PathLike
    ) -> None:
        check_formats(formats)
        check_targets(formats, folder)
        self.vocabulary = vocabulary
        self.targets = {name: Path(folder) / name for name in formats}
        self._parts = {name: Path(folder) / f".{name}.part" for name in formats}
        self._writers: list[LabelWriter] = []
        self._stems: set[str] = set()

    def __enter__(self) -> LabelFolders:
        return self

    def __exit__(self, *error: object) -> None:
        for part in self._parts.values():
            shutil.rmtree(part, ignore_errors=True)

    def _begin(self) -> None:
        for name, part in self._parts.items():
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
            self._writers.append(FORMATS[name](part, self.vocabulary))

    def add(self, result: SegmentationResult, stem: str) -> None:
        """Write the segments of an image.

        Args:
            result: Result with a panoptic map; ``image_name`` is the name that the formats get.
            stem: Name of the image without extension; need not be unique.
        """
        if not self._writers:
            self._begin()
        stem = unused_stem(stem, self._stems)
        self._stems.add(spelling(stem))
        for writer in self._writers:
            writer.add(result, stem)

    def finish(self) -> list[Path]:
        """Write what concerns all images, replace earlier folders, and return the folders."""
        if not self._writers:
            self._begin()
        for writer in self._writers:
            writer.close()
        for name, part in self._parts.items():
            (part / MARK).touch()
            if self.targets[name].exists():
                shutil.rmtree(self.targets[name])
            os.replace(part, self.targets[name])
        return list(self.targets.values())


def _write(
    results: Iterable[tuple[SegmentationResult, str]],
    vocabulary: Vocabulary,
    formats: Sequence[str],
    folder: str | os.PathLike,
) -> list[Path]:
    """Write results and their names without extension, which need not be unique."""
    with (
        owned_folders([folder], "converting results"),
        LabelFolders(vocabulary, formats, folder) as labels,
    ):
        for result, stem in results:
            labels.add(result, stem)
        return labels.finish()


def _vocabulary_of(panoptic_json: str | os.PathLike) -> Vocabulary:
    """Return the classes of a checked file, in the order of its categories, as labels have it."""
    categories = read_json(panoptic_json, PanopticFileError)["categories"]
    names = [(c["name"], c.get("synonyms") or [c["name"]]) for c in categories]
    return Vocabulary(
        tuple(tuple(dict.fromkeys((name, *map(str, synonyms)))) for name, synonyms in names),
        tuple(bool(c["isthing"]) for c in categories),
        os.fspath(panoptic_json),
    )
