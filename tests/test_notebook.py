"""demo/odise_mm.ipynb: all cells run, and it is stored without outputs."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "demo/odise_mm.ipynb"


@pytest.fixture
def notebook() -> nbformat.NotebookNode:
    return nbformat.read(NOTEBOOK, as_version=4)


def test_notebook_is_valid_and_without_outputs(notebook: nbformat.NotebookNode) -> None:
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert not cell.get("outputs") and cell.get("execution_count") is None


def test_links_of_the_notebook_exist(notebook: nbformat.NotebookNode) -> None:
    prose = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    links = re.findall(r"\]\(([^)\s]+)\)", prose)
    assert links
    for link in links:
        assert (NOTEBOOK.parent / link).is_file(), link


def test_notebook_runs(
    notebook: nbformat.NotebookNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Use this environment's kernel, and write nothing to the user's home.
    for name in ("JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    folder = {"metadata": {"path": str(NOTEBOOK.parent)}}
    NotebookClient(notebook, timeout=120, kernel_name="python3", resources=folder).execute()

    outputs = {
        cell.id: cell.outputs
        for cell in notebook.cells
        if cell.cell_type == "code" and cell.outputs
    }
    shown = [out.data for out in sum(outputs.values(), []) if "data" in out]
    assert sum("image/png" in data for data in shown) == 5
    printed = {
        name: "".join(out.text for out in cell if out.output_type == "stream")
        for name, cell in outputs.items()
    }
    assert "yellow triangle" in printed["segment"] and "water" in printed["segment"]
    assert re.search(r"\(\d+, \d+\) bool \d+", printed["mask"])
    assert "golden triangle" in printed["other"] and "blue star" not in printed["other"]
    assert "bicycle" in printed["error"]
    assert re.search(r"water +water 1.00  ", printed["top"])
    assert "at least 900 pixels" in printed["top"] and "black" not in printed["top"].split("at")[1]
    assert "wrote " in printed["prepare"] and "train: 8 images, val: 2 images" in printed["prepare"]
    assert re.search(r"Iter\(train\) .*loss", printed["train"])
    assert re.search(r"Iter\(val\).*instance/AP: +\d", printed["train"])
    assert re.search(r"^\['.*'\]$", printed["train"], re.M)
