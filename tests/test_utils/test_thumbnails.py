"""Small pictures of regions: what they show, and pictures from strangers."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from odise_mm.utils.thumbnails import MAX_BYTES, MAX_SIDE, SIDE, as_data_url, checked, thumbnail


def decoded(picture: bytes) -> np.ndarray:
    image = Image.open(io.BytesIO(picture))
    assert image.format == "JPEG"
    return np.asarray(image)[..., ::-1].astype(int)


@pytest.mark.parametrize("size", [(3, 5), (40, 20), (300, 900)])
def test_the_region_is_clear_and_the_rest_fades(size: tuple[int, int]) -> None:
    height, width = size
    image = np.full((height + 40, width + 40, 3), (250, 20, 20), np.uint8)  # blue, in BGR
    mask = np.zeros(image.shape[:2], bool)
    mask[10 : 10 + height, 20 : 20 + width] = True
    image[mask] = (10, 220, 240)
    picture = decoded(thumbnail(image, mask))
    margin = round(0.1 * max(size))
    rows = min(margin, 10) + height + min(margin, 30)  # the margin ends at the image's border
    columns = min(margin, 20) + width + min(margin, 20)
    scale = min(1, SIDE / max(rows, columns))
    assert picture.shape[:2] == (round(rows * scale), round(columns * scale))
    middle = picture[picture.shape[0] // 2, picture.shape[1] // 2]
    assert np.abs(middle - (10, 220, 240)).max() < 25
    if margin > 2:
        assert np.abs(picture[-1, -1] - (0.35 * np.array((250, 20, 20)) + 83)).max() < 30


def jpeg(width: int, height: int, form: str = "JPEG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(file, form)
    return file.getvalue()


def test_pictures_from_strangers_are_decoded_with_limits() -> None:
    good = jpeg(MAX_SIDE, 7)
    again = checked(good)
    assert again is not None and again != good and decoded(again).shape == (7, MAX_SIDE, 3)
    assert base64.b64decode(as_data_url(again).partition("base64,")[2]) == again
    place = good.index(b"\xff\xc0") + 5  # height and width in the frame's header
    bomb = good[:place] + b"\x30\x00\x30\x00" + good[place + 4 :]
    assert Image.open(io.BytesIO(bomb)).size == (12288, 12288)
    worse = good[:place] + b"\xff\xff\xff\xff" + good[place + 4 :]
    tail = good + bytes(MAX_BYTES)
    for wrong in (
        b"",
        b"x",
        jpeg(MAX_SIDE + 1, 7),
        jpeg(8, 8, "PNG"),
        bomb,
        worse,
        good[:-40],
        tail,
    ):
        assert checked(wrong) is None
    assert b"<script>" not in (checked(good + b"<script>") or b"<script>")
