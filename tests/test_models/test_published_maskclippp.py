"""MaskCLIP++ on masks of FC-CLIP against the published implementation, with the same weights.

Both checkpoints are written as they are published and read by the loader that users use.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmdet.structures import DetDataSample
from PIL import Image
from torch import Tensor, nn

from odise_mm import OpenVocabInferencer
from odise_mm.checkpoints.published import load_weights
from odise_mm.config.building import build_model
from odise_mm.errors import CheckpointError, ConfigError
from odise_mm.models import ProposalSegmentor
from odise_mm.models.classifiers import clip_classifiers
from odise_mm.models.image_sizes import resize_short_side
from odise_mm.registry import MODELS
from tests.support import golden, golden_families, parts
from tests.support import golden_maskclippp as recorded
from tests.test_models.test_published_families import vocabulary


class Run:
    """The model, one run of it, and what its parts returned."""

    @torch.no_grad()
    def __init__(self, folder: Path) -> None:
        self.case = recorded.load_case()
        self.model: Any = build_model(recorded.tiny_config(folder)).eval()
        self.unused = load_weights(self.model, recorded.write_checkpoint(folder / "published.pth"))
        self.model.vocabulary = vocabulary()
        self.outputs: dict[str, Any] = {}
        (classifier,), source = self.model.classifiers, self.model.proposals.segmentor
        handles = [
            self._record("backbone", source.backbone),
            self._record("pixel_decoder", source.head.pixel_decoder),
            self._record("tower", self.model.clip.visual.trunk.stem),
            self._record("embedded", self.model.clip.visual.head),
            self._record("image_proj", classifier.text_adapter.image_proj),
            self._record("adapter", classifier.text_adapter),
            self._record("names", classifier),
        ]
        image = np.asarray(Image.open(golden.DATA / "image_512x512.png"))
        pixels = torch.from_numpy(image.copy()).permute(2, 0, 1).flip(0)  # BGR, as files are read
        sample = DetDataSample(metainfo=dict(img_shape=(512, 512), ori_shape=(512, 512)))
        data = self.model.data_preprocessor(dict(inputs=[pixels], data_samples=[sample]))
        self.inputs, self.samples = data["inputs"], data["data_samples"]
        (self.found,) = self.model.segment(self.inputs, self.samples)
        for handle in handles:
            handle.remove()

    def _record(self, name: str, part: nn.Module) -> Any:
        def keep(_: nn.Module, inputs: Any, output: Any) -> None:
            self.outputs.setdefault(name, []).append((inputs, output))

        return part.register_forward_hook(keep)

    def __getitem__(self, name: str) -> Any:
        return self.outputs[name][0][1]

    def results(self, **settings: Any) -> DetDataSample:
        (sample,) = self.samples
        self.model.results_from(self.found, [sample], {**self.model.test_cfg, **settings})
        return sample

    def check(self, stage: str, tensor: Tensor, tolerance: float, outliers: int = 0) -> None:
        """A few queries may lie on a mask threshold, where rounding decides."""
        want = self.case[stage]
        wrong = np.abs(self.case.sample(stage, tensor) - want) / want.std()
        rows = wrong.reshape(wrong.shape[wrong.shape[0] == 1], -1).max(-1) if outliers else wrong
        assert (rows > tolerance).sum() <= outliers, f"{stage}: {wrong.max():.2g} > {tolerance}"

    def check_segments(self, prefix: str, suffix: str, found: Any) -> None:
        stage = f"{prefix}panoptic_seg{suffix}"
        assert self.case.agreement(stage, found.sem_seg[0]) >= 0.995
        segments = [
            {key: info[key] for key in ("id", "isthing", "category_id")}
            for info in found.segments_info
        ]
        assert segments == self.case.segments(f"{prefix}segments_info{suffix}")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(tmp_path_factory.mktemp("maskclippp"))


def test_random_weights_equal_the_recorded_ones() -> None:
    values = recorded.check_values()
    assert len(values) == 27
    for key, first in values.items():
        drawn = recorded.parameter(key, recorded.shapes()[key])
        np.testing.assert_array_equal(drawn.ravel()[:8], first, err_msg=key)


def test_every_key_is_used(run: Run) -> None:
    """The file has the image tower and the text adapter. Masks and text tower are in others."""
    assert run.unused == {}
    ours = dict(run.model.named_parameters())
    mine = {k for k in ours if k.startswith(("clip.model.visual.", "classifiers.0.text_adapter."))}
    assert len(mine) == len(recorded.shapes())
    assert sum(ours[key].numel() for key in mine) == sum(map(np.prod, recorded.shapes().values()))
    others = {key.partition(".model.")[0].partition(".segmentor.")[0] for key in set(ours) - mine}
    assert others == {"clip", "proposals"}
    tuned, original = (
        owner.clip.visual.trunk.stem[0].weight
        for owner in (run.model, run.model.proposals.segmentor)
    )
    key = "trunk.stem.0.weight"
    expected = recorded.parameter(f"visual_encoder.proxy.{key}", tuple(tuned.shape))
    np.testing.assert_array_equal(tuned.numpy(), expected)
    key = f"backbone.clip_model.visual.{key}"
    expected = golden_families.parameter("fcclip", key, tuple(tuned.shape))
    np.testing.assert_array_equal(original.numpy(), expected)


def test_the_image_at_two_sizes(run: Run) -> None:
    (image,) = run.inputs
    seen = run.outputs["tower"][0][0][0]
    assert seen.shape == (1, 3, 640, 640)
    run.check("input", seen, 1e-6)
    larger = run.model.clip.normalize(resize_short_side(image, 800))
    run.check("input_f", larger, 1e-6)
    assert run.found.prediction.frames == [((800, 800), (800, 800))]


@torch.no_grad()
def test_masks(run: Run) -> None:
    for level, features in enumerate(run["backbone"], start=1):
        run.check(f"stage{level}_f", features, 1e-5)
    run.check("mask_features", run["pixel_decoder"][0], 1e-4)
    prediction, (own, _) = run.found.prediction, run.found.class_predictions
    run.check("pred_masks_q0_9", prediction.masks[:, :10], 5e-4)
    void = run.model.proposals.segmentor.classifiers[0]._void(prediction.embeddings)
    run.check("pred_logits", torch.cat([own.logits, void], dim=-1)[0], 1e-3, outliers=3)


@torch.no_grad()
def test_soft_pooling(run: Run) -> None:
    prediction = run.found.prediction
    weights = clip_classifiers._soft_masks(
        prediction.masks[0], prediction.frames[0], (640, 640), (640, 640)
    )
    assert weights.shape == (250, 20, 20)
    run.check("areas", weights.sum((1, 2)), 5e-4, outliers=3)
    pooled, positions = (output for _, output in run.outputs["embedded"])
    run.check("m_embs", pooled, 5e-4, outliers=3)
    run.check("p_embs", positions.T.unflatten(1, (20, 20)), 1e-5)


@torch.no_grad()
def test_names(run: Run) -> None:
    (classifier,) = run.model.classifiers
    text = classifier.text_encoder.of_vocabulary(run.model.vocabulary, classifier.template)
    run.check("test_t_embs_f", F.normalize(text, dim=-1), 1e-5)
    run.check("img_cond", run["image_proj"], 1e-5)
    run.check("text_adapted", run["adapter"], 1e-5)
    run.check("mask_logits", run["names"].logits[0], 1e-3, outliers=3)


def test_results(run: Run) -> None:
    """Recorded log-probabilities have few digits where void is nearly certain."""
    found = run.model.probabilities(run.found)[0].numpy()
    wrong = np.abs(found - np.exp(run.case["mask_cls_results"])).max(-1)
    assert (wrong > 1e-3).sum() <= 3 and np.median(wrong) < 1e-5
    sample = run.results()
    run.check_segments("", "", sample.pred_panoptic_seg)
    assert run.case.agreement("sem_seg_argmax", sample.pred_sem_seg.sem_seg[0]) >= 0.995
    np.testing.assert_allclose(
        sample.pred_instances.scores.numpy(), run.case["inst_all_scores"], rtol=1e-3
    )
    sample = run.results(overlap_threshold=0.3, semantic=False, instance=False)
    run.check_segments("", "_ot03", sample.pred_panoptic_seg)


def test_ensemble(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    published = recorded.Config.fromfile(recorded.CONFIGS / "maskclippp_convnext_l_ens.py")
    for name in ("alpha", "beta"):
        monkeypatch.setattr(run.model.ensemble, name, published.model.ensemble[name])
    found = run.model.probabilities(run.found)[0].numpy()
    wrong = np.abs(found - np.exp(run.case["ens_mask_cls_results"])).max(-1)
    assert (wrong > 1e-3).sum() <= 3 and np.median(wrong) < 1e-5
    sample = run.results(instance=False)
    run.check_segments("ens_", "", sample.pred_panoptic_seg)
    assert run.case.agreement("ens_sem_seg_argmax", sample.pred_sem_seg.sem_seg[0]) >= 0.995


def test_the_inferencer_needs_both_files(tmp_path: Path) -> None:
    path = recorded.write_checkpoint(tmp_path / "published.pth")
    config = recorded.tiny_config(tmp_path)
    inferencer = OpenVocabInferencer(config, path, device="cpu")
    assert isinstance(inferencer.model, ProposalSegmentor)
    inferencer.save_pretrained(tmp_path / "saved")
    again = OpenVocabInferencer.from_pretrained(tmp_path / "saved", device="cpu")
    expected = dict(inferencer.model.named_parameters())
    for name, value in again.model.named_parameters():
        assert torch.equal(value, expected[name]), name
    config.model.proposals.weights = str(tmp_path / "missing.pth")
    with pytest.raises(CheckpointError, match=r"missing\.pth.*set model\.proposals\.weights"):
        OpenVocabInferencer(config, path, device="cpu")


def test_another_file_is_refused(tmp_path: Path) -> None:
    config = recorded.tiny_config(tmp_path)
    model = build_model(config)
    with pytest.raises(CheckpointError, match="does not match this config"):
        load_weights(model, tmp_path / "fcclip.pth")
    path = recorded.write_checkpoint(tmp_path / "published.pth")
    state = torch.load(path, weights_only=True)["model"]
    del state["visual_encoder.proxy.trunk.stem.0.weight"]
    torch.save({"model": state}, path)
    with pytest.raises(CheckpointError, match=r"1 missing \(first: clip\.model\.visual\.trunk"):
        load_weights(model, path)


def test_the_full_size_model_has_the_published_parameters() -> None:
    config = recorded.Config.fromfile(recorded.CONFIGS / "maskclippp_convnext_l.py")
    with torch.device("meta"):
        model = build_model(config)
    assert len(model.proposals.segmentor.classifiers) == 1
    assert model.proposals.segmentor.classifiers[0].has_null_class
    names = ("clip.model.visual.", "classifiers.0.text_adapter.")
    count = sum(p.numel() for key, p in model.named_parameters() if key.startswith(names))
    tower = golden_families.shapes("fcclip", "full").items()
    tower = sum(int(np.prod(s)) for key, s in tower if key.startswith("backbone.clip_model.visual"))
    adapter = 5 * 768 * 768 + 6 * 768  # five square matrices, biases and norm
    assert count == tower + adapter


@torch.no_grad()
def test_masks_of_odise_and_batches() -> None:
    """Soft pooling names masks of a model with tiles, and images do not affect each other."""
    clip = dict(type="FrozenCLIP", model=golden_families.CLIP, weights=None)
    config = recorded.Config.fromfile(recorded.CONFIGS / "maskclippp_convnext_l_odise.py").model
    config.update(clip=clip, test_cfg=dict(config.test_cfg, overlap_threshold=0.2))
    config.classifiers[0].short_side = 96
    config.proposals.update(segmentor=parts.segmentor(), weights=None, short_side=64)
    model: Any = MODELS.build(config).eval()
    parts.random_weights(model.clip, 3)
    parts.random_weights(model.classifiers[0].text_adapter, 4)
    parts.random_weights(model.proposals.segmentor.head, 4)
    images = [parts.random_image(80, 120), parts.random_image(64, 64, seed=1)]

    def predict(images: list[Tensor]) -> list[DetDataSample]:
        shapes = [tuple(image.shape[1:]) for image in images]
        samples = [DetDataSample(metainfo=dict(img_shape=s, ori_shape=s)) for s in shapes]
        return model.test_step(dict(inputs=images, data_samples=samples), vocabulary())

    together = predict(images)
    for image, found in zip(images, together, strict=True):
        (alone,) = predict([image])
        for key in ("pred_panoptic_seg", "pred_sem_seg"):
            assert (found.get(key).sem_seg == alone.get(key).sem_seg).float().mean() > 0.999
        torch.testing.assert_close(
            found.pred_instances.scores, alone.pred_instances.scores, atol=1e-4, rtol=0
        )
    assert len(together[0].pred_panoptic_seg.segments_info) > 1
    classes = [found.pred_sem_seg.sem_seg.unique().tolist() for found in together]
    assert classes[0] != classes[1]


def test_settings_are_checked() -> None:
    for changes, message in ((dict(short_side=0), "short_side"), (dict(scaled=1), "scaled")):
        clip = dict(type="FrozenCLIP", model=golden_families.CLIP)
        with pytest.raises(ConfigError, match=message):
            MODELS.build(dict(type="SoftMaskCLIPClassifier", clip=clip, **changes))
