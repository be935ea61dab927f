"""Masks of one segmentor, named by the classifiers of another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from mmdet.structures import DetDataSample
from torch import Tensor

from odise_mm.checkpoints.safe_loading import save_state_dict
from odise_mm.errors import CheckpointError, ConfigError, TrainingError
from odise_mm.models import OpenVocabSegmentor, ProposalSegmentor
from odise_mm.models.image_sizes import resize_short_side, stack_padded
from odise_mm.registry import MODELS
from odise_mm.vocabulary import Vocabulary
from tests.support.parts import clip, random_image, segmentor, segmentor_config

VOCABULARY = Vocabulary(
    (("cat", "kitten"), ("brick wall",), ("sky",), ("person", "child")), (True, False, False, True)
)


@pytest.fixture(scope="module")
def generator() -> OpenVocabSegmentor:
    return segmentor()


def proposal_segmentor(generator: OpenVocabSegmentor, **proposals: Any) -> ProposalSegmentor:
    """The generator's masks and first class prediction, named by the generator's CLIP."""
    source = dict(type="SegmentorProposals", segmentor=generator, num_classifiers=1) | proposals
    config = segmentor_config()
    return MODELS.build(
        dict(
            type="ProposalSegmentor",
            proposals=source,
            clip=generator.clip if isinstance(generator, OpenVocabSegmentor) else clip(),
            classifiers=[dict(type="MaskCLIPClassifier")],
            ensemble=config.ensemble,
            vocabulary="coco",
            test_cfg=config.test_cfg,
            data_preprocessor=config.data_preprocessor,
        )
    ).eval()


def predict(model: Any, images: list[Tensor], **options: Any) -> list[DetDataSample]:
    samples = [
        DetDataSample(metainfo=dict(img_shape=tuple(i.shape[1:]), ori_shape=tuple(i.shape[1:])))
        for i in images
    ]
    data = dict(inputs=list(images), data_samples=samples)
    return model.test_step(data, VOCABULARY, options or None)


def assert_equal(found: DetDataSample, expected: DetDataSample) -> None:
    """Compare results that may differ by rounding: layers may be computed by other kernels."""
    for key in ("pred_panoptic_seg", "pred_sem_seg"):
        same = found.get(key).sem_seg == expected.get(key).sem_seg
        assert same.float().mean() > 0.999, key
    infos = [sample.pred_panoptic_seg.segments_info for sample in (found, expected)]
    for one, other in zip(*infos, strict=True):
        assert (one["id"], one["category_id"]) == (other["id"], other["category_id"])
        assert one["score"] == pytest.approx(other["score"], abs=1e-5)
    scores = [sample.pred_instances.scores for sample in (found, expected)]
    torch.testing.assert_close(*scores, atol=1e-5, rtol=1e-5)


def test_a_segmentor_taken_apart_gives_its_own_results() -> None:
    """Masks and first classifier in a mask source, the second classifier outside: nothing changes.

    Images of two sizes are in one batch.
    """
    images = [random_image(128, 128), random_image(96, 160, seed=1)]
    whole = segmentor()
    expected = predict(whole, images)
    assert expected[0].pred_panoptic_seg.segments_info
    model = proposal_segmentor(segmentor())
    assert len(model.proposals.segmentor.classifiers) == 1
    for found, own in zip(predict(model, images), expected, strict=True):
        assert_equal(found, own)


def test_the_source_loads_its_own_checkpoint(generator: Any, tmp_path: Path) -> None:
    path = tmp_path / "masks.safetensors"
    save_state_dict(path, generator.state_dict(), {})
    model = proposal_segmentor(segmentor_config(), weights=str(path))
    for name, value in model.proposals.segmentor.state_dict().items():
        assert torch.equal(value, generator.state_dict()[name]), name
    assert not any(parameter.requires_grad for parameter in model.proposals.parameters())
    assert not model.state_dict()
    with pytest.raises(CheckpointError, match=r"other\.pth"):
        proposal_segmentor(segmentor_config(), weights=str(tmp_path / "other.pth"))


@torch.no_grad()
def test_masks_of_larger_images(generator: Any) -> None:
    """The source sees the image at another size; the result has the size that was asked for."""
    model = proposal_segmentor(segmentor(), short_side=128)
    image = random_image(96, 150)
    (found,) = predict(model, [image])
    assert found.pred_sem_seg.sem_seg.shape == (1, 96, 150)
    (masks,) = model.segment(image[None] / 255, vocabulary=VOCABULARY)
    assert masks.prediction.frames == [((128, 256), (128, 200))]
    larger = resize_short_side(image / 255, 128)
    inputs, _ = stack_padded([larger], 64)
    info = dict(img_shape=(128, 200), pad_shape=(128, 256))
    (own,) = generator.segment(inputs, [DetDataSample(metainfo=info)], VOCABULARY)
    torch.testing.assert_close(masks.prediction.masks, own.prediction.masks)
    for mine, theirs in zip(masks.class_predictions, own.class_predictions, strict=True):
        torch.testing.assert_close(mine.logits, theirs.logits)


def test_images_are_resized_and_padded() -> None:
    image = torch.rand(3, 50, 69)
    assert resize_short_side(image, 50) is image
    assert resize_short_side(image, 64).shape == (3, 64, 88)  # 88.32
    assert resize_short_side(image.transpose(1, 2), 64).shape == (3, 88, 64)
    batch, sizes = stack_padded([image, image[:, :20, :33]], 32, (0.25, 0.5, 1.0))
    assert sizes == [(64, 96), (32, 64)] and batch.shape == (2, 3, 64, 96)
    assert torch.equal(batch[0, :, :50, :69], image)
    assert torch.equal(batch[1, :, :20, :33], image[:, :20, :33])
    assert torch.equal(batch[0, :, 50:].amax((1, 2)), torch.tensor([0.25, 0.5, 1.0]))
    assert torch.equal(batch[1, :, :, 33:].amin((1, 2)), torch.tensor([0.25, 0.5, 1.0]))


def test_precision_reaches_the_source() -> None:
    model = proposal_segmentor(segmentor()).set_precision("bf16")
    assert model.proposals.segmentor.precision == "bf16"
    assert model.proposals.segmentor.clip.dtype == torch.bfloat16
    assert model.proposals.segmentor.head.query_feat.weight.dtype == torch.float32
    (found,) = predict(model, [random_image(64, 64)])
    assert torch.isfinite(found.pred_instances.scores).all()


def test_what_cannot_work_is_refused(generator: Any) -> None:
    with pytest.raises(ConfigError, match="num_classifiers"):
        proposal_segmentor(generator, num_classifiers=-1)
    with pytest.raises(ConfigError, match="short_side"):
        proposal_segmentor(generator, short_side=0)
    with pytest.raises(TrainingError, match="cannot be trained"):
        proposal_segmentor(segmentor()).loss(torch.zeros(1, 3, 64, 64), [])
