"""Fixture with a small toy-world dataset, written once."""

from __future__ import annotations

from pathlib import Path

import pytest

from projects.toy_world import generate

TRAIN, VAL, WEB = 90, 30, 12


@pytest.fixture(scope="package")
def toy_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write all three splits in one process, with seed 5."""
    root = tmp_path_factory.mktemp("toy_world")
    numbers = [str(TRAIN), str(VAL), str(WEB)]
    options = ["--splits", "train", "val", "web", "--number", *numbers]
    assert generate.main([str(root), *options, "--seed", "5", "--workers", "1"]) == 0
    return root
