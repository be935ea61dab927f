"""Pascal Context with 59 and with 459 classes: semantic label maps.

The input is VOC2010 (JPEGImages/, ImageSets/Main/). Unpack Pascal Context's trainval.tar.gz (a
folder trainval/ of .mat files), labels.txt and 59_labels.txt into the same folder. The converter
writes there:

    annotations_pc59/    8-bit PNG files of class indices (255: ignored); the classes are those of
                         the built-in vocabulary pascal_context59
    annotations_pc459/   16-bit PNG files of class indices (65535: ignored)
    pc459.txt            the 459 classes, one "index:name" per line, in the order of labels.txt
    pascal_context_val.txt   names of the images in ImageSets/Main/val.txt that have a .mat file

Example:
    python tools/dataset_converters/pascal_context.py data/VOCdevkit/VOC2010
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from odise_mm.converters.claims import claim
from odise_mm.converters.files import need_file, need_folder, read_lines, write_png
from odise_mm.converters.program import Row, alone_in, converter_parser, show_written
from odise_mm.converters.verification import same_size, verify_semantic
from odise_mm.converters.work import Item, convert_all, is_complete
from odise_mm.errors import DatasetError
from odise_mm.utils.files import write_text

EXPECTED = {"train": 4998, "val": 5105}
CLASSES = {"pc59": 59, "pc459": 459}
DOWNLOAD = "get it from Pascal Context's page"
_LINE = re.compile(r"(?:(\d+)\s*:)?\s*(\S.*?)\s*")


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = converter_parser(__doc__, "data/VOCdevkit/VOC2010", list(EXPECTED))
    return parser.parse_args(argv)


def squeezed(name: str) -> str:
    """Normalize the spelling of a name: "potted plant" and "pottedplant" become equal."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def read_names(path: Path) -> dict[int, str]:
    """Read a provider's list: ``number: name`` per line, or only names, numbered from 1.

    Raises:
        DatasetError: The file is missing or empty, or a number occurs twice.
    """
    names: dict[int, str] = {}
    for place, line in enumerate(read_lines(need_file(path, DOWNLOAD)), 1):
        match = _LINE.fullmatch(line)
        if match is None:
            continue
        number = int(match[1]) if match[1] else len(names) + 1
        if number in names:
            raise DatasetError(f"{path}:{place}: number {number} occurs twice")
        names[number] = match[2]
    if not names:
        raise DatasetError(f"{path}: contains no names")
    return names


def class_tables(root: Path) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Build the tables from numbers in the .mat files to indices of the 59 and the 459 classes.

    Returns:
        (460,) uint8 table for 59 classes, (460,) uint16 table for 459 classes, and the 459 names.

    Raises:
        DatasetError: The lists do not have the expected classes.
    """
    names = read_names(root / "labels.txt")
    # classes are numbered from 1; the "0: background" or "empty" of some copies is not a class
    names.pop(0, None)
    if sorted(names) != list(range(1, len(names) + 1)):
        raise DatasetError(f"{root / 'labels.txt'}: the numbers must be 1 to {len(names)}")
    if len(names) != CLASSES["pc459"]:
        raise DatasetError(
            f"{root / 'labels.txt'}: {len(names)} classes, but Pascal Context has 459"
        )
    from odise_mm.vocabulary import Vocabulary  # imports torch, which workers do not need

    number_of = {squeezed(name): number for number, name in names.items()}
    known = [squeezed(name) for name in Vocabulary.load("pascal_context59").source_names]
    given = {squeezed(name) for name in read_names(root / "59_labels.txt").values()}
    for name in sorted(given ^ set(known)):
        problem = f"lacks {name!r}" if name in known else f"{name!r} is not one of the 59 classes"
        raise DatasetError(f"{root / '59_labels.txt'}: {problem}")
    table59, table459 = np.full(460, 255, np.uint8), np.full(460, 65535, np.uint16)
    for index, name in enumerate(known):
        if name not in number_of:
            raise DatasetError(f"{root / 'labels.txt'}: no class {name!r}, which is one of the 59")
        table59[number_of[name]] = index
    table459[1:] = np.arange(CLASSES["pc459"])
    return table59, table459, [names[number] for number in range(1, 460)]


def split_names(root: Path, split: str) -> list[str]:
    """Return the names in VOC2010's list of a split that have a .mat file.

    Raises:
        DatasetError: The list or the folder of .mat files is missing, or no name has a .mat file.
    """
    listed = need_file(
        root / "ImageSets" / "Main" / f"{split}.txt", "unpack VOCtrainval_03-May-2010.tar"
    )
    folder = need_folder(root / "trainval", "unpack Pascal Context's trainval.tar.gz")
    present = {path.stem for path in folder.glob("*.mat")}
    names = [line.strip() for line in read_lines(listed)]
    names = [name for name in names if name in present]
    if not names:
        raise DatasetError(f"{folder}: has no .mat file for any image in {listed}")
    return names


def read_label_map(path: Path) -> np.ndarray:
    """Read the ``LabelMap`` of a .mat file.

    Returns:
        (H, W) int64 array of numbers from 0 to 459.

    Raises:
        DatasetError: The file is missing or damaged, or has no valid label map.
    """
    from scipy.io import loadmat

    try:
        labels = loadmat(path, variable_names=["LabelMap"])["LabelMap"]
    except KeyError:
        raise DatasetError(f"{path}: contains no LabelMap") from None
    except FileNotFoundError:
        raise DatasetError(f"{path}: no such file") from None
    except Exception as error:  # SciPy raises many types for damaged files
        raise DatasetError(f"{path}: not a readable .mat file ({error})") from error
    if labels.ndim != 2 or labels.dtype.kind not in "uif":
        raise DatasetError(
            f"{path}: its LabelMap has dtype {labels.dtype} and shape {labels.shape}"
        )
    whole = labels.astype(np.int64)
    if (whole != labels).any() or whole.min(initial=0) < 0 or whole.max(initial=0) > 459:
        raise DatasetError(f"{path}: its LabelMap has numbers outside 0 to 459")
    return whole


def convert(root: Path, split: str, workers: int) -> None:
    """Write the label maps of a split, the list of its images, and the vocabulary.

    Raises:
        DatasetError: A file is missing or invalid; the message names the first one.
    """
    table59, table459, names459 = class_tables(root)
    names = split_names(root, split)
    items = []
    for name in names:
        image = need_file(root / "JPEGImages" / f"{name}.jpg", "unpack VOCtrainval_03-May-2010.tar")
        small = root / "annotations_pc59" / f"{name}.png"
        large = root / "annotations_pc459" / f"{name}.png"
        # one output decides whether the image is done: the incomplete one, if there is one
        output = large if is_complete(small) else small
        items.append(Item(root / "trainval" / f"{name}.mat", output, (image, table59, table459)))
    texts = {
        root / "pc459.txt": [f"{index}:{name}" for index, name in enumerate(names459)],
        root / f"pascal_context_{split}.txt": names,
    }
    claim(root, [root / "annotations_pc59", root / "annotations_pc459", *texts])
    convert_all(items, convert_image, f"Pascal Context {split}", workers)
    for path, lines in texts.items():
        write_text(path, "".join(f"{line}\n" for line in lines))


def convert_image(item: Item) -> None:
    """Write both label maps of one image.

    Raises:
        DatasetError: The .mat file is invalid or differs in size from the image.
    """
    image, table59, table459 = item.data
    labels = read_label_map(item.source)
    same_size(labels, item.source, image)
    root = item.output.parent.parent
    write_png(root / "annotations_pc59" / item.output.name, table59[labels])
    write_png(root / "annotations_pc459" / item.output.name, table459[labels])


def verify(root: Path, split: str, workers: int) -> list[Row]:
    """Check the written files of a split.

    Raises:
        DatasetError: A file is missing or invalid; the message names the first one.
    """
    listed = need_file(
        root / f"pascal_context_{split}.txt", "run this program without --verify-only"
    )
    names = [name for line in read_lines(listed) for name in line.split()]
    if names != split_names(root, split):
        raise DatasetError(
            f"{listed}: does not list the images that have a .mat file; run this program again"
        )
    rows = [Row(listed, "images", len(names), EXPECTED[split])]
    for name, classes in CLASSES.items():
        folder = root / f"annotations_{name}"
        pairs = [(root / "JPEGImages" / f"{n}.jpg", folder / f"{n}.png") for n in names]
        found = verify_semantic(pairs, classes, workers=workers, description=f"verify {name}")
        rows += [
            Row(folder, f"label maps ({split})", found.images),
            Row(folder, f"classes present ({split})", found.classes),
        ]
    vocabulary = need_file(root / "pc459.txt", "run this program without --verify-only")
    written = [line.split(":", 1)[1] for line in vocabulary.read_text("utf-8").splitlines()]
    if written != class_tables(root)[2]:
        raise DatasetError(
            f"{vocabulary}: its classes differ from labels.txt; run this program again"
        )
    return [*rows, Row(vocabulary, "classes", len(written))]


def main(argv: Sequence[str] | None = None) -> None:
    """Run the program and return its exit status."""
    args = parse_args(argv)
    rows = []
    with alone_in(args.data_root, args.verify_only):
        for split in args.splits:
            if not args.verify_only:
                convert(args.data_root, split, args.workers)
            rows += verify(args.data_root, split, args.workers)
    show_written("Pascal Context, 59 and 459 classes", list(dict.fromkeys(rows)))
