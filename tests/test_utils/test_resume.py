"""Training checkpoints of mmengine's Runner load again, and nothing else becomes loadable."""

import builtins
import io
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer, MessageHub, MMLogger
from mmengine.model import BaseModel
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from mmengine.visualization import Visualizer
from torch.utils.data import Dataset

import odise_mm.registry  # noqa: F401  (this alone makes checkpoints loadable)
from odise_mm.utils import resume


@pytest.fixture(autouse=True)
def leave_no_runner_behind() -> Iterator[None]:
    """A Runner makes its scope, logger, message hub and visualizer the current ones for good."""
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


def test_importing_the_models_is_enough() -> None:
    """As a config's ``custom_imports`` does."""
    code = (
        "import odise_mm.models, torch\n"
        "assert any('HistoryBuffer' in str(g) for g in torch.serialization.get_safe_globals())"
    )
    root = Path(resume.__file__).parents[2]
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
def test_code_stays_refused(content: Evil) -> None:
    stream = io.BytesIO()
    torch.save({"meta": content}, stream)
    stream.seek(0)
    with pytest.raises(
        (pickle.UnpicklingError, ValueError), match="refused|Unsupported|not allowed"
    ):
        torch.load(stream, weights_only=True)


def test_no_object_arrays_among_the_safe_types() -> None:
    safe = [entry for entry, _ in resume.safe_globals()]
    assert type(np.dtype(object)) not in safe and getattr not in safe


def test_survives_what_others_declare_safe_for_a_while() -> None:
    stream = io.BytesIO()
    torch.save({"array": np.arange(3)}, stream)
    stream.seek(0)
    with torch.serialization.safe_globals([np.ndarray, np.dtype, HistoryBuffer]):
        pass
    assert torch.load(stream, weights_only=True)["array"].tolist() == [0, 1, 2]
