"""docs/finetune.md in a short form: its commands run, in its order."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from odise_mm.config.building import build_model
from odise_mm.config.finding import load_config
from tests.support.forked_commands import run_commands
from tests.test_docs import ROOT, blocks, commands

PAGE = ROOT / "docs" / "finetune.md"
ITERATIONS = 4
# Options that shorten a command, by a part of the command.
SHORTER = {
    "generate.py": "--number 15",
    "odise-mm train": f"--max-iters {ITERATIONS} --batch-size 2 --cfg-options "
    f"train_cfg.val_interval={ITERATIONS}",
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
    """Return the command without the installed program."""
    return ["python", "-m", "odise_mm.cli", *words[1:]] if words[0] == "odise-mm" else words


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder that looks like the repository, in which all commands of the page ran."""
    folder = tmp_path_factory.mktemp("finetune")
    for name in ("configs", "demo", "odise_mm", "projects", "tools"):
        (folder / name).symlink_to(ROOT / name)
    run_commands([command(shortened(words)) for words in commands(PAGE)], folder)
    return folder


def test_every_option_that_shortens_is_used() -> None:
    lines = [shlex.join(words) for words in commands(PAGE)]
    assert all(any(part in line for line in lines) for part in SHORTER)


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
    """The line for real images replaces that of the config; nothing is downloaded."""
    monkeypatch.chdir(walked)
    (base,) = [code for _, code in blocks(PAGE, "python")]
    lines = Path("finetune.py").read_text().splitlines()
    assert lines[0].startswith("_base_ = ") and base.startswith("_base_ = ")
    Path("finetune_coco.py").write_text("\n".join([base.strip(), *lines[1:]]))
    config: Config = load_config("finetune_coco.py")
    assert config.train_cfg.type == "OpenVocabTrainLoop"
    assert config.optim_wrapper.optimizer.lr == 2e-5
    with torch.device("meta"):
        model = build_model(config)
    assert len(model.vocabulary) == 88
    assert config.train_pipeline[3].type == "LargeScaleJitter"
