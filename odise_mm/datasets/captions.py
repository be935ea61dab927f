"""Captions of images, and the noun phrases in them."""

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
    """Noun phrases by image id (as text): one list per caption, see docs/training_data.md.

    Raises:
        DatasetError: missing, or something else.
    """
    if not os.path.exists(path):
        raise DatasetError(
            f"{path}: no such file of noun phrases; tools/dataset_converters/coco.py writes it"
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
    """Give the images the noun phrases of a file, as ``captions_phrases``.

    Raises:
        DatasetError: no image is in the file.
    """
    phrases = read_phrases(path)
    without = 0
    for info in data:
        info["captions_phrases"] = phrases.get(str(info["img_id"]), [])
        without += not any(info["captions_phrases"])
    if data and not any(str(info["img_id"]) in phrases for info in data):
        raise DatasetError(
            f"{path}: has none of the {len(data)} images of this dataset (the first image's id "
            f"is {shown(data[0]['img_id'])}); is it that of another split?"
        )
    if without:
        print_log(
            f"{path}: {without} of {len(data)} images have no noun phrase; they train masks, "
            "not words",
            logger="current",
        )


def add_captions(data: list[dict], path: str | os.PathLike) -> None:
    """Give the images the captions of a file, as ``captions``, and the first as ``caption``.

    Raises:
        DatasetError: an image has none, or other ones than its noun phrases were read off.
    """
    if not os.path.exists(path):
        raise DatasetError(f"{printable(path)}: no such file of captions; {LAYOUT}")
    captions = read_captions(path)
    without = [info for info in data if info["img_id"] not in captions]
    if without:
        first = without[0]["img_id"]
        raise DatasetError(
            f"{path}: {len(without)} of {len(data)} images have no caption (the first: "
            f"{without[0]['img_path']}, id {shown(first)}){twin(first, captions)}; is it that of "
            "another split? Leave captions_file out where the model needs no captions"
        )
    for info in data:
        info["captions"] = captions[info["img_id"]]
        info["caption"] = info["captions"][0]
        phrases = info.get("captions_phrases")
        if phrases and len(phrases) != len(info["captions"]):
            raise DatasetError(
                f"{path}: image id {info['img_id']} has {len(info['captions'])} captions, and "
                f"noun phrases of {len(phrases)}; make the phrases_file from this file"
            )
