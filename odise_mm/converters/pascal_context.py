"""Pascal Context with 59 and with 459 classes: semantic label maps.

Starts from VOC2010 (JPEGImages/, ImageSets/Main/) with Pascal Context's trainval.tar.gz (a folder
trainval/ of .mat files), labels.txt and 59_labels.txt unpacked into the same folder. Writes

    annotations_pc59/    8 bit PNG files of class indices, 255 ignored; the classes are those of
                         the built-in vocabulary pascal_context59
    annotations_pc459/   16 bit PNG files, 65535 ignored
    pc459.txt            the 459 classes, one "index:name" per line, in the order of labels.txt
    pascal_context_val.txt   names of the images: ImageSets/Main/val.txt, those with a .mat file

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
from odise_mm.converters.program import Row, converter_parser, show_written
from odise_mm.converters.verification import same_size, verify_semantic
from odise_mm.converters.work import Item, convert_all, is_complete
from odise_mm.errors import DatasetError
from odise_mm.utils.files import write_text

EXPECTED = {"train": 4998, "val": 5105}
CLASSES = {"pc59": 59, "pc459": 459}
CONTEXT = "Pascal Context's page"
_LINE = re.compile(r"(?:(\d+)\s*:)?\s*(\S.*?)\s*")


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = converter_parser(__doc__, "data/VOCdevkit/VOC2010", list(EXPECTED))
    return parser.parse_args(argv)


def squeezed(name: str) -> str:
    """What two spellings of a name have in common: "potted plant" and "pottedplant"."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def read_names(path: Path) -> dict[int, str]:
    """A provider's list, ``number: name`` per line, or names alone (numbered from 1).

    Raises:
        DatasetError: missing, empty, a number twice.
    """
    names: dict[int, str] = {}
    for place, line in enumerate(read_lines(need_file(path, CONTEXT)), 1):
        match = _LINE.fullmatch(line)
        if match is None:
            continue
        number = int(match[1]) if match[1] else len(names) + 1
        if number in names:
            raise DatasetError(f"{path}:{place}: number {number} is there twice")
        names[number] = match[2]
    if not names:
        raise DatasetError(f"{path}: no name in it")
    return names


def class_tables(root: Path) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Of every number of the .mat files, the index among 59 and among 459 classes.

    Returns:
        uint8 and uint16 tables, and the 459 names.

    Raises:
        DatasetError: the lists have other classes than they should.
    """
    names = read_names(root / "labels.txt")
    # numbers count from 1; a "0: background" or "empty" that some copies have is no class
    names.pop(0, None)
    if sorted(names) != list(range(1, len(names) + 1)):
        raise DatasetError(f"{root / 'labels.txt'}: numbers are not 1 to {len(names)}")
    if len(names) != CLASSES["pc459"]:
        raise DatasetError(
            f"{root / 'labels.txt'}: {len(names)} classes where Pascal Context has 459"
        )
    from odise_mm.vocabulary import Vocabulary  # late: imports torch, workers need not

    number_of = {squeezed(name): number for number, name in names.items()}
    known = [squeezed(name) for name in Vocabulary.load("pascal_context59").source_names]
    given = {squeezed(name) for name in read_names(root / "59_labels.txt").values()}
    for name in sorted(given ^ set(known)):
        where = "lacks" if name in known else "has a class that is none of the 59,"
        raise DatasetError(f"{root / '59_labels.txt'}: {where} {name!r}")
    table59, table459 = np.full(460, 255, np.uint8), np.full(460, 65535, np.uint16)
    for index, name in enumerate(known):
        if name not in number_of:
            raise DatasetError(f"{root / 'labels.txt'}: no class {name!r}, which is of the 59")
        table59[number_of[name]] = index
    table459[1:] = np.arange(CLASSES["pc459"])
    return table59, table459, [names[number] for number in range(1, 460)]


def split_names(root: Path, split: str) -> list[str]:
    """Names of a split's images: VOC2010's list, those with a .mat file.

    Raises:
        DatasetError: no list, no folder of .mat files, or none of the list's.
    """
    listed = need_file(root / "ImageSets" / "Main" / f"{split}.txt", "VOCtrainval_03-May-2010.tar")
    folder = need_folder(root / "trainval", "Pascal Context's trainval.tar.gz")
    present = {path.stem for path in folder.glob("*.mat")}
    names = [line.strip() for line in read_lines(listed)]
    names = [name for name in names if name in present]
    if not names:
        raise DatasetError(f"{folder}: none of the images of {listed} has a .mat file here")
    return names


def read_label_map(path: Path) -> np.ndarray:
    """The ``LabelMap`` of a .mat file, (H, W), numbers 0 to 459.

    Raises:
        DatasetError: missing, damaged, or something else.
    """
    from scipy.io import loadmat

    try:
        labels = loadmat(path, variable_names=["LabelMap"])["LabelMap"]
    except KeyError:
        raise DatasetError(f"{path}: holds no LabelMap") from None
    except FileNotFoundError:
        raise DatasetError(f"{path}: no such file") from None
    except Exception as error:  # scipy raises many kinds on damaged files
        raise DatasetError(f"{path}: not a readable .mat file ({error})") from error
    if labels.ndim != 2 or labels.dtype.kind not in "uif":
        raise DatasetError(f"{path}: its LabelMap is {labels.dtype} of shape {labels.shape}")
    whole = labels.astype(np.int64)
    if (whole != labels).any() or whole.min(initial=0) < 0 or whole.max(initial=0) > 459:
        raise DatasetError(f"{path}: its LabelMap has numbers other than 0 to 459")
    return whole


def convert(root: Path, split: str, workers: int) -> None:
    """Write a split's label maps and its list, and the vocabulary.

    Raises:
        DatasetError: names the first bad file.
    """
    table59, table459, names459 = class_tables(root)
    names = split_names(root, split)
    items = []
    for name in names:
        image = need_file(root / "JPEGImages" / f"{name}.jpg", "VOCtrainval_03-May-2010.tar")
        small = root / "annotations_pc59" / f"{name}.png"
        large = root / "annotations_pc459" / f"{name}.png"
        # one file stands for both: the one that is missing, if one is
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
    """Both label maps of one image."""
    image, table59, table459 = item.data
    labels = read_label_map(item.source)
    same_size(labels, item.source, image)
    root = item.output.parent.parent
    write_png(root / "annotations_pc59" / item.output.name, table59[labels])
    write_png(root / "annotations_pc459" / item.output.name, table459[labels])


def verify(root: Path, split: str, workers: int) -> list[Row]:
    """Check what was written.

    Raises:
        DatasetError: names the first bad file.
    """
    listed = need_file(root / f"pascal_context_{split}.txt", "this tool, without --verify-only")
    names = [name for line in read_lines(listed) for name in line.split()]
    if names != split_names(root, split):
        raise DatasetError(f"{listed}: not the images with a .mat file; run this again")
    rows = [Row(listed, "images", len(names), EXPECTED[split])]
    for name, classes in CLASSES.items():
        folder = root / f"annotations_{name}"
        pairs = [(root / "JPEGImages" / f"{n}.jpg", folder / f"{n}.png") for n in names]
        found = verify_semantic(pairs, classes, workers=workers, description=f"verify {name}")
        rows += [
            Row(folder, f"label maps ({split})", found.images),
            Row(folder, f"classes that occur ({split})", found.classes),
        ]
    vocabulary = need_file(root / "pc459.txt", "this tool, without --verify-only")
    written = [line.split(":", 1)[1] for line in vocabulary.read_text("utf-8").splitlines()]
    if written != class_tables(root)[2]:
        raise DatasetError(f"{vocabulary}: not the classes of labels.txt; run this again")
    return [*rows, Row(vocabulary, "classes", len(written))]


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    rows = []
    for split in args.splits:
        if not args.verify_only:
            convert(args.data_root, split, args.workers)
        rows += verify(args.data_root, split, args.workers)
    show_written("Pascal Context, 59 and 459 classes", list(dict.fromkeys(rows)))
