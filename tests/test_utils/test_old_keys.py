"""Renamed keys and arguments still work, with a warning."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import odise_mm.models
import odise_mm.visualization
from odise_mm import OpenVocabInferencer
from odise_mm.benchmarks.tables import find_reports
from odise_mm.config.changing import change_config
from odise_mm.config.finding import load_config
from odise_mm.models import ClassPrediction, OpenVocabSegmentor
from odise_mm.utils.old_keys import rename_recorded_keys, renamed_arguments
from odise_mm.visualization import class_colors

ROOT = Path(__file__).resolve().parents[2]


def test_old_key_changes_an_inherited_config(tmp_path: Path) -> None:
    config = tmp_path / "mine.py"
    base = ROOT / "configs/odise/odise_coco_label.py"
    config.write_text(f"_base_ = [{str(base)!r}]\nmodel = dict(fusion=dict(alpha=0.9))\n")
    with pytest.warns(FutureWarning, match=r"model.fusion has been renamed to model.ensemble"):
        ensemble = load_config(config).model.ensemble
    assert ensemble == dict(type="GeometricEnsemble", alpha=0.9, beta=0.7)


def test_old_key_on_the_command_line() -> None:
    cfg = load_config("odise_coco_label")
    with pytest.warns(FutureWarning):
        change_config(cfg, {"model.fusion.beta": 0.2})
    assert cfg.model.ensemble.beta == 0.2 and "fusion" not in cfg.model


def test_old_argument_of_the_segmentor() -> None:
    model = dict(load_config("odise_tiny").model)
    del model["type"]
    with pytest.warns(FutureWarning, match="fusion has been renamed to ensemble"):
        built = OpenVocabSegmentor(fusion=model.pop("ensemble"), **model)
    assert type(built.ensemble).__name__ == "GeometricEnsemble"


def test_old_argument_of_a_function() -> None:
    @renamed_arguments(colour="color")
    def draw(color: str = "red") -> str:
        """Draw."""
        return color

    assert draw("blue") == draw(color="blue") == "blue" and draw.__doc__ == "Draw."
    with pytest.warns(FutureWarning, match="argument colour has been renamed to color"):
        assert draw(colour="green") == "green"
    with pytest.raises(TypeError, match="unexpected"):
        draw(colours="green")


def test_old_argument_of_the_inferencer() -> None:
    inferencer = OpenVocabInferencer("odise_tiny", device="cpu")
    with pytest.warns(FutureWarning, match="return_pictures has been renamed to return_vis"):
        (result,) = inferencer(str(ROOT / "demo/images/toy_scene.jpg"), return_pictures=True)
    assert result.visualization is not None


def test_old_keys_in_json_files() -> None:
    content = {
        "made_up_weights": True,
        "opinions": ["OpenVocabClassifier"],
        "model": {"fusion": {"alpha": 0.1}},
    }
    assert rename_recorded_keys(content) == {
        "random_weights": True,
        "classifiers": ["OpenVocabClassifier"],
        "model": {"ensemble": {"alpha": 0.1}},
    }
    assert rename_recorded_keys([1]) == [1]


def test_reports_of_an_earlier_release_are_found(tmp_path: Path) -> None:
    report = dict(sets={}, config=dict(file="a.py"), checkpoint=None, made_up_weights=False)
    (tmp_path / "results.json").write_text(json.dumps(report))
    assert [content["random_weights"] for _, content in find_reports([tmp_path])] == [False]


def test_old_names_of_classes_and_functions() -> None:
    with pytest.warns(FutureWarning, match="Opinion has been renamed to ClassPrediction"):
        assert odise_mm.models.Opinion is ClassPrediction
    with pytest.warns(FutureWarning):
        assert odise_mm.visualization.class_colours is class_colors
    with pytest.raises(AttributeError, match="no attribute 'Opinions'"):
        _ = odise_mm.models.Opinions
