#!/usr/bin/env python
"""k-means of backbones' feature maps as one picture: what regions a representation tells apart.

As figure 1 of ODISE (arXiv 2303.04803), for any number of backbones side by side. The raw maps are
clustered, before the neck: nothing that is trained takes part but a captioner (--weights). Channels
are standardised over the picture, reduced to 64 by PCA, and clustered from the same start every
time; a region has about the same colour in all panels.

Example:
    python tools/analysis_tools/visualize_features.py demo/images/pagoda.jpg \\
        ablation/representation/stable_diffusion ablation/representation/dino_b --out features.png
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # runs from a clone that is not installed, too

from odise_mm.benchmarks.tables import write_figure  # noqa: E402
from odise_mm.errors import ConfigError, OdiseError  # noqa: E402
from odise_mm.utils.command_line import Parser, one_line_errors, positive_int  # noqa: E402
from odise_mm.utils.display import printable  # noqa: E402
from odise_mm.utils.outputs import check_outputs  # noqa: E402
from odise_mm.utils.precision import PRECISIONS  # noqa: E402

if TYPE_CHECKING:
    import numpy as np
    import torch
    from mmengine.config import Config
    from rich.progress import Progress
    from torch import Tensor, nn

STRIDE = 16  # of the map that is shown where nothing else is asked for
DIMENSIONS = 64
STARTS = 4  # of k-means, of which the best is kept


class FeatureError(OdiseError):
    """A map that a backbone does not have, or a picture with too little in it."""


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("image", metavar="IMAGE", help="a picture")
    parser.add_argument(
        "configs", metavar="CONFIG", nargs="+", help="config files or their names under configs/"
    )
    parser.add_argument(
        "--weights",
        nargs="+",
        metavar="FILE",
        help="trained checkpoints, one for each config, or `none`: of the captioner and of "
        "backbones that are trained (default: none; frozen weights are those of the config)",
    )
    parser.add_argument(
        "--out", metavar="FILE", default="features.png", help="default: %(default)s"
    )
    parser.add_argument(
        "--clusters", type=positive_int, default=6, metavar="K", help="default: %(default)s"
    )
    parser.add_argument(
        "--maps",
        nargs="+",
        type=int,
        metavar="I",
        help="numbers of the maps, counted from 0 in the order of the backbone (model_summary.py "
        f"lists them), several are joined; default: the last one of the stride nearest to {STRIDE}",
    )
    parser.add_argument(
        "--size", type=positive_int, help="short edge in pixels (default: what a config tests with)"
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1 (default: a GPU where there is one)")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32")
    args = parser.parse_args(argv)
    if args.weights and len(args.weights) != len(args.configs):
        parser.error(f"--weights: {len(args.weights)} files for {len(args.configs)} configs")
    if Path(args.out).suffix != ".png":
        parser.error(f"--out must end in .png: {args.out}")
    return args


def build_parts(cfg: Config, weights: str | None = None) -> tuple[nn.Module, bool]:
    """A model's backbone and captioner alone.

    Args:
        cfg: of the model.
        weights: of its trained part; None: as it begins its training.

    Returns:
        A module with ``backbone`` and ``captioner`` (which may be None), and whether none of its
        parts has real weights.

    Raises:
        ConfigError: a part that cannot be built.
        CheckpointError: weights that are missing or of another model.
    """
    import inspect

    import torch
    from mmengine.registry import init_default_scope
    from torch import nn

    from odise_mm.config.building import build_part, config_errors
    from odise_mm.config.walking import named_weights
    from odise_mm.registry import MODELS

    init_default_scope(cfg.get("default_scope", "odise_mm"))
    model_cfg = cfg.get("model") or {}
    if not model_cfg.get("backbone"):
        raise ConfigError(f"{cfg.filename}: has no `model.backbone`")
    used = [model_cfg.backbone, *([model_cfg.captioner] if model_cfg.get("captioner") else [])]
    parts = nn.Module()
    shared: dict[str, Any] = {}
    with config_errors(cfg), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        classes = [MODELS.get(part["type"]) for part in used]
        wanted = {name for cls in classes if cls for name in inspect.signature(cls).parameters}
        if {"clip", "text_encoder"} & wanted and model_cfg.get("clip"):
            used.append(model_cfg.clip)
            # a child, so that it moves with the parts that it is lent to
            parts.clip = shared["clip"] = build_part(model_cfg.clip, MODELS)
            encoder = model_cfg.get("text_encoder") or {"type": "TextEncoder"}
            shared["text_encoder"] = build_part(encoder, MODELS, **shared)
        parts.backbone = build_part(model_cfg.backbone, MODELS, **shared)
        shared |= parts.backbone.describe()
        parts.captioner = None
        if model_cfg.get("captioner"):
            parts.captioner = build_part(model_cfg.captioner, MODELS, **shared)
    if weights is not None:
        _load_trained(parts, weights)
    return parts.eval(), not any(named_weights(part) for part in used)


def _load_trained(parts: nn.Module, file: str) -> None:
    from odise_mm.checkpoints.published import from_published, is_published, known_names
    from odise_mm.checkpoints.safe_loading import differences, load_state_dict
    from odise_mm.errors import CheckpointError

    state = load_state_dict(file, fits=known_names(parts))
    if is_published(state):
        state, _ = from_published(state)
    state = {k: v for k, v in state.items() if k.startswith(("backbone.", "captioner."))}
    wrong = differences(state, parts.state_dict())
    if wrong:
        raise CheckpointError(f"{file} was not made for this config's captioner: {wrong}")
    parts.load_state_dict(state)


def choose_maps(
    strides: Sequence[int],
    channels: Sequence[int],
    asked: list[int] | None = None,
    wanted: int = STRIDE,
) -> list[int]:
    """Numbers of the maps to cluster: those asked for, or the last one nearest a wanted stride.

    Raises:
        FeatureError: one that does not exist; lists those that do.
    """
    if asked is None:
        distance = [abs(stride - wanted) for stride in strides]
        return [max(i for i, d in enumerate(distance) if d == min(distance))]
    for index in asked:
        if not 0 <= index < len(strides):
            known = (f"{i} ({c} channels, stride {s})" for i, (c, s) in
                     enumerate(zip(channels, strides, strict=True)))  # fmt: skip
            raise FeatureError(f"there is no map {index}; there are: {', '.join(known)}")
    return list(dict.fromkeys(asked))


def extract(
    parts: nn.Module, cfg: Config, image: Tensor, indices: list[int], step: Any
) -> tuple[list[Tensor], list[int]]:
    """Raw maps of a whole picture, through the same tiles as the segmentor's.

    Args:
        parts: from :func:`build_parts`.
        cfg: of the model.
        image: (3, H, W) in [0, 1], padded to a multiple of 64.
        indices: of the maps.
        step: called with the number of tiles done and of all.

    Returns:
        (C, H / stride, W / stride) for every index, and the strides: each the power of two that is
        nearest to the map's own, to which its map of a tile is resized (nearest) as by the neck.
    """
    import math

    import torch
    import torch.nn.functional as F

    from odise_mm.models.segmentors.open_vocab_segmentor import OpenVocabSegmentor
    from odise_mm.models.segmentors.tiling import TileGrid
    from odise_mm.utils.precision import autocast

    defaults = _defaults(OpenVocabSegmentor)
    tile_size = cfg.model.get("tile_size", defaults["tile_size"])
    batch = cfg.model.get("max_tiles_per_batch", defaults["max_tiles_per_batch"])
    grid = TileGrid.of(tuple(image.shape[-2:]), tile_size)
    tiles = grid.cut(image)
    strides = [2 ** round(math.log2(parts.backbone.strides[i])) for i in indices]
    found: list[list[Tensor]] = [[] for _ in indices]
    with torch.no_grad(), autocast(image, cfg.get("precision", "fp32")):
        for first in range(0, len(tiles), batch):
            some = tiles[first : first + batch]
            told = () if parts.captioner is None else (parts.captioner(some, [None] * len(some)),)
            maps = parts.backbone(some, *told)
            for kept, index, stride in zip(found, indices, strides, strict=True):
                size = tuple(side // stride for side in grid.tile)
                kept.append(F.interpolate(maps[index].float(), size))
            step(min(first + batch, len(tiles)), len(tiles))
    return [grid.join(torch.cat(kept)) for kept in found], strides


def _defaults(cls: type) -> dict[str, Any]:
    import inspect

    return {name: p.default for name, p in inspect.signature(cls).parameters.items()}


def to_vectors(maps: Sequence[Tensor], strides: Sequence[int], size: tuple[int, int]) -> Tensor:
    """One vector for every place of the finest map, padding left out.

    Args:
        maps: each (C, h, w) over the padded picture.
        strides: of the maps.
        size: height and width of the picture without padding, in pixels.

    Returns:
        (rows, columns, all C) float32, every channel with mean 0 and variance 1.
    """
    import torch
    import torch.nn.functional as F

    finest = min(range(len(maps)), key=lambda i: strides[i])
    shape = maps[finest].shape[-2:]
    joined = torch.cat([F.interpolate(m[None].float(), shape)[0] for m in maps])
    rows, columns = (-(-side // strides[finest]) for side in size)
    vectors = joined[:, :rows, :columns].permute(1, 2, 0)
    mean, deviation = vectors.mean((0, 1)), vectors.std((0, 1), correction=0)
    # channels that say nothing have no scale
    return (vectors - mean) / torch.where(deviation > 1e-6 * (1 + mean.abs()), deviation, torch.inf)


def cluster(vectors: np.ndarray, count: int) -> np.ndarray:
    """k-means, the best of several starts (k-means++), the same every time.

    Args:
        vectors: (rows, columns, C).
        count: of the clusters.

    Returns:
        (rows, columns) int, from 0.

    Raises:
        FeatureError: fewer different vectors than clusters.
    """
    import warnings

    import numpy as np
    from scipy.cluster.vq import kmeans2

    flat = vectors.reshape(-1, vectors.shape[-1]).astype(np.float64)
    different = len(np.unique(flat.astype(np.float32), axis=0))
    if different < count:
        raise FeatureError(
            f"the map has {different} different vectors for {count} clusters: take fewer "
            "(--clusters), or a map of a smaller stride (--maps)"
        )
    if flat.shape[1] > DIMENSIONS:
        _, axes = np.linalg.eigh(flat.T @ flat)
        flat = flat @ axes[:, -DIMENSIONS:]
    random = np.random.RandomState(0)
    best, least = None, np.inf
    for _ in range(STARTS):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an empty cluster: another start has none
            centres, labels = kmeans2(flat, _start(flat, count, random), iter=100, minit="matrix")
        spread = ((flat - centres[labels]) ** 2).sum()
        if spread < least:
            best, least = labels, spread
    return best.reshape(vectors.shape[:2])


def _start(vectors: np.ndarray, count: int, random: np.random.RandomState) -> np.ndarray:
    """k-means++ (Arthur and Vassilvitskii, 2007): each centre far from those before."""
    import numpy as np

    centres = [vectors[random.randint(len(vectors))]]
    distance = np.full(len(vectors), np.inf)
    while len(centres) < count:
        distance = np.minimum(distance, ((vectors - centres[-1]) ** 2).sum(1))
        centres.append(vectors[random.choice(len(vectors), p=distance / distance.sum())])
    return np.stack(centres)


def alike(labels: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """The same clusters, numbered to agree with another clustering as far as they can.

    Args:
        labels, reference: (H, W) int from 0, of one size.
    """
    import numpy as np
    from scipy.optimize import linear_sum_assignment

    count = int(max(labels.max(), reference.max())) + 1
    together = np.zeros((count, count), np.int64)
    np.add.at(together, (labels.ravel(), reference.ravel()), 1)
    old, new = linear_sum_assignment(together, maximize=True)
    renamed = np.empty(count, np.int64)
    renamed[old] = new
    return renamed[labels]


def draw(image: np.ndarray, panels: list[tuple[str, np.ndarray]], path: Path) -> None:
    """The picture, then every panel's clusters.

    Args:
        image: (H, W, 3) uint8, RGB.
        panels: title and (H, W) cluster numbers.
        path: of the PNG file.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    count = len(panels) + 1
    columns = min(count, 4)
    rows = -(-count // columns)
    height, width = image.shape[:2]
    figure = Figure(
        figsize=(3.2 * columns, (3.2 * height / width + 0.6) * rows), layout="constrained"
    )
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    clusters = max(int(labels.max()) for _, labels in panels) + 1
    colours = colormaps["tab20" if clusters > 10 else "tab10"]
    axes[0].imshow(image)
    axes[0].set_title("picture", fontsize=8)
    for place, (title, labels) in zip(axes[1:], panels, strict=False):
        place.imshow(colours(labels % colours.N), interpolation="nearest")
        place.set_title(printable_title(title), fontsize=8)
    for place in axes:
        place.set_axis_off()
    write_figure(path, figure, dpi=150, metadata={"Software": None})


def printable_title(title: str) -> str:
    """Lines of a title, in which matplotlib finds no formula."""
    return "\n".join(printable(line) for line in title.split("\n")).replace("$", r"\$")


def run(args: argparse.Namespace) -> None:
    """Make the picture."""
    from odise_mm.config.finding import load_config
    from odise_mm.config.walking import named_weights
    from odise_mm.utils.image import read_image

    cfgs = [load_config(config) for config in args.configs]
    named = [named_weights(cfg.get("model")) for cfg in cfgs]
    files = [args.image, *(args.weights or ()), *(cfg.filename for cfg in cfgs), *chain(*named)]
    check_outputs([args.out], files)
    image = read_image(args.image)
    weights = [None if w == "none" else w for w in args.weights or ["none"] * len(cfgs)]
    panels: list[tuple[str, Any]] = []
    with progress_bar() as bar:
        for config, cfg, file in zip(args.configs, cfgs, weights, strict=True):
            title, labels = panel(config, cfg, file, image, args, bar)
            panels.append((title, alike(labels, panels[0][1]) if panels else labels))
    draw(image[..., ::-1], panels, Path(args.out))
    print(f"wrote {printable(args.out)}: {args.clusters} clusters of {len(panels)} backbones")


def panel(
    config: str,
    cfg: Config,
    weights: str | None,
    image: np.ndarray,
    args: argparse.Namespace,
    bar: Progress,
) -> tuple[str, np.ndarray]:
    """Title and clusters, (H, W) at the picture's size, of one config."""
    from odise_mm.models.frozen import FrozenModule
    from odise_mm.utils.device import pick_device
    from odise_mm.utils.memory import memory_guard
    from odise_mm.utils.precision import check_precision, dtype_of

    name = Path(config).stem
    task = bar.add_task(f"{name}: building", total=None)
    device = pick_device(args.device)
    check_precision(args.precision, device)
    if args.size is not None:
        for resize in (step for step in cfg.test_pipeline if "scale" in step):
            resize["scale"] = (5 * args.size, args.size)
    seen = tuple(model_input(cfg, image).shape[-2:])
    cfg.precision = args.precision
    with memory_guard(device, args.precision):
        parts, made_up = build_parts(cfg, weights)
        for part in (m for m in parts.modules() if isinstance(m, FrozenModule)):
            part.cast(dtype_of(args.precision))
        parts.to(device)
    channels, strides = parts.backbone.channels, parts.backbone.strides
    indices = choose_maps(strides, channels, args.maps)

    def step(done: int, total: int) -> None:
        bar.update(task, description=f"{name}: tiles", completed=done, total=total)
        if done == total:
            bar.update(task, description=f"{name}: k-means")

    with memory_guard(device, args.precision, [seen]):
        labels = cluster_picture(parts, cfg, image, indices, args.clusters, name, device, step)
    bar.update(task, description=name)
    shown = ", ".join(f"{i} ({channels[i]} x 1/{strides[i]})" for i in indices)
    title = f"{name}: map {shown}" + ("\nmade-up weights: this means nothing" if made_up else "")
    return title, labels


def cluster_picture(
    parts: nn.Module,
    cfg: Config,
    image: np.ndarray,
    indices: list[int],
    count: int,
    name: str,
    device: torch.device,
    step: Any = lambda done, total: None,
) -> np.ndarray:
    """Clusters of the features that a model's backbone has of a picture.

    Args:
        parts: from :func:`build_parts`, or a whole segmentor.
        cfg: of the model; its test pipeline resizes the picture.
        image: (H, W, 3) uint8 BGR.
        indices: of the maps.
        count: of the clusters.
        name: what errors call the features.
        device: of the parts.
        step: see :func:`extract`.

    Returns:
        (H, W) int32, from 0.

    Raises:
        FeatureError: see :func:`cluster`.
        FloatingPointError: features that are not finite.
    """
    import cv2
    import torch

    inputs = model_input(cfg, image)
    seen = tuple(inputs.shape[-2:])
    maps, levels = extract(parts, cfg, padded(inputs, cfg).to(device), indices, step)
    vectors = to_vectors(maps, levels, seen).cpu()
    if not torch.isfinite(vectors).all():
        raise FloatingPointError(f"{name}: the features are not finite numbers")
    labels = cluster(vectors.numpy(), count)
    # every place of the map covers its stride's pixels of what the backbone saw
    stride = min(levels)
    whole = labels.repeat(stride, 0).repeat(stride, 1)[: seen[0], : seen[1]]
    size = (image.shape[1], image.shape[0])
    return cv2.resize(whole.astype("int32"), size, interpolation=cv2.INTER_NEAREST)


def model_input(cfg: Config, image: np.ndarray) -> Tensor:
    """A picture as the config's test pipeline hands it to the model: (3, h, w) uint8 BGR."""
    from odise_mm.config.building import make_test_pipeline

    return make_test_pipeline(cfg)(dict(img=image, img_path=None))["inputs"]


def padded(inputs: Tensor, cfg: Config) -> Tensor:
    """What a model with the config's preprocessor sees of uint8 BGR (3, h, w)."""
    from mmdet.structures import DetDataSample

    from odise_mm.config.building import config_errors
    from odise_mm.registry import MODELS

    with config_errors(cfg):
        preprocessor = MODELS.build(cfg.model.data_preprocessor)
    shape = tuple(inputs.shape[-2:])
    sample = DetDataSample(metainfo=dict(img_shape=shape, ori_shape=shape))
    return preprocessor(dict(inputs=[inputs], data_samples=[sample]))["inputs"][0]


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """A bar for terminals."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal) as bar:
        yield bar


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    with one_line_errors():
        run(args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
