"""Tests of the whole model: what its results depend on, its parts, and its errors."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from mmdet.structures import DetDataSample
from mmengine.analysis import get_model_complexity_info
from mmengine.optim import build_optim_wrapper
from mmengine.runner import load_checkpoint, save_checkpoint
from mmengine.runner.checkpoint import get_state_dict
from torch import Tensor

from odise_mm.errors import ConfigError, DeviceError
from odise_mm.models import FrozenCLIP, OpenVocabSegmentor
from odise_mm.models.frozen import FrozenModule
from odise_mm.registry import MODELS
from odise_mm.vocabulary import Vocabulary
from tests.support.parts import random_image, relative_error, segmentor, segmentor_config

VOCABULARY = Vocabulary(
    (("cat", "kitten"), ("brick wall",), ("sky",), ("person", "child")), (True, False, False, True)
)
OTHER = Vocabulary((("lamp",), ("river",)), (True, False))


def predict(
    model: OpenVocabSegmentor,
    images: Sequence[Tensor],
    out: Sequence[tuple[int, int]] | None = None,
) -> list[DetDataSample]:
    samples = [
        DetDataSample(
            metainfo=dict(
                img_shape=tuple(image.shape[1:]),
                ori_shape=tuple(out[i] if out else image.shape[1:]),
            )
        )
        for i, image in enumerate(images)
    ]
    return model.test_step(dict(inputs=list(images), data_samples=samples))


def assert_same(a: DetDataSample, b: DetDataSample, share: float = 0.999, atol: float = 2e-3):
    """Assert that results are equal up to rounding: few pixels differ, and scores are close."""
    assert a.pred_sem_seg.sem_seg.shape == b.pred_sem_seg.sem_seg.shape
    assert (a.pred_sem_seg.sem_seg == b.pred_sem_seg.sem_seg).float().mean() >= share
    assert (a.pred_panoptic_seg.sem_seg == b.pred_panoptic_seg.sem_seg).float().mean() >= share
    scores = [x.pred_instances.scores.sort().values for x in (a, b)]
    torch.testing.assert_close(*scores, atol=atol, rtol=0)


@pytest.fixture(scope="module")
def model() -> OpenVocabSegmentor:
    model = segmentor(test_cfg=dict(overlap_threshold=0.3))
    model.vocabulary = VOCABULARY
    return model


# ----------------------------------------------------------------- what results depend on


def test_results_have_the_requested_vocabulary_and_size(model: OpenVocabSegmentor) -> None:
    (result,) = predict(model, [random_image(100, 150)], [(70, 90)])
    panoptic = result.pred_panoptic_seg
    assert panoptic.sem_seg.shape == result.pred_sem_seg.sem_seg.shape == (1, 70, 90)
    assert panoptic.sem_seg.dtype == torch.int32
    assert 0 <= result.pred_sem_seg.sem_seg.min() and result.pred_sem_seg.sem_seg.max() < 4
    segments = panoptic.segments_info
    assert segments, "this test needs a random model that finds segments"
    areas = {s["id"]: s["area"] for s in segments}
    ids, counts = panoptic.sem_seg.unique(return_counts=True)
    found = {i: n for i, n in zip(ids.tolist(), counts.tolist(), strict=True) if i}
    assert areas == found
    for segment in segments:
        assert segment["category_name"] == VOCABULARY.names[segment["category_id"]]
        assert segment["isthing"] == VOCABULARY.is_thing[segment["category_id"]]
        assert 0 < segment["score"] <= 1
    instances = result.pred_instances
    assert instances.masks.shape == (len(instances), 70, 90) and len(instances) > 0
    assert set(instances.labels.tolist()) <= {0, 3}  # things only


def test_tiles_per_batch_do_not_change_results(model: OpenVocabSegmentor) -> None:
    images = [random_image(128, 192), random_image(64, 128, seed=1)]
    results = []
    for count in (1, 4, 100):
        model.max_tiles_per_batch = count
        results.append(predict(model, images))
    model.max_tiles_per_batch = 4
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert_same(a, b)


def test_batch_size_of_the_backbone_is_limited(model: OpenVocabSegmentor) -> None:
    sizes = []
    hook = model.backbone.register_forward_hook(lambda _, inputs, __: sizes.append(len(inputs[0])))
    model.max_tiles_per_batch = 3
    predict(model, [random_image(128, 192), random_image(64, 128), random_image(64, 64)])
    hook.remove()
    model.max_tiles_per_batch = 4
    assert sizes == [3, 3, 3]  # 6 + 2 + 1 tiles of three images


def test_images_of_one_batch_are_independent(model: OpenVocabSegmentor) -> None:
    images = [random_image(100, 150), random_image(128, 64, seed=1), random_image(100, 150, seed=2)]
    for together, image in zip(predict(model, images), images, strict=True):
        assert_same(together, *predict(model, [image]))


def test_padding_of_the_batch_is_cropped(model: OpenVocabSegmentor) -> None:
    masks = []
    hook = model.head.register_forward_hook(lambda _, __, out: masks.append(out[-1].masks))
    predict(model, [random_image(60, 60), random_image(128, 192)])
    hook.remove()
    assert [tuple(m.shape[-2:]) for m in masks] == [(16, 16), (32, 48)]


def test_vocabulary_changes_between_calls(model: OpenVocabSegmentor) -> None:
    image = random_image(64, 128)
    (first,) = predict(model, [image])
    model.vocabulary = OTHER
    assert model.dataset_meta["classes"] == ("lamp", "river")
    (second,) = predict(model, [image])
    assert second.pred_sem_seg.sem_seg.max() < 2
    model.vocabulary = VOCABULARY
    calls = []
    hook = model.clip.model.transformer.register_forward_hook(lambda *_: calls.append(1))
    (third,) = predict(model, [image])
    hook.remove()
    assert not calls  # known names are not encoded again
    assert_same(first, third)
    model.vocabulary = "voc20"
    assert len(model.vocabulary) == 20
    model.vocabulary = VOCABULARY


def test_test_cfg_selects_results(model: OpenVocabSegmentor) -> None:
    image, before = random_image(64, 64), dict(model.test_cfg)
    names = {
        "panoptic": "pred_panoptic_seg",
        "semantic": "pred_sem_seg",
        "instance": "pred_instances",
    }
    for switch in names:
        model.test_cfg.update({s: s == switch for s in names})
        (result,) = predict(model, [image])
        assert {s for s, name in names.items() if name in result} == {switch}
    model.test_cfg.update(before, topk=3)
    assert len(predict(model, [image])[0].pred_instances) <= 3
    model.test_cfg.update(before, overlap_threshold=1.01)
    assert predict(model, [image])[0].pred_panoptic_seg.segments_info == []
    model.test_cfg.update(before)


@pytest.mark.parametrize("size", [(100, 70), (64, 64), (1, 1), (3, 100)])
def test_small_images(size: tuple[int, int], model: OpenVocabSegmentor) -> None:
    """Small tiles are enlarged to the backbone's tile size, and features are resized back."""
    image = random_image(*size)
    model.tile_size = 192
    pyramids = []
    hook = model.head.register_forward_pre_hook(lambda _, inputs: pyramids.append(inputs[0]))
    (result,) = predict(model, [image])
    hook.remove()
    model.tile_size = 64
    assert result.pred_sem_seg.sem_seg.shape == (1, *size)
    assert result.pred_instances.scores.isfinite().all()
    if size == (3, 100):
        return  # this image has two tiles, the others have one
    side = 128 if size == (100, 70) else 64
    padded = F.pad(image.flip(0) / 255, (0, side - size[1], 0, side - size[0]))
    tile = F.interpolate(padded[None], (192, 192), mode="bicubic")
    with torch.no_grad():
        wanted = model.neck(model.backbone(tile, model.captioner(tile)), (side, side))
    for level, reference in zip(pyramids[0], wanted, strict=True):
        assert relative_error(level, reference) < 1e-3


# ------------------------------------------------------------------------- separate steps


def test_segment_and_results_from_equal_predict(model: OpenVocabSegmentor) -> None:
    images = [random_image(100, 150), random_image(64, 64, seed=1), random_image(100, 150, seed=2)]
    wanted = predict(model, images)
    shapes = [dict(img_shape=tuple(i.shape[1:]), ori_shape=tuple(i.shape[1:])) for i in images]
    samples = [DetDataSample(metainfo=shape) for shape in shapes]
    data = model.data_preprocessor(dict(inputs=images, data_samples=samples), False)
    samples = data["data_samples"]
    with torch.no_grad():
        found = list(model.segment(data["inputs"], samples))
        assert [each.places for each in found] == [[0, 2], [1]]
        for each, count, size in zip(found, (2, 1), ((32, 48), (16, 16)), strict=True):
            assert each.prediction.masks.shape == (count, 12, *size)
            assert each.prediction.embeddings.shape == (count, 12, 64)
            assert [o.logits.shape for o in each.class_predictions] == [(count, 12, 4)] * 2
            assert [o.p_void is None for o in each.class_predictions] == [False, True]
            assert each.class_predictions[0].p_void.shape == (count, 12)
            assert each.vocabulary is model.vocabulary
            rows = model.probabilities(each)
            assert rows.shape == (count, 12, 5)
            torch.testing.assert_close(rows.sum(-1), torch.ones(count, 12))
            model.results_from(each, samples)
    for one, other in zip(wanted, samples, strict=True):
        assert torch.equal(one.pred_panoptic_seg.sem_seg, other.pred_panoptic_seg.sem_seg)
        assert one.pred_panoptic_seg.segments_info == other.pred_panoptic_seg.segments_info
        assert torch.equal(one.pred_sem_seg.sem_seg, other.pred_sem_seg.sem_seg)
        assert torch.equal(one.pred_instances.scores, other.pred_instances.scores)


def test_segmented_images_keep_the_vocabulary_of_the_call(model: OpenVocabSegmentor) -> None:
    sample = DetDataSample(metainfo={k: (64, 64) for k in ("img_shape", "pad_shape", "ori_shape")})
    with torch.no_grad():
        (found,) = model.segment(random_image(64, 64)[None] / 255, [sample], OTHER)
        assert found.vocabulary is OTHER and found.class_predictions[0].logits.shape == (1, 12, 2)
        model.results_from(found, [sample], dict(model.test_cfg, semantic=False, topk=3))
    assert "pred_sem_seg" not in sample and len(sample.pred_instances) <= 3
    assert {s["category_name"] for s in sample.pred_panoptic_seg.segments_info} <= set(OTHER.names)


def test_raw_outputs_of_a_batch(model: OpenVocabSegmentor) -> None:
    batch = torch.stack([random_image(64, 128), random_image(64, 128, seed=1)]) / 255
    with torch.no_grad():
        masks, own, of_clip = model(batch)  # mmengine's default mode
        (found,) = model.segment(batch)
    assert masks.shape == (2, 12, 16, 32) and own.shape == of_clip.shape == (2, 12, 4)
    assert torch.equal(masks, found.prediction.masks)
    assert torch.equal(of_clip, found.class_predictions[1].logits)
    assert model(batch, mode="tensor", vocabulary=OTHER)[1].shape == (2, 12, 2)


@pytest.mark.skipif(
    sys.version_info >= (3, 13), reason="the tracer of torch 2.14 crashes with Python 3.13"
)
def test_mmengine_counts_flops(model: OpenVocabSegmentor) -> None:
    found = get_model_complexity_info(model, (3, 64, 64), show_table=False, show_arch=False)
    assert found["params"] == sum(p.numel() for p in model.parameters())
    assert found["flops"] > 1e8


# ---------------------------------------------------------------------------------- parts


def test_parts_share_one_clip(model: OpenVocabSegmentor) -> None:
    parts = [part for part in model.modules() if isinstance(part, FrozenCLIP)]
    assert parts == [model.clip]  # modules() returns each object once
    for owner in (model.captioner, *(c.text_encoder for c in model.classifiers)):
        assert owner.clip is model.clip
    assert model.classifiers[1].clip is model.clip
    assert model.classifiers[0].text_encoder is model.classifiers[1].text_encoder
    counted = sum(p.numel() for p in model.parameters())
    by_part = sum(
        p.numel()
        for part in (model.clip, model.backbone, model.neck, model.head)
        for p in part.parameters()
    )
    own = [p.numel() for p in model.captioner.parameters(recurse=False)]
    own += [
        p.numel() for x in ("context", "time") for p in getattr(model.captioner, x).parameters()
    ]
    own += [
        p.numel()
        for name, p in model.classifiers[0].named_parameters()
        if not name.startswith("text_encoder")
    ]
    assert counted == by_part + sum(own)


def test_frozen_parts_are_not_saved_and_not_trained(model: OpenVocabSegmentor) -> None:
    frozen = {id(p) for m in model.modules() if isinstance(m, FrozenModule) for p in m.parameters()}
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert all((id(p) in frozen) != p.requires_grad for p in model.parameters())
    assert set(model.state_dict()) == set(trained)
    assert set(get_state_dict(model)) == set(trained)


def test_training_changes_only_trained_parameters() -> None:
    model = segmentor().train()
    assert model.head.training
    frozen = [part for part in model.modules() if isinstance(part, FrozenModule)]
    assert not any(part.training for top in frozen for part in top.modules())
    before = {n: p.clone() for n, p in model.named_parameters()}
    wrapper = build_optim_wrapper(model, dict(optimizer=dict(type="AdamW", lr=1e-2)))
    pyramid = model.extract_pyramids([random_image(64, 64) / 255.0])[0]
    predictions = model.head([level[None] for level in pyramid], all_layers=True)
    class_prediction = model.classifiers[0](predictions[-1], [], VOCABULARY)
    loss = sum(p.masks.square().mean() + p.embeddings.square().mean() for p in predictions)
    wrapper.update_params(
        loss + class_prediction.logits.square().mean() + class_prediction.p_void.mean()
    )
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) != parameter.requires_grad, name
    count = sum(p.requires_grad for p in model.parameters())
    assert len(wrapper.optimizer.state) == count  # no state for frozen weights


def test_mmengine_checkpoint_round_trip(model: OpenVocabSegmentor, tmp_path: Path) -> None:
    path = tmp_path / "epoch_1.pth"
    save_checkpoint(dict(meta={}, state_dict=get_state_dict(model)), str(path))
    other = segmentor(seed=5)
    frozen = {n: p.clone() for n, p in other.named_parameters() if not p.requires_grad}
    load_checkpoint(other, str(path), map_location="cpu", strict=True)
    for key, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[key]), key
    for name, parameter in other.named_parameters():
        if name in frozen:
            assert torch.equal(parameter, frozen[name])
    broken = dict(model.state_dict())
    del broken["neck.blocks.0.conv1.0.weight"]
    with pytest.raises(RuntimeError, match="neck.blocks.0.conv1.0.weight"):
        other.load_state_dict(broken)


def test_half_precision_is_close(model: OpenVocabSegmentor) -> None:
    image, outputs = random_image(64, 128), []
    half = segmentor(test_cfg=dict(overlap_threshold=0.3)).set_precision("bf16")
    half.vocabulary = VOCABULARY
    for each in (model, half):
        hooks = [
            each.head.register_forward_hook(lambda _, __, out: outputs.append(out[-1].masks)),
            each.ensemble.register_forward_hook(lambda _, __, out: outputs.append(out)),
        ]
        results = predict(each, [image])
        for hook in hooks:
            hook.remove()
    masks, probabilities, half_masks, half_probabilities = outputs
    assert next(half.backbone.parameters()).dtype != torch.float32
    assert next(half.head.parameters()).dtype == torch.float32
    assert half_probabilities.dtype == torch.float32
    assert results[0].pred_instances.scores.dtype == torch.float32
    assert (masks - half_masks.float()).abs().mean() < 0.1 * masks.std()
    assert (probabilities - half_probabilities).abs().mean() < 0.03


# ----------------------------------------------------------------------------------- errors


def test_unknown_precision(model: OpenVocabSegmentor) -> None:
    with pytest.raises(ConfigError, match="precision 'int8' is not one of fp32, bf16, fp16"):
        model.set_precision("int8")


def test_float16_on_a_cpu(model: OpenVocabSegmentor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "precision", "fp16")
    with pytest.raises(DeviceError, match="fp16 is for GPUs; on a CPU use bf16 or fp32"):
        predict(model, [random_image(64, 64)])


def test_broken_weights() -> None:
    model = segmentor()
    model.head.query_feat.weight.data[0, 0] = float("nan")
    with pytest.raises(FloatingPointError, match="not finite numbers at precision fp32"):
        predict(model, [random_image(64, 64)])


def test_unknown_mode(model: OpenVocabSegmentor) -> None:
    with pytest.raises(ValueError, match="mode='nonsense'"):
        model.forward(torch.zeros(1, 3, 64, 64), [], mode="nonsense")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            dict(test_cfg=dict(overlap=0.5)),
            "unknown key 'overlap' in test_cfg .known keys: score_threshold, overlap_threshold",
        ),
        (dict(max_tiles_per_batch=0), "max_tiles_per_batch=0: must be .* at least 1"),
        (dict(tilesize=512), "tilesize"),
        (
            dict(neck=dict(type="FeatureProjector")),
            "type 'FeatureProjector' is not registered.*FeatureProj",
        ),
        (
            dict(neck=dict(type="FeatureProjection", channels=3)),
            "FeatureProjection has no argument channels; it has: .*out_channels",
        ),
        (dict(captioner=dict(type="ImplicitCaptioner", depth=2)), "no argument depth; it has: "),
        (dict(backbone=dict(type="DiffusionBackbone", tap=1)), "has no argument tap; .*taps"),
        (
            dict(ensemble=dict(type="GeometricEnsemble", gamma=1)),
            "no argument gamma; .*alpha, beta",
        ),
        (dict(clip=dict(type="FrozenCLIP", tag="openai")), "has no argument tag; it has: model"),
        (dict(vocabulary="cocoo"), "cocoo"),
    ],
)
def test_wrong_configs_raise(changes: dict, message: str) -> None:
    with torch.device("meta"), pytest.raises(Exception, match=message) as caught:
        MODELS.build(segmentor_config(**changes))
    assert isinstance(caught.value, (TypeError, ValueError, KeyError))
    assert not re.search(r"\n\s*\n", str(caught.value))


def test_misspelt_argument_of_the_head() -> None:
    config = segmentor_config()
    config.head.num_querys = 5
    with torch.device("meta"), pytest.raises(TypeError, match="has no argument num_querys"):
        MODELS.build(config)


def test_compiled_parts_give_the_same_numbers() -> None:
    """Test dynamo's tracing without graph breaks, but not the slow code generation."""
    model = segmentor()
    tiles = torch.rand(2, 3, 512, 512)
    with torch.no_grad():
        plain = model.extract_tile_features(tiles, (512, 512))
        model.compile_frozen(backend="eager", fullgraph=True)
        compiled = model.extract_tile_features(tiles, (512, 512))
    for ours, theirs in zip(compiled, plain, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-3)


def test_pixel_decoder_stays_in_float32() -> None:
    model = segmentor().set_precision("bf16")
    seen = []
    model.head.pixel_decoder.register_forward_pre_hook(
        lambda _, inputs: seen.extend(level.dtype for level in inputs[0])
    )
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        channels = model.neck.out_channels
        pyramid = [torch.rand(1, channels, 64 // k, 64 // k).bfloat16() for k in (1, 2, 4, 8)]
        prediction = model.head(pyramid)[-1]
    assert set(seen) == {torch.float32} and len(seen) == 4
    assert prediction.masks.isfinite().all()
