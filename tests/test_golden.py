"""Tests of the random weights and recordings that other tests rely on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.support import golden

FILES = {"sd": "sd_v1", "clip": "clip", "odise_label": "odise_label"}


def check_weights(size: str, recorded: dict[str, np.ndarray]) -> int:
    count = 0
    for name, first8 in recorded.items():
        group, _, key = name.partition("/")
        if not key or group.endswith("_sum"):
            continue
        file = FILES.get(group, group)
        value = golden.parameter(key, golden.shapes(size, file)[key], size)
        np.testing.assert_array_equal(value.ravel()[:8], first8, err_msg=name)
        total = recorded[f"{group}_sum/{key}"]
        np.testing.assert_allclose(value.astype(np.float64).sum(), total, atol=1e-6, err_msg=name)
        count += 1
    return count


def test_tiny_weights_equal_recorded_values() -> None:
    assert check_weights("tiny", golden.weights_check("tiny")) == 72


def test_full_weights_equal_recorded_values(golden_folder: Path) -> None:
    assert check_weights("full", golden.weights_check("full")) == 42


def test_recorded_noise_equals_torch() -> None:
    noise = torch.randn(1, 4, 64, 64, generator=torch.Generator().manual_seed(42))
    np.testing.assert_array_equal(noise.numpy(), golden.weights_check("tiny")["shared_noise"])


def test_parameter_counts_of_the_published_files() -> None:
    counts = {
        file: sum(int(np.prod(s)) for s in golden.shapes("full", file).values())
        for file in ("sd_v1", "clip", "odise_label", "odise_caption")
    }
    assert counts == {
        "sd_v1": 859_520_964 + 83_653_863 + 123_060_480,
        "clip": 427_944_193,
        "odise_label": 28_067_009,
        "odise_caption": 28_066_755,
    }


def test_published_formats(tiny_weights: Path, tmp_path: Path) -> None:
    sd = torch.load(tiny_weights / "sd_v1.ckpt", weights_only=True, mmap=True)["state_dict"]
    position_ids = sd["cond_stage_model.transformer.text_model.embeddings.position_ids"]
    assert position_ids.dtype == torch.int64 and position_ids.shape == (1, 77)
    buffers = golden.key_lists()["tiny/sd_v1_buffers_in_original_ckpt_not_covered_by_rule"]
    assert all(list(sd[k].shape) == shape for k, shape in buffers.items())
    assert sd["alphas_cumprod"][0] == pytest.approx(1 - 0.00085)
    model = torch.load(tiny_weights / "odise_label.pth", weights_only=True, mmap=True)["model"]
    assert model["criterion.empty_weight"].shape == (134,)

    streamed = load_file(golden.write_sd(tmp_path / "sd.safetensors", "tiny"))
    assert streamed.keys() == sd.keys()
    assert all(torch.equal(streamed[k], sd[k]) for k in sd)


@pytest.mark.parametrize("name", golden.CASES)
def test_subsampling_of_recordings(name: str, golden_folder: Path) -> None:
    thin, full = golden.load_case(name), golden.load_case(name, golden_folder)
    for stage in thin.stages:
        if thin[stage].dtype.kind == "U":
            assert str(thin[stage]) == str(full[stage])
            continue
        ratio = [
            a // b
            for a, b in zip(thin.index[stage]["steps"], full.index[stage]["steps"], strict=True)
        ]
        expected = full[stage][tuple(slice(None, None, r) for r in ratio)]
        np.testing.assert_array_equal(thin[stage], expected)


def test_comparison_finds_errors() -> None:
    case = golden.load_case("tiny_caption_500x690")
    assert case.image.shape == (500, 690, 3) and case.out_hw == (480, 662)
    assert len(case.segments()) == 5 and len(case.segments("segments_info_ot03")) == 8

    exact = torch.zeros(256, 128, 176)
    exact[::5, ::8, ::8] = torch.from_numpy(case["mask_features"][0])
    assert case.compare("mask_features", exact) == 0
    exact[250, 120, 168] += 0.01 * float(case["mask_features"].std())
    assert case.error("mask_features", exact) == pytest.approx(0.01, rel=1e-3)
    with pytest.raises(AssertionError, match="mask_features: 0.01 > 0.001"):
        case.compare("mask_features", exact)
    exact[0, 0, 0] = float("nan")
    assert case.error("mask_features", exact) == float("inf")
    with pytest.raises(AssertionError, match="shape"):
        case.compare("mask_features", exact[..., :-8])

    # Rounding to half precision is ignored; differences of queries are counted.
    masks = torch.zeros(100, 128, 176)
    recorded = torch.from_numpy(case["pred_masks"].astype(np.float32))
    masks[:, ::4, ::4] = recorded * (1 + 2**-12)
    assert case.compare_queries("pred_masks", masks, allowed=0) == (0, 0.0)
    masks[[3, 40]] *= 1.1
    count, worst = case.compare_queries("pred_masks", masks, allowed=2)
    assert count == 2 and worst == 0.0
    with pytest.raises(AssertionError, match=r"2 of 100 .* queries \[3, 40\]"):
        case.compare_queries("pred_masks", masks, allowed=1)


def test_size_of_recordings() -> None:
    assert sum(f.stat().st_size for f in golden.DATA.rglob("*") if f.is_file()) < 12e6
