"""Masks named by examples: votes, ensemble and model, against plain formulas."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from safetensors import safe_open
from safetensors.torch import save_file

from odise_mm.errors import CheckpointError, ConfigError, VocabularyError
from odise_mm.models import (
    ClassPrediction,
    GeometricEnsemble,
    MaskPrediction,
    MemoryClassifier,
    OpenVocabSegmentor,
    RegionMemory,
)
from odise_mm.models.heads.mask2former_head import Frame
from odise_mm.models.segmentors.regions import describe_regions, overlaps, to_logits
from odise_mm.structures import SegmentationResult
from odise_mm.utils.thumbnails import thumbnail
from odise_mm.vocabulary import Vocabulary
from tests.support.parts import random_image, segmentor

NAMES = Vocabulary((("cat", "kitten"), ("dog",), ("tree",)), (True, True, False))
HELP, TIE, SOFTNESS = 0.1, 0.9, 0.1
TAUGHT = ("Kitten", "dog", "dog", "zebra", "cat")
BACKGROUNDS = (0.2, float("nan"), 0.4, 0.3, 0.3)


def unit(count: int, seed: int, width: int = 6) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(count, width, generator=generator), dim=-1)


def filled(seed: int = 0, surroundings: bool = False) -> RegionMemory:
    memory = RegionMemory()
    around = unit(5, 8) / 2
    around[1] = float("nan")  # no other mask in the image
    images, boxes = [f"{i}.jpg" for i in range(5)], [(0, 0, 4, i + 1) for i in range(5)]
    known = dict(backgrounds=BACKGROUNDS, surroundings=around if surroundings else None)
    memory.add(3 * unit(5, seed), TAUGHT, images, boxes, **known)
    return memory


def prediction(queries: torch.Tensor) -> MaskPrediction:
    masks = torch.zeros(1, len(queries), 4, 4)
    return MaskPrediction(masks, named={"OpenVocabClassifier": queries[None]})


def density(cosines: np.ndarray, t: float) -> float:
    return float(t * np.log(np.exp(cosines / t).mean()))


@pytest.mark.parametrize("centered", [False, True])
@pytest.mark.parametrize("neighbors", [2, 16])
def test_relative_similarities_equal_the_formula(neighbors: int, centered: bool) -> None:
    t, queries = 0.1, torch.cat([unit(4, 1), unit(5, 0)[:2]])
    memory = filled(surroundings=centered)
    part = MemoryClassifier(memory, neighbors=neighbors, threshold=0.4, temperature=t, margin=0.1)
    found = part(prediction(queries), [], NAMES)
    regions, masks = unit(5, 0).double().numpy(), queries.double().numpy()
    baseline = np.nanmean(BACKGROUNDS)
    if centered:
        baseline, center = 0, unit(5, 8).double().numpy()[[0, 2, 3, 4]].mean(0) / 2
        regions, masks = regions - center, masks - center
        regions, masks = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (regions, masks))
    cosines = masks @ regions.T
    # The two dogs are the only regions with one name; four more are assumed.
    likeness = (2 * regions[1] @ regions[2] + 4 * (baseline + 0.8 * (1 - baseline))) / 6
    likeness = max(likeness, baseline + 0.1 * (1 - baseline))
    members = {"cat": [0, 4], "dog": [1, 2], "zebra": [3]}
    for row, near in enumerate(cosines):
        kept = np.argsort(-near)[:neighbors]
        wanted = {}
        for name, places in members.items():
            inside = [near[p] for p in places if p in kept]
            missing = [-np.inf] * (min(len(places), neighbors) - len(inside))
            if inside:
                similar = density(np.array([*inside, *missing]), t)
                margin = 0.1 / len(places) ** 0.5
                wanted[name] = min((similar - baseline) / (likeness - baseline) - margin, 4)
                if max(inside) > 0.999:  # the mask is an example itself
                    wanted[name] = max(5.0, wanted[name])
        relative = found.relative[0, row]
        for index, name in enumerate(("cat", "dog")):
            assert relative[index].item() == pytest.approx(wanted.get(name, -1e4), abs=1e-4)
        assert relative[2] == -1e4
        recognized = 1 / (1 + np.exp(-(max(wanted.values()) - 0.4) / t))
        best = max(wanted.values())
        weights = {name: np.exp((value - best) / t) for name, value in wanted.items()}
        p = (found.logits.softmax(-1) * (1 - found.p_void[..., None]))[0, row].tolist()
        for index, name in enumerate(("cat", "dog")):
            share = weights.get(name, 0) / sum(weights.values())
            assert p[index] == pytest.approx(recognized * share, abs=1e-5)
        assert p[2] == 0
    assert found.abstains.tolist() == [[False, False, True]]
    assert [memory.get(i).image for i in found.neighbors[0, 4:, 0].tolist()] == ["0.jpg", "1.jpg"]


def test_several_sources_are_joined_and_missing_ones_named() -> None:
    first, second = unit(3, 2), 7 * unit(3, 3, width=4)
    both = MaskPrediction(torch.zeros(1, 3, 4, 4), named={"A": first[None], "B": second[None]})
    joined = MemoryClassifier().embed(both)[0]
    cosine = (first @ first.T + unit(3, 3, width=4) @ unit(3, 3, width=4).T) / 2
    torch.testing.assert_close(joined @ joined.T, cosine)
    assert MemoryClassifier(sources=["B"]).embed(both).shape == (1, 3, 4)
    pyramid = [torch.ones(1, 5, 16, 16), torch.full((1, 5, 8, 8), 2.0)]
    masks = both._replace(masks=torch.ones(1, 3, 16, 16), pyramid=pyramid)
    assert MemoryClassifier(sources=["B", "features"]).embed(masks).shape == (1, 3, 9)
    with pytest.raises(ConfigError, match="C embeds no masks here; sources of this model: A, B"):
        MemoryClassifier(sources=["C"]).embed(both)


def sigmoid(value: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-value))


def softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


@pytest.mark.parametrize("drop_void", [True, False])
@pytest.mark.parametrize("known", ["read", "unread", "all taught"])
def test_ensemble_weighs_examples_against_words(known: str, drop_void: bool) -> None:
    generator = torch.Generator().manual_seed(4)
    own, clip, third = (torch.randn(1, 4, 3, generator=generator) for _ in range(3))
    clip *= 4
    p_void = torch.rand(1, 4, generator=generator)
    if known == "unread":  # words know nothing of dogs
        own[..., 1] = clip[..., 1] = -1e4
    words = [ClassPrediction(own, p_void), ClassPrediction(clip)]
    trained = Vocabulary((("cat",),), (True,))
    ensemble = GeometricEnsemble(
        0.2, 0.6, trained, memory_alpha=0.5, memory_beta=0.9, drop_void=drop_void
    )
    before = ensemble(words, NAMES)
    silent = MemoryClassifier()(prediction(unit(4, 0)), [], NAMES)
    assert torch.equal(ensemble([*words, silent], NAMES), before)
    queries = torch.cat([unit(3, 1), unit(5, 0)[1:2]])
    examples = filled()
    if known == "all taught":
        examples.add(unit(1, 2), ["tree"])
    else:
        for name in ("cat", "kitten"):
            examples.remove(name)
    memory = MemoryClassifier(examples, threshold=0.3)(prediction(queries), [], NAMES)

    p = softmax(ensemble.ensemble_logits(words, NAMES)[0].double().numpy())
    logits, kept = clip[0].double().numpy(), 1 - p_void[0].double().numpy()
    taught, rest = ([0, 1, 2], [0, 1, 2]) if known == "all taught" else ([1], [0, 2])
    relative = memory.relative[0].double().numpy()
    read = np.array([0.0 if known == "unread" and k == 1 else 1.0 for k in range(3)])
    similar = (relative + HELP * read * (2 * p - 1))[:, taught]
    best, mean = logits[:, rest].max(1), logits[:, rest].mean(1)
    usual, low = (kept / kept.sum() * best).sum(), (kept / kept.sum() * mean).sum()
    excess = np.clip((best - usual) / max(usual - low, 1), -1, 1)
    sure = p[:, rest].max(1) / p[:, rest].sum(1)
    doubt = np.log(1 - sure + 1e-3) - np.log(0.25)
    count = len(rest)
    trust = similar.max(1) - TIE - 0.75 * excess + 0.1 * count / (count + 40) * doubt
    recognized = 1 - memory.p_void[0].double().numpy()
    right = sigmoid(trust / SOFTNESS) * recognized
    for factor in (1.0, 0.4, 0.0):
        mixed = ensemble.with_weights(memory_weight=factor)([*words, memory], NAMES)[0]
        m = np.zeros((4, 3))
        m[:, taught] = right[:, None] * softmax(similar / 0.05)
        m *= factor * np.array([0.5, 0.9, 0.9])
        assert factor == 0 or m.max() > 0.02
        taken = m.sum(1)
        of_void = (1 - p) * 20 / (count + 20)
        of_void[relative.max(1) >= 5] = 1  # an example itself
        assert (relative.max(1) >= 5).tolist() == [False, False, False, True]
        wanted = p * (kept * (1 - taken))[:, None] + m * (1 - (1 - of_void) * (1 - kept)[:, None])
        np.testing.assert_allclose(mixed[:, :3], wanted, atol=1e-5)
        void = drop_void * (1 - kept) * (1 - (of_void * m).sum(1))
        np.testing.assert_allclose(mixed[:, 3], void, atol=1e-5)
        assert not drop_void or mixed.sum(-1).sub(1).abs().max() < 1e-5
    assert torch.equal(mixed, before[0])
    with pytest.raises(ConfigError, match="memory_weight=2: must be a weight"):
        ensemble.with_weights(memory_weight=2)


def test_masks_that_are_all_void_are_compared_with_each_other() -> None:
    generator = torch.Generator().manual_seed(4)
    words = [ClassPrediction(20 + torch.randn(1, 3, 3, generator=generator)) for _ in range(2)]
    memory = MemoryClassifier(filled())(prediction(unit(3, 1)), [], NAMES)
    memory = memory._replace(p_void=torch.zeros(1, 3), relative=torch.full((1, 3, 3), 0.9))
    ensemble = GeometricEnsemble(train_vocabulary=NAMES)
    found = []
    for p_void in (1.0, 0.9999):
        words[0] = words[0]._replace(p_void=torch.full((1, 3), p_void))
        found.append(ensemble([*words, memory], NAMES))
    torch.testing.assert_close(*found, atol=2e-4, rtol=0)
    assert found[0][..., :3].max() > 0.01


def test_examples_of_names_that_no_word_is_compared_with() -> None:
    """All names are taught, and the text encoder reads none, or one word is left."""
    memory = MemoryClassifier(filled())(prediction(unit(5, 0)), [], NAMES)
    nothing = torch.full((1, 5, 3), -1e4)
    generator = torch.Generator().manual_seed(3)
    fits = torch.randn(1, 5, 1, generator=generator)
    one = torch.where(torch.tensor([False, False, True]), fits, nothing)
    p_void = torch.full((1, 5), 0.1)
    for clip in (nothing, one):
        words = [ClassPrediction(clip, p_void), ClassPrediction(clip)]
        found = GeometricEnsemble(train_vocabulary=NAMES, memory_alpha=1)([*words, memory], NAMES)
        torch.testing.assert_close(found.sum(-1), torch.ones(1, 5))
        # kitten, dog, dog, (zebra), cat
        assert found[0, [0, 1, 2, 4]].argmax(-1).tolist() == [0, 1, 1, 0]
        assert found[0, [0, 1, 2, 4]].amax(-1).min() > 0.8
    # A single class has p = 1, so void is all that speaks against it.
    cat, only = (
        Vocabulary((("cat",),), (True,)),
        ClassPrediction(torch.zeros(1, 5, 1), p_void + 0.8),
    )
    memory = MemoryClassifier(filled())(prediction(unit(5, 0) + 0.2 * unit(5, 9)), [], cat)
    memory = memory._replace(relative=memory.relative.clamp(max=1.0))  # random ones are far apart
    found = GeometricEnsemble(train_vocabulary=cat, memory_alpha=1)([only, only, memory], cat)
    assert found[0, 4, 0] > 0.4 > found[0, 1:4, 0].max()


def test_a_third_prediction_is_weighted_against_the_first_two() -> None:
    generator = torch.Generator().manual_seed(4)
    own, clip, third = (torch.randn(1, 4, 3, generator=generator) for _ in range(3))
    words = [ClassPrediction(own, torch.rand(1, 4, generator=generator)), ClassPrediction(clip)]
    trained = Vocabulary((("cat",),), (True,))
    ensemble = GeometricEnsemble(0.2, 0.6, trained)
    more = GeometricEnsemble(0.2, 0.6, trained, more=[(0.1, 0.4)])
    logs = ensemble.ensemble_logits(words, NAMES)
    weight = torch.tensor([0.1, 0.4, 0.4])
    wanted = (1 - weight) * logs + weight * third.log_softmax(-1)
    found = more.ensemble_logits([*words, ClassPrediction(third)], NAMES)
    torch.testing.assert_close(found, wanted)
    with pytest.raises(ConfigError, match="more=.*pairs of weights"):
        GeometricEnsemble(more=[0.5])


def test_changes_of_a_memory() -> None:
    memory = filled()
    assert memory.names == {"Kitten": 1, "dog": 2, "zebra": 1, "cat": 1}
    assert memory.vocabulary.names == ("Kitten", "dog", "zebra", "cat")
    again = memory.add(unit(5, 0)[:2], ["kitten", "wolf"])  # known, and known as another name
    assert again[0] is None and again[1].id == 5 and len(memory) == 6
    assert memory.rename("DOG", "wolf") == 2 and memory.names["wolf"] == 3
    assert memory.remove("wolf") == 3 and memory.get(1) is None and memory.get(3).name == "zebra"
    assert memory.remove(ids=[3]) == 1
    other = filled(seed=1)
    assert memory.merge(other) == 5 and memory.merge(other) == 0
    for call in (lambda: memory.remove("wolf"), lambda: memory.rename("wolf", "x")):
        with pytest.raises(VocabularyError, match="no regions of 'wolf'; names: 'Kitten', 'cat'"):
            call()
    with pytest.raises(VocabularyError, match="empty"):
        memory.add(unit(1, 9), [" "])
    with pytest.raises(ValueError, match="width 3 do not fit a memory of width 6"):
        memory.add(unit(1, 9, width=3), ["x"])


@pytest.mark.parametrize("surroundings", [False, True])  # older files have none
def test_files_keep_everything_and_damage_is_named(tmp_path: Any, surroundings: bool) -> None:
    memory, file = filled(surroundings=surroundings), tmp_path / "memory.safetensors"
    memory.save(file)
    again = RegionMemory.load(file)
    assert again.regions == memory.regions and again.baseline == memory.baseline
    assert again.digest == memory.digest and (again.center is not None) == surroundings
    query = unit(3, 7)
    assert torch.equal(again.search(query, 4).similarities, memory.search(query, 4).similarities)
    both = filled(seed=1, surroundings=True)
    center = both.center * 4  # of four regions
    both.merge(again)
    wanted = (center + 4 * again.center) / 8 if surroundings else center / 4
    torch.testing.assert_close(both.center, wanted)
    content = file.read_bytes()
    for damaged in (content[:200], b"", content.replace(b'"Kitten"', b'"\xffitten"')):
        file.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"memory\.safetensors"):
            RegionMemory.load(file)


def test_pictures_are_kept_and_foreign_ones_are_checked(tmp_path: Any) -> None:
    image, file = np.full((20, 30, 3), 90, np.uint8), tmp_path / "memory.safetensors"
    mask = np.zeros((20, 30), bool)
    mask[5:15, 5:15] = True
    picture = thumbnail(image, mask)
    memory = RegionMemory()
    pictures = [picture, None, b"no image"]
    memory.add(unit(3, 1), ["cat", "dog", "fox"], pictures=pictures)
    memory.add(unit(1, 2), ["dog"], pictures=[picture])
    memory.save(file)
    copies = memory.copy(), memory.select([3, 1, 0, 2, 9]), RegionMemory.load(file)
    merged = RegionMemory()
    merged.merge(memory)
    for each in (memory, *copies, merged):
        assert [each.picture(i) is not None for i in range(5)] == [True, False, False, True, False]
        shown = cv2.imdecode(np.frombuffer(each.picture(0), np.uint8), cv2.IMREAD_COLOR)
        assert shown.shape == (12, 12, 3) and abs(int(shown[6, 6, 0]) - 90) < 10
    memory.rename("fox", "wolf")
    memory.remove(ids=[0])
    assert memory.picture(3) == merged.picture(3) and memory.picture(0) is None
    assert memory.drop_pictures() == 2 and memory.picture(3) is None
    memory.save(tmp_path / "without.safetensors")  # as files were before there were pictures
    assert RegionMemory.load(tmp_path / "without.safetensors").regions
    assert file.stat().st_size > (tmp_path / "without.safetensors").stat().st_size + 600
    with pytest.raises(ValueError, match="a picture has 16,385 bytes, more than 16,384"):
        memory.add(unit(1, 4), ["x"], pictures=[bytes(2**14 + 1)])

    with safe_open(file, "pt") as content:
        tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
        note = content.metadata()
    sizes = tensors["picture_sizes"]
    for wrong in (sizes[:3], sizes + 1, -sizes, sizes * 10**4, sizes.float()):
        save_file({**tensors, "picture_sizes": wrong.clone()}, file, note)
        with pytest.raises(CheckpointError, match=r"memory\.safetensors: .*pictures are damaged"):
            RegionMemory.load(file)


def test_usearch_finds_what_the_exact_search_finds() -> None:
    pytest.importorskip("usearch")
    memory, query = RegionMemory(index="usearch"), unit(8, 6, width=16)
    memory.add(unit(300, 5, width=16), [f"name {i % 7}" for i in range(300)])
    found = memory.search(query, 5)
    memory.index = "exact"
    exact = memory.search(query, 5)
    assert (found.ids == exact.ids).float().mean() > 0.9  # approximate
    torch.testing.assert_close(found.similarities[:, 0], exact.similarities[:, 0])


def test_regions_on_masks() -> None:
    regions = torch.zeros(2, 60, 80, dtype=torch.bool)
    regions[0, :30, :40] = True
    regions[1, 59, 79] = True  # smaller than a position
    logits = to_logits(regions, Frame((64, 128), (60, 80)), (16, 32))
    assert logits.shape == (2, 16, 32)
    wanted = torch.zeros(16, 32, dtype=torch.bool)
    wanted[:8, :10] = True  # 7.5 rows: the last is half covered
    assert torch.equal(logits[0] > 0, wanted)
    assert (logits[1] > 0).nonzero().tolist() == [[14, 19]]
    half = torch.full((1, 16, 32), -1.0)
    half[0, :4, :10] = 1
    assert overlaps(logits, half)[:, 0].tolist() == [0.5, 0]
    embeddings = torch.eye(4)[[0, 1, 0]]
    masks = torch.stack([half[0], logits[1], logits[0]])
    found = describe_regions(masks, embeddings, 1)
    assert found.overlap.tolist() == [0.5] and found.backgrounds.tolist() == [0.0]
    assert found.surroundings.tolist() == [[0, 1, 0, 0]]


@pytest.fixture(scope="module")
def model() -> OpenVocabSegmentor:
    return segmentor(test_cfg=dict(overlap_threshold=0.3, semantic=False, instance=False))


def segment(model: OpenVocabSegmentor, **settings: Any) -> SegmentationResult:
    sample = DetDataSample(metainfo=dict(img_shape=(70, 81), ori_shape=(105, 122)))
    data = dict(inputs=[random_image(70, 81)], data_samples=[sample])
    (found,) = model.test_step(data, NAMES, settings)
    return SegmentationResult.from_sample(found, NAMES.names)


def test_a_model_with_a_memory(model: OpenVocabSegmentor) -> None:
    before = segment(model, keep_queries=True)
    assert model.memory is None and before.segments
    for call in (before.with_settings, lambda **wrong: segment(model, **wrong)):
        with pytest.raises(ConfigError, match="memory_weight: the model has no memory; teach it"):
            call(memory_weight=0.5)
    with pytest.raises(ConfigError, match=r"no memory: set inferencer.memory = RegionMemory\(\)"):
        before.with_memory(RegionMemory())
    model.memory = RegionMemory()
    try:
        after = segment(model)
        assert after.segments == before.segments
        assert np.array_equal(after.panoptic, before.panoptic)
        taught = before.segments[0]
        name = next(name for name in NAMES.names if name != taught.name)
        inputs = model.data_preprocessor(
            dict(
                inputs=[random_image(70, 81)],
                data_samples=[DetDataSample(metainfo=dict(img_shape=(70, 81)))],
            )
        )
        region = torch.from_numpy(before.mask(taught))[None]
        found = model.embed_regions(inputs["inputs"], inputs["data_samples"], region)
        assert found.overlap > 0.3
        part, ensemble = model.classifiers[-1], model.ensemble
        # Everything is recognized, and counts more than any word.
        part.threshold = part.margin = -1.0
        ensemble.memory_alpha = ensemble.memory_beta = 1.0
        empty = segment(model, keep_queries=True)
        model.memory.add(found.embeddings, [name], ["own.jpg"], [(1, 2, 3, 4)])
        result = segment(model, keep_queries=True)
        assert result.queries.classifiers[-1] == "MemoryClassifier"
        gained = result.queries.probabilities() - empty.queries.probabilities()
        gained = gained[:, NAMES.names.index(name)]
        assert gained.min() >= 0 and gained.max() > 1e-3  # random words, whose logits hardly differ
        evidence = result.segments[0].evidence[0]
        assert evidence.image == "own.jpg" and evidence.box == (1, 2, 3, 4)
        assert max(s.evidence[0].similarity for s in result.segments) > 0.6
        assert result.with_settings(min_area=1).segments == result.segments
        # A result of another memory, compared with this one without running the model.
        compared = empty.with_memory(model.memory, min_area=9)
        again = segment(model, keep_queries=True, min_area=9)
        assert compared.segments == again.segments and compared.segments != empty.segments
        assert np.array_equal(compared.panoptic, again.panoptic)
        for factor in (0.0, 0.3):
            called = segment(model, memory_weight=factor)
            assert called.segments == result.with_settings(memory_weight=factor).segments
            assert called.segments == empty.with_memory(model.memory, memory_weight=factor).segments
        assert [s.name for s in segment(model, memory_weight=0).segments] == [
            s.name for s in before.segments
        ]
        assert result.to_dict()["segments"][0]["evidence"][0]["name"] == name
        # Other weights, another embedder.
        with torch.no_grad():
            for parameter in model.head.parameters():
                parameter.mul_(1.5)
            with pytest.raises(CheckpointError, match="its weights are others; teach the regions"):
                segment(model)
            for parameter in model.head.parameters():
                parameter.div_(1.5)
    finally:
        del model.classifiers[-1]


def test_the_first_classifier_is_no_memory_and_ensembles_need_weights() -> None:
    with pytest.raises(ConfigError, match="put it after them"):
        segmentor(classifiers=[dict(type="MemoryClassifier")])
    from torch import nn

    with pytest.raises(ConfigError, match="Identity, has no weights for a memory"):
        segmentor(
            classifiers=[
                dict(type="OpenVocabClassifier", embed_dim=64),
                dict(type="MemoryClassifier"),
            ],
            ensemble=nn.Identity(),
        )
