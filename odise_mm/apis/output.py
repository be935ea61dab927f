"""Writing of the inferencer's results: drawn images, and panoptic maps in COCO's format."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from mmengine.config import Config

from odise_mm.annotations.panoptic_io import (
    CocoPanopticWriter,
    VocabularyLike,
    digest_of,
    read_panoptic_png,
)
from odise_mm.apis.sources import Source
from odise_mm.errors import OutputError, PanopticFileError
from odise_mm.structures import Segment, SegmentationResult
from odise_mm.utils.display import printable
from odise_mm.utils.files import FolderLock, path_inside, read_json, remove_leftovers
from odise_mm.utils.journal import Journal
from odise_mm.utils.outputs import (
    InputFiles,
    check_folder,
    check_outputs,
    image_path,
    is_ours,
    nested_stem,
    refuse_foreign,
    spelling,
    unused_stem,
    write_image,
)
from odise_mm.version import __version__

DESCRIPTION = "open-vocabulary panoptic segmentation by odise_mm"
_START_OVER = "start over with --overwrite (overwrite=True in Python), or choose another folder"


class OutputFolder:
    """Layout of a folder of results, and checks of what may be written to it.

    Args:
        path: path of the folder.
        inputs: files that the run reads; they are never replaced.
        overwrite: whether files that this package did not write may be replaced.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        inputs: InputFiles | None = None,
        overwrite: bool = False,
    ) -> None:
        self.path = Path(path)
        self.json = self.path / "panoptic.json"
        self.maps = self.path / "panoptic"
        self.images = self.path / "vis"
        self.journal = Journal(self.path / "panoptic.journal")
        self.lock = FolderLock(self.path, "writing results of images")
        self.inputs = inputs or InputFiles()
        self.overwrite = overwrite

    def check(self, sources: Sequence[Source] | None, draw: bool) -> None:
        """Raise if results cannot be written; meant to be called before the work starts.

        Args:
            sources: the images of the run, if they are known.
            draw: whether drawn images are written as well.

        Raises:
            OutputError: an output would replace an input, a folder or a file that this package did
                not write, cannot be written, or another program is writing to the folder.
        """
        for folder in (self.path, self.maps, self.images):
            check_folder(folder)
        for source in sources or ():
            self.inputs.add(source.path)
        check_outputs([self.json, self.journal.path], self.inputs)
        if self.json.exists() and self.json.stat().st_size and not self.overwrite:
            if self.earlier_index() is None:
                raise OutputError(
                    f"{printable(self.json)}: already exists and was not written by this program; "
                    f"{_START_OVER}"
                )
        for stem in _stems(sources or ()):
            for path in (self.maps / f"{stem}.png", image_path(self.images, stem))[: 1 + draw]:
                check_folder(path.parent)
                self.claim(path)
        with self.lock:
            pass

    def claim(self, path: Path) -> None:
        """Raise if a map or an image must not be written to a path.

        Raises:
            OutputError: it would replace an input, or a file that this package did not write.
        """
        self.inputs.refuse(path)
        if not self.overwrite:
            refuse_foreign(path)

    def earlier_index(self) -> dict | None:
        """Return the content of ``panoptic.json``; None if this package has not written one."""
        with suppress(PanopticFileError):
            content = read_json(self.json, PanopticFileError)
            if isinstance(content, dict) and isinstance(content.get("info"), dict):
                return content if content["info"].get("description") == DESCRIPTION else None
        return None

    def earlier_stems(self) -> set[str]:
        """Return the names, without extension, of the maps in an earlier run's JSON file."""
        annotations = (self.earlier_index() or {}).get("annotations")
        if not isinstance(annotations, list):
            return set()
        stems = set()
        for annotation in annotations:
            with suppress(PanopticFileError, AttributeError):
                path_inside(self.maps, name := annotation.get("file_name"), PanopticFileError, "")
                stems.add(os.path.splitext(name)[0])
        return stems

    def remove(self, stem: str, kept: Collection[str]) -> None:
        """Remove the files that an earlier run wrote for an image, except those of this run.

        Args:
            stem: name of the image's map without extension.
            kept: :func:`spelling` of this run's files.
        """
        candidates = [self.maps / f"{stem}.png", image_path(self.images, stem)]
        for path in (*candidates, self.images / f"{stem}.png"):
            with suppress(OutputError, FileNotFoundError):
                self.inputs.refuse(path)
                if spelling(str(path)) not in kept and is_ours(path):
                    path.unlink()
                    _remove_empty(path.parent, {self.maps, self.images})


@dataclass
class _Finished:
    """An entry of the journal: an image whose files are written."""

    position: int
    source: list[Any] | None
    stem: str
    image: dict[str, Any]
    annotation: dict[str, Any]
    scores: list[float]
    vis: str | None


class ResultWriter:
    """Writer of the results of one run to a folder, which can have only one writer at a time.

    Writes ``vis/NAME.jpg`` with the drawn segments, and ``panoptic/NAME.png`` and
    ``panoptic.json`` in COCO's panoptic format. NAME is the image's file name without extension,
    with its folders below the folder that contains all images of the run, and with a number if
    several images have the same name. Without ``sources``, NAME has no folders.

    The JSON file is written when the ``with`` block ends. A run that is interrupted, even by a
    kill, leaves ``panoptic.journal``, with which the next run with the same settings can continue
    (``resume``). The JSON file of an interrupted run lists the finished images, unless there is one
    of an earlier run: that is kept until a run is complete, which then also removes the other files
    of the earlier run.

    Args:
        out_dir: target folder; created if it is missing.
        vocabulary: class names for the categories in the JSON file.
        random_weights: whether the model has random weights; noted in the JSON file's ``info``.
        sources: the images of the run; None if they are not known beforehand.
        inputs: other files that the run reads: class names, weights, ...
        settings: descriptions of all settings that the results depend on, by name.
        draw: whether drawn images will be written.
        resume: whether to continue an interrupted run with the same settings.
        overwrite: whether to replace files that this package did not write, and to discard an
            interrupted run.

    Raises:
        OutputError: see :meth:`OutputFolder.check`; or ``resume`` is set and the interrupted run
            has other settings.
    """

    def __init__(
        self,
        out_dir: str | os.PathLike,
        vocabulary: VocabularyLike,
        *,
        random_weights: bool = False,
        sources: Sequence[Source] | None = None,
        inputs: InputFiles | None = None,
        settings: Mapping[str, str] | None = None,
        draw: bool = True,
        resume: bool = False,
        overwrite: bool = False,
    ) -> None:
        self.out_dir = Path(out_dir)
        self._folder = OutputFolder(out_dir, inputs, overwrite)
        self._vocabulary = vocabulary
        self._random_weights = random_weights
        self._total = None if sources is None else len(sources)
        self._root = common_root(sources or ())
        self._settings = dict(settings or {}, images=_describe(sources))
        self._resume = resume
        self._origins: list[list[Any] | None] = []
        self._added = 0
        self._written = 0
        self._stems: set[str] = set()
        self._files: set[str] = set()
        self._finished: dict[int, _Finished] = {}
        self._folder.check(sources, draw)
        self._unfinished()
        info = dict(description=DESCRIPTION)
        if random_weights:
            info["random_weights"] = "no trained weights were given: these results mean nothing"
        self._coco = CocoPanopticWriter(self._folder.json, vocabulary, info=info)

    # --- the run's journal ----------------------------------------------------------------------

    def _unfinished(self) -> tuple[dict[str, Any] | None, list[_Finished]]:
        """Return the journal's head of an interrupted run (None if there is none), and its images.

        Raises:
            OutputError: ``resume`` is set and the run has other settings.
        """
        lines = [line for line in self._folder.journal.read() if isinstance(line, dict)]
        if not lines or "settings" not in lines[0]:
            return None, []
        finished = []
        for line in lines[1:]:
            with suppress(TypeError):  # written by another version of this package
                finished.append(_Finished(**line))
        if self._resume:
            self._refuse_other(lines[0]["settings"], len(finished))
        return lines[0], finished

    def _refuse_other(self, settings: Any, count: int) -> None:
        before = settings if isinstance(settings, dict) else {}
        other = [k for k in {**before, **self._settings} if before.get(k) != self._settings.get(k)]
        if other:
            lines = [f"{k} ({before.get(k)}; now {self._settings.get(k)})" for k in other]
            raise OutputError(
                f"{printable(self.out_dir)}: contains {count} images of an interrupted run with "
                f"different settings: {printable(', '.join(lines), limit=600)}; use the same "
                f"command to continue that run, {_START_OVER}"
            )

    def __enter__(self) -> ResultWriter:
        self._folder.lock.acquire()
        try:
            head, finished = self._unfinished()
            if head is not None and self._resume:
                self._finished = {entry.position: entry for entry in finished}
                self._stems = {spelling(entry.stem) for entry in finished}
            else:
                head = self._begin_journal(head, finished)
        except BaseException:
            self._folder.lock.release()
            raise
        remove_leftovers(self.out_dir)
        for folder in (self._folder.maps, self._folder.images):
            remove_leftovers(folder, below=True)
        self._stale = head["replaces"]
        self._is_first = head["is_first"]
        return self

    def _begin_journal(
        self, dropped: dict[str, Any] | None, finished: Sequence[_Finished]
    ) -> dict[str, Any]:
        """Start a new journal, replacing that of an interrupted run, and return its head."""
        stale = self._folder.earlier_stems() | {entry.stem for entry in finished}
        if dropped is not None:
            stale |= set(dropped["replaces"])
        head = dict(
            settings=self._settings,
            replaces=sorted(stale),
            is_first=not self._folder.json.exists(),
        )
        self._folder.journal.remove()
        self._folder.journal.add(head)
        return head

    def begin(self, source: Source) -> SegmentationResult | None:
        """Return the result of an image if an earlier run finished it; None otherwise.

        Must be called for all images in order, before they are segmented.

        Returns:
            The result, restored from its files, without semantic map and instances. It must be
            passed to :meth:`add` like other results.
        """
        position = len(self._origins)
        origin = _origin(source)
        self._origins.append(origin)
        self._folder.inputs.add(source.path)
        entry = self._finished.get(position)
        if entry is None:
            return None
        result = self._restored(entry, source) if origin and origin == entry.source else None
        if result is None:
            del self._finished[position]
            self._stems.discard(spelling(entry.stem))
        return result

    def _restored(self, entry: _Finished, source: Source) -> SegmentationResult | None:
        path = self._folder.maps / f"{entry.stem}.png"
        drawing = None if entry.vis is None else self._folder.images / entry.vis
        if drawing is not None and not is_ours(drawing):
            return None
        try:
            ids = read_panoptic_png(path)
        except PanopticFileError:
            return None
        if digest_of(ids) != entry.annotation["ids_sha256"]:
            return None
        names = tuple(synonyms[0] for synonyms in self._vocabulary.synonyms)
        category_ids = self._coco.category_ids
        segments = [
            Segment.from_info(
                {
                    **info,
                    "category_id": (label := category_ids.index(info["category_id"])),
                    "isthing": self._vocabulary.is_thing[label],
                    "score": score,
                },
                names,
            )
            for info, score in zip(entry.annotation["segments_info"], entry.scores, strict=True)
        ]
        files = dict(panoptic=str(path), json=str(self._folder.json))
        if drawing is not None:
            files["vis"] = str(drawing)
        return SegmentationResult(
            image_path=source.path,
            image_name=source.name,
            height=ids.shape[0],
            width=ids.shape[1],
            panoptic=ids,
            segments=segments,
            class_names=names,
            random_weights=self._random_weights,
            files=files,
        )

    # --- the results ----------------------------------------------------------------------------

    def add(self, result: SegmentationResult, drawing: np.ndarray | None = None) -> None:
        """Write one result and store the paths of its files in ``result.files``.

        Must be called in the order of the images.

        Args:
            result: the result; skipped if it has an error.
            drawing: image with drawn segments to write as well, (H, W, 3) uint8 BGR.

        Raises:
            OutputError: a file would replace an input, or a file that this package did not write.
            OSError: a file cannot be written.
            MemoryError: out of memory; no files of this result are left, and others can be added.
        """
        position = self._added
        self._added += 1
        entry = self._finished.pop(position, None)
        if entry is not None:
            self._written += 1
            self._note(entry)
        elif result.ok:
            self._written += 1
            self._write(position, result, drawing)

    def _note(self, entry: _Finished) -> None:
        """Include an image that an earlier run finished in the JSON file."""
        self._coco.note(entry.image, entry.annotation)
        self._files.add(spelling(str(self._folder.maps / f"{entry.stem}.png")))
        if entry.vis is not None:
            self._files.add(spelling(str(self._folder.images / entry.vis)))

    def _write(self, position: int, result: SegmentationResult, drawing: np.ndarray | None) -> None:
        name = name_below(self._root, result.image_path)
        stem = unused_stem(nested_stem(name or f"image_{self._written:04d}"), self._stems)
        self._stems.add(spelling(stem))
        try:
            vis = self._write_files(stem, name, result, drawing)
        except MemoryError:
            self._discard(result)
            raise
        if result.panoptic is None:
            return
        image, annotation = self._coco.last()
        kept = {info["id"] for info in annotation["segments_info"]}
        entry = _Finished(
            position=position,
            source=self._origins[position] if position < len(self._origins) else None,
            stem=stem,
            image=image,
            annotation=annotation,
            scores=[float(s.score) for s in result.segments if s.id in kept],
            vis=None if vis is None else vis.relative_to(self._folder.images).as_posix(),
        )
        self._folder.journal.add(vars(entry))

    def _write_files(
        self, stem: str, name: str | None, result: SegmentationResult, drawing: np.ndarray | None
    ) -> Path | None:
        """Write map and drawing, and store their paths in ``result.files`` and ``_files``.

        Returns:
            Path of the drawing; None if there is none.
        """
        if result.panoptic is not None:
            self._folder.claim(self._folder.maps / f"{stem}.png")
        vis = None
        if drawing is not None:
            self._folder.claim(image_path(self._folder.images, stem, drawing.shape))
            vis = write_image(self._folder.images, stem, drawing)
            result.files["vis"] = str(vis)
            self._files.add(spelling(str(vis)))
        if result.panoptic is not None:
            result.files["panoptic"] = str(self._folder.maps / f"{stem}.png")
            path = self._coco.add(result, stem, image_name=name)
            result.files["json"] = str(self._folder.json)
            self._files.add(spelling(str(path)))
        return vis

    def _discard(self, result: SegmentationResult) -> None:
        """Remove the files of a result that could not be written completely."""
        for path in map(result.files.pop, {"vis", "panoptic"} & result.files.keys()):
            Path(path).unlink(missing_ok=True)
            self._files.discard(spelling(path))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self._close(kind is None or self._added == self._total)
        finally:
            self._folder.journal.close()
            self._folder.lock.release()

    def _close(self, complete: bool) -> None:
        for _, entry in sorted(self._finished.items()):  # images after the last one of this run
            self._note(entry)
        found = len(self._coco) > 0
        if (found and (complete or self._is_first)) or (complete and self._is_first):
            self._coco.close()
        if complete and found:
            for stem in self._stale:
                self._folder.remove(stem, self._files)
        if complete or not found:
            self._folder.journal.remove()


def _stems(sources: Sequence[Source]) -> Iterator[str]:
    """Yield the names of the outputs, assuming that all images can be used."""
    used: set[str] = set()
    root = common_root(sources)
    for count, source in enumerate(sources, start=1):
        name = name_below(root, source.path) or f"image_{count:04d}"
        stem = unused_stem(nested_stem(name), used)
        used.add(spelling(stem))
        yield stem


def common_root(sources: Sequence[Source]) -> str | None:
    """Return the deepest folder that contains the roots of all existing files; None without one."""
    there = (source for source in sources if source.path and os.path.isfile(source.path))
    roots = {os.path.abspath(source.root) for source in there if source.root is not None}
    with suppress(ValueError):  # there are none, or they are on different drives
        return os.path.commonpath(roots)
    return None


def name_below(root: str | None, path: str | None) -> str | None:
    """Return the name of a file relative to a folder, with slashes.

    Files that are not below it (without a folder, or through ``..`` in a pattern) have no folders.
    """
    if path is None:
        return None
    with suppress(ValueError):
        if root is not None and path != root:
            return Path(os.path.abspath(path)).relative_to(root).as_posix()
    return os.path.basename(path)


def _remove_empty(folder: Path, kept: Collection[Path]) -> None:
    """Remove a folder and its parents up to the kept ones, as far as they are empty."""
    with suppress(OSError):  # not empty
        while folder not in kept:
            folder.rmdir()
            folder = folder.parent


def _origin(source: Source) -> list[Any] | None:
    """Return path, size and modification time of an image, to detect changes of the file."""
    if source.path is None:
        return None
    with suppress(OSError, ValueError):
        info = os.stat(source.path)
        return [os.path.abspath(source.path), info.st_size, info.st_mtime_ns]
    return None


def _describe(sources: Sequence[Source] | None) -> str:
    """Describe all images of a run in one line."""
    if sources is None:
        return "not known beforehand"
    paths = [s.name if s.path is None else os.path.abspath(s.path) for s in sources]
    first = f" from {paths[0]}" if paths else ""
    return f"{len(paths)}{first}, {digest(paths)}"


def digest(value: Any) -> str:
    """Return a hash of a value, 12 hexadecimal digits, to detect changes."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


_DRAWN = {False: "yes", True: "with legends", None: "with legends if needed"}
_FILLED = {"class": "", "mean": ", in mean colors"}


def describe_settings(
    cfg: Config,
    weights: Iterable[str | os.PathLike | None],
    vocabulary: VocabularyLike,
    precision: str,
    draw: bool,
    legend: bool | None,
    fill: str,
    test_cfg: Mapping[str, Any],
    times: bool = True,
) -> dict[str, str]:
    """Describe all settings, other than the images, that results depend on.

    Args:
        cfg: config with model and test pipeline.
        weights: files, folders and hub names of the weights.
        vocabulary: class names of the run.
        precision: precision of the frozen parts.
        draw: whether images are drawn.
        legend: whether drawn images have a legend; None: if needed.
        fill: color of the segments in drawn images, "class" or "mean".
        test_cfg: the model's settings for results, and those of the call.
        times: whether weights files with other modification times are others. Copies on several
            machines have different ones.

    Returns:
        Descriptions by name of the setting.
    """
    names = list(zip(vocabulary.synonyms, vocabulary.is_thing, strict=True))
    shown = "; ".join(", ".join(synonyms) for synonyms, _ in names)
    files = [os.fspath(file) for file in weights if file is not None]
    return dict(
        config=f"{cfg.filename}, {digest([cfg.get('model'), cfg.get('test_pipeline')])}",
        weights=f"{', '.join(files) or 'none'}, {digest([_state(file, times) for file in files])}",
        names=f"{printable(shown, limit=80)}, {digest(names)}",
        precision=precision,
        images_drawn=_DRAWN[legend] + _FILLED[fill] if draw else "no",
        test_cfg=", ".join(
            f"{key}={value}" for key, value in sorted(test_cfg.items()) if key != "keep_queries"
        ),
        version=__version__,
    )


def _state(path: str, times: bool) -> list[Any]:
    """Return names, sizes and modification times of a file or of all files in a folder."""
    state: list[Any] = [path]
    paths = sorted(Path(path).rglob("*")) if os.path.isdir(path) else [Path(path)]
    for file in paths:
        with suppress(OSError, ValueError):  # a hub name
            info = file.stat()
            state.append([file.name, info.st_size, *[info.st_mtime_ns] * times])
    return state
