"""Fixtures shared by all tests."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from tests.support import golden


def pytest_configure() -> None:
    """Processes of one pytest-xdist run share the cores, and so do the programs that they start."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))
    if workers > 1:
        threads = max(1, (os.cpu_count() or 1) // workers)
        os.environ.setdefault("OMP_NUM_THREADS", str(threads))
        torch.set_num_threads(threads)


SLOW_FILES = (
    "test_tutorial.py",
    "test_overfit.py",
    "test_model_summary.py",
    "test_tools/test_test.py",
    "test_segmentor.py",
    "test_published_equality.py",
    "test_tools/test_benchmark.py",
    "test_models/test_training.py",
    "test_distributed.py",
    "test_published_families.py",
    "test_training_step.py",
    "test_packaging.py",
    "test_text_captioners.py",
    "toy_world/tests/test_weights.py",
    "test_finetune_page.py",
    "test_evaluation_page.py",
)
"""Files that take about a minute or more, the slowest first."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the slow files first, so that no process waits for another one at the end."""

    def place(item: pytest.Item) -> int:
        path = item.path.as_posix()
        places = (i for i, name in enumerate(SLOW_FILES) if path.endswith(f"/{name}"))
        return next(places, len(SLOW_FILES))

    items.sort(key=place)


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Folder with the tiny random weights in the published formats (265 MB, written once).

    ``sd_v1.ckpt``, ``clip.pt``, ``odise_label.pth``, ``odise_caption.pth``. Processes of one
    pytest-xdist run share the folder.
    """
    base = tmp_path_factory.getbasetemp()
    parallel = "PYTEST_XDIST_WORKER" in os.environ
    folder = (base.parent if parallel else base) / "tiny_weights"
    done = folder / "done"
    with FileLock(str(folder) + ".lock"):
        if not done.exists():
            golden.write_all(folder, "tiny")
            done.touch()
    yield folder
    if not parallel:
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def golden_folder() -> Path:
    """Complete recordings; tests that need them are skipped without ``ODISE_GOLDEN_DIR``."""
    folder = golden.full_folder()
    if folder is None:
        pytest.skip(f"{golden.ENV_FOLDER} is not set")
    return folder
