"""Configs are completed, and mistakes in them are reported before anything is built."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config

from odise_mm.config.changing import (
    change_config,
    complete_config,
    precision_of,
    set_data_root,
    set_precision,
    unused_pipelines,
)
from odise_mm.config.checking import check_config
from odise_mm.engine import OpenVocabRunner
from odise_mm.engine.hooks import AtomicCheckpointHook
from odise_mm.errors import ConfigError, DatasetError, DeviceError, OdiseError
from tests.support.parts import CONFIGS, load_config
from tests.support.small_training import SmallDataset, config

LABEL = "odise/odise_coco_label.py"


def test_datasets_get_the_pipelines() -> None:
    cfg = load_config(LABEL)
    for stage in ("train", "test"):
        del cfg[f"{stage}_dataloader"].dataset["pipeline"]
    own = [dict(type="LoadImage")]
    cfg.val_dataloader.dataset = dict(
        type="mmengine.ConcatDataset",
        datasets=[dict(type="PanopticDataset"), dict(type="PanopticDataset", pipeline=own)],
    )
    done = complete_config(cfg)
    assert done.train_dataloader.dataset.pipeline == cfg.train_pipeline
    assert done.test_dataloader.dataset.pipeline == cfg.test_pipeline
    assert done.val_dataloader.dataset.datasets[0].pipeline == cfg.test_pipeline
    assert done.val_dataloader.dataset.datasets[1].pipeline == own
    assert "pipeline" not in cfg.train_dataloader.dataset, "the given config is unchanged"
    assert "pipeline" not in done.val_dataloader.dataset


CHILD = f"""
_base_ = ["{CONFIGS / LABEL}"]
train_pipeline = [dict(type="LoadImage")]
test_pipeline = [dict(type="LoadImage", exif=False)]
"""


def test_unused_pipelines_are_reported(tmp_path: Path) -> None:
    """A derived config that replaces a variable does not change the datasets of its base."""
    assert not unused_pipelines(load_config(LABEL))
    child = Config.fromstring(CHILD, ".py")
    lines = unused_pipelines(complete_config(child))
    assert [line.partition(":")[0] for line in lines] == [
        "`train_pipeline` is not used by train_dataloader",
        "`test_pipeline` is not used by val_dataloader",
        "`test_pipeline` is not used by test_dataloader",
    ]
    assert "train_dataloader = dict(dataset=dict(pipeline=train_pipeline))" in lines[0]
    text = CHILD + "train_dataloader = dict(dataset=dict(pipeline=train_pipeline))\n"
    text += "val_dataloader = dict(dataset=dict(pipeline=test_pipeline))\n"
    text += "test_dataloader = val_dataloader\n"
    explicit = Config.fromstring(text, ".py")
    assert not unused_pipelines(explicit)
    assert explicit.train_dataloader.dataset.pipeline == [dict(type="LoadImage")]
    removed = Config.fromstring(CHILD + "train_pipeline = None\ntest_pipeline = None\n", ".py")
    assert not unused_pipelines(removed)
    # It is enough if one of several datasets uses the pipeline, or if the datasets set none.
    child.train_dataloader.dataset = dict(
        type="ConcatDataset", datasets=[child.train_dataloader.dataset, dict(type="X")]
    )
    for stage in ("val", "test"):
        child[f"{stage}_dataloader"].dataset.pop("pipeline")
    assert not unused_pipelines(complete_config(child))


def test_unused_pipelines_are_logged(tmp_path: Path) -> None:
    cfg = config(tmp_path, train_pipeline=[dict(type="LoadImage")])
    cfg.train_dataloader.dataset.pipeline = "its own"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SmallDataset, "__init__", _with_pipeline(SmallDataset.__init__))
        OpenVocabRunner.from_cfg(cfg)
    (log,) = tmp_path.glob("*/*.log")
    assert log.read_text().count("`train_pipeline` is not used by train_dataloader") == 1


def _with_pipeline(init: Callable[..., None]) -> Callable[..., None]:
    return lambda self, pipeline=None, **settings: init(self, **settings)


def test_changes_of_a_pipeline_apply_to_the_datasets_that_use_it() -> None:
    cfg = load_config(LABEL)
    own = [dict(type="LoadImage"), dict(type="ResizeKeepRatio", scale=(7, 7))]
    cfg.test_dataloader.dataset.pipeline = own
    crop = next(i for i, s in enumerate(cfg.train_pipeline) if s.type == "LargeScaleJitter")
    change_config(
        cfg, {"test_pipeline.1.scale": (64, 32), f"train_pipeline.{crop}.crop_size": (5, 5)}
    )
    assert cfg.train_dataloader.dataset.pipeline[crop].crop_size == (5, 5)
    assert cfg.val_dataloader.dataset.pipeline[1].scale == (64, 32)
    assert cfg.test_dataloader.dataset.pipeline == own, "it has another pipeline"
    # Settings of the dataset itself have priority, and change nothing else.
    both = {"test_pipeline.1.scale": (8, 8), "val_dataloader.dataset.pipeline.1.scale": (9, 9)}
    change_config(cfg, both)
    assert cfg.val_dataloader.dataset.pipeline[1].scale == (9, 9)
    assert cfg.test_pipeline[1].scale == (8, 8)


def test_frozen_parts_are_left_out_by_default(tmp_path: Path) -> None:
    assert complete_config(config(tmp_path)).optim_wrapper.constructor == (
        "TrainedParametersConstructor"
    )


def refusal(cfg: Config, kind: type[OdiseError]) -> str:
    with pytest.raises(kind) as caught:
        check_config(complete_config(cfg))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "key, meant",
    [
        ("train_dataloder", "train_dataloader"),
        ("train_dataloaders", "train_dataloader"),
        ("optim_wraper", "optim_wrapper"),
        ("param_schedulers", "param_scheduler"),
        ("visualiser", "visualizer"),
    ],
)
def test_misspelt_settings(key: str, meant: str, tmp_path: Path) -> None:
    cfg = config(tmp_path)
    cfg[key] = {}
    assert f"unknown setting `{key}` (did you mean `{meant}`?)" in refusal(cfg, ConfigError)


def test_variables_in_configs_are_allowed(tmp_path: Path) -> None:
    cfg = config(tmp_path)
    cfg.merge_from_dict(dict(max_iters=3, data_root="data/", dataset_type="X", num_classes=3))
    check_config(complete_config(cfg))


@pytest.mark.parametrize(
    "changes, words",
    [
        (dict(train_cfg=None), "must be set together; missing: train_cfg"),
        (dict(val_evaluator=None), "must be set together; missing: val_evaluator"),
        (dict(train_dataloader__batch_size=0), "train_dataloader.batch_size=0"),
        (dict(train_dataloader__sampler=None), None),
        (dict(train_dataloader__sampler__type="SededSampler"),
         "train_dataloader.sampler: unknown data sampler 'SededSampler' (did you mean "
         "SeededSampler"),
        (dict(train_dataloader__dataset__type="PanoptikDataset"), "did you mean PanopticDataset"),
        (dict(val_evaluator=[dict(type="PanopticQualty")]),
         "val_evaluator[0]: unknown metric 'PanopticQualty' (did you mean Panoptic"),
        (dict(train_cfg__type="OpenVocabTrainLop"), "did you mean OpenVocabTrainLoop"),
        (dict(optim_wrapper__optimizer__type="AdamX"), "optim_wrapper.optimizer: unknown "),
        (dict(optim_wrapper__type="OptimWraper"), "did you mean OptimWrapper"),
        (dict(default_hooks__checkpoint__type="AtomicHook"), "default_hooks.checkpoint: "),
        (dict(custom_hooks=[dict(type="mmengine.EMAHok")]), "custom_hooks[0]: unknown hook"),
        (dict(custom_hooks=[dict(interval=1)]), "custom_hooks[0]: missing key `type`"),
        (dict(train_dataloader__dataset__pipeline=[dict(type="LoadImag")]),
         "train_dataloader.dataset.pipeline[0]: unknown transform 'LoadImag'"),
        (dict(visualizer__vis_backends=[dict(type="TensorBoard")]), "TensorboardVisBackend"),
        (dict(model=None), "missing key `model`"),
        (dict(launcher="pytorch"), "tools/dist_train.sh"),
        (dict(launcher="ssh"), "unknown launcher 'ssh': must be one of none, pytorch"),
    ],
)  # fmt: skip
def test_missing_or_unknown_parts(
    changes: dict[str, Any], words: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    cfg = config(tmp_path, **{k: v for k, v in changes.items() if v is not None})
    for key in (k for k, v in changes.items() if v is None):
        *parents, last = key.split("__")
        functools.reduce(lambda node, name: node[name], parents, cfg).pop(last)
    words = words or "train_dataloader: missing `sampler`"
    assert words in refusal(cfg, ConfigError)


@pytest.mark.parametrize("stage", ["train", "val"])
@pytest.mark.parametrize(
    "changes, words",
    [
        (dict(persistent_workers=True), "num_workers=0 with persistent_workers=True"),
        (dict(prefetch_factor=2), "num_workers=0 with prefetch_factor=2"),
        (dict(timeout=30), "num_workers=0 with timeout=30"),
        (dict(multiprocessing_context="fork"), "num_workers=0 with multiprocessing_context"),
        (dict(persistent_workers=True, timeout=5), "remove persistent_workers and timeout"),
        (dict(prefetch_factor=2), "remove prefetch_factor, or"),
        (dict(num_workers=-1), "num_workers=-1"),
        (dict(num_workers="2"), "num_workers='2'"),
        (dict(num_workers=True), "num_workers=True"),
        (dict(num_workers=2, prefetch_factor=0), "prefetch_factor=0"),
        (dict(num_workers=2, timeout=-1), "timeout=-1"),
        (dict(num_workers=2, timeout="soon"), "timeout='soon'"),
        (dict(batch_size=0), "batch_size=0"),
        (dict(batch_size=1.5), "batch_size=1.5"),
        (dict(batch_size=None), "batch_size=None"),
        (dict(num_worker=2), "num_worker: unknown setting of torch's DataLoader (did you mean "
         "`num_workers`?"),
        (dict(shuffle=True), "shuffle=True: the sampler decides the order"),
    ],
)  # fmt: skip
def test_contradicting_settings_of_data_loaders(
    stage: str, changes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    cfg = config(tmp_path)
    cfg[f"{stage}_dataloader"].update(changes)
    message = refusal(cfg, ConfigError)
    assert f": {stage}_dataloader." in message and words in message


def test_valid_settings_of_data_loaders(tmp_path: Path) -> None:
    cfg = config(tmp_path)
    for changes in (
        dict(persistent_workers=False, prefetch_factor=None, timeout=0),
        dict(num_workers=2, persistent_workers=True, prefetch_factor=4, timeout=1.5),
        dict(num_batch_per_epoch=3, pin_memory=True, drop_last=True),
    ):
        cfg.train_dataloader.update(changes)
        check_config(complete_config(cfg))


def test_evaluation_with_drop_last_is_an_error(tmp_path: Path) -> None:
    cfg = config(tmp_path, val_dataloader__drop_last=True)
    assert "val_dataloader.drop_last=True" in refusal(cfg, ConfigError)


def test_a_batch_sampler_needs_the_batch_size(tmp_path: Path) -> None:
    cfg = config(tmp_path)
    cfg.train_dataloader.pop("batch_size")
    cfg.train_dataloader.batch_sampler = dict(type="AspectRatioBatchSampler")
    assert "train_dataloader: missing `batch_size`" in refusal(cfg, ConfigError)


@pytest.mark.parametrize("key", ["max_iters", "val_interval"])
@pytest.mark.parametrize("value", [0, -5, 2.5, "12", True])
def test_numbers_of_iterations(key: str, value: Any, tmp_path: Path) -> None:
    cfg = config(tmp_path)
    cfg.train_cfg[key] = value
    assert f": train_cfg.{key}={value!r}" in refusal(cfg, ConfigError)
    cfg.train_cfg[key] = 6.0  # mmengine's configs set 9e4
    check_config(complete_config(cfg))


OUR_METRICS = [
    dict(type="PanopticQuality"),
    dict(type="SemanticIoU"),
    dict(type="InstanceAP"),
    dict(type="AverageRecall"),
]


@pytest.mark.parametrize(
    "best",
    [
        "panoptic/PQ", "panoptic/RQ_st", "panoptic/novel/SQ", "semantic/mIoU", "semantic/aAcc",
        "instance/AP", "instance/APs", "instance/loss_of_names/AP50", "proposals/AR@100",
        ["panoptic/PQ", "instance/AP"], "auto",
    ],
)  # fmt: skip
def test_greater_is_better_for_all_our_results(best: Any, tmp_path: Path) -> None:
    cfg = config(tmp_path, default_hooks__checkpoint__save_best=best)
    cfg.val_evaluator = OUR_METRICS
    check_config(complete_config(cfg))
    hook = OpenVocabRunner.from_cfg(complete_config(cfg))._hooks[-1]
    assert isinstance(hook, AtomicCheckpointHook)
    if best == "auto":  # decided when the first results are known
        hook._init_rule(hook.rules, ["panoptic/PQ"])
    assert set(hook.rules) == {"greater"}


@pytest.mark.parametrize(
    "changes, words",
    [
        (dict(save_best="count/images"), "save_best='count/images': unknown whether greater or "
         "less is better"),
        (dict(save_best="panoptic/PQ"), "save_best='panoptic/PQ': not a result of val_evaluator, "
         "whose metrics return count/..."),
        (dict(save_best="PQ"), "save_best='PQ': not a result of val_evaluator, whose metrics "
         "return count/..."),
        (dict(save_best=3), "save_best=3: must be the name of a result"),
        (dict(save_best="count/images", rule="more"), "rule='more': must be 'greater' or 'less'"),
        (dict(save_best="count/images", rule=["less", "less"]), "one of them for each entry"),
    ],
)  # fmt: skip
def test_invalid_save_best(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    cfg = config(tmp_path)
    cfg.default_hooks.checkpoint.update(changes)
    message = refusal(cfg, ConfigError)
    assert ": default_hooks.checkpoint." in message and words in message
    cfg.default_hooks.checkpoint.update(save_best="count/images", rule="less")
    check_config(complete_config(cfg))


def test_save_best_without_validation_is_an_error(tmp_path: Path) -> None:
    cfg = config(tmp_path, default_hooks__checkpoint__save_best="panoptic/PQ")
    for key in ("val_dataloader", "val_evaluator", "val_cfg"):
        cfg.pop(key)
    assert "no val_dataloader" in refusal(cfg, ConfigError)


def test_save_best_of_a_result_that_validation_does_not_return(tmp_path: Path) -> None:
    cfg = config(tmp_path, train_cfg__max_iters=2, train_cfg__val_interval=2)
    cfg.default_hooks.checkpoint.update(save_best="count/imagez", rule="less", by_epoch=False)
    with pytest.raises(ConfigError, match="save_best='count/imagez': .* choose from count/images"):
        OpenVocabRunner.from_cfg(cfg).train()


def test_unknown_arguments_of_parts(tmp_path: Path) -> None:
    for changes in (
        dict(model__widht=3),
        dict(train_dataloader__dataset__siz=3),
        dict(default_hooks__checkpoint__intervall=3),
    ):
        with pytest.raises(ConfigError, match="invalid argument: .*(widht|siz|intervall)"):
            OpenVocabRunner.from_cfg(config(tmp_path, **changes)).train()


@pytest.mark.parametrize("stage", ["train", "val"])
@pytest.mark.parametrize("key", ["ann_file", "data_prefix.seg", "phrases_file"])
def test_missing_files(stage: str, key: str, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    dataset = dict(
        type="SmallDataset",
        data_root=str(tmp_path),
        ann_file="there",
        data_prefix=dict(img="there/", seg="there/"),
        phrases_file="there",
    )
    cfg = config(tmp_path, **{f"{stage}_dataloader__dataset": dataset})
    check_config(complete_config(cfg))
    cfg.merge_from_dict({f"{stage}_dataloader.dataset.{key}": "gone/x.json"})
    message = refusal(cfg, DatasetError)
    assert f"{stage}_dataloader.dataset.{key}: {tmp_path}/gone/x.json not found" in message
    assert "--data-root" in message


def test_files_of_the_test_set_are_not_needed_for_training(tmp_path: Path) -> None:
    cfg = config(tmp_path)
    cfg.test_dataloader = dict(cfg.val_dataloader, dataset=dict(type="SmallDataset", ann_file="no"))
    cfg.test_evaluator, cfg.test_cfg = cfg.val_evaluator, dict(type="OpenVocabTestLoop")
    check_config(complete_config(cfg))
    for key in ("train_dataloader", "train_cfg", "optim_wrapper", "param_scheduler"):
        cfg.pop(key)
    assert "test_dataloader.dataset.ann_file: no not found" in refusal(cfg, DatasetError)


def test_sampler_that_counts_images_twice_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = config(tmp_path, val_dataloader__sampler=dict(type="DefaultSampler", round_up=True))
    check_config(complete_config(cfg))
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "0")
    cfg.launcher = "pytorch"
    assert "val_dataloader.sampler" in refusal(cfg, ConfigError)
    assert "set round_up=False" in refusal(cfg, ConfigError)
    cfg.val_dataloader.sampler.round_up = False
    check_config(complete_config(cfg))


def test_float16_needs_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = config(tmp_path, optim_wrapper__type="AmpOptimWrapper")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    message = refusal(cfg, DeviceError)
    assert message.startswith("AmpOptimWrapper needs a GPU")
    assert "use --precision fp32 or bf16" in message
    for precision in ("fp32", "bf16"):
        set_precision(cfg, precision)
        check_config(complete_config(cfg))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for precision in ("bf16", "fp16"):
        set_precision(cfg, precision)
        check_config(complete_config(cfg))


def test_more_processes_than_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("LOCAL_RANK", "2")
    cfg = config(tmp_path, launcher="pytorch")
    assert "only 2: start at most 2 processes" in refusal(cfg, DeviceError)


def test_precisions() -> None:
    cfg = load_config(LABEL)
    assert precision_of(cfg) == "automatic mixed, float16"
    clip, constructor = cfg.optim_wrapper.clip_grad, cfg.optim_wrapper.constructor
    set_precision(cfg, "bf16")
    assert cfg.optim_wrapper.type == "BFloat16OptimWrapper"
    assert precision_of(cfg) == "automatic mixed, bfloat16"
    set_precision(cfg, "fp32")
    assert precision_of(cfg) == "float32"
    assert not {"dtype", "loss_scale"} & set(cfg.optim_wrapper)
    assert (cfg.optim_wrapper.clip_grad, cfg.optim_wrapper.constructor) == (clip, constructor)
    with pytest.raises(ConfigError, match="precision 'fp8'"):
        set_precision(cfg, "fp8")
    with pytest.raises(ConfigError, match="missing key `optim_wrapper`"):
        set_precision(load_config("odise/odise_label_ade20k.py"), "fp32")


def test_data_root() -> None:
    cfg = load_config(LABEL)
    set_data_root(cfg, "/big/disk")
    for stage in ("train", "val", "test"):
        assert cfg[f"{stage}_dataloader"].dataset.data_root == "/big/disk/coco/"
    files = [m.ann_file for m in cfg.val_evaluator if "ann_file" in m]
    assert files == ["/big/disk/coco/annotations/instances_val2017.json"]
    assert cfg.train_dataloader.dataset.ann_file == "annotations/panoptic_train2017.json"
