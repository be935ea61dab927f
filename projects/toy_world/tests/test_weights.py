"""The shipped weights reach the scores of their model card."""

from __future__ import annotations

import json

import pytest
from safetensors import safe_open

from projects.toy_world.score import SCENES, WEIGHTS, Scores, score

MEGABYTES = {"[cd]*/**": 15, "**": 16}  # upper limits: pre-trained weights, all weights
# Other processors sum in another order, so a thing near a threshold may change. One of the 54 novel
# things is worth 1.9 points of accuracy, and up to 2 points of a mean over 27 names.
TOLERANCE = {"clip": 2.0, "autoencoder": 0.02, "unet": 0.0001, "odise": 4.0}
RECORDED = json.loads((WEIGHTS / "scores.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def scores() -> Scores:
    return score(WEIGHTS, SCENES)


def test_recorded_scores_cover_all_weights() -> None:
    files = {file.stem for file in WEIGHTS.glob("odise_*.safetensors")}
    assert RECORDED.keys() == {"scenes", "clip", "autoencoder", "unet", *files}
    assert RECORDED["scenes"] == SCENES


@pytest.mark.parametrize("part", sorted(RECORDED.keys() - {"scenes"}))
def test_scores_equal_the_model_card(part: str, scores: Scores) -> None:
    assert scores[part] == pytest.approx(RECORDED[part], abs=TOLERANCE[part.split("_")[0]])


def test_captions_improve_the_noise_prediction(scores: Scores) -> None:
    assert scores["unet"]["val"] < scores["unet"]["val_unconditional"]


def test_files_are_small_and_in_half_precision() -> None:
    for folders, most in MEGABYTES.items():
        files = list(WEIGHTS.glob(f"{folders}/*.safetensors"))
        assert 0.8 * most < sum(file.stat().st_size for file in files) / 1e6 < most
    for file in files:
        with safe_open(file, "pt") as content:
            kinds = {content.get_slice(key).get_dtype() for key in content.keys()}  # noqa: SIM118
        assert kinds <= {"F16", "I64"} and "F16" in kinds, file
