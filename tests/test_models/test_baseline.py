"""The baselines without a diffusion model: masks that CLIP alone names, and grounding by words."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from torch import Tensor

from odise_mm.analysis.meta import build_on_meta
from odise_mm.analysis.model_summary import count_parameters
from odise_mm.analysis.training_ways import OURS, trained_as
from odise_mm.errors import ConfigError, TrainingError
from odise_mm.models import MaskCLIPClassifier, OpenVocabClassifier, OpenVocabSegmentor
from odise_mm.models.heads.mask2former_head import MaskPrediction
from odise_mm.registry import MODELS
from tests.support.parts import clip, head_config, load_config, random_image, random_weights
from tests.support.training import WORDS, make_batch, repeating_points
from tests.test_models.test_classifiers.test_clip_classifiers import (
    SlowTower,
    pixels,
    random_masks,
    touched,
)
from tests.test_models.test_losses.test_grounding_loss import by_loops
from tests.test_models.test_training import VOCABULARY, reference_losses, total

MASKCLIP, GROUNDING = "baseline_r50_maskclip", "baseline_r50_grounding"
BOTH = pytest.mark.parametrize("name", [MASKCLIP, GROUNDING])


def tiny(name: str, **head: Any) -> OpenVocabSegmentor:
    """Build a config of configs/baseline with a small, random ResNet, head and CLIP."""
    model = load_config(f"baseline/{name}.py").model
    model.backbone.update(model="test_resnet", weights=None)
    options = {key: model.head[key] for key in ("objectness", "embed_masks") if key in model.head}
    model.head = head_config(**(options | head))
    model.head.train_cfg.num_points = 300
    for classifier in model.classifiers:
        if "embed_dim" in classifier:
            classifier.embed_dim = 64
    built = MODELS.build(model | dict(clip=clip(), test_cfg=dict(overlap_threshold=0.2)))
    random_weights(built.head)
    for embedding in (built.head.query_feat, built.head.query_embed):
        embedding.weight.data.mul_(embedding.weight.shape[1] ** 0.5)
    built.head.mask_embed[-1].weight.data.mul_(2)
    built.vocabulary = VOCABULARY
    return built


@pytest.fixture(scope="module")
def model() -> OpenVocabSegmentor:
    """Model whose head returns masks of different places, which a random head does not."""
    model = tiny(MASKCLIP).eval()
    masks = random_masks(128, 128, count=12)
    model.head.register_forward_hook(lambda _, __, out: [p._replace(masks=masks) for p in out])
    return model


def softmax(logits: np.ndarray) -> np.ndarray:
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)


# ------------------------------------------------------------------------------- inference


@BOTH
def test_predicts(name: str) -> None:
    sample = DetDataSample(metainfo=dict(img_shape=(100, 128), ori_shape=(50, 64)))
    images = dict(inputs=[random_image(100, 128)], data_samples=[sample])
    with torch.no_grad():
        (result,) = tiny(name).eval().test_step(images)
    assert result.pred_panoptic_seg.sem_seg.shape == (1, 50, 64)
    assert result.pred_panoptic_seg.segments_info
    assert set(result.pred_instances.labels.tolist()) <= {0, 3}  # things only


def test_probabilities_are_clips_alone_and_void_is_the_heads(model: OpenVocabSegmentor) -> None:
    image = random_image(128, 128)[None] / 255
    with torch.no_grad():
        (found,) = model.segment(image)
        joined = model.probabilities(found)[0]
    assert len(found.class_predictions) == 1 and found.prediction.embeddings is None
    tower, inputs = SlowTower(), pixels(image[0])
    names, classes = VOCABULARY.flat
    text = clip().encode_text([f"a photo of a {name}." for name in names]).double().numpy()
    text /= np.linalg.norm(text, axis=1, keepdims=True)
    void = softmax(found.prediction.objectness[0].double().numpy())[:, 1]
    assert void.std() > 1e-3
    patches = [touched(mask) for mask in found.prediction.masks[0]]
    assert len({row.tobytes() for row in patches}) > 2
    for query, row in enumerate(patches):
        embedding = tower.embed(inputs, row)
        cosines = text @ embedding / np.linalg.norm(embedding)
        best = [cosines[np.array(classes) == c].max() for c in range(len(VOCABULARY))]
        wanted = softmax(float(clip().logit_scale) * np.array(best)) * (1 - void[query])
        np.testing.assert_allclose(joined[query, :-1].numpy(), wanted, atol=1e-5)
        assert joined[query, -1].item() == pytest.approx(void[query], abs=1e-6)


def test_no_trained_part_changes_the_names(model: OpenVocabSegmentor) -> None:
    """A mask's class probabilities are CLIP's; the exponents of the ensemble play no part."""
    own = model.classifiers[0]
    assert type(own) is MaskCLIPClassifier
    assert not any(p.requires_grad for p in own.parameters())
    image = random_image(128, 128)[None] / 255
    with torch.no_grad():
        (found,) = model.segment(image)
        direct = own(MaskPrediction(found.prediction.masks), list(image), VOCABULARY)
        joined = model.probabilities(found)
    names = joined[..., :-1] / joined[..., :-1].sum(-1, keepdim=True)
    torch.testing.assert_close(names, direct.logits.softmax(-1))


def test_without_void_raises() -> None:
    labels = tiny(MASKCLIP, objectness=False).eval()
    (found,) = labels.segment(torch.zeros(1, 3, 64, 64))
    with pytest.raises(ValueError, match=r"the first has p_void.*or by the head \(objectness=Tr"):
        labels.probabilities(found)


# -------------------------------------------------------------------------------- training


def layers_of(model: OpenVocabSegmentor) -> list[MaskPrediction]:
    layers: list[MaskPrediction] = []
    model.head.register_forward_hook(lambda _, __, out: layers.extend(out))
    return layers


def test_masks_alone_are_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny(MASKCLIP).train()
    layers, batch = layers_of(model), make_batch(model)
    monkeypatch.setattr(torch, "rand", repeating_points())
    losses = model(**batch, mode="loss")
    kinds = {"loss_cls", "loss_mask", "loss_dice"}
    assert set(losses) == {prefix + kind for prefix in ("d0.", "d1.", "d2.", "") for kind in kinds}
    for sample in batch["data_samples"]:
        sample.gt_instances.labels.zero_()  # all segments are objects
    arrays = [layers[-1].objectness, layers[-1].masks]
    logits, masks = (array.detach().double().numpy() for array in arrays)
    wanted = reference_losses(logits, masks, batch["data_samples"], 300)
    for kind, value in wanted.items():
        assert losses[kind].item() == pytest.approx(value, rel=2e-4), kind


@BOTH
def test_gradients_reach_all_trained_parameters(name: str) -> None:
    model = tiny(name).train()
    words = [WORDS, []] if name == GROUNDING else None
    total(model(**make_batch(model, words=words), mode="loss")).backward()
    for key, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, key
    assert next(model.backbone.parameters()).grad.any()


def test_grounding_has_the_form_of_the_paper(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny(GROUNDING).train()
    layers, words = layers_of(model), [WORDS, ["sky", "brown dog", "sea", "sky"]]
    own = model.classifiers[0]
    assert isinstance(own, OpenVocabClassifier)
    losses = model(**make_batch(model, words=words), mode="loss")
    texts: Tensor = own.word_embeddings(words)
    arrays = [array.detach().numpy() for array in (layers[-1].embeddings, texts)]
    wanted = by_loops(*arrays, [True, True], own.scale.item(), "words")
    assert losses["loss_grounding"].item() == pytest.approx(wanted, rel=1e-4)
    other = by_loops(*arrays, [True, True], own.scale.item(), "masks")
    assert abs(wanted - other) > 1e-3


def test_the_backbone_counts_as_trained() -> None:
    cfg = load_config(f"baseline/{MASKCLIP}.py")
    trained, frozen = count_parameters(build_on_meta(cfg))
    assert trained["backbone"] == 23_508_032 and "backbone" not in frozen
    model = build_on_meta(cfg)
    with trained_as(model, OURS):
        assert all(parameter.requires_grad for parameter in model.backbone.parameters())
        assert not any(parameter.requires_grad for parameter in model.clip.parameters())


# ---------------------------------------------------------------------------------- errors


def test_embeddings_without_a_loss_raise() -> None:
    model = tiny(MASKCLIP, embed_masks=True).train()
    with pytest.raises(TrainingError, match="set embed_masks=False in the head"):
        model(**make_batch(model), mode="loss")


def test_classifiers_without_embeddings_raise() -> None:
    message = "OpenVocabClassifier compares mask embeddings .*remove embed_masks=False"
    with pytest.raises(ConfigError, match=message):
        tiny(GROUNDING, embed_masks=False)


def test_labels_without_a_trainable_classifier_raise() -> None:
    model = tiny(MASKCLIP, objectness=False).train()
    message = re.escape("first classifier, MaskCLIPClassifier, cannot be trained")
    with pytest.raises(ConfigError, match=message):
        model(**make_batch(model), mode="loss")
