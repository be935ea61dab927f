"""Kept queries: results from them equal those of a new call, and what they tell about segments."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from torch import Tensor

from odise_mm.errors import ConfigError
from odise_mm.models import CoatEnsemble, GeometricEnsemble, OpenVocabSegmentor, ProposalSegmentor
from odise_mm.models.classifiers.base import ClassPrediction
from odise_mm.models.proposals.base import ImageMaskSource, Proposals
from odise_mm.models.segmentors.base_segmentor import BaseSegmentor
from odise_mm.models.segmentors.results import SegmentedImages
from odise_mm.structures import REASONS, SegmentationResult
from odise_mm.vocabulary import Vocabulary
from tests.support.parts import clip, random_image, segmentor

NAMES = Vocabulary(
    (("cat", "kitten"), ("brick wall",), ("sky",), ("person", "child")), (True, False, False, True)
)
SIZES = ((64, 96), (70, 81))
SETTINGS: tuple[dict[str, Any], ...] = (
    dict(),
    dict(overlap_threshold=0.0),
    dict(score_threshold=0.3, overlap_threshold=0.0),
    dict(min_area=150, overlap_threshold=0.0),
    dict(mask_resize="probability"),
    dict(panoptic=False, instance=False, semantic_resize="class_maps"),
    dict(topk=3, instance_quality="logit", semantic=False),
)
EXPONENTS = (dict(alpha=0.9, beta=0.1), dict(beta=0.0, min_area=9, overlap_threshold=0.1))


class Blobs(ImageMaskSource):
    """Soft round masks; none for images that are 70 pixels high."""

    names_masks = True

    def propose(self, image: Tensor, sample: Any, vocabulary: Vocabulary) -> Proposals:
        height, width = image.shape[1:]
        count = 0 if height == 70 else 5
        random = torch.Generator().manual_seed(3)
        ys, xs = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        center = torch.rand(count, 2, 1, 1, generator=random) * torch.tensor(
            [[[height]], [[width]]]
        )
        distance = ((ys - center[:, 0]) ** 2 + (xs - center[:, 1]) ** 2).sqrt()
        logits = torch.randn(count, len(vocabulary), generator=random)
        return Proposals(
            4 - distance / 5, torch.rand(count, generator=random), ClassPrediction(logits)
        )


def results(
    model: BaseSegmentor, names: Vocabulary = NAMES, **settings: Any
) -> list[SegmentationResult]:
    """Segment a batch of two images, at a larger size than that of the input."""
    samples, images = [], []
    for seed, (height, width) in enumerate(SIZES):
        meta = dict(img_shape=(height, width), ori_shape=(height * 3 // 2, width * 3 // 2))
        samples.append(DetDataSample(metainfo=meta))
        images.append(random_image(height, width, seed))
    found = model.test_step(dict(inputs=images, data_samples=samples), names, settings)
    return [SegmentationResult.from_sample(sample, names.names) for sample in found]


def assert_equal(a: SegmentationResult, b: SegmentationResult) -> None:
    assert a.segments == b.segments
    for name in ("panoptic", "semantic"):
        assert np.array_equal(getattr(a, name), getattr(b, name)), name
    assert (a.instances is None) == (b.instances is None)
    if a.instances is not None:
        assert np.array_equal(a.instances.scores, b.instances.scores)
        assert np.array_equal(a.instances.masks, b.instances.masks)


@pytest.fixture(scope="module")
def odise() -> OpenVocabSegmentor:
    return segmentor(test_cfg=dict(overlap_threshold=0.3))


@pytest.fixture(scope="module", params=["geometric", "coat", "bf16", "proposals"])
def model(request: pytest.FixtureRequest, odise: OpenVocabSegmentor) -> Iterator[BaseSegmentor]:
    if request.param == "proposals":
        yield ProposalSegmentor(
            Blobs(),
            [dict(type="MaskCLIPClassifier")],
            GeometricEnsemble(valid_masks_only=True),
            clip=clip(),
            test_cfg=dict(overlap_threshold=0.3),
            data_preprocessor=dict(
                type="mmdet.DetDataPreprocessor", mean=[0.0] * 3, std=[255.0] * 3
            ),
        ).eval()
        return
    before = odise.ensemble
    if request.param == "coat":
        odise.ensemble = CoatEnsemble()
    precision = "bf16" if request.param == "bf16" else "fp32"
    odise.precision = precision  # trained parts only: the frozen ones are shared with others
    yield odise
    odise.ensemble, odise.precision = before, "fp32"


def test_results_again_equal_those_of_a_new_call(
    model: BaseSegmentor, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = results(model, keep_queries=True)
    if isinstance(model, OpenVocabSegmentor):  # the network runs once more, not once per settings
        runs: list[list[SegmentedImages]] = []
        segment = model.segment

        def once(*args: Any) -> list[SegmentedImages]:
            if not runs:
                runs.append(list(segment(*args)))
            return runs[0]

        monkeypatch.setattr(model, "segment", once)
    assert any(result.segments for result in kept)
    different = 0
    for settings in (*SETTINGS, *EXPONENTS):
        for old, new in zip(kept, results(model, **settings), strict=True):
            again = old.with_settings(**settings)
            assert_equal(again, new)
            assert again.panoptic is None or again.panoptic.shape == old.panoptic.shape
            different += again.segments != old.segments
            assert_equal(again.with_settings(**old.queries.settings), old)
    assert different > 3, "the settings change nothing, so this test shows nothing"
    assert new.queries is None
    for result in kept:
        copied = pickle.loads(pickle.dumps(result)).with_settings(min_area=9)
        assert_equal(copied, result.with_settings(min_area=9))


def test_what_queries_tell(odise: OpenVocabSegmentor) -> None:
    stuff = Vocabulary(NAMES.synonyms, (False,) * 4)
    result = results(odise, stuff, keep_queries=True, overlap_threshold=0.0)[0]
    queries = result.queries
    assert repr(queries) == (
        "Queries(12 masks, classifiers: OpenVocabClassifier, MaskCLIPClassifier)"
    )
    assert {fate.reason for fate in queries.fates} <= set(REASONS)
    masks = np.stack([queries.mask(index) for index in range(len(queries))])
    assert masks.shape == (12, 96, 144) and queries.small_masks().shape == (12, 16, 24)
    probabilities = queries.probabilities()
    for classifier in (None, *queries.classifiers):
        sums = queries.probabilities(classifier).sum(axis=1)
        np.testing.assert_allclose(sums, 1, rtol=1e-5)
    assert (queries.probabilities("MaskCLIPClassifier")[:, -1] == 0).all()
    for ask in (queries.probabilities, queries.embeddings_of):
        with pytest.raises(ValueError, match="'CLIP' does not exist; the model has OpenVocabC"):
            ask("CLIP")
    assert np.array_equal(queries.embeddings_of("OpenVocabClassifier"), queries.embeddings)
    embeddings = torch.tensor(queries.embeddings_of("MaskCLIPClassifier"))[None]
    named = odise.classifiers[1].name_embeddings(embeddings, stuff).logits[0].softmax(-1)
    np.testing.assert_allclose(
        queries.probabilities("MaskCLIPClassifier")[:, :-1], named, rtol=1e-5
    )

    # Every pixel of the map, from the masks and probabilities alone.
    labels, best = probabilities.argmax(1), probabilities.max(1)
    values = np.where((labels == len(NAMES))[:, None, None], -1, best[:, None, None] * masks)
    winner = values.argmax(0)
    inside = np.take_along_axis(masks, winner[None], 0)[0] >= 0.5
    ids = np.array([fate.segment for fate in queries.fates])[winner] * inside
    assert np.array_equal(ids, result.panoptic)
    np.testing.assert_allclose(result.confidence(), (ids > 0) * values.max(0), rtol=1e-5)
    for query, fate in enumerate(queries.fates):
        if fate.segment:
            assert fate.area == (masks[query] >= 0.5).sum()
            assert fate.pixels == (inside & (winner == query)).sum()

    for segment in result.segments:
        (first, *_) = chosen = queries.of(segment)
        assert all(labels[query] == segment.label for query in chosen)
        assert result.top(segment, 1) == [(segment.name, pytest.approx(segment.score, abs=1e-5))]
        assert len(result.top(segment, 9)) == len(NAMES)
        assert np.linalg.norm(result.embedding(segment)) == pytest.approx(1, abs=1e-5)
        if len(chosen) == 1:
            own = queries.embeddings[first]
            np.testing.assert_allclose(
                result.embedding(segment), own / np.linalg.norm(own), rtol=1e-4, atol=1e-6
            )
            clip_says = result.probabilities(segment, "MaskCLIPClassifier")
            assert np.array_equal(clip_says, queries.probabilities("MaskCLIPClassifier")[first])
            by_clip = result.embedding(segment, "MaskCLIPClassifier") * np.linalg.norm(
                embeddings[0, first]
            )
            np.testing.assert_allclose(by_clip, embeddings[0, first], rtol=1e-4, atol=1e-5)
    assert any(len(queries.of(segment)) > 1 for segment in result.segments)
    assert result.drop_maps().queries is None
    with pytest.raises(ValueError, match="keep_queries=True"):
        result.top(result.segments[0])


def test_reasons(odise: OpenVocabSegmentor) -> None:
    result = results(odise, keep_queries=True, overlap_threshold=0.0)[0]

    def reasons(**settings: Any) -> list[str]:
        return [fate.reason for fate in result.with_settings(**settings).queries.fates]

    before = reasons()
    smallest = min(result.segments, key=lambda segment: segment.area)
    gone = reasons(min_area=smallest.area + 1)
    for query in result.queries.of(smallest):
        assert before[query] in ("kept", "merged") and gone[query] == "area"
    left = result.with_settings(min_area=smallest.area + 1)
    assert [s.id for s in left.segments] == list(range(1, len(result.segments)))
    assert (left.panoptic == 0).sum() == (result.panoptic == 0).sum() + smallest.area
    limit = min(segment.score for segment in result.segments)
    dropped = {reason for a, reason in zip(before, reasons(score_threshold=limit), strict=True)
               if a in ("kept", "merged") and reason not in ("kept", "merged")}  # fmt: skip
    assert "score" in dropped and dropped <= {"score", "empty"}
    strict = reasons(overlap_threshold=1.0)
    assert "overlap" in strict and strict.count("void") == before.count("void")


def test_settings_that_do_not_fit(odise: OpenVocabSegmentor) -> None:
    result = results(odise, keep_queries=True)[0]
    with pytest.raises(TypeError, match="unknown setting 'scores'"):
        result.with_settings(scores=1)
    with pytest.raises(ConfigError, match="^alpha=2: must be"):
        result.with_settings(alpha=2)
    whole, odise.ensemble = odise.ensemble, torch.nn.Identity()
    with pytest.raises(ConfigError, match="alpha: the model's ensemble, Identity, has no such"):
        results(odise, alpha=0.5)
    odise.ensemble = whole
    found = ProposalSegmentor(
        Blobs(), [], GeometricEnsemble(), data_preprocessor=dict(type="mmdet.DetDataPreprocessor")
    )
    with pytest.raises(ConfigError, match="alpha and beta: the model has one classifier"):
        results(found, alpha=0.5, beta=0.5)
    kept = results(found, keep_queries=True)[0]
    assert kept.queries.classifiers == ("Blobs",)
    with pytest.raises(ValueError, match="the model makes no mask embeddings.*: none"):
        kept.embedding(kept.segments[0])
