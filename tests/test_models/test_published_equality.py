"""Tests of every stage against the published implementation with the same random weights.

The weights are written in the published file formats and read by the regular loaders. The full-size
case (``pytest -m full_size``) takes some minutes and needs 20 GB of memory and the complete
recordings, in the folder of the environment variable ``ODISE_GOLDEN_DIR``.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmdet.structures import DetDataSample
from mmengine.config import Config

from odise_mm.checkpoints.published import load_weights
from odise_mm.models import OpenVocabSegmentor
from odise_mm.registry import MODELS
from odise_mm.vocabulary import Vocabulary
from tests.support import golden

CONFIGS = Path(__file__).parents[2] / "configs"
OVERLAP = {"panoptic_seg": 0.8, "panoptic_seg_ot03": 0.3}


def build(folder: Path, size: str, variant: str) -> OpenVocabSegmentor:
    config = Config.fromfile(CONFIGS / "odise" / f"odise_coco_{variant}.py")
    if size == "tiny":
        tiny = Config.fromfile(CONFIGS / "toy" / "odise_tiny.py").model
        config.model.clip, config.model.backbone = tiny.clip, tiny.backbone
    config.model.clip.weights = str(next(folder.glob("clip.*")))
    config.model.backbone.weights = str(next(folder.glob("sd_v1.*")))
    model = MODELS.build(config.model)
    unused = load_weights(model, folder / f"odise_{variant}.pth")
    assert list(unused) == ["criterion.empty_weight"]
    labels = golden.vocabulary()["labels"]
    things = set(golden.vocabulary()["thing_ids"])
    model.vocabulary = Vocabulary(
        tuple(map(tuple, labels)), tuple(index in things for index in range(len(labels)))
    )
    return model


class Stages:
    """Runs the model once and stores the inputs and outputs of every part."""

    def __init__(self, model: OpenVocabSegmentor, case: golden.GoldenCase) -> None:
        self.model, self.case = model, case
        self.outputs: dict[str, list] = {}
        parts = {
            "captioner": model.captioner,
            "backbone": model.backbone,
            "neck": model.neck,
            "pixel_decoder": model.head.pixel_decoder,
            "post_norm": model.head.transformer_decoder.post_norm,
            "mask_norm": model.head.mask_embedding.norm,
            "head": model.head,
            "own": model.classifiers[0],
            "clip": model.classifiers[1],
            "ensemble": model.ensemble,
        }
        hooks = [
            part.register_forward_hook(
                lambda _, inputs, output, name=name: self.outputs.setdefault(name, []).append(
                    (inputs, output)
                )
            )
            for name, part in parts.items()
        ]
        self.image = torch.from_numpy(case.image.copy()).permute(2, 0, 1)
        self.result = self.run()
        for hook in hooks:
            hook.remove()

    def run(self) -> DetDataSample:
        height, width = self.case.image.shape[:2]
        meta = dict(img_shape=(height, width), ori_shape=tuple(self.case.out_hw))
        sample = DetDataSample(metainfo=meta)
        return self.model.test_step(dict(inputs=[self.image.flip(0)], data_samples=[sample]))[0]

    def __getitem__(self, name: str):
        return self.outputs[name][-1][1]


@pytest.fixture(scope="module", params=golden.CASES)
def stages(request: pytest.FixtureRequest, tiny_weights: Path) -> Stages:
    case = golden.load_case(request.param)
    return Stages(build(tiny_weights, "tiny", case.variant), case)


@torch.no_grad()
def check_features(stages: Stages) -> None:
    model, case = stages.model, stages.case
    (tiles, _), condition = stages.outputs["captioner"][0]
    case.compare("crop_img", tiles[:1])
    case.compare("captioner_clip_embed", model.clip.encode_image(tiles[:1]), 1e-5)
    case.compare("cond_inputs", condition.context[:1], 1e-4)
    case.compare("cond_emb", condition.time[:1], 1e-4)
    latent, _ = model.backbone.encode(tiles[:1])
    case.compare("latent", latent, 1e-4)
    case.compare("noisy_latent", model.backbone.add_noise(latent, 0), 1e-4)
    for index, tap in enumerate(stages["backbone"]):
        case.compare(f"feat{index}", tap[:1], 2e-4)
    pyramid = stages.outputs["pixel_decoder"][0][0][0]
    for level, maps in enumerate(pyramid, start=2):
        case.compare(f"backbone_s{level}", maps, 2e-4)
    assert len(tiles) == int(case["n_crops"])


@torch.no_grad()
def check_masks(stages: Stages, allowed: int = 0) -> None:
    model, case = stages.model, stages.case
    mask_features, multi_scale = stages["pixel_decoder"]
    case.compare("mask_features", mask_features, 2e-4)
    for index, maps in enumerate(multi_scale):
        case.compare(f"multi_scale_{index}", maps, 2e-4)
    prediction = stages["head"][-1]
    case.compare_queries("pred_masks", prediction.masks, allowed=allowed)
    case.compare_queries("decoder_output_last", stages["post_norm"], allowed=allowed)
    pooled = stages.outputs["mask_norm"][-1][0][0]
    case.compare_queries("mask_pooled_features", pooled, allowed=allowed)
    case.compare_queries("mask_embed", prediction.embeddings, allowed=allowed)
    layers = model.head(stages.outputs["pixel_decoder"][0][0][0], all_layers=True)
    case.compare_queries("aux0_pred_masks", layers[0].masks, allowed=allowed)
    case.compare_queries("aux4_pred_masks", layers[4].masks, allowed=allowed)
    if case.variant == "caption":
        case.compare_queries("class_logits_binary", prediction.objectness, allowed=allowed)


@torch.no_grad()
def check_names(stages: Stages, allowed: int = 0) -> None:
    model, case = stages.model, stages.case
    own, clip = model.classifiers
    names = model.vocabulary.flat[0]
    prompt = "{}" if case.variant == "label" else "a photo of a {}."
    raw = own.text_encoder([prompt.replace("{}", name) for name in names])
    case.compare("text_embed_raw", raw, 1e-5)
    case.compare("text_embed_proj", own.text_proj(raw), 1e-5)
    photos = [f"a photo of a {name}." for name in names]
    case.compare("clip_text_embed", clip.text_encoder(photos), 1e-5)
    case.compare("logit_scale", own.scale, 1e-5)

    prediction, class_predictions = stages["head"][-1], [stages["own"], stages["clip"]]
    logits = class_predictions[0].logits
    if case.variant == "label":
        null = own.text_proj(own.null_embedding)
        case.compare("null_embed_proj", null, 1e-5)
        embeddings = F.normalize(prediction.embeddings, dim=-1)
        logits = torch.cat([logits, own.scale * embeddings @ F.normalize(null, dim=-1).T], dim=-1)
    case.compare_queries("pred_logits_before_clip", logits, allowed=allowed)
    images = [stages.image.float() / 255]
    embedded = clip.embed_masks(prediction.masks, images)
    case.compare_queries("clip_mask_embed", embedded, allowed=allowed)
    case.compare_queries("clip_mask_pred_open_logits", class_predictions[1].logits, allowed=allowed)
    joined = model.ensemble.ensemble_logits(class_predictions, model.vocabulary)
    case.compare_queries("fused_open_logits", joined, allowed=allowed)
    log_probabilities = torch.log(stages["ensemble"] + 1e-8)
    case.compare_queries("mask_cls_results", log_probabilities, allowed=allowed)


def check_results(stages: Stages) -> None:
    case, result = stages.case, stages.result
    segment_keys = ("id", "isthing", "category_id")
    for name, threshold in OVERLAP.items():
        stages.model.test_cfg["overlap_threshold"] = threshold
        panoptic = stages.run().pred_panoptic_seg
        assert case.agreement(name, panoptic.sem_seg[0]) >= 0.999
        wanted = case.segments(name.replace("panoptic_seg", "segments_info"))
        found = [{key: s[key] for key in segment_keys} for s in panoptic.segments_info]
        assert found == [{key: s[key] for key in segment_keys} for s in wanted]
    assert case.agreement("sem_seg_argmax", result.pred_sem_seg.sem_seg[0]) >= 0.999

    instances = result.pred_instances
    for label in set(case["inst_all_classes"].tolist()):
        found = instances.scores[instances.labels == label].sort(descending=True).values
        wanted = case["inst_all_scores"][case["inst_all_classes"] == label]
        np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-7)
    assert len(instances) == len(case["inst_all_scores"])
    instances = instances[instances.scores.argsort(descending=True)]
    areas = instances.masks[:20].sum((1, 2)).float().numpy()
    np.testing.assert_allclose(areas, case["inst_top20_mask_area"], rtol=1e-3, atol=4)


def test_features(stages: Stages) -> None:
    check_features(stages)


def test_masks(stages: Stages) -> None:
    check_masks(stages)


def test_names(stages: Stages) -> None:
    check_names(stages)


def test_results(stages: Stages) -> None:
    check_results(stages)


@pytest.mark.full_size
def test_full_size(golden_folder: Path, tmp_path: Path) -> None:
    """Test the full-size Stable Diffusion v1 and CLIP ViT-L/14-336."""
    golden.write_all(tmp_path, "full")
    case = golden.load_case("full_label_512x512", golden_folder)
    stages = Stages(build(tmp_path, "full", "label"), case)
    check_features(stages)
    check_masks(stages, allowed=3)
    check_names(stages, allowed=3)
    check_results(stages)
