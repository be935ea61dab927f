"""Weights files: all formats, damaged files, and files that try to run code."""

from __future__ import annotations

import io
import os
import pickle
import subprocess
import sys
import types
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from odise_mm.checkpoints.safe_loading import load_state_dict, save_state_dict
from odise_mm.errors import CheckpointError

WEIGHTS = {
    "head.weight": torch.arange(12.0).view(3, 4),
    "head.bias": torch.tensor([1.0, 2.0, 3.0]),
    "steps": torch.tensor(7),
}


def assert_weights(loaded: dict[str, torch.Tensor]) -> None:
    assert loaded.keys() == WEIGHTS.keys()
    for key, value in WEIGHTS.items():
        assert loaded[key].dtype == value.dtype and torch.equal(loaded[key], value)
        assert not loaded[key].requires_grad


def legacy(content: object, path: Path) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=False)


# -------------------------------------------------------------------------- formats


@pytest.mark.parametrize("save", [torch.save, legacy], ids=["zip", "legacy"])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda w: w,
        lambda w: OrderedDict(w),
        lambda w: {"state_dict": w, "meta": {"epoch": 1, "classes": ("a", "b")}},
        lambda w: {"model": w, "iteration": 5, "optimizer": {"state": {}, "param_groups": []}},
        lambda w: {"module": w},
        lambda w: {"model": {"state_dict": w}},
        lambda w: {**w, "note": "text", "size": 3, "nested": {}},
        lambda w: {k: torch.nn.Parameter(v) if v.is_floating_point() else v for k, v in w.items()},
    ],
)
def test_torch_files(save: Callable, wrap: Callable, tmp_path: Path) -> None:
    save(wrap(WEIGHTS), tmp_path / "w.pth")
    assert_weights(load_state_dict(tmp_path / "w.pth"))


def test_format_is_detected_from_the_content(tmp_path: Path) -> None:
    save_file(WEIGHTS, tmp_path / "w.safetensors")
    assert_weights(load_state_dict(tmp_path / "w.safetensors"))
    (tmp_path / "w.safetensors").rename(tmp_path / "w.bin")
    assert_weights(load_state_dict(str(tmp_path / "w.bin")))
    torch.save(WEIGHTS, tmp_path / "w.safetensors")
    assert_weights(load_state_dict(tmp_path / "w.safetensors"))


@pytest.mark.parametrize("save", [torch.save, legacy], ids=["zip", "legacy"])
def test_original_stable_diffusion_files_name_a_lightning_class(
    save: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They contain {"callbacks": {ModelCheckpoint: ...}}; Lightning need not be installed."""
    name = "pytorch_lightning.callbacks.model_checkpoint"
    parts = name.split(".")
    with monkeypatch.context() as patch:
        for i in range(1, 4):
            patch.setitem(sys.modules, ".".join(parts[:i]), types.ModuleType(".".join(parts[:i])))
        cls = type("ModelCheckpoint", (), {"__module__": name})
        sys.modules[name].ModelCheckpoint = cls
        callbacks = {cls: {"best_model_score": torch.tensor(0.1), "best_model_path": "x"}}
        content = {"epoch": 2, "state_dict": WEIGHTS, "callbacks": callbacks}
        save(content, tmp_path / "sd.ckpt")
    assert_weights(load_state_dict(tmp_path / "sd.ckpt"))
    assert name not in sys.modules


def test_openmmlab_training_checkpoint(tmp_path: Path) -> None:
    history = HistoryBuffer([0.5, 0.25], [1, 1])
    content = {
        "meta": {"epoch": 1, "iter": 2, "cfg": "model = dict()", "seed": np.int64(3)},
        "state_dict": OrderedDict(WEIGHTS),
        "message_hub": {"log_scalars": OrderedDict(loss=history), "runtime_info": {}},
        "optimizer": {"state": {}, "param_groups": [{"lr": np.float64(1e-4)}]},
    }
    torch.save(content, tmp_path / "iter_2.pth")
    assert_weights(load_state_dict(tmp_path / "iter_2.pth"))

    # The same if another library has registered some of the real classes.
    real = [np.ndarray, np.dtype, HistoryBuffer, (np.ndarray.__reduce__, "builtins.getattr")]
    with torch.serialization.safe_globals(real):
        assert_weights(load_state_dict(tmp_path / "iter_2.pth"))
        assert set(torch.serialization.get_safe_globals()) >= set(real)


@pytest.mark.parametrize("name", ["sd_v1.ckpt", "clip.pt", "odise_label.pth", "odise_caption.pth"])
def test_published_files(name: str, tiny_weights: Path) -> None:
    expected = torch.load(tiny_weights / name, weights_only=True, mmap=True)
    expected = expected.get("state_dict", expected.get("model", expected))
    loaded = load_state_dict(tiny_weights / name)
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[k], expected[k]) for k in expected)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_keep_reads_only_what_is_wanted(suffix: str, tmp_path: Path) -> None:
    """100 MB of unwanted numbers stay on disk, measured by the memory of a new process."""
    state = {"wanted": torch.ones(10), "unwanted": torch.ones(25_000_000)}
    save_state_dict(tmp_path / f"w{suffix}", state)
    loaded = load_state_dict(tmp_path / f"w{suffix}", keep=lambda key: key == "wanted")
    assert list(loaded) == ["wanted"] and torch.equal(loaded["wanted"], state["wanted"])
    assert load_state_dict(tmp_path / f"w{suffix}", keep=lambda _: False) == {}
    script = (
        "import sys\nfrom odise_mm.checkpoints.safe_loading import load_state_dict\n"
        "def peak():\n"
        "    lines = open('/proc/self/status').read().splitlines()\n"
        "    return next(int(l.split()[1]) for l in lines if l.startswith('VmHWM'))\n"
        "before = peak()\n"
        "load_state_dict(sys.argv[1], keep=lambda key: key == 'wanted')['wanted'].sum()\n"
        "print(peak() - before)"
    )
    if sys.platform.startswith("linux"):
        run = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path / f"w{suffix}")],
            check=True,
            capture_output=True,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        assert int(run.stdout) < 50_000


# --------------------------------------------------------------------------- broken


def zip_bytes(content: object) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream)
    return stream.getvalue()


def legacy_bytes(content: object) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream, _use_new_zipfile_serialization=False)
    return stream.getvalue()


def safetensors_bytes(tmp_path: Path) -> bytes:
    save_file(WEIGHTS, tmp_path / "whole")
    return (tmp_path / "whole").read_bytes()


def other_zip() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("word/document.xml", "text")
    return stream.getvalue()


def torchscript() -> bytes:
    stream = io.BytesIO(zip_bytes({}))
    with zipfile.ZipFile(stream, "a") as archive:
        archive.writestr("archive/constants.pkl", b"\x80\x02).")
    return stream.getvalue()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("w.pth", lambda _: b"", "is empty: download or copy it again"),
        ("w.safetensors", lambda _: b"", "is empty: download or copy it again"),
        ("w.pth", lambda _: zip_bytes(WEIGHTS)[:-300], "is truncated"),
        ("w.pth", lambda _: zip_bytes(WEIGHTS)[:40], "is truncated"),
        ("w.pth", lambda _: legacy_bytes(WEIGHTS)[:-9], "is truncated, damaged"),
        ("w.pth", lambda _: legacy_bytes(WEIGHTS)[:200], "is truncated, damaged"),
        ("w.pth", lambda _: legacy_bytes(WEIGHTS)[:3], "is truncated, damaged"),
        ("w.safetensors", lambda p: safetensors_bytes(p)[:-1], "is truncated or not a safetensors"),
        ("w.safetensors", lambda p: safetensors_bytes(p)[:50], "is truncated or not a safetensors"),
        ("w.safetensors", lambda p: safetensors_bytes(p)[:5], "is truncated or not a safetensors"),
        ("w.safetensors", lambda _: b"some text, no weights", "is truncated or not a safetensors"),
        ("w.pth", lambda _: b"some text, no weights", "is not a checkpoint: neither"),
        ("w.pth", lambda _: b"<!DOCTYPE html><html>", "looks like a web page"),
        ("w.safetensors", lambda _: b"version https://git-lfs.github.com", "git lfs pull"),
        ("w.pth", lambda _: other_zip(), "is a zip archive, but not a checkpoint"),
        ("w.pt", lambda _: torchscript(), "TorchScript program.*open_clip tag"),
        ("w.pth", lambda _: zip_bytes([1, 2]), "contains a list, not weights by name"),
        ("w.pth", lambda _: zip_bytes(torch.ones(2)), "contains a Tensor, not weights by name"),
        ("w.pth", lambda _: zip_bytes({}), "contains no tensors, only: nothing"),
        ("w.pth", lambda _: zip_bytes({"a": 1, "b": "c"}), "contains no tensors, only: 'a', 'b'"),
        ("w.pth", lambda _: zip_bytes({"state_dict": {}}), "contains no tensors, only: nothing"),
        ("w.pth", lambda _: pickle.dumps({"a": 1}, 4), "save it again with torch.save"),
        ("w.pkl", lambda _: pickle.dumps([1, 2], 2), "is truncated, damaged or not a checkpoint"),
    ],
)  # fmt: skip
def test_broken_files(name: str, make: Callable, message: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(make(tmp_path))
    with pytest.raises(CheckpointError, match=message) as caught:
        load_state_dict(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no weights file .*nowhere.pth"):
        load_state_dict(tmp_path / "nowhere.pth")
    with pytest.raises(CheckpointError, match="is a folder"):
        load_state_dict(tmp_path)
    save_file({}, tmp_path / "none.safetensors")
    with pytest.raises(CheckpointError, match="contains no tensors"):
        load_state_dict(tmp_path / "none.safetensors")


# ----------------------------------------------------------------------------- code


class Bomb:
    """An object that calls a function when it is unpickled."""

    def __init__(self, function: Callable, *args: object) -> None:
        self.call = function, args

    def __reduce__(self) -> tuple:
        return self.call


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("write", ["zip", "legacy", "pickle2", "pickle5"])
@pytest.mark.parametrize(
    ("function", "culprit"),
    [(os.system, r"(posix|nt)\.system"), (eval, r"eval"), (os.mkdir, r"(posix|nt)\.mkdir")],
)
def test_code_is_rejected_and_not_run(
    write: str, function: Callable, culprit: str, tmp_path: Path
) -> None:
    trace = tmp_path / "it_ran"
    argument = {
        os.system: f"mkdir {trace}",
        eval: f"__import__('os').mkdir({str(trace)!r})",
        os.mkdir: str(trace),
    }[function]
    content = {"state_dict": WEIGHTS, "extra": Bomb(function, argument)}
    path = tmp_path / "w.pth"
    if write == "zip":
        torch.save(content, path)
    elif write == "legacy":
        legacy(content, path)
    else:
        path.write_bytes(pickle.dumps({"extra": Bomb(function, argument)}, int(write[-1])))

    with pytest.raises(CheckpointError, match=f"rejected.*{culprit}.*No code from it was run"):
        load_state_dict(path)
    assert not trace.exists()

    # torch.load without weights_only runs the code, so the file is really harmful.
    if write == "zip":
        torch.load(path, weights_only=False)
        assert trace.exists()


def test_getattr_cannot_be_used_to_reach_a_function(tmp_path: Path) -> None:
    """getattr is replaced while a file is read, and torch's allowlist is unchanged afterwards."""
    before = torch.serialization.get_safe_globals()
    trace = tmp_path / "it_ran"
    reach = Bomb(getattr, os, "mkdir")
    reach.call = getattr, (Bomb(__import__, "os"), "mkdir")
    torch.save({"state_dict": WEIGHTS, "extra": reach}, tmp_path / "import.pth")
    with pytest.raises(CheckpointError, match="builtin.*__import__"):
        load_state_dict(tmp_path / "import.pth")

    # A call of the placeholder's result is rejected as well.
    nested = b"\x80\x02cbuiltins\ngetattr\n(X\x01\x00\x00\x00aX\x01\x00\x00\x00btR)R."
    with zipfile.ZipFile(tmp_path / "call.pth", "w") as archive:
        archive.writestr("call/data.pkl", nested)
        archive.writestr("call/version", "3\n")
        archive.writestr("call/byteorder", "little")
    with pytest.raises(CheckpointError, match="rejected"):
        load_state_dict(tmp_path / "call.pth")
    assert not trace.exists()
    assert set(torch.serialization.get_safe_globals()) == set(before)


# -------------------------------------------------------------------------- writing


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".ckpt", ".pt", ".bin"])
def test_written_and_read_back(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / "new" / f"w{suffix}"
    table = torch.arange(20.0).view(4, 5)
    odd = {**WEIGHTS, "turned": table.T, "slice": table[1], "same": table, "again": table}
    odd["learned"] = torch.nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
    save_state_dict(path, odd, meta={"source": "test"})
    loaded = load_state_dict(path)
    assert loaded.keys() == odd.keys()
    assert all(torch.equal(loaded[k], odd[k]) and loaded[k].dtype == odd[k].dtype for k in odd)
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    if suffix == ".safetensors":
        assert load_file(path).keys() == odd.keys()
        with safe_open(path, "pt") as file:
            assert file.metadata() == {"source": "test"}
    else:
        assert torch.load(path, weights_only=True)["meta"] == {"source": "test"}


FULL_DISK_SCRIPT = """
import resource, sys, torch
from odise_mm.errors import CheckpointError
from odise_mm.checkpoints.safe_loading import save_state_dict
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
try:
    save_state_dict(sys.argv[1], {"a": torch.zeros(100_000)})
except CheckpointError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="limits file sizes the POSIX way")
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_failed_write_leaves_the_previous_file(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"w{suffix}"
    save_state_dict(path, WEIGHTS)
    run = subprocess.run(
        [sys.executable, "-c", FULL_DISK_SCRIPT, str(path)],
        check=True,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert "could not write" in run.stdout and "is unchanged" in run.stdout
    assert_weights(load_state_dict(path))
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_replacing_a_file_that_is_being_read(tmp_path: Path) -> None:
    """Tensors that are still on disk keep their values when the file is replaced."""
    path = tmp_path / "w.pth"
    save_state_dict(path, WEIGHTS)
    loaded = load_state_dict(path)
    save_state_dict(path, {k: v + 1 for k, v in WEIGHTS.items()})
    assert_weights(loaded)


def test_links_and_unknown_suffixes(tmp_path: Path) -> None:
    link, target = tmp_path / "last.pth", tmp_path / "iter_1.pth"
    save_state_dict(target, {"a": torch.zeros(1)})
    link.symlink_to(target.name)
    save_state_dict(link, WEIGHTS)
    assert link.is_symlink()
    assert_weights(load_state_dict(target))
    with pytest.raises(CheckpointError, match="suffix must be one of .safetensors, .pth"):
        save_state_dict(tmp_path / "w.npz", WEIGHTS)


def test_home_folder_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    save_state_dict("~/weights.pth", {"a": torch.ones(2)})
    assert (tmp_path / "weights.pth").is_file()
    assert load_state_dict("~/weights.pth")["a"].tolist() == [1, 1]
