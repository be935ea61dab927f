"""tools/train.py from the command line, with a fake model and with a real, small model."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from odise_mm.checkpoints.published import load_weights
from odise_mm.checkpoints.training_state import read_training_state
from odise_mm.cli import train as tool
from odise_mm.config.changing import change_config
from odise_mm.models import OpenVocabSegmentor
from odise_mm.registry import MODELS
from tests.support import golden_families
from tests.support.parts import CONFIGS, load_config, segmentor_config
from tests.support.small_coco import VOCABULARY, write_small_coco
from tests.support.small_training import CONFIG

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """Config of a training run that takes no time."""
    path = tmp_path / "small.py"
    path.write_text(CONFIG)
    return path


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Config that trains a small but complete model, and data for it."""
    folder = tmp_path_factory.mktemp("train")
    shown = dict(zip(VOCABULARY.source_names, VOCABULARY.names, strict=True))
    for split in ("train", "val"):
        data = write_small_coco(folder / "elsewhere/coco", split)
        content = data.read()
        for category in content["categories"]:
            category["name"] = shown[category["name"]]
        data.write(content)
    names = folder / "names.txt"  # a vocabulary in a config is a built-in one or a file
    names.write_text(
        "".join(
            f"{'thing' if thing else 'stuff'}: {', '.join(group)}\n"
            for group, thing in zip(VOCABULARY.synonyms, VOCABULARY.is_thing, strict=True)
        )
    )
    cfg = load_config("odise/odise_coco_label.py")
    cfg.model = segmentor_config()
    cfg.model.head.train_cfg = {**cfg.model.head.get("train_cfg", {}), "num_points": 64}
    small = {
        f"train_pipeline.{index}.{key}": (64, 64)
        for index, step in enumerate(cfg.train_pipeline)
        for key in ("scale", "crop_size", "size")
        if key in step
    }
    change_config(cfg, {**small, "test_pipeline.1.scale": (160, 64)})
    for stage in ("train", "val"):
        loader = cfg[f"{stage}_dataloader"]
        loader.update(batch_size=2 if stage == "train" else 1, num_workers=0)
        loader.persistent_workers = loader.pin_memory = False
        loader.dataset.vocabulary = str(names)
    cfg.val_evaluator = [dict(type="PanopticQuality")]
    for key in ("test_dataloader", "test_evaluator", "test_cfg"):
        cfg.pop(key)
    cfg.model.ensemble.train_vocabulary = str(names)
    cfg.train_cfg.update(max_iters=4, val_interval=4)
    cfg.default_hooks.checkpoint.interval = 2
    cfg.default_hooks.logger.interval = 1
    cfg.dump(folder / "config.py")
    return folder / "config.py"


def train(config: Path, *arguments: str) -> int:
    return tool.main([str(config), *arguments])


def test_a_real_model_resumed(
    coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ["--data-root", str(coco.parent / "elsewhere"), "--precision", "fp32"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train(coco, "--work-dir", str(whole), *data) == 0
    printed = capsys.readouterr().out
    assert "training data: 3 images, class names: Vocabulary('names'" in printed
    assert "validation: 3 images, every 4 iterations" in printed
    assert "iterations: 4 of 2 images in 1 processes" in printed
    assert f"done; checkpoint: {whole}/iter_4.pth" in printed
    assert list(whole.glob("*/vis_data/events.out.tfevents.*")), "curves for TensorBoard"

    options = ["--work-dir", str(parts), *data]
    assert train(coco, *options, "--cfg-options", "train_cfg.max_iters=2") == 0
    assert train(coco, *options, "--resume") == 0
    state = read_training_state(whole / "iter_4.pth")
    first = state["state_dict"]
    second = read_training_state(parts / "iter_4.pth")["state_dict"]
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)

    # The result is an ordinary checkpoint. Gradients have reached all trained parameters, and all
    # have changed. The captioner's gates are almost closed, so what is behind them may change by
    # less than float32 resolves.
    model = MODELS.build(Config.fromfile(coco).model)
    assert isinstance(model, OpenVocabSegmentor)
    assert first.keys() == model.state_dict().keys()
    load_weights(model, whole / "iter_4.pth")
    earlier = read_training_state(whole / "iter_2.pth")["state_dict"]
    unchanged = [key for key in first if torch.equal(first[key], earlier[key])]
    assert all(key.startswith(("captioner.context.", "captioner.time.")) for key in unchanged)
    moments = state["optimizer"]["state"]
    assert len(moments) == sum(parameter.requires_grad for parameter in model.parameters())
    assert all(moment["exp_avg"].any() for moment in moments.values())


def test_a_run_that_starts_from_a_published_file_keeps_its_clip(
    coco: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The config's CLIP is not looked for, and checkpoints contain the one of the file."""
    # yapf takes most of the time
    monkeypatch.setattr("mmengine.config.config.FormatCode", lambda text, **_: (text, True))
    published = golden_families.write_checkpoint(tmp_path / "fcclip.pth", "fcclip")
    cfg = Config.fromfile(coco)
    cfg.model = golden_families.tiny_config("fcclip").model
    cfg.model.clip.weights = str(tmp_path / "missing.safetensors")
    cfg.model.vocabulary = cfg.train_dataloader.dataset.vocabulary
    cfg.model.head.train_cfg.num_points = 64
    cfg.train_dataloader.batch_size = 1
    cfg.load_from = str(published)
    cfg.default_hooks.checkpoint.interval = 1
    for key in ("val_dataloader", "val_evaluator", "val_cfg"):
        cfg.pop(key)
    cfg.train_cfg.update(max_iters=1, val_interval=9)
    cfg.dump(tmp_path / "config.py")
    data = ["--data-root", str(coco.parent / "elsewhere"), "--precision", "fp32"]
    options = ["--work-dir", str(tmp_path / "work"), *data]
    assert train(tmp_path / "config.py", *options) == 0
    published.unlink()
    longer = ["--resume", "--cfg-options", "train_cfg.max_iters=2"]
    assert train(tmp_path / "config.py", *options, *longer) == 0
    state = read_training_state(tmp_path / "work/iter_2.pth")["state_dict"]
    clip = {key for key in golden_families.shapes("fcclip") if key.startswith("backbone.")}
    assert {key for key in state if key.startswith("clip.")} == {
        key.replace("backbone.clip_model.", "clip.model.") for key in clip
    }
    for key in sorted(clip)[::40]:
        expected = golden_families.parameter("fcclip", key, golden_families.shapes("fcclip")[key])
        found = state[key.replace("backbone.clip_model.", "clip.model.")]
        assert torch.equal(found, torch.from_numpy(expected)), key


def test_config_in_the_work_directory_is_not_changed(small: Path) -> None:
    small.write_text(f"# notes on this experiment\n{CONFIG}")
    before = small.read_bytes()
    other = small.parent / "elsewhere"
    assert train(small, "--work-dir", str(small.parent)) == 0
    assert small.read_bytes() == before
    assert train(small, "--work-dir", str(other)) == 0
    assert "notes" not in (other / small.name).read_text(), "the copy is a flattened config"


def test_options(small: Path, tmp_path: Path) -> None:
    args = tool.parse_args(
        [str(small), "--work-dir", str(tmp_path / "w"), "--precision", "bf16", "--auto-scale-lr"]
        + ["--cfg-options", "model.width=5", "optim_wrapper.optimizer.lr=1e-3", "resume=false"]
    )
    cfg = tool.plan(args)
    assert cfg.model.width == 5 and cfg.optim_wrapper.optimizer.lr == 1e-3
    assert cfg.resume is False and cfg.auto_scale_lr.enable is True
    assert cfg.optim_wrapper.type == "BFloat16OptimWrapper"
    assert cfg.work_dir == str(tmp_path / "w")
    assert tool.plan(tool.parse_args([str(small)])).work_dir == "work_dirs/small"


def test_resume_options(small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    work = ["--work-dir", str(tmp_path / "w")]
    cfg = tool.plan(tool.parse_args([str(small), *work, "--resume"]))
    assert cfg.resume is False and cfg.load_from is None
    assert "no checkpoint to resume from; starting at iteration 0" in capsys.readouterr().out
    assert train(small, *work, "--cfg-options", "train_cfg.max_iters=3") == 0
    for given, loaded in ((["--resume"], "w/iter_3.pth"), (["--resume", "a.pth"], "a.pth")):
        cfg = tool.plan(tool.parse_args([str(small), *work, *given]))
        assert cfg.resume is True and cfg.load_from.endswith(loaded)


def test_auto_scale_lr(small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--cfg-options", "train_cfg.max_iters=1", "train_dataloader.batch_size=6"]
    options += ["param_scheduler=[]"]
    for flag, rate in (([], 0.01), (["--auto-scale-lr"], 0.03)):
        work = tmp_path / f"w{rate}"
        assert train(small, "--work-dir", str(work), *flag, *options) == 0
        state = read_training_state(work / "iter_1.pth")
        for group in state["optimizer"]["param_groups"]:
            assert group["lr"] == pytest.approx(rate)


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["no_such_config"], "no config 'no_such_config'"),
        (["odise_label_ade20k"], "has no `train_dataloader`, it is for testing only"),
        (["odise_coco_label", "--precision", "fp32", "--data-root", "/nowhere"],
         "/nowhere/coco/annotations/panoptic_train2017.json not found"),
        (["odise_coco_label"], "use --precision fp32 or bf16"),
        (["SMALL", "--launcher", "slurm"], "launcher 'slurm' did not start this process"),
        (["SMALL", "--resume", "/nowhere/iter_1.pth"], "no checkpoint /nowhere/iter_1.pth"),
        (["SMALL", "--cfg-options", "load_from=/nowhere/w.pth"], "no weights file /nowhere/w.pth"),
        (["SMALL", "--cfg-options", "model.type=NoSuchModel"], "NoSuchModel"),
        (["SMALL", "--cfg-options", "model.broken_at=1"], "iteration 1: loss not finite"),
    ],
)  # fmt: skip
def test_one_line_for_every_mistake(
    arguments: list[str],
    words: str,
    small: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("SLURM_NTASKS", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    arguments = [str(small) if a == "SMALL" else a for a in arguments]
    with pytest.raises(SystemExit) as ended:
        tool.main([*arguments, "--work-dir", str(tmp_path / "w")])
    assert ended.value.code == 2
    lines = [n for n in capsys.readouterr().err.splitlines() if n.startswith("error: ")]
    assert len(lines) == 1 and words in lines[0]


@pytest.mark.parametrize("script", ["dist_train", "dist_test", "slurm_train", "slurm_test"])
def test_launchers_pass_everything_on(script: str, tmp_path: Path) -> None:
    """Fakes of python and srun print their arguments."""
    for name in ("python", "srun"):
        program = tmp_path / name
        program.write_text('#!/bin/sh\nprintf "[%s]" "${0##*/}" "$@"\n')
        program.chmod(0o755)
    given = {
        "dist_train": ["my config.py", "4"],
        "dist_test": ["my config.py", "my.pth", "4"],
        "slurm_train": ["gpu", "job", "my config.py", "work dir"],
        "slurm_test": ["gpu", "job", "my config.py", "my.pth"],
    }[script]
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "GPUS": "4"}
    environment.pop("PYTHON", None)
    file = ROOT / f"tools/{script}.sh"
    run = subprocess.run(
        [file, *given, "--cfg-options", "a=b c"], env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    launcher, kind = script.split("_")
    assert f"/{kind}.py][my config.py]" in run.stdout
    assert run.stdout.endswith("[--cfg-options][a=b c]")
    wanted = {
        "dist": ["[--nproc_per_node=4]", "[--launcher][pytorch]", "[-m][torch.distributed.run]"],
        "slurm": ["[--ntasks=4]", "[--gres=gpu:4]", "[--partition=gpu]", "[--launcher][slurm]"],
    }[launcher]
    for part in wanted + (["[my.pth]"] if kind == "test" else []):
        assert part in run.stdout
    if script == "slurm_train":
        assert "[--work-dir][work dir]" in run.stdout
    few = subprocess.run([file, "one"], env=environment, capture_output=True, text=True)
    assert few.returncode == 2 and few.stderr.startswith("usage: ")


def test_training_configs_use_our_runner_and_loop() -> None:
    for name in ("odise_coco_label", "odise_coco_caption"):
        cfg = Config.fromfile(CONFIGS / f"odise/{name}.py")
        assert cfg.runner_type == "OpenVocabRunner"
        assert cfg.train_cfg.type == "OpenVocabTrainLoop"
