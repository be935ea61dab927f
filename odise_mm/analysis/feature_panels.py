"""Figures of clustered feature maps, one panel per backbone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from mmengine.config import Config
from rich.console import Console
from rich.progress import Progress

from odise_mm.analysis.clustering import STRIDE, choose_maps
from odise_mm.analysis.feature_maps import build_parts, cluster_image, model_input
from odise_mm.benchmarks.tables import write_figure
from odise_mm.models.frozen import FrozenModule
from odise_mm.utils.device import pick_device
from odise_mm.utils.display import printable
from odise_mm.utils.memory import memory_guard
from odise_mm.utils.precision import check_precision, dtype_of


def panel(
    config: str,
    cfg: Config,
    weights: str | None,
    image: np.ndarray,
    bar: Progress,
    *,
    clusters: int = 6,
    maps: list[int] | None = None,
    stride: int = STRIDE,
    size: int | None = None,
    device: str | None = None,
    precision: str = "fp32",
) -> tuple[str, np.ndarray]:
    """Compute the panel of one config.

    Args:
        config: Name or file of the config, as given by the user.
        cfg: The loaded config. Its test pipeline and precision are changed in place.
        weights: Checkpoint of the trained parts. None leaves them as at the start of training.
        image: (H, W, 3) uint8, BGR.
        bar: Progress bar to update.
        clusters: Number of clusters.
        maps: Indices of the feature maps. None: the last map whose stride is nearest to ``stride``.
        stride: See ``maps``.
        size: Short edge of the resized image in pixels. Defaults to the config's test size.
        device: Device to run on. Defaults to a GPU if there is one, else the CPU.
        precision: Precision of the frozen parts, "fp32", "fp16" or "bf16".

    Returns:
        The title, and the cluster index of every pixel, (H, W) int32, from 0.

    Raises:
        ConfigError: See :func:`build_parts`.
        CheckpointError: See :func:`build_parts`.
        FeatureError: A map does not exist, or has fewer different vectors than clusters.
    """
    name = Path(config).stem
    task = bar.add_task(f"{name}: building", total=None)
    place = pick_device(device)
    check_precision(precision, place)
    if size is not None:
        for resize in (step for step in cfg.test_pipeline if "scale" in step):
            resize["scale"] = (5 * size, size)
    seen = tuple(model_input(cfg, image).shape[-2:])
    cfg.precision = precision
    with memory_guard(place, precision):
        parts, random_weights = build_parts(cfg, weights)
        for part in (m for m in parts.modules() if isinstance(m, FrozenModule)):
            part.cast(dtype_of(precision))
        parts.to(place)
    channels, strides = parts.backbone.channels, parts.backbone.strides
    indices = choose_maps(strides, channels, maps, stride)

    def step(done: int, total: int) -> None:
        bar.update(task, description=f"{name}: tiles", completed=done, total=total)
        if done == total:
            bar.update(task, description=f"{name}: k-means")

    with memory_guard(place, precision, [seen]):
        labels = cluster_image(parts, cfg, image, indices, clusters, name, place, step)
    bar.update(task, description=name)
    shown = ", ".join(f"{i} (stride {strides[i]}, {channels[i]} channels)" for i in indices)
    title = f"{name}\nmap {shown}" + (
        "\nrandom weights: meaningless clusters" if random_weights else ""
    )
    return title, labels


def draw(image: np.ndarray, panels: list[tuple[str, np.ndarray]], path: Path) -> None:
    """Write a figure of the image and all panels.

    Args:
        image: (H, W, 3) uint8, RGB.
        panels: Title and (H, W) cluster indices of every panel.
        path: PNG file to write.
    """
    count = len(panels) + 1
    columns = min(count, 4)
    rows = -(-count // columns)
    height, width = image.shape[:2]
    figure = Figure(
        figsize=(3.2 * columns, (3.2 * height / width + 0.6) * rows), layout="constrained"
    )
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    clusters = max(int(labels.max()) for _, labels in panels) + 1
    colors = colormaps["tab20" if clusters > 10 else "tab10"]
    axes[0].imshow(image)
    axes[0].set_title("image", fontsize=8)
    for place, (title, labels) in zip(axes[1:], panels, strict=False):
        place.imshow(colors(labels % colors.N), interpolation="nearest")
        place.set_title(printable_title(title), fontsize=8)
    for place in axes:
        place.set_axis_off()
    write_figure(path, figure, dpi=150, metadata={"Software": None})


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """Show a progress bar on stderr if it is a terminal."""
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal) as bar:
        yield bar


def printable_title(title: str) -> str:
    """Escape a title so that matplotlib does not parse formulas in it."""
    return "\n".join(printable(line) for line in title.split("\n")).replace("$", r"\$")
