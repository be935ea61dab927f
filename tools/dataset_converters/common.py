"""What all converters share: resumable work on files, atomic writing, reading, verification.

A converter is a list of :class:`Item` and a function ``work(item)`` that reads one raw file,
writes one output and returns what the data set's JSON file needs of it::

    with program():
        args = converter_parser(__doc__, "data/thing", ["train", "val"]).parse_args()
        facts = convert_all(items, work, "thing val", args.workers, journal=out / "val.journal")
        write_json(out / "val.json", ...)   # and then: remove the journal
        show_written("thing", [Row("val.json", "images", len(facts))])

Files are written under a temporary name and renamed, so that a file that is there is complete,
however the program ended. Imports no torch: worker processes start in a fraction of a second.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from odise_mm.annotations.coco_json import CocoFile, picture_name, read_coco, used_categories
from odise_mm.annotations.json_fields import FLAG, fault, shown
from odise_mm.annotations.label_maps import IGNORED, class_indices, read_label_map
from odise_mm.annotations.masks import clean_mask, to_rle
from odise_mm.annotations.panoptic_io import read_panoptic_png
from odise_mm.benchmarks.tables import Table, show
from odise_mm.errors import DatasetError, OdiseError
from odise_mm.utils import files
from odise_mm.utils.command_line import Parser, one_line_errors, positive_int
from odise_mm.utils.display import printable
from odise_mm.utils.files import atomic_writer, path_inside, regular_file, write_json
from odise_mm.utils.image import LABEL_FORMATS, MAX_LABEL_PIXELS, open_image, turned_hint
from odise_mm.utils.journal import Journal

INTERRUPTED = 130  # the shell's exit status after Ctrl-C
MADE = ".odise_mm_made.json"
"""File in the folder of a data set: names of what was written there by programs of ours."""
_PNG_END = b"IEND\xaeB`\x82"
_ORIENTATION, _TURNED = 0x0112, (5, 6, 7, 8)


# --- command line -------------------------------------------------------------------------------


def converter_parser(
    description: str, data_root: str, splits: Sequence[str] = ("val",), *default: str
) -> argparse.ArgumentParser:
    """The arguments that all converters have; a converter adds its own to the result.

    Args:
        description: the module's docstring.
        data_root: default of the positional argument ``data_root``.
        splits: choices of ``--splits``.
        default: the splits that are prepared when none is asked for; "val" if none are named.
    """
    parser = Parser(description)
    parser.add_argument(
        "data_root",
        metavar="DATA_ROOT",
        nargs="?",
        default=Path(data_root),
        type=Path,
        help=f"folder of the unpacked archive, where outputs go, too (default: {data_root})",
    )
    parser.add_argument(
        "--splits",
        nargs="+",
        choices=splits,
        default=list(default) or ["val"],
        metavar="SPLIT",
        help=f"one or several of: {' '.join(splits)} (default: {' '.join(default) or 'val'})",
    )
    parser.add_argument(
        "--workers",
        type=positive_int,
        default=os.cpu_count() or 1,
        help="processes (default: as many as there are cores)",
    )
    parser.add_argument(
        "--verify-only", action="store_true", help="write nothing, only check what was written"
    )
    return parser


@contextmanager
def program() -> Iterator[None]:
    """Around a converter's ``main``: errors and Ctrl-C end it with one line."""
    with one_line_errors():
        try:
            yield
        except KeyboardInterrupt:
            print("interrupted; the same command goes on where this one stopped", file=sys.stderr)
            sys.exit(INTERRUPTED)


@dataclass(frozen=True)
class Row:
    """A line of the table at the end: a file or folder, what it holds, and how many.

    ``expected``: how many there are in the provider's full set, where that is known; another
    count is pointed out below the table.
    """

    path: str | os.PathLike
    what: str
    count: int
    expected: int | None = None


def show_written(title: str, rows: Sequence[Row], notes: Sequence[str] = ()) -> None:
    """The one table at the end of a converter's run, and sentences below it."""
    cells = [[str(row.path), row.what, f"{row.count:,}"] for row in rows]
    odd = [
        f"{row.path}: {row.count:,} {row.what}; the full set has {row.expected:,}"
        for row in rows
        if row.expected not in (None, row.count)
    ]
    table = Table(title, ["file or folder", "holds", "count"], cells, [*odd, *notes])
    show([table], {}, "table")


# --- work on many files -------------------------------------------------------------------------


@dataclass(frozen=True)
class Item:
    """One file's work.

    Attributes:
        source: the raw file; errors name it, the journal knows it by its path.
        output: the file that ``work`` writes, if it writes one.
        data: whatever else ``work`` needs; anything that can be pickled.
    """

    source: Path
    output: Path | None = None
    data: Any = None


def convert_all(
    items: Sequence[Item],
    work: Callable[[Item], Any],
    description: str,
    workers: int = 1,
    *,
    journal: Path | None = None,
) -> list[Any]:
    """Run ``work(item)`` for all items, over processes, with a progress bar.

    Items that were done by an earlier run are skipped: those whose output is there and, with a
    journal, whose result is in it. The journal holds one JSON line per finished item; remove it
    (:func:`finish`) once the file that sums the results up is written.

    Args:
        items: what to do.
        work: a function of a module (it travels to other processes); with a journal, its results
            must be JSON values.
        description: in front of the bar.
        workers: processes; 1 works in this one.
        journal: where the results are kept for the next run; needed if they are used at all,
            because an item that is skipped without a journal has the result None.

    Returns:
        Results in the order of ``items``; None for skipped ones without a journal.

    Raises:
        DatasetError: an item failed. The message names the first one's source; whatever was
            finished before stays finished.
    """
    notes = None if journal is None else Journal(journal)
    known = _finished(notes)
    results: list[Any] = [None] * len(items)
    todo = []
    for index, item in enumerate(items):
        done = journal is None or str(item.source) in known
        if done and (item.output is not None or journal is not None) and is_complete(item.output):
            results[index] = known.get(str(item.source))
        else:
            todo.append(index)
    with _progress() as progress, notes or nullcontext():
        bar = progress.add_task(description, total=len(items), completed=len(items) - len(todo))
        pending = [items[index] for index in todo]
        with _mapped(partial(_guarded, work), pending, workers) as outcomes:
            for index, outcome in zip(todo, outcomes, strict=True):
                if isinstance(outcome, OdiseError):
                    raise outcome
                results[index] = outcome
                if notes is not None:
                    notes.add([str(items[index].source), outcome])
                progress.advance(bar)
    return results


def claim(root: Path, outputs: Sequence[Path], journals: Iterable[Path] = ()) -> None:
    """Make sure that nothing is replaced that a program of ours has not written.

    What ours have written stands in a file of the folder, :data:`MADE`. A journal that an
    interrupted run has left says the same.

    Args:
        root: the folder of the data set.
        outputs: files and folders below it that will be written.
        journals: those of the work that writes them.

    Raises:
        DatasetError: one of them is there and somebody else's.
    """
    note = root / MADE
    known = set(_names_made(note))
    names = {os.path.relpath(path, root): path for path in outputs}
    if not any(journal.is_file() for journal in journals):
        for name, path in names.items():
            if name not in known and _holds_something(path):
                raise DatasetError(
                    f"{printable(path)}: is there already, and was not written by this program, "
                    "which would replace it: move it away, or name another folder"
                )
    if not names.keys() <= known:
        write_json(note, sorted(known | names.keys()))


def _names_made(note: Path) -> list[str]:
    if not note.is_file():
        return []
    names = read_json(note)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DatasetError(
            f"{printable(note)}: not a list of names; remove it, and what this program is to write"
        )
    return names


def _holds_something(path: Path) -> bool:
    if path.is_dir():
        return next(os.scandir(path), None) is not None
    return path.exists() or path.is_symlink()


def finish(path: Path, content: Any, journal: Path) -> None:
    """Write the JSON file that the journal's results went into, then remove the journal."""
    write_json(path, content)
    Journal(journal).remove()


def _guarded(work: Callable[[Item], Any], item: Item) -> Any:
    """``work(item)``; what a user can set right comes back as an error that names the file."""
    try:
        return work(item)
    except (OdiseError, OSError) as error:
        text = str(error)
        return DatasetError(text if item.source.stem in text else f"{item.source}: {text}")


def is_complete(output: Path | None) -> bool:
    """Whether an output needs no work: written to its end (cheap for PNG files)."""
    if output is None:
        return True
    try:
        with open(output, "rb") as file:
            if output.suffix != ".png":
                return bool(file.read(1))
            file.seek(-len(_PNG_END), os.SEEK_END)
            return file.read() == _PNG_END
    except OSError:
        return False


@contextmanager
def _mapped(function: Callable, items: Sequence, workers: int) -> Iterator[Iterator]:
    workers = min(workers, len(items))
    if workers <= 1:
        yield map(function, items)
        return
    # "spawn": neither the bar's thread nor a test's torch is forked
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker)
    try:
        chunk = max(1, min(8, len(items) // (4 * workers)))
        yield pool.map(function, items, chunksize=chunk)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start_worker() -> None:
    """Ctrl-C is the parent's business, and a worker does not outlive a killed parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


@contextmanager
def progress_bar(description: str, total: int) -> Iterator[Callable[[], None]]:
    """A bar for a loop in this process; the block calls what it gets once per step."""
    with _progress() as progress:
        bar = progress.add_task(description, total=total)
        yield lambda: progress.advance(bar)


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )


def _finished(journal: Journal | None) -> dict[str, Any]:
    """Source -> result of the items that an earlier run finished."""
    lines = [] if journal is None else journal.read()
    return dict(line for line in lines if isinstance(line, list) and len(line) == 2)


# --- writing ------------------------------------------------------------------------------------


def write_png(path: str | os.PathLike, pixels: np.ndarray) -> None:
    """Write a PNG file, atomically: (H, W) uint8 or uint16, or (H, W, 3) uint8 RGB."""
    if pixels.dtype not in (np.uint8, np.uint16):
        raise TypeError(f"{path}: a PNG holds uint8 or uint16, not {pixels.dtype}")
    with atomic_writer(path, durable=False) as file:
        Image.fromarray(pixels).save(file, format="PNG")


# --- reading ------------------------------------------------------------------------------------


def read_json(path: str | os.PathLike) -> Any:
    """A JSON file's content; see :func:`odise_mm.utils.files.read_json`.

    Raises:
        DatasetError: missing, or not JSON.
    """
    return files.read_json(path, DatasetError, "file")


def rows_of(content: Any, key: str, path: str | os.PathLike, **kinds: str) -> list[dict]:
    """The objects of a list in a JSON file, with fields of the right types.

    Args:
        content: of the file.
        key: of the list.
        path: of the file, for messages.
        kinds: of fields that must be there, see :data:`odise_mm.annotations.json_fields.KINDS`.

    Raises:
        DatasetError: there is no such list, or an object is incomplete or of wrong types.
    """
    rows = content.get(key) if isinstance(content, dict) else None
    if not isinstance(rows, list):
        raise DatasetError(f"{path}: there is no list `{key}` in it")
    for place, row in enumerate(rows, start=1):
        problem = None if isinstance(row, dict) else f"is {shown(row)}, not an object"
        for field, kind in kinds.items():
            problem = problem or fault(row, field, kind)
        if problem:
            raise DatasetError(f"{path}: number {place} of `{key}` {problem}")
    return rows


def read_lines(path: str | os.PathLike) -> list[str]:
    """A text file's lines.

    Raises:
        DatasetError: missing, or not text in UTF-8.
    """
    path = regular_file(path, DatasetError, "file")
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path}: not text in UTF-8 ({error})") from error


@contextmanager
def parsing(path: str | os.PathLike, what: str = "annotations in COCO's format") -> Iterator[None]:
    """What the block misses in a JSON file's content, or finds odd there, is a DatasetError."""
    try:
        yield
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise DatasetError(f"{path}: not {what} ({error!r})") from error


def measured_mask(mask: Any, size: tuple[int, int]) -> tuple[dict, int, list[int]]:
    """Compressed run lengths, area and box of a mask in any of COCO's forms.

    Args:
        mask: polygons, or run lengths with counts as integers or as text; one of which nothing can
            be used is empty.
        size: the picture's height and width.

    Raises:
        DatasetError: it is none of these, or of another size; the file is not named.
    """
    from pycocotools import mask as masks

    usable = clean_mask(mask, size)
    if usable is None:
        code = masks.encode(np.zeros(size, np.uint8, order="F"))
    else:
        code = to_rle(usable, size)
    return code, int(masks.area(code)), [int(v) for v in masks.toBbox(code)]


def read_pixels(path: str | os.PathLike, modes: Sequence[str] | None = None) -> np.ndarray:
    """Numbers of a file whose colors stand for them; see also ``read_label_map``.

    Args:
        path: the file.
        modes: Pillow's modes that are right here, e.g. ``("RGB", "RGBA")``; None: any.

    Returns:
        (H, W) or (H, W, channels).

    Raises:
        DatasetError: missing, damaged, or of another mode.
    """
    limits = dict(formats=LABEL_FORMATS, max_pixels=MAX_LABEL_PIXELS)
    with open_image(path, **limits, error=DatasetError) as image:
        mode, pixels = image.mode, np.array(image)
    if modes is not None and mode not in modes:
        raise DatasetError(f"{path}: a picture of mode {mode} where {' or '.join(modes)} is right")
    return pixels


def image_size(path: str | os.PathLike) -> tuple[int, int]:
    """Height and width of a picture as it is loaded (turned upright), from its header.

    Raises:
        DatasetError: missing or not a picture.
    """
    with open_image(path, max_pixels=None, error=DatasetError) as image:  # nothing is decoded
        width, height = image.size
        if image.getexif().get(_ORIENTATION) in _TURNED:
            height, width = width, height
        return height, width


def need_folder(path: Path, where_from: str) -> Path:
    """``path`` if it is a folder.

    Args:
        path: part of the unpacked archive.
        where_from: which archive it comes from, e.g. ``"ADEChallengeData2016.zip"``.

    Raises:
        DatasetError: it is not there.
    """
    if not path.is_dir():
        raise DatasetError(f"{path}: no such folder; it comes from {where_from}, unpacked there")
    return path


def need_file(path: Path, where_from: str) -> Path:
    """``path`` if it is a file; see :func:`need_folder`."""
    if not path.is_file():
        raise DatasetError(f"{path}: no such file; it comes from {where_from}, unpacked there")
    return path


# --- verification -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verified:
    """What a verification counted."""

    images: int
    classes: int  # that occur
    segments: int = 0  # of panoptic and instance files
    notes: tuple[str, ...] = ()  # on what cannot be used


def same_size(labels: np.ndarray, path: Path, image: Path) -> None:
    """Raises a DatasetError where a map and its picture differ in size."""
    height, width = image_size(image)
    if labels.shape[:2] != (height, width):
        raise DatasetError(
            f"{path}: {labels.shape[1]} x {labels.shape[0]} pixels, but its picture {image} has "
            f"{width} x {height}" + turned_hint(labels.shape[:2], (height, width), image)
        )


def verify_semantic(
    pairs: Sequence[tuple[Path, Path]],
    num_classes: int,
    *,
    reduce_zero_label: bool = False,
    workers: int = 1,
    description: str = "verify labels",
) -> Verified:
    """Check label maps against their pictures: there, readable, of one size, known numbers.

    Args:
        pairs: (picture, label PNG).
        num_classes: labels are 0 to this - 1, or ignored: 255 in 8 bits, 65535 in 16.
        reduce_zero_label: labels are 1 to ``num_classes``, 0 ignored, as raw files have it.
        workers: processes.
        description: in front of the bar.

    Raises:
        DatasetError: no pair at all, or the first pair that is wrong, by name.
    """
    if not pairs:
        raise DatasetError("nothing to verify: no pictures were found")
    items = [Item(Path(label), data=Path(image)) for image, label in pairs]
    work = partial(_check_labels, num_classes=num_classes, from_one=reduce_zero_label)
    found = convert_all(items, work, description, workers)
    return Verified(len(pairs), len(set().union(*found)))


def _check_labels(item: Item, num_classes: int, from_one: bool) -> list[int]:
    numbers = read_label_map(item.source)
    same_size(numbers, item.source, item.data)
    labels = class_indices(numbers, item.source, num_classes, from_one)
    return [int(label) for label in np.unique(labels) if label != IGNORED]


def verify_panoptic(
    json_path: str | os.PathLike,
    folder: str | os.PathLike,
    images_folder: str | os.PathLike,
    *,
    check_areas: bool = True,
    every: int = 1,
    workers: int = 1,
    description: str = "verify panoptic",
) -> Verified:
    """Check panoptic annotations in COCO's format against their PNG files and pictures.

    Ids: unique over images and categories and within a picture; those of the JSON are in the PNG
    and the reverse; categories are known; a picture has one segment at most of a stuff class.
    Sizes: of JSON, PNG and picture alike; areas and boxes as in the PNG.

    Args:
        json_path: the JSON file.
        folder: of the PNG files.
        images_folder: of the pictures (``file_name`` of the JSON's images).
        check_areas: False for files whose areas and boxes somebody else computed.
        every: read every how-manieth PNG and picture only.
        workers: processes.
        description: in front of the bar.

    Raises:
        DatasetError: what is wrong first, by the file's name.
    """
    content = read_coco(json_path, "panoptic")
    annotations, images = content.annotations, content.images
    _not_empty(content)
    if len(annotations) != len(images):  # an image has one at most, and only listed ones have
        raise DatasetError(f"{json_path}: images and annotations are not one to one")
    for id_, category in content.categories.items():
        problem = fault(category, "isthing", FLAG)
        if problem:
            raise DatasetError(f"{json_path}: category {shown(id_)} {problem}")
    things = {id_: bool(category["isthing"]) for id_, category in content.categories.items()}
    items = []
    for annotation in annotations:
        image = images[annotation["image_id"]]
        where = f"{json_path}: image {shown(image['id'])}"
        picture = path_inside(images_folder, picture_name(image), DatasetError, where)
        png = path_inside(folder, annotation["file_name"], DatasetError, where)
        items.append(Item(png, data=(picture, image, annotation["segments_info"])))
    classes = used_categories(annotations)
    work = partial(_check_panoptic, things=things, check_areas=check_areas)
    found = convert_all(items[::every], work, description, workers)
    return Verified(len(images), len(classes), sum(found))


def _not_empty(content: CocoFile) -> None:
    for key in ("images", "categories"):
        if not getattr(content, key):
            raise DatasetError(f"{content.path}: '{key}' is empty")


def _check_size(path: Path, image: dict, shape: Iterable[int]) -> None:
    height, width = shape
    if (height, width) != (image["height"], image["width"]):
        raise DatasetError(
            f"{path}: {width} x {height} pixels; the JSON says {image['width']} x {image['height']}"
            + turned_hint((image["height"], image["width"]), (height, width), path)
        )


def _check_panoptic(item: Item, things: dict[int, bool], check_areas: bool) -> int:
    image_path, image, infos = item.data
    with parsing(item.source, "described completely by the JSON"):
        return _compare_segments(item.source, image_path, image, infos, things, check_areas)


def _compare_segments(
    path: Path,
    image_path: Path,
    image: dict,
    infos: list[dict],
    things: dict[int, bool],
    check_areas: bool,
) -> int:
    ids = read_panoptic_png(path)
    _check_size(path, image, ids.shape)
    _check_size(image_path, image, image_size(image_path))
    said = [info["id"] for info in infos]
    if len(set(said)) != len(said) or 0 in said:
        raise DatasetError(f"{path}: its segments have an id twice, or the id 0")
    drawn, areas = np.unique(ids, return_counts=True)
    area_of = {int(i): int(a) for i, a in zip(drawn, areas, strict=True) if i}
    for what, missing in (
        ("the JSON lacks", set(area_of) - set(said)),
        ("the PNG lacks", set(said) - set(area_of)),
    ):
        if missing:
            raise DatasetError(f"{path}: {what} segment {min(missing)}")
    stuff_seen = set()
    for info in infos:
        category = info["category_id"]
        if category not in things:
            raise DatasetError(f"{path}: segment {info['id']} has category {category}, "
                               "which is not in 'categories'")  # fmt: skip
        if not things[category] and category in stuff_seen:
            raise DatasetError(f"{path}: two segments of stuff category {category}")
        stuff_seen.add(category)
        if check_areas and (
            info["area"] != area_of[info["id"]] or info["bbox"] != box_of(ids == info["id"])
        ):
            raise DatasetError(f"{path}: segment {info['id']} has another area or box in "
                               "the JSON than in the PNG")  # fmt: skip
    return len(said)


def box_of(mask: np.ndarray) -> list[int]:
    """COCO's box x, y, width, height of a mask (H, W) with at least one pixel."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return [int(columns[0]), int(rows[0]), int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1]


def verify_instances(
    json_path: str | os.PathLike,
    images_folder: str | os.PathLike,
    *,
    workers: int = 1,
    tolerant: bool = False,
) -> Verified:
    """Check instance annotations in COCO's format: ids, known images and categories, picture
    sizes, and masks that fit their picture, area and box (run lengths; polygons: box inside).

    Args:
        json_path: the JSON file.
        images_folder: of the pictures.
        workers: processes.
        tolerant: of somebody else's file: masks that cannot be used are noted, not refused.

    Raises:
        DatasetError: what is wrong first, by name.
    """
    content = read_coco(json_path, "instance")
    _not_empty(content)
    if content.notes and not tolerant:
        raise DatasetError(content.notes[0])
    of_image: dict[Any, list[dict]] = {id_: [] for id_ in content.images}
    for annotation in content.annotations:
        if annotation["category_id"] not in content.categories:
            raise DatasetError(
                f"{json_path}: annotation {shown(annotation.get('id'))}: no category "
                f"{shown(annotation['category_id'])}"
            )
        of_image[annotation["image_id"]].append(annotation)
    items = []
    for id_, image in content.images.items():
        where = f"{json_path}: image {shown(id_)}"
        picture = path_inside(images_folder, picture_name(image), DatasetError, where)
        items.append(Item(picture, data=(str(json_path), image, of_image[id_])))
    convert_all(items, _check_instances, "verify instances", workers)
    classes = used_categories(content.annotations)
    notes = tuple(content.notes)
    return Verified(len(content.images), len(classes), len(content.annotations), notes)


def _check_instances(item: Item) -> None:
    json_path, image, annotations = item.data
    with parsing(f"{json_path}: an annotation of {item.source}", "complete"):
        size = image["height"], image["width"]
        _check_size(item.source, image, image_size(item.source))
        for annotation in annotations:
            try:
                _check_instance(annotation, size)
            except DatasetError as error:
                name = f"{json_path}: annotation {annotation.get('id')} of {item.source}"
                raise DatasetError(f"{name}: {error}") from error


def _check_instance(annotation: dict, size: tuple[int, int]) -> None:
    x, y, width, height = annotation["bbox"]
    if x < 0 or y < 0 or x + width > size[1] + 1 or y + height > size[0] + 1:
        raise DatasetError(f"its box {annotation['bbox']} leaves the picture")
    _, area, box = measured_mask(annotation["segmentation"], size)
    if isinstance(annotation["segmentation"], list):
        return  # polygons: area and box are the provider's
    if area != annotation["area"]:
        raise DatasetError(f"its mask has {area} pixels, its area says {annotation['area']}")
    if box != list(annotation["bbox"]):
        raise DatasetError("its box is not that of its mask")
