"""Invalid settings raise when a component is built; errors have name, value and allowed values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import Config

from odise_mm.config.building import build_model, build_part, make_test_pipeline
from odise_mm.datasets import InstanceDataset, PanopticDataset, SemanticDataset
from odise_mm.datasets.samplers import SeededSampler
from odise_mm.datasets.transforms import DrawWords, LargeScaleJitter, ResizeKeepRatio
from odise_mm.engine.result_writer import ResultWriterHook
from odise_mm.errors import ConfigError
from odise_mm.evaluation.instance_ap import AverageRecall
from odise_mm.models import GeometricEnsemble, TextEncoder
from odise_mm.models.losses.class_loss import OpenVocabCrossEntropyLoss
from odise_mm.models.losses.grounding_loss import GroundingLoss
from odise_mm.registry import MODELS
from odise_mm.utils.settings import (
    check_choice,
    check_flag,
    check_number,
    check_size,
    check_text,
    check_weight,
    check_whole,
)
from odise_mm.visualization import OpenVocabVisualizer
from tests.support.parts import clip, segmentor_config

NAN, INF = float("nan"), float("inf")

MODEL = [
    ("test_cfg.overlap_threshold", (1.5, -1, NAN, "0.8", True, None, INF)),
    ("test_cfg.topk", (-1, 0, 1.5, True, "100", NAN)),
    ("test_cfg.min_area", (-1, 1.5, True, "9", NAN, None)),
    ("test_cfg.keep_queries", (1, "yes")),
    ("test_cfg.panoptic", ("yes", 1, None)),
    ("test_cfg.semantic", ("", 0.0)),
    ("test_cfg.instance", ("False", 1)),
    ("tile_size", (0, -64, 128.0, 100, 96, True, "512", NAN)),
    ("max_tiles_per_batch", (0, -1, 1.5, True, "4", None)),
    ("data_preprocessor.pad_size_divisor", (0, 1, 48, 64.0)),
    ("backbone.steps", (5, (), (0.5,), (True,), "0", (1000,), (NAN,), None)),
    ("backbone.noise_seed", (-1, 4.2, "42", None, 2**64)),
    ("backbone.use_checkpoint", ("no", 1)),
    ("backbone.taps.unet", ((2.0,), "2", (True,), 5)),
    ("neck.out_channels", (0, 48.0, -32, 50, True)),
    ("neck.bottleneck_channels", (0, "32", 20)),
    ("captioner.learned_step", (0, 999, NAN, "5", True)),
    ("head.feat_channels", (0, 64.0, True)),
    ("head.out_channels", (-64, "64")),
    ("head.num_queries", (0, 10.5, True, NAN)),
    ("head.num_transformer_feat_level", (0, 3.0)),
    ("head.objectness", ("yes", 0)),
    ("classifiers.0.embed_dim", (0, 64.5, True)),
    ("classifiers.0.null_class", (1, "no")),
    ("classifiers.0.template", ("a photo", 5, None, "")),
    ("classifiers.1.template", ("a photo of a", [])),
    ("classifiers.1.align", (1, "yes")),
    ("ensemble.alpha", (NAN, True, "0.3", -0.1, 1.1, None)),
    ("ensemble.beta", (INF, False, [0.7])),
]


def set_in(config: Any, path: str, value: Any) -> None:
    *way, last = path.split(".")
    for key in way:
        config = config[int(key)] if key.isdigit() else config.setdefault(key, {})
    config[last] = value


@pytest.mark.parametrize(
    ("path", "value"), [(path, value) for path, values in MODEL for value in values], ids=repr
)
def test_the_model(path: str, value: Any) -> None:
    config = segmentor_config()
    set_in(config, path, value)
    clip()  # build it here, outside the meta device
    with torch.device("meta"), pytest.raises(ConfigError) as caught:
        build(config, path)
    message = str(caught.value)
    assert path.rpartition(".")[2] in message and "\n" not in message
    first = value[0] if isinstance(value, tuple) and len(value) == 1 else value
    assert repr(value) in message or repr(first) in message
    assert len(message) < 200


def build(config: Any, path: str) -> None:
    """Build only the component that has the setting, because whole models take longer."""
    part, _, rest = path.partition(".")
    provided = dict(
        in_channels=[64] * 4,
        in_strides=(4, 8, 16, 32),
        clip=clip(),
        text_encoder=TextEncoder(clip()),
        empty_context=torch.zeros(1, 77, 64),
        time_width=128,
    )
    if part == "classifiers":
        build_part(config.classifiers[int(rest[0])], MODELS, **provided)
    elif part in ("backbone", "neck", "captioner", "head", "ensemble"):
        build_part(config[part], MODELS, **provided)
    else:
        build_model(Config(dict(model=config)))


def test_a_component_of_a_model() -> None:
    config = segmentor_config()
    config.ensemble.alpha = NAN
    with torch.device("meta"), pytest.raises(ConfigError, match="alpha=nan: must be a weight"):
        build_model(Config(dict(model=config)))


def test_no_classifiers() -> None:
    for classifiers in ([], None):
        with torch.device("meta"), pytest.raises(ConfigError, match="classifiers=.*at least one"):
            build_model(Config(dict(model=segmentor_config(classifiers=classifiers))))


CROPS = [dict(type="CropCLIPClassifier", crops_per_batch=n) for n in (0, -5, 2.5, True, "25")]


@pytest.mark.parametrize("crops", CROPS, ids=lambda crops: repr(crops["crops_per_batch"]))
def test_crops_of_clip(crops: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="crops_per_batch=.*at least 1"):
        build_part(crops, MODELS, clip=clip())


PARTS: list[tuple[Callable[[Any], Any], str, tuple]] = [
    (lambda v: GroundingLoss(loss_weight=v), "loss_weight", (-1, NAN, "1", True, INF)),
    (lambda v: GroundingLoss(softmax=v), "softmax", ("mask", None)),
    (lambda v: OpenVocabCrossEntropyLoss(loss_weight=v), "loss_weight", (-2, NAN, "2")),
    (lambda v: OpenVocabCrossEntropyLoss(void_weight=v), "void_weight", (-0.1, INF, None)),
    (lambda v: GeometricEnsemble(alpha=v), "alpha", (NAN, True, "0.3")),
    (lambda v: AverageRecall(max_dets=v), "max_dets", (0, -1, 100.0, True)),
    (lambda v: OpenVocabVisualizer(fill_alpha=v), "fill_alpha", (-0.1, 1.1, NAN, "0.5", True)),
    (lambda v: OpenVocabVisualizer(fill=v), "fill", ("average", None, True)),
    (lambda v: OpenVocabVisualizer(legend=v), "legend", ("yes", 1)),
    (lambda v: ResultWriterHook(show_interval=v), "show_interval", (0, 2.5, True, "3")),
    (lambda v: DrawWords(num_words=v), "num_words", (0, 8.0, "8", True)),
    (lambda v: SeededSampler([1, 2], seed=v), "seed", (1.5, "7", True)),
    (lambda v: SeededSampler([1, 2], shuffle=v), "shuffle", ("no", 0)),
    (
        lambda v: ResizeKeepRatio(scale=v),
        "scale",
        ((0, 0), (0, 512), (-1, 5), (512.0, 512), (512,), (1, 2, 3), "512", (True, 5), -5, None),
    ),
    (lambda v: ResizeKeepRatio(scale=(64, 64), backend=v), "backend", ("pil", None)),
    (lambda v: ResizeKeepRatio(scale=(64, 64), interpolation=v), "interpolation", ("area", 2)),
    (lambda v: LargeScaleJitter(scale=v), "scale", ((0, 0), 512, (5.5, 5))),
    (
        lambda v: LargeScaleJitter(scale=(64, 64), ratio_range=v),
        "ratio_range",
        ((0, 2), (2, 1), (NAN, 1), (1,), 0.5, (-1, 1), (0.001, 1), ("a", "b")),
    ),
]


@pytest.mark.parametrize(
    ("build", "setting", "value"),
    [
        # The number makes ids unique; processes that share tests need the same ids.
        pytest.param(build, setting, value, id=f"{number}-{setting}={value!r}")
        for number, (build, setting, values) in enumerate(PARTS)
        for value in values
    ],
)
def test_other_components(build: Callable[[Any], Any], setting: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=setting) as caught:
        build(value)
    assert repr(value) in str(caught.value)


def test_the_pipeline_of_the_inferencer() -> None:
    for scale in ((0, 0), [512, 0], (512.5, 100)):
        steps = [dict(type="LoadImage"), dict(type="ResizeKeepRatio", scale=scale)]
        with pytest.raises(ConfigError, match="scale=.*two whole numbers"):
            make_test_pipeline(Config(dict(test_pipeline=steps)))


def test_scale_0_in_a_test_pipeline() -> None:
    steps = [dict(type="LoadImage"), dict(type="ResizeKeepRatio", scale=0)]
    with pytest.raises(ConfigError, match=r"scale=\(0, 0\): must be two whole numbers"):
        make_test_pipeline(Config(dict(test_pipeline=steps)))


@pytest.mark.parametrize("value", ["yes", "no", 1, None, 0.0])
@pytest.mark.parametrize(
    ("kind", "flag"),
    [
        (PanopticDataset, "class_agnostic"),
        (PanopticDataset, "reduce_zero_label"),
        (PanopticDataset, "test_mode"),
        (InstanceDataset, "class_agnostic"),
        (InstanceDataset, "test_mode"),
        (SemanticDataset, "reduce_zero_label"),
        (SemanticDataset, "lazy_init"),
        (SemanticDataset, "serialize_data"),
    ],
)
def test_flags_of_datasets(kind: type, flag: str, value: Any) -> None:
    """A string such as "no" would be treated as True."""
    with pytest.raises(ConfigError, match=rf"{flag}={value!r}: must be True or False"):
        kind("coco", ann_file="absent.json", **{flag: value})


def test_initial_scale_of_mmcv_s_random_resize() -> None:
    """mmcv's RandomResize builds its resizer with scale 0 and sets another one later."""
    resize = ResizeKeepRatio(scale=0)
    with pytest.raises(ConfigError, match="scale"):
        resize(dict(img=np.zeros((4, 4, 3), np.uint8)))
    jitter = LargeScaleJitter(scale=[16, 8], ratio_range=[1, 1])  # as from --cfg-options
    assert jitter(dict(img=np.zeros((4, 4, 3), np.uint8)))["img_shape"] == (8, 8)


def test_valid_settings() -> None:
    config = segmentor_config(
        tile_size=128,
        max_tiles_per_batch=np.int64(2),
        test_cfg=dict(overlap_threshold=np.float32(1), topk=1, panoptic=False),
    )
    for path, value in (
        ("backbone.steps", (-1, np.int64(999))),
        ("backbone.noise_seed", 0),
        ("ensemble.alpha", 0),
        ("ensemble.beta", 1.0),
        ("classifiers.0.template", "{}"),
    ):
        set_in(config, path, value)
    with torch.device("meta"):
        model = build_model(Config(dict(model=config)))
    assert model.backbone.steps == (-1, 999) and model.test_cfg["topk"] == 1
    resized = ResizeKeepRatio(scale=[8, 4])(dict(img=np.zeros((10, 10, 3), np.uint8)))
    assert resized["img_shape"] == (4, 4)


def test_the_checks_themselves() -> None:
    for check, good, bad in (
        (check_whole, (1, np.int32(5)), (0, 1.0, True, "1", None)),
        (check_number, (0, 1.5, np.float64(3)), (-1, NAN, INF, False, "1", 1j)),
        (check_weight, (0, 1, 0.5), (1.01, NAN, True)),
        (check_flag, (True, False), (1, "True", None, np.True_)),
        (check_text, ("a",), ("", 5, None, b"a")),
        (check_size, ((1, 2), [3, 4]), ((0, 1), (1,), 5, "12", (1.0, 2))),
    ):
        for value in good:
            check("setting", value)
        for value in bad:
            with pytest.raises(ConfigError, match="^setting="):
                check("setting", value)
    check_choice("setting", "a", ("a", "b"))
    with pytest.raises(ConfigError, match="setting='c': must be one of 'a', 'b'"):
        check_choice("setting", "c", ("a", "b"))
    with pytest.raises(ConfigError, match="^setting=.{60}: ") as caught:
        check_flag("setting", "x" * 5000)
    assert "\n" not in str(caught.value)
