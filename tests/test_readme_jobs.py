"""README's table "I want to": the commands and lines of Python in its rows run, in their order.

To add a row, write its commands (`odise-mm ...`, `python FILE ...`) or lines of Python into the
second column, with `<br>` between them. If they take long, add options that shorten them here, and
add the files that they write to WRITTEN.
"""

from __future__ import annotations

import shlex
import sys
from importlib import import_module
from pathlib import Path
from typing import NamedTuple, TextIO

import pytest

from odise_mm.benchmarks import studies
from odise_mm.serving import server
from tests.test_docs import ROOT, parse, prose, table

SHORTER = {
    "generate.py": "--number 8 2 --workers 1",
    "clip.py": "--seconds 0.2",
    "odise-mm train finetune.py": "--max-iters 1 --batch-size 2",
    "odise-mm train odise_toy_label": "--cfg-options train_cfg.max_iters=1 "
    "train_dataloader.batch_size=2 default_hooks.logger.interval=1 "
    "default_hooks.checkpoint.interval=1",
    "odise-mm serve": "--port 0",
    # The whole command takes a minute, and needs the ONNX packages; tests/test_export runs it.
    "odise-mm export": "--only-names",
    "run_study.py": "--cfg-options train_cfg.max_iters=1 train_dataloader.batch_size=1",
}
"""Options that shorten a command, by a part of the command."""

WRITTEN = {
    "segment images": ["out/vis/toy_scene.jpg", "out/coco/instances.json", "out/masks/masks.json"],
    "export a model": ["exported/names.npz", "exported/names.json"],
    "know why": ["explained.png"],
    "label a folder": ["labels/index.jsonl", "labels/shards/000000/coco/instances.json"],
    "teach it": ["examples.safetensors", "out/taught/panoptic.json"],
    "segment very": ["out/large/panoptic.json"],
    "segment videos": ["out.mp4", "out.json"],
    "train on my own": ["finetune.py", "work_dirs/finetune/iter_1.pth"],
    "train on COCO": ["work_dirs/odise_toy_label/iter_1.pth", "out/curves.csv"],
    "measure PQ": ["out/test.json", "out/scores"],
    "run an ablation": ["work_dirs/toy/ablation/captioner/empty/shown", "ablations/ablations.csv"],
    "compare the features": ["features.png"],
}
"""Files that the commands of a row write, by the beginning of the row."""


class Job(NamedTuple):
    """A row of the table."""

    goal: str
    lines: list[str]
    """Commands, or lines of Python."""


def jobs() -> list[Job]:
    rows = [line.strip("| ").split(" | ") for line in table("jobs").splitlines()[2:]]
    spans = [(row[0], row[1].split("<br>") if "`" in row[1] else []) for row in rows]
    return [Job(goal, [span.strip().strip("`") for span in cell]) for goal, cell in spans]


def run(line: str) -> None:
    """Run a command in this process; a new process would need seconds to import torch."""
    for part, more in SHORTER.items():
        line += f" {more}" if part in line else ""
    program, first, *arguments = shlex.split(line)
    if program == "odise-mm":
        status = import_module(f"odise_mm.cli.{first}").main(arguments)
    else:
        assert program == "python" and parse(first, arguments)
        status = sys.modules[f"command_{Path(first).stem}"].main(arguments)
    assert not status, line


def run_child(command: list[str], log: TextIO) -> int:
    """Run a program of a study in this process, too."""
    _, tool, *arguments = command
    run(shlex.join(["python", f"tools/{Path(tool).name}", *arguments]))
    return 0


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder that looks like the repository, with drawn scenes in data/."""
    folder = tmp_path_factory.mktemp("jobs")
    for name in ("configs", "demo", "odise_mm", "projects", "tools"):
        (folder / name).symlink_to(ROOT / name)
    (draw,) = [span for span in prose(ROOT / "README.md").split("`") if "generate.py" in span]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run(draw)
        mine, drawn = Path("data/mine"), Path("data/toy_world")
        mine.mkdir()
        (mine / "images").symlink_to((drawn / "train2017").resolve())
        file = drawn / "annotations/instances_train2017.json"
        (mine / "instances.json").symlink_to(file.resolve())
    return folder


@pytest.mark.parametrize("job", [job for job in jobs() if job.lines], ids=lambda job: job.goal[:30])
def test_the_job_is_done(job: Job, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workplace)
    monkeypatch.syspath_prepend(workplace)
    monkeypatch.setattr(studies, "run_child", run_child)
    served: list = []
    monkeypatch.setattr(server, "serve", lambda app, *_: served.append(app))
    commands = [line for line in job.lines if line.startswith(("odise-mm ", "python "))]
    assert len(job.lines) <= 3 and commands in ([], job.lines)
    for line in commands:
        if line.startswith("odise-mm serve"):
            module, extra = ("fastapi", "api") if "--api" in line else ("gradio", "web")
            pytest.importorskip(module, reason=f"pip install 'odise_mm[{extra}]'")
        run(line)
    assert len(served) == sum(line.startswith("odise-mm serve") for line in commands)
    if not commands:
        names: dict = {}
        exec("\n".join(job.lines), names)
        assert {segment.name for segment in names["result"].segments} == {"red moon", "white box"}
        assert all(mask.shape == (128, 128) and mask.any() for mask in names["masks"])
    expected = [files for start, files in WRITTEN.items() if job.goal.startswith(start)]
    for file in sum(expected, []):
        assert (workplace / file).exists(), file


def test_every_name_here_is_used() -> None:
    found = jobs()
    lines = [line for job in found for line in job.lines]
    assert len(found) > 10 and len(lines) > 10
    for start in WRITTEN:
        assert sum(job.goal.startswith(start) for job in found) == 1, start
    for part in SHORTER:
        assert part == "generate.py" or any(part in line for line in lines), part
