"""Result files cannot select code to run; configs run only if the user names them."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from odise_mm.analysis.ensemble_sweep import read_config
from odise_mm.analysis.predictions import PredictionFolder
from odise_mm.benchmarks.sets import make_benchmark_sets
from odise_mm.config.finding import load_config, own_config_folders
from odise_mm.config.untrusted import check_imports, check_types
from odise_mm.datasets.wrappers import ConcatDataset  # noqa: F401  (registers it)
from odise_mm.engine import OpenVocabRunner
from odise_mm.errors import ConfigError
from odise_mm.evaluation.base import DatasetMetric
from odise_mm.registry import DATASETS, METRICS
from tests.support.small_training import config
from tools.analysis_tools import ablation_table

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def trap(tmp_path: Path) -> tuple[str, Path]:
    """Return Python code that creates a file when it runs, and that file."""
    mark = tmp_path / "it_ran"
    return f"open({str(mark)!r}, 'w').close()\nmodel = dict()\n", mark


# --- tables ---------------------------------------------------------------------------------------


def results(file: str) -> dict[str, Any]:
    """Return results as written by tools/test.py, for any name of the config."""
    return dict(
        random_weights=False,
        config=dict(file=file, model={}, test_pipeline=[], options={}),
        checkpoint=dict(file="iter_92188.pth"),
        started="2030-01-01",
        sets=dict(coco=dict(metrics={"panoptic/PQ": 9.0}, images=5000, limit=None)),
    )


@pytest.mark.parametrize("where", ["ablation/steps/mine.py", "ablation/steps/../steps/t0.py"])
def test_tables_do_not_run_configs_named_in_results(
    where: str, tmp_path: Path, trap: tuple[str, Path]
) -> None:
    text, mark = trap
    file = tmp_path / where
    (tmp_path / "ablation/steps").mkdir(parents=True)
    file.write_text(text)
    (tmp_path / "results.json").write_text(json.dumps(results(str(file))))
    out = ["--out", str(tmp_path / "out"), "--studies", "steps"]
    assert ablation_table.main([str(tmp_path / "results.json"), *out]) == 0
    assert not mark.exists()
    table = (tmp_path / "out/ablations.md").read_text()
    assert "9.0 / not run / not run *" in table
    if where.endswith("mine.py"):
        assert "this row has no known config: name it with --configs: mine on COCO" in table


def test_tables_run_configs_named_by_the_user(tmp_path: Path) -> None:
    file = tmp_path / "steps/mine.py"
    file.parent.mkdir()
    file.write_text("model = dict(type='X')\ntest_pipeline = []\ntrain_cfg = dict(max_iters=10)\n")
    content = results("/elsewhere/ablation/steps/mine.py")
    content["config"]["model"] = dict(type="X")
    (tmp_path / "results.json").write_text(json.dumps(content))
    arguments = [str(tmp_path / "results.json"), "--out", str(tmp_path / "out")]
    assert ablation_table.main([*arguments, "--configs", str(file)]) == 0
    assert "9.0 / not run / not run |" in (tmp_path / "out/ablations.md").read_text()
    with pytest.raises(SystemExit):
        ablation_table.main([*arguments, "--configs", str(tmp_path / "results.json")])


# --- saved predictions ----------------------------------------------------------------------------


def predictions(folder: Path, **changes: Any) -> PredictionFolder:
    """Return a folder whose config is changed at dotted keys."""
    cfg: dict[str, Any] = dict(
        custom_imports=dict(imports=["odise_mm.models"]),
        model=dict(ensemble=dict(type="GeometricEnsemble", alpha=0.3, beta=0.7)),
        test_dataloader=dict(
            dataset=dict(type="PanopticDataset", pipeline=[dict(type="mmdet.Pad")])
        ),
        test_evaluator=[dict(type="PanopticQuality")],
    )
    for place, value in changes.items():
        *parents, last = place.split("__")
        functools.reduce(lambda node, key: node[key], parents, cfg)[last] = value
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(cfg))
    return PredictionFolder(folder)


CALLABLE = dict(type="pathlib.Path.touch")


@pytest.mark.parametrize(
    "changes",
    [
        dict(custom_imports=dict(imports=["antigravity_of_mine"], allow_failed_imports=True)),
        dict(custom_imports=dict(imports="antigravity_of_mine")),
        dict(custom_imports=dict(imports=[["odise_mm"]])),
        dict(custom_imports=dict(imports=["odise_mm_of_somebody"])),
        dict(model__ensemble=dict(CALLABLE)),
        dict(model__ensemble=dict(type="FrozenCLIP", model="x", weights="y")),
        dict(model__ensemble__type=["GeometricEnsemble"]),
        dict(test_dataloader__dataset=dict(CALLABLE)),
        dict(test_dataloader__dataset=dict(type="ConcatDataset", datasets=[CALLABLE])),
        dict(test_dataloader__dataset=dict(type="PanopticDataset", metainfo=dict(a=[CALLABLE]))),
        dict(test_evaluator=[dict(type="PanopticQuality"), dict(CALLABLE)]),
        dict(test_evaluator=[dict(type="mmengine.DumpResults", out_file_path="x.pkl")]),
        dict(test_evaluator=dict(type="DumpResults", out_file_path="x.pkl")),
    ],
)
def test_saved_predictions_cannot_select_code(changes: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config\.json"):
        read_config(predictions(tmp_path / "x", **changes))


def test_saved_predictions_of_this_package_are_read(tmp_path: Path) -> None:
    cfg = read_config(predictions(tmp_path / "x"))
    assert cfg.model.ensemble.type == "GeometricEnsemble"
    wrapped = dict(type="mmengine.ConcatDataset", datasets=[dict(type="PanopticDataset")] * 2)
    read_config(predictions(tmp_path / "y", test_dataloader__dataset=wrapped))


def test_custom_components_must_be_named_by_the_user(tmp_path: Path) -> None:
    module = "tests.support.own_ensemble"
    changes = dict(custom_imports=dict(imports=[module]), model__ensemble=dict(type="OwnEnsemble"))
    folder = predictions(tmp_path / "x", **changes)
    with pytest.raises(ConfigError, match=rf"untrusted module '{module}'.*--custom-imports"):
        read_config(folder)
    assert read_config(folder, [module]).model.ensemble.type == "OwnEnsemble"
    with pytest.raises(ConfigError, match="--custom-imports gone_module: cannot be imported"):
        read_config(folder, [module, "gone_module"])


def test_known_components_match_full_names() -> None:
    check_types(dict(type="odise_mm.PanopticDataset"), DATASETS, "x.json")
    check_imports(dict(imports=["odise_mm", "odise_mm.models"]), (), "x.json")
    check_imports(dict(imports=["mine.parts"]), ["mine"], "x.json")
    for name in ("odise_mm.datasets.PanopticDataset", "x.PanopticDataset", "", None):
        with pytest.raises(ConfigError, match="x.json"):
            check_types(dict(type=name), DATASETS, "x.json")
    with pytest.raises(ConfigError, match="x.json"):
        check_imports(dict(imports=["mines"]), ["mine"], "x.json")
    with pytest.raises(
        ConfigError, match="is not a subclass of DatasetMetric|is not a metric of this package"
    ):
        check_types(dict(type="CountImages"), METRICS, "x.json", ["tests"], DatasetMetric)


# --- checkpoints ----------------------------------------------------------------------------------


def test_resuming_does_not_run_code_of_a_checkpoint(tmp_path: Path, trap: tuple[str, Path]) -> None:
    """mmengine runs ``meta["config"]`` when it resumes; this package's checkpoints lack it."""
    text, mark = trap
    OpenVocabRunner.from_cfg(config(tmp_path / "a", train_cfg__max_iters=3)).train()
    path = tmp_path / "a/iter_3.pth"
    state = torch.load(path, weights_only=False)
    state["meta"]["config"] = state["meta"]["cfg"] = text
    torch.save(state, path)
    runner = OpenVocabRunner.from_cfg(
        config(tmp_path / "b", resume=True, load_from=str(path), train_cfg__max_iters=4)
    )
    runner.train()
    assert runner.iter == 4 and not mark.exists()


# --- names of configs -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["odise_tiny", "toy/odise_tiny", "odise_tiny.py"])
def test_the_working_directory_does_not_replace_our_configs(
    name: str, tmp_path: Path, trap: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    text, mark = trap
    file = tmp_path / "configs/toy/odise_tiny.py"
    file.parent.mkdir(parents=True)
    file.write_text(text)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        load_config(name)
    own = own_config_folders()[0] / "toy/odise_tiny.py"
    assert str(file) in str(caught.value) and str(own) in str(caught.value)
    assert "give the path" in str(caught.value) and not mark.exists()
    assert "backbone" in load_config(own).model
    load_config("configs/toy/odise_tiny.py")
    assert mark.exists(), "a path is what the user meant"


def test_config_names_only_in_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/my_own.py").write_text("model = dict(type='X')\n")
    monkeypatch.chdir(tmp_path)
    assert load_config("my_own").model.type == "X"
    monkeypatch.chdir(ROOT)
    assert load_config("odise_tiny").model  # the clone's configs are the package's


def test_test_sets_of_the_working_directory_do_not_replace_ours(
    tmp_path: Path, trap: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    text, mark = trap
    folder = tmp_path / "configs/_base_/datasets"
    folder.mkdir(parents=True)
    for name in ("voc21", "mine"):
        (folder / f"{name}.py").write_text(
            text + "test_dataloader = test_evaluator = test_cfg = {}"
        )
    monkeypatch.chdir(tmp_path)
    cfg = load_config("odise_label_voc20")
    (found,) = make_benchmark_sets(cfg)
    assert found.name == "voc20"
    with pytest.raises(ConfigError, match="test set 'voc21' is ambiguous: .* and the package's"):
        make_benchmark_sets(cfg, ["voc21"])
    assert not mark.exists()
    assert make_benchmark_sets(cfg, ["mine"])[0].name == "mine"
    assert make_benchmark_sets(cfg, [str(folder / "voc21.py")])[0].name == "voc21"
    assert mark.exists()
