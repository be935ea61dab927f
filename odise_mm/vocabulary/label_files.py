"""Label files that published numbers were made with, by name, from their publishers.

``openseg:coco_panoptic`` is a file of OpenSeg's, as the published ODISE models were trained and
tested with it. The files are not part of this package: they are downloaded once, into
``hub/vocabularies`` below ``TORCH_HOME``, from a fixed version of the publisher's repository.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from odise_mm.errors import VocabularyError
from odise_mm.utils.download import RemoteFile, download, torch_cache
from odise_mm.utils.spelling import nearest


@dataclass(frozen=True)
class _Publisher:
    """A repository with label files.

    Attributes:
        name: for people.
        folder: address of the folder, of one version.
        files: by our name of a list, the file and the built-in vocabulary that says which of its
            classes are things; "" where all are things, or nobody says.
    """

    name: str
    folder: str
    files: dict[str, tuple[str, str]]


def _with_synonyms(**things: str) -> dict[str, tuple[str, str]]:
    return {name: (f"{name}_with_prompt_eng.txt", flags) for name, flags in things.items()}


PUBLISHERS: dict[str, _Publisher] = {
    "openseg": _Publisher(
        "OpenSeg, by NVlabs/ODISE",
        "https://raw.githubusercontent.com/NVlabs/ODISE/49c0378420ed949bab2a28cedea12ea3922120d7/"
        "odise/data/datasets/openseg_labels",
        _with_synonyms(
            coco_panoptic="coco",
            ade20k_150="ade20k",
            ade20k_847="",
            pascal_context_59="pascal_context59",
            pascal_context_459="",
            pascal_voc_21="voc21",
            lvis_1203="",
        ),
    ),
    "fcclip": _Publisher(
        "bytedance/fc-clip",
        "https://raw.githubusercontent.com/bytedance/fc-clip/"
        "a8dc32c862dfc1fe55dcf9287090e080d9ee5f50/fcclip/data/datasets",
        _with_synonyms(
            coco_panoptic="coco",
            coco_stuff="",
            ade20k_847="",
            pascal_ctx_59="pascal_context59",
            pascal_ctx_459="",
            pascal_voc_21="voc21",
            lvis_1203="",
            mapillary_vistas="mapillary",
        ),
    ),
}


def is_published(text: str) -> bool:
    """Whether a text is the name of a published label file: it begins with a publisher's."""
    publisher, colon, _ = text.partition(":")
    return bool(colon) and publisher.strip().casefold() in PUBLISHERS


def find_label_file(name: str) -> tuple[Path, str | None]:
    """The local copy of a published label file, which is downloaded unless it is there.

    Args:
        name: ``openseg:coco_panoptic``.

    Returns:
        The file, and the built-in vocabulary that says which classes are things, or None.

    Raises:
        VocabularyError: no such list, or it cannot be had.
    """
    publisher, _, wanted = name.partition(":")
    key, wanted = publisher.strip().casefold(), wanted.strip()
    published = PUBLISHERS[key]
    if wanted not in published.files:
        raise VocabularyError(
            f"no vocabulary '{key}:{wanted}'{nearest(wanted, published.files)}; {published.name} "
            f"publishes {', '.join(f'{key}:{known}' for known in published.files)}"
        )
    file, things = published.files[wanted]
    path = download(
        RemoteFile(f"{published.folder}/{file}"),
        torch_cache() / "vocabularies" / key / file,
        VocabularyError,
        f"the label file {key}:{wanted} ({published.name})",
        instead="give the path of a local copy in place of its name",
        progress=False,
    )
    return path, things or None
