"""Training loop for all models of this project, with exact resuming, progress and curves.

The data of a step depends only on the seed and the step. State files are replaced only by complete
ones, so that a crash at any point loses only the steps since the last save.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader, Dataset

from odise_mm.engine.optim import MuonAdamW, linear_weights
from odise_mm.errors import CheckpointError, ConfigError
from odise_mm.utils.files import remove_leftovers, replacing
from odise_mm.utils.precision import check_precision, dtype_of

SAVE_SECONDS = 120.0
"""Time between two saves of the training state."""
PRECISIONS = ("fp32", "bf16")
"""Supported precisions; fp16 would need loss scaling."""


@dataclass(frozen=True)
class Recipe:
    """Hyperparameters of a training run.

    Attributes:
        steps: Number of optimizer steps (AdamW).
        lr: Highest learning rate, reached after ``warmup`` steps, then decayed to 0 with a cosine.
        warmup: Number of steps with a linearly increasing learning rate.
        weight_decay: Weight decay of matrices; norms, biases and scalars have none.
        muon_lr: Highest learning rate of Muon (``torch.optim.Muon``), which then trains the linear
            layers and AdamW everything else. 0: AdamW trains everything.
        beta2: AdamW's beta2.
        ema: Decay of the exponential moving average of the weights, from 0 to 1; smaller in the
            first steps. 0: no average.
        seed: Seed of data and noise.
        precision: Precision of the computation, see :mod:`odise_mm.utils.precision`.
        math_attention: Whether to compute attention with plain matrix products, which is faster for
            few tokens on a CPU in bf16.
    """

    steps: int
    lr: float
    warmup: int = 200
    weight_decay: float = 0.05
    muon_lr: float = 0.0
    beta2: float = 0.99
    ema: float = 0.0
    seed: int = 0
    precision: str = "fp32"
    math_attention: bool = False


def best_precision(device: torch.device) -> str:
    """Return "bf16" if it is faster than fp32 on the device, otherwise "fp32".

    It is faster on CUDA devices and CPUs with bf16 instructions.
    """
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    if device.type == "cpu":
        return "bf16" if torch.cpu._is_avx512_bf16_supported() else "fp32"
    return "fp32"


def random_of(seed: int, *numbers: int) -> torch.Generator:
    """Return a random generator that depends on all numbers."""
    state = np.random.SeedSequence([seed, len(numbers), *numbers]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0] >> 1))


def batches(
    items: Dataset, size: int, first: int, collate: Callable, workers: int
) -> Iterator[Any]:
    """Iterate over batches of consecutive items.

    Args:
        items: The dataset.
        size: Items per batch.
        first: Index of the first batch to return.
        collate: Function that makes a batch of a list of items.
        workers: Number of processes that load items in advance.
    """
    order = range(first * size, len(items) // size * size)
    return iter(
        DataLoader(
            items,
            size,
            sampler=order,
            collate_fn=collate,
            num_workers=workers,
            prefetch_factor=4 if workers else None,
        )
    )


class Training:
    """Resumable training run of a module.

    Args:
        module: The module to train, on its device.
        recipe: Hyperparameters.
        file: File of the training state. If it exists, the run is continued.
        settings: Other settings that affect the result, as plain values; stored in the file.

    Attributes:
        step: Number of finished steps.
        log: One entry per evaluation, with its ``step``.
        mean: Running means of the losses.
        seconds: Duration of the training so far, without evaluations.

    Raises:
        ConfigError: The file belongs to a run with other settings.
        CheckpointError: The file is damaged.
        DeviceError: The device does not support the recipe's precision.
    """

    def __init__(
        self, module: nn.Module, recipe: Recipe, file: Path, settings: dict[str, Any]
    ) -> None:
        self.module, self.recipe, self.file = module, recipe, file
        self.device = next(module.parameters()).device
        check_precision(recipe.precision, self.device)
        # through JSON, so that settings read from a file compare equal
        self.settings = json.loads(json.dumps({**asdict(recipe), **settings}))
        self.average = deepcopy(module).requires_grad_(False) if recipe.ema else None
        self.optimizer = _optimizer(module, recipe)
        self.step, self.log, self.seconds = 0, [], 0.0
        self.mean: dict[str, float] = {}
        file.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(file.parent)
        if file.is_file():
            self._load()

    @property
    def trained(self) -> nn.Module:
        """The result: the moving average of the weights if there is one, else the module."""
        return self.module if self.average is None else self.average

    @property
    def done(self) -> bool:
        """Whether all steps are finished."""
        return self.step >= self.recipe.steps

    def run(
        self,
        name: str,
        losses_of: Callable[[int], dict[str, Tensor]],
        evaluate: Callable[[], dict[str, float]],
        every: int,
        until: int | None = None,
    ) -> None:
        """Train to the end.

        Args:
            name: Label of the progress bar.
            losses_of: Returns the losses of a step by name; their sum is minimized. Called once for
                every step in order, starting with ``self.step``.
            evaluate: Returns metrics; called every ``every`` steps and at the end, with ``trained``
                in eval mode.
            every: Steps between evaluations.
            until: Save the state and stop after this number of steps.

        Raises:
            FloatingPointError: A loss is not finite.
        """
        end = min(until or self.recipe.steps, self.recipe.steps)
        saved = time.monotonic()
        with _progress() as bar:
            task = bar.add_task(name, total=self.recipe.steps, completed=self.step, losses="")
            while self.step < end:
                started = time.monotonic()
                for key, value in self._advance(losses_of).items():
                    self.mean[key] = value + 0.98 * (self.mean.get(key, value) - value)
                self.seconds += time.monotonic() - started
                text = "  ".join(f"{key} {value:.4f}" for key, value in self.mean.items())
                bar.update(task, completed=self.step, losses=text)
                if self.step % every == 0 or self.done:
                    self._evaluate(name, evaluate, bar)
                elif time.monotonic() - saved < SAVE_SECONDS:
                    continue
                self.save()
                saved = time.monotonic()
        if self.step < self.recipe.steps:
            self.save()

    def _advance(self, losses_of: Callable[[int], dict[str, Tensor]]) -> dict[str, float]:
        recipe = self.recipe
        factor = _schedule(self.step, recipe.warmup, recipe.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = factor * group["initial_lr"]
        self.module.train()
        with self.arithmetic():
            losses = losses_of(self.step)
            total = sum(losses.values())
            self.module.zero_grad()
            total.backward()
        values = {key: float(loss.detach()) for key, loss in losses.items()}
        if not all(map(math.isfinite, values.values())):
            raise FloatingPointError(
                f"step {self.step}: losses {values}; lower the learning rate and start again"
            )
        nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        if self.average is not None:
            # a smaller decay at the start, so that the random weights are soon forgotten
            decay = min(recipe.ema, (1 + self.step) / (10 + self.step))
            with torch.no_grad():
                pairs = zip(self.average.parameters(), self.module.parameters(), strict=True)
                for old, new in pairs:
                    old.lerp_(new, 1 - decay)
        return values

    def arithmetic(self) -> ExitStack:
        """Return a context manager with the recipe's precision and attention."""
        stack = ExitStack()
        if self.recipe.precision != "fp32":
            dtype = dtype_of(self.recipe.precision)
            stack.enter_context(torch.autocast(self.device.type, dtype))
        if self.recipe.math_attention and self.device.type == "cpu":
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        return stack

    def _evaluate(self, name: str, evaluate: Callable[[], dict[str, float]], bar: Progress) -> None:
        self.trained.eval()
        entry = {"step": self.step, **self.mean, **evaluate()}
        self.log.append(entry)
        pace = self.seconds / self.step
        text = "  ".join(f"{key} {value:.3f}" for key, value in entry.items() if key != "step")
        left = (self.recipe.steps - self.step) * pace / 60
        bar.console.print(
            f"{name} {self.step}/{self.recipe.steps}: {text}  ({pace:.2f} s per step, "
            f"{left:.0f} min left)",
            soft_wrap=True,
            highlight=False,
        )

    def save(self) -> None:
        """Write the training state."""
        state = {
            "settings": self.settings,
            "step": self.step,
            "log": self.log,
            "mean": self.mean,
            "seconds": self.seconds,
            "module": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
        }
        with replacing(self.file) as temporary:
            torch.save(state, temporary)

    def _load(self) -> None:
        try:
            state = torch.load(self.file, map_location="cpu", weights_only=True)
            old, optimizer = state["settings"], state["optimizer"]
        except (
            Exception
        ) as error:  # a damaged file or another kind of file can raise almost anything
            raise CheckpointError(
                f"{self.file} is damaged or not a training state; remove it to start again"
            ) from error
        new = self.settings
        keys = sorted(k for k in {*old, *new} if old.get(k) != new.get(k))
        if keys:
            differences = ", ".join(f"{k}: {old.get(k)} instead of {new.get(k)}" for k in keys)
            raise ConfigError(
                f"{self.file} belongs to a training run with other settings ({differences}); use "
                "another folder, or remove that file to start again"
            )
        self.module.load_state_dict(state["module"])
        self.optimizer.load_state_dict(optimizer)
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.step, self.log, self.seconds = state["step"], state["log"], state["seconds"]
        self.mean = state["mean"]


def _optimizer(module: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Return AdamW, or Muon with AdamW if the recipe has a learning rate for Muon.

    Raises:
        ConfigError: this torch has no Muon.
    """
    inner = {id(p) for layer in module.modules() for p in linear_weights(layer)}
    if not recipe.muon_lr:
        inner.clear()
    others = [weight for weight in module.parameters() if id(weight) not in inner]
    decay = recipe.weight_decay
    groups = [
        {"params": [p for p in others if p.ndim > 1], "weight_decay": decay},
        {"params": [p for p in others if p.ndim <= 1], "weight_decay": 0.0},
    ]
    settings: dict[str, Any] = dict(lr=recipe.lr, betas=(0.9, recipe.beta2))
    if recipe.muon_lr:
        matrices = [p for p in module.parameters() if id(p) in inner]
        groups.insert(0, {"params": matrices, "weight_decay": decay, "linear": True})
        settings |= dict(muon_lr=recipe.muon_lr, smallest=1)
    optimizer = (MuonAdamW if recipe.muon_lr else torch.optim.AdamW)(groups, **settings)
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    return optimizer


def _schedule(step: int, warmup: int, steps: int) -> float:
    """Return the factor of the learning rate: linear from 1 / warmup to 1, then a cosine to 0."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[losses]}"),
    )


# --- results ------------------------------------------------------------------------------------


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file atomically."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def write_figure(path: Path, figure: Figure, dpi: int = 100) -> None:
    """Write a figure to a PNG file atomically."""
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=dpi, format="png")


def describe(training: Training) -> dict[str, Any]:
    """Return the facts for a model card: settings, minutes, machine, and all evaluations."""
    device = training.device
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "settings": training.settings,
        "parameters": sum(p.numel() for p in training.module.parameters()),
        "steps": training.step,
        "minutes": round(training.seconds / 60, 1),
        "machine": gpu or f"{_processor()}, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "log": training.log,
    }


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    for line in path.read_text().splitlines() if path.is_file() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def curves(log: Sequence[dict[str, float]], panels: dict[str, Sequence[str]]) -> Figure:
    """Plot evaluations against steps.

    Args:
        log: Log of a :class:`Training`.
        panels: Titles of the panels and the entries drawn in each.
    """
    figure = Figure(figsize=(4.6 * len(panels), 3.4), layout="constrained")
    steps = [entry["step"] for entry in log]
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (title, keys) in zip(axes, panels.items(), strict=True):
        for key, marker in zip(keys, itertools.cycle("os^vDx"), strict=False):
            axis.plot(steps, [entry[key] for entry in log], marker=marker, ms=3, label=key)
        axis.set(title=title, xlabel="step")
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    return figure


def size_of(folder: Path) -> int:
    """Return the size of all weights in a folder, in bytes."""
    return sum(os.path.getsize(path) for path in folder.rglob("*.safetensors"))
