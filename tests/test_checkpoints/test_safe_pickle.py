"""Checkpoints of mmengine's Runner can be loaded, and nothing else becomes loadable."""

import builtins
import io
import os
import pickle
import struct
import subprocess
import sys
import threading
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer, MessageHub, MMLogger
from mmengine.model import BaseModel
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from mmengine.visualization import Visualizer
from torch.utils.data import Dataset

import odise_mm.models  # noqa: F401  (this alone makes checkpoints loadable)
from odise_mm.checkpoints import safe_pickle
from odise_mm.checkpoints.safe_loading import load_state_dict, load_training_state
from odise_mm.errors import CheckpointError


@pytest.fixture(autouse=True)
def leave_no_runner_behind() -> Iterator[None]:
    """Restore the global scope, logger, message hub and visualizer, which a Runner replaces."""
    managers = (DefaultScope, MMLogger, MessageHub, Visualizer)
    before = [manager._instance_dict.copy() for manager in managers]
    yield
    for manager, instances in zip(managers, before, strict=True):
        manager._instance_dict.clear()
        manager._instance_dict.update(instances)


class Line(Dataset):
    """y = 2 x + 1."""

    metainfo = dict(classes=("line",), palette=np.zeros((1, 3), dtype=np.uint8))

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.tensor([index / 8.0])
        return x, 2 * x + 1


class Toy(BaseModel):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def forward(
        self, x: torch.Tensor, y: torch.Tensor, mode: str = "tensor"
    ) -> dict | torch.Tensor:
        out = self.layer(x)
        if mode != "loss":
            return out
        return dict(loss=(out - y).square().mean(), some_metric=np.float64(3.5))

    def parse_losses(self, losses: dict) -> tuple[torch.Tensor, dict]:
        return losses["loss"], losses  # a numpy scalar reaches the message hub, as metrics do


def runner(work_dir: Path, name: str, iterations: int, **kwargs: object) -> Runner:
    return Runner(
        model=Toy(),
        work_dir=str(work_dir),
        experiment_name=name,
        train_dataloader=dict(
            dataset=Line(),
            batch_size=4,
            num_workers=0,
            sampler=dict(type="InfiniteSampler"),
            collate_fn=dict(type="default_collate"),
        ),
        optim_wrapper=dict(type="AmpOptimWrapper", optimizer=dict(type="AdamW", lr=0.01))
        if torch.cuda.is_available()
        else dict(optimizer=dict(type="AdamW", lr=0.01)),
        param_scheduler=[dict(type="PolyLR", by_epoch=False, end=10)],
        train_cfg=dict(by_epoch=False, max_iters=iterations),
        default_hooks=dict(
            checkpoint=dict(type="CheckpointHook", interval=2, by_epoch=False),
            logger=dict(type="LoggerHook", interval=1),
        ),
        randomness=dict(seed=0),
        log_level="ERROR",
        **kwargs,
    )


def test_runner_resumes_its_own_checkpoint(tmp_path: Path) -> None:
    runner(tmp_path, "first", 4).train()
    assert (tmp_path / "iter_4.pth").is_file()

    second = runner(tmp_path, "second", 6, resume=True)
    second.train()
    assert second.iter == 6
    state = next(iter(second.optim_wrapper.optimizer.state.values()))
    assert state["step"] == 6, "the optimizer went on where it was"
    curve = second.message_hub.get_scalar("train/loss")
    assert isinstance(curve, HistoryBuffer) and len(curve.data[0]) == 6
    assert curve.statistics("max") == curve.data[0].max()
    assert second.param_schedulers[0].last_step == 6


def test_importing_the_models_makes_checkpoints_loadable() -> None:
    """A config's ``custom_imports`` imports them."""
    code = (
        "import odise_mm.models, torch\n"
        "assert any('HistoryBuffer' in str(g) for g in torch.serialization.get_safe_globals())"
    )
    root = Path(safe_pickle.__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_training_state_needs_no_unsafe_loading(tmp_path: Path) -> None:
    runner(tmp_path, "only", 2).train()
    state = torch.load(tmp_path / "iter_2.pth", weights_only=True)
    assert set(state) >= {"state_dict", "optimizer", "param_schedulers", "message_hub", "meta"}
    assert state["meta"]["dataset_meta"]["palette"].shape == (1, 3)


@pytest.mark.parametrize("core", ["core", "_core"])
def test_numpy_of_either_generation(core: str) -> None:
    """numpy 1.x and 2.x write different module names into a file."""
    stream = io.BytesIO()
    torch.save({"scalar": np.float32(1.5), "array": np.arange(3)}, stream)
    mine = b"numpy._core.multiarray" if hasattr(np, "_core") else b"numpy.core.multiarray"
    data = rewrite_pickle(stream.getvalue(), mine, f"numpy.{core}.multiarray".encode())
    loaded = torch.load(io.BytesIO(data), weights_only=True)
    assert loaded["scalar"] == np.float32(1.5) and loaded["array"].tolist() == [0, 1, 2]


def rewrite_pickle(archive: bytes, old: bytes, new: bytes) -> bytes:
    """Replace a module name in the data.pkl of a torch file."""
    import zipfile

    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as source, zipfile.ZipFile(out, "w") as target:
        for name in source.namelist():
            data = source.read(name)
            target.writestr(name, data.replace(old, new) if name.endswith("data.pkl") else data)
    return out.getvalue()


class Evil:
    """Calls ``function(*arguments)`` when unpickled."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple:
        return self.call


@pytest.mark.parametrize(
    "content",
    [
        Evil(builtins.eval, "1 + 1"),
        Evil(builtins.getattr, HistoryBuffer, "__init__"),
        Evil(builtins.getattr, np.ndarray, "tofile"),
        Evil(builtins.getattr, "text", "min"),
    ],
    ids=["eval", "method of HistoryBuffer", "method of ndarray", "not a HistoryBuffer"],
)
def test_torch_still_rejects_code(content: Evil) -> None:
    stream = io.BytesIO()
    torch.save({"meta": content}, stream)
    stream.seek(0)
    with pytest.raises(
        (pickle.UnpicklingError, ValueError), match="refused|Unsupported|not allowed"
    ):
        torch.load(stream, weights_only=True)


def test_no_classes_of_numpy_are_on_torchs_allowlist() -> None:
    safe = [entry for entry, _ in safe_pickle.torch_builders()]
    assert not {getattr, np.ndarray, np.dtype, HistoryBuffer} & set(safe)
    assert all(entry.__module__ == safe_pickle.__name__ for entry in safe)


# ---------------------------------------------------------------------------- arrays of numpy


def saved(content: object) -> io.BytesIO:
    stream = io.BytesIO()
    torch.save(content, stream)
    stream.seek(0)
    return stream


def read_both(content: object, path: Path) -> tuple[Any, Any]:
    """Read with torch, as mmengine does when it resumes, and with this package's reader."""
    path.write_bytes(saved(content).getvalue())
    return torch.load(path, weights_only=True), load_training_state(path)


ARRAYS = [np.zeros(shape, kind) for shape in ((), (0,), (2, 3)) for kind in "?bBhHiIqQefdFD"]
ARRAYS += [
    np.arange(6, dtype=">i4").reshape(2, 3),
    np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    np.arange(24).reshape(2, 3, 4)[:, ::2].T,
]


@pytest.mark.parametrize("array", ARRAYS, ids=lambda a: f"{a.dtype.str}{a.shape}")
def test_arrays_of_numbers(array: np.ndarray, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    if array.size and array.dtype == array.dtype.newbyteorder("="):
        array = rng.integers(0, 2, array.shape).astype(array.dtype)
    scalar = array.dtype.type(1)
    for found in read_both({"array": array, "scalar": scalar}, tmp_path / "a.pth"):
        assert isinstance(found["array"], np.ndarray)
        np.testing.assert_array_equal(found["array"], array)
        assert (
            found["array"].dtype == array.dtype.newbyteorder("=")
            and found["array"].shape == array.shape
        )
        assert found["scalar"] == scalar and found["scalar"].dtype == scalar.dtype.newbyteorder("=")
        # saved again, it is an ordinary numpy array
        again = saved(found)
        assert b"odise_mm" not in again.getvalue()
        np.testing.assert_array_equal(torch.load(again, weights_only=True)["array"], array)


def rebuild(kind: object, shape: object = (2,), data: object = b"0123456789abcdef") -> Evil:
    """An array as numpy pickles it, with custom parts."""
    return Filled(
        np.zeros(0).__reduce__()[0], (np.ndarray, (0,), b"b"), (1, shape, kind, False, data)
    )


class Filled:
    """Calls a function when unpickled and sets the state of the result."""

    def __init__(self, function: object, arguments: tuple, state: object) -> None:
        self.parts = (function, arguments, state)

    def __reduce__(self) -> tuple:
        return self.parts


def number_type(code: str, *state: object) -> Filled:
    return Filled(np.dtype, (code, False, False), (3, *state))


PLAIN = (None, None, None, -1, -1, 0)
HOSTILE = {
    "text": np.array(["a", "bc"]),
    "bytes": np.array([b"a", b"bc"]),
    "objects": np.array([{}], dtype=object),
    "parts": np.zeros(2, dtype=[("a", "f4"), ("b", "i2")]),
    "dates": np.array(["2020-01-01"], dtype="datetime64[D]"),
    "raw": np.zeros(2, dtype="V5"),
    "text scalar": np.str_("abc"),
    "object scalar": Evil(np.float64(0).__reduce__()[0], np.dtype(object), "x"),
    "an array that is not filled": Evil(np.ndarray, (1 << 40,)),
    "a subclass": Evil(np.zeros(0).__reduce__()[0], np.matrix, (0,), b"b"),
    "too few bytes": rebuild(number_type("f8", "<", *PLAIN), (1 << 40,)),
    "too many bytes": rebuild(number_type("f8", "<", *PLAIN), (1,)),
    "negative": rebuild(number_type("f8", "<", *PLAIN), (-1,)),
    "no bytes": rebuild(number_type("f8", "<", *PLAIN), (2,), [1, 2]),
    "fields": rebuild(number_type("f8", "<", None, ("a",), {"a": 1}, -1, -1, 0)),
    "a type within": rebuild(number_type("f8", "<", (np.dtype("f8"), (2,)), None, None, -1, -1, 0)),
    "a long type": rebuild(number_type("f8,i4", "<", *PLAIN)),
    "no type": rebuild("f8"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_other_arrays_are_rejected(name: str, tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    torch.save({"state_dict": {"w": torch.ones(2)}, "extra": HOSTILE[name]}, path)
    with pytest.raises(Exception, match=r"refused|Weights only load failed"):
        torch.load(path, weights_only=True)
    for read in (load_training_state, load_state_dict):
        with pytest.raises(CheckpointError, match="was rejected|is truncated, damaged") as caught:
            read(path)
        assert "\n" not in str(caught.value)


def test_global_dtypes_are_not_changed(tmp_path: Path) -> None:
    """numpy's dtypes are global: a byte order or flags in a file must not change them."""
    for state in ((">", *PLAIN), ("<", None, None, None, -1, -1, 63)):
        content = {"a": rebuild(number_type("f8", *state)), "kind": number_type("f8", *state)}
        for found in read_both(content, tmp_path / "a.pth"):
            wanted = np.frombuffer(b"0123456789abcdef", state[0] + "f8")
            assert found["a"].tolist() == wanted.tolist()
            assert not found["a"].dtype.hasobject
    assert np.dtype("f8").isnative and not np.dtype("f8").hasobject
    assert np.float64(1.0).tobytes() == struct.pack("=d", 1.0)


def test_histories_add_no_methods(tmp_path: Path) -> None:
    """The ``__setstate__`` of HistoryBuffer would add functions from the file to the class."""
    before = dict(HistoryBuffer._statistics_methods)
    buffer = HistoryBuffer([1.0, 3.0], [1, 1])
    buffer._statistics_methods = {**before, "evil": HistoryBuffer.min}
    for found in read_both({"loss": buffer}, tmp_path / "a.pth"):
        assert type(found["loss"]) is HistoryBuffer and found["loss"].statistics("mean") == 2.0
        assert found["loss"].data[0].tolist() == [1.0, 3.0]
        assert "evil" not in found["loss"]._statistics_methods
    assert HistoryBuffer._statistics_methods == before


# -------------------------------------------------------------------------------- one policy


def test_reading_changes_nothing_for_other_threads(tmp_path: Path) -> None:
    path = tmp_path / "iter.pth"
    torch.save(
        {"state_dict": {"w": torch.ones(3)}, "lr": np.float64(1), "h": HistoryBuffer([1.0], [1])},
        path,
    )
    before = set(torch.serialization.get_safe_globals())
    stop, wrong = threading.Event(), []

    def watch() -> None:
        while not stop.is_set():
            if not before <= set(torch.serialization.get_safe_globals()):
                wrong.append("the list was changed meanwhile")

    def read(number: int) -> None:
        for _ in range(20):
            if number % 3:
                assert load_state_dict(path)["w"].tolist() == [1, 1, 1]
            else:
                assert torch.load(path, weights_only=True)["lr"] == 1

    watcher = threading.Thread(target=watch)
    watcher.start()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(read, range(8)))
    stop.set()
    watcher.join()
    assert not wrong and set(torch.serialization.get_safe_globals()) == before


def test_torchs_allowlist_is_ignored(tmp_path: Path) -> None:
    trace = tmp_path / "it_ran"
    path = tmp_path / "w.pth"
    torch.save({"w": torch.ones(1), "extra": Evil(os.mkdir, str(trace))}, path)
    with torch.serialization.safe_globals([(os.mkdir, "posix.mkdir")]):
        for read in (load_training_state, load_state_dict):
            with pytest.raises(CheckpointError, match=r"rejected.*mkdir.*No code from it was run"):
                read(path)
    assert not trace.exists()


@pytest.mark.parametrize(
    "program, value",
    [
        (b"cbuiltins\nset\n(]tR.", set()),  # an allowed call
        (
            b"\x80\x02ccollections\nOrderedDict\n)RX\x01\x00\x00\x00aK\x01s.",
            OrderedDict(a=1),
        ),
    ],
)
def test_harmless_programs(program: bytes, value: Any) -> None:
    found = safe_pickle.Unpickler(io.BytesIO(program)).load()
    assert type(found) is type(value) and found == value


@pytest.mark.parametrize(
    "program",
    [
        b"ctorch._utils\n_rebuild_tensor_v2\n}X\x01\x00\x00\x00aK\x01sb.",  # a state for a function
        b"(ibuiltins\nset\n.",  # INST
        b"(cbuiltins\nset\no.",  # OBJ
        b"\x80\x04cbuiltins\nset\n)}\x92.",  # NEWOBJ_EX
        b"\x80\x02\x82\x01.",  # EXT1
        b"Pmodule\n.",  # PERSID
        b"\x80\x05\x97.",  # NEXT_BUFFER
        b"\x80\x05\x96\xff\xff\xff\xff\xff\xff\xff\x00.",  # BYTEARRAY8 of 2^56 bytes
        b"cnumpy\ndtype\n)\x81.",  # an object that is not built from its parts
        b"]K\x01(tR.",  # a call of a list
        b"ctorch\nSize\nK\x01a.",  # an item in a class
        b"cbuiltins\n__import__\n(Vos\ntR.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93.",
        b"ctorch\nload\n.",
        b"ctorch.hub\nload\n.",
    ],
)
def test_hostile_programs(program: bytes) -> None:
    with pytest.raises((pickle.UnpicklingError, KeyError, IndexError)):
        safe_pickle.Unpickler(io.BytesIO(program)).load()


def test_loadable_after_others_changed_torchs_allowlist() -> None:
    stream = io.BytesIO()
    torch.save({"array": np.arange(3)}, stream)
    stream.seek(0)
    with torch.serialization.safe_globals([np.ndarray, np.dtype, HistoryBuffer]):
        pass
    assert torch.load(stream, weights_only=True)["array"].tolist() == [0, 1, 2]
