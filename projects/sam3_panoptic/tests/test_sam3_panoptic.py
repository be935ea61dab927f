"""The project's configs: one label a pixel from SAM 3's overlapping masks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from odise_mm.apis import OpenVocabInferencer
from odise_mm.config.building import build_model
from odise_mm.config.finding import load_config
from odise_mm.errors import CheckpointError
from odise_mm.models import Sam3Proposals

ROOT = Path(__file__).resolve().parents[3]
CONFIGS = ROOT / "projects/sam3_panoptic/configs"


@pytest.fixture(scope="module")
def inferencer() -> OpenVocabInferencer:
    made = OpenVocabInferencer(str(CONFIGS / "sam3_tiny.py"), device="cpu")
    # Otherwise all masks of a random model cover nearly the same pixels.
    made.model.proposals.model.mask_decoder.instance_projection.weight.data.mul_(1e4)
    return made


def test_every_pixel_has_at_most_one_segment(
    inferencer: OpenVocabInferencer, tmp_path: Path
) -> None:
    photo = ROOT / "demo/images/pagoda.jpg"
    (result,) = inferencer(
        photo, texts="pagoda, temple; person", stuff_texts="sky", out_dir=tmp_path
    )
    image = torch.zeros(3, *result.panoptic.shape)
    names = inferencer.make_vocabulary("pagoda, temple; person", "sky")
    assert result.segments and result.random_weights
    assert {segment.name for segment in result.segments} <= set(names.names)
    areas = {segment.id: segment.area for segment in result.segments}
    ids, counts = np.unique(result.panoptic[result.panoptic > 0], return_counts=True)
    assert dict(zip(ids.tolist(), counts.tolist(), strict=True)) == areas
    masks = [result.mask(segment) for segment in result.segments]
    assert (np.sum(masks, axis=0) <= 1).all()
    # What SAM 3 gives overlaps.
    found = inferencer.model.proposals.propose(image, None, names)
    assert ((found.masks > 0).sum(0) > 1).any()
    assert (tmp_path / "panoptic.json").is_file()


def test_the_full_size_config_has_no_trained_part_and_no_clip() -> None:
    with torch.device("meta"):
        model = build_model(load_config(CONFIGS / "sam3_panoptic.py"))
    assert isinstance(model.proposals, Sam3Proposals) and not hasattr(model, "clip")
    assert not model.state_dict() and len(model.classifiers) == 0


def test_weights_are_asked_for_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without network access, the message names the model and what to do."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(CheckpointError, match=r"facebook/sam3 is neither .*hf auth login"):
        OpenVocabInferencer(str(CONFIGS / "sam3_panoptic.py"), device="cpu")
