"""docs/tutorial.md in a short form: its files are written and its commands run, in its order.

This is also the whole way of a user: data are drawn, a model is trained for 100 iterations, saved,
tested, and asked for names; with the trained weights that ship, in processes of their own.
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
import torch

from tests.support.forked_commands import run_commands
from tests.test_docs import BLOCK, ROOT, commands

PAGE = ROOT / "docs" / "tutorial.md"
TEXT = PAGE.read_text(encoding="utf-8")
SHORT = 100  # iterations of the label training
# What is added to a command to make it short, by a part of the command.
SHORTER = {
    "generate.py": "--number 160 20",
    "show.py": "--number 2",
    "train.py odise_toy_label": f"--batch-size 4 --cfg-options train_cfg.max_iters={SHORT} "
    f"param_scheduler.1.end={SHORT} param_scheduler.0.end=20 param_scheduler.1.begin=20",
    "train.py toy_conv.py": "--cfg-options train_cfg.max_iters=4 param_scheduler.1.end=200",
    "pretrain_clip.py": "--steps 2 --scenes 2 --regions-every 2 --val-scenes 2 --workers 0"
    + ("" if hasattr(torch.optim, "Muon") else " --muon-lr 0"),
    "pretrain_diffusion.py": "--vae-steps 2 --vae-scenes 2 --scenes 4 --steps 2 --batch-size 2 "
    "--val-scenes 2 --workers 0",
    "save_predictions.py": "--limit 2",
    "--limit 50": "--limit 8",
}
ITERATIONS = {"odise_toy_label": SHORT, "toy_conv": 4}


def shortened(words: list[str]) -> list[str]:
    """The command as it is run here."""
    line = shlex.join(words)
    for part, more in SHORTER.items():
        if part in line:
            words = [*words, *shlex.split(more)]
    for name, count in ITERATIONS.items():
        words = [w.replace(f"{name}/iter_2000", f"{name}/iter_{count}") for w in words]
    return words


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that looks like the repository, in which the page was followed to its end."""
    folder = tmp_path_factory.mktemp("tutorial")
    for name in ("configs", "demo", "odise_mm", "projects", "tools"):
        (folder / name).symlink_to(ROOT / name)
    for match in BLOCK.finditer(TEXT):
        if match["mark"]:
            (folder / match["mark"].removeprefix("file: ")).write_text(match["code"])
    run_commands([shortened(words) for words in commands(PAGE)], folder)
    return folder


def metrics(file: Path) -> dict[str, float]:
    (found,) = json.loads(file.read_text(encoding="utf-8"))["sets"].values()
    return found["metrics"]


def test_every_command_that_takes_long_is_shortened() -> None:
    lines = [shlex.join(words) for words in commands(PAGE)]
    for line in lines:
        if any(part in line for part in ("generate.py", "train.py", "pretrain_", "/test.py")):
            short = any(part in line for part in SHORTER) or "work_dirs/" in line
            assert short, f"{line}: how is it made short?"
    assert all(any(part in line for line in lines) for part in SHORTER), "something is gone"
    assert TEXT.count("iter_2000.pth") == len(ITERATIONS)


def test_training_learns(walked: Path) -> None:
    """100 iterations are enough for stuff, the large regions."""
    log = next((walked / "work_dirs/odise_toy_label").glob("*/vis_data/scalars.json"))
    losses = [json.loads(line) for line in log.read_text().splitlines()]
    losses = [entry["loss"] for entry in losses if "loss" in entry]
    assert losses[-1] < 0.75 * losses[0]
    assert metrics(walked / "out/trained.json")["panoptic/PQ_st"] > 30


def test_shipped_weights_find_more_than_a_short_training(walked: Path) -> None:
    shipped, trained = (metrics(walked / f"out/{name}.json") for name in ("label", "trained"))
    assert shipped["panoptic/PQ"] > trained["panoptic/PQ"] + 10
    assert shipped["panoptic/novel/PQ"] > 10


def test_results_are_written(walked: Path) -> None:
    for name in ("toy_train.jpg", "out/panoptic.json", "out/conv.json", "out/sweep"):
        assert (walked / name).exists(), name
    for name in ("clip/open_clip_model.safetensors", "diffusion/model/unet/config.json"):
        assert (walked / "work_dirs/toy_world" / name).is_file(), name
