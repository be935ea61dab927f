"""tools/analysis_tools/compare_results.py: agreement of two sets of panoptic results."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from odise_mm.annotations.panoptic_io import write_panoptic_png
from tools.analysis_tools import compare_results as tool


def write(folder: Path, maps: list[np.ndarray], labels: dict[int, int], **more: str) -> str:
    """Write results whose segment ids have the given category ids."""
    annotations, images = [], []
    for index, ids in enumerate(maps):
        write_panoptic_png(folder / "panoptic" / f"{index}.png", ids)
        segments = [
            dict(id=int(i), category_id=labels[int(i)], area=int((ids == i).sum()), iscrowd=0)
            for i in np.unique(ids)
            if i
        ]
        name = f"{index}.png"
        annotations.append(dict(image_id=index, file_name=name, segments_info=segments))
        size = dict(height=ids.shape[0], width=ids.shape[1])
        images.append(dict(id=index, file_name=more.get("image", f"{index}.jpg"), **size))
    categories = [dict(id=i, name=n, isthing=1) for i, n in enumerate(("cat", "dog"), start=1)]
    content = dict(images=images, annotations=annotations, categories=categories)
    path = folder / "panoptic.json"
    path.write_text(json.dumps(content))
    return str(path)


def compare(capsys: pytest.CaptureFixture, first: str, second: str) -> dict:
    assert tool.main([first, second, "--format", "json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_agreement(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """The second set has other numbers, a border that moved, and a cat that became a dog."""
    one = np.zeros((4, 10), np.int32)
    one[:, :5], one[:, 5:] = 1, 2
    moved = np.zeros((4, 10), np.int32)
    moved[:, :6], moved[:, 6:] = 7, 8
    renamed = np.full((4, 10), 9, np.int32)
    a = write(tmp_path / "a", [one, one, one], {1: 1, 2: 2})
    b = write(tmp_path / "b", [one * 10, moved, renamed], {10: 1, 20: 2, 7: 1, 8: 2, 9: 2})
    found = compare(capsys, a, b)
    assert found["images"] == 3 and found["equal_images"] == 1 and found["segments"] == [6, 5]
    assert found["pixels"] == pytest.approx(100 * (40 + 36 + 20) / 120)
    # Cats: IoU 1, 5/6, missed. Dogs: IoU 1, 4/5, and 20 of 40 pixels, which is not above one half.
    cat, dog = (1 + 5 / 6) / (2 + 0.5), (1 + 4 / 5) / (2 + 0.5 + 0.5)
    assert found["pq"] == pytest.approx(50 * (cat + dog))
    same = compare(capsys, a, a)
    assert (same["equal_images"], same["pixels"], same["pq"]) == (3, 100, 100)
    assert tool.main([a, b]) == 0
    assert "pixels of the same class" in capsys.readouterr().out


def test_files_of_other_images_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    ids = np.ones((4, 10), np.int32)
    a = write(tmp_path / "a", [ids], {1: 1})
    b = write(tmp_path / "b", [ids, ids], {1: 1})
    c = write(tmp_path / "c", [ids], {1: 1}, image="other.jpg")
    for other, message in ((b, "one has more images than the other"), (c, "where the other has")):
        with pytest.raises(SystemExit):
            tool.main([a, other])
        assert message in capsys.readouterr().err
