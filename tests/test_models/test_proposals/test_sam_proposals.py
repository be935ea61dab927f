"""SAM and SAM 2: masks equal those of transformers' pipeline, on tiny random models."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from transformers.pipelines import MaskGenerationPipeline

from odise_mm.errors import CheckpointError, ConfigError
from odise_mm.models.proposals.sam_models import PUBLISHED
from odise_mm.models.proposals.sam_proposals import SamProposals
from odise_mm.vocabulary import Vocabulary
from tests.support.tiny_sam import SAM, SAM2, sample

NAMES = Vocabulary.parse("cat", "sky")
# Random models have scores around 0 and masks of any stability; many masks must remain.
LOOSE = dict(
    points_per_side=4,
    points_per_batch=5,
    iou_threshold=0.0,
    stability_threshold=0.3,
    stability_offset=0.05,
    nms_threshold=0.9999,
)


def picture(height: int, width: int) -> np.ndarray:
    small = np.random.default_rng(height).integers(0, 255, (5, 7, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def tensor(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image.copy()).permute(2, 0, 1).float() / 255


def pipeline_output(source: SamProposals, image: np.ndarray) -> dict[str, Any]:
    pipe = MaskGenerationPipeline(model=source.model, image_processor=source.processor)
    return pipe(
        Image.fromarray(image),
        points_per_crop=4,
        points_per_batch=8,  # old versions need a divisor of 16
        pred_iou_thresh=0.0,
        stability_score_thresh=0.3,
        stability_score_offset=0.05,
        crops_nms_thresh=source.nms_threshold,
    )


# With the lower thresholds, most masks are duplicates.
@pytest.mark.parametrize(
    ("arch", "size", "nms_threshold"),
    [
        (SAM, (64, 64), 1.0),
        (SAM, (40, 90), 0.9999),
        (SAM, (77, 50), 1.0),
        (SAM2, (64, 64), 1.0),
        (SAM2, (50, 50), 0.9),
    ],
)
def test_masks_equal_those_of_the_pipeline(
    arch: dict, size: tuple[int, int], nms_threshold: float
) -> None:
    source = SamProposals(arch=arch, **{**LOOSE, "nms_threshold": nms_threshold})
    image = picture(*size)
    wanted = pipeline_output(source, image)
    found = source.propose(tensor(image), None, NAMES)
    count = len(wanted["masks"])
    assert count > 3 if nms_threshold == 1 else 1 <= count < 3 * 16
    assert torch.equal(found.masks > 0, torch.from_numpy(np.stack(wanted["masks"])))
    torch.testing.assert_close(found.scores, wanted["scores"].clamp(0, 1))
    assert found.classes is None


def test_sam2_prompts_all_of_an_image_that_is_not_square() -> None:
    """The points are those that transformers' Sam2Processor makes of a grid over the image."""
    source = SamProposals(arch=SAM2, **LOOSE)
    seen = []
    source.model.prompt_encoder.register_forward_pre_hook(
        lambda _, __, inputs: seen.append(inputs["input_points"][0, :, 0]), with_kwargs=True
    )
    height, width = 30, 90
    source.propose(tensor(picture(height, width)), None, NAMES)
    points = torch.cat(seen)
    grid = [
        [x * width, y * height]
        for y in (1 / 8, 3 / 8, 5 / 8, 7 / 8)
        for x in (1 / 8, 3 / 8, 5 / 8, 7 / 8)
    ]
    processor = transformers.Sam2Processor(source.processor)
    wanted = processor(
        images=Image.fromarray(picture(height, width)),
        input_points=[[[point] for point in grid]],
        return_tensors="pt",
    )["input_points"][0, :, 0]
    torch.testing.assert_close(points, wanted.float())
    assert points.amin(0).tolist() == [8, 8] and points.amax(0).tolist() == [56, 56]


def test_images_of_a_batch_do_not_affect_each_other() -> None:
    source = SamProposals(arch=SAM, **LOOSE)
    first, second = tensor(picture(40, 60)), tensor(picture(64, 50))
    batch = torch.zeros(2, 3, 64, 64)
    batch[0, :, :40, :60], batch[1, :, :, :50] = first, second
    samples = [sample((40, 60), (64, 64)), sample((64, 50), (64, 64))]
    items = list(source.segment(batch, samples, NAMES))
    assert [item.places for item in items] == [[0], [1]]
    for item, image in zip(items, (first, second), strict=True):
        alone = source.propose(image, None, NAMES)
        assert torch.equal(item.prediction.masks[0], alone.masks)
        size = tuple(image.shape[-2:])
        assert item.prediction.frames == [(size, size)] and item.prediction.stride == 1
        assert item.class_predictions == []
        objectness = item.prediction.objectness[0].softmax(-1)[:, 0]
        torch.testing.assert_close(objectness, alone.scores, atol=2e-6, rtol=0)


def test_an_image_without_masks() -> None:
    source = SamProposals(arch=SAM, **{**LOOSE, "stability_threshold": 1.0})
    (item,) = source.segment(torch.rand(1, 3, 32, 48), None, NAMES)
    assert item.prediction.masks.shape == (1, 0, 32, 48)
    assert item.prediction.objectness.shape == (1, 0, 2)


def test_the_model_is_frozen_and_random_weights_are_the_same_every_time() -> None:
    one, two = (SamProposals(arch=SAM2, points_per_side=1) for _ in range(2))
    assert not one.state_dict() and not any(p.requires_grad for p in one.parameters())
    assert not one.train().model.training
    pairs = zip(one.model.state_dict().values(), two.model.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    one.cast(torch.bfloat16)
    exact = two.propose(torch.ones(3, 32, 32) / 2, None, NAMES)
    assert one.propose(torch.ones(3, 32, 32) / 2, None, NAMES).masks.dtype == exact.masks.dtype


@pytest.mark.parametrize("arch", [SAM, SAM2])
def test_weights_in_a_folder(arch: dict, tmp_path: Path) -> None:
    random = SamProposals(arch=arch, **LOOSE)
    with torch.no_grad():
        for parameter in random.model.parameters():
            parameter.mul_(1.01)
    random.model.save_pretrained(tmp_path)
    loaded = SamProposals(weights=str(tmp_path), **LOOSE)
    image = tensor(picture(40, 60))
    wanted, found = (each.propose(image, None, NAMES) for each in (random, loaded))
    assert len(wanted.masks) and torch.equal(wanted.masks, found.masks)
    with torch.device("meta"):
        assert SamProposals(weights=str(tmp_path)).model.dtype == torch.float32

    path = tmp_path / "config.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"attn_implementation": "owner/kernel"}))
    assert SamProposals(weights=str(tmp_path)).model.config._attn_implementation == "sdpa"
    content["mask_decoder_config"]["num_hidden_layers"] = 2
    path.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="do not fit its config.json: .* missing keys"):
        SamProposals(weights=str(tmp_path))
    content["model_type"] = "sam3"
    path.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match="model_type 'sam3' in .*config.json is not one of sam, "):
        SamProposals(weights=str(tmp_path))
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    content["model_type"] = arch["model_type"]
    path.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="cannot be read: .*model.safetensors"):
        SamProposals(weights=str(tmp_path))


def test_images_of_sam2s_video_model(tmp_path: Path) -> None:
    """The hub's SAM 2 folders contain the video model, of which images need a part."""
    fields = {k: v for k, v in copy.deepcopy(SAM2).items() if k != "model_type"}
    # transformers 5.18 makes another class of a dictionary.
    decoder = transformers.Sam2VideoMaskDecoderConfig(**fields.pop("mask_decoder_config"))
    config = transformers.Sam2VideoConfig(
        **fields,
        mask_decoder_config=decoder,
        image_size=64,
        memory_attention_hidden_size=32,
        memory_attention_num_layers=1,
        memory_attention_feed_forward_hidden_size=32,
        memory_attention_rope_feat_sizes=[4, 4],
        memory_encoder_hidden_size=32,
        memory_encoder_output_channels=8,
        mask_downsampler_embed_dim=32,
        memory_fuser_num_layers=1,
        memory_fuser_embed_dim=32,
        memory_fuser_intermediate_dim=32,
    )
    video = transformers.Sam2VideoModel(config)
    video.save_pretrained(tmp_path)
    source = SamProposals(weights=str(tmp_path), **LOOSE)
    state = video.state_dict()
    for name, value in source.model.state_dict().items():
        assert torch.equal(value, state[name]), name


# Parameters in millions, from the READMEs of segment-anything and sam2 (which count the memory of
# SAM 2's video model, too).
@pytest.mark.parametrize(
    ("weights", "least", "most"),
    [
        ("facebook/sam-vit-base", 93, 94.5),
        ("facebook/sam-vit-large", 311, 313),
        ("facebook/sam-vit-huge", 640, 642),
        ("facebook/sam2.1-hiera-tiny", 31, 38.9),
        ("facebook/sam2.1-hiera-small", 38, 46),
        ("facebook/sam2.1-hiera-base-plus", 73, 80.8),
        ("facebook/sam2.1-hiera-large", 216, 224.4),
    ],
)
def test_published_sizes(weights: str, least: float, most: float) -> None:
    assert weights in PUBLISHED
    with torch.device("meta"):
        source = SamProposals(weights=weights)
    assert least < sum(p.numel() for p in source.parameters()) / 1e6 < most
    with pytest.raises(ConfigError, match="cannot run on the meta device"):
        next(source.segment(torch.empty(1, 3, 64, 64, device="meta"), None, NAMES))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(arch=None), "needs either weights .* or arch"),
        (dict(weights="facebook/sam-vit-base"), "needs either weights .* or arch"),
        (
            dict(arch=dict(SAM, model_type="vit")),
            "model_type 'vit' in arch is not one of sam, sam2",
        ),
        (dict(arch=dict(SAM, attn_implementation="a/b")), "unknown key arch.attn_implementation"),
        (dict(arch=dict(SAM, depth=2)), "unknown key arch.depth: transformers' SamConfig"),
        (
            dict(arch=dict(SAM, vision_config=dict(layers=2))),
            "unknown key arch.vision_config.layers: transformers' SamVisionConfig",
        ),
        (dict(points_per_side=0), "points_per_side=0: must be a whole number"),
        (dict(iou_threshold=2), "iou_threshold=2"),
    ],
)
def test_bad_settings(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SamProposals(**{"arch": SAM, **changes})


def test_missing_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckpointError, match="folder no/such/folder does not exist"):
        SamProposals(weights="no/such/folder")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for ask in (SamProposals, SamProposals.fetch_weights):
        with pytest.raises(CheckpointError, match="owner/absent is neither a folder nor available"):
            ask(weights="owner/absent")
    with torch.device("meta"), pytest.raises(ConfigError, match="architecture of owner/absent is"):
        SamProposals(weights="owner/absent")
