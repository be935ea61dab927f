"""Code that the processes of ``test_engine/test_distributed.py`` run.

As a program (``python -m tests.support.distributed_worker FOLDER``), it runs two processes that
train on halves of a batch. In the ``custom_imports`` of a config, it provides hooks that record
what a process of tools/train.py does, or break it.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
from mmdet.models.layers import SinePositionalEncoding
from mmengine.hooks import Hook
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from torch import Tensor, nn

from odise_mm.models import OpenVocabSegmentor
from odise_mm.registry import HOOKS
from odise_mm.vocabulary import Vocabulary
from tests.support.training import WORDS, make_batch, make_model, repeating_points

VOCABULARY = Vocabulary(
    (("cat", "kitten"), ("brick wall",), ("sky",), ("person", "child")), (True, False, False, True)
)
SIZES = ((64, 64), (50, 64), (64, 45), (64, 64))  # padded to 64 x 64, one tile each


class Case(NamedTuple):
    """A batch of four images: their numbers of segments and, for captions, their words."""

    counts: tuple[int, int, int, int]
    words: tuple[list[str], ...] | None = None


CASES = {
    "label": Case((3, 0, 5, 2)),
    "label, a process without segments": Case((3, 5, 0, 0)),
    "caption": Case((3, 0, 5, 2), (WORDS, ["tree", "sky", "a cat", "sky"], [], WORDS[::-1])),
    "caption, a process without words": Case((2, 4, 0, 3), (WORDS, WORDS[::-1], [], [])),
}


@contextmanager
def double_precision() -> Iterator[None]:
    """Compute in float64, so that rounding cannot hide a difference."""
    single = Tensor.float
    torch.set_default_dtype(torch.float64)
    Tensor.float = Tensor.double
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)
        Tensor.float = single


class RecordingWrapper(OptimWrapper):
    """Stores the gradients and does not change the parameters."""

    def step(self, **kwargs: Any) -> None:
        groups = self.optimizer.param_groups
        self.gradients = [p.grad.clone() for group in groups for p in group["params"]]


def build(captions: bool) -> OpenVocabSegmentor:
    """Build a small model in the default dtype."""
    model = make_model(captions, tile_size=64).to(torch.get_default_dtype())
    model.vocabulary = VOCABULARY
    for part in model.modules():
        if isinstance(part, SinePositionalEncoding):  # always returns float32
            part.register_forward_hook(lambda _, __, out: out.to(torch.get_default_dtype()))
    return model


def train_step(
    model: OpenVocabSegmentor, wrapped: nn.Module, case: Case, share: slice = slice(None)
) -> dict[str, dict[str, Any]]:
    """Run a training step on a batch, or on a part of it.

    Args:
        model: the model.
        wrapped: the model itself, or its wrapper for several processes.
        case: the batch.
        share: part of the batch.

    Returns:
        ``losses`` of this process and ``gradients``, by name.
    """
    batch = make_batch(model, case.counts, case.words, SIZES)
    batch = {key: value[share] for key, value in batch.items()}
    model.data_preprocessor.forward = lambda data, training: data  # already preprocessed
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = RecordingWrapper(torch.optim.SGD(trained.values(), lr=1.0))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "rand", repeating_points())
        losses = wrapped.train_step(batch, optimizer)
    del model.data_preprocessor.forward
    return dict(
        losses={name: float(value.detach()) for name, value in losses.items()},
        gradients=dict(zip(trained, optimizer.gradients, strict=True)),
    )


def all_cases(rank: int | None = None) -> dict[str, dict[str, dict[str, Any]]]:
    """Run :func:`train_step` for all cases, on whole batches or on the half of a process."""
    share = slice(None) if rank is None else slice(2 * rank, 2 * rank + 2)
    results = {}
    with double_precision():
        for captions in (False, True):
            model = wrapped = build(captions)
            if rank is not None:
                wrapped = MMDistributedDataParallel(model, broadcast_buffers=False)
            for name, case in CASES.items():
                if captions == (case.words is not None):
                    results[name] = train_step(model, wrapped, case, share)
    return results


def one_of_two(rank: int, folder: str) -> None:
    """Run all cases in one of two processes and save its losses and gradients."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meet",
        rank=rank,
        world_size=2,
        timeout=datetime.timedelta(seconds=60),
    )
    torch.save(all_cases(rank), f"{folder}/{rank}.pth")
    dist.destroy_process_group()


# -------------------------------------------------------------- hooks for tools/train.py

_written: list[str] = []


def _watch(event: str, arguments: tuple) -> None:
    """Record every file that is opened for writing."""
    if event == "open" and isinstance(arguments[2], int):
        path, flags = arguments[0], arguments[2]
        if isinstance(path, str) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            _written.append(os.path.abspath(path))


if "TORCHELASTIC_RUN_ID" in os.environ:  # in a process that torchrun started
    sys.addaudithook(_watch)


@HOOKS.register_module()
class WitnessHook(Hook):
    """Records the images and written files of a process in ``folder/<process>.json``.

    During training, all processes sample masks at the same points.
    """

    priority = "LOWEST"

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self.batches: list[list[list[Any]]] = []

    def before_train(self, runner: Runner) -> None:
        self.random, torch.rand = torch.rand, repeating_points()

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        pixels = [hashlib.sha256(i.numpy().tobytes()).hexdigest() for i in data_batch["inputs"]]
        images = [sample.img_id for sample in data_batch["data_samples"]]
        self.batches.append([list(pair) for pair in zip(images, pixels, strict=True)])

    def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        self.write(runner)

    def after_train(self, runner: Runner) -> None:
        self.write(runner)
        torch.rand = self.random

    def write(self, runner: Runner) -> None:
        """Write the record of this process."""
        content = dict(batches=self.batches, written=sorted(set(_written)))
        (self.folder / f"{runner.rank}.json").write_text(json.dumps(content))


@HOOKS.register_module()
class BreakHook(Hook):
    """Sets a weight of one process to NaN before an iteration."""

    def __init__(self, rank: int, iteration: int) -> None:
        self.rank, self.iteration = rank, iteration

    def before_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        if (runner.rank, runner.iter + 1) == (self.rank, self.iteration):
            parameter = next(p for p in runner.model.parameters() if p.requires_grad)
            parameter.data.fill_(float("nan"))


if __name__ == "__main__":
    # Fork, so that modules are imported only once.
    torch.multiprocessing.start_processes(one_of_two, (sys.argv[1],), nprocs=2, start_method="fork")
