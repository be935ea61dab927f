"""Tests of post-processing against recorded results and plain loops, and of its memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmdet.structures import DetDataSample
from torch import Tensor
from torchvision.ops import masks_to_boxes

from odise_mm.errors import ConfigError
from odise_mm.models.heads.mask2former_head import Frame
from odise_mm.models.postprocess import (
    TEST_CFG,
    Segment,
    check_test_cfg,
    instance_inference,
    panoptic_inference,
    resize_masks,
    semantic_inference,
)
from odise_mm.models.segmentors.results import add_results, resize_for_results
from odise_mm.vocabulary import Vocabulary
from tests.support import golden

THINGS = [i in golden.vocabulary()["thing_ids"] for i in range(12)]


def as_info(segments: list[Segment]) -> list[dict]:
    return [{"id": s.id, "isthing": s.is_thing, "category_id": s.label} for s in segments]


def check_recorded(name: str, folder: Path | None, max_bytes: int, exact: bool) -> None:
    case = golden.load_postproc(name, folder)
    probs = torch.from_numpy(case["mask_cls"]).softmax(-1)
    masks = torch.from_numpy(case["mask_pred"])

    panoptic, segments = panoptic_inference(probs, masks, THINGS, max_bytes=max_bytes)
    assert panoptic.dtype == torch.int32
    np.testing.assert_array_equal(panoptic.numpy(), case["panoptic_seg"])
    assert as_info(segments) == json.loads(str(case["segments_info"]))

    semantic = semantic_inference(probs, masks, max_bytes=max_bytes)
    differing = (semantic.numpy() != case["sem_seg_argmax"]).sum()
    assert differing <= (0 if exact else 2)  # half-precision storage moves two pixels

    scores, labels, masks, _ = instance_inference(probs, masks, THINGS, max_bytes=max_bytes)
    tolerance = 1e-6 if exact else 1e-5
    np.testing.assert_allclose(scores.numpy(), case["inst_scores_sorted"], atol=tolerance, rtol=0)
    np.testing.assert_array_equal(labels.numpy(), case["inst_classes_sorted"])
    np.testing.assert_array_equal(masks.sum((1, 2)).numpy(), case["inst_mask_area_sorted"])


@pytest.mark.parametrize("max_bytes", [32 * 2**20, 100_000])
@pytest.mark.parametrize("name", ["c0", "c2"])
def test_equal_to_recorded(name: str, max_bytes: int) -> None:
    check_recorded(name, None, max_bytes, exact=False)


@pytest.mark.parametrize("name", golden.POSTPROC_CASES)
def test_equal_to_complete_recording(name: str, golden_folder: Path) -> None:
    check_recorded(name, golden_folder, 32 * 2**20, exact=True)


@pytest.mark.parametrize("name", ["tiny_label_512x512", "tiny_label_512x704"])
def test_equal_to_complete_model_results(name: str, golden_folder: Path) -> None:
    """Start from recorded mask logits at a quarter of the size, to include resizing."""
    case = golden.load_case(name, golden_folder)
    if case.index["pred_masks"] != {"steps": [1, 1, 1], "half": False}:
        pytest.skip("mask logits were recorded with subsampling")
    size = case.image.shape[:2]
    masks = resize_masks(torch.from_numpy(case["pred_masks"]), size, size, case.out_hw)
    probs = torch.from_numpy(case["mask_cls_results"]).softmax(-1)
    for threshold, suffix in ((0.8, ""), (0.3, "_ot03")):
        panoptic, segments = panoptic_inference(probs, masks, THINGS, threshold)
        assert case.agreement(f"panoptic_seg{suffix}", panoptic) == 1
        assert as_info(segments) == case.segments(f"segments_info{suffix}")
    assert case.agreement("sem_seg_argmax", semantic_inference(probs, masks)) == 1
    scores, labels, instances, _ = instance_inference(probs, masks, THINGS)
    case.compare("inst_all_scores", scores, 1e-5)
    # All empty masks have the score 0, so their order is arbitrary.
    scored = case["inst_all_scores"] > 0
    np.testing.assert_array_equal(labels.numpy()[scored], case["inst_all_classes"][scored])
    assert case.agreement("inst_top20_mask_area", instances[:20].sum((1, 2))) == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", ["c0", "c2"])
def test_same_on_the_gpu(name: str) -> None:
    case = golden.load_postproc(name)
    inputs = [torch.from_numpy(case["mask_cls"]).softmax(-1), torch.from_numpy(case["mask_pred"])]
    on_gpu = [t.cuda() for t in inputs]
    panoptic, segments = panoptic_inference(*on_gpu, THINGS)
    assert panoptic.is_cuda
    np.testing.assert_array_equal(panoptic.cpu().numpy(), case["panoptic_seg"])
    assert as_info(segments) == json.loads(str(case["segments_info"]))
    assert (semantic_inference(*on_gpu).cpu() != semantic_inference(*inputs)).sum() <= 2
    scores, labels, masks, boxes = instance_inference(*on_gpu, THINGS)
    expected = instance_inference(*inputs, THINGS)
    torch.testing.assert_close(scores.cpu(), expected[0], rtol=1e-5, atol=1e-6)
    scored = expected[0] > 0
    assert torch.equal(labels.cpu()[scored], expected[1][scored])
    assert torch.equal(masks.cpu()[scored], expected[2][scored])
    assert torch.equal(boxes.cpu()[scored], expected[3][scored])
    small = [F.avg_pool2d(m, 4) for m in (on_gpu[1], inputs[1])]
    gpu, cpu = (resize_masks(m, (64, 64), (60, 50), (40, 30)) for m in small)
    torch.testing.assert_close(gpu.cpu(), cpu, rtol=1e-5, atol=1e-4)


# ------------------------------------------------------------- against plain loops


def random_input(seed: int, queries: int = 12, classes: int = 5) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    probs = (3 * torch.randn(queries, classes + 1, generator=rng)).softmax(-1)
    blobs = 6 * torch.randn(1, queries, 4, 5, generator=rng)
    masks = F.interpolate(blobs, size=(23, 31), mode="bicubic")[0]
    return probs, masks


def panoptic_by_loops(
    probs: Tensor, masks: Tensor, is_thing: list[bool], threshold: float
) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """Compute a panoptic map pixel by pixel; return it with (label, area) of every segment."""
    p, m = probs.double().numpy(), masks.double().sigmoid().numpy()
    void, (height, width) = p.shape[1] - 1, m.shape[1:]
    kept = [q for q in range(len(p)) if p[q].argmax() != void]
    owner = np.full((height, width), -1)
    for y in range(height):
        for x in range(width):
            owner[y, x] = max(kept, key=lambda q: p[q].max() * m[q, y, x], default=-1)
    out, segments = np.zeros((height, width), int), []
    for q in kept:
        label, mine = p[q].argmax(), (owner == q) & (m[q] >= 0.5)
        if not mine.any() or (owner == q).sum() < threshold * (m[q] >= 0.5).sum():
            continue
        same = [i for i, (other, _) in enumerate(segments) if other == label]
        if same and not is_thing[label]:
            segments[same[0]] = (label, segments[same[0]][1] + mine.sum())
            out[mine] = same[0] + 1
        else:
            segments.append((label, mine.sum()))
            out[mine] = len(segments)
    return out, segments


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("threshold", [0.0, 0.5, 0.8])
def test_panoptic_equals_loops(seed: int, threshold: float) -> None:
    probs, masks = random_input(seed)
    flags = [True, False, False, True, False]
    panoptic, segments = panoptic_inference(probs, masks, flags, threshold, max_bytes=1)
    expected, expected_segments = panoptic_by_loops(probs, masks, flags, threshold)
    np.testing.assert_array_equal(panoptic.numpy(), expected)
    assert [(s.label, s.area) for s in segments] == expected_segments
    assert [s.id for s in segments] == list(range(1, len(segments) + 1))
    assert all(s.is_thing == flags[s.label] and 0 < s.score <= 1 for s in segments)


def test_score_of_merged_stuff_is_weighted_by_pixels() -> None:
    masks = torch.full((3, 4, 10), -20.0)
    masks[0, :, :1], masks[1, :, 1:4], masks[2, :, 4:] = 20.0, 20.0, 20.0
    probs = torch.tensor([[0.9, 0.05, 0.05], [0.5, 0.1, 0.4], [0.1, 0.8, 0.1]])
    _, merged = panoptic_inference(probs, masks, [False, True])
    assert merged[0] == (1, 0, pytest.approx((0.9 * 4 + 0.5 * 12) / 16), 16, False)
    assert merged[1] == (2, 1, pytest.approx(0.8), 24, True)
    _, things = panoptic_inference(probs, masks, [True, True])
    assert [s.area for s in things] == [4, 12, 24]


def test_semantic_equals_dense_sum() -> None:
    probs, masks = random_input(3)
    dense = torch.einsum("qk,qhw->khw", probs[:, :-1].double(), masks.double().sigmoid())
    for max_bytes in (1, 5_000, 2**25):
        result = semantic_inference(probs, masks, max_bytes)
        assert result.dtype == torch.int32
        assert torch.equal(result.long(), dense.argmax(0))


def test_instances_are_the_things_among_the_best_pairs() -> None:
    probs, masks = random_input(4)
    flags = [True, False, True, False, True]
    scores, labels, found, boxes = instance_inference(probs, masks, flags, topk=9)
    pairs = sorted(((p, q, k) for q, row in enumerate(probs[:, :-1].tolist())
                    for k, p in enumerate(row)), reverse=True)[:9]  # fmt: skip
    expected = []
    for p, q, k in pairs:
        inside = masks[q] > 0
        if flags[k]:
            quality = masks[q][inside].double().sigmoid().mean().item() if inside.any() else 0.0
            expected.append((p * quality, k, q))
    expected.sort(reverse=True)
    assert 0 < len(expected) < 9
    np.testing.assert_allclose(scores, [e[0] for e in expected], rtol=1e-5)
    assert labels.tolist() == [e[1] for e in expected]
    assert torch.equal(found, torch.stack([masks[e[2]] > 0 for e in expected]))
    full = found.any(2).any(1)
    inclusive = masks_to_boxes(found[full])
    assert torch.equal(boxes[full], inclusive + torch.tensor([0.0, 0.0, 1.0, 1.0]))
    assert (boxes[~full] == 0).all()


# ---------------------------------------------------------------------- properties


def test_order_of_classes_does_not_matter() -> None:
    """Flags mark things: shuffled classes give the same maps and areas."""
    probs, masks = random_input(5)
    flags = [True, False, False, True, False]
    order = [3, 0, 4, 2, 1]
    shuffled = torch.cat([probs[:, order], probs[:, -1:]], dim=1)
    moved = [flags[i] for i in order]
    panoptic, segments = panoptic_inference(probs, masks, flags)
    panoptic2, segments2 = panoptic_inference(shuffled, masks, moved)
    assert torch.equal(panoptic, panoptic2)
    assert segments == [s._replace(label=order[s.label]) for s in segments2]
    semantic = semantic_inference(shuffled, masks).long()
    assert torch.equal(semantic_inference(probs, masks).long(), torch.tensor(order)[semantic])


def test_more_than_a_thousand_classes() -> None:
    rng = torch.Generator().manual_seed(0)
    masks = torch.full((4, 8, 8), -20.0)
    for q in range(4):
        masks[q, 2 * q : 2 * q + 2] = 20.0
    labels = torch.tensor([1499, 1001, 7, 1499])
    probs = 1e-5 * torch.rand(4, 1501, generator=rng)
    probs[torch.arange(4), labels] = 0.9
    flags = [k == 1499 for k in range(1500)]
    panoptic, segments = panoptic_inference(probs, masks, flags)
    assert [(s.id, s.label, s.is_thing) for s in segments] == [
        (1, 1499, True),
        (2, 1001, False),
        (3, 7, False),
        (4, 1499, True),
    ]
    assert panoptic[:, 0].tolist() == [1, 1, 2, 2, 3, 3, 4, 4]
    assert semantic_inference(probs, masks)[::2, 0].tolist() == labels.tolist()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_inputs_and_autocast_are_computed_in_float32(dtype: torch.dtype) -> None:
    probs, masks = (t.to(dtype) for t in random_input(6))
    flags = [True] * 5
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = (
            panoptic_inference(probs, masks, flags),
            semantic_inference(probs, masks),
            instance_inference(probs, masks, flags),
            resize_masks(masks, (40, 60), (37, 50), (23, 31)),
        )
    probs, masks = probs.float(), masks.float()
    full = (
        panoptic_inference(probs, masks, flags),
        semantic_inference(probs, masks),
        instance_inference(probs, masks, flags),
        resize_masks(masks, (40, 60), (37, 50), (23, 31)),
    )
    assert torch.equal(low[0][0], full[0][0]) and low[0][1] == full[0][1]
    assert torch.equal(low[1], full[1])
    assert all(torch.equal(a, b) for a, b in zip(low[2], full[2], strict=True))
    assert low[3].dtype == torch.float32 and torch.equal(low[3], full[3])


@pytest.mark.parametrize("queries", [0, 3])
def test_no_segments(queries: int) -> None:
    """All masks are void, or there are no masks."""
    probs = torch.zeros(queries, 4)
    probs[:, -1] = 1.0
    masks = torch.full((queries, 6, 7), -20.0)
    panoptic, segments = panoptic_inference(probs, masks, [True] * 3)
    assert panoptic.shape == (6, 7) and not panoptic.any() and segments == []
    assert semantic_inference(probs, masks).shape == (6, 7)
    scores, labels, found, boxes = instance_inference(probs, masks, [True] * 3)
    assert found.shape == (len(scores), 6, 7) and boxes.shape == (len(labels), 4)
    assert (scores == 0).all() and (boxes == 0).all()
    assert len(instance_inference(probs, masks, [False] * 3)[0]) == 0


@pytest.mark.parametrize(
    ("probs", "masks", "flags", "message"),
    [
        ((5, 4), (6, 2, 2), 3, r"with the same Q, got \(5, 4\) and \(6, 2, 2\)"),
        ((5, 4), (5, 2, 2), 4, "4 flags for the 3 classes"),
        ((5, 1), (5, 2, 2), 0, "at least one class"),
    ],
)
def test_mismatched_shapes_raise(probs: tuple, masks: tuple, flags: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        panoptic_inference(torch.zeros(probs), torch.zeros(masks), [True] * flags)


def test_class_maps_are_resized_as_in_the_published_fc_clip() -> None:
    """Reference: sum at the padded size, crop, resize the K maps, argmax."""
    generator = torch.Generator().manual_seed(1)
    probs = (2 * torch.randn(7, 6, generator=generator)).softmax(-1)
    masks = 6 * torch.randn(7, 16, 22, generator=generator)
    padded = F.interpolate(masks[None], size=(64, 88), mode="bilinear", align_corners=False)[0]
    maps = torch.einsum("qk,qhw->khw", probs[:, :-1], padded.sigmoid())[:, :60, :81]
    expected = F.interpolate(maps[None], size=(35, 140), mode="bilinear", align_corners=False)[0]

    def found(**settings: object) -> Tensor:
        cfg = {**TEST_CFG, "panoptic": False, "instance": False, **settings}
        sample = DetDataSample(metainfo=dict(ori_shape=(35, 140)))
        resized = resize_for_results(masks, Frame((64, 88), (60, 81)), (35, 140), cfg)
        add_results(sample, resized, probs, Vocabulary.parse("a; b; c; d; e"), cfg)
        return sample.pred_sem_seg.sem_seg[0]

    same = found(semantic_resize="class_maps")
    assert (same == expected.argmax(0)).float().mean() > 0.999  # rounding decides ties
    other = found()
    assert 0.002 < (same != other).float().mean() < 0.2
    # The published code resizes masks if it also computes other results.
    assert torch.equal(found(semantic_resize="class_maps", panoptic=True), other)
    assert torch.equal(found(semantic_resize="class_maps", instance=True), other)
    with pytest.raises(ConfigError, match="semantic_resize"):
        check_test_cfg(dict(semantic_resize="maps"))


def test_probabilities_are_resized_as_in_the_published_maskclippp() -> None:
    masks = 6 * torch.randn(7, 16, 22, generator=torch.Generator().manual_seed(1))
    size = dict(mode="bilinear", align_corners=False)
    padded = F.interpolate(masks[None].sigmoid(), size=(64, 88), **size)
    expected = F.interpolate(padded[..., :60, :81], size=(35, 140), **size)[0]
    cfg = {**TEST_CFG, "mask_resize": "probability"}
    found = resize_for_results(masks, Frame((64, 88), (60, 81)), (35, 140), cfg)
    torch.testing.assert_close(found.sigmoid(), expected, atol=1e-6, rtol=0)
    other = resize_for_results(masks, Frame((64, 88), (60, 81)), (35, 140), TEST_CFG)
    assert 0.01 < ((found > 0) != (other > 0)).float().mean() < 0.2
    certain = resize_for_results(30 * masks, Frame((64, 88), (60, 81)), (35, 140), cfg)
    assert torch.isfinite(certain).all()
    with pytest.raises(ConfigError, match="mask_resize"):
        check_test_cfg(dict(mask_resize="both"))


def test_resize_via_padded_size_and_crop() -> None:
    masks = torch.randn(7, 16, 22, generator=torch.Generator().manual_seed(0))
    padded = F.interpolate(masks[None], size=(64, 88), mode="bilinear", align_corners=False)
    expected = F.interpolate(
        padded[..., :60, :81], size=(48, 65), mode="bilinear", align_corners=False
    )[0]
    for max_bytes in (1, 100_000, 2**25):
        assert torch.equal(resize_masks(masks, (64, 88), (60, 81), (48, 65), max_bytes), expected)
    # A result of the padded size is not resampled a second time.
    assert torch.equal(resize_masks(masks, (64, 88), (64, 88), (64, 88)), padded[0])
    with pytest.raises(ValueError, match="larger than its padding"):
        resize_masks(masks, (64, 88), (65, 88), (10, 10))
    with pytest.raises(ValueError, match="positive"):
        resize_masks(masks, (64, 88), (60, 81), (0, 10))


# -------------------------------------------------------------------------- memory

MEMORY_SCRIPT = """
import torch
from odise_mm.models import postprocess as p

def peak():  # of this process only; after a fork, ru_maxrss includes the parent's
    lines = open("/proc/self/status").read().splitlines()
    return next(int(l.split()[1]) for l in lines if l.startswith("VmHWM"))

small = torch.empty(100, 256, 352).normal_(std=8)
probs = (3 * torch.randn(100, 501)).softmax(-1)
flags = [k % 3 > 0 for k in range(500)]
masks = p.resize_masks(small, (1024, 1408), (1024, 1365), (1024, 1365))
peaks = [peak()]
panoptic, segments = p.panoptic_inference(probs, masks, flags, 0.1)
peaks.append(peak())
semantic = p.semantic_inference(probs, masks)
peaks.append(peak())
instances = p.instance_inference(probs, masks, flags)
peaks.append(peak())
assert panoptic.shape == semantic.shape == (1024, 1365) and segments and len(instances[0])
print(*peaks, masks.nbytes // 1024)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_with_500_classes() -> None:
    """All results at 1024 x 1365 need at most 1 GB in addition to the mask logits.

    The scores of all classes would need 2.8 GB.
    """
    run = subprocess.run(
        [sys.executable, "-c", MEMORY_SCRIPT],
        check=True,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    before, *after, logits = (int(v) * 1024 for v in run.stdout.split())
    assert logits == 4 * 100 * 1024 * 1365
    assert after[-1] - before < 1e9
    print([round((a - before) / 1e6) for a in after], "MB beyond the mask logits")


def test_score_threshold_drops_masks_before_they_compete() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(12, 4, generator=generator).softmax(-1)
    masks = torch.randn(12, 20, 24, generator=generator)
    best = scores.max(-1).values
    threshold = float(best.median())
    keep = best > threshold
    assert 0 < keep.sum() < 12
    found = panoptic_inference(scores, masks, [True] * 3, 0.0, score_threshold=threshold)
    expected = panoptic_inference(scores[keep], masks[keep], [True] * 3, 0.0)
    assert torch.equal(found[0], expected[0]) and found[1] == expected[1]
    assert len(panoptic_inference(scores, masks, [True] * 3, 0.0)[1]) > len(found[1])


def test_instances_by_mean_logit() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(5, 4, generator=generator).softmax(-1)
    masks = 3 * torch.randn(5, 8, 9, generator=generator)
    found = instance_inference(scores, masks, [True] * 3, topk=3, quality="logit")[0]
    best, index = scores[:, :-1].flatten().topk(3)
    means = torch.stack([m[m > 0].mean() for m in masks])[index // 3]
    torch.testing.assert_close(found, (best * means).sort(descending=True).values)
