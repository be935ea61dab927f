"""``odise-mm download``, from a local server."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from odise_mm.checkpoints.safe_loading import save_state_dict
from odise_mm.cli.main import main
from odise_mm.vocabulary import label_files
from tests.support.fake_segmentor import CONFIG
from tests.support.file_server import FileServer, serving

METAFILE = """
Collections:
  - Name: Fakes
    Weights License: CC BY-NC-SA 4.0
Models:
  - Name: fake
    In Collection: Fakes
    Config: configs/fakes/fake.py
    Weights: {url}
"""


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    """Server of the checkpoint that a metafile in the working directory names."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "torch"))
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    save_state_dict("fake.pth", {"scale": torch.full((1,), 3.0)})
    content = Path("fake.pth").read_bytes()
    folder = tmp_path / "configs/fakes"
    folder.mkdir(parents=True)
    with serving(content) as running:
        digits = hashlib.sha256(content).hexdigest()[:8]
        running.url = running.url.replace("weights.pth", f"fake-{digits}.pth")
        (folder / "metafile.yml").write_text(METAFILE.format(url=running.url))
        (folder / "fake.py").write_text(CONFIG.replace("random_weights = True\n", ""))
        yield running


@pytest.mark.parametrize("answer", ["y\n", " Yes\n", None])
def test_download_checkpoint_of_a_config(
    answer: str | None,
    server: FileServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO() if answer is None else Terminal(answer))
    agreed = ["--yes"] if answer is None else []
    for first in (True, False):  # the second call finds the file
        assert main(["download", "fake", *agreed]) == 0
        captured = capsys.readouterr()
        (file,) = (tmp_path / "torch/checkpoints").glob("*.pth")
        assert captured.out == f"fake: {file}\n"
        assert ("CC BY-NC-SA 4.0" in captured.err) == first
    assert file.read_bytes() == server.content
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("terminal", "message"),
    [
        (Terminal("n\n"), "download declined, nothing was downloaded"),
        (Terminal(""), "download declined, nothing was downloaded"),
        (io.StringIO("y\n"), "agree to these licenses with --yes, or run this in a terminal"),
    ],
)
def test_nothing_is_downloaded_without_agreement(
    terminal: io.StringIO,
    message: str,
    server: FileServer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sys.stdin", terminal)
    with pytest.raises(SystemExit) as end:
        main(["download", "fake"])
    assert end.value.code == 2 and not server.requests
    *_, line = capsys.readouterr().err.splitlines()
    assert "error: " in line and line.endswith(message)


def test_ctrl_c_at_the_question(
    server: FileServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Interrupted(Terminal):
        def readline(self, *_: int) -> str:
            raise KeyboardInterrupt

    monkeypatch.setattr("sys.stdin", Interrupted())
    with pytest.raises(SystemExit) as end:
        main(["download", "fake"])
    assert end.value.code == 130 and not server.requests
    assert capsys.readouterr().err.endswith("interrupted; run the same command again to continue\n")


def test_shipped_weights_are_not_downloaded(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["download", "odise_toy_label"]) == 0
    captured = capsys.readouterr()
    assert captured.out.endswith("projects/toy_world/weights/odise_label.safetensors\n")
    assert "Download?" not in captured.err


def test_label_files_and_checkpoints_in_one_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(label_files, "download", lambda source, path, *_, **__: path)
    assert main(["download", "openseg:ade20k_150", "odise_toy_label", "--no-frozen"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(": ")[0] for line in lines] == ["openseg:ade20k_150", "odise_toy_label"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("odise_tiny", "uses random weights, so there is nothing to download"),
        ("odise_nothing", "no config 'odise_nothing'"),
        ("openseg:nothing", "unknown vocabulary 'openseg:nothing'"),
    ],
)
def test_unknown_names_raise(name: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["download", name])
    assert end.value.code == 2
    assert message in capsys.readouterr().err
