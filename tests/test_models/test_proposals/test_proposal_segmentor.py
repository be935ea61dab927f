"""Masks of files, SAM and SAM 3, named and merged: compared with a merge that is written here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from torch import Tensor

from odise_mm.errors import ConfigError
from odise_mm.models import ProposalSegmentor
from odise_mm.registry import MODELS
from odise_mm.vocabulary import Vocabulary
from tests.support.parts import clip, random_image
from tests.support.tiny_sam import SAM, SAM3
from tests.test_models.test_proposals.test_file_proposals import results

NAMES = Vocabulary(
    (("cat", "kitten"), ("brick wall",), ("sky",), ("person", "child")), (True, False, False, True)
)
HEIGHT, WIDTH = 56, 90


def model(proposals: dict[str, Any], **changes: Any) -> ProposalSegmentor:
    return MODELS.build(
        dict(
            type="ProposalSegmentor",
            proposals=proposals,
            clip=clip(),
            classifiers=[dict(type="MaskCLIPClassifier")],
            ensemble=dict(type="GeometricEnsemble", drop_void=False),
            data_preprocessor=dict(
                type="mmdet.DetDataPreprocessor",
                mean=[0.0] * 3,
                std=[255.0] * 3,
                pad_size_divisor=1,
            ),
        )
        | changes
    ).eval()


def predict(
    segmentor: ProposalSegmentor, images: list[Tensor], names: list[dict[str, Any]]
) -> list[DetDataSample]:
    samples = [
        DetDataSample(metainfo=dict(img_shape=size, ori_shape=size, **name))
        for size, name in zip([tuple(image.shape[1:]) for image in images], names, strict=True)
    ]
    return segmentor.test_step(dict(inputs=list(images), data_samples=samples), NAMES)


def simple_merge(masks: np.ndarray, labels: list[int], scores: np.ndarray) -> np.ndarray:
    """Give every pixel the class of the best mask over it; drop masks that lose too many pixels.

    Things get 1000 * (number of the mask + 1) + class, stuff gets its class, and void -1.
    """
    best = np.full(masks.shape[1:], -1)
    for y, x in np.ndindex(*best.shape):
        over = [q for q in range(len(masks)) if masks[q, y, x]]
        if over:
            best[y, x] = max(over, key=lambda q: scores[q])
    merged = np.full(best.shape, -1)
    for q, label in enumerate(labels):
        won = best == q
        if won.sum() >= 0.8 * masks[q].sum() and won.any():
            merged[won] = 1000 * (q + 1) + label if NAMES.is_thing[label] else label
    return merged


def assert_same_segments(sample: DetDataSample, merged: np.ndarray) -> None:
    ids = sample.pred_panoptic_seg.sem_seg[0].numpy()
    info = sample.pred_panoptic_seg.segments_info
    assert sum(segment["area"] for segment in info) == (ids > 0).sum()
    assert np.array_equal(ids == 0, merged == -1)
    assert len(info) == len(np.unique(merged[merged >= 0]))
    for segment in info:
        values = np.unique(merged[ids == segment["id"]])
        assert len(values) == 1 and values[0] % 1000 == segment["category_id"]


@pytest.fixture
def overlapping() -> np.ndarray:
    """Masks that overlap, contain each other, repeat, or are empty."""
    masks = np.zeros((9, HEIGHT, WIDTH), dtype=bool)
    for mask, (top, left, bottom, right) in zip(
        masks,
        [
            (0, 0, 20, 90),
            (15, 5, 50, 40),
            (18, 8, 30, 30),
            (40, 30, 56, 80),
            (44, 35, 50, 60),
            (0, 60, 56, 90),
            (15, 5, 50, 40),
            (21, 42, 39, 58),
        ],
        strict=False,
    ):
        mask[top:bottom, left:right] = True
    return masks


def test_masks_of_a_file_named_by_clip(tmp_path: Path, overlapping: np.ndarray) -> None:
    path = tmp_path / "masks.json"
    scores = [0.9, 0.8, 0.95, 0.5, 1.0, 0.7, 0.6, 0.3, 0.4]
    path.write_text(json.dumps(results(overlapping, "a", score=scores)))
    segmentor = model(dict(type="FileProposals", file=str(path)))
    images = [random_image(HEIGHT, WIDTH), random_image(40, 64, seed=1)]
    found, empty = predict(segmentor, images, [dict(img_path="a.jpg"), dict(img_path="b.jpg")])

    # The reference: each mask alone, without the segmentor.
    masks = torch.from_numpy(overlapping).float() * 2 - 1
    classifier = segmentor.classifiers[0]
    logits = [
        classifier.name_embeddings(
            classifier.embed_masks(mask[None, None], [images[0].float() / 255], stride=1), NAMES
        ).logits[0, 0]
        for mask in masks
    ]
    probabilities = torch.stack(logits).softmax(-1).numpy() * np.array(scores)[:, None]
    labels = probabilities.argmax(1).tolist()
    merged = simple_merge(overlapping, labels, probabilities.max(1))
    assert len(np.unique(merged)) > 3
    assert_same_segments(found, merged)
    segments = found.pred_panoptic_seg.segments_info
    things = [s for s in segments if s["isthing"]]
    for segment in things:
        assert np.abs(probabilities.max(1) - segment["score"]).min() < 1e-5

    assert not empty.pred_panoptic_seg.segments_info and len(empty.pred_instances.scores) == 0
    assert empty.pred_panoptic_seg.sem_seg.shape == (1, 40, 64)
    assert not empty.pred_panoptic_seg.sem_seg.any()


def test_one_mask_over_the_image_gives_the_file_back(tmp_path: Path) -> None:
    """Disjoint masks come out exactly, at the size of the file, whatever the input's size is."""
    rng = np.random.default_rng(0)
    owner = rng.integers(0, 3, (HEIGHT, WIDTH))
    masks = np.stack([owner == q for q in range(3)])
    path = tmp_path / "masks.json"
    path.write_text(json.dumps(results(masks, "a")))
    segmentor = model(dict(type="FileProposals", file=str(path)))
    sample = DetDataSample(
        metainfo=dict(img_shape=(75, 120), ori_shape=(HEIGHT, WIDTH), img_path="a.jpg")
    )
    data = dict(inputs=[random_image(75, 120)], data_samples=[sample])
    names = Vocabulary(NAMES.synonyms, (True,) * 4)
    (found,) = segmentor.test_step(data, names)
    ids = found.pred_panoptic_seg.sem_seg[0].numpy()
    assert ids.shape == owner.shape
    assert np.array_equal(np.unique(np.stack([ids, owner]).reshape(2, -1), axis=1)[1], [0, 1, 2])


def test_masks_of_sam_named_by_clip() -> None:
    proposals = dict(
        type="SamProposals",
        arch=SAM,
        points_per_side=3,
        iou_threshold=0.01,
        stability_threshold=0.3,
        stability_offset=0.05,
        nms_threshold=1.0,
    )
    segmentor = model(proposals)
    segmentor.proposals.model.mask_decoder.iou_prediction_head.proj_out.bias.data.add_(0.5)
    image = random_image(HEIGHT, WIDTH)
    (found,) = predict(segmentor, [image], [{}])
    own = segmentor.proposals.propose(image.float() / 255, None, NAMES)
    assert len(own.masks) > 3 and own.scores.min() > 0
    prediction = segmentor.classifiers[0].embed_masks(
        own.masks[None], [image.float() / 255], stride=1
    )
    logits = segmentor.classifiers[0].name_embeddings(prediction, NAMES).logits[0]
    scores = logits.softmax(-1) * own.scores[:, None]
    merged = simple_merge(
        (own.masks > 0).numpy(), scores.argmax(1).tolist(), scores.amax(1).numpy()
    )
    assert_same_segments(found, merged)


def test_sam3_names_its_masks_itself() -> None:
    """Overlapping masks of every name become one label a pixel."""
    segmentor = model(
        dict(type="Sam3Proposals", arch=SAM3, threshold=0.25), classifiers=[], clip=None
    )
    # Random logits of about 1e-4 would round to a probability of 0.5.
    segmentor.proposals.model.mask_decoder.instance_projection.weight.data.mul_(1e4)
    image = random_image(HEIGHT, WIDTH)
    (found,) = predict(segmentor, [image], [{}])
    own = segmentor.proposals.propose(image.float() / 255, None, NAMES)
    labels = own.classes.logits.argmax(-1)
    inside = own.masks > 0
    assert len(own.masks) > 5 and (inside.sum(0) > 1).any(), "masks must overlap"

    # Masks are soft here: the best is the largest product of score and probability.
    best = (own.scores[:, None, None] * own.masks.sigmoid()).argmax(0)
    covered = own.masks.gather(0, best[None])[0] >= 0
    merged = np.full((HEIGHT, WIDTH), -1)
    for q in range(len(own.masks)):
        won = best == q
        if won.sum() >= 0.8 * inside[q].sum() and (won & covered).any():
            label = int(labels[q])
            thing = NAMES.is_thing[label]
            merged[(won & covered).numpy()] = 1000 * (q + 1) + label if thing else label
    assert_same_segments(found, merged)
    assert (merged >= 0).any()
    instances = found.pred_instances
    assert all(NAMES.is_thing[label] for label in instances.labels.tolist())
    assert float(instances.scores.max()) <= float(own.scores.max())


def test_void_competes_if_it_is_asked_to(tmp_path: Path, overlapping: np.ndarray) -> None:
    path = tmp_path / "masks.json"
    path.write_text(json.dumps(results(overlapping[:2], "a", score=[0.9, 0.05])))
    image = random_image(HEIGHT, WIDTH)
    size = (HEIGHT, WIDTH)
    sample = DetDataSample(metainfo=dict(img_shape=size, ori_shape=size, img_path="a.jpg"))
    for drop_void in (False, True):
        ensemble = dict(type="GeometricEnsemble", drop_void=drop_void)
        segmentor = model(dict(type="FileProposals", file=str(path)), ensemble=ensemble)
        (item,) = segmentor.segment(image[None] / 255, [sample], NAMES)
        rows = segmentor.probabilities(item)[0]
        torch.testing.assert_close(
            rows[:, :-1].sum(1), torch.tensor([0.9, 0.05]), atol=1e-5, rtol=0
        )
        void = torch.tensor([0.1, 0.95]) * drop_void
        torch.testing.assert_close(rows[:, -1], void, atol=1e-5, rtol=0)


def test_a_source_without_names_needs_a_classifier(tmp_path: Path) -> None:
    path = tmp_path / "masks.json"
    path.write_text("[]")
    with pytest.raises(ConfigError, match="must be a list of at least one classifier"):
        model(dict(type="FileProposals", file=str(path)), classifiers=[])
