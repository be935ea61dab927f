"""Every row of the representation study runs, with a small random network as backbone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from mmdet.structures import DetDataSample

from odise_mm.config.building import build_model
from odise_mm.vocabulary import Vocabulary
from tests.support.parts import CONFIGS, load_config
from tests.support.toy_representations import REPRESENTATIONS, load

SHIPPED = {path.stem for path in (CONFIGS / "toy/ablation/representation").glob("*.py")}
NAMES = Vocabulary.parse("red ball; box", "sky")


def test_every_row_has_a_stand_in_or_a_trained_network() -> None:
    rows = {path.stem for path in (CONFIGS / "ablation/representation").glob("*.py")}
    assert REPRESENTATIONS.keys() | SHIPPED - {"random_diffusion"} == rows
    assert not REPRESENTATIONS.keys() & SHIPPED


@pytest.mark.parametrize("name", REPRESENTATIONS)
def test_the_row_runs(name: str, tmp_path: Path) -> None:
    real = load_config(f"ablation/representation/{name}.py").model
    cfg = load(name, tmp_path)
    assert cfg.model.backbone.type == real.backbone.type
    assert (cfg.model.get("captioner") is None) == (real.get("captioner") is None)
    model = build_model(cfg).eval()
    assert sum(p.requires_grad for p in model.parameters()) == len(model.state_dict())
    image = torch.randint(0, 256, (3, 128, 128), dtype=torch.uint8)
    sample = DetDataSample(metainfo=dict(img_shape=(128, 128), ori_shape=(128, 128)))
    with torch.no_grad():
        (result,) = model.test_step(dict(inputs=[image], data_samples=[sample]))
    assert result.pred_panoptic_seg.sem_seg.shape == (1, 128, 128)
