"""FC-CLIP, OVRCOAT and MAFT+ against the published implementations, with the same random weights.

The weights are written as they are published and read by the loader that users use.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmdet.structures import DetDataSample
from mmengine.optim import build_optim_wrapper
from mmengine.structures import InstanceData
from PIL import Image
from torch import Tensor, nn

from odise_mm import OpenVocabInferencer
from odise_mm.checkpoints import published
from odise_mm.checkpoints.published import load_weights
from odise_mm.config.building import build_model, build_part
from odise_mm.errors import CheckpointError, ConfigError
from odise_mm.models import (
    CLIPCrossEntropyLoss,
    GramDistillationLoss,
    MaskAwareLoss,
    OpenVocabSegmentor,
    RepresentationCompensationLoss,
    TrainingOutputs,
)
from odise_mm.models.classifiers.base import ClassPrediction
from odise_mm.models.losses.clip_losses import scaled_to_one, soft_iou
from odise_mm.registry import MODELS
from odise_mm.vocabulary import Vocabulary
from tests.support import golden, golden_families
from tests.support.training import make_batch

UNUSED = {
    "fcclip": set(),
    "ovrcoat": {"frozen_backbone.clip_model.logit_scale"},
    "maftplus": {"backbone_t.clip_model.logit_scale"},
}


def vocabulary() -> Vocabulary:
    labels, things = golden.vocabulary()["labels"], set(golden.vocabulary()["thing_ids"])
    groups = tuple(map(tuple, labels))
    return Vocabulary(groups, tuple(index in things for index in range(len(groups))))


class Run:
    """The model, one run of it, and what its parts returned."""

    def __init__(self, family: str, folder: Path) -> None:
        self.case = golden_families.load_case(family)
        self.model = build_model(golden_families.tiny_config(family)).eval()
        assert isinstance(self.model, OpenVocabSegmentor)
        self.unused = load_weights(
            self.model, golden_families.write_checkpoint(folder / f"{family}.pth", family)
        )
        self.model.vocabulary = vocabulary()
        self.outputs: dict[str, Any] = {}
        model = self.model
        handles = [
            self._record("backbone", model.backbone),
            self._record("pixel_decoder", model.head.pixel_decoder),
            self._record("head", model.head),
            self._record("mlp", model.head.mask_embedding.mlp),
            self._record("own", model.classifiers[0]),
            self._record("clip", model.classifiers[1]),
            self._record("ensemble", model.ensemble),
        ]
        self.result = self.run()
        for handle in handles:
            handle.remove()

    def _record(self, name: str, part: nn.Module) -> Any:
        return part.register_forward_hook(
            lambda _, inputs, output: self.outputs.__setitem__(name, (inputs, output))
        )

    def run(self, **settings: Any) -> DetDataSample:
        image = np.asarray(Image.open(golden.DATA / "image_512x512.png"))
        pixels = torch.from_numpy(image.copy()).permute(2, 0, 1).flip(0)  # BGR, as files are read
        sample = DetDataSample(metainfo=dict(img_shape=(512, 512), ori_shape=(512, 512)))
        data = dict(inputs=[pixels], data_samples=[sample])
        return self.model.test_step(data, test_cfg=settings)[0]

    def __getitem__(self, name: str) -> Any:
        return self.outputs[name][1]

    def check(self, stage: str, tensor: Tensor, tolerance: float) -> None:
        error = self.case.error(stage, tensor)
        assert error <= tolerance, f"{self.case.family}/{stage}: {error:.2g} > {tolerance:.2g}"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Any:
    made: dict[str, Run] = {}

    def get(family: str) -> Run:
        if family not in made:
            made[family] = Run(family, tmp_path_factory.mktemp(family))
        return made[family]

    return get


@pytest.fixture(scope="module", params=golden_families.FAMILIES)
def run(request: pytest.FixtureRequest, runs: Any) -> Run:
    return runs(request.param)


@pytest.mark.parametrize("family", golden_families.FAMILIES)
def test_random_weights_equal_the_recorded_ones(family: str) -> None:
    recorded = golden_families.check_values(family)
    assert len(recorded) >= 5
    shapes = golden_families.shapes(family)
    for key, first in recorded.items():
        value = golden_families.parameter(family, key, shapes[key])
        np.testing.assert_array_equal(value.ravel()[:8], first, err_msg=key)


def test_every_key_is_used_or_has_a_reason(run: Run) -> None:
    family = run.case.family
    keys = set(golden_families.shapes(family)) | {"criterion.empty_weight"}
    own = {k for k in keys if k.startswith(("backbone.", "sem_seg_head.", "void_emb", "cdt."))}
    assert set(run.unused) == keys - own
    assert UNUSED[family] <= set(run.unused) and all(run.unused.values())
    loaded = sum(int(np.prod(golden_families.shapes(family)[key])) for key in own)
    assert loaded == sum(parameter.numel() for parameter in run.model.parameters())


@pytest.mark.parametrize("family", golden_families.FAMILIES)
def test_the_full_size_model_has_the_published_parameters(family: str) -> None:
    config = golden_families.published_config(family)
    with torch.device("meta"):
        model = build_model(config)
    shapes = golden_families.shapes(family, "full")
    kept = {
        k: s for k, s in shapes.items() if not k.startswith(("frozen_backbone.", "backbone_t."))
    }
    assert sum(p.numel() for p in model.parameters()) == sum(map(np.prod, kept.values()))


def test_features(run: Run) -> None:
    for level, features in enumerate(run["backbone"], start=2):
        run.check(f"backbone_res{level}", features, 1e-5)
    mask_features, multi_scale = run["pixel_decoder"]
    run.check("mask_features", mask_features, 1e-4)
    for level, features in enumerate(multi_scale):
        run.check(f"multi_scale_{level}", features, 1e-4)


@torch.no_grad()
def test_masks(run: Run) -> None:
    prediction = run["head"][-1]
    run.check("pred_masks_q0_19", prediction.masks[:, :20], 5e-4)
    run.check("class_embed_in", run.outputs["mlp"][0][0], 5e-4)
    run.check("class_embed", prediction.embeddings, 5e-4)
    layers = run.model.head(run.outputs["pixel_decoder"][0][0], all_layers=True)
    run.check("aux4_pred_masks", layers[4].masks, 5e-4)


@torch.no_grad()
def test_names(run: Run) -> None:
    own, clip = run.model.classifiers
    rows = own.text_encoder.of_vocabulary(run.model.vocabulary, own.template)
    rows = F.normalize(torch.cat([rows, own.null_embedding]), dim=-1)
    run.check("text_classifier", rows, 1e-5)
    void = own._void(run["head"][-1].embeddings)
    run.check("pred_logits_in_vocab", torch.cat([run["own"].logits, void], dim=-1), 5e-4)
    expected = run.case["out_vocab_logits"][..., :-1]
    error = np.abs(run["clip"].logits.numpy() - expected).max() / expected.std()
    assert error <= 5e-4


@torch.no_grad()
def test_logits_of_all_layers(run: Run) -> None:
    """Training compares these with the labels. A query on a mask threshold may differ."""
    layers = run.model.head(run.outputs["pixel_decoder"][0][0], all_layers=True)
    logits = run.model.classifiers[0].supervised_logits(
        [layer.embeddings for layer in layers], run.model.vocabulary
    )
    assert len(logits) == 10
    for layer in (0, 4):
        expected = run.case[f"aux{layer}_pred_logits"]
        difference = np.abs(logits[layer].numpy() - expected) / expected.std()
        assert (difference[0].max(-1) > 1e-3).sum() <= 3


AUXILIARY = {
    "fcclip": set(),
    "ovrcoat": {"loss_clip"},
    "maftplus": {"loss_ranking", "loss_compensation"},
}
TRUNK = "clip.model.visual.trunk."


def of_trunk(name: str) -> bool:
    return name.startswith((f"{TRUNK}stem.", f"{TRUNK}stages."))


@pytest.mark.parametrize("family", golden_families.FAMILIES)
def test_two_training_steps(family: str, tmp_path: Path) -> None:
    """The training config trains all that it should; its checkpoint loads again."""
    config = golden_families.tiny_config(family, training=True)
    config.model.head.train_cfg.num_points = 200
    model = build_model(config)
    model.vocabulary = vocabulary()
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    trained = {name for name, value in model.named_parameters() if value.requires_grad}
    frozen_clip = {name for name in before if name.startswith("clip.") and name not in trained}
    assert {name for name in trained if name.startswith("clip.")} == (
        set() if family == "fcclip" else set(filter(of_trunk, before))
    )
    text = model.classifiers[0].class_embeddings(model.vocabulary).clone()
    options = config.optim_wrapper.to_dict() | dict(type="OptimWrapper")  # AMP needs a GPU
    options.pop("dtype", None), options.pop("loss_scale", None)
    optimizer = build_optim_wrapper(model.train(), options)
    for _ in range(2):
        data = make_batch(model, (3, 2))
        losses = model(**data, mode="loss")
        assert all(torch.isfinite(value) for value in losses.values())
        assert len(losses) == 30 + len(AUXILIARY[family]) and AUXILIARY[family] <= set(losses)
        optimizer.update_params(model.parse_losses(losses)[0])
    after = dict(model.named_parameters())
    moments = optimizer.optimizer.state
    assert not {name for name in trained if not moments[after[name]]["exp_avg"].any()}
    assert all(torch.equal(after[name], before[name]) for name in frozen_clip)
    model.classifiers[0].text_encoder.forget()
    assert torch.equal(model.classifiers[0].class_embeddings(model.vocabulary), text)

    state = model.state_dict()
    assert not [key for key in state if key.startswith(("clip.", "auxiliary_losses."))]
    assert len(state) == len(trained)
    torch.save({"state_dict": state}, tmp_path / "iter_2.pth")
    # The config for testing has no teacher, and the same state dict.
    again = build_model(golden_families.tiny_config(family))
    load_weights(again, tmp_path / "iter_2.pth")
    for name, value in again.named_parameters():
        assert torch.equal(value, after[name]), name


def test_rates_and_decay_of_fine_tuning() -> None:
    """The trunk has a tenth of the rate; its norms keep a weight decay of 0."""
    config = golden_families.published_config("ovrcoat", training=True)
    with torch.device("meta"):
        model = build_model(config)
    groups = build_optim_wrapper(model, config.optim_wrapper.to_dict()).optimizer.param_groups
    found = {id(g["params"][0]): (g["lr"], g["weight_decay"]) for g in groups}
    # Published: one more, CLIP's logit scale.
    assert sum(g["params"][0].numel() for g in groups) == 216_948_865
    norms = {
        f"{name}.{part}"
        for name, module in model.named_modules()
        if isinstance(module, nn.LayerNorm | nn.GroupNorm)
        for part in ("weight", "bias")
    }
    norms |= {f"head.{name}.weight" for name in ("query_feat", "query_embed", "level_embed")}
    norms.add("classifiers.0.null_embedding")
    for name, value in model.named_parameters():
        if value.requires_grad:
            rate, decay = found.pop(id(value))
            assert rate == pytest.approx(1e-5 if of_trunk(name) else 1e-4), name
            assert decay == (0 if name in norms else 0.05), name
    assert not found


@pytest.mark.parametrize("family", ["ovrcoat", "maftplus"])
def test_published_weights_go_into_the_trained_trunk(runs: Any, family: str) -> None:
    model = runs(family).model
    state = model.state_dict()
    keys = [key for key in state if key.startswith("backbone.trunk.")]
    assert len(keys) == sum(map(of_trunk, dict(model.named_parameters())))
    for key in keys:
        published = key.replace("backbone.trunk.", "backbone.clip_model.visual.trunk.")
        expected = golden_families.parameter(family, published, tuple(state[key].shape))
        np.testing.assert_array_equal(state[key].numpy(), expected)


def training_outputs(run: Run, labels: list[int], masks: Tensor, queries: Any) -> TrainingOutputs:
    """Outputs for the recorded image, with the masks as they are in inference."""
    (image,), model = run.outputs["backbone"][0], run.model
    pyramid = model.backbone(image)
    prediction = run["head"][-1]._replace(features=pyramid[-1])
    names = model.vocabulary
    return TrainingOutputs(
        images=image,
        pyramid=pyramid,
        prediction=prediction,
        targets=[InstanceData(labels=torch.tensor(labels), masks=masks)],
        matches=[(torch.tensor(queries), torch.arange(len(queries)))],
        vocabulary=names,
        classify=lambda: [c(prediction, [], names) for c in model.classifiers],
    )


def published_teacher(family: str, prefix: str) -> nn.Module:
    """The frozen second CLIP of the recording."""
    teacher = MODELS.build(dict(type="OpenCLIPBackbone", model=golden_families.CLIP))
    for name, value in teacher.own_tower.named_parameters():
        key = f"{prefix}.clip_model.visual.{name}"
        value.data = torch.from_numpy(golden_families.parameter(family, key, tuple(value.shape)))
    return teacher


def check_gradients(run: Run, case: golden_families.Case, loss: Tensor, stage: str) -> None:
    run.model.zero_grad()
    loss.backward(retain_graph=True)
    keys = [k for k in case.arrays if k.startswith(f"{stage}/") and "logit_scale" not in k]
    assert len(keys) == 3
    for key in keys:
        name = key.partition("/")[2].replace("backbone.clip_model.", "clip.model.")
        gradient = run.model.get_parameter(name).grad
        norm = float(case[f"norm/{key}"])
        assert float(gradient.double().norm()) == pytest.approx(norm, rel=1e-5)
        assert case.error(key, gradient[:64]) <= 1e-4, key
    run.model.zero_grad()


def test_losses_of_ovrcoat_equal_the_recorded_ones(runs: Any) -> None:
    run, case = runs("ovrcoat"), golden_families.load_losses("ovrcoat")
    labels, queries = case["oov_labels"].tolist(), case["oov_queries"].tolist()
    outputs = training_outputs(run, labels, torch.zeros(len(labels), 8, 8).bool(), queries)
    loss = CLIPCrossEntropyLoss(loss_weight=1.0)(outputs)
    assert float(loss) == pytest.approx(float(case["loss_oov_ce"]), rel=1e-5)
    check_gradients(run, case, loss, "grad_oov_ce")
    half = CLIPCrossEntropyLoss(loss_weight=0.5)(outputs)
    assert float(half) == pytest.approx(0.5 * float(loss), rel=1e-6)
    assert float(CLIPCrossEntropyLoss(1.0, twice=False)(outputs)) > 1.3 * float(loss)

    teacher = published_teacher("ovrcoat", "frozen_backbone")
    assert case.error("frozen_clip_vis_dense", teacher(outputs.images)[-1]) <= 1e-5
    gram = GramDistillationLoss(teacher, loss_weight=1.0)(outputs)
    assert float(gram) == pytest.approx(float(case["dist_loss_w1"]), rel=1e-5)
    compensation = RepresentationCompensationLoss(teacher, loss_weight=1.0)(outputs)
    assert float(compensation) == pytest.approx(float(case["rc_loss_w1"]), rel=1e-5)
    check_gradients(run, case, gram + compensation, "grad_dist_plus_rc")


def test_losses_of_maftplus_equal_the_recorded_ones(runs: Any) -> None:
    run, case = runs("maftplus"), golden_families.load_losses("maftplus")
    masks = torch.zeros(3, 512, 512, dtype=torch.bool)
    for mask, (top, bottom, left, right) in zip(masks, case["targets_boxes"], strict=True):
        mask[top:bottom, left:right] = True
    outputs = training_outputs(run, case["targets_labels"].tolist(), masks, [0, 1, 2])
    iou = soft_iou(outputs.prediction.masks[0], masks)
    np.testing.assert_allclose(iou.numpy(), case["iou"], atol=2e-5)
    np.testing.assert_allclose(scaled_to_one(iou).numpy(), case["iou_norm"], atol=1e-4)
    ranking = MaskAwareLoss(loss_weight=1.0)(outputs)
    assert float(ranking) == pytest.approx(float(case["ranking_loss"]), rel=2e-5)

    teacher = published_teacher("maftplus", "backbone_t")
    assert case.error("teacher_clip_vis_dense", teacher(outputs.images)[-1]) <= 1e-5
    compensation = RepresentationCompensationLoss(teacher, loss_weight=1.0)(outputs)
    assert float(compensation) == pytest.approx(float(case["rc_loss_w1"]), rel=1e-5)

    # The ranking loss trains the trunk and the adapter of the text, which starts as the identity.
    run.model.zero_grad()
    ranking.backward()
    trained = [n for n, p in run.model.named_parameters() if p.grad is not None and p.grad.any()]
    assert any(map(of_trunk, trained))
    assert all(of_trunk(n) or n.startswith("classifiers.1.text_adapter.") for n in trained)
    run.model.zero_grad()


def test_probabilities(run: Run) -> None:
    run.check("mask_cls_results", (run["ensemble"] + 1e-8).log(), 5e-4)


def test_results(run: Run) -> None:
    for stage, suffix in (("", ""), ("_ot03", "_ot03")):
        settings = {"overlap_threshold": 0.3} if stage else {}
        found = run.run(**settings).pred_panoptic_seg
        assert run.case.agreement(f"panoptic_seg{stage}", found.sem_seg[0]) >= 0.995
        segments = [
            {key: info[key] for key in ("id", "isthing", "category_id")}
            for info in found.segments_info
        ]
        assert segments == run.case.segments(f"segments_info{suffix}")
    semantic = run.result.pred_sem_seg.sem_seg[0]
    assert run.case.agreement("sem_seg_argmax", semantic) >= 0.995


def test_scores_of_instances(run: Run) -> None:
    scores = run.run(instance=True).pred_instances.scores
    np.testing.assert_allclose(scores.numpy(), run.case["inst_all_scores"], rtol=3e-4)


@pytest.mark.parametrize("family", golden_families.FAMILIES)
def test_the_checkpoint_is_all_that_the_inferencer_needs(family: str, tmp_path: Path) -> None:
    """The config's CLIP is not looked for: the file here does not exist."""
    config = golden_families.tiny_config(family)
    config.model.clip.weights = str(tmp_path / "missing.safetensors")
    path = golden_families.write_checkpoint(tmp_path / "published.pth", family)
    inferencer = OpenVocabInferencer(config, path, device="cpu")
    loaded = inferencer.model.clip.model.visual.trunk.stem[0].weight
    key = "backbone.clip_model.visual.trunk.stem.0.weight"
    expected = golden_families.parameter(family, key, tuple(loaded.shape))
    np.testing.assert_array_equal(loaded.detach().numpy(), expected)


@pytest.mark.parametrize("family", golden_families.FAMILIES)
def test_a_saved_folder_contains_the_clip(family: str, tmp_path: Path) -> None:
    path = golden_families.write_checkpoint(tmp_path / "published.pth", family)
    inferencer = OpenVocabInferencer(golden_families.tiny_config(family), path, device="cpu")
    inferencer.save_pretrained(tmp_path / "saved")
    again = OpenVocabInferencer.from_pretrained(tmp_path / "saved", device="cpu")
    expected = dict(inferencer.model.named_parameters())
    for name, value in again.model.named_parameters():
        assert torch.equal(value, expected[name]), name


def test_padding_is_zero_for_clip() -> None:
    """Published: images are normalized, then padded with zeros."""
    model = build_model(golden_families.tiny_config("fcclip"))
    samples = [DetDataSample(metainfo=dict(img_shape=s)) for s in ((50, 70), (64, 40))]
    images = [torch.randint(0, 256, (3, *s.img_shape), dtype=torch.uint8) for s in samples]
    inputs = model.data_preprocessor(dict(inputs=images, data_samples=samples))["inputs"]
    assert inputs.shape == (2, 3, 64, 96)
    for image, sample, pixels in zip(inputs, samples, images, strict=True):
        height, width = sample.img_shape
        normalized = model.clip.normalize(image)
        assert normalized[:, height:].abs().max() < 1e-6 if height < 64 else True
        assert normalized[:, :, width:].abs().max() < 1e-6
        assert torch.equal(image[:, :height, :width], pixels.flip(0) / 255)


_OWN = dict(type="OpenVocabClassifier", embed_dim=None, null_class=True, template="vild")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(tile_size=512), "tile_size=512 with model.neck=None"),
        (
            dict(neck=dict(type="FeatureProjection", out_channels=256)),
            "shared=True needs an OpenCLIPBackbone of the same CLIP and no neck",
        ),
        (
            dict(data_preprocessor=dict(type="ColorPaddingPreprocessor", pad_color=[True, 0, 0])),
            "pad_color",
        ),
        (
            {"head.embed_dim": 256},
            "embeddings have 256 channels, but OpenVocabClassifier .* names of 64 channels: set "
            "model.head.embed_dim=64",
        ),
        (
            dict(classifiers=[dict(type="PooledCLIPClassifier"), dict(_OWN)]),
            "model.classifiers.1, OpenVocabClassifier, predicts void, so it must be the first",
        ),
        (
            {"classifiers.1.text_adapter": {}},
            "{} is not the config of a part: it must be a dictionary with `type`; .* None",
        ),
    ],
)
def test_parts_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    config = golden_families.tiny_config("fcclip")
    dotted = {f"model.{key}": value for key, value in changes.items() if "." in key}
    config.merge_from_dict(dotted)
    config.model.update({key: value for key, value in changes.items() if "." not in key})
    with pytest.raises(ConfigError, match=message):
        build_model(config)


def test_another_methods_checkpoint_is_refused(tmp_path: Path) -> None:
    path = golden_families.write_checkpoint(tmp_path / "maftplus.pth", "maftplus")
    model = build_model(golden_families.tiny_config("fcclip"))
    with pytest.raises(CheckpointError, match="does not match this config.*checkpoint of MAFT"):
        load_weights(model, path)


@pytest.mark.parametrize(
    ("family", "name", "config", "message"),
    [
        ("ovrcoat", "model.pth", "ovrcoat", "published OVRCOAT checkpoint (it contains frozen_"),
        ("ovrcoat", "model.pth", "fcclip", "seems to be a checkpoint of OVRCOAT (it contains "),
        ("fcclip", "fcclip_cocopan.pth", "fcclip", "is a published FC-CLIP checkpoint"),
        ("fcclip", "fcclip_cocopan.pth", "ovrcoat", "configs/fcclip for this file"),
        ("fcclip", "OVRCOAT.pth", "fcclip", "configs/ovrcoat for this file"),
        ("fcclip", "model.pth", "ovrcoat", "FC-CLIP, or of OVRCOAT without its second CLIP"),
    ],
)
def test_checkpoints_with_equal_keys_are_told_apart(
    family: str, name: str, config: str, message: str, monkeypatch: Any, tmp_path: Path
) -> None:
    """OVRCOAT also saves its second CLIP; without it, only the file's name is a hint."""
    model = nn.Module()
    model.ensemble = build_part(golden_families.published_config(config).model.ensemble, MODELS)
    model.vocabulary = vocabulary()
    monkeypatch.setattr(model, "load_state_dict", lambda state: None)
    monkeypatch.setattr(published, "expected_tensors", lambda model, state: state)
    logged: dict[str, int] = {}
    monkeypatch.setattr(
        published, "print_log", lambda text, logger, level=20: logged.update({text: level})
    )
    keys = golden_families.shapes(family)
    torch.save({"model": {key: torch.zeros(1) for key in keys}}, tmp_path / name)
    load_weights(model, tmp_path / name)
    (found,) = (text for text in logged if message in text)
    differs = "for this file" in message or "seems" in message
    assert logged[found] == (30 if differs else 20)
    assert len(logged) == 1 + differs


def test_a_checkpoint_with_half_a_clip_is_refused(tmp_path: Path) -> None:
    path = golden_families.write_checkpoint(tmp_path / "whole.pth", "fcclip")
    state = torch.load(path, weights_only=True)["model"]
    del state["backbone.clip_model.visual.trunk.stem.0.weight"]
    torch.save({"model": state}, path)
    with pytest.raises(CheckpointError, match=r"1 missing \(first: clip.model.visual.trunk.stem.0"):
        load_weights(build_model(golden_families.tiny_config("fcclip")), path)


# --- what one family alone has --------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("family", ["fcclip", "ovrcoat"])
def test_gate_on_masks_that_cover_nothing(runs: Any, family: str, monkeypatch: Any) -> None:
    run = runs(family)
    empty = ~run["clip"].valid
    assert 10 < empty.sum() < 100
    monkeypatch.setattr(run.model.ensemble, "valid_masks_only", True)
    joined = run.model.ensemble([run["own"], run["clip"]], run.model.vocabulary)
    run.check("mask_cls_results_gate", (joined + 1e-8).log(), 5e-4)


@torch.no_grad()
def test_confidence_lowers_void(runs: Any, monkeypatch: Any) -> None:
    run = runs("ovrcoat")
    void = run.model.ensemble.void_probability([run["own"], run["clip"]])
    run.check("void_prob_adjusted", void, 5e-4)
    monkeypatch.setattr(run.model.ensemble, "coat_lambda", 0.0)
    joined = run.model.ensemble([run["own"], run["clip"]], run.model.vocabulary)
    # One query is on a threshold, and the recorded values lost digits where p_void is near 1.
    recorded = np.exp(run.case["mask_cls_results_trust0"])
    np.testing.assert_allclose(joined[0].numpy(), recorded, atol=1e-4)


@torch.no_grad()
def test_text_is_adapted_to_the_image(runs: Any, monkeypatch: Any) -> None:
    run = runs("maftplus")
    classifier = run.model.classifiers[1]
    features = run["backbone"][-1]

    def adapted() -> Tensor:
        return classifier.adapt_text(features, run.model.vocabulary)

    def error(stage: str) -> float:
        expected = run.case[stage][:, :-1]  # without the row of void, which is not used
        return float(np.abs(adapted().numpy() - expected).max() / expected.std())

    assert error("cdt_text") <= 1e-5
    monkeypatch.setattr(classifier.text_adapter, "form", "semantic")
    assert error("semcfg_cdt_text") <= 1e-5
    prediction = run["head"][-1]._replace(features=features)
    logits = classifier(prediction, [], run.model.vocabulary).logits.numpy()
    expected = run.case["semcfg_out_vocab_logits"][..., :-1]
    assert np.abs(logits - expected).max() / expected.std() <= 5e-4
    prediction = [run["own"], ClassPrediction(torch.from_numpy(logits))]
    joined = run.model.ensemble(prediction, run.model.vocabulary)
    run.check("semcfg_mask_cls_results", (joined + 1e-8).log(), 5e-4)
    semantic = run.run(panoptic=False).pred_sem_seg.sem_seg[0]
    assert run.case.agreement("semcfg_sem_seg_argmax", semantic) >= 0.995
    monkeypatch.setattr(classifier.text_adapter, "align", True)
    assert error("semcfg_cdt_text") > 0.1


@torch.no_grad()
def test_a_tower_of_its_own_gives_the_same(runs: Any, monkeypatch: Any) -> None:
    """``shared=False`` runs CLIP once more, on the image padded as the published code pads it."""
    run = runs("fcclip")
    classifier = run.model.classifiers[1]
    monkeypatch.setattr(classifier, "reads_features", False)
    again = run.run()
    expected = run.result.pred_panoptic_seg.sem_seg
    assert torch.equal(again.pred_panoptic_seg.sem_seg, expected)
