"""Label files behind published results, downloaded by name from their publishers.

``openseg:coco_panoptic``, for example, is the OpenSeg file with which the published ODISE models
were trained and tested. The files are not part of this package. They are downloaded once, from a
pinned version of the publisher's repository, into ``hub/vocabularies`` below ``TORCH_HOME``.
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
        name: Display name.
        folder: URL of the folder, at a pinned version.
        files: Our name of a list -> its file name, and the built-in vocabulary that defines which
            of its classes are things. "" if all are things or the flags are unknown.
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
            ade20k_150="ade20k",
            ade20k_847="",
            cityscapes="cityscapes",
            pascal_ctx_59="pascal_context59",
            pascal_ctx_459="",
            pascal_voc_21="voc21",
            lvis_1203="",
            mapillary_vistas="mapillary",
        ),
    ),
}


def is_published(text: str) -> bool:
    """Return whether a text names a published label file, i.e. starts with a publisher's key."""
    publisher, colon, _ = text.partition(":")
    return bool(colon) and publisher.strip().casefold() in PUBLISHERS


def find_label_file(name: str) -> tuple[Path, str | None]:
    """Return the local copy of a published label file; download it first if necessary.

    Args:
        name: Name of the list, e.g. ``openseg:coco_panoptic``.

    Returns:
        Path of the file, and the name of the built-in vocabulary that defines which classes are
        things, or None.

    Raises:
        VocabularyError: If the list is unknown or cannot be downloaded.
    """
    publisher, _, wanted = name.partition(":")
    key, wanted = publisher.strip().casefold(), wanted.strip()
    published = PUBLISHERS[key]
    if wanted not in published.files:
        raise VocabularyError(
            f"unknown vocabulary '{key}:{wanted}'{nearest(wanted, published.files)}; "
            f"{published.name} "
            f"publishes {', '.join(f'{key}:{known}' for known in published.files)}"
        )
    file, things = published.files[wanted]
    path = download(
        RemoteFile(f"{published.folder}/{file}"),
        torch_cache() / "vocabularies" / key / file,
        VocabularyError,
        f"the label file {key}:{wanted} ({published.name})",
        instead="pass the path of a local copy instead of the name",
        progress=False,
    )
    return path, things or None
