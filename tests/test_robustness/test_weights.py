"""Damaged, wrong and malicious weights files, as harmless samples."""

from __future__ import annotations

import io
import os
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from odise_mm.checkpoints import safe_loading as checkpoint
from odise_mm.checkpoints.safe_loading import load_state_dict
from odise_mm.checkpoints.weight_folders import read_weights
from odise_mm.errors import CheckpointError
from odise_mm.models import FrozenCLIP
from tests.support.parts import TINY_CLIP, clip


def refused(path: Path, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        FrozenCLIP(TINY_CLIP, str(path))
    assert "\n" not in str(caught.value) and path.name in str(caught.value)


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in clip().model.state_dict().items()}


def test_a_single_flipped_bit(state: dict, tmp_path: Path) -> None:
    """Without the check, -0.0057 became -2e36 unnoticed."""
    path = tmp_path / "clip.pt"
    torch.save(state, path)
    content = path.read_bytes()
    place = content.index(state["visual.proj"].numpy().tobytes()) + 403  # a byte of an exponent
    path.write_bytes(content[:place] + bytes([content[place] ^ 0x40]) + content[place + 1 :])
    assert torch.load(path, weights_only=True)["visual.proj"].abs().max() > 1e10
    refused(path, "damaged.*the checksum of .*/data/.* is wrong")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda value: value.to(torch.int32), r"visual.proj is int32, not float32"),
        (lambda value: value.bool(), r"visual.proj is bool, not float32"),
        (lambda value: value.to(torch.complex64), r"visual.proj is complex64, not float32"),
        (lambda value: value.to_sparse(), r"visual.proj is a tensor sparse"),
        (lambda value: value.to_sparse_csr(), r"visual.proj is a tensor sparse"),
        (lambda value: value.to("meta"), r"visual.proj is a tensor without numbers"),
        (
            lambda value: torch.quantize_per_tensor(value, 0.1, 0, torch.qint8),
            r"visual.proj is a tensor quantized",
        ),
        (
            lambda value: torch.nested.nested_tensor([value, value[:3]]),
            r"visual.proj is a tensor nested",
        ),
        (
            lambda value: torch.nested.nested_tensor([value, value[:3]], layout=torch.jagged),
            r"visual.proj is a tensor .*nested",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_tensors_that_are_not_weights(change, message: str, state: dict, tmp_path: Path) -> None:
    torch.save({**state, "visual.proj": change(state["visual.proj"])}, tmp_path / "clip.pt")
    refused(tmp_path / "clip.pt", message)


def test_integers_in_safetensors(state: dict, tmp_path: Path) -> None:
    state = {**state, "visual.proj": state["visual.proj"].to(torch.int8)}
    save_file(state, tmp_path / "clip.safetensors")
    refused(tmp_path / "clip.safetensors", "visual.proj is int8, not float32")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("ending", ["pt", "safetensors"])
def test_values_that_are_not_finite(
    value: float, ending: str, state: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(checkpoint, "print_log", lambda text, **_: said.append(text))
    spoilt = {key: tensor.clone() for key, tensor in state.items()}
    spoilt["visual.proj"][3, 4] = value
    path = tmp_path / f"clip.{ending}"
    torch.save(spoilt, path) if ending == "pt" else save_file(spoilt, path)
    FrozenCLIP(TINY_CLIP, str(path))
    assert len(said) == 1 and "1 of its tensors contain NaN or infinite" in said[0]
    assert "visual.proj" in said[0] and path.name in said[0]
    # Sums that overflow are not mistaken for such values.
    large = {"w": torch.full((9,), 3e38), "h": torch.full((9,), 6e4).half()}
    torch.save(large, path)
    load_state_dict(path)
    assert len(said) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="there are no named pipes in folders")
def test_a_pipe_instead_of_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "clip.pt")
    refused(tmp_path / "clip.pt", "is a pipe, a device or a socket")
    os.mkfifo(tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="is a pipe, a device or a socket"):
        read_weights(tmp_path, ("model",), "weights")


def test_a_dictionary_that_contains_itself(tmp_path: Path) -> None:
    content: dict = {"epoch": 1}
    content["state_dict"] = {"model": content}
    torch.save(content, tmp_path / "clip.pt")
    refused(tmp_path / "clip.pt", "contains no tensors")


def test_an_archive_that_unpacks_to_a_thousand_times_its_size(tmp_path: Path) -> None:
    stream = io.BytesIO()
    torch.save({"w": torch.zeros(1)}, stream)
    with (
        zipfile.ZipFile(stream) as source,
        zipfile.ZipFile(tmp_path / "clip.pt", "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for name in source.namelist():
            with target.open(name, "w") as entry:
                entry.write(source.read(name))
        with target.open("archive/data/9", "w") as entry:
            for _ in range(80):
                entry.write(bytes(1 << 20))
    assert (tmp_path / "clip.pt").stat().st_size < 1e5
    refused(tmp_path / "clip.pt", "unpacks to 83,.*weights cannot be compressed that much")


def test_a_pickle_that_unpacks_to_a_thousand_times_its_size(tmp_path: Path) -> None:
    """Nested lists: every byte becomes an object, in a number that is harmless here."""
    stream = io.BytesIO()
    torch.save({"w": torch.zeros(1)}, stream)
    with (
        zipfile.ZipFile(stream) as source,
        zipfile.ZipFile(tmp_path / "clip.pt", "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for name in source.namelist():
            lists = b"\x80\x02" + b"]" * (5 << 20) + b"."
            target.writestr(name, lists if name.endswith("data.pkl") else source.read(name))
    assert (tmp_path / "clip.pt").stat().st_size < 5e4
    refused(tmp_path / "clip.pt", r"data\.pkl unpacks to 5,.*but the whole archive has only")


def test_a_view_larger_than_memory(state: dict, tmp_path: Path) -> None:
    endless = torch.zeros(1).expand(1 << 50)
    torch.save({**state, "visual.proj": endless, "extra": endless}, tmp_path / "clip.pt")
    refused(tmp_path / "clip.pt", r"visual.proj is \(1125899906842624,\), not")


class Code:
    def __init__(self, *parts: object) -> None:
        self.parts = parts

    def __reduce__(self) -> tuple:
        return self.parts[0], self.parts[1:]


@pytest.mark.parametrize("where", ["state_dict", "extra"])
def test_code_in_a_file(where: str, state: dict, tmp_path: Path) -> None:
    trace = tmp_path / "it_ran"
    content = {"state_dict": dict(state)}
    if where == "extra":
        content["extra"] = Code(os.mkdir, str(trace))
    else:
        content["state_dict"]["visual.proj"] = Code(os.mkdir, str(trace))
    torch.save(content, tmp_path / "clip.pt")
    refused(
        tmp_path / "clip.pt", "was rejected: it tries to run code.*mkdir.*No code from it was run"
    )
    assert not trace.exists()


def test_strings_and_objects_of_numpy(state: dict, tmp_path: Path) -> None:
    for value in (np.array(["text"]), np.array([None]), np.zeros(1, dtype=[("a", "f4")])):
        torch.save({"state_dict": state, "extra": value}, tmp_path / "clip.pt")
        refused(tmp_path / "clip.pt", "was rejected.*numpy")


def test_keys_with_control_characters(state: dict, tmp_path: Path) -> None:
    torch.save({**state, "\x1b[2Jerror: \nall is well": torch.ones(1)}, tmp_path / "clip.pt")
    refused(tmp_path / "clip.pt", r"1 unknown \(first: \\x1b\[2Jerror: \\nall is well")
