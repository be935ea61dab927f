"""Prepare COCO 2017 panoptic: unpack the PNG files, check them, extract noun phrases of captions.

Unpack train2017.zip, val2017.zip, annotations_trainval2017.zip and
panoptic_annotations_trainval2017.zip in DATA_ROOT. The last archive contains
panoptic_train2017.zip and panoptic_val2017.zip, which this program unpacks. It writes

    annotations/panoptic_{train,val}2017/     one PNG file per image
    annotations/phrases_{train,val}2017.json  noun phrases of the captions

It checks ids and counts, and that every image and PNG file exists. It also reads a sample of the
files, or all of them, and checks that images and PNG files have the same size and that the PNG
files contain the segments that the JSON file lists.

Example:
    python tools/dataset_converters/coco.py data/coco --splits train val
"""

from __future__ import annotations

import argparse
import os
import zipfile
from collections.abc import Callable, Collection
from pathlib import Path

from odise_mm.annotations.coco_json import Id, image_name, read_captions, read_coco
from odise_mm.annotations.json_fields import shown
from odise_mm.converters.claims import claim
from odise_mm.converters.files import need_file, need_folder, parsing, read_json
from odise_mm.converters.program import Row, alone_in, converter_parser, program, show_written
from odise_mm.converters.verification import verify_panoptic
from odise_mm.converters.work import Item, convert_all, finish
from odise_mm.errors import DatasetError
from odise_mm.utils.display import printable
from odise_mm.utils.files import atomic_writer

NUM_IMAGES = {"train": 118287, "val": 5000}  # of the complete dataset
SAMPLE = 1000
UNPACK = "unpack annotations_trainval2017.zip"
UNPACK_PANOPTIC = "unpack panoptic_annotations_trainval2017.zip"


def unpack(archive: Path, folder: Path) -> int:
    """Unpack the PNG files of an archive into a folder, skipping complete ones.

    Returns:
        Number of PNG files in the archive.

    Raises:
        DatasetError: The archive is damaged; the message names it.
    """
    try:
        with zipfile.ZipFile(archive) as source:
            members = {Path(name).name: name for name in source.namelist() if name.endswith(".png")}
            # __MACOSX/ has a metadata file for each file; their names start with "._"
            members = {n: m for n, m in members.items() if not n.startswith("._")}

            def work(item: Item) -> None:
                with atomic_writer(item.output, durable=False) as file:
                    file.write(source.read(item.data))

            items = [Item(archive / n, folder / n, member) for n, member in members.items()]
            convert_all(items, work, f"unpack {archive.name}")
    except (zipfile.BadZipFile, EOFError) as err:
        raise DatasetError(f"{archive}: damaged ({err}); get it again") from err
    return len(members)


def check_files(root: Path, split: str, verify: str, workers: int) -> list[Row]:
    """Check the images and panoptic annotations of a split.

    Args:
        root: Folder of the dataset.
        split: "train" or "val".
        verify: "all", or "sample" to read only some of the files. All files must exist.
        workers: Number of processes.

    Raises:
        DatasetError: A file is missing or invalid; the message names the first one.
    """
    images = need_folder(root / f"{split}2017", f"unpack {split}2017.zip")
    path = need_file(root / f"annotations/panoptic_{split}2017.json", UNPACK_PANOPTIC)
    folder = need_folder(path.with_suffix(""), f"{UNPACK_PANOPTIC}, panoptic_{split}2017.zip")
    content = read_coco(path, "panoptic")
    image_names = [image_name(image) for image in content.images.values()]
    map_names = [annotation["file_name"] for annotation in content.annotations]
    for where, listed in ((images, image_names), (folder, map_names)):
        present = set(os.listdir(where))
        missing = [name for name in listed if name not in present]
        if missing:
            raise DatasetError(
                f"{where / printable(missing[0])}: no such file; {len(missing)} of the "
                f"{len(listed)} files that {path.name} lists are missing"
            )
    every = 1 if verify == "all" else max(1, len(map_names) // SAMPLE)
    found = verify_panoptic(
        path,
        folder,
        images,
        check_areas=False,
        every=every,
        workers=workers,
        description=f"verify {split}",
    )
    checked = "all" if every == 1 else f"one of {every}"
    rows = [
        Row(images, "images", found.images, NUM_IMAGES[split]),
        Row(folder, f"PNG files ({checked} read)", len(map_names), NUM_IMAGES[split]),
        Row(path, "classes present", found.classes),
    ]
    instances = root / f"annotations/instances_{split}2017.json"
    if split == "val":
        rows.append(_check_instances(need_file(instances, UNPACK), content.images))
    return rows


def _check_instances(path: Path, wanted: Collection[Id]) -> Row:
    """Check that the instance annotations, used to compute AP, cover the same images."""
    content = read_coco(path, "instance", masks=False)
    missing = [id_ for id_ in wanted if id_ not in content.images]
    if missing:
        raise DatasetError(f"{path}: image id {shown(missing[0])} is missing")
    return Row(path, "instances", len(content.annotations))


def write_phrases(
    root: Path, split: str, extract: Callable[[str], list[str]], tagger: str, grammar: str
) -> None:
    """Write the noun phrases of a split's captions, unless they are already written.

    Args:
        root: Folder of the dataset.
        split: "train" or "val".
        extract: Function that returns the noun phrases of a caption.
        tagger: Tagger that ``extract`` uses; recorded in the file.
        grammar: Grammar that ``extract`` uses; recorded in the file.

    Raises:
        DatasetError: The captions are missing or invalid, or the file exists and was not written by
            this program.
    """
    source = need_file(root / f"annotations/captions_{split}2017.json", UNPACK)
    target = root / f"annotations/phrases_{split}2017.json"
    info = dict(captions=source.name, bytes=source.stat().st_size, tagger=tagger, grammar=grammar)
    done = read_json(target) if target.is_file() else {}
    if not isinstance(done, dict) or done.get("info") != info:
        captions = read_captions(source, all_images=True)
        items = [Item(Path(f"{source}#{i}"), data=texts) for i, texts in captions.items()]
        journal = target.with_suffix(f".{grammar}.{tagger.split()[0]}.journal")
        old_info = done.get("info") if isinstance(done, dict) else None
        is_own = isinstance(old_info, dict) and old_info.keys() == info.keys()
        if target.is_file() and not is_own:  # written by hand, or by another program
            claim(root, [target], [journal])
        found = convert_all(
            items, lambda item: [extract(text) for text in item.data], f"phrases {split}",
            journal=journal,
        )  # fmt: skip
        phrases = {str(i): phrases for i, phrases in zip(captions, found, strict=True)}
        finish(target, dict(info=info, phrases=phrases), journal)


def check_phrases(root: Path, split: str) -> list[Row]:
    """Check that all images of a split have noun phrases, and count them.

    Raises:
        DatasetError: The file is missing or invalid, or lacks an image of the split.
    """
    path = need_file(
        root / f"annotations/phrases_{split}2017.json", "run this program without --verify-only"
    )
    content = read_json(path)
    images = read_coco(root / f"annotations/panoptic_{split}2017.json", "panoptic").images
    with parsing(path, "a file of noun phrases"):
        captions = [caption for image in content["phrases"].values() for caption in image]
        made_by = "tagger {tagger}, grammar {grammar}".format(**content["info"])
        counts = [len(caption) for caption in captions]
    phrases = content["phrases"]
    missing = [id_ for id_ in images if str(id_) not in phrases]
    if missing:
        raise DatasetError(
            f"{path}: {len(missing)} images of panoptic_{split}2017.json are missing (the first: "
            f"{missing[0]}); remove it and run this program again"
        )
    return [
        Row(path, f"images ({made_by})", len(phrases), NUM_IMAGES[split]),
        Row(path, "captions", len(captions)),
        Row(path, "captions without a noun phrase", counts.count(0)),
        Row(path, "noun phrases", sum(counts)),
    ]


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = converter_parser(__doc__, "data/coco", list(NUM_IMAGES))
    parser.add_argument(
        "--verify",
        choices=("sample", "all"),
        default="sample",
        help=f"files to read: about {SAMPLE} per split, evenly spaced, or all (default: sample)",
    )
    parser.add_argument(
        "--tagger",
        choices=("nltk", "textblob"),
        help="part-of-speech tagger; NLTK needs its data to be installed (default: NLTK if its "
        "data is installed, otherwise TextBlob)",
    )
    parser.add_argument(
        "--grammar",
        choices=("runs", "prepositions", "both"),
        default="both",
        help='phrases to extract: "runs" of adjectives and nouns, phrases with "prepositions" '
        'such as "slice of pizza", or both (default: both)',
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the program and return its exit status."""
    args = parse_args(argv)
    with program(), alone_in(args.data_root, args.verify_only):
        rows = []
        root = need_folder(args.data_root, "unpack COCO's archives there (--help lists them)")
        for split in args.splits:
            folder = root / f"annotations/panoptic_{split}2017"
            archive = folder.with_suffix(".zip")
            if archive.is_file() and not args.verify_only:
                unpack(archive, folder)
            rows += check_files(root, split, args.verify, args.workers)
        if not args.verify_only:
            # imported here because it imports OpenMMLab's packages
            from odise_mm.datasets.noun_phrases import NounPhrases, load_tagger

            extract = NounPhrases(args.grammar, load_tagger(args.tagger))
            for split in args.splits:
                write_phrases(root, split, extract, extract.tagger.name, args.grammar)
        for split in args.splits:
            rows += check_phrases(root, split)
        show_written("COCO 2017 panoptic", rows)
    return 0
