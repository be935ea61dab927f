"""One training loop for all models here: resumable to the bit, with progress and curves.

What a step sees is a function of the seed and the step alone. The state is saved under its name
when it is complete, so that a kill at any moment costs the steps since the last save, no more.
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

from odise_mm.errors import CheckpointError, ConfigError
from odise_mm.utils.files import remove_leftovers, replacing
from odise_mm.utils.precision import check_precision, dtype_of

SAVE_SECONDS = 120.0
"""Between two saves of a training's state."""
PRECISIONS = ("fp32", "bf16")
"""What can be trained in: fp16 would need losses to be scaled."""


@dataclass(frozen=True)
class Recipe:
    """How a model is trained.

    Attributes:
        steps: of the optimizer (AdamW).
        lr: highest learning rate, after ``warmup`` steps; it then falls to 0 along a cosine.
        weight_decay: of matrices; norms, biases and scalars have none.
        beta2: of AdamW.
        ema: decay of the moving average of the weights, i.e. what every step leaves of its old
            value, from 0 to 1; less in the first steps. 0: no average.
        seed: of data and noise.
        precision: of the arithmetic, see :mod:`odise_mm.utils.precision`.
        math_attention: attention in plain matrix products: faster for few tokens on a CPU in bf16.
    """

    steps: int
    lr: float
    warmup: int = 200
    weight_decay: float = 0.05
    beta2: float = 0.99
    ema: float = 0.0
    seed: int = 0
    precision: str = "fp32"
    math_attention: bool = False


def best_precision(device: torch.device) -> str:
    """bf16 where it is faster than fp32: on CUDA devices and CPUs with instructions for it."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    if device.type == "cpu":
        return "bf16" if torch.cpu._is_avx512_bf16_supported() else "fp32"
    return "fp32"


def random_of(seed: int, *numbers: int) -> torch.Generator:
    """A generator of its own for every list of numbers."""
    state = np.random.SeedSequence([seed, len(numbers), *numbers]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0] >> 1))


def batches(
    items: Dataset, size: int, first: int, collate: Callable, workers: int
) -> Iterator[Any]:
    """Batch ``first`` and all after it, each of the next ``size`` items, read ahead by workers."""
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
    """A module, its optimizer, and how far they are.

    Args:
        module: what is trained; on its device.
        recipe: how.
        file: of the state; if it is there, training goes on from it.
        settings: what else the result depends on, plain values; kept in the file.

    Attributes:
        step: steps that have been done.
        log: one entry for every evaluation, with its ``step``.
        mean: running means of the losses.
        seconds: that training took so far, without evaluations.

    Raises:
        ConfigError: the file is of a training with other settings.
        CheckpointError: the file is damaged.
        DeviceError: the device cannot compute in the recipe's precision.
    """

    def __init__(
        self, module: nn.Module, recipe: Recipe, file: Path, settings: dict[str, Any]
    ) -> None:
        self.module, self.recipe, self.file = module, recipe, file
        self.device = next(module.parameters()).device
        check_precision(recipe.precision, self.device)
        # as JSON has it, so that what is read back compares equal
        self.settings = json.loads(json.dumps({**asdict(recipe), **settings}))
        self.average = deepcopy(module).requires_grad_(False) if recipe.ema else None
        self.optimizer = torch.optim.AdamW(
            _groups(module, recipe.weight_decay), lr=recipe.lr, betas=(0.9, recipe.beta2)
        )
        self.step, self.log, self.seconds = 0, [], 0.0
        self.mean: dict[str, float] = {}
        file.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(file.parent)
        if file.is_file():
            self._load()

    @property
    def trained(self) -> nn.Module:
        """What a user gets: the moving average if there is one, else the module."""
        return self.module if self.average is None else self.average

    @property
    def done(self) -> bool:
        """Whether all steps have been made."""
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
            name: for the progress bar.
            losses_of: losses of a step by name; their sum is minimized. Called for every step in
                its turn, from ``self.step`` on.
            evaluate: called after every ``every`` steps and at the end; ``trained`` is in eval
                mode.
            until: stop, with the state saved, after so many steps.

        Raises:
            FloatingPointError: a loss is not finite.
        """
        end = min(until or self.recipe.steps, self.recipe.steps)
        saved = time.monotonic()
        with _progress() as bar:
            task = bar.add_task(name, total=self.recipe.steps, completed=self.step, told="")
            while self.step < end:
                started = time.monotonic()
                for key, value in self._advance(losses_of).items():
                    self.mean[key] = value + 0.98 * (self.mean.get(key, value) - value)
                self.seconds += time.monotonic() - started
                told = "  ".join(f"{key} {value:.4f}" for key, value in self.mean.items())
                bar.update(task, completed=self.step, told=told)
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
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.lr * _schedule(self.step, recipe.warmup, recipe.steps)
        self.module.train()
        with self.arithmetic():
            losses = losses_of(self.step)
            total = sum(losses.values())
            self.optimizer.zero_grad()
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
            # at the start the average would otherwise be that of random weights
            decay = min(recipe.ema, (1 + self.step) / (10 + self.step))
            with torch.no_grad():
                pairs = zip(self.average.parameters(), self.module.parameters(), strict=True)
                for old, new in pairs:
                    old.lerp_(new, 1 - decay)
        return values

    def arithmetic(self) -> ExitStack:
        """The recipe's precision and attention, as a context."""
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
        told = "  ".join(f"{key} {value:.3f}" for key, value in entry.items() if key != "step")
        left = (self.recipe.steps - self.step) * pace / 60
        bar.console.print(
            f"{name} {self.step}/{self.recipe.steps}: {told}  ({pace:.2f} s a step, "
            f"{left:.0f} min left)",
            soft_wrap=True,
            highlight=False,
        )

    def save(self) -> None:
        """Write the state."""
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
            there = state["settings"]
        except Exception as error:  # whatever reading a damaged or foreign file can raise
            raise CheckpointError(
                f"{self.file} is damaged, or not the state of a training; remove it to start anew"
            ) from error
        asked = self.settings
        differ = sorted(k for k in {*there, *asked} if there.get(k) != asked.get(k))
        if differ:
            told = ", ".join(f"{k}: {there.get(k)} there, {asked.get(k)} asked" for k in differ)
            raise ConfigError(
                f"{self.file} is of a training with other settings ({told}); name another folder, "
                "or remove that file to start anew"
            )
        self.module.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.step, self.log, self.seconds = state["step"], state["log"], state["seconds"]
        self.mean = state["mean"]


def _groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    matrices = [p for p in module.parameters() if p.ndim > 1]
    others = [p for p in module.parameters() if p.ndim <= 1]
    return [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]


def _schedule(step: int, warmup: int, steps: int) -> float:
    """Factor on the learning rate: linear from 1 / warmup to 1, then a cosine to 0."""
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
        TextColumn("{task.fields[told]}"),
    )


# --- results ------------------------------------------------------------------------------------


def write_json(path: Path, content: Any) -> None:
    """Replace a JSON file."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def write_figure(path: Path, figure: Figure, dpi: int = 100) -> None:
    """Replace a PNG file."""
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=dpi, format="png")


def describe(training: Training) -> dict[str, Any]:
    """What a model card needs: settings, minutes, machine, and all evaluations."""
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
    """Evaluations against steps.

    Args:
        log: of a :class:`Training`.
        panels: title of each panel and the entries drawn in it.
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
    """Bytes of all weights below a folder."""
    return sum(os.path.getsize(path) for path in folder.rglob("*.safetensors"))
