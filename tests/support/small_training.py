"""A training run that takes milliseconds, for tests of the engine.

The network is tiny, but like the real model, it draws random numbers, has trained and frozen
parameters, and is saved.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import torch
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.fileio import LocalBackend
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from torch import Tensor, nn
from torch.utils.data import Dataset

from odise_mm.datasets.seeding import SeededIndex
from odise_mm.models.frozen import FrozenModule
from odise_mm.registry import DATASETS, HOOKS, METRICS, MODELS
from odise_mm.vocabulary import Vocabulary


class Frozen(FrozenModule):
    """Frozen network with two input and two output channels."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2), nn.Dropout(0.5))
        with torch.no_grad():
            self.net[0].weight.copy_(torch.tensor([[1.0, 0.5], [-0.5, 1.0]]))
            self.net[0].bias.zero_()
        self.freeze()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class Ensemble(nn.Module):
    """Ensemble that only has a training vocabulary."""

    def __init__(self, train_vocabulary: str) -> None:
        super().__init__()
        self.train_vocabulary = Vocabulary.parse(train_vocabulary)


@MODELS.register_module()
class SmallModel(BaseModel):
    """Regression with random noise; the loss is NaN in iteration ``broken_at``."""

    def __init__(
        self, width: int = 4, broken_at: int | None = None, train_vocabulary: str = "cat; dog"
    ) -> None:
        super().__init__()
        self.frozen = Frozen()
        self.layers = nn.Sequential(nn.Linear(2, width), nn.LayerNorm(width), nn.Linear(width, 1))
        self.ensemble = Ensemble(train_vocabulary)
        self.vocabulary = Vocabulary.parse("zebra")
        self.test_cfg = dict(panoptic=True, semantic=True, instance=True, topk=5)
        self.broken_at, self.calls = broken_at, 0
        self.seen: list[dict[str, Any]] = []

    def forward(
        self, inputs: list[Tensor], data_samples: list[DetDataSample], mode: str = "loss"
    ) -> Any:
        self.seen.append(
            dict(
                mode=mode,
                images=[s.img_id for s in data_samples],
                vocabulary=self.vocabulary.names,
                tasks=[t for t in ("panoptic", "semantic", "instance") if self.test_cfg[t]],
            )
        )
        x = self.frozen(torch.stack(list(inputs)))
        if mode == "predict":
            return list(data_samples)
        x = x + 0.1 * torch.randn_like(x)
        loss = (self.layers(x) - x.sum(1, keepdim=True)).square().mean()
        self.calls += 1
        if self.calls == self.broken_at:
            loss = loss * float("nan")
        return dict(loss=loss)


@DATASETS.register_module()
class SmallDataset(Dataset):
    """Random numbers that depend on the index and, like augmentation, on its seed."""

    def __init__(self, size: int = 7, names: str = "cat; dog", ann_file: str = "") -> None:
        vocabulary = Vocabulary.parse(names)
        self.size = size
        self.metainfo = {**vocabulary.metainfo, "vocabulary": vocabulary}
        self.loaded: list[int] = []

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, Any]:
        self.loaded.append(int(index))
        seed = index.seed if isinstance(index, SeededIndex) else 0
        numbers = torch.Generator().manual_seed(int(index) * 1000 + seed % 1000)
        sample = DetDataSample(metainfo=dict(img_id=int(index), img_path=f"images/{index}.jpg"))
        return dict(inputs=torch.randn(2, generator=numbers), data_samples=sample)


@METRICS.register_module()
class CountImages(BaseMetric):
    """Counts the images of a validation or, if ``growing``, of all validations so far."""

    task = "semantic"
    default_prefix = "count"

    def __init__(self, growing: bool = False) -> None:
        super().__init__()
        self.growing, self.before = growing, 0

    def process(self, data_batch: Any, data_samples: Any) -> None:
        self.results += [sample["img_id"] for sample in data_samples]

    def compute_metrics(self, results: list) -> dict[str, float]:
        self.before = len(results) + (self.before if self.growing else 0)
        return dict(images=self.before)


@HOOKS.register_module()
class KillHook(Hook):
    """Kills the own process after an iteration or, if ``saving``, in the middle of saving."""

    def __init__(self, iteration: int, saving: bool = False) -> None:
        self.iteration, self.saving = iteration, saving

    def before_save_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        if self.saving and runner.iter + 1 == self.iteration:
            LocalBackend.put = lambda backend, content, path: half(content, path)

    def after_train_iter(self, runner: Any, *args: Any, **kwargs: Any) -> None:
        if not self.saving and runner.iter + 1 == self.iteration:
            kill()


def half(content: bytes, path: str) -> None:
    """Write half of a file and kill the own process."""
    with open(path, "wb") as stream:
        stream.write(content[: len(content) // 2])
        stream.flush()
        kill()


def kill() -> None:
    """Kill the own process with a signal that it cannot catch."""
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


CONFIG = f"""
_base_ = ["{Path(__file__).parents[2] / "configs/_base_/default_runtime.py"}"]
custom_imports = dict(imports=["tests.support.small_training"])
model = dict(type="SmallModel")
train_dataloader = dict(
    batch_size=2,
    num_workers=0,
    dataset=dict(type="SmallDataset"),
    sampler=dict(type="SeededSampler"),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=0,
    dataset=dict(type="SmallDataset", size=3, names="sky; road; tree"),
    sampler=dict(type="DefaultSampler", shuffle=False, round_up=False),
)
val_evaluator = [dict(type="CountImages")]
val_cfg = dict(type="OpenVocabValLoop")
train_cfg = dict(type="OpenVocabTrainLoop", max_iters=12, val_interval=5)
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=0.01, weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0),
    clip_grad=dict(max_norm=1.0),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.1, begin=0, end=5, by_epoch=False),
    dict(type="MultiStepLR", milestones=[9], gamma=0.1, by_epoch=False),
]
auto_scale_lr = dict(base_batch_size=2, enable=False)
default_hooks = dict(checkpoint=dict(interval=3), logger=dict(interval=1))
"""
"""Config file: 12 iterations with 2 images each, saved every 3 iterations."""


def config(work_dir: str | os.PathLike[str], **changes: Any) -> Config:
    """Load :data:`CONFIG` with a work directory and changes, where ``__`` stands for a dot."""
    cfg = Config.fromstring(CONFIG, ".py")
    cfg.work_dir = str(work_dir)
    cfg.merge_from_dict({key.replace("__", "."): value for key, value in changes.items()})
    return cfg


def weights(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Load the trained parameters of a checkpoint."""
    return torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
