"""k-means clustering of feature maps, with cluster numbers that agree between panels."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np

from odise_mm.errors import OdiseError

STRIDE = 16  # the default map is the one with the stride nearest to this
DIMENSIONS = 64  # longer vectors are projected on this many principal axes
STARTS = 4  # runs of k-means; the best one is kept


class FeatureError(OdiseError):
    """A feature map that does not exist, or one with too few different vectors to cluster."""


def choose_maps(
    strides: Sequence[int],
    channels: Sequence[int],
    asked: list[int] | None = None,
    wanted: int = STRIDE,
) -> list[int]:
    """Choose the feature maps to cluster.

    Args:
        strides: Strides of the backbone's maps.
        channels: Channels of the backbone's maps.
        asked: Indices of maps, as given by the user; None for the default map.
        wanted: The default map is the last one whose stride is nearest to this.

    Returns:
        Indices of the maps, without repetitions.

    Raises:
        FeatureError: A map does not exist. The message lists the existing ones.
    """
    if asked is None:
        distance = [abs(stride - wanted) for stride in strides]
        return [max(i for i, d in enumerate(distance) if d == min(distance))]
    for index in asked:
        if not 0 <= index < len(strides):
            known = (f"{i} ({c} channels, stride {s})" for i, (c, s) in
                     enumerate(zip(channels, strides, strict=True)))  # fmt: skip
            raise FeatureError(f"unknown map {index}; available: {', '.join(known)}")
    return list(dict.fromkeys(asked))


def cluster(vectors: np.ndarray, count: int) -> np.ndarray:
    """Cluster vectors with k-means; deterministic, the best of several k-means++ starts.

    Args:
        vectors: (rows, columns, C).
        count: Number of clusters.

    Returns:
        Cluster index of every vector, (rows, columns) int, from 0.

    Raises:
        FeatureError: There are fewer different vectors than clusters.
    """
    from scipy.cluster.vq import kmeans2

    flat = vectors.reshape(-1, vectors.shape[-1]).astype(np.float64)
    different = len(np.unique(flat.astype(np.float32), axis=0))
    if different < count:
        raise FeatureError(
            f"the map has only {different} different vectors for {count} clusters; use fewer "
            "clusters (--clusters) or a map with a smaller stride (--maps)"
        )
    if flat.shape[1] > DIMENSIONS:
        _, axes = np.linalg.eigh(flat.T @ flat)
        flat = flat @ axes[:, -DIMENSIONS:]
    random = np.random.RandomState(0)
    best, least = None, np.inf
    for _ in range(STARTS):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # warns of empty clusters; another start wins then
            centers, labels = kmeans2(flat, _start(flat, count, random), iter=100, minit="matrix")
        spread = ((flat - centers[labels]) ** 2).sum()
        if spread < least:
            best, least = labels, spread
    return best.reshape(vectors.shape[:2])


def _start(vectors: np.ndarray, count: int, random: np.random.RandomState) -> np.ndarray:
    """Choose initial centers by k-means++ (Arthur and Vassilvitskii, 2007)."""
    centers = [vectors[random.randint(len(vectors))]]
    distance = np.full(len(vectors), np.inf)
    while len(centers) < count:
        distance = np.minimum(distance, ((vectors - centers[-1]) ** 2).sum(1))
        centers.append(vectors[random.choice(len(vectors), p=distance / distance.sum())])
    return np.stack(centers)


def alike(labels: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Renumber clusters so that they agree with another clustering as far as possible.

    Args:
        labels: Cluster indices to renumber, (H, W) int, from 0.
        reference: The clustering to agree with, of the same shape.

    Returns:
        The renumbered indices, (H, W) int.
    """
    from scipy.optimize import linear_sum_assignment

    count = int(max(labels.max(), reference.max())) + 1
    overlaps = np.zeros((count, count), np.int64)
    np.add.at(overlaps, (labels.ravel(), reference.ravel()), 1)
    old, new = linear_sum_assignment(overlaps, maximize=True)
    renamed = np.empty(count, np.int64)
    renamed[old] = new
    return renamed[labels]
