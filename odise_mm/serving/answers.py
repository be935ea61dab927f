"""Results as answers: COCO's JSON formats, and PNG."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
from PIL import Image

from odise_mm.annotations.panoptic_io import describe_categories, describe_result, ids_to_rgb
from odise_mm.structures import SegmentationResult
from odise_mm.version import __version__
from odise_mm.vocabulary import Vocabulary

Output = Literal["coco", "panoptic", "map", "drawing"]
OUTPUTS: tuple[Output, ...] = get_args(Output)


@dataclass(frozen=True)
class Answer:
    """Body of a response, and its type."""

    body: bytes
    media_type: str
    headers: Mapping[str, str] = field(default_factory=dict)


def make_answer(
    result: SegmentationResult,
    output: Output,
    vocabulary: Vocabulary,
    name: str = "image",
    warnings: tuple[str, ...] = (),
) -> Answer:
    """Return a result in one of the forms of the API.

    Args:
        result: Result with a panoptic map and, for ``drawing``, a drawn image.
        output: ``coco``: COCO's instance format, with all segments as run-length encoded masks.
            ``panoptic``: COCO's panoptic format, with the PNG file in base64. ``map``: that PNG
            file, whose pixels are the segment id as R + 256 G + 65536 B, or 0 for no segment.
            ``drawing``: the image with drawn segments, PNG.
        vocabulary: The classes of the result. Category ids count them from 1.
        name: Name of the image file.
        warnings: Warnings for the client, which only JSON contains.
    """
    headers = {"X-Random-Weights": "true"} if result.random_weights else {}
    if output == "map":
        return Answer(_png(ids_to_rgb(result.require_panoptic())), "image/png", headers)
    if output == "drawing":
        assert result.visualization is not None, "the caller asks the inferencer for it"
        return Answer(_png(result.visualization[..., ::-1]), "image/png", headers)
    info = dict(
        description="open-vocabulary panoptic segmentation by odise_mm",
        version=__version__,
        random_weights=result.random_weights,
    )
    content: dict[str, Any] = dict(info=info, warnings=list(warnings))
    if output == "panoptic":
        ids = range(1, len(vocabulary) + 1)
        image, annotation = describe_result(result, "image.png", ids, name)
        png = base64.b64encode(_png(ids_to_rgb(result.require_panoptic()))).decode()
        content |= dict(images=[dict(id=1, **image)], panoptic_png=png)
        content |= dict(annotations=[dict(image_id=1, **annotation)])
    else:
        image = dict(id=1, file_name=name, height=result.height, width=result.width)
        content |= dict(images=[image], annotations=result.to_coco(image_id=1))
    content["categories"] = describe_categories(vocabulary)
    return json_answer(content, headers)


def json_answer(content: Any, headers: Mapping[str, str] | None = None) -> Answer:
    """Return JSON as an answer. NaN and infinity, which are not JSON, raise ValueError."""
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Answer(text.encode("utf-8", "backslashreplace"), "application/json", headers or {})


def _png(pixels: np.ndarray) -> bytes:
    """Encode (H, W, 3) uint8 RGB."""
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, format="PNG", compress_level=3)
    return file.getvalue()
