"""ADE20K with 847 classes: semantic label maps from the full release (ADE20K_2021_17_01).

The input is the unpacked release (index_ade20k.pkl, images/ADE/{training,validation}/...). The
outputs are annotations_847/validation/..., 16-bit PNG files of class indices (65535: ignored) in
the same folders as the images, and ade847.txt, the classes, one "index:name,synonym" per line.

The classes are the object names of the index that occur as objects (not only as parts) in both the
training and the validation images, in the order of the index. This is the rule that MaskFormer
states for its 847 classes (arXiv 2107.06278, section 4). To use a published list exactly, pass it
with --classes. Each line has one class: "name, synonym" as in the index, its number in the index,
or "id:name,synonym" as in OpenSeg's ade20k_847.txt.

Example:
    python tools/dataset_converters/ade20k_full.py data/ADE20K_2021_17_01
"""

from __future__ import annotations

import argparse
import pickle
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from odise_mm.annotations.json_fields import LENGTH, TEXT
from odise_mm.converters.claims import claim
from odise_mm.converters.files import (
    need_file,
    need_folder,
    parsing,
    read_json,
    read_lines,
    read_pixels,
    rows_of,
    write_png,
)
from odise_mm.converters.program import Row, alone_in, converter_parser, show_written
from odise_mm.converters.verification import same_size, verify_semantic
from odise_mm.converters.work import Item, convert_all
from odise_mm.errors import DatasetError
from odise_mm.utils.display import printable
from odise_mm.utils.files import path_inside, write_text

FOLDERS = {"train": "training", "val": "validation"}
EXPECTED = {"train": 25574, "val": 2000}
PUBLISHED_CLASSES = 847
IGNORED = 65535
UNPACK = "unpack ADE20K_2021_17_01.zip"


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = converter_parser(__doc__, "data/ADE20K_2021_17_01", list(FOLDERS))
    parser.add_argument(
        "--classes",
        type=Path,
        metavar="FILE",
        help="list of classes, one per line: a name in the index, or its number there (from 1)",
    )
    return parser.parse_args(argv)


# --- the release's index --------------------------------------------------------------------------


class _DataUnpickler(pickle.Unpickler):
    """Unpickler for dicts, lists, text, numbers and NumPy arrays.

    It refuses pickles that need any other class or function, because they could run code.
    """

    _ALLOWED = {
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        *(
            (f"numpy.{core}.{module}", name)
            for core in ("core", "_core")
            for module, name in (
                ("multiarray", "_reconstruct"),
                ("multiarray", "scalar"),
                ("numeric", "_frombuffer"),
            )
        ),
        ("_codecs", "encode"),  # bytes in pickles of protocol 2
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"it needs {module}.{name}, which is not plain data")
        # NumPy 2 renamed the module: read pickles of both versions with both versions
        module = module.replace("numpy._core", "numpy.core")
        if hasattr(np, "_core"):
            module = module.replace("numpy.core", "numpy._core")
        return super().find_class(module, name)


@dataclass(frozen=True)
class Index:
    """The part of the release's index that the conversion needs.

    Attributes:
        names: Object names; number n of a label map is ``names[n - 1]``.
        images: Path of every image, relative to the release's folder.
        presence: (names, images) bool array: whether the name occurs as an object in the image.
    """

    names: list[str]
    images: list[PurePosixPath]
    presence: np.ndarray

    def of_split(self, split: str) -> list[int]:
        """Return the indices in ``images`` of the images of a split."""
        folder = PurePosixPath("images", "ADE", FOLDERS[split])
        return [i for i, path in enumerate(self.images) if path.is_relative_to(folder)]


def read_index(path: Path) -> Index:
    """Read index_ade20k.pkl without running code that a pickle may contain.

    Raises:
        DatasetError: The file is missing, is not the release's index, or contains more than plain
            data.
    """
    need_file(path, UNPACK)
    try:
        with open(path, "rb") as file:
            content = _DataUnpickler(file).load()
    except Exception as error:  # a damaged pickle can raise almost anything
        raise DatasetError(f"{path}: cannot be read ({error}); get the release again") from error
    try:
        names = [", ".join(pieces(str(name))) for name in content["objectnames"]]
        # drop the first folder, the release's own, which the user may have renamed
        images = [
            _inside(path, "/".join([*PurePosixPath(str(folder)).parts[1:], str(file)]))
            for folder, file in zip(content["folder"], content["filename"], strict=True)
        ]
        counts, parts = (np.asarray(content[key]) for key in ("objectPresence", "objectIsPart"))
        presence = counts > parts
    except DatasetError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise DatasetError(f"{path}: not the index of the release ({error!r})") from error
    if not (counts.shape == parts.shape == (len(names), len(images))):
        raise DatasetError(
            f"{path}: objectPresence {counts.shape} and objectIsPart {parts.shape} do not fit "
            f"{len(names)} names and {len(images)} images"
        )
    return Index(names, images, presence)


def pieces(name: str) -> list[str]:
    """Split a name at commas; whitespace is normalized and empty parts are dropped."""
    return [piece for piece in (" ".join(text.split()) for text in name.split(",")) if piece]


def _inside(index: Path, name: str) -> PurePosixPath:
    """Return an image's relative path; it must stay in the release's folder.

    The paths of the label maps that are written are derived from it.
    """
    where = f"{index}: the path of an image"
    path_inside(index.parent, name, DatasetError, where)
    path = PurePosixPath(name)
    if ".." in path.parts:  # label_path replaces the first folders, so ".." could leave the folder
        raise DatasetError(f"{where} is '{printable(name)}'; it must not contain '..'")
    return path


def choose_classes(index: Index, classes_file: Path | None) -> list[int]:
    """Choose the names that are classes.

    Args:
        index: The release's index.
        classes_file: List of classes; None derives them from the index.

    Returns:
        Their numbers in the index (from 1), in the order of the class indices.

    Raises:
        DatasetError: A line of ``classes_file`` is not in the index or occurs twice, or there are
            no classes.
    """
    if classes_file is None:
        both = np.ones(len(index.names), bool)
        for split in FOLDERS:
            both &= index.presence[:, index.of_split(split)].any(axis=1)
        if not both.any():
            raise DatasetError("no object name occurs in both training and validation images")
        return [int(i) + 1 for i in np.flatnonzero(both)]
    numbers: dict[str, int] = {}
    for number, name in enumerate(index.names, start=1):
        numbers.setdefault(name, number)
    chosen: list[int] = []
    lines = read_lines(need_file(classes_file, "pass an existing list with --classes"))
    for place, line in enumerate(lines, start=1):
        text = _listed_name(line)
        if not text:
            continue
        number = int(text) if text.isdecimal() else numbers.get(text, 0)
        if not 1 <= number <= len(index.names):
            raise DatasetError(
                f"{classes_file}:{place}: the index has no object {text!r}; use a name as spelled "
                f"in the index, or a number from 1 to {len(index.names)}"
            )
        if number in chosen:
            raise DatasetError(f"{classes_file}:{place}: {text!r} is listed twice")
        chosen.append(number)
    if not chosen:
        raise DatasetError(f"{classes_file}: contains no classes")
    return chosen


def _listed_name(line: str) -> str:
    """Return the name in a line of a class list, spelled as in the index ("" if there is none).

    Lines in the format of label files, ``id:name,name``, are accepted too.
    """
    label = re.fullmatch(r"\s*\d+\s*:(.*)", line)
    names = pieces(line if label is None else label[1])
    return "" if label and names == ["invalid_class_id"] else ", ".join(names)


def write_vocabulary(path: Path, names: Sequence[str]) -> None:
    """Write the classes, one ``index:name,synonym`` per line.

    The format of label files is used because two classes of ADE20K may share a synonym.

    Raises:
        DatasetError: The file exists with different classes. Label maps for both would get mixed.
    """
    text = "".join(f"{index}:{','.join(n.split(', '))}\n" for index, n in enumerate(names))
    if path.exists():
        if path.read_text(encoding="utf-8") != text:
            raise DatasetError(
                f"{path}: its classes differ from the requested ones; to convert with the new "
                f"classes, remove it and {path.with_name('annotations_847')}"
            )
        return
    write_text(path, text)


# --- images -------------------------------------------------------------------------------------


def label_path(root: Path, image: PurePosixPath) -> Path:
    """Return the label map of an image.

    images/ADE/validation/x/y.jpg becomes annotations_847/validation/x/y.png.
    """
    return root.joinpath("annotations_847", *image.parts[2:]).with_suffix(".png")


def convert(root: Path, index: Index, numbers: Sequence[int], split: str, workers: int) -> None:
    """Write the label maps of a split.

    Args:
        root: Folder of the release.
        index: The release's index.
        numbers: Numbers of the classes in the index, as :func:`choose_classes` returns them.
        split: "train" or "val".
        workers: Number of processes.

    Raises:
        DatasetError: A file is missing or invalid; the message names the first one.
    """
    need_folder(root / "images" / "ADE" / FOLDERS[split], UNPACK)
    places = index.of_split(split)
    if not places:
        raise DatasetError(f"{root / 'index_ade20k.pkl'}: lists no {FOLDERS[split]} images")
    table = np.full(len(index.names) + 1, IGNORED, np.uint16)
    table[list(numbers)] = np.arange(len(numbers))
    check_names(root, index, index.images[places[0]])
    items = []
    for place in places:
        image = root / index.images[place]
        source = image.with_name(f"{image.stem}_seg.png")
        items.append(Item(source, label_path(root, index.images[place]), (image, table)))
    claim(root, [root / "annotations_847" / FOLDERS[split]])
    convert_all(items, convert_image, f"ADE20K full {split}", workers)


def check_names(root: Path, index: Index, image: PurePosixPath) -> None:
    """Check that the index and the annotation of an image have the same names and numbers.

    Raises:
        DatasetError: They differ, or the annotation is missing or invalid.
    """
    path = need_file((root / image).with_suffix(".json"), UNPACK)
    with parsing(path, "an annotation of the release"):
        objects = rows_of(read_json(path)["annotation"], "object", path, name_ndx=LENGTH, name=TEXT)
    for item in objects:
        number, name = item["name_ndx"], ", ".join(pieces(item["name"]))
        if number > len(index.names) or index.names[number - 1] != name:
            raise DatasetError(
                f"{path}: object {number} is called {name!r}, but not in index_ade20k.pkl; make "
                "sure that both are from the same release"
            )


def convert_image(item: Item) -> None:
    """Write the label map of one image.

    The number of an object is ``R // 10 * 256 + G``; the table maps numbers to class indices.

    Raises:
        DatasetError: The sizes differ, or the index has no such number.
    """
    image, table = item.data
    pixels = read_pixels(item.source, ("RGB", "RGBA"))
    same_size(pixels, item.source, image)
    numbers = pixels[..., 0].astype(np.int32) // 10 * 256 + pixels[..., 1]
    if numbers.max(initial=0) >= len(table):
        raise DatasetError(
            f"{item.source}: object number {numbers.max()}, but the index has only "
            f"{len(table) - 1} names"
        )
    write_png(item.output, table[numbers])


def verify(root: Path, index: Index, split: str, workers: int) -> list[Row]:
    """Check the written files of a split.

    Raises:
        DatasetError: A file is missing or invalid; the message names the first one.
    """
    vocabulary = need_file(root / "ade847.txt", "run this program without --verify-only")
    classes = len(vocabulary.read_text(encoding="utf-8").splitlines())
    images = [index.images[place] for place in index.of_split(split)]
    pairs = [(root / image, label_path(root, image)) for image in images]
    found = verify_semantic(pairs, classes, workers=workers)
    folder = root / "images" / "ADE" / FOLDERS[split]
    on_disk = sum(1 for _ in folder.rglob("*.jpg"))
    if on_disk != len(pairs):
        raise DatasetError(
            f"{folder}: {on_disk} images, but index_ade20k.pkl lists {len(pairs)}; unpack the "
            "release again"
        )
    return [
        Row(vocabulary, "classes", classes, PUBLISHED_CLASSES),
        Row(root / "annotations_847" / FOLDERS[split], "label maps", found.images, EXPECTED[split]),
        Row(root / "annotations_847" / FOLDERS[split], "classes present", found.classes),
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Run the program and return its exit status."""
    args = parse_args(argv)
    root = args.data_root
    index = read_index(root / "index_ade20k.pkl")
    notes = []
    with alone_in(root, args.verify_only):
        if not args.verify_only:
            numbers = choose_classes(index, args.classes)
            claim(root, [root / "ade847.txt"])
            write_vocabulary(root / "ade847.txt", [index.names[n - 1] for n in numbers])
            if args.classes is None and len(numbers) != PUBLISHED_CLASSES:
                notes.append(
                    "the classes were derived from the index and are not the published 847; to get "
                    "results that are comparable with published ones, pass that list with --classes"
                )
            for split in args.splits:
                convert(root, index, numbers, split, args.workers)
        rows = [row for split in args.splits for row in verify(root, index, split, args.workers)]
    show_written("ADE20K, full release", list(dict.fromkeys(rows)), notes)
