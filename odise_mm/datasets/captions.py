"""Captions and noun phrases of images."""

from __future__ import annotations

import os
from typing import Any

from mmengine.logging import print_log

from odise_mm.annotations.coco_json import read_captions
from odise_mm.annotations.json_fields import shown, twin
from odise_mm.annotations.reading import LAYOUT
from odise_mm.errors import DatasetError
from odise_mm.utils.display import printable
from odise_mm.utils.files import read_json


def read_phrases(path: str | os.PathLike) -> dict[str, list[list[str]]]:
    """Read a file of noun phrases; docs/training_data.md describes the format.

    Returns:
        Image id (as a string) -> one list of phrases per caption.

    Raises:
        DatasetError: the file is missing or not a file of noun phrases.
    """
    if not os.path.exists(path):
        raise DatasetError(
            f"{path}: file of noun phrases not found; create it with "
            "tools/dataset_converters/coco.py"
        )
    content = read_json(path, DatasetError, "file of noun phrases")
    phrases = content.get("phrases") if isinstance(content, dict) else None
    if not isinstance(phrases, dict) or not all(map(_are_phrases, phrases.values())):
        raise DatasetError(
            f"{printable(path)}: not a file of noun phrases; `phrases` must be image id -> list of "
            "captions, each a list of phrases"
        )
    return phrases


def _are_phrases(captions: Any) -> bool:
    return isinstance(captions, list) and all(
        isinstance(caption, list) and all(isinstance(phrase, str) for phrase in caption)
        for caption in captions
    )


def add_phrases(data: list[dict], path: str | os.PathLike) -> None:
    """Add the noun phrases of a file to the images, under the key ``captions_phrases``.

    Args:
        data: information of the images, modified in place.
        path: file of noun phrases, see :func:`read_phrases`.

    Raises:
        DatasetError: the file contains none of the images.
    """
    phrases = read_phrases(path)
    without = 0
    for info in data:
        info["captions_phrases"] = phrases.get(str(info["img_id"]), [])
        without += not any(info["captions_phrases"])
    if data and not any(str(info["img_id"]) in phrases for info in data):
        raise DatasetError(
            f"{path}: contains none of the {len(data)} images of this dataset (the first image's "
            f"id is {shown(data[0]['img_id'])}); does the file belong to another split?"
        )
    if without:
        print_log(
            f"{path}: {without} of {len(data)} images have no noun phrases; they train only the "
            "masks, not the class predictions",
            logger="current",
        )


def add_captions(data: list[dict], path: str | os.PathLike) -> None:
    """Add the captions of a file to the images.

    Args:
        data: information of the images, modified in place: ``captions`` gets all captions of an
            image, ``caption`` the first one.
        path: COCO's ``captions_*.json``.

    Raises:
        DatasetError: the file is missing, an image has no caption, or the number of captions
            differs from that of the image's noun phrases.
    """
    if not os.path.exists(path):
        raise DatasetError(f"{printable(path)}: file of captions not found; {LAYOUT}")
    captions = read_captions(path)
    without = [info for info in data if info["img_id"] not in captions]
    if without:
        first = without[0]["img_id"]
        raise DatasetError(
            f"{path}: {len(without)} of {len(data)} images have no caption (the first: "
            f"{without[0]['img_path']}, id {shown(first)}){twin(first, captions)}; does the "
            "file belong to another split? Leave captions_file out if the model needs no captions"
        )
    for info in data:
        info["captions"] = captions[info["img_id"]]
        info["caption"] = info["captions"][0]
        phrases = info.get("captions_phrases")
        if phrases and len(phrases) != len(info["captions"]):
            raise DatasetError(
                f"{path}: image id {info['img_id']} has {len(info['captions'])} captions, but the "
                f"noun phrases of {len(phrases)}; create phrases_file from this file"
            )
