"""Pages of mapped files: dropped, read again, and kept if they were written to."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn

from odise_mm.analysis.parts import process_memory
from odise_mm.checkpoints.safe_loading import load_state_dict, save_state_dict
from odise_mm.models.frozen import cast_weights
from odise_mm.utils.pages import release_pages, to_float32

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
MB = 2**20


def of_files() -> int:
    return process_memory("RssFile")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pages") / "weights.safetensors"
    values = torch.arange(4 * MB, dtype=torch.float32).view(4, MB)
    save_state_dict(path, {"a": values, "b": torch.ones(4, MB).half()})
    return path


def mapped(path: Path, name: str = "a") -> torch.Tensor:
    with safe_open(path, framework="pt") as file:
        return file.get_tensor(name)


def test_pages_are_dropped_and_read_again(path: Path) -> None:
    values = mapped(path)
    total = values.double().sum()
    before = of_files()
    assert release_pages(values) >= values.nbytes
    assert of_files() < before - 15 * MB
    assert release_pages(values) == 0  # nothing is left
    assert values.double().sum() == total and values[3, 5] == 3 * MB + 5


def test_changed_and_own_memory_is_kept(path: Path) -> None:
    values = mapped(path)
    values.sum()
    values[2, 7] = -1
    assert release_pages(values) == 0 and values[2, 7] == -1
    own = torch.ones(MB)
    assert release_pages(own) == 0 and own.sum() == MB
    for empty in (torch.ones(0), torch.ones(5), torch.ones(4, 9000).T, torch.ones(9000).to("meta")):
        assert release_pages(empty) == 0


def test_loading_and_conversions_leave_no_pages(path: Path) -> None:
    before = of_files()
    state = load_state_dict(path)
    assert of_files() < before + 2 * MB  # it has read every number
    wide = to_float32(state["b"])
    assert wide.dtype == torch.float32 and (wide == 1).all() and to_float32(wide) is wide
    layer = nn.Module()
    layer.weight = nn.Parameter(state["a"], requires_grad=False)
    cast_weights(layer, torch.bfloat16)
    assert of_files() < before + 2 * MB
    assert torch.equal(layer.weight, torch.arange(4 * MB).view(4, MB).bfloat16())
