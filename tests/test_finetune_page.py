"""docs/finetune.md in a short form: its files are written and its commands run, in its order."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image

from odise_mm.config.building import build_model
from odise_mm.config.finding import load_config
from odise_mm.datasets import PanopticDataset
from tests.test_docs import BLOCK, ROOT, blocks, commands

PAGE = ROOT / "docs" / "finetune.md"
TEXT = PAGE.read_text(encoding="utf-8")
FILES = {m["mark"].removeprefix("file: "): m["code"] for m in BLOCK.finditer(TEXT) if m["mark"]}
ITERATIONS = 4
# Options that shorten a command, by a part of the command.
SHORTER = {
    "generate.py": "--number 15",
    "odise-mm train": f"--cfg-options train_cfg.max_iters={ITERATIONS} "
    "train_dataloader.batch_size=2",
    "browse_dataset.py": "--number 1",
}


def shortened(words: list[str]) -> list[str]:
    """Return the command as it is run here."""
    line = shlex.join(words)
    for part, more in SHORTER.items():
        if part in line:
            words = [*words, *shlex.split(more)]
    return [word.replace("iter_200.pth", f"iter_{ITERATIONS}.pth") for word in words]


def command(words: list[str]) -> list[str]:
    """Return the command with the Python of this process."""
    python = {"python": [], "odise-mm": ["-m", "odise_mm.cli"]}
    if words[0] not in python:
        return words
    return [sys.executable, *python[words[0]], *words[1:]]


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder that looks like the repository, in which all commands of the page ran."""
    folder = tmp_path_factory.mktemp("finetune")
    for name in ("configs", "demo", "odise_mm", "projects", "tools"):
        (folder / name).symlink_to(ROOT / name)
    for name, code in FILES.items():
        (folder / name).write_text(code)
    env = {**os.environ, "PYTHONPATH": str(folder)}
    for words in commands(PAGE):
        done = subprocess.run(
            command(shortened(words)), cwd=folder, env=env, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{shlex.join(words)}\n{done.stderr[-3000:]}"
    return folder


def test_every_option_that_shortens_is_used() -> None:
    lines = [shlex.join(words) for words in commands(PAGE)]
    assert all(any(part in line for line in lines) for part in SHORTER)
    assert len(FILES["finetune.py"].splitlines()) <= 15


def test_both_numbers_are_written(walked: Path) -> None:
    found = []
    for name in ("before", "after"):
        content = json.loads((walked / f"out/{name}.json").read_text(encoding="utf-8"))
        (result,) = content["sets"].values()
        assert result["images"] == 3
        found.append(result["metrics"])
    before, after = found
    assert before.keys() == after.keys() >= {"panoptic/PQ", "instance/AP", "semantic/mIoU"}
    assert before["panoptic/PQ"] > 10 and before != after


def test_an_image_is_segmented_with_the_new_weights(walked: Path) -> None:
    content = json.loads((walked / "out/finetuned/panoptic.json").read_text(encoding="utf-8"))
    assert len(content["categories"]) == 88
    assert content["annotations"][0]["segments_info"]


def test_the_config_works_with_the_published_model(
    walked: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lines for real images replace those of the config; nothing is downloaded."""
    monkeypatch.chdir(walked)
    (real,) = [code for mark, code in blocks(PAGE, "python") if not mark and "load_from" in code]
    new = {line.partition(" = ")[0]: line for line in real.splitlines()}
    lines = FILES["finetune.py"].splitlines()
    keys = [line.partition(" = ")[0] for line in lines]
    assert set(new) <= set(keys)
    Path("finetune_coco.py").write_text(
        "\n".join(new.get(key, line) for key, line in zip(keys, lines, strict=True))
    )
    config: Config = load_config("finetune_coco.py")
    assert (
        config.train_cfg.type == "OpenVocabTrainLoop" and config.optim_wrapper.optimizer.lr == 1e-5
    )
    with torch.device("meta"):
        model = build_model(config)
    assert len(model.vocabulary) == 88
    assert config.train_pipeline[3].type == "LargeScaleJitter"


def test_semantic_files_become_panoptic_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    labels = np.repeat(np.array([0, 255, 1, 0], np.uint8), [5, 4, 20, 3])[:, None]
    labels = np.tile(labels, (1, 24))
    for folder in ("labels", "images"):
        Path("data/mine", folder).mkdir(parents=True)
    for name in "abcdef":
        Image.fromarray(labels).save(f"data/mine/labels/{name}.png")
        Image.fromarray(np.stack([labels] * 3, axis=-1)).save(f"data/mine/images/{name}.jpg")
    Path("data/mine/names.txt").write_text("thing: car\nstuff: road | road-surface\n")
    for name in ("semantic_to_panoptic.py", "prepare.py"):
        exec(compile(FILES[name], name, "exec"), {})
    data = PanopticDataset(
        vocabulary="names.txt",
        data_root="data/mine/",
        ann_file="train.json",
        data_prefix=dict(img="images/", seg="panoptic/"),
        pipeline=[],
    )
    assert len(data) == 4
    found = [(s["id"], s["label"], s["is_thing"]) for s in data[0]["segments_info"]]
    assert found == [(1, 0, True), (2, 1, False)]
    stored = np.asarray(Image.open("data/mine/panoptic/b.png")).astype(int)
    ids = stored @ (1, 256, 65536)
    assert (ids == np.where(labels == 255, 0, labels + 1.0)).all()
