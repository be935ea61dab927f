"""docs/gallery.md: each picture exists, and the commands above it write its file."""

from __future__ import annotations

import pytest
from PIL import Image

from docs.gallery import PAGE, Picture, pictures


def test_all_pictures_are_found() -> None:
    found = list(pictures())
    assert len(found) == PAGE.read_text().count("<!-- picture ") >= 5
    assert len({picture.image for picture in found}) == len(found)


@pytest.mark.parametrize("picture", pictures(), ids=lambda picture: picture.image.stem)
def test_picture(picture: Picture) -> None:
    folder = picture.file.partition("*")[0].rsplit("/", 1)[0].removesuffix("/vis")
    assert folder.removesuffix("/odise_toy_label/worst") in picture.commands
    with Image.open(picture.image) as image:
        assert image.width > 500
        image.verify()
    assert picture.image.stat().st_size < 300_000
