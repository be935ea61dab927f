"""``import odise_mm`` is quick, and its names are imported on first access."""

from __future__ import annotations

import subprocess
import sys

import pytest

import odise_mm
from odise_mm.apis import OpenVocabInferencer
from odise_mm.structures import SegmentationResult
from odise_mm.vocabulary import Vocabulary


def run(code: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_import_loads_no_large_library() -> None:
    code = (
        "import sys, odise_mm\n"
        "assert 'Vocabulary' in dir(odise_mm)\n"
        "names = 'torch', 'numpy', 'mmcv', 'mmengine', 'mmdet', 'odise_mm.apis'\n"
        "print(*[name for name in names if name in sys.modules])"
    )
    assert run(code) == []


def test_vocabulary_and_result_do_not_import_torch() -> None:
    code = (
        "import sys; from odise_mm import SegmentationResult, Vocabulary\n"
        "print(len(Vocabulary.parse('cat; dog')), 'torch' in sys.modules)"
    )
    assert run(code) == ["2", "False"]


def test_exports_are_the_objects_of_their_modules() -> None:
    assert odise_mm.OpenVocabInferencer is OpenVocabInferencer
    assert odise_mm.SegmentationResult is SegmentationResult
    assert odise_mm.Vocabulary is Vocabulary
    assert {*odise_mm.__all__, "__path__"} <= set(dir(odise_mm))


def test_unknown_attribute_raises() -> None:
    with pytest.raises(AttributeError, match="module 'odise_mm' has no attribute 'Inferencer'"):
        _ = odise_mm.Inferencer
