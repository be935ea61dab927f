"""Training in two processes equals training in one with the joint batch; failures end all.

Testing in two processes: ``test_tools/test_test.py``, ``test_evaluation/test_processes.py``.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch

from odise_mm.checkpoints.published import load_weights
from odise_mm.cli import train as tool
from odise_mm.registry import MODELS
from tests.support import distributed_worker as worker
from tests.support.parts import load_config, segmentor_config
from tests.support.small_coco import SIZES, VOCABULARY, write_small_coco
from tests.support.small_training import weights

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = dict(os.environ, PYTHONPATH=str(ROOT), PYTHON=sys.executable, OMP_NUM_THREADS="1")
SECONDS = 300  # far more than any of these runs takes, so only hanging runs fail


# ------------------------------------------------------------------------- losses and gradients


@pytest.fixture(scope="module")
def of_two(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """Return the results of two processes, each with half of every batch."""
    folder = tmp_path_factory.mktemp("two")
    command = [sys.executable, "-m", "tests.support.distributed_worker", str(folder)]
    done = subprocess.run(
        command, cwd=ROOT, env=ENVIRONMENT, timeout=SECONDS, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return [torch.load(folder / f"{rank}.pth", weights_only=True) for rank in range(2)]


@pytest.fixture(scope="module")
def of_one() -> dict:
    """Return the results of one process with the joint batches."""
    return worker.all_cases()


@pytest.mark.parametrize("case", worker.CASES)
def test_losses_equal_the_joint_batch(case: str, of_two: list[dict], of_one: dict) -> None:
    first, second = (process[case]["losses"] for process in of_two)
    wanted = of_one[case]["losses"]
    assert first.keys() == second.keys() == wanted.keys()
    captions = worker.CASES[case].words is not None
    assert ("loss_grounding" in wanted) == captions
    for name, value in wanted.items():
        # mmdet adds 1.2e-7 to the divisor, which is smaller in each of two processes.
        assert (first[name] + second[name]) / 2 == pytest.approx(value, rel=5e-8), name
        if "grounding" in name:
            assert first[name] == pytest.approx(value, rel=1e-12), name
    assert first["loss_mask"] != pytest.approx(second["loss_mask"], rel=0.01)


@pytest.mark.parametrize("case", worker.CASES)
def test_gradients_equal_the_joint_batch(case: str, of_two: list[dict], of_one: dict) -> None:
    first, second = (process[case]["gradients"] for process in of_two)
    wanted = of_one[case]["gradients"]
    assert first.keys() == second.keys() == wanted.keys()
    largest = max(gradient.norm() for gradient in wanted.values())
    assert wanted["classifiers.0.text_proj.weight"].norm() > 0.001 * largest
    for name, gradient in wanted.items():
        assert torch.equal(first[name], second[name]), name
        # The second term: after the norm of a one-pixel map, only rounding errors are left.
        error = (first[name] - gradient).norm()
        assert error <= 5e-8 * gradient.norm() + 1e-11 * largest, name


# -------------------------------------------------------------------------- tools/dist_train.sh


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create a folder with images and ``small.py``, a small model's config with 3 iterations."""
    folder = tmp_path_factory.mktemp("project")
    for split in ("train", "val"):
        pictures = write_small_coco(folder / "data", split)
    names = folder / "names.txt"
    VOCABULARY.save(names)
    cfg = load_config("toy/odise_tiny.py")
    # Smaller images have a one-pixel map, whose norm leaves only rounding errors.
    cfg.model = segmentor_config(tile_size=128)
    cfg.model.head.train_cfg.num_points = 300
    cfg.model.ensemble.train_vocabulary = str(names)
    for step in cfg.train_pipeline:
        step.update({key: (128, 128) for key in ("scale", "crop_size", "size") if key in step})
    cfg.test_pipeline[1].scale = (128, 128)
    for stage in ("train", "val", "test"):
        loader = cfg[f"{stage}_dataloader"]
        pictures.split = "train" if stage == "train" else "val"
        loader.dataset = pictures.config(vocabulary=str(names), test_mode=stage != "train")
        loader.update(num_workers=0, persistent_workers=False, batch_size=1)
    cfg.val_evaluator = cfg.test_evaluator = [dict(type="PanopticQuality")]
    cfg.train_cfg.update(max_iters=3, val_interval=3)
    cfg.optim_wrapper = dict(
        type="OptimWrapper",
        optimizer=dict(type="SGD", lr=0.01),
        clip_grad=dict(max_norm=1.0, norm_type=2),
    )
    cfg.param_scheduler = []
    cfg.default_hooks.update(logger=dict(interval=1), checkpoint=dict(interval=1, max_keep_ckpts=9))
    cfg.custom_imports = dict(imports=["odise_mm.models", "tests.support.distributed_worker"])
    cfg.dump(folder / "small.py")
    return folder


def arguments(project: Path, name: str, *hooks: dict) -> list[str]:
    """Return arguments of tools/train.py: a work directory, and hooks that record the run."""
    told = project / f"told_{name}"
    told.mkdir()
    hooks = (dict(type="WitnessHook", folder=str(told)), *hooks)
    return ["--work-dir", str(project / name), "--cfg-options", f"custom_hooks={list(hooks)}"]


def told(project: Path, name: str, rank: int) -> dict[str, Any]:
    return json.loads((project / f"told_{name}" / f"{rank}.json").read_text())


def launch(project: Path, *rest: str) -> subprocess.CompletedProcess:
    """Run tools/dist_train.sh with two processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        environment = ENVIRONMENT | dict(MASTER_PORT=str(free.getsockname()[1]))
    script = ROOT / "tools/dist_train.sh"
    return subprocess.run(
        ["bash", str(script), str(project / "small.py"), "2", *rest],
        cwd=project, env=environment, timeout=SECONDS, capture_output=True, text=True,
    )  # fmt: skip


def test_two_processes_train_as_one(project: Path) -> None:
    done = launch(project, *arguments(project, "two"))
    assert done.returncode == 0, done.stderr
    assert "3 of 2 images in 2 processes" in done.stdout
    alone = arguments(project, "one")
    batch = "train_dataloader.batch_size=2"
    assert tool.main([str(project / "small.py"), *alone, batch]) == 0

    # The pixels are the same: augmentation does not depend on the number of processes.
    one, *two = (told(project, *which) for which in (("one", 0), ("two", 0), ("two", 1)))
    assert one["batches"] == [
        first + second for first, second in zip(*(t["batches"] for t in two), strict=True)
    ]
    images = [image for image, _ in chain(*one["batches"])]
    assert len(images) == 6 and set(images[:3]) == set(images[3:]) == set(SIZES)

    work = project / "two"
    written = [{Path(p) for p in t["written"] if Path(p).is_relative_to(work)} for t in two]
    assert {".log", ".json", ".tmp", ".py"} <= {path.suffix for path in written[0]}
    assert not written[1]
    there = {path.name for path in work.iterdir()}
    assert {"iter_1.pth", "iter_2.pth", "iter_3.pth", "last_checkpoint", "small.py"} <= there

    (start, one), (_, two) = (
        [weights(project / name / f"iter_{i}.pth") for i in (1, 3)] for name in ("one", "two")
    )
    moved, apart = (
        torch.cat([(one[key] - other[key]).flatten() for key in one]).norm()
        for other in (start, two)
    )
    assert apart < 0.02 * moved  # float32
    model = MODELS.build(load_config(project / "small.py").model)
    load_weights(model, project / "two/iter_3.pth")
    assert all(torch.equal(value, two[key]) for key, value in model.state_dict().items())


def test_a_failing_process_ends_all(project: Path) -> None:
    """One process fails before a synchronization, where the other would wait forever."""
    breaking = dict(type="BreakHook", rank=1, iteration=2)
    done = launch(project, *arguments(project, "broken", breaking))
    last_told = (project / "told_broken/1.json").stat().st_mtime  # an iteration earlier
    assert time.time() - last_told < 60
    assert done.returncode != 0
    (error,) = re.findall(r"^error: .*$", done.stderr, re.MULTILINE)
    assert re.match(
        r"error: iteration 2: numbers not finite .*; images: \S+\.jpg \(id \d+\);", error
    )
    assert f"the last good checkpoint is {project / 'broken/iter_1.pth'}" in error
    assert [path.name for path in (project / "broken").glob("*.pth")] == ["iter_1.pth"]
