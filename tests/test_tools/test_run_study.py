"""Studies continue after interruptions and failures. Fakes replace train.py and test.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tools import run_study

TRAIN = """
import sys
from pathlib import Path
config, work = Path(sys.argv[1]), Path(sys.argv[sys.argv.index("--work-dir") + 1])
assert "--resume" in sys.argv
if config.stem == "broken":
    sys.exit("error: this one is broken")
(work / "iter_2.pth").touch()
(work / "last_checkpoint").write_text(str(work / "iter_2.pth"))
with (work / "calls.txt").open("a") as stream:
    print("train", *sys.argv[2:], file=stream)
"""
TEST = """
import json, sys
from pathlib import Path
out = Path(sys.argv[sys.argv.index("--out") + 1])
with (out.parent / "calls.txt").open("a") as stream:
    print("test", *sys.argv[2:], file=stream)
sets = sys.argv[sys.argv.index("--datasets") + 1 :][:2] if "--datasets" in sys.argv else ["own"]
out.write_text(json.dumps(dict(arguments=sys.argv[1:], sets=dict.fromkeys(sets), not_done=[])))
"""


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder of three configs, in a repository whose fake tools only record their arguments."""
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools/train.py").write_text(TRAIN)
    (tmp_path / "tools/test.py").write_text(TEST)
    folder = tmp_path / "configs/ablation/steps"
    folder.mkdir(parents=True)
    for name in ("broken", "t0", "t100"):
        (folder / f"{name}.py").write_text(f"steps = {name!r}")
    monkeypatch.setattr(run_study, "TOOLS", tmp_path / "tools")
    monkeypatch.chdir(tmp_path)
    return folder


def test_all_are_run_and_the_broken_one_is_named(
    study: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    options = [
        "--cfg-options",
        "a=1",
        "train_cfg.max_iters=2",
        "--datasets",
        "coco",
        "ade20k",
        "--precision",
        "bf16",
    ]
    assert run_study.main([str(study), *options]) == 1
    shown = " ".join(capfd.readouterr().out.split())
    assert "ablation/steps/broken failed: error: this one is broken" in shown
    assert "[3/3] ablation/steps/t100: results in work_dirs/ablation/steps/t100" in shown
    work = study.parents[2] / "work_dirs/ablation/steps/t0"
    called = json.loads((work / "result.json").read_text())["arguments"]
    assert called[:2] == [str(study / "t0.py"), "work_dirs/ablation/steps/t0/iter_2.pth"]
    train, test = (work / "calls.txt").read_text().splitlines()
    assert "--datasets" not in train and "--datasets coco ade20k" in test
    assert "--cfg-options a=1 train_cfg.max_iters=2" in train
    assert "--cfg-options a=1 --precision bf16" in test
    assert "--precision bf16" in train


def test_finished_configs_are_skipped(study: Path, capfd: pytest.CaptureFixture[str]) -> None:
    configs = [str(study / "t0.py"), str(study / "t100.py")]
    assert run_study.main(configs) == 0
    (study.parents[2] / "work_dirs/ablation/steps/t100/result.json").unlink()
    assert run_study.main(configs) == 0
    calls = study.parents[2] / "work_dirs/ablation/steps"
    assert len((calls / "t0/calls.txt").read_text().splitlines()) == 2
    assert len((calls / "t100/calls.txt").read_text().splitlines()) == 4
    assert "[1/2] ablation/steps/t0: already done" in capfd.readouterr().out


@pytest.mark.parametrize("left", ["not_done", "other set", "damaged"])
def test_interrupted_test_is_run_again(study: Path, left: str) -> None:
    arguments = [str(study / "t0.py"), "--datasets", "coco", "ade20k"]
    assert run_study.main(arguments) == 0
    work = study.parents[2] / "work_dirs/ablation/steps/t0"
    report = json.loads((work / "result.json").read_text())
    if left == "not_done":  # as tools/test.py writes it after the first set
        report |= dict(sets=dict(coco={}), not_done=["ade20k"])
    if left == "other set":
        report |= dict(sets=dict(coco={}))
    text = json.dumps(report)
    (work / "result.json").write_text(text[:-9] if left == "damaged" else text)
    for _ in range(2):  # the second time, all is done
        assert run_study.main(arguments) == 0
        calls = [line.split()[0] for line in (work / "calls.txt").read_text().splitlines()]
        assert calls == ["train", "test", "train", "test"]


def test_equal_training_runs_once(study: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (study / "same.py").write_text("steps = 't0'\ntest_dataloader = dict(batch_size=2)")
    assert run_study.main([str(study / "t0.py"), str(study / "same.py")]) == 0
    assert "shares the training run work_dirs/ablation/steps/t0" in " ".join(
        capfd.readouterr().out.split()
    )
    work = study.parents[2] / "work_dirs/ablation/steps/same"
    assert [line.split()[0] for line in (work / "calls.txt").read_text().splitlines()] == ["test"]
    called = json.loads((work / "result.json").read_text())["arguments"]
    assert called[:2] == [str(study / "same.py"), "work_dirs/ablation/steps/t0/iter_2.pth"]


def test_shared_training_run_that_failed(study: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (study / "same.py").write_text("steps = 'broken'")
    assert run_study.main([str(study / "broken.py"), str(study / "same.py")]) == 1
    shown = " ".join(capfd.readouterr().out.split())
    assert "the shared training run work_dirs/ablation/steps/broken has failed" in shown


def test_a_folder_without_configs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run_study.main([str(tmp_path)])
    assert "neither a config nor a folder with configs" in capsys.readouterr().err


def test_control_characters_in_names_are_escaped(
    study: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = study.parent / "odd"
    folder.mkdir()
    (study / "broken.py").rename(folder / "broken.py")
    root = Path("work\nnotice: forged")
    assert run_study.main([str(folder), "--work-root", str(root)]) == 1
    printed = capfd.readouterr()
    for line in (printed.out + printed.err).splitlines():
        assert not line.startswith("notice")
    assert "notice: forged" in printed.out + printed.err
