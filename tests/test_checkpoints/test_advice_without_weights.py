"""Advice for configs without published weights."""

from __future__ import annotations

import pytest

from odise_mm.checkpoints.published_weights import without_weights
from odise_mm.config.finding import load_config


@pytest.mark.parametrize(
    ("name", "trains"), [("maskclippp_convnext_l", False), ("ovrcoat_coco", True)]
)
def test_training_is_advised_only_if_the_config_trains(name: str, trains: bool) -> None:
    assert (f"`odise-mm train {name}`" in without_weights(load_config(name))) == trains
