"""The sheet of `odise-mm explain`: what it shows is what the model did."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from odise_mm.analysis.explaining import (
    NO_DECODER,
    Explanation,
    as_map,
    describe,
    explain,
    strongest,
    watched,
    what_became_of,
)
from odise_mm.apis import OpenVocabInferencer
from odise_mm.cli import explain as command
from odise_mm.utils.image import read_image
from projects.toy_world import world

ROOT = Path(__file__).resolve().parents[2]
WEIGHTS = Path(world.__file__).parent / "weights/odise_label.safetensors"
SCENE = ROOT / "demo/images/toy_scene.jpg"
NAMES = dict(
    texts="yellow triangle, golden triangle; red moon; white box; black triangle",
    stuff_texts="sky; brick wall, bricks; water, sea",
)


@pytest.fixture(scope="module")
def inferencer() -> OpenVocabInferencer:
    return OpenVocabInferencer("odise_toy_label", WEIGHTS, device="cpu")


@pytest.fixture(scope="module")
def explained(inferencer: OpenVocabInferencer) -> Explanation:
    return explain(inferencer, SCENE, **NAMES)


def test_the_result_is_that_of_a_call(
    inferencer: OpenVocabInferencer, explained: Explanation
) -> None:
    (result,) = inferencer(SCENE, **NAMES)
    assert result.segments == explained.result.segments and len(result.segments) > 4
    assert np.array_equal(result.panoptic, explained.result.panoptic)
    assert np.array_equal(explained.image, read_image(SCENE))
    head = inferencer.model.head
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in head.modules())


def test_queries_attend_to_their_masks(explained: Explanation) -> None:
    """Attention is masked by the mask of the layer before, so it lies in and around the mask.

    Unless the mask was another one in that layer, as of two things here that are partly covered.
    """
    result, attention = explained.result, explained.attention
    assert attention is not None and (attention >= 0).all()
    np.testing.assert_allclose(attention.sum(axis=(1, 2)), 1, rtol=1e-4)
    height, width = attention.shape[1:]
    shares = []
    for segment in result.segments:
        (query,) = result.queries.of(segment)
        near = cv2.dilate(result.mask(segment).astype(np.uint8), np.ones((17, 17), np.uint8))
        inside = cv2.resize(near, (width, height), interpolation=cv2.INTER_AREA) > 0
        shares.append(attention[query][inside].sum())
        assert shares[-1] > 1.2 * inside.mean() and inside.mean() < 0.8
    assert np.mean(np.array(shares) > 0.95) > 0.7


def test_clusters_have_the_numbers_of_the_segments_that_they_cover(explained: Explanation) -> None:
    features, result = explained.features, explained.result
    assert features is not None and features.shape == (16, 16)  # 128 pixels at a stride of 8
    assert len(np.unique(features)) == max(6, len(result.segments) + 1)
    ids = result.panoptic[4::8, 4::8]
    for segment in result.segments:
        if not segment.is_thing:
            here = features[ids == segment.id]
            assert np.bincount(here).argmax() == segment.id


def test_the_strongest_masks(explained: Explanation) -> None:
    queries = explained.result.queries
    best = queries.probabilities()[:, :-1].max(axis=1)
    chosen = strongest(queries, 6)
    kept = [bool(queries.fates[query].segment) for query in chosen]
    assert kept == [True] * 3 + [False] * 3
    for part in (chosen[:3], chosen[3:]):
        assert list(best[part]) == sorted(best[part], reverse=True)
    assert sorted(strongest(queries, 99)) == list(range(len(queries)))


def test_words_say_what_happened(explained: Explanation) -> None:
    result = explained.result
    segment = max(result.segments, key=lambda s: s.area)
    (query,) = result.queries.of(segment)
    assert what_became_of(result, query).startswith(
        f"segment {segment.id}, {segment.area:,} pixels ("
    )
    heading, (_, *names) = describe(result, query)
    assert heading == f"{segment.name}  {segment.score:.2f}"
    speakers = [line.split(":")[0] for line in names]
    assert speakers == ["ensemble", "OpenVocabClassifier", "MaskCLIPClassifier"]
    assert all(f"    {segment.name} " in line for line in names)
    assert "void" in names[0] and "void" not in names[2]  # CLIP does not predict it

    wanted = {
        "is smaller than min_area=999999": dict(min_area=999_999),
        "probability not above score_threshold=1": dict(score_threshold=1.0),
        "less than overlap_threshold=1": dict(overlap_threshold=1.0),
        "none of the classes": dict(),
    }
    for words, settings in wanted.items():
        again = result.with_settings(**settings)
        said = [what_became_of(again, index) for index in range(len(again.queries))]
        assert any(text.startswith("dropped: ") and words in text for text in said), words


def test_words_say_of_which_segment_a_mask_is_a_copy(inferencer: OpenVocabInferencer) -> None:
    drawn = world.scene((0, 50), "val")  # the model finds its white box twice
    (result,) = inferencer(np.ascontiguousarray(drawn.image[..., ::-1]), **NAMES, keep_queries=True)
    said = [what_became_of(result, index) for index in range(len(result.queries))]
    (copy,) = [text for text in said if "pixels, less than overlap_threshold=0.8;" in text]
    boxes = [segment for segment in result.segments if segment.name == "white box"]
    assert sum(f"are segment {box.id} (white box)" in copy for box in boxes) == 1


def test_the_command(
    inferencer: OpenVocabInferencer,
    explained: Explanation,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(command, "build_inferencer", lambda args: inferencer)
    out = tmp_path / "sheet.png"
    words = [str(SCENE), "--config", "odise_toy_label", "--out", str(out), "--masks", "4"]
    words += ["--texts", NAMES["texts"], "--stuff-texts", NAMES["stuff_texts"]]
    assert command.main([*words, "--overlap-threshold", "0.97"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert len([line for line in printed if line.startswith("mask ")]) == 4
    assert any("less than overlap_threshold=0.97" in line for line in printed)
    assert printed[-1] == f"wrote {out}"
    sheet = cv2.imread(str(out))
    assert sheet.shape[1] == 14 * 110 and sheet.std() > 20
    with pytest.raises(SystemExit):
        command.parse_args(["a.jpg", "--config", "odise_tiny", "--out", "sheet.txt"])


def test_models_without_a_decoder(explained: Explanation) -> None:
    with watched(torch.nn.Linear(1, 1)) as seen:
        assert seen.attention is None and seen.pyramid is None
    bare = replace(explained, attention=None, features=None).figure(masks=2)
    titles = [axes.get_title() for axes in bare.axes]
    assert "attention" not in titles and "confidence of each pixel" in titles
    assert NO_DECODER in bare.get_supxlabel()
    assert NO_DECODER not in explained.figure(masks=2).get_supxlabel()
    assert "attention" in [axes.get_title() for axes in explained.figure(masks=2).axes]
    with pytest.raises(ValueError, match="7 positions are no map"):
        as_map(torch.zeros(2, 7), (64, 64))
