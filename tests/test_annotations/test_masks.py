"""Masks of annotation files: usable ones are decoded correctly, invalid ones raise."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as mask_utils

from odise_mm.annotations.masks import clean_mask, to_rle
from odise_mm.errors import DatasetError

SIZE = (30, 40)
SQUARE = [5, 5, 15, 5, 15, 15, 5, 15]
TRIANGLE = [20, 2, 30, 2, 30, 12]
FOUR = [3, 3, 3, 9]  # two points; four numbers, which pycocotools takes for a box


def drawn(mask: Any) -> np.ndarray:
    return mask_utils.decode(to_rle(clean_mask(mask, SIZE), SIZE))


def test_degenerate_rings_are_dropped_wherever_they_are() -> None:
    alone, both = drawn([SQUARE]), drawn([SQUARE, TRIANGLE])
    assert alone.sum() == 100 and alone[5:15, 5:15].all() and both.sum() > 100
    for other in (FOUR, [3, 3], []):
        for rings in ([other, SQUARE], [SQUARE, other], [other, SQUARE, other]):
            assert np.array_equal(drawn(rings), alone), rings
        assert np.array_equal(drawn([other, SQUARE, TRIANGLE]), both)
        assert clean_mask([other, other], SIZE) is None
    assert clean_mask([], SIZE) is None


def test_ring_may_extend_slightly_beyond_the_image() -> None:
    inside = drawn([[0, 0, 40, 0, 40, 30, 0, 30]])
    assert inside.all()
    assert np.array_equal(drawn([[-2, -2.5, 43, -1, 42.5, 33, 0, 31]]), inside)


@pytest.mark.parametrize(
    "ring",
    [
        [0, 0, 80, 0, 80, 60, 0, 60],  # of an image that is twice as large
        [0, 0, 10, 0, 10, 1e9],  # pycocotools would ask for gigabytes
        [0, 0, 10, 0, 10, -1e9],
        [0, 0, 10, 0, math.inf, 5],
        [0, 0, 10, 0, math.nan, 5],
        [math.nan, 0, 10, 0, 10, 5],
        [0, 0, 10, 0, 10**400, 5],
    ],
)
def test_rings_far_beyond_the_image_are_unusable(ring: list) -> None:
    assert clean_mask([ring], SIZE) is None
    assert clean_mask([SQUARE, ring], SIZE) is None  # half a mask would be a wrong one


def code(mask: np.ndarray) -> dict[str, Any]:
    encoded = mask_utils.encode(np.asfortranarray(mask, dtype=np.uint8))
    return dict(size=list(encoded["size"]), counts=encoded["counts"].decode())


def test_codes_of_pycocotools_are_valid() -> None:
    rng = np.random.default_rng(3)
    for share in (0, 0.02, 0.5, 0.98, 1):
        for shape in ((1, 1), (1, 9), (60, 1), (150, 230)):
            mask = rng.random(shape) < share
            for _ in range(int(rng.integers(3))):
                mask[: shape[0] // 2, shape[1] // 3 :] ^= True
            assert clean_mask(code(mask), shape) == code(mask)


SOLID = code(np.ones(SIZE))
SQUARE_CODE = code(drawn([SQUARE]))


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        ("text", 'its mask is "text"; COCO.s masks are lists of rings or run lengths'),
        (SQUARE, r"has 5 instead of a ring; put each ring into a separate list"),
        ([[[5, 5], [15, 5], [15, 15]]], r"has \[5, 5\] instead of a number; .* not pairs"),
        ([["5", "5", "15", "5", "15", "15"]], 'has "5" instead of a number'),
        ([[5, 5, 15, 5, None, 15]], "has null instead of a number"),
        ([[5, 5, 15, 5, True, 15]], "has true instead of a number"),
        ([SQUARE, SQUARE[:-1]], "7 numbers, an x without a y"),
        ([SQUARE, None], "has null instead of a ring"),
        ([dict(SOLID)], 'has {"size": .* instead of a ring'),
        ({}, "lack `size`"),
        ({"size": [30, 40]}, "lack `counts`"),
        ({**SOLID, "size": [40, 30]}, r"have size \[40, 30\], but its image has \[30, 40\]"),
        ({**SOLID, "size": [60, 80]}, r"have size \[60, 80\], but its image has \[30, 40\]"),
        ({**SOLID, "size": "30x40"}, 'have size "30x40"'),
        ({**SOLID, "size": [30.0, 40]}, r"have size \[30.0, 40\]"),
        ({**SOLID, "counts": [100, 200]}, "damaged: they sum to 300, .* 30 x 40 = 1200 pixels"),
        ({**SOLID, "counts": [1200, 1]}, "damaged: they sum to 1201"),
        ({**SOLID, "counts": [1300, -100]}, "damaged"),
        ({**SOLID, "counts": []}, "damaged: they sum to 0"),
        ({**SOLID, "counts": [600.0, 600.0]}, "have counts .* whole numbers or text"),
        ({**SOLID, "counts": ["600", "600"]}, "have counts"),
        ({**SOLID, "counts": None}, "have counts null"),
        ({**SOLID, "counts": ""}, "cannot be read"),
        ({**SOLID, "counts": "0 1200"}, "cannot be read"),
        ({**SOLID, "counts": "0é"}, "cannot be read"),
        ({**SOLID, "counts": SQUARE_CODE["counts"][:-2]}, "damaged"),
        ({**SOLID, "counts": SQUARE_CODE["counts"] + "P"}, "cannot be read"),  # more to follow
        ({**SOLID, "counts": "o" * 40 + "0"}, "cannot be read"),  # a number of 200 bits
    ],
)
def test_not_a_mask_of_the_image_raises(mask: Any, message: str) -> None:
    with pytest.raises(DatasetError, match=message) as caught:
        clean_mask(mask, SIZE)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_deeply_nested_lists_raise() -> None:
    ring: list = []
    for _ in range(100_000):
        ring = [ring]
    with pytest.raises(DatasetError, match="deeply nested lists"):
        clean_mask([ring], SIZE)


def test_truncated_codes_raise() -> None:
    for end in range(len(SQUARE_CODE["counts"])):
        with pytest.raises(DatasetError, match="damaged"):
            clean_mask(dict(size=[30, 40], counts=SQUARE_CODE["counts"][:end]), SIZE)
