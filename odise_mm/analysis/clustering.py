"""k-means of feature maps: which maps, their clusters, and numbers that agree between images."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np

from odise_mm.errors import OdiseError

STRIDE = 16  # of the map that is shown where nothing else is asked for
DIMENSIONS = 64
STARTS = 4  # of k-means, of which the best is kept


class FeatureError(OdiseError):
    """A map that a backbone does not have, or an image with too little in it."""


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
            centers, labels = kmeans2(flat, _start(flat, count, random), iter=100, minit="matrix")
        spread = ((flat - centers[labels]) ** 2).sum()
        if spread < least:
            best, least = labels, spread
    return best.reshape(vectors.shape[:2])


def _start(vectors: np.ndarray, count: int, random: np.random.RandomState) -> np.ndarray:
    """k-means++ (Arthur and Vassilvitskii, 2007): each center far from those before."""
    centers = [vectors[random.randint(len(vectors))]]
    distance = np.full(len(vectors), np.inf)
    while len(centers) < count:
        distance = np.minimum(distance, ((vectors - centers[-1]) ** 2).sum(1))
        centers.append(vectors[random.choice(len(vectors), p=distance / distance.sum())])
    return np.stack(centers)


def alike(labels: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """The same clusters, numbered to agree with another clustering as far as they can.

    Args:
        labels, reference: (H, W) int from 0, of one size.
    """
    from scipy.optimize import linear_sum_assignment

    count = int(max(labels.max(), reference.max())) + 1
    together = np.zeros((count, count), np.int64)
    np.add.at(together, (labels.ravel(), reference.ravel()), 1)
    old, new = linear_sum_assignment(together, maximize=True)
    renamed = np.empty(count, np.int64)
    renamed[old] = new
    return renamed[labels]
