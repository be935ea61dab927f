"""Converted results, read back by programs that are too large for the environment of the tests.

``make test-formats`` installs them, see requirements/formats.txt; otherwise the tests are skipped.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from odise_mm.annotations.panoptic_io import CocoPanopticWriter
from odise_mm.io import FORMATS
from odise_mm.io.conversion import convert
from tests.test_io.test_conversion import NAMES, SIZE, make_result

ROOT = Path(__file__).resolve().parents[2]
FORMATS_READ = {
    "datumaro": {"coco", "coco_panoptic", "coco_polygons", "cvat", "cvat_polygons", "voc"},
    "fiftyone": {"coco", "coco_polygons"},
    "label-studio-sdk": {"labelstudio"},
    "labelme": {"labelme", "labelme_masks"},
}


@pytest.mark.parametrize("program", FORMATS_READ)
def test_all_masks_are_equal(program: str, tmp_path: Path) -> None:
    python = ROOT / ".formats" / program / "bin/python"
    if not python.exists():
        pytest.skip("make test-formats installs it")
    results = {stem: make_result(f"{stem}.jpg", seed) for seed, stem in enumerate(("a/1", "b/1"))}
    with CocoPanopticWriter(tmp_path / "panoptic.json", NAMES) as writer:
        for stem, result in results.items():
            writer.add(result, stem, image_name=f"{stem}.jpg")
            path = tmp_path / f"images/{stem}.jpg"
            path.parent.mkdir(parents=True)
            Image.new("RGB", SIZE[::-1]).save(path)
    convert(tmp_path / "panoptic.json", [n for n in FORMATS if n != "parquet"], tmp_path)
    script = ROOT / "tests/support/format_readers.py"
    out = tmp_path / "found.npz"
    subprocess.run([python, script, program, tmp_path, out], check=True, cwd=tmp_path)
    with np.load(out) as found:
        expected = {
            f"{name}|{stem}|{segment.name}": result.mask(segment)
            for name in FORMATS_READ[program]
            for stem, result in results.items()
            for segment in result.segments
        }
        assert set(found) == set(expected)
        for key, mask in expected.items():
            assert np.array_equal(found[key], mask), key


def test_every_program_has_an_environment() -> None:
    lines = (ROOT / "requirements/formats.txt").read_text().splitlines()
    assert {line.partition("==")[0] for line in lines if line[0] != "#"} == set(FORMATS_READ)
