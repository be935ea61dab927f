"""Small models for both kinds of supervision, samples, and deterministic random points."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.structures import InstanceData
from torch import Tensor

from odise_mm.models import OpenVocabSegmentor
from tests.support.parts import load_config, random_image, segmentor, segmentor_config

WORDS = ["dog", "red car", "dog", "tree"]


def make_model(captions: bool, **changes: Any) -> OpenVocabSegmentor:
    """Build :func:`tests.support.parts.segmentor` in training mode, with 300 points per mask."""
    head = segmentor_config().head
    head.train_cfg.num_points = 300
    if captions:
        full = load_config("odise/odise_coco_caption.py").model
        head.objectness = True
        classifiers = full.classifiers
        classifiers[0].embed_dim = 64
        changes = dict(classifiers=classifiers, grounding=full.grounding) | changes
        return captions_segmentor(head, changes)
    return segmentor(**(dict(head=head) | changes)).train()


def captions_segmentor(head: dict, changes: dict) -> OpenVocabSegmentor:
    """Build a model for captions. It has no null embedding, which ``segmentor`` would scale."""
    from odise_mm.registry import MODELS
    from tests.support.parts import random_weights

    torch.manual_seed(0)
    model = MODELS.build(segmentor_config(**(dict(head=head) | changes)))
    random_weights(model, 0)
    for embedding in (model.head.query_feat, model.head.query_embed):
        embedding.weight.data.mul_(embedding.weight.shape[1] ** 0.5)
    for frozen in (model.backbone, model.clip):
        random_weights(frozen, 1)
    return model.train()


def make_sample(
    count: int,
    size: tuple[int, int],
    words: Sequence[str] | None = None,
    seed: int = 0,
    classes: int = 4,
) -> DetDataSample:
    """Draw a sample with ``count`` segments, which consist of blocks of 16 x 16 pixels."""
    rng = np.random.RandomState(seed)
    blocks = rng.randint(0, count + 1, (-(-size[0] // 16), -(-size[1] // 16)))
    owner = blocks.repeat(16, 0).repeat(16, 1)[: size[0], : size[1]]
    masks = np.array([owner == i for i in range(count)], np.uint8).reshape(count, *size)
    meta = dict(img_shape=size, ori_shape=size, img_path=f"image_{seed}.jpg")
    if words is not None:
        meta["words"] = list(words)
    sample = DetDataSample(metainfo=meta)
    labels = torch.from_numpy(rng.randint(0, classes, count))
    sample.gt_instances = InstanceData(labels=labels, masks=BitmapMasks(masks, *size))
    return sample


def make_batch(
    model: OpenVocabSegmentor,
    counts: Sequence[int] = (3, 5),
    words: Sequence[Sequence[str]] | None = None,
    sizes: Sequence[tuple[int, int]] = ((100, 128), (128, 90)),
) -> dict:
    """Draw a batch of preprocessed inputs and samples, padded to 128 x 128 pixels."""
    samples = [
        make_sample(count, size, words and words[i], seed=i)
        for i, (count, size) in enumerate(zip(counts, sizes, strict=False))
    ]
    images = [random_image(*sample.img_shape, seed=i) for i, sample in enumerate(samples)]
    return model.data_preprocessor(dict(inputs=images, data_samples=samples), True)


def repeating_points(rand: Callable = torch.rand) -> Callable[..., Tensor]:
    """Return a ``torch.rand`` that draws the same points for every mask, image and process."""

    def draw(*size: Any, device: Any = None, **_: Any) -> Tensor:
        shape = size[0] if len(size) == 1 and not isinstance(size[0], int) else size
        generator = torch.Generator().manual_seed(int(shape[1]))
        return rand(1, *shape[1:], generator=generator).expand(*shape).contiguous().to(device)

    return draw
