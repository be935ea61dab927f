"""Why an image was segmented as it was: masks, attention, features, and who named what."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from odise_mm.analysis.clustering import alike, cluster
from odise_mm.analysis.feature_maps import to_vectors
from odise_mm.benchmarks.tables import write_figure
from odise_mm.models.heads.mask2former_head import Frame
from odise_mm.structures import REASONS, Evidence, Queries, SegmentationResult
from odise_mm.utils.display import printable
from odise_mm.utils.image import ImageSource, read_image
from odise_mm.visualization.colors import class_colors
from odise_mm.visualization.text import tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

STRIDE = 8
"""Stride of the clustered features: the same for all models, so that they can be compared."""
_LEVEL = 1  # of the pyramid of strides 4, 8, 16, 32 that every head reads
_NAMES = 3  # names listed per classifier
_EXAMPLES = 2  # regions of the memory listed
_WIDTHS = dict(mask=1.0, attention=1.0, text=1.7, examples=0.6)  # of columns, relative
_CLUSTERS = (6, 12)  # at least and at most
_WIDTH = 14.0  # of the sheet in inches
NO_DECODER = "This model has no mask decoder, so there are no attention maps and no features."


class Inferencer(Protocol):
    """What :func:`explain` needs of an :class:`~odise_mm.apis.OpenVocabInferencer`."""

    model: Any

    def __call__(self, images: Any, *args: Any, **settings: Any) -> list[SegmentationResult]:
        """Segment images."""

    def draw(self, image: np.ndarray, result: SegmentationResult, **drawing: Any) -> np.ndarray:
        """Draw a result."""


@dataclass(frozen=True)
class Explanation:
    """An image, its result, and what the model looked at.

    Attributes:
        image: (H, W, 3) uint8 BGR.
        result: the result, with ``queries``.
        drawing: the drawn result, (H', W', 3) uint8 BGR.
        frame: sizes of the model's input, which ``attention`` covers.
        attention: where each of the Q queries attended to in the last decoder layer, averaged over
            the heads, (Q, h, w) float32 over the padded image, with a sum of 1 for each query; None
            for models without such a decoder.
        features: clusters of the features that the decoder read, at a stride of 8 pixels,
            (h, w) from 0; None for models without a decoder. A cluster has the color of the segment
            that it covers best.
    """

    image: np.ndarray
    result: SegmentationResult
    drawing: np.ndarray
    frame: Frame
    attention: np.ndarray | None
    features: np.ndarray | None

    def figure(self, masks: int = 8) -> Figure:
        """Draw the sheet.

        Args:
            masks: number of masks to show, see :func:`strongest`.
        """
        from matplotlib.figure import Figure

        shown = strongest(self.result.require_queries(), masks)
        rows = -(-len(shown) // 2)
        ratio = self.image.shape[0] / self.image.shape[1]
        top, row = _WIDTH / 4 * min(ratio, 1.5) + 0.5, max(_WIDTH / 7 * min(ratio, 1.5), 1.3) + 0.1
        figure = Figure(figsize=(_WIDTH, top + rows * row + 0.6), layout="constrained")
        upper, lower = figure.subfigures(2, 1, height_ratios=[top, max(rows * row, 0.1)])
        self._draw_maps(upper)
        self._draw_masks(lower, shown)
        figure.supxlabel(self._summary(), fontsize=9, x=0.01, ha="left")
        return figure

    def save(self, path: str | Path, masks: int = 8) -> None:
        """Write the sheet to an image file (.png, .jpg, .pdf, .svg)."""
        write_figure(path, self.figure(masks), dpi=110)

    def _draw_maps(self, figure: SubFigure) -> None:
        panels = figure.subplots(1, 3 if self.features is None else 4)
        height, width = self.image.shape[:2]
        panels[0].imshow(self.image[..., ::-1])
        panels[0].set_title(_escaped(tidy(self.result.image_name, 40)), fontsize=9)
        panels[1].imshow(self.drawing[..., ::-1])
        panels[1].set_title(f"result: {len(self.result.segments)} segments", fontsize=9)
        shown = panels[2].imshow(self.result.confidence(), vmin=0, vmax=1, cmap="viridis")
        panels[2].set_title("confidence of each pixel", fontsize=9)
        figure.colorbar(shown, ax=panels[2], shrink=0.7)
        if self.features is not None:
            colors = _cluster_colors(self.result)
            rows, columns = self.features.shape
            right, bottom = (
                STRIDE * count * side / seen
                for count, side, seen in (
                    (columns, width, self.frame.image[1]),
                    (rows, height, self.frame.image[0]),
                )
            )  # the last positions may reach beyond the image
            panels[3].imshow(colors[self.features], extent=(0, right, bottom, 0))
            panels[3].set(xlim=(0, width), ylim=(height, 0))
            count = int(self.features.max()) + 1
            panels[3].set_title(f"features at stride {STRIDE}, k-means, k={count}", fontsize=9)
        for panel in panels:
            panel.set_axis_off()

    def _draw_masks(self, figure: SubFigure, shown: list[int]) -> None:
        if not shown:
            return
        queries = self.result.require_queries()
        examples = {query: _with_pictures(queries, query) for query in shown}
        block = ["mask"] if self.attention is None else ["mask", "attention"]
        block += ["text", "examples"] if any(examples.values()) else ["text"]
        widths = [_WIDTHS[kind] for kind in block] * 2
        axes = figure.subplots(-(-len(shown) // 2), len(widths), squeeze=False, width_ratios=widths)
        for panel in axes.ravel():
            panel.set_axis_off()
        for place, query in enumerate(shown):
            row, column = divmod(place, 2)
            start = column * len(block)
            panels = dict(zip(block, axes[row, start : start + len(block)], strict=True))
            probability = queries.mask(query)
            dimmed = self.image[..., ::-1] * (0.15 + 0.85 * probability[..., None])
            panels["mask"].imshow(dimmed.astype(np.uint8))
            if probability.min() < 0.5 < probability.max():
                panels["mask"].contour(probability, [0.5], colors="white", linewidths=0.7)
            panels["mask"].set_title(f"mask {query}", fontsize=8)
            if self.attention is not None:
                self._draw_attention(panels["attention"], self.attention[query])
            if examples[query]:
                _draw_examples(panels["examples"], examples[query])
            heading, lines = describe(self.result, query)
            panels["text"].text(
                0, 1, _escaped(heading), va="bottom", fontsize=8.5, weight="bold", clip_on=False
            )
            panels["text"].text(
                0, 0.96, _escaped("\n".join(lines)), va="top", fontsize=7.5, linespacing=1.35
            )

    def _draw_attention(self, panel: Axes, attention: np.ndarray) -> None:
        height, width = self.image.shape[:2]
        (padded_height, padded_width), (image_height, image_width) = self.frame
        area = (0, width * padded_width / image_width, height * padded_height / image_height, 0)
        panel.imshow(self.image.mean(axis=2), cmap="gray", extent=(0, width, height, 0))
        panel.imshow(attention, cmap="inferno", extent=area, alpha=0.75)
        panel.set(xlim=(0, width), ylim=(height, 0))
        panel.set_title("attention", fontsize=8)

    def _summary(self) -> str:
        queries = self.result.require_queries()
        counts = Counter(fate.reason for fate in queries.fates)
        parts = [f"{counts[reason]} {reason} ({REASONS[reason]})" for reason in REASONS
                 if counts[reason]]  # fmt: skip
        text = f"{len(queries)} masks: " + "; ".join(parts)
        if self.features is None:
            text += f"\n{NO_DECODER}"
        if self.result.random_weights:
            text += "\nRandom weights: this sheet is meaningless."
        return text


def explain(
    inferencer: Inferencer, image: ImageSource, *names: Any, **arguments: Any
) -> Explanation:
    """Segment an image and record what the model looked at.

    The model must not be used by other threads meanwhile. Example::

        explain(inferencer, "street.jpg", texts="car; person").save("explained.png")

    Args:
        inferencer: an :class:`~odise_mm.apis.OpenVocabInferencer`.
        image: one image.
        names: class names, as for a call of the inferencer: ``texts``, ``stuff_texts`` and
            ``vocabulary``.
        arguments: other arguments of the call, such as ``texts`` and ``score_threshold``.

    Raises:
        ImageError, VocabularyError, ConfigError: as a call of the inferencer.
    """
    pixels = read_image(image)
    with watched(inferencer.model) as seen:
        (result,) = inferencer(image, *names, **{**arguments, "keep_queries": True})
    frame: Frame = result.require_queries().frame  # type: ignore[attr-defined]
    attention = features = None
    if seen.attention is not None:
        attention = as_map(seen.attention, frame.padded).numpy()
    if seen.pyramid is not None:
        features = _clusters(seen.pyramid[_LEVEL][0].float().cpu(), frame, result)
    drawing = inferencer.draw(pixels, result, legend=True)
    return Explanation(pixels, result, drawing, frame, attention, features)


@dataclass
class Seen:
    """What :func:`watched` recorded of the last image.

    Attributes:
        pyramid: feature maps that the head read, of strides 4, 8, 16, 32, each (1, C, h, w).
        attention: weights of the last decoder layer's cross-attention, (Q, positions).
    """

    pyramid: list[Tensor] | None = None
    attention: Tensor | None = None


@contextmanager
def watched(model: nn.Module) -> Iterator[Seen]:
    """Record what the head of a model reads; nothing for models without a Mask2Former head."""
    seen = Seen()
    head = getattr(model, "head", None)
    decoder = getattr(head, "transformer_decoder", None)
    if head is None or decoder is None:
        yield seen
        return

    def read(module: nn.Module, args: tuple[Any, ...]) -> None:
        seen.pyramid = [level.detach() for level in args[0]]

    def attend(module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        # Once more with the weights, which the layer itself does not need.
        with torch.no_grad():
            weights = module.forward(*args, **{**kwargs, "need_weights": True})[1]
        seen.attention = weights[0].float().cpu()

    hooks = [head.register_forward_pre_hook(read)]
    for part in decoder.layers[-1].cross_attn.modules():
        if isinstance(part, nn.MultiheadAttention):
            hooks.append(part.register_forward_hook(attend, with_kwargs=True))
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def as_map(attention: Tensor, padded: tuple[int, int]) -> Tensor:
    """Arrange attention weights as a map of the padded image: (Q, positions) to (Q, h, w).

    Raises:
        ValueError: the number of positions fits no stride of the pyramid.
    """
    for stride in (8, 16, 32, 4):
        size = (padded[0] // stride, padded[1] // stride)
        if size[0] * size[1] == attention.shape[-1]:
            return attention.unflatten(-1, size)
    raise ValueError(f"{attention.shape[-1]} positions are no map of a {padded} image")


def _with_pictures(queries: Queries, query: int) -> list[Evidence]:
    found = queries.evidence(query, _EXAMPLES)
    return [one for one in found if one.picture is not None]


def _draw_examples(panel: Axes, examples: Sequence[Evidence]) -> None:
    """Show the pictures of examples, one below the other, with their similarities."""
    for place, one in enumerate(examples):
        assert one.picture is not None, "chosen by the caller"
        image = read_image(one.picture, name="picture of a region")
        height = 1 / _EXAMPLES
        inset = panel.inset_axes((0, 1 - (place + 1) * height, 1, height * 0.8))
        inset.imshow(image[..., ::-1])
        name = f"{tidy(printable(one.name), 12)} {one.similarity:.2f}"
        inset.set_title(_escaped(name), fontsize=6.5, pad=2)
        inset.set_axis_off()


def strongest(queries: Queries, count: int) -> list[int]:
    """Return the masks with the highest class probabilities: half of them kept, half dropped.

    If there are too few of one kind, there are more of the other. Kept masks come first.
    """
    best = queries.probabilities()[:, :-1].max(axis=1)
    order = np.argsort(-best, kind="stable").tolist()
    kept = [query for query in order if queries.fates[query].segment]
    dropped = [query for query in order if not queries.fates[query].segment]
    most = max(count - len(dropped), -(-count // 2))
    kept = kept[:most]
    return kept + dropped[: count - len(kept)]


def describe(result: SegmentationResult, query: int) -> tuple[str, list[str]]:
    """Describe a mask in words.

    Returns:
        A heading with its most probable name, and lines: what became of it, and the most probable
        names by the ensemble and by each classifier.
    """
    queries = result.require_queries()
    ensemble = queries.probabilities()[query]
    label = int(ensemble[:-1].argmax())
    heading = f"{tidy(printable(result.class_names[label]), 26)}  {ensemble[label]:.2f}"
    lines = [what_became_of(result, query)]
    for speaker in (None, *queries.classifiers):
        values = queries.probabilities(speaker)[query]
        said = [f"{tidy(printable(result.class_names[i]), 18)} {values[i]:.2f}"
                for i in np.argsort(-values[:-1], kind="stable")[:_NAMES]]  # fmt: skip
        if values[-1] > 0:
            said.append(f"void {values[-1]:.2f}")
        lines.append(f"{speaker or 'ensemble'}:\n    {', '.join(said)}")
    similar = [
        f"{tidy(printable(one.name), 18)} {one.similarity:.2f} "
        f"({tidy(printable(Path(one.image).name), 18)})"
        for one in queries.evidence(query, _EXAMPLES)
    ]
    if similar:
        lines.append(f"most similar examples:\n    {', '.join(similar)}")
    return heading, lines


def what_became_of(result: SegmentationResult, query: int) -> str:
    """Say in one line what became of a mask in the panoptic map, and why."""
    queries = result.require_queries()
    fate = queries.fates[query]
    share = fate.pixels / max(fate.area, 1)
    if fate.segment:
        verb = "segment" if fate.reason == "kept" else "merged into segment"
        return f"{verb} {fate.segment}, {fate.pixels:,} pixels ({share:.0%} of the mask)"
    limits = queries.settings
    details = {
        "void": "dropped: more probably none of the classes",
        "score": f"dropped: probability not above score_threshold={limits['score_threshold']:g}",
        "empty": "dropped: no pixel has a mask probability of 0.5",
        "overlap": f"dropped: keeps {share:.0%} of its {fate.area:,} pixels, less than "
        f"overlap_threshold={limits['overlap_threshold']:g}",
        "area": f"dropped: its segment is smaller than min_area={limits['min_area']}",
    }
    text = details[fate.reason]
    if fate.reason == "overlap":
        ids = result.require_panoptic()[queries.mask(query) >= 0.5]
        winners = Counter(ids[ids > 0].tolist()).most_common(1)
        if winners and 2 * winners[0][1] > fate.area:
            winner = next(s for s in result.segments if s.id == winners[0][0])
            text += f";\n    {winners[0][1]:,} are segment {winner.id} ({printable(winner.name)})"
    return text


def _clusters(features: Tensor, frame: Frame, result: SegmentationResult) -> np.ndarray:
    """Cluster features (C, h, w), into one cluster more than there are segments, from 6 to 12.

    Clusters are numbered as the segments that they cover best.
    """
    vectors = to_vectors([features], [STRIDE], frame.image).numpy()
    different = len(np.unique(vectors.reshape(-1, vectors.shape[-1]).round(4), axis=0))
    least, most = _CLUSTERS
    count = min(max(len(result.segments) + 1, least), most, different)
    labels = cluster(vectors, count)
    centers = []
    for positions, side, seen in zip(
        labels.shape, (result.height, result.width), frame.image, strict=True
    ):
        position = (np.arange(positions) + 0.5) * STRIDE * side / seen
        centers.append(position.astype(int).clip(0, side - 1))
    reference = result.require_panoptic()[np.ix_(*centers)]
    return alike(labels, reference)


def _cluster_colors(result: SegmentationResult) -> np.ndarray:
    """Return the colors of the clusters: that of segment i for cluster i, gray for void."""
    from matplotlib import colormaps

    others = (np.array(colormaps["tab20"].colors) * 255).astype(np.uint8)
    colors = others[np.arange(256) % len(others)]
    colors[0] = 150
    palette = class_colors(result.class_names)
    for segment in result.segments:
        if segment.id < len(colors):
            colors[segment.id] = palette[segment.label]
    return colors


def _escaped(text: str) -> str:
    """Escape a text so that matplotlib does not parse formulas in it."""
    return text.replace("$", r"\$")
